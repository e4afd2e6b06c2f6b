//! What an event says about another. <https://spec.matrix.org/v1.19/client-server-api/#forming-relationships-between-events>

use ruma::{EventId, OwnedEventId};
use serde::Deserialize;

/// The longest relation type that counts, in bytes.
const REL_TYPE_BYTES_MAX: usize = 255;

/// The member of the content that speaks of another event.
const RELATES_TO: &str = "m.relates_to";

/// A relation of an event to its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// What kind: `m.thread`, `m.replace`, `m.annotation`, `m.reference`, or anything else.
    pub rel_type: String,
    /// The parent.
    pub parent: OwnedEventId,
    /// The key of an annotation.
    pub key: Option<String>,
    /// Whether the content has what an edit puts in the place of the parent's.
    pub has_new_content: bool,
}

#[derive(Deserialize)]
struct Content {
    #[serde(rename = "m.relates_to")]
    relates_to: RelatesTo,
    #[serde(default, rename = "m.new_content")]
    new_content: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct RelatesTo {
    rel_type: String,
    event_id: String,
    #[serde(default)]
    key: Option<String>,
}

impl Relation {
    /// The relation that an event's content speaks of; one of the wrong form is none.
    pub fn of_content(content: &[u8]) -> Option<Self> {
        let Content { relates_to, new_content } = serde_json::from_slice(content).ok()?;
        let parent = EventId::parse(relates_to.event_id).ok()?;
        (relates_to.rel_type.len() <= REL_TYPE_BYTES_MAX).then_some(Self {
            rel_type: relates_to.rel_type,
            parent,
            key: relates_to.key,
            has_new_content: new_content.is_some(),
        })
    }

    /// The relation of an event, given as client JSON that this server wrote.
    pub fn of_event(json: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Event<'a> {
            #[serde(borrow)]
            content: &'a serde_json::value::RawValue,
        }
        // What the server wrote as JSON has no letter escaped; most events speak of no other.
        if !std::str::from_utf8(json).ok()?.contains(RELATES_TO) {
            return None;
        }
        let event: Event = serde_json::from_slice(json).ok()?;
        Self::of_content(event.content.get().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relation_is_read_and_what_has_not_its_form_is_none() {
        let read = |json: &str| Relation::of_event(json.as_bytes());
        let thread = read(r#"{"content":{"m.relates_to":{"rel_type":"m.thread","event_id":"$a"}}}"#).unwrap();
        assert_eq!((thread.rel_type.as_str(), thread.parent.as_str(), thread.key), ("m.thread", "$a", None));
        for json in [
            r#"{"content":{}}"#,
            r#"{"content":{"m.relates_to":{"m.in_reply_to":{"event_id":"$a"}}}}"#,
            r#"{"content":{"m.relates_to":{"rel_type":"m.thread","event_id":"a"}}}"#,
            r#"{"content":{"m.relates_to":{"rel_type":1,"event_id":"$a"}}}"#,
        ] {
            assert_eq!(read(json), None, "{json}");
        }
    }
}
