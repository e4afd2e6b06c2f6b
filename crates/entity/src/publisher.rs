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
    /// Entities with appends of unknown outcome, and how many.
    doubtful: BTreeMap<EntityId, u32>,
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
        let said = &mut *said;
        let last = said.sequences.entry(shard).or_insert((epoch, 0));
        if last.0 < epoch {
            *last = (epoch, 0);
        }
        // What was committed in an epoch that is over belongs to no sequence any more; its successor has had it read.
        if last.0 > epoch {
            return;
        }
        metrics::counter!("cofactor_bus_published_total").increment(notices.len() as u64);
        if said.doubtful.contains_key(entity) {
            // Before this was decided, the append in doubt became visible or impossible. Who has read since the number that was
            // left out for it may have read too early.
            last.1 += 1;
        }
        for Notice { class, position, payload, trace } in notices {
            last.1 += 1;
            let (entity, seq) = (entity.clone(), last.1);
            self.bus.publish(Record { shard, epoch, seq, entity, position, class, payload, trace });
        }
        said.changed.insert(shard);
    }

    /// An append of the entity is in doubt: a number is left out now, and ahead of all that the entity says until
    /// [`Self::settled`].
    pub(crate) fn doubt(&self, entity: &EntityId, epoch: Epoch) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        *said.doubtful.entry(entity.clone()).or_default() += 1;
        drop(said);
        self.skip(entity, epoch);
    }

    /// The append stands or never will.
    pub(crate) fn settled(&self, entity: &EntityId, epoch: Epoch) {
        self.skip(entity, epoch);
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = said.doubtful.get_mut(entity) {
            *count -= 1;
            if *count == 0 {
                said.doubtful.remove(entity);
            }
        }
    }

    /// Leaves out a number: something may have become visible of which nobody knows what to say, so that whoever listens
    /// must look into the store.
    fn skip(&self, entity: &EntityId, epoch: Epoch) {
        let shard = entity.shard(self.ownership.shard_count());
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let last = said.sequences.entry(shard).or_insert((epoch, 0));
        if last.0 <= epoch {
            *last = (epoch, if last.0 == epoch { last.1 + 1 } else { 1 });
            said.changed.insert(shard);
        }
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use cofactor_bus::{Delivery, local::LocalBus};
    use cofactor_types::{EntityKind, ManualClock, NodeId};

    use super::*;

    #[test]
    fn what_is_said_while_an_append_is_in_doubt_follows_on_a_gap() {
        let bus = LocalBus::default();
        let mut heard = bus.subscribe();
        let clock = Arc::new(ManualClock(AtomicU64::new(1)));
        let publisher = Publisher::new(Arc::new(bus), Ownership::new(NodeId(1), 1, clock));
        let (entity, other) = (EntityId::new(EntityKind::Room, "!a:x"), EntityId::new(EntityKind::Room, "!b:x"));
        let mut sequences_after = |act: &dyn Fn()| {
            act();
            let mut sequences = Vec::new();
            while let Some(Delivery::Record(record)) = heard.try_next() {
                sequences.push(record.seq);
            }
            sequences
        };
        let say = |entity: &EntityId| {
            let notice = Notice { class: 1, position: Position(1), payload: Bytes::new(), trace: None };
            publisher.publish(entity, Epoch(1), vec![notice.clone(), notice]);
        };
        assert_eq!(sequences_after(&|| say(&entity)), [1, 2]);
        // 3 is left out at once, 4 before what the entity says next: who read in between may have read too early.
        publisher.doubt(&entity, Epoch(1));
        assert_eq!(sequences_after(&|| say(&entity)), [5, 6]);
        assert_eq!(sequences_after(&|| say(&other)), [7, 8]);
        assert_eq!(sequences_after(&|| say(&entity)), [10, 11]);
        publisher.settled(&entity, Epoch(1));
        assert_eq!(sequences_after(&|| say(&entity)), [13, 14]);
        assert_eq!(sequences_after(&|| say(&entity)), [15, 16]);
    }
}
