//! What was heard of each shard: whether anything was missed, and how far everything is closed.

use std::collections::BTreeMap;

use cofactor_bus::Heartbeat;
use cofactor_types::{Epoch, NodeId, Position, ShardId};

/// How a record fits to what was heard before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// The next one.
    Next,
    /// One of a sequence of which something was missed.
    AfterGap,
    /// Known already, or said by an owner that is none any more.
    Old,
}

/// The last that was heard of a shard.
#[derive(Clone, Copy, Debug)]
struct Last {
    epoch: Epoch,
    seq: u64,
}

/// A node that owns shards.
#[derive(Debug, Default)]
struct Node {
    closed: Position,
    version: u64,
    owned: usize,
}

/// The sequence numbers of all shards and the closed positions of their owners.
///
/// The closed position of the cluster is the lowest over all shards: that of their owner or, while nobody owns a shard, the
/// last one that its owner promised for it.
#[derive(Debug, Default)]
pub(crate) struct Ear {
    shard_count: u32,
    last: BTreeMap<ShardId, Last>,
    owner: BTreeMap<ShardId, NodeId>,
    nodes: BTreeMap<NodeId, Node>,
    /// Shards that were given up and not yet taken, with the closed position at that time.
    orphans: BTreeMap<ShardId, Position>,
}

impl Ear {
    pub(crate) fn new(shard_count: u32) -> Self {
        Self { shard_count, ..Self::default() }
    }

    /// Notes a record.
    pub(crate) fn record(&mut self, shard: ShardId, epoch: Epoch, seq: u64) -> Heard {
        let before = self.last.get(&shard).copied();
        if before.is_some_and(|last| (epoch, seq) <= (last.epoch, last.seq)) {
            return Heard::Old;
        }
        self.last.insert(shard, Last { epoch, seq });
        match before {
            // The first thing heard at all: slots are built from the store after it.
            None => Heard::Next,
            Some(last) if last.epoch == epoch && last.seq + 1 == seq => Heard::Next,
            Some(_) => Heard::AfterGap,
        }
    }

    /// Notes a heartbeat; returns the shards of which something was missed.
    pub(crate) fn heartbeat(&mut self, heartbeat: &Heartbeat) -> Vec<ShardId> {
        let mut missed = Vec::new();
        let known = self.nodes.get(&heartbeat.node).map(|node| node.version);
        if !heartbeat.full && known != Some(heartbeat.version) {
            // Its list of shards has changed, and how was not heard: what it promises may be about other shards.
            return missed;
        }
        for (shard, epoch, seq) in &heartbeat.shards {
            let before = self.last.get(shard).copied();
            match before {
                Some(last) if last.epoch > *epoch => continue,
                Some(last) if last.epoch == *epoch && last.seq >= *seq => {}
                Some(_) => missed.push(*shard),
                None => {}
            }
            if before.is_none_or(|last| (last.epoch, last.seq) < (*epoch, *seq)) {
                self.last.insert(*shard, Last { epoch: *epoch, seq: *seq });
            }
            if heartbeat.full {
                self.attribute(*shard, heartbeat.node);
            }
        }
        if heartbeat.full {
            self.give_up(heartbeat);
        }
        if let Some(node) = self.nodes.get_mut(&heartbeat.node) {
            node.closed = node.closed.max(heartbeat.closed);
            node.version = heartbeat.version;
        }
        self.nodes.retain(|_, node| node.owned > 0);
        missed
    }

    fn attribute(&mut self, shard: ShardId, node: NodeId) {
        self.orphans.remove(&shard);
        let before = self.owner.insert(shard, node);
        if before == Some(node) {
            return;
        }
        if let Some(before) = before.and_then(|before| self.nodes.get_mut(&before)) {
            before.owned -= 1;
        }
        self.nodes.entry(node).or_default().owned += 1;
    }

    /// A full list leaves out what its node has given up.
    fn give_up(&mut self, heartbeat: &Heartbeat) {
        let Some(node) = self.nodes.get_mut(&heartbeat.node) else { return };
        if node.owned == heartbeat.shards.len() {
            return;
        }
        let listed: BTreeMap<ShardId, Epoch> =
            heartbeat.shards.iter().map(|(shard, epoch, _)| (*shard, *epoch)).collect();
        let closed = node.closed;
        let orphans = &mut self.orphans;
        let mut given_up = 0;
        self.owner.retain(|shard, owner| {
            let stays = *owner != heartbeat.node || listed.contains_key(shard);
            if !stays {
                orphans.insert(*shard, closed);
                given_up += 1;
            }
            stays
        });
        node.owned -= given_up;
    }

    /// Nothing at or below it can still appear, in any shard. Zero until every shard was heard of.
    pub(crate) fn closed(&self) -> Position {
        if self.owner.len() + self.orphans.len() < self.shard_count as usize {
            return Position::ZERO;
        }
        let nodes = self.nodes.values().map(|node| node.closed);
        nodes.chain(self.orphans.values().copied()).min().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heartbeat(node: u64, closed: u64, version: u64, full: bool, shards: &[(u32, u64, u64)]) -> Heartbeat {
        let shards = shards.iter().map(|(shard, epoch, seq)| (ShardId(*shard), Epoch(*epoch), *seq)).collect();
        Heartbeat { node: NodeId(node), closed: Position(closed), version, full, shards }
    }

    #[test]
    fn a_hole_in_a_sequence_is_noticed_by_the_next_record_and_by_the_heartbeat() {
        let mut ear = Ear::new(1);
        assert_eq!(ear.record(ShardId(0), Epoch(1), 1), Heard::Next);
        assert_eq!(ear.record(ShardId(0), Epoch(1), 2), Heard::Next);
        assert_eq!(ear.record(ShardId(0), Epoch(1), 2), Heard::Old);
        assert_eq!(ear.record(ShardId(0), Epoch(1), 4), Heard::AfterGap);
        assert_eq!(ear.heartbeat(&heartbeat(1, 10, 1, true, &[(0, 1, 5)])), [ShardId(0)]);
        assert_eq!(ear.heartbeat(&heartbeat(1, 11, 1, true, &[(0, 1, 5)])), []);
    }

    #[test]
    fn nothing_is_closed_until_every_shard_was_heard_of() {
        let mut ear = Ear::new(2);
        ear.heartbeat(&heartbeat(1, 10, 1, true, &[(0, 1, 0)]));
        assert_eq!(ear.closed(), Position(0));
        ear.heartbeat(&heartbeat(2, 7, 1, true, &[(1, 1, 0)]));
        assert_eq!(ear.closed(), Position(7));
    }

    #[test]
    fn a_shard_between_two_owners_holds_the_closed_position_where_it_was() {
        let mut ear = Ear::new(2);
        ear.heartbeat(&heartbeat(1, 10, 1, true, &[(0, 1, 0), (1, 1, 0)]));
        ear.heartbeat(&heartbeat(1, 20, 2, true, &[(0, 1, 0)]));
        assert_eq!(ear.closed(), Position(10), "shard 1 is nobody's");
        assert_eq!(ear.heartbeat(&heartbeat(2, 30, 1, true, &[(1, 2, 0)])), [ShardId(1)], "a new owner is a gap");
        assert_eq!(ear.closed(), Position(20));
    }

    #[test]
    fn a_promise_about_an_unknown_list_of_shards_counts_for_nothing() {
        let mut ear = Ear::new(1);
        ear.heartbeat(&heartbeat(1, 10, 1, true, &[(0, 1, 0)]));
        ear.heartbeat(&heartbeat(1, 20, 2, false, &[]));
        assert_eq!(ear.closed(), Position(10));
    }

    #[test]
    fn a_promise_is_not_believed_without_what_was_said_before_it() {
        let mut ear = Ear::new(1);
        ear.heartbeat(&heartbeat(1, 10, 1, true, &[(0, 1, 3)]));
        // The record 4 and the heartbeat after it are lost; so is the record 5 and the full list after it.
        assert_eq!(ear.heartbeat(&heartbeat(1, 20, 1, false, &[(0, 1, 4)])), [ShardId(0)]);
        assert_eq!(ear.closed(), Position(20));
        ear.heartbeat(&heartbeat(1, 30, 2, false, &[]));
        assert_eq!(ear.closed(), Position(20));
        assert_eq!(ear.heartbeat(&heartbeat(1, 40, 3, true, &[(0, 1, 5)])), [ShardId(0)]);
        assert_eq!(ear.closed(), Position(40));
    }

    #[test]
    fn an_owner_of_an_earlier_epoch_is_not_believed() {
        let mut ear = Ear::new(1);
        ear.heartbeat(&heartbeat(1, 10, 1, true, &[(0, 1, 3)]));
        ear.heartbeat(&heartbeat(2, 15, 1, true, &[(0, 2, 0)]));
        assert_eq!(ear.record(ShardId(0), Epoch(1), 4), Heard::Old);
        ear.heartbeat(&heartbeat(1, 99, 1, true, &[(0, 1, 9)]));
        assert_eq!(ear.closed(), Position(15));
    }
}
