//! Shards change hands. The rows of one slice share a partition, and move together.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use cofactor_store::{
    Durability, Key, Mutation, Row, Scan, StoreError, Swap, key,
    record::{self, Seen},
    tables,
};
use cofactor_types::{EntityId, EntityKind, Epoch, NodeId, Position, ShardId};
use futures::future::join_all;
use serde::{Deserialize, Serialize};

use crate::{
    Env,
    lease::{Lease, LeaseRow},
    log::Writer,
};

/// Shards whose rows share a partition.
pub(crate) const SLICE: u32 = 16;

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
    /// A row of its slice moved at the same moment: it is to be tried again at once.
    Missed,
    /// That too: nothing was changed.
    Failed(StoreError),
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

/// The leases of others, read once for all shards of a round.
pub(crate) type Leases = tokio::sync::Mutex<HashMap<NodeId, Option<LeaseRow>>>;

/// The partition of a shard's row.
pub(crate) fn slice(shard: ShardId) -> u64 {
    u64::from(shard.0 / SLICE)
}

type Rows = BTreeMap<ShardId, Seen<ShardRow>>;

async fn read_slice(env: &Env, slice: u64) -> Result<Rows, StoreError> {
    let scan = Scan::new(&tables::SHARDS, key![slice], Key::EMPTY, SLICE as usize);
    let mut rows = Rows::new();
    for row in env.store().scan(scan).await? {
        let shard = u32::try_from(row.clustering.number(0));
        let shard = shard.map_err(|_| StoreError::Corrupt(format!("a shard of number {:?}", row.clustering)))?;
        rows.insert(ShardId(shard), Seen::read(row.value)?);
    }
    Ok(rows)
}

/// Who owns a shard by its row, as the writes that were answered left it.
pub(crate) async fn owner(env: &Env, shard: ShardId) -> Result<Option<NodeId>, StoreError> {
    let row =
        env.store().scan(Scan::new(&tables::SHARDS, key![slice(shard)], key![u64::from(shard.0)], 1)).await?.pop();
    Ok(row.map(|row| record::decode::<ShardRow>(&row.value)).transpose()?.and_then(|row| row.node))
}

/// Whether `epoch` is still the one of `shard`, read so that no take-over before can be missed.
pub(crate) async fn still_ours(env: &Env, shard: ShardId, epoch: Epoch) -> Result<bool, StoreError> {
    let row = get(env, shard).await?;
    Ok(row.is_some_and(|seen| seen.row.epoch == epoch && seen.row.node == Some(env.ownership().node())))
}

async fn get(env: &Env, shard: ShardId) -> Result<Option<Seen<ShardRow>>, StoreError> {
    let found = env.store().get(&tables::SHARDS, &key![slice(shard)], &key![u64::from(shard.0)]).await?;
    found.map(Seen::read).transpose()
}

/// The next row of a shard.
#[derive(Debug)]
struct Move {
    shard: ShardId,
    before: Option<Seen<ShardRow>>,
    row: ShardRow,
}

/// What became of a [`Move`].
#[derive(Clone, Debug)]
enum Moved {
    Done,
    /// Something in the slice does not stand as it did before.
    Not,
    /// It may still be on its way.
    Doubtful(StoreError),
    Failed(StoreError),
}

/// Sets rows of one slice together, if all of them stand as before.
async fn replace(env: &Env, slice: u64, moves: Vec<Move>) -> Vec<(Move, Moved)> {
    let moved = set(env, slice, &moves).await;
    moves.into_iter().map(|one| (one, moved.clone())).collect()
}

async fn set(env: &Env, slice: u64, moves: &[Move]) -> Moved {
    let Some(first) = moves.first() else { return Moved::Done };
    let swap = |one: &Move| {
        let expected = one.before.as_ref().map(|seen| seen.bytes().clone());
        Ok(Swap { clustering: key![u64::from(one.shard.0)], expected, new: record::encode(&one.row)? })
    };
    let swaps = match moves.iter().map(swap).collect::<Result<_, StoreError>>() {
        Ok(swaps) => swaps,
        Err(error) => return Moved::Failed(error),
    };
    match env.store().compare_and_set_all(&tables::SHARDS, &key![slice], swaps).await {
        Ok(true) => Moved::Done,
        Ok(false) => Moved::Not,
        // All rows were set or none: one of them says which, unless it still stands as before.
        Err(error @ StoreError::Unknown(_)) => match get(env, first.shard).await {
            Ok(Some(found)) if found.row == first.row => Moved::Done,
            Ok(found) if found != first.before => Moved::Not,
            Ok(_) | Err(_) => Moved::Doubtful(error),
        },
        Err(error) => Moved::Failed(error),
    }
}

/// A shard whose row says that it is ours.
#[derive(Debug)]
struct Claim {
    shard: ShardId,
    row: ShardRow,
    /// Nobody was there before, so there is nothing to finish.
    is_first: bool,
}

/// What to do to take a shard.
enum Plan {
    Leave,
    /// Taken in an earlier round that did not get further.
    Finish(Claim),
    Set(Move),
}

async fn plan(env: &Env, shard: ShardId, before: Option<Seen<ShardRow>>, leases: &Leases) -> Result<Plan, StoreError> {
    let me = env.ownership().node();
    let Some(seen) = before else {
        let row = ShardRow { epoch: Epoch(1), node: Some(me), floor: Position::ZERO };
        return Ok(Plan::Set(Move { shard, before: None, row }));
    };
    let mut floor = seen.row.floor;
    match seen.row.node {
        Some(node) if node == me => {
            return Ok(Plan::Finish(Claim { shard, row: seen.row, is_first: false }));
        }
        Some(node) => match lease_of(env, node, leases).await? {
            Some(lease) if lease.alive => return Ok(Plan::Leave),
            Some(lease) => floor = floor.max(lease.end),
            None => {}
        },
        None => {}
    }
    let row = ShardRow { epoch: Epoch(seen.row.epoch.0 + 1), node: Some(me), floor };
    Ok(Plan::Set(Move { shard, before: Some(seen), row }))
}

async fn lease_of(env: &Env, node: NodeId, leases: &Leases) -> Result<Option<LeaseRow>, StoreError> {
    let mut leases = leases.lock().await;
    if let Some(lease) = leases.get(&node) {
        return Ok(lease.clone());
    }
    let store = env.store();
    let lease = match Lease::read(&**store, node).await? {
        // Alone on its store, a node finds only the leases of processes that have ended.
        Some(seen) if seen.row.alive && store.spans_partitions() => Lease::bury(&**store, node, &seen).await?,
        seen => seen.map(|seen| seen.row),
    };
    leases.insert(node, lease.clone());
    Ok(lease)
}

/// Takes those of the shards, all of one slice, that nobody has, or a node whose lease is over.
pub(crate) async fn take(env: &Env, shards: Vec<ShardId>, leases: &Leases) -> Vec<(ShardId, Taken)> {
    let Some(slice) = shards.first().copied().map(slice) else { return Vec::new() };
    let mut rows = match read_slice(env, slice).await {
        Ok(rows) => rows,
        Err(error) => return shards.into_iter().map(|shard| (shard, Taken::Failed(error.clone()))).collect(),
    };
    let (mut claims, mut moves, mut outcomes) = (Vec::new(), Vec::new(), Vec::new());
    for shard in shards {
        match plan(env, shard, rows.remove(&shard), leases).await {
            Ok(Plan::Leave) => outcomes.push((shard, Taken::Held)),
            Ok(Plan::Finish(claim)) => claims.push(claim),
            Ok(Plan::Set(one)) => moves.push(one),
            Err(error) => outcomes.push((shard, Taken::Failed(error))),
        }
    }
    for (Move { shard, before, row }, moved) in replace(env, slice, moves).await {
        match moved {
            Moved::Done => claims.push(Claim { shard, row, is_first: before.is_none() }),
            Moved::Not => outcomes.push((shard, Taken::Missed)),
            Moved::Doubtful(error) => outcomes.push((shard, Taken::Doubtful(row.epoch, error))),
            Moved::Failed(error) => outcomes.push((shard, Taken::Failed(error))),
        }
    }
    let finished = claims.into_iter().map(|claim| async move { (claim.shard, begin(env, claim).await) });
    outcomes.extend(join_all(finished).await);
    outcomes
}

/// Begins to own a shard.
async fn begin(env: &Env, Claim { shard, row, is_first }: Claim) -> Taken {
    env.positions().raise(row.floor);
    let finished = if is_first { Ok(BTreeSet::new()) } else { finish(env, shard, row.epoch).await };
    match finished {
        Ok(unfinished) => {
            env.ownership().set(shard, Some(row.epoch));
            Taken::Ours(unfinished)
        }
        Err(error) => Taken::Doubtful(row.epoch, error),
    }
}

/// What a new owner does first; the entities that have something to finish.
async fn finish(env: &Env, shard: ShardId, epoch: Epoch) -> Result<BTreeSet<EntityId>, StoreError> {
    fence_open_logs(env, shard, epoch).await?;
    unfinished(env, shard).await
}

/// Gives shards of one slice back that are, or may be, this node's in their epochs: the successor may begin right above the
/// last position of this node.
pub(crate) async fn release(env: &Env, shards: Vec<(ShardId, Epoch)>) -> Vec<(ShardId, Epoch, Given)> {
    let Some(slice) = shards.first().map(|(shard, _)| slice(*shard)) else { return Vec::new() };
    let mut rows = match read_slice(env, slice).await {
        Ok(rows) => rows,
        Err(error) => {
            tracing::warn!(slice, %error, "shards were not handed over; trying again");
            return shards.into_iter().map(|(shard, epoch)| (shard, epoch, Given::Doubtful)).collect();
        }
    };
    let (mut moves, mut outcomes) = (Vec::new(), Vec::new());
    for (shard, epoch) in shards {
        match rows.remove(&shard) {
            Some(seen) if seen.row.epoch == epoch && seen.row.node == Some(env.ownership().node()) => {
                let floor = env.positions().last().max(seen.row.floor);
                moves.push(Move { shard, before: Some(seen), row: ShardRow { epoch, node: None, floor } });
            }
            Some(seen) if seen.row.epoch >= epoch => outcomes.push((shard, epoch, Given::Before)),
            _ => outcomes.push((shard, epoch, Given::Doubtful)),
        }
    }
    for (Move { shard, row, .. }, moved) in replace(env, slice, moves).await {
        let given = match moved {
            Moved::Done => Given::Back,
            Moved::Not => Given::Doubtful,
            Moved::Doubtful(error) | Moved::Failed(error) => {
                tracing::warn!(%shard, %error, "a shard was not handed over; trying again");
                Given::Doubtful
            }
        };
        outcomes.push((shard, row.epoch, given));
    }
    outcomes
}

/// Fences every log that an earlier owner may still be appending to, and applies what it left unapplied: after this nothing
/// of an earlier owner can become visible in this shard.
async fn fence_open_logs(env: &Env, shard: ShardId, epoch: Epoch) -> Result<(), StoreError> {
    if env.store().spans_partitions() {
        return Ok(());
    }
    let partition = key![u64::from(shard.0)];
    for row in env.store().scan(Scan::new(&tables::OPEN_LOGS, partition.clone(), Key::EMPTY, usize::MAX)).await? {
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
    let scan = Scan::new(&tables::OUTBOX, key![u64::from(shard.0)], Key::EMPTY, usize::MAX);
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
