//! What a node says on the bus, in order.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use cofactor_bus::{Bus, Heartbeat, Record};
use cofactor_telemetry::Trace;
use cofactor_types::{EntityId, Epoch, Position, ShardId};

use crate::{Ownership, Positions};

/// A record that a commit makes public.
#[derive(Clone, Debug)]
pub(crate) struct Notice {
    pub(crate) class: u64,
    pub(crate) position: Position,
    pub(crate) payload: Bytes,
    pub(crate) trace: Option<Trace>,
}

/// Numbers the records of each shard and speaks for the node.
#[derive(Debug)]
pub(crate) struct Publisher {
    bus: Arc<dyn Bus>,
    ownership: Arc<Ownership>,
    /// The lock is held while speaking, so that numbers go out in order.
    said: Mutex<Said>,
}

#[derive(Debug, Default)]
struct Said {
    /// Last sequence number by shard, in the epoch in which it was said.
    sequences: BTreeMap<ShardId, (Epoch, u64)>,
    /// Shards with a record since the last full heartbeat.
    changed: BTreeSet<ShardId>,
    /// The version of the list of shards in the last full heartbeat, and how many heartbeats ago that was.
    version: u64,
    since_full: u32,
    /// Full heartbeats so far.
    full: u64,
}

/// Every so many heartbeats all shards are listed, for those who have just begun to listen.
const FULL_EVERY: u32 = 10;

impl Publisher {
    pub(crate) fn new(bus: Arc<dyn Bus>, ownership: Arc<Ownership>) -> Self {
        Self { bus, ownership, said: Mutex::default() }
    }

    /// Says what a commit in `epoch` made public.
    pub(crate) fn publish(&self, entity: &EntityId, epoch: Epoch, notices: Vec<Notice>) {
        if notices.is_empty() {
            return;
        }
        let shard = entity.shard(self.ownership.shard_count());
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let last = said.sequences.entry(shard).or_insert((epoch, 0));
        if last.0 < epoch {
            *last = (epoch, 0);
        }
        // What was committed in an epoch that is over belongs to no sequence any more; its successor has had it read.
        if last.0 > epoch {
            return;
        }
        metrics::counter!("cofactor_bus_published_total").increment(notices.len() as u64);
        for Notice { class, position, payload, trace } in notices {
            last.1 += 1;
            let (entity, seq) = (entity.clone(), last.1);
            self.bus.publish(Record { shard, epoch, seq, entity, position, class, payload, trace });
        }
        said.changed.insert(shard);
    }

    pub(crate) fn heartbeat(&self, positions: &Positions) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        // The closed position first: a shard that is released meanwhile is then not in the list, and one that is taken
        // meanwhile begins above it. What is published after it is above it, what was published before it has been said.
        let closed = positions.close();
        said.since_full += 1;
        let full = self.ownership.version() != said.version || said.since_full >= FULL_EVERY;
        let shards = if full {
            let (version, owned) = self.ownership.owned();
            said.version = version;
            said.full += 1;
            said.since_full = 0;
            said.changed.clear();
            let of = |(shard, epoch): (ShardId, Epoch)| {
                let last = said.sequences.get(&shard).filter(|(said, _)| *said == epoch);
                (shard, epoch, last.map_or(0, |(_, seq)| *seq))
            };
            owned.into_iter().map(of).collect()
        } else {
            let of = |shard: &ShardId| said.sequences.get(shard).map(|(epoch, seq)| (*shard, *epoch, *seq));
            said.changed.iter().filter_map(of).collect()
        };
        self.bus.heartbeat(Heartbeat { node: self.ownership.node(), closed, version: said.full, full, shards });
    }
}
