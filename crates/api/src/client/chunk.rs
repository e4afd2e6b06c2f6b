//! Lists of events as bodies of answers.

use cofactor_http::{ApiError, Reply};
use cofactor_types::Fault;
use serde::Serialize;
use serde_json::value::RawValue;

/// A list of events, and where it goes on. The events are a JSON array already and are copied as they stand; in a tree of values
/// each of them would be taken apart and put together again.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    pub(crate) chunk: Vec<u8>,
    pub(crate) state: Option<Vec<u8>>,
    pub(crate) rest: Rest,
}

/// The other members of a [`Chunk`].
#[derive(Debug, Default, Serialize)]
pub(crate) struct Rest {
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

/// What is written beside the values.
const NAMES_BYTES: usize = 32;

impl Chunk {
    /// The answer.
    pub(crate) fn reply(self) -> Result<Reply, ApiError> {
        let rest =
            serde_json::to_vec(&self.rest).map_err(|error| ApiError::from(Fault::internal(error.to_string())))?;
        let state = self.state.as_deref().unwrap_or_default();
        let mut body = Vec::with_capacity(self.chunk.len() + state.len() + rest.len() + NAMES_BYTES);
        body.extend_from_slice(b"{\"chunk\":");
        body.extend_from_slice(&self.chunk);
        if self.state.is_some() {
            body.extend_from_slice(b",\"state\":");
            body.extend_from_slice(state);
        }
        if let Some(members) = rest.get(1..).filter(|members| *members != b"}") {
            body.push(b',');
            body.extend_from_slice(members);
        } else {
            body.push(b'}');
        }
        Ok(Reply::json(body.into()))
    }
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

#[cfg(test)]
mod tests {
    use cofactor_http::ReplyBody;
    use serde_json::{Value, json};

    use super::*;

    fn read(chunk: Chunk) -> Value {
        match chunk.reply().unwrap().body {
            ReplyBody::Whole(body) => serde_json::from_slice(&body).unwrap(),
            _ => panic!("the answer is whole"),
        }
    }

    #[test]
    fn a_chunk_is_an_object_with_and_without_its_other_members() {
        let bare = || Chunk { chunk: b"[{\"a\":1}]".to_vec(), ..Chunk::default() };
        assert_eq!(read(bare()), json!({ "chunk": [{ "a": 1 }] }));
        let rest = Rest { start: Some("p1".to_owned()), recursion_depth: Some(3), ..Rest::default() };
        let whole = Chunk { state: Some(b"[]".to_vec()), rest, ..bare() };
        assert_eq!(read(whole), json!({ "chunk": [{ "a": 1 }], "state": [], "start": "p1", "recursion_depth": 3 }));
    }
}
