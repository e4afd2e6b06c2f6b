//! What a node says on the bus, in order.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use cofactor_bus::{Bus, Heartbeat, Record};
use cofactor_types::{EntityId, Epoch, NodeId, Position};

use crate::Positions;

/// A record that a commit makes public.
#[derive(Clone, Debug)]
pub(crate) struct Notice {
    pub(crate) class: u64,
    pub(crate) position: Position,
    pub(crate) payload: Bytes,
}

/// Numbers the records of each shard and speaks for the node.
#[derive(Debug)]
pub(crate) struct Publisher {
    bus: Arc<dyn Bus>,
    node: NodeId,
    epoch: Epoch,
    shard_count: u32,
    /// Last sequence number by shard. The lock is held while speaking, so that numbers go out in order.
    sequences: Mutex<BTreeMap<cofactor_types::ShardId, u64>>,
}

impl Publisher {
    pub(crate) fn new(bus: Arc<dyn Bus>, node: NodeId, epoch: Epoch, shard_count: u32) -> Self {
        Self { bus, node, epoch, shard_count, sequences: Mutex::default() }
    }

    pub(crate) fn publish(&self, entity: &EntityId, notices: Vec<Notice>) {
        if notices.is_empty() {
            return;
        }
        let shard = entity.shard(self.shard_count);
        let mut sequences = self.sequences.lock().unwrap_or_else(PoisonError::into_inner);
        let seq = sequences.entry(shard).or_default();
        for Notice { class, position, payload } in notices {
            *seq += 1;
            let entity = entity.clone();
            self.bus.publish(Record { shard, epoch: self.epoch, seq: *seq, entity, position, class, payload });
        }
    }

    pub(crate) fn heartbeat(&self, positions: &Positions) {
        let sequences = self.sequences.lock().unwrap_or_else(PoisonError::into_inner);
        // Closed first: what is published after it is above it, what was published before it has been said.
        let closed = positions.close();
        let shards = sequences.iter().map(|(shard, seq)| (*shard, self.epoch, *seq)).collect();
        self.bus.heartbeat(Heartbeat { node: self.node, closed, shards });
    }
}
