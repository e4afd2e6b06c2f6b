//! The difference of two trees.

use std::{cmp::Ordering, sync::Arc};

use super::{
    StateEntry,
    node::{Link, Node, same, split},
};

/// One place of the state where two states differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateChange {
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Added(Arc<StateEntry>),
    Removed(Arc<StateEntry>),
    Replaced(Arc<StateEntry>, Arc<StateEntry>),
}

impl StateChange {
    /// An event where there was none.
    pub fn added(entry: Arc<StateEntry>) -> Self {
        Self { kind: Kind::Added(entry) }
    }

    /// No event where there was one.
    pub fn removed(entry: Arc<StateEntry>) -> Self {
        Self { kind: Kind::Removed(entry) }
    }

    /// Another event of the same type and state key.
    pub fn replaced(before: Arc<StateEntry>, after: Arc<StateEntry>) -> Self {
        Self { kind: Kind::Replaced(before, after) }
    }

    /// The type of the events.
    pub fn event_type(&self) -> &str {
        self.any().event_type()
    }

    /// The state key of the events.
    pub fn state_key(&self) -> &str {
        self.any().state_key()
    }

    /// The event in the first state.
    pub fn before(&self) -> Option<&StateEntry> {
        match &self.kind {
            Kind::Added(_) => None,
            Kind::Removed(before) | Kind::Replaced(before, _) => Some(before),
        }
    }

    /// The event in the second state.
    pub fn after(&self) -> Option<&StateEntry> {
        match &self.kind {
            Kind::Removed(_) => None,
            Kind::Added(after) | Kind::Replaced(_, after) => Some(after),
        }
    }

    fn any(&self) -> &StateEntry {
        match &self.kind {
            Kind::Added(entry) | Kind::Removed(entry) | Kind::Replaced(_, entry) => entry,
        }
    }
}

pub(super) fn diff(before: &Link, after: &Link) -> Vec<StateChange> {
    let mut changes = Vec::new();
    compare(before, after, &mut changes);
    changes
}

/// Walks both subtrees side by side; whatever they share is skipped by pointer or hash.
///
/// The recursion goes down one level at least, so its depth is bounded by the number of levels.
fn compare(before: &Link, after: &Link, changes: &mut Vec<StateChange>) {
    if same(before, after) {
        return;
    }
    let level = [before, after].into_iter().flatten().map(|node| node.level()).max().unwrap_or(0);
    let (before_entries, before_children) = at_level(before, level);
    let (after_entries, after_children) = at_level(after, level);
    let (mut i, mut j) = (0, 0);
    let mut before_gap = before_children[0].clone();
    let mut after_gap = after_children[0].clone();
    loop {
        let order = match (before_entries.get(i), after_entries.get(j)) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) => a.compare_key(b),
        };
        match order {
            Ordering::Equal => {
                compare(&before_gap, &after_gap, changes);
                if before_entries[i] != after_entries[j] {
                    changes.push(StateChange::replaced(before_entries[i].clone(), after_entries[j].clone()));
                }
                (i, j) = (i + 1, j + 1);
                before_gap = before_children[i].clone();
                after_gap = after_children[j].clone();
            }
            // The key is on this level wherever it is, so the other tree does not have it.
            Ordering::Less => {
                let (left, right) = split(after_gap, before_entries[i].key());
                compare(&before_gap, &left, changes);
                changes.push(StateChange::removed(before_entries[i].clone()));
                i += 1;
                before_gap = before_children[i].clone();
                after_gap = right;
            }
            Ordering::Greater => {
                let (left, right) = split(before_gap, after_entries[j].key());
                compare(&left, &after_gap, changes);
                changes.push(StateChange::added(after_entries[j].clone()));
                j += 1;
                after_gap = after_children[j].clone();
                before_gap = right;
            }
        }
    }
    compare(&before_gap, &after_gap, changes);
}

/// The subtree seen from a level: a lower one is the only child of a node without entries.
fn at_level(link: &Link, level: u8) -> (&[Arc<StateEntry>], &[Link]) {
    match link.as_deref() {
        Some(node) if node.level() == level => (Node::entries(node), Node::children(node)),
        _ => (&[], std::slice::from_ref(link)),
    }
}
