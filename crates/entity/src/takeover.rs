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
    /// `None`: given back to nobody.
    pub(crate) node: Option<NodeId>,
    /// A successor begins above this, and above the end of the owner's lease if there is one.
    floor: Position,
    /// Whoever gave it away activated nothing in it: there is nothing to finish.
    #[serde(default)]
    untouched: bool,
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

/// What became of an attempt to give a shard away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Given {
    /// Its heir has it now, or nobody.
    Away,
    /// It was not this node's any more.
    Before,
    /// It is not this node's, but a write that is on its way may still say that it is.
    Doubtful,
    /// A write that is on its way may still give it away: until that is settled, it must not be taken in the same epoch.
    Unsettled,
}

/// The leases of others, read once for all shards of a round.
pub(crate) type Leases = tokio::sync::Mutex<HashMap<NodeId, Option<LeaseRow>>>;

/// The partition of a shard's row.
pub(crate) fn slice(shard: ShardId) -> u64 {
    u64::from(shard.0 / SLICE)
}

/// The epoch of the owner after the one of `epoch`.
pub(crate) fn next(epoch: Epoch) -> Epoch {
    Epoch(epoch.0 + 1)
}

/// The rows of a slice.
pub(crate) type Rows = BTreeMap<ShardId, Seen<ShardRow>>;

/// Reads the rows of a slice.
pub(crate) async fn read_slice(env: &Env, slice: u64) -> Result<Rows, StoreError> {
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
    /// The shard may have been touched before.
    is_touched: bool,
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
    /// There is something to finish, or may be.
    is_touched: bool,
}

/// What to do to take a shard.
enum Plan {
    Leave,
    /// Given to this node, or taken in an earlier round that did not get further.
    Finish(Claim),
    Set(Move),
}

async fn plan(env: &Env, shard: ShardId, before: Option<Seen<ShardRow>>, leases: &Leases) -> Result<Plan, StoreError> {
    let me = env.ownership().node();
    let Some(seen) = before else {
        let row = ShardRow { epoch: Epoch(1), node: Some(me), floor: Position::ZERO, untouched: false };
        return Ok(Plan::Set(Move { shard, before: None, row, is_touched: false }));
    };
    let mut floor = seen.row.floor;
    match seen.row.node {
        Some(node) if node == me => {
            // Of what this node has touched itself, the row says nothing.
            let is_touched = !seen.row.untouched || env.ownership().is_touched(shard, seen.row.epoch);
            return Ok(Plan::Finish(Claim { shard, row: seen.row, is_touched }));
        }
        Some(node) => match lease_of(env, node, leases).await? {
            Some(lease) if lease.alive => return Ok(Plan::Leave),
            Some(lease) => floor = floor.max(lease.end),
            None => {}
        },
        None => {}
    }
    let row = ShardRow { epoch: next(seen.row.epoch), node: Some(me), floor, untouched: false };
    // Of what its last owner has touched, the row says nothing, either.
    let is_touched = !seen.row.untouched || seen.row.node.is_some();
    Ok(Plan::Set(Move { shard, before: Some(seen), row, is_touched }))
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
    for (Move { shard, row, is_touched, .. }, moved) in replace(env, slice, moves).await {
        match moved {
            Moved::Done => claims.push(Claim { shard, row, is_touched }),
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
async fn begin(env: &Env, Claim { shard, row, is_touched }: Claim) -> Taken {
    env.positions().raise(row.floor);
    let finished = if is_touched { finish(env, shard, row.epoch).await } else { Ok(BTreeSet::new()) };
    match finished {
        Ok(unfinished) => {
            env.ownership().set(shard, Some(row.epoch));
            if !unfinished.is_empty() {
                // They are about to be activated, and until then nobody may think that there is nothing to finish.
                env.ownership().touch(shard);
            }
            Taken::Ours(unfinished)
        }
        Err(error) => Taken::Doubtful(row.epoch, error),
    }
}

/// What a new owner does first; the entities that have something to finish.
async fn finish(env: &Env, shard: ShardId, epoch: Epoch) -> Result<BTreeSet<EntityId>, StoreError> {
    let (open, unfinished) = tokio::try_join!(open_logs(env, shard), unfinished(env, shard))?;
    if open.is_empty() {
        return Ok(unfinished);
    }
    fence(env, shard, epoch, open).await?;
    self::unfinished(env, shard).await
}

/// Gives shards of one slice away that are, or may be, this node's in their epochs: each to its heir, who has said that it
/// looks after the shard, or to nobody. `rows` were read when they were this node's already, or later; `untouched` are those in
/// which nothing was activated since this node began to own them. The successor may begin right above the last position of this
/// node.
pub(crate) async fn give(
    env: &Env,
    shards: Vec<(ShardId, Epoch)>,
    rows: Result<Rows, StoreError>,
    heirs: &BTreeMap<ShardId, NodeId>,
    untouched: &BTreeSet<ShardId>,
) -> Vec<(ShardId, Epoch, Given)> {
    let Some(slice) = shards.first().map(|(shard, _)| slice(*shard)) else { return Vec::new() };
    let mut rows = match rows {
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
                let untouched = untouched.contains(&shard);
                let heir = heirs.get(&shard).copied();
                let new = if heir.is_some() { next(epoch) } else { epoch };
                let row = ShardRow { epoch: new, node: heir, floor, untouched };
                moves.push((epoch, Move { shard, before: Some(seen), row, is_touched: !untouched }));
            }
            Some(seen) if seen.row.epoch >= epoch => outcomes.push((shard, epoch, Given::Before)),
            _ => outcomes.push((shard, epoch, Given::Doubtful)),
        }
    }
    let (epochs, moves): (Vec<_>, Vec<_>) = moves.into_iter().unzip();
    for (epoch, (Move { shard, .. }, moved)) in epochs.into_iter().zip(replace(env, slice, moves).await) {
        let given = match &moved {
            Moved::Done => Given::Away,
            Moved::Not | Moved::Failed(_) => Given::Doubtful,
            Moved::Doubtful(_) => Given::Unsettled,
        };
        if let Moved::Doubtful(error) | Moved::Failed(error) = moved {
            tracing::warn!(%shard, %error, "a shard was not handed over; trying again");
        }
        outcomes.push((shard, epoch, given));
    }
    outcomes
}

/// Logs of a shard that an earlier owner may still be appending to.
async fn open_logs(env: &Env, shard: ShardId) -> Result<Vec<Row>, StoreError> {
    if env.store().spans_partitions() {
        return Ok(Vec::new());
    }
    env.store().scan(Scan::new(&tables::OPEN_LOGS, key![u64::from(shard.0)], Key::EMPTY, usize::MAX)).await
}

/// Fences these logs, and applies what was left unapplied in them: after this nothing of an earlier owner can become visible
/// in this shard.
async fn fence(env: &Env, shard: ShardId, epoch: Epoch, open: Vec<Row>) -> Result<(), StoreError> {
    for row in open {
        if let Some(entity) = entity_of(&row) {
            Writer::take_over(env.clone(), entity, epoch).await?;
        }
        let (partition, clustering) = (key![u64::from(shard.0)], row.clustering);
        let closed = Mutation { table: &tables::OPEN_LOGS, partition, clustering, value: None };
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
        let (node, floor) = (Some(NodeId(1 << 40)), Position(1_780_000_000_000_000));
        let row = |untouched| ShardRow { epoch: Epoch(300), node, floor, untouched };
        cofactor_golden::Golden::new("store/shard").optional(&["node", "untouched"]).record(&[row(false), row(true)]);
    }
}
