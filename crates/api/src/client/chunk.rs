//! Lists of events as bodies of answers.

use serde::Serialize;
use serde_json::value::RawValue;

/// A list of events, and where it goes on. The events are JSON already and are copied as they stand; in a tree of values each
/// of them would be taken apart and put together again.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Chunk {
    pub(crate) chunk: Box<RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) state: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) start: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) end: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next_batch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prev_batch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) recursion_depth: Option<usize>,
}

/// What stands around an event.
#[derive(Debug, Serialize)]
pub(crate) struct Surroundings {
    pub(crate) event: Box<RawValue>,
    pub(crate) events_before: Box<RawValue>,
    pub(crate) events_after: Box<RawValue>,
    pub(crate) start: String,
    pub(crate) end: String,
    pub(crate) state: Box<RawValue>,
}
