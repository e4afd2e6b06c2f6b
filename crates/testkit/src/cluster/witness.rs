//! Sees every append that the store applies and every promise that a node makes, and holds the one against the other.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

use cofactor_bus::Heartbeat;
use cofactor_store::{Append, Fence, Key, KeyPart, tables};
use cofactor_types::{EntityId, EntityKind, NodeId, Position, ShardId};

/// What is seen below the clients.
#[derive(Debug, Default)]
pub(super) struct Witness {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    shard_count: u32,
    /// The last fence of each bucket of each log.
    fences: BTreeMap<(u8, Key), Fence>,
    /// Nothing at or below it may become visible in the shard any more, and who said so.
    promised: BTreeMap<ShardId, (Position, NodeId)>,
    /// The shards of each node by its last full heartbeat, and the version of that list.
    listed: BTreeMap<NodeId, (u64, BTreeSet<ShardId>)>,
    violation: Option<String>,
}

impl Witness {
    pub(super) fn new(shard_count: u32) -> Self {
        Self { state: Mutex::new(State { shard_count, ..State::default() }) }
    }

    /// The first thing that was wrong.
    pub(super) fn violation(&self) -> Option<String> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).violation.clone()
    }

    /// An append is being applied.
    pub(super) fn append(&self, append: &Append) {
        let state = &mut *self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let log = (append.table.id, append.partition.clone());
        let before = state.fences.insert(log, append.fence).unwrap_or_default();
        let (name, fence) = (append.partition.text(0), append.fence);
        if fence.epoch < before.epoch {
            let violation = format!("{name}: an append of {:?} after one of {:?}", fence.epoch, before.epoch);
            state.violation.get_or_insert(violation);
        }
        if fence.last < before.last {
            let violation = format!("{name}: an append at {:?} after one at {:?}", fence.last, before.last);
            state.violation.get_or_insert(violation);
        }
        let Some(shard) = shard(append, state.shard_count) else { return };
        let Some((promised, node)) = state.promised.get(&shard).copied() else { return };
        // A row at or below the last one rewrites what was visible before.
        let new = append.rows.iter().map(|(clustering, _)| Position(clustering.number(2)));
        if let Some(late) = new.filter(|position| *position > before.last).find(|position| *position <= promised) {
            let violation = format!("{name}: {late:?} becomes visible, but {node:?} had promised {promised:?}");
            state.violation.get_or_insert(violation);
        }
    }

    /// A promise is made.
    pub(super) fn heartbeat(&self, heartbeat: &Heartbeat) {
        let state = &mut *self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if heartbeat.full {
            let shards = heartbeat.shards.iter().map(|(shard, ..)| *shard).collect();
            state.listed.insert(heartbeat.node, (heartbeat.version, shards));
        }
        let Some((_, shards)) = state.listed.get(&heartbeat.node).filter(|(version, _)| *version == heartbeat.version)
        else {
            return;
        };
        for shard in shards {
            let promise = state.promised.entry(*shard).or_insert((heartbeat.closed, heartbeat.node));
            *promise = (*promise).max((heartbeat.closed, heartbeat.node));
        }
    }
}

fn shard(append: &Append, shard_count: u32) -> Option<ShardId> {
    let kind = match append.table.id {
        id if id == tables::ROOM_LOG.id => EntityKind::Room,
        id if id == tables::USER_LOG.id => EntityKind::User,
        _ => return None,
    };
    let KeyPart::Text(name) = append.partition.parts().first()? else { return None };
    Some(EntityId::new(kind, name.clone()).shard(shard_count))
}
