//! Faults, chosen by a seed.

use std::{fmt, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::chaos::deployment::{Deployment, DeploymentError};

/// Kinds of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A node is killed without warning and started again.
    Kill,
    /// A node is asked to end and started again.
    Stop,
    /// A node is held for a while; when it goes on, it may be killed at once.
    Pause,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Kill, Self::Stop, Self::Pause];
}

impl std::str::FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "kill" => Ok(Self::Kill),
            "stop" => Ok(Self::Stop),
            "pause" => Ok(Self::Pause),
            other => Err(format!("no fault is called `{other}`: kill, stop or pause")),
        }
    }
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// How long everything runs before it.
    pub after: Duration,
    /// The node that it hits.
    pub node: usize,
    /// What it is.
    pub kind: Kind,
    /// How long the node is gone or held.
    pub lasts: Duration,
    /// Whether a held node is killed instead of going on.
    pub killed: bool,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, kind, lasts, .. } = self;
        let then = if self.killed { ", then killed" } else { "" };
        write!(f, "{kind:?} of node {node} for {} ms{then}", lasts.as_millis())
    }
}

/// Chooses faults. The same seed gives the same ones.
#[derive(Debug)]
pub struct Choice {
    rng: StdRng,
    nodes: usize,
    kinds: Vec<Kind>,
}

impl Choice {
    /// Faults of `kinds` for `nodes` nodes. A kind that is named twice comes twice as often.
    pub fn new(seed: u64, nodes: usize, kinds: &[Kind]) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), nodes, kinds: kinds.to_vec() }
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.rng.random_range(from..=to))
    }
}

impl Iterator for Choice {
    type Item = Fault;

    /// The next one; none if there is no kind to choose from.
    fn next(&mut self) -> Option<Fault> {
        if self.kinds.is_empty() || self.nodes == 0 {
            return None;
        }
        let kind = self.kinds[self.rng.random_range(0..self.kinds.len())];
        let after = self.millis(100, 2_500);
        let node = self.rng.random_range(0..self.nodes);
        // Half of them at once: what the clients have under way then meets the starting node.
        let lasts = match kind {
            Kind::Kill | Kind::Stop if self.rng.random() => Duration::ZERO,
            Kind::Kill | Kind::Stop => self.millis(100, 1_500),
            Kind::Pause => self.millis(100, 2_500),
        };
        let killed = kind == Kind::Pause && self.rng.random();
        Some(Fault { after, node, kind, lasts, killed })
    }
}

/// Lets `fault` happen, and undoes it: the node is ready again afterwards.
///
/// # Errors
/// If a process does something that it was not told to do.
pub async fn inject(deployment: &dyn Deployment, fault: &Fault) -> Result<(), DeploymentError> {
    let node = fault.node;
    match fault.kind {
        Kind::Kill => deployment.kill(node).await?,
        Kind::Stop => deployment.stop(node).await?,
        Kind::Pause => deployment.pause(node).await?,
    }
    tokio::time::sleep(fault.lasts).await;
    match fault.kind {
        Kind::Kill | Kind::Stop => deployment.restart(node).await,
        Kind::Pause if fault.killed => {
            deployment.kill(node).await?;
            deployment.restart(node).await
        }
        Kind::Pause => deployment.resume(node).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_chooses_the_same_faults_and_every_kind_and_node_comes() {
        let choose = |seed| Choice::new(seed, 3, &Kind::ALL).take(100).collect::<Vec<_>>();
        assert_eq!(choose(7), choose(7));
        assert_ne!(choose(7), choose(8));
        for kind in Kind::ALL {
            assert!((0..3).all(|node| choose(7).iter().any(|fault| (fault.kind, fault.node) == (kind, node))));
        }
    }

    #[test]
    fn without_kinds_there_are_no_faults() {
        assert_eq!(Choice::new(1, 3, &[]).next(), None);
    }
}
