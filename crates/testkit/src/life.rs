//! Whether a node can do anything at this moment.

use std::sync::Arc;

use tokio::sync::watch;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    Paused,
    Dead,
}

/// The life of one simulated process. Whatever enters or leaves it passes its [`gate`](Self::gate): nothing passes while
/// it is paused, and nothing ever again once it is dead.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    phase: Arc<watch::Sender<Phase>>,
}

impl Default for Life {
    fn default() -> Self {
        Self { phase: Arc::new(watch::Sender::new(Phase::Running)) }
    }
}

impl Life {
    pub(crate) fn is_running(&self) -> bool {
        *self.phase.borrow() == Phase::Running
    }

    pub(crate) fn is_dead(&self) -> bool {
        *self.phase.borrow() == Phase::Dead
    }

    /// Stops it where it is, as SIGSTOP does.
    pub(crate) fn pause(&self) {
        self.turn(Phase::Paused);
    }

    /// Lets it go on.
    pub(crate) fn resume(&self) {
        self.turn(Phase::Running);
    }

    /// Ends it between two of its steps.
    pub(crate) fn kill(&self) {
        self.turn(Phase::Dead);
    }

    /// Passes when it runs.
    pub(crate) async fn gate(&self) {
        if self.is_running() {
            return;
        }
        let mut phases = self.phase.subscribe();
        if phases.wait_for(|phase| *phase != Phase::Paused).await.is_err() || self.is_dead() {
            std::future::pending::<()>().await;
        }
    }

    /// Passes when it is dead.
    pub(crate) async fn death(&self) {
        let mut phases = self.phase.subscribe();
        // The sender lives as long as this value.
        let _ = phases.wait_for(|phase| *phase == Phase::Dead).await;
    }

    fn turn(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let turns = *phase != Phase::Dead && *phase != to;
            if turns {
                *phase = to;
            }
            turns
        });
    }
}
