//! The keeper of shards: it keeps the node's lease, looks who else is there, takes the shards that should be this node's
//! and hands over those that should be another's.
//!
//! Who *should* own a shard is computed from the members ([`cofactor_shard`]); who *does* is the shard's row, which moves by
//! compare-and-set only: from nobody, from a node whose lease is over, or from this node to nobody.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use cofactor_shard::{Member, Role, View};
use cofactor_store::{Durability, Key, Mutation, Scan, StoreError, key, record, tables};
use cofactor_types::{Epoch, NodeId, ShardId};
use cofactor_wire::node::{Call, ShardCall, Target};
use futures::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::time::MissedTickBehavior;

use crate::{
    Env, LeaseError,
    lease::{Lease, LeaseRow},
    takeover::{self, Given, Taken},
};

/// Shards that move at the same time.
const MOVES_AT_ONCE: usize = 32;

/// How long the actors of a shard may take to finish before it is handed over all the same.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// How long another node is waited for when it is told of released shards.
const TELL_MAX: Duration = Duration::from_secs(1);

/// How often a lease is renewed within its length.
const BEATS_A_LEASE: u32 = 4;

/// How often within the length of a lease a node looks who is there: a dead one is noticed so much later than it could be.
const LOOKS_A_LEASE: u32 = 12;

/// How soon a failed attempt to take a shard or to renew the lease is repeated.
const RETRY: Duration = Duration::from_millis(50);

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
    /// Lets the actors of a shard finish what is under way, and go.
    async fn drain(&self, shard: ShardId);
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

/// When another node was last seen to move.
#[derive(Debug)]
struct Seen {
    beat: u64,
    since_us: u64,
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
        let shards = Shards {
            env,
            options,
            host,
            length_us,
            seen: HashMap::new(),
            failed: BTreeSet::new(),
            doubtful: BTreeMap::new(),
        };
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
            () = self.shards.settle(None, false) => {}
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
        self.pulse.beat().await?;
        self.shards.look().await?;
        tokio::select! {
            error = self.pulse.run() => return Err(error),
            () = self.shards.settle(None, true) => {}
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
            while let Err(error) = self.beat().await {
                if error == LeaseError::Ended {
                    return error;
                }
                metrics::counter!("cofactor_lease_failures_total").increment(1);
                tracing::warn!(%error, "the lease could not be renewed; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
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

fn member(node: NodeId, value: Option<bytes::Bytes>) -> Mutation {
    Mutation { table: &tables::MEMBERS, partition: key![CLUSTER], clustering: key![node.0], value }
}

/// Looks who is there, and moves shards.
#[derive(Debug)]
struct Shards {
    env: Env,
    options: Arc<KeeperOptions>,
    host: Arc<dyn ShardHost>,
    length_us: u64,
    seen: HashMap<NodeId, Seen>,
    /// Shards of which the last attempt to take them failed.
    failed: BTreeSet<ShardId>,
    /// Shards whose rows say that they are this node's, or may come to say so, although it does not serve them: as long as
    /// this node lives, nobody else can take them.
    doubtful: BTreeMap<ShardId, Epoch>,
}

impl Shards {
    async fn run(&mut self) {
        let mut interval = tokio::time::interval(self.options.lease / LOOKS_A_LEASE);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ownership = Arc::clone(self.env.ownership());
        loop {
            // Shards that could not be had because a call failed are tried again at once, not a look later.
            if !self.failed.is_empty() {
                tokio::time::sleep(RETRY).await;
                let failed = std::mem::take(&mut self.failed);
                self.settle(Some(failed), false).await;
            }
            tokio::select! {
                biased;
                _ = interval.tick() => match self.look().await {
                    Ok(()) => self.settle(None, false).await,
                    Err(error) => tracing::warn!(%error, "the members cannot be read; trying again"),
                },
                () = ownership.nudged() => {
                    let offered = self.env.ownership().take_offers();
                    // That the shards are ours may be news to this node.
                    if let Err(error) = self.look().await {
                        tracing::warn!(%error, "the members cannot be read; trying again");
                    }
                    self.settle(Some(offered), false).await;
                }
            }
        }
    }

    /// Reads the members, and ends the leases of those who have not moved for a whole length.
    async fn look(&mut self) -> Result<(), StoreError> {
        // Before the rows are read: if this process stands still while it reads them, that is nobody else's silence.
        let now_us = self.env.clock().steady_us();
        let rows = self.env.store().scan(Scan::new(&tables::MEMBERS, key![CLUSTER], Key::EMPTY, usize::MAX)).await;
        let took_us = self.env.clock().steady_us().saturating_sub(now_us);
        if rows.is_err() || took_us > self.length_us / u64::from(BEATS_A_LEASE) {
            // While the store does not answer nobody can say that it lives: whoever is silent then is given a whole lease.
            self.seen.clear();
        }
        let rows = rows?;
        let me = self.env.ownership().node();
        let mut members = Vec::with_capacity(rows.len());
        for row in rows {
            let node = NodeId(row.clustering.number(0));
            let said: MemberRow = record::decode(&row.value)?;
            if node != me && self.is_silent(node, said.beat, now_us) && self.bury(node).await? {
                continue;
            }
            members.push(Member {
                node,
                name: said.name,
                address: said.address,
                roles: said.roles.iter().filter_map(|word| Role::parse(word)).collect(),
                draining: said.draining,
            });
        }
        self.seen.retain(|node, _| members.iter().any(|member| member.node == *node));
        self.env.ownership().set_view(View::new(members));
        Ok(())
    }

    /// Whether a node's beat has stood still for the length of a lease. On a store that only this process can have open,
    /// every other node is a process that has ended.
    fn is_silent(&mut self, node: NodeId, beat: u64, now_us: u64) -> bool {
        if self.env.store().spans_partitions() {
            return true;
        }
        let seen = self.seen.entry(node).or_insert(Seen { beat, since_us: now_us });
        if seen.beat != beat {
            *seen = Seen { beat, since_us: now_us };
        }
        now_us.saturating_sub(seen.since_us) > self.length_us
    }

    /// Ends the lease of a silent node; says whether it is over.
    async fn bury(&mut self, node: NodeId) -> Result<bool, StoreError> {
        let store = self.env.store();
        let over = match Lease::read(&**store, node).await? {
            None => true,
            Some(seen) => !seen.row.alive || Lease::bury(&**store, node, &seen).await?.is_some(),
        };
        if over {
            metrics::counter!("cofactor_members_buried_total").increment(1);
            tracing::warn!(%node, "a node is gone; its shards pass on");
            store.write(vec![member(node, None)], Durability::Deferred).await?;
        } else {
            self.seen.remove(&node);
        }
        Ok(over)
    }

    /// Moves the shards of which the assignment says something else than this node does; all of them, or `only` some.
    async fn settle(&mut self, only: Option<BTreeSet<ShardId>>, leaving: bool) {
        let ownership = Arc::clone(self.env.ownership());
        let view = ownership.view();
        let me = ownership.node();
        let (_, owned) = ownership.owned();
        let owned: BTreeMap<ShardId, Epoch> = owned.into_iter().collect();
        let mut take = Vec::new();
        let mut release = Vec::new();
        for shard in (0..ownership.shard_count()).map(ShardId) {
            if only.as_ref().is_some_and(|only| !only.contains(&shard)) {
                continue;
            }
            let mine = view.owner(shard).is_some_and(|member| member.node == me);
            match (mine, owned.get(&shard).or(self.doubtful.get(&shard))) {
                (true, _) if !owned.contains_key(&shard) => take.push(shard),
                // Without anybody to take it, it is handed over only by a node that goes.
                (false, Some(epoch)) if leaving || view.owner(shard).is_some() => release.push((shard, *epoch)),
                _ => {}
            }
        }
        self.release(release, &view).await;
        self.take(take).await;
    }

    async fn release(&mut self, shards: Vec<(ShardId, Epoch)>, view: &View) {
        if shards.is_empty() {
            return;
        }
        let count = shards.len();
        for group in shards.chunks(MOVES_AT_ONCE) {
            let moves = group.iter().map(|(shard, epoch)| self.release_one(*shard, *epoch));
            let released = futures::future::join_all(moves).await;
            let mut by_owner: BTreeMap<&str, Vec<ShardId>> = BTreeMap::new();
            for ((shard, epoch), given) in group.iter().copied().zip(released) {
                match given {
                    Given::Back | Given::Before => drop(self.doubtful.remove(&shard)),
                    Given::Doubtful => drop(self.doubtful.insert(shard, epoch)),
                }
                if let Some(owner) = view.owner(shard).filter(|_| given == Given::Back) {
                    self.env.ownership().note_owner(shard, None);
                    by_owner.entry(&owner.address).or_default().push(shard);
                }
            }
            for (address, shards) in by_owner {
                self.tell(address.to_owned(), shards);
            }
        }
        tracing::info!(count, doubtful = self.doubtful.len(), "handed shards over");
    }

    async fn release_one(&self, shard: ShardId, epoch: Epoch) -> Given {
        self.env.ownership().set(shard, None);
        if tokio::time::timeout(DRAIN_MAX, self.host.drain(shard)).await.is_err() {
            tracing::warn!(%shard, "actors did not finish in time; their shard is handed over all the same");
        }
        let given = takeover::release(&self.env, shard, epoch).await.unwrap_or_else(|error| {
            tracing::warn!(%shard, %error, "a shard was not handed over; trying again");
            Given::Doubtful
        });
        if given == Given::Back {
            metrics::counter!("cofactor_shards_released_total").increment(1);
        }
        given
    }

    /// Tells the next owner, which would notice by itself a look later.
    fn tell(&self, address: String, shards: Vec<ShardId>) {
        let Some(transport) = self.env.transport().cloned() else { return };
        let Ok(frame) = cofactor_wire::encode(&ShardCall::Released { shards }) else { return };
        let call = Call { target: Target::Shards, frame, timeout: TELL_MAX, trace: None };
        actix_rt::spawn(async move {
            if let Err(fault) = transport.call(&address, call).await {
                tracing::debug!(%address, error = %fault, "the next owner was not told");
            }
        });
    }

    async fn take(&mut self, shards: Vec<ShardId>) {
        if shards.is_empty() || !self.options.roles.contains(&Role::Worker) {
            return;
        }
        let wanted = shards.len();
        // Rows of one slice share a partition: they are taken one after the other, slices side by side.
        let mut slices: BTreeMap<u64, Vec<ShardId>> = BTreeMap::new();
        for shard in shards {
            slices.entry(takeover::slice(shard)).or_default().push(shard);
        }
        let leases: HashMap<NodeId, Option<LeaseRow>> = HashMap::new();
        let leases = tokio::sync::Mutex::new(leases);
        let env = &self.env;
        let taken: Vec<Vec<(ShardId, Tried)>> = stream::iter(slices.into_values())
            .map(|slice| {
                let leases = &leases;
                async move {
                    let mut tried = Vec::new();
                    for shard in slice {
                        tried.push((shard, take_one(env, shard, leases).await));
                    }
                    tried
                }
            })
            .buffer_unordered(MOVES_AT_ONCE)
            .collect()
            .await;
        self.failed.clear();
        for (shard, tried) in taken.into_iter().flatten() {
            match tried {
                Tried::Done => drop(self.doubtful.remove(&shard)),
                // A write of an earlier attempt may still arrive.
                Tried::Held => {}
                Tried::Failed => drop(self.failed.insert(shard)),
                Tried::Doubtful(epoch) => {
                    self.failed.insert(shard);
                    self.doubtful.insert(shard, epoch);
                }
            }
        }
        let (owned, failed) = (self.env.ownership().owned_count(), self.failed.len());
        tracing::info!(wanted, failed, owned, "took shards");
    }
}

/// What became of an attempt to take a shard.
#[derive(Clone, Copy, Debug)]
enum Tried {
    /// It is ours.
    Done,
    /// Somebody else has it.
    Held,
    /// It is to be tried again at once.
    Failed,
    /// That too, and its row may say in this epoch that it is ours.
    Doubtful(Epoch),
}

/// Takes a shard if it can be had.
async fn take_one(env: &Env, shard: ShardId, leases: &tokio::sync::Mutex<HashMap<NodeId, Option<LeaseRow>>>) -> Tried {
    let (tried, error) = match takeover::take(env, shard, leases).await {
        Ok(Taken::Ours(unfinished)) => {
            metrics::counter!("cofactor_shards_taken_total").increment(1);
            unfinished.iter().for_each(|entity| env.wake(entity));
            return Tried::Done;
        }
        Ok(Taken::Held) => return Tried::Held,
        Ok(Taken::Doubtful(epoch, error)) => (Tried::Doubtful(epoch), error),
        Err(error) => (Tried::Failed, error),
    };
    tracing::warn!(%shard, %error, "a shard could not be taken; trying again");
    tried
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
