//! What the runtime tells of itself: metrics, and the spans of a commit.

use std::{cmp::Reverse, collections::BinaryHeap};

use cofactor_store::StoreError;
use cofactor_telemetry::Trace;
use cofactor_types::{EntityId, EntityKind, Epoch, ShardId};
use tracing::Span;

/// Commands of one group whose traces are tied to the commit's.
const LINKS_MAX: usize = 32;

/// An actor was built.
pub(crate) fn activated(kind: EntityKind) {
    metrics::counter!("cofactor_entity_activations_total", "kind" => kind.as_str()).increment(1);
}

/// An actor went in good order.
pub(crate) fn passivated(kind: EntityKind) {
    metrics::counter!("cofactor_entity_passivations_total", "kind" => kind.as_str()).increment(1);
}

/// A command was refused because too many wait for the entity.
pub(crate) fn refused(kind: EntityKind) {
    metrics::counter!("cofactor_entity_refused_total", "kind" => kind.as_str()).increment(1);
}

/// Messages to other entities did not arrive and are to be tried again.
pub(crate) fn put_off(kind: EntityKind, messages: usize) {
    metrics::counter!("cofactor_entity_messages_put_off_total", "kind" => kind.as_str()).increment(messages as u64);
}

/// A group of commands was committed, or not.
pub(crate) fn committed(kind: EntityKind, commands: usize, took_us: u64, outcome: &Result<(), StoreError>) {
    let kind = kind.as_str();
    let word = match outcome {
        Ok(()) => "ok",
        Err(StoreError::Fenced(_)) => "fenced",
        Err(StoreError::Unknown(_)) => "unknown",
        Err(_) => "failed",
    };
    metrics::counter!("cofactor_entity_commits_total", "kind" => kind, "outcome" => word).increment(1);
    metrics::histogram!("cofactor_entity_commit_seconds", "kind" => kind).record(took_us as f64 / 1e6);
    metrics::histogram!("cofactor_entity_group_commands", "kind" => kind).record(commands as f64);
}

/// The span of a commit: part of the first command's trace, tied to the others'.
pub(crate) fn commit_span<'a>(
    kind: EntityKind,
    shard: ShardId,
    epoch: Epoch,
    mut commands: impl ExactSizeIterator<Item = &'a Span>,
) -> Span {
    if !cofactor_telemetry::is_tracing() {
        return Span::none();
    }
    let (size, kind, shard, epoch) = (commands.len(), kind.as_str(), shard.0, epoch.0);
    let first = commands.next().and_then(Span::id);
    let span = cofactor_telemetry::span!(parent: first, "commit", entity.kind = kind, shard, epoch, group.size = size);
    let here = Trace::of(&span);
    for other in commands.take(LINKS_MAX) {
        if let (Some(here), Some(there)) = (here, Trace::of(other)) {
            there.link(&span);
            here.link(other);
        }
    }
    span
}

/// The live entities of one kind, and what waits for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Live entities.
    pub live: usize,
    /// Commands that wait for them, or that they are at.
    pub queued: usize,
    /// Those with the most commands, the busiest first.
    pub busiest: Vec<(EntityId, usize)>,
}

impl Load {
    /// Of these entities and how many commands each has; the `named` busiest are named.
    pub(crate) fn of<'a>(entities: impl Iterator<Item = (&'a EntityId, usize)>, named: usize) -> Self {
        let mut load = Self::default();
        let mut busiest: BinaryHeap<Reverse<(usize, &EntityId)>> = BinaryHeap::with_capacity(named + 1);
        for (id, queued) in entities {
            load.live += 1;
            load.queued += queued;
            if queued > 0 {
                busiest.push(Reverse((queued, id)));
                if busiest.len() > named {
                    busiest.pop();
                }
            }
        }
        load.busiest =
            busiest.into_sorted_vec().into_iter().map(|Reverse((queued, id))| (id.clone(), queued)).collect();
        load
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_entities_are_named_the_busiest_first() {
        let ids: Vec<EntityId> = (0..5).map(|n| EntityId::new(EntityKind::Room, format!("!{n}:x"))).collect();
        let load = Load::of(ids.iter().zip([0, 7, 3, 0, 9]), 2);
        assert_eq!((load.live, load.queued), (5, 19));
        assert_eq!(load.busiest, [(ids[4].clone(), 9), (ids[1].clone(), 7)]);
    }
}
