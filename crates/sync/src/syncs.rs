//! `/sync` wherever it is served: here, or by the sync worker that the user's hash chooses.

use std::time::Duration;

use bytes::Bytes;
use cofactor_entity::Env;
use cofactor_types::{EntityId, ErrorClass, Fault, SyncToken};
use cofactor_wire::{
    self as wire,
    node::{Call, Target},
};
use ruma::{OwnedUserId, UserId};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{SyncLoad, SyncRequest, SyncService, request::SyncFrame};

/// How long a sync worker may take beyond the time that the client is ready to wait.
const GRACE: Duration = Duration::from_secs(10);

/// How long somebody who serves `/sync` is looked for, in tries of a quarter of a second.
const TRIES_MAX: usize = 40;

/// The pause between two rounds of tries.
const PAUSE: Duration = Duration::from_millis(250);

/// What a sync worker is asked.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SyncCall {
    Sync(Box<SyncFrame>),
    KeyChanges { user_id: OwnedUserId, from: String, to: String },
}

/// Users whose devices changed, and users who share no room any more.
type KeyChanges = (Vec<OwnedUserId>, Vec<OwnedUserId>);

/// The `/sync` of the cluster. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Syncs {
    env: Env,
    /// The service of this node, if it has one.
    here: Option<SyncService>,
    shutdown: watch::Receiver<bool>,
}

impl Syncs {
    /// Of a node that has the service itself, or not. `shutdown` turning true sends waiting requests home.
    pub fn new(env: Env, here: Option<SyncService>, shutdown: watch::Receiver<bool>) -> Self {
        Self { env, here, shutdown }
    }

    /// As [`SyncService::sync`].
    ///
    /// # Errors
    /// As [`SyncService::sync`]; [`ErrorClass::Unavailable`] if nobody serves.
    pub async fn sync(&self, mut request: SyncRequest) -> Result<Bytes, Fault> {
        if let Some(here) = self.here.as_ref().filter(|_| self.is_alone()) {
            return here.sync(request).await;
        }
        let mut shutdown = self.shutdown.clone();
        tokio::select! {
            biased;
            answer = self.ask_sync(&request) => return answer,
            _ = shutdown.wait_for(|ends| *ends), if !request.timeout.is_zero() => {}
        }
        // The worker may go on waiting, this node may not: what there is now is the answer.
        request.timeout = Duration::ZERO;
        self.ask_sync(&request).await
    }

    async fn ask_sync(&self, request: &SyncRequest) -> Result<Bytes, Fault> {
        let call = SyncCall::Sync(Box::new(SyncFrame::try_from(request)?));
        self.ask(&request.user_id, &call, request.timeout + GRACE).await
    }

    /// As [`SyncService::key_changes`].
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub async fn key_changes(&self, user_id: &UserId, from: &SyncToken, to: &SyncToken) -> Result<KeyChanges, Fault> {
        match &self.here {
            Some(here) if self.is_alone() => here.key_changes(user_id, from, to).await,
            _ => {
                let (from, to) = (from.to_string(), to.to_string());
                let call = SyncCall::KeyChanges { user_id: user_id.to_owned(), from, to };
                wire::answered(&self.ask(user_id, &call, GRACE).await?)
            }
        }
    }

    /// Answers a call from another node.
    ///
    /// # Errors
    /// [`ErrorClass::NotOwner`] if this node has no such service; else as the service.
    pub async fn serve(&self, frame: &[u8]) -> Result<Bytes, Fault> {
        let not_here = || Fault::new(ErrorClass::NotOwner, "M_UNKNOWN", "this node does not serve /sync");
        let here = self.here.as_ref().ok_or_else(not_here)?;
        let token = |text: &str| text.parse::<SyncToken>().map_err(|error| Fault::invalid(error.to_string()));
        match wire::asked(frame)? {
            SyncCall::Sync(frame) => here.sync((*frame).try_into()?).await,
            SyncCall::KeyChanges { user_id, from, to } => {
                wire::encode(&here.key_changes(&user_id, &token(&from)?, &token(&to)?).await?)
            }
        }
    }

    /// How the service of this node is doing, if it has one.
    pub fn load(&self) -> Option<SyncLoad> {
        self.here.as_ref().map(SyncService::load)
    }

    fn is_alone(&self) -> bool {
        self.env.transport().is_none()
    }

    /// Asks the user's sync worker, and the next one if that does not answer: the same question twice harms nobody.
    async fn ask(&self, user_id: &UserId, call: &SyncCall, timeout: Duration) -> Result<Bytes, Fault> {
        let frame = wire::encode(call)?;
        let hash = EntityId::user(user_id).hash64().0;
        let me = self.env.ownership().node();
        let mut last = None;
        for _ in 0..TRIES_MAX {
            let view = self.env.ownership().view();
            for worker in view.sync_workers(hash) {
                let outcome = match (&self.here, self.env.transport()) {
                    (Some(_), _) if worker.node == me => self.serve(&frame).await,
                    (_, Some(transport)) => {
                        let trace = cofactor_telemetry::current_trace();
                        let call = Call { target: Target::Sync, frame: frame.clone(), timeout, trace };
                        transport.call(&worker.address, call).await
                    }
                    _ => continue,
                };
                match outcome {
                    Err(fault) if is_of_the_way(&fault) => last = Some(fault),
                    outcome => return outcome,
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(last.unwrap_or_else(|| Fault::unavailable("no sync worker is there at the moment; try again")))
    }
}

/// Whether a fault says that the worker could not be asked, and not what it answered.
fn is_of_the_way(fault: &Fault) -> bool {
    matches!(fault.class, ErrorClass::NotOwner | ErrorClass::Unavailable | ErrorClass::Unknown)
}

#[cfg(test)]
mod tests {
    use cofactor_golden::Golden;
    use ruma::user_id;

    use super::*;

    #[test]
    fn what_sync_workers_are_asked_and_answer_is_read_for_ever() {
        let (user_id, other) = (user_id!("@alice:example.org").to_owned(), user_id!("@bob:example.org").to_owned());
        let changes: KeyChanges = (vec![user_id.clone()], vec![other]);
        let calls = [
            SyncCall::Sync(Box::new(SyncFrame::sample())),
            SyncCall::KeyChanges { user_id, from: "s1".to_owned(), to: "s2".to_owned() },
        ];
        Golden::new("wire/sync_call").variants(&[&calls]);
        Golden::new("wire/key_changes").record(&[changes]);
    }
}
