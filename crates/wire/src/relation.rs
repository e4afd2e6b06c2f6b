//! Relations between events: what a room keeps of them beside the events.

use cofactor_types::Position;
use ruma::{MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedUserId};
use serde::{Deserialize, Serialize};

use crate::room::Totals;

/// A child in [`crate::room::class::RELATION`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Child {
    /// The child.
    pub event_id: OwnedEventId,
    /// The relation type.
    pub rel_type: String,
    /// The child's type.
    pub event_type: String,
    /// Its sender.
    pub sender: OwnedUserId,
    /// Its `origin_server_ts` in milliseconds.
    pub ts: MilliSecondsSinceUnixEpoch,
    /// It is an edit that may stand in the place of its parent.
    #[serde(default)]
    pub edits: bool,
}

/// A row of the `aggregates` table: what is served with an event about its children.
/// <https://spec.matrix.org/v1.19/client-server-api/#aggregations-of-child-events>
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aggregate {
    /// The latest edit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edit: Option<Edit>,
    /// The thread of which the event is the root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thread: Option<Thread>,
    /// The first events that refer to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<Reference>,
}

/// An edit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edit {
    /// Where it stands.
    pub position: Position,
    /// When it was made: the latest counts.
    pub ts: MilliSecondsSinceUnixEpoch,
    /// Its id, which decides between two of the same time.
    pub event_id: OwnedEventId,
}

/// An event that refers to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// Where it stands.
    pub position: Position,
    /// Its id.
    pub event_id: OwnedEventId,
}

/// A thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thread {
    /// Where its latest reply stands.
    pub latest: Position,
    /// Where the last event that counts as part of it stands, replies or not.
    pub active: Position,
    /// Its replies.
    pub count: u64,
    /// Its totals.
    pub totals: Totals,
}

/// A thread in [`crate::room::class::THREADS`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadRoot {
    /// The root.
    pub root: OwnedEventId,
    /// Where the root stands.
    pub root_position: Position,
    /// The thread's totals.
    pub totals: Totals,
}
