//! The state of a room as a persistent, hash-consed map.
//!
//! A [`StateTree`] is a search tree whose shape depends only on its content: the level of a key comes from the
//! hash of the key (a Merkle search tree). Two states of a room therefore share whatever they have in common, a
//! clone costs a pointer, equal states have equal root hashes whatever the order of the changes was, and the
//! difference of two states is found in time proportional to the difference.

mod codec;
mod diff;
mod node;
mod policy;

use std::{borrow::Cow, cmp::Ordering, collections::HashSet, sync::Arc};

use ruma::{EventId, OwnedEventId, events::StateEventType};

use self::node::{Link, Node};
pub use self::{
    codec::{StateDecodeError, decode_changes, encode_changes},
    diff::StateChange,
    policy::{SnapshotPolicy, StoreAs},
};
use crate::pdu::Pdu;

/// The SHA-256 of an encoded node.
pub type NodeId = [u8; 32];

/// The types that make up nearly every state, so that their names are stored once; the codec numbers them by
/// their place, so a new one goes to the end.
const KNOWN_TYPES: [&str; 18] = [
    "m.room.create",
    "m.room.member",
    "m.room.power_levels",
    "m.room.join_rules",
    "m.room.history_visibility",
    "m.room.guest_access",
    "m.room.name",
    "m.room.topic",
    "m.room.avatar",
    "m.room.canonical_alias",
    "m.room.encryption",
    "m.room.third_party_invite",
    "m.room.server_acl",
    "m.room.tombstone",
    "m.room.pinned_events",
    "m.room.aliases",
    "m.space.child",
    "m.space.parent",
];

fn intern_type(event_type: &str) -> Cow<'static, str> {
    match KNOWN_TYPES.iter().find(|known| **known == event_type) {
        Some(known) => Cow::Borrowed(known),
        None => Cow::Owned(event_type.to_owned()),
    }
}

/// One event of a state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateEntry {
    event_type: Cow<'static, str>,
    state_key: Box<str>,
    event_id: OwnedEventId,
    position: u64,
}

impl StateEntry {
    /// The event at the position of the room's log.
    pub fn new(event_type: &str, state_key: &str, event_id: OwnedEventId, position: u64) -> Self {
        Self { event_type: intern_type(event_type), state_key: state_key.into(), event_id, position }
    }

    /// A state event at the position of the room's log; `None` for an event that has no state key.
    pub fn of(pdu: &Pdu, position: u64) -> Option<Self> {
        let state_key = pdu.state_key()?;
        Some(Self::new(&pdu.event_type().to_string(), state_key, pdu.event_id().to_owned(), position))
    }

    /// The type of the event.
    pub fn event_type(&self) -> &str {
        &self.event_type
    }

    /// The state key of the event.
    pub fn state_key(&self) -> &str {
        &self.state_key
    }

    /// The event.
    pub fn event_id(&self) -> &EventId {
        &self.event_id
    }

    /// Where the event stands in the room's log.
    pub fn position(&self) -> u64 {
        self.position
    }

    fn key(&self) -> (&str, &str) {
        (&self.event_type, &self.state_key)
    }

    fn compare_key(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

/// A state of a room; cheap to clone, never changed in place for others that hold a clone.
#[derive(Debug, Clone, Default)]
pub struct StateTree {
    root: Link,
    len: usize,
}

impl StateTree {
    /// The empty state.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many events the state has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the state has no event.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The event of the type and state key.
    pub fn get(&self, event_type: &StateEventType, state_key: &str) -> Option<&StateEntry> {
        self.get_str(&event_type.to_string(), state_key)
    }

    /// The event of the type and state key, with the type as a string.
    pub fn get_str(&self, event_type: &str, state_key: &str) -> Option<&StateEntry> {
        node::get(&self.root, (event_type, state_key))
    }

    /// Puts an event in its place and returns the one that was there.
    pub fn insert(&mut self, entry: StateEntry) -> Option<Arc<StateEntry>> {
        let level = node::level_of(entry.key());
        let (root, previous) = node::insert(self.root.take(), Arc::new(entry), level);
        self.root = Some(root);
        self.len += usize::from(previous.is_none());
        previous
    }

    /// Takes an event out of the state.
    pub fn remove(&mut self, event_type: &str, state_key: &str) -> Option<Arc<StateEntry>> {
        let (root, previous) = node::remove(self.root.take(), (event_type, state_key));
        self.root = root;
        self.len -= usize::from(previous.is_some());
        previous
    }

    /// Applies one change of a difference.
    pub fn apply(&mut self, change: &StateChange) {
        match change.after() {
            Some(entry) => {
                self.insert(entry.clone());
            }
            None => {
                self.remove(change.event_type(), change.state_key());
            }
        }
    }

    /// All events, in the order of type and state key.
    pub fn iter(&self) -> impl Iterator<Item = &StateEntry> {
        node::Iter::new(&self.root, ("", ""))
    }

    /// The events of one type, in the order of the state key, without looking at those of other types.
    pub fn iter_type(&self, event_type: &str) -> impl Iterator<Item = &StateEntry> {
        let wanted = intern_type(event_type);
        node::Iter::new(&self.root, (event_type, "")).take_while(move |entry| entry.event_type == wanted)
    }

    /// The events from a place on, in the order of type and state key.
    pub fn iter_from(&self, event_type: &str, state_key: &str) -> impl Iterator<Item = &StateEntry> {
        node::Iter::new(&self.root, (event_type, state_key))
    }

    /// The hash of the content; `None` for the empty state.
    pub fn root_id(&self) -> Option<NodeId> {
        self.root.as_deref().map(Node::id)
    }

    /// Whether both are the same tree in memory, without looking at the content.
    pub fn is_same(&self, other: &Self) -> bool {
        node::same(&self.root, &other.root)
    }

    /// What changed from `self` to `other`, in the order of type and state key.
    pub fn diff(&self, other: &Self) -> Vec<StateChange> {
        diff::diff(&self.root, &other.root)
    }

    /// The encoded nodes of this tree that `old` does not have, parents first.
    ///
    /// Storing them next to those of `old` makes this tree readable with [`Self::decode`].
    pub fn new_nodes_since(&self, old: &Self) -> Vec<(NodeId, Vec<u8>)> {
        let mut found = Vec::new();
        let mut seen = HashSet::new();
        let mut pending: Vec<&Arc<Node>> = self.root.iter().collect();
        while let Some(node) = pending.pop() {
            let is_known = node::find_node(&old.root, node).is_some_and(|other| other.id() == node.id());
            if is_known || !seen.insert(node.id()) {
                continue;
            }
            found.push((node.id(), node.encode()));
            pending.extend(node.children().iter().flatten());
        }
        found
    }

    /// Reads a whole tree back from its nodes.
    ///
    /// # Errors
    ///
    /// [`StateDecodeError`] if a node is missing or malformed.
    pub fn decode(root: Option<NodeId>, fetch: &impl Fn(&NodeId) -> Option<Vec<u8>>) -> Result<Self, StateDecodeError> {
        let Some(root) = root else { return Ok(Self::new()) };
        let root = codec::decode_tree(root, fetch)?;
        let len = node::Iter::new(&Some(Arc::clone(&root)), ("", "")).count();
        Ok(Self { root: Some(root), len })
    }
}

impl PartialEq for StateTree {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && (self.is_same(other) || self.root_id() == other.root_id())
    }
}

impl Eq for StateTree {}

impl FromIterator<StateEntry> for StateTree {
    fn from_iter<I: IntoIterator<Item = StateEntry>>(entries: I) -> Self {
        let mut tree = Self::new();
        for entry in entries {
            tree.insert(entry);
        }
        tree
    }
}
