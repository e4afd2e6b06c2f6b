//! The keeper of shards: it keeps the node's lease, looks who else is there, takes the shards that should be this node's
//! and hands over those that should be another's.
//!
//! Who *should* own a shard is computed from the members ([`cofactor_shard`]); who *does* is the shard's row, which moves by
//! compare-and-set only: from nobody or from a node whose lease is over to this node, or from this node to one that looks
//! after it from then on, or to nobody.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use cofactor_shard::Role;
use cofactor_store::{Durability, Mutation, StoreError, key, record, tables};
use cofactor_types::{NodeId, ShardId};
use serde::{Deserialize, Serialize};
use tokio::time::MissedTickBehavior;

use crate::{Env, LeaseError, lease::Lease, shards::Shards};

/// How often a lease is renewed within its length.
pub(crate) const BEATS_A_LEASE: u32 = 4;

/// How soon a failed attempt to take a shard or to renew the lease is repeated.
pub(crate) const RETRY: Duration = Duration::from_millis(50);

/// How soon an attempt to renew the lease is repeated while the store does not answer.
const RETRY_MAX: Duration = Duration::from_millis(800);

/// The partition of the members table.
pub(crate) const CLUSTER: &str = "cluster";

/// What a node says of itself.
#[derive(Clone, Debug)]
pub struct KeeperOptions {
    /// The name that stays when the process is restarted.
    pub name: String,
    /// Where it takes calls: host and port. Empty if nobody can call it.
    pub address: String,
    /// What it does.
    pub roles: Vec<Role>,
    /// The length of its lease: so long after its death nobody takes its place.
    pub lease: Duration,
}

/// What the keeper needs of the actors of its node.
#[async_trait]
pub trait ShardHost: std::fmt::Debug + Send + Sync + 'static {
    /// Lets the actors of these shards finish what is under way, and go.
    async fn drain(&self, shards: &BTreeSet<ShardId>);
}

/// A row of the `members` table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemberRow {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) roles: Vec<String>,
    pub(crate) draining: bool,
    /// Rises while the node lives.
    pub(crate) beat: u64,
}

/// Keeps the lease and the shards of a node.
#[derive(Debug)]
pub struct Keeper {
    pulse: Pulse,
    shards: Shards,
}

impl Keeper {
    /// A keeper that owns nothing yet; [`Self::begin`] or [`Self::run`] does the rest.
    pub fn new(env: Env, options: KeeperOptions, host: Arc<dyn ShardHost>, lease: Lease) -> Self {
        let options = Arc::new(options);
        let pulse = Pulse { env: env.clone(), options: Arc::clone(&options), lease, beat: 0, draining: false };
        let length_us = pulse.lease.length_us();
        let shards = Shards::new(env, options, host, length_us);
        Self { pulse, shards }
    }

    /// Says that this node is there, looks who else is, and takes the shards that can be had at once.
    ///
    /// # Errors
    /// [`LeaseError::Ended`]: the node must end at once; [`LeaseError::Store`]: it cannot begin.
    pub async fn begin(&mut self) -> Result<(), LeaseError> {
        self.pulse.beat().await?;
        self.shards.look().await?;
        tokio::select! {
            error = self.pulse.run() => return Err(error),
            () = self.shards.settle(false) => {}
        }
        // Whose place this node takes may have had positions up to now and further: the lease must reach beyond them.
        self.pulse.beat().await
    }

    /// Keeps the lease and the shards until another node has ended the lease. Shards may take their time to move; the lease
    /// is renewed beside that.
    pub async fn run(&mut self) -> LeaseError {
        tokio::select! {
            error = self.pulse.run() => error,
            () = self.shards.run() => LeaseError::Ended,
        }
    }

    /// Hands everything over and ends the lease. What is under way is finished first.
    ///
    /// # Errors
    /// If the store fails; the shards then pass on when the lease is over.
    pub async fn leave(&mut self) -> Result<(), LeaseError> {
        self.pulse.draining = true;
        self.pulse.env.ownership().leave();
        self.pulse.beat().await?;
        self.shards.look().await?;
        tokio::select! {
            error = self.pulse.run() => return Err(error),
            () = self.shards.settle(true) => {}
        }
        self.pulse.end().await
    }
}

/// Renews the lease and says that the node is there.
#[derive(Debug)]
struct Pulse {
    env: Env,
    options: Arc<KeeperOptions>,
    lease: Lease,
    beat: u64,
    draining: bool,
}

impl Pulse {
    async fn run(&mut self) -> LeaseError {
        let mut interval = tokio::time::interval(self.options.lease / BEATS_A_LEASE);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let mut pause = RETRY;
            while let Err(error) = self.beat_soon().await {
                if error == LeaseError::Ended {
                    return error;
                }
                metrics::counter!("cofactor_lease_failures_total").increment(1);
                tracing::warn!(%error, "the lease could not be renewed; trying again");
                tokio::time::sleep(pause).await;
                pause = RETRY_MAX.min(pause * 2);
            }
        }
    }

    /// As [`Self::beat`], but an attempt that takes half of the lease is given up for another one: a request that the store
    /// lost must not cost the lease. What became of it, the next one finds.
    async fn beat_soon(&mut self) -> Result<(), LeaseError> {
        let late = |_| Err(StoreError::Unknown("no answer in half of the lease".into()).into());
        tokio::time::timeout(self.options.lease / 2, self.beat()).await.unwrap_or_else(late)
    }

    async fn beat(&mut self) -> Result<(), LeaseError> {
        let clock = Arc::clone(self.env.clock());
        let began_us = clock.steady_us();
        let end = self.lease.renew(&*clock, self.env.positions().last()).await?;
        self.env.positions().extend(end);
        self.env.ownership().renewed(began_us, self.lease.length_us());
        self.beat += 1;
        let row = MemberRow {
            name: self.options.name.clone(),
            address: self.options.address.clone(),
            roles: self.options.roles.iter().map(|role| role.as_str().to_owned()).collect(),
            draining: self.draining,
            beat: self.beat,
        };
        let value = Some(record::encode(&row)?);
        let said = member(self.env.ownership().node(), value);
        Ok(self.env.store().write(vec![said], Durability::Deferred).await?)
    }

    async fn end(&mut self) -> Result<(), LeaseError> {
        let last = self.env.positions().last();
        self.lease.end_at(last).await?;
        let gone = member(self.env.ownership().node(), None);
        Ok(self.env.store().write(vec![gone], Durability::Deferred).await?)
    }
}

pub(crate) fn member(node: NodeId, value: Option<bytes::Bytes>) -> Mutation {
    Mutation { table: &tables::MEMBERS, partition: key![CLUSTER], clustering: key![node.0], value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_members_are_read_for_ever() {
        let row = MemberRow {
            name: "worker-1".to_owned(),
            address: "192.0.2.1:8009".to_owned(),
            roles: vec!["worker".to_owned()],
            draining: true,
            beat: 300,
        };
        cofactor_golden::Golden::new("store/member").record(&[row]);
    }
}
