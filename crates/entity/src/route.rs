//! The way to an entity that lives elsewhere.

use std::time::Duration;

use bytes::Bytes;
use cofactor_types::{ErrorClass, Fault, ShardId};
use cofactor_wire::node::{Call, Target};

use crate::{Env, takeover};

/// How long an entity without an owner, or with one that cannot be reached, is asked again.
const TOTAL_MAX: Duration = Duration::from_secs(15);

/// How long one call may take. An owner that hangs costs its callers no more.
const CALL_MAX: Duration = Duration::from_secs(8);

/// The first pause between two tries; each is twice the one before, up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(10);

/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_millis(150);

pub(crate) fn not_owner() -> Fault {
    Fault::new(ErrorClass::NotOwner, "M_UNKNOWN", "this node does not own the entity")
}

/// The tries of one command.
pub(crate) struct Route<'a> {
    env: &'a Env,
    shard: ShardId,
    began_us: u64,
    pause: Duration,
    last: Option<Fault>,
}

impl<'a> Route<'a> {
    pub(crate) fn new(env: &'a Env, shard: ShardId) -> Self {
        Self { env, shard, began_us: env.clock().steady_us(), pause: PAUSE_MIN, last: None }
    }

    /// One try.
    pub(crate) async fn call(&mut self, address: &str, target: Target, frame: Bytes) -> Result<Bytes, Fault> {
        let Some(transport) = self.env.transport() else {
            return Err(Fault::unavailable("this node cannot call other nodes"));
        };
        let call = Call { target, frame, timeout: CALL_MAX, trace: cofactor_telemetry::current_trace() };
        let outcome = transport.call(address, call).await;
        self.last = outcome.as_ref().err().cloned();
        outcome
    }

    /// Waits a moment and looks who owns the shard now.
    ///
    /// # Errors
    /// When the time is over.
    pub(crate) async fn again(&mut self) -> Result<(), Fault> {
        let elapsed = Duration::from_micros(self.env.clock().steady_us().saturating_sub(self.began_us));
        if elapsed + self.pause > TOTAL_MAX {
            let last = self.last.take().map_or_else(|| "nobody owns it".to_owned(), |fault| fault.message.into());
            return Err(Fault::unavailable(format!("the room or user cannot be reached at the moment: {last}")));
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        if let Ok(owner) = takeover::owner(self.env, self.shard).await {
            self.env.ownership().note_owner(self.shard, owner);
        }
        Ok(())
    }
}
