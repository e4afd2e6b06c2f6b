//! One shard changes hands.

use std::collections::{BTreeSet, HashMap};

use cofactor_store::{
    CasOutcome, Durability, Mutation, Row, Scan, StoreError, key,
    record::{self, Seen},
    tables,
};
use cofactor_types::{EntityId, EntityKind, Epoch, NodeId, Position, ShardId};
use serde::{Deserialize, Serialize};

use crate::{
    Env,
    lease::{Lease, LeaseRow},
    log::Writer,
};

/// Shards whose rows share a partition.
const SLICE: u32 = 16;

/// A row of the `shards` table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShardRow {
    pub(crate) epoch: Epoch,
    /// `None`: released.
    pub(crate) node: Option<NodeId>,
    /// A successor begins above this, and above the end of the owner's lease if there is one.
    floor: Position,
}

/// What became of an attempt to take a shard.
#[derive(Debug)]
pub(crate) enum Taken {
    /// It is ours, and these entities have something to finish.
    Ours(BTreeSet<EntityId>),
    /// Another node has it, and lives.
    Held,
    /// Its row says in this epoch that it is ours, or may come to say so, but it could not be taken altogether.
    Doubtful(Epoch, StoreError),
}

/// What became of an attempt to give a shard back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Given {
    /// Nobody has it now.
    Back,
    /// It was not this node's any more.
    Before,
    /// It is not this node's, but a write that is on its way may still say that it is.
    Doubtful,
}

/// The partition of a shard's row.
pub(crate) fn slice(shard: ShardId) -> u64 {
    u64::from(shard.0 / SLICE)
}

async fn read(env: &Env, shard: ShardId) -> Result<Option<Seen<ShardRow>>, StoreError> {
    let found = env.store().get(&tables::SHARDS, &key![slice(shard)], &key![u64::from(shard.0)]).await?;
    found.map(Seen::read).transpose()
}

/// Who owns a shard by its row.
pub(crate) async fn owner(env: &Env, shard: ShardId) -> Result<Option<NodeId>, StoreError> {
    Ok(read(env, shard).await?.and_then(|seen| seen.row.node))
}

/// Whether `epoch` is still the one of `shard`, read so that no take-over before can be missed.
pub(crate) async fn still_ours(env: &Env, shard: ShardId, epoch: Epoch) -> Result<bool, StoreError> {
    let row = read(env, shard).await?;
    Ok(row.is_some_and(|seen| seen.row.epoch == epoch && seen.row.node == Some(env.ownership().node())))
}

/// Sets the row of a shard if it stands as `before`; says whether it did. A write that may still be on its way is
/// [`StoreError::Unknown`].
async fn replace(
    env: &Env,
    shard: ShardId,
    before: Option<&Seen<ShardRow>>,
    row: &ShardRow,
) -> Result<bool, StoreError> {
    let (partition, clustering) = (key![slice(shard)], key![u64::from(shard.0)]);
    let expected = before.map(|seen| seen.bytes().clone());
    let new = record::encode(row)?;
    match env.store().compare_and_set(&tables::SHARDS, &partition, &clustering, expected, Some(new)).await {
        Ok(CasOutcome::Applied) => Ok(true),
        Ok(CasOutcome::Found(_)) => Ok(false),
        Err(StoreError::Unknown(why)) => match read(env, shard).await {
            Ok(Some(found)) if found.row == *row => Ok(true),
            Ok(found) if found.as_ref() != before => Ok(false),
            Ok(_) | Err(_) => Err(StoreError::Unknown(why)),
        },
        Err(error) => Err(error),
    }
}

/// Takes a shard if nobody has it, or a node whose lease is over. `leases` remembers those for one round.
pub(crate) async fn take(
    env: &Env,
    shard: ShardId,
    leases: &tokio::sync::Mutex<HashMap<NodeId, Option<LeaseRow>>>,
) -> Result<Taken, StoreError> {
    let me = env.ownership().node();
    let before = read(env, shard).await?;
    let mut epoch = Epoch(before.as_ref().map_or(0, |seen| seen.row.epoch.0) + 1);
    let mut floor = before.as_ref().map_or(Position::ZERO, |seen| seen.row.floor);
    let mut taken = false;
    match before.as_ref().and_then(|seen| seen.row.node) {
        // Taken in an earlier round that did not get further.
        Some(node) if node == me => {
            epoch = before.as_ref().map_or(epoch, |seen| seen.row.epoch);
            taken = true;
        }
        Some(node) => {
            let mut leases = leases.lock().await;
            let lease = match leases.get(&node) {
                Some(lease) => lease.clone(),
                None => {
                    let seen = Lease::read(&**env.store(), node).await?;
                    let lease = match seen {
                        // Alone on its store, a node finds only the leases of processes that have ended.
                        Some(seen) if seen.row.alive && env.store().spans_partitions() => {
                            Lease::bury(&**env.store(), node, &seen).await?
                        }
                        seen => seen.map(|seen| seen.row),
                    };
                    leases.insert(node, lease.clone());
                    lease
                }
            };
            match lease {
                Some(lease) if lease.alive => return Ok(Taken::Held),
                Some(lease) => floor = floor.max(lease.end),
                None => {}
            }
        }
        None => {}
    }
    if !taken {
        let row = ShardRow { epoch, node: Some(me), floor };
        match replace(env, shard, before.as_ref(), &row).await {
            Ok(true) => {}
            Ok(false) => return Ok(Taken::Held),
            Err(error @ StoreError::Unknown(_)) => return Ok(Taken::Doubtful(epoch, error)),
            Err(error) => return Err(error),
        }
    }
    env.positions().raise(floor);
    // Where nobody was before there is nothing to finish.
    let finished = if before.is_some() { finish(env, shard, epoch).await } else { Ok(BTreeSet::new()) };
    match finished {
        Ok(unfinished) => {
            env.ownership().set(shard, Some(epoch));
            Ok(Taken::Ours(unfinished))
        }
        Err(error) => Ok(Taken::Doubtful(epoch, error)),
    }
}

/// What a new owner does first; the entities that have something to finish.
async fn finish(env: &Env, shard: ShardId, epoch: Epoch) -> Result<BTreeSet<EntityId>, StoreError> {
    fence_open_logs(env, shard, epoch).await?;
    unfinished(env, shard).await
}

/// Gives a shard back that is, or may be, this node's in `epoch`: the successor may begin right above the last position of
/// this node.
pub(crate) async fn release(env: &Env, shard: ShardId, epoch: Epoch) -> Result<Given, StoreError> {
    let before = read(env, shard).await?;
    let (stands, node) = before.as_ref().map_or((Epoch(0), None), |seen| (seen.row.epoch, seen.row.node));
    if stands < epoch {
        return Ok(Given::Doubtful);
    }
    if stands > epoch || node != Some(env.ownership().node()) {
        return Ok(Given::Before);
    }
    let floor = env.positions().last().max(before.as_ref().map_or(Position::ZERO, |seen| seen.row.floor));
    let row = ShardRow { epoch, node: None, floor };
    Ok(if replace(env, shard, before.as_ref(), &row).await? { Given::Back } else { Given::Before })
}

/// Fences every log that an earlier owner may still be appending to, and applies what it left unapplied: after this nothing
/// of an earlier owner can become visible in this shard.
async fn fence_open_logs(env: &Env, shard: ShardId, epoch: Epoch) -> Result<(), StoreError> {
    if env.store().spans_partitions() {
        return Ok(());
    }
    let partition = key![u64::from(shard.0)];
    for row in env
        .store()
        .scan(Scan::new(&tables::OPEN_LOGS, partition.clone(), cofactor_store::Key::EMPTY, usize::MAX))
        .await?
    {
        if let Some(entity) = entity_of(&row) {
            Writer::take_over(env.clone(), entity, epoch).await?;
        }
        let closed = Mutation {
            table: &tables::OPEN_LOGS,
            partition: partition.clone(),
            clustering: row.clustering,
            value: None,
        };
        env.store().write(vec![closed], Durability::Deferred).await?;
    }
    Ok(())
}

/// Entities of a shard whose messages to others may not have arrived.
async fn unfinished(env: &Env, shard: ShardId) -> Result<BTreeSet<EntityId>, StoreError> {
    let scan = Scan::new(&tables::OUTBOX, key![u64::from(shard.0)], cofactor_store::Key::EMPTY, usize::MAX);
    Ok(env.store().scan(scan).await?.iter().filter_map(entity_of).collect())
}

fn entity_of(row: &Row) -> Option<EntityId> {
    let kind = match row.clustering.text(0) {
        "room" => EntityKind::Room,
        "user" => EntityKind::User,
        "destination" => EntityKind::Destination,
        _ => return None,
    };
    Some(EntityId::new(kind, row.clustering.text(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_shards_are_read_for_ever() {
        let row = ShardRow { epoch: Epoch(300), node: Some(NodeId(1 << 40)), floor: Position(1_780_000_000_000_000) };
        cofactor_golden::Golden::new("store/shard").optional(&["node"]).record(&[row]);
    }
}
