//! Faults, chosen by a seed.

use std::{fmt, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::chaos::deployment::{Deployment, DeploymentError};

/// Longer than the lease of a node (6 s unless it is set), in milliseconds: the others take it for dead.
const STALL_MS: (u64, u64) = (7_000, 9_000);

/// How long a node that goes on may take to find that it was taken for dead.
const FINDS_OUT: Duration = Duration::from_secs(2);

/// How long a store is held, in milliseconds: shorter than a lease.
const STORE_MS: (u64, u64) = (1_000, 3_000);

/// Kinds of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A node is killed without warning and started again.
    Kill,
    /// A node is asked to end and started again.
    Stop,
    /// A node is held for a while; when it goes on, it may be killed at once.
    Pause,
    /// A node is held for longer than its lease; when it goes on, it finds that it was taken for dead.
    Stall,
    /// What tells news is killed and started again, and remembers nothing.
    KillBus,
    /// What tells news forgets everything.
    FlushBus,
    /// The server of the store is held for a while.
    PauseStore,
    /// The server of the store is killed without warning and started again.
    KillStore,
    /// One more worker comes, once a run.
    AddWorker,
}

impl Kind {
    /// What can happen to any node.
    pub const ALL: [Self; 3] = [Self::Kill, Self::Stop, Self::Pause];

    /// What can happen to a cluster; the common ones more often.
    pub const CLUSTER: [Self; 11] = [
        Self::Kill,
        Self::Kill,
        Self::Stop,
        Self::Stop,
        Self::Pause,
        Self::Stall,
        Self::KillBus,
        Self::FlushBus,
        Self::PauseStore,
        Self::KillStore,
        Self::AddWorker,
    ];

    /// The names, as they are chosen by.
    const NAMES: [(&'static str, Self); 9] = [
        ("kill", Self::Kill),
        ("stop", Self::Stop),
        ("pause", Self::Pause),
        ("stall", Self::Stall),
        ("kill-bus", Self::KillBus),
        ("flush-bus", Self::FlushBus),
        ("pause-store", Self::PauseStore),
        ("kill-store", Self::KillStore),
        ("add-worker", Self::AddWorker),
    ];

    /// Whether it hits one node.
    fn has_node(self) -> bool {
        matches!(self, Self::Kill | Self::Stop | Self::Pause | Self::Stall)
    }

    /// Whether there is a promise how soon rooms can be written to afterwards.
    pub fn is_timed(self) -> bool {
        self == Self::Kill
    }
}

impl std::str::FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let known = Self::NAMES.iter().find(|(known, _)| *known == name);
        let names = || Self::NAMES.map(|(name, _)| name).join(", ");
        known.map(|(_, kind)| *kind).ok_or_else(|| format!("no fault is called `{name}`: {}", names()))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Self::NAMES.iter().find(|(_, kind)| kind == self).map_or(Ok(()), |(name, _)| f.write_str(name))
    }
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// How long everything runs before it.
    pub after: Duration,
    /// The node that it hits, if it hits one.
    pub node: usize,
    /// What it is.
    pub kind: Kind,
    /// How long the node or the service is gone or held.
    pub lasts: Duration,
    /// Whether a held node is killed instead of going on.
    pub killed: bool,
}

impl Fault {
    /// What happens, given the names of the nodes.
    pub fn told(&self, names: &[String]) -> String {
        let Self { node, kind, lasts, .. } = self;
        let whom = names.get(*node).filter(|_| kind.has_node()).map_or("", |name| name);
        let then = if self.killed { ", then killed" } else { "" };
        format!("{kind} {whom} for {} ms{then}", lasts.as_millis())
    }
}

/// Chooses faults. The same seed gives the same ones.
#[derive(Debug)]
pub struct Choice {
    rng: StdRng,
    nodes: Vec<usize>,
    kinds: Vec<Kind>,
}

impl Choice {
    /// Faults of `kinds` for the nodes of these numbers. A kind that is named twice comes twice as often.
    pub fn new(seed: u64, nodes: Vec<usize>, kinds: &[Kind]) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), nodes, kinds: kinds.to_vec() }
    }

    fn millis(&mut self, (from, to): (u64, u64)) -> Duration {
        Duration::from_millis(self.rng.random_range(from..=to))
    }
}

impl Iterator for Choice {
    type Item = Fault;

    /// The next one; none if there is no kind to choose from.
    fn next(&mut self) -> Option<Fault> {
        if self.kinds.is_empty() || self.nodes.is_empty() {
            return None;
        }
        let kind = self.kinds[self.rng.random_range(0..self.kinds.len())];
        let after = self.millis((100, 2_500));
        let node = self.nodes[self.rng.random_range(0..self.nodes.len())];
        // Half of them at once: what the clients have under way then meets the starting node.
        let lasts = match kind {
            Kind::Kill | Kind::Stop | Kind::KillBus if self.rng.random() => Duration::ZERO,
            Kind::Kill | Kind::Stop | Kind::KillBus => self.millis((100, 1_500)),
            Kind::Pause => self.millis((100, 2_500)),
            Kind::Stall => self.millis(STALL_MS),
            Kind::PauseStore => self.millis(STORE_MS),
            Kind::FlushBus | Kind::KillStore | Kind::AddWorker => Duration::ZERO,
        };
        let killed = kind == Kind::Pause && self.rng.random();
        if kind == Kind::AddWorker {
            self.kinds.retain(|kind| *kind != Kind::AddWorker);
        }
        Some(Fault { after, node, kind, lasts, killed })
    }
}

/// Lets `fault` happen, and undoes it: a node that was ended is ready again afterwards.
///
/// # Errors
/// If a process does something that it was not told to do.
pub async fn inject(deployment: &dyn Deployment, fault: &Fault) -> Result<(), DeploymentError> {
    let node = fault.node;
    match fault.kind {
        Kind::Kill => deployment.kill(node).await?,
        Kind::Stop => deployment.stop(node).await?,
        Kind::Pause | Kind::Stall => deployment.pause(node).await?,
        Kind::KillBus => deployment.kill_bus().await?,
        Kind::FlushBus => deployment.flush_bus().await?,
        Kind::PauseStore => deployment.pause_store(true).await?,
        Kind::KillStore => deployment.kill_store().await?,
        Kind::AddWorker => deployment.add_worker().await?,
    }
    tokio::time::sleep(fault.lasts).await;
    match fault.kind {
        Kind::Kill | Kind::Stop => deployment.restart(node).await,
        Kind::Pause if fault.killed => {
            deployment.kill(node).await?;
            deployment.restart(node).await
        }
        Kind::Pause => deployment.resume(node).await,
        Kind::Stall => {
            deployment.resume(node).await?;
            tokio::time::sleep(FINDS_OUT).await;
            Ok(())
        }
        Kind::KillBus => deployment.restart_bus().await,
        Kind::PauseStore => deployment.pause_store(false).await,
        Kind::KillStore => deployment.restart_store().await,
        Kind::FlushBus | Kind::AddWorker => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_chooses_the_same_faults_and_every_kind_and_node_comes() {
        let choose = |seed| Choice::new(seed, vec![0, 1, 2], &Kind::ALL).take(100).collect::<Vec<_>>();
        assert_eq!(choose(7), choose(7));
        assert_ne!(choose(7), choose(8));
        for kind in Kind::ALL {
            assert!((0..3).all(|node| choose(7).iter().any(|fault| (fault.kind, fault.node) == (kind, node))));
        }
    }

    #[test]
    fn without_kinds_there_are_no_faults() {
        assert_eq!(Choice::new(1, vec![0, 1, 2], &[]).next(), None);
    }

    #[test]
    fn every_kind_is_found_by_its_name_and_a_worker_is_added_once() {
        for kind in Kind::CLUSTER {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        let faults = Choice::new(3, vec![0], &Kind::CLUSTER).take(200);
        assert_eq!(faults.filter(|fault| fault.kind == Kind::AddWorker).count(), 1);
    }
}
