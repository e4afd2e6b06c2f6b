//! What all parts of a run share: the nodes, the seed's choices, and what clients saw.

use std::{
    cell::{Cell, RefCell},
    fmt::{Debug, Write as _},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use cofactor_types::{ErrorClass, Fault};
use rand::{RngExt, rngs::StdRng};
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};

use super::{
    clock::MachineClock,
    node::{ClusterNode, Ground},
    seen::Seen,
};

/// How long a client waits for an answer.
const CLIENT_PATIENCE: Duration = Duration::from_secs(6);

/// A machine and what runs on it.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) address: String,
    pub(super) clock: MachineClock,
    /// Somebody starts what has ended here.
    pub(super) is_kept: Cell<bool>,
    pub(super) node: RefCell<Option<Rc<ClusterNode>>>,
}

/// What all parts of a run share.
#[derive(Debug)]
pub(super) struct World {
    pub(super) ground: Arc<Ground>,
    pub(super) machines: Vec<Machine>,
    pub(super) start: Instant,
    pub(super) rng: RefCell<StdRng>,
    pub(super) seen: RefCell<Seen>,
    pub(super) trace: RefCell<String>,
    /// Answers to clients that are lost, in parts of a thousand.
    pub(super) lost_permille: Cell<u16>,
    /// Nobody begins anything new.
    pub(super) over: watch::Sender<bool>,
}

impl World {
    pub(super) fn up_to(&self, max: u64) -> u64 {
        self.rng.borrow_mut().random_range(0..=max)
    }

    pub(super) async fn pause(&self, max_ms: u64) {
        let ms = self.up_to(max_ms);
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    pub(super) fn is_over(&self) -> bool {
        *self.over.borrow()
    }

    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Notes what happened.
    pub(super) fn note(&self, what: impl Debug) {
        let _ = writeln!(self.trace.borrow_mut(), "{:6} {what:?}", self.now_ms());
    }

    /// The nodes that a client can reach.
    pub(super) fn nodes(&self) -> Vec<Rc<ClusterNode>> {
        let nodes = self.machines.iter().filter_map(|machine| machine.node.borrow().clone());
        nodes.filter(|node| !node.life.is_dead()).collect()
    }

    fn any_node(&self) -> Option<Rc<ClusterNode>> {
        let mut nodes = self.nodes();
        let count = u64::try_from(nodes.len()).unwrap_or(0);
        (count > 0).then(|| nodes.swap_remove(usize::try_from(self.up_to(count - 1)).unwrap_or(0)))
    }

    /// Asks any node, once.
    pub(super) async fn ask<T: 'static>(
        &self,
        ask: impl AsyncFnOnce(Rc<ClusterNode>) -> Result<T, Fault> + 'static,
    ) -> Result<T, Fault> {
        let Some(node) = self.any_node() else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            return Err(Fault::unavailable("no node is there"));
        };
        let is_lost = self.up_to(999) < u64::from(self.lost_permille.get());
        let (sender, receiver) = oneshot::channel();
        let life = node.life.clone();
        // What has arrived is done, whether or not the client waits.
        actix_rt::spawn(async move {
            node.life.gate().await;
            let life = node.life.clone();
            let answer = ask(node).await;
            life.gate().await;
            let _ = sender.send(answer);
        });
        tokio::select! {
            biased;
            answer = receiver => match answer {
                Ok(answer) if !is_lost => answer,
                _ => Err(Fault::unknown("the answer was lost")),
            },
            () = life.death() => Err(Fault::unknown("the connection was lost")),
            () = tokio::time::sleep(CLIENT_PATIENCE) => Err(Fault::unknown("no answer came in time")),
        }
    }

    /// Asks again and again until there is an answer, as a client does.
    pub(super) async fn insist<T: 'static>(
        &self,
        who: &str,
        ask: impl AsyncFn(Rc<ClusterNode>) -> Result<T, Fault> + Clone + 'static,
    ) -> T {
        loop {
            match self.ask(ask.clone()).await {
                Ok(answer) => return answer,
                Err(fault) => self.bear(who, &fault).await,
            }
        }
    }

    /// What a client does after a failure: it waits a little. A refusal that it would take for final is a violation.
    pub(super) async fn bear(&self, who: &str, fault: &Fault) {
        self.note((who, fault.class, &fault.message));
        if !happened_not(fault) && !matches!(fault.class, ErrorClass::Unknown | ErrorClass::Internal) {
            self.seen.borrow_mut().violate(format!("{who} was refused: {fault}"));
        }
        tokio::time::sleep(Duration::from_millis(20 + self.up_to(80))).await;
    }
}

/// Whether a fault promises that nothing happened, and that it may be tried again.
pub(super) fn happened_not(fault: &Fault) -> bool {
    matches!(fault.class, ErrorClass::Unavailable | ErrorClass::NotOwner | ErrorClass::Limited)
}
