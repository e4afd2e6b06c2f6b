//! Which events a client wants. <https://spec.matrix.org/v1.19/client-server-api/#filtering>

use cofactor_wire::room::EventRecord;
use ruma::{
    OwnedUserId, RoomId,
    api::client::filter::{RoomEventFilter, UrlFilter},
};
use serde::Deserialize;
use serde_json::value::RawValue;

/// A filter on events of one room, ready to be asked often.
#[derive(Clone, Debug, Default)]
pub struct EventFilter {
    types: Option<Vec<String>>,
    not_types: Vec<String>,
    senders: Option<Vec<OwnedUserId>>,
    not_senders: Vec<OwnedUserId>,
    url: Option<bool>,
    /// The filter excludes the room itself.
    nothing: bool,
}

impl EventFilter {
    /// The part of `filter` that speaks about events in `room_id`.
    pub fn of(filter: &RoomEventFilter, room_id: &RoomId) -> Self {
        let wanted = filter.rooms.as_ref().is_none_or(|rooms| rooms.iter().any(|room| room == room_id));
        let excluded = filter.not_rooms.iter().any(|room| room == room_id);
        Self {
            types: filter.types.clone(),
            not_types: filter.not_types.clone(),
            senders: filter.senders.clone(),
            not_senders: filter.not_senders.clone(),
            url: filter.url_filter.as_ref().map(|url| matches!(url, UrlFilter::EventsWithUrl)),
            nothing: !wanted || excluded,
        }
    }

    /// Whether every event passes.
    pub fn is_open(&self) -> bool {
        self.types.is_none()
            && self.not_types.is_empty()
            && self.senders.is_none()
            && self.not_senders.is_empty()
            && self.url.is_none()
            && !self.nothing
    }

    /// Whether no event passes.
    pub fn is_closed(&self) -> bool {
        self.nothing
            || self.types.as_ref().is_some_and(Vec::is_empty)
            || self.senders.as_ref().is_some_and(Vec::is_empty)
    }

    /// Whether a type passes.
    pub fn takes_type(&self, event_type: &str) -> bool {
        let any = |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern, event_type));
        !self.nothing && self.types.as_ref().is_none_or(|types| any(types)) && !any(&self.not_types)
    }

    /// Whether an event passes.
    pub fn takes(&self, event: &EventRecord) -> bool {
        self.takes_type(&event.event_type)
            && self.senders.as_ref().is_none_or(|senders| senders.contains(&event.sender))
            && !self.not_senders.contains(&event.sender)
            && self.url.is_none_or(|wanted| has_url(&event.json) == wanted)
    }
}

/// `*` stands for any run of characters. The pattern is split at the stars, so the cost is linear in the text.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

fn has_url(json: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Event<'a> {
        #[serde(borrow)]
        content: Content<'a>,
    }
    #[derive(Deserialize)]
    struct Content<'a> {
        #[serde(borrow)]
        url: Option<&'a RawValue>,
    }
    serde_json::from_slice::<Event>(json).is_ok_and(|event| event.content.url.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_any_run() {
        for (pattern, text, expected) in [
            ("m.room.message", "m.room.message", true),
            ("m.room.message", "m.room.messages", false),
            ("m.room.*", "m.room.name", true),
            ("*", "", true),
            ("*.name", "m.room.name", true),
            ("m.*.name", "m.name", false),
            ("m.*a*a", "m.a", false),
            ("m.*a*a", "m.aa", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    /// The meaning of a pattern, tried out in every way.
    fn tried(pattern: &[u8], text: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len()).any(|skip| tried(rest, &text[skip..])),
            Some((first, rest)) => text.first() == Some(first) && tried(rest, &text[1..]),
        }
    }

    proptest::proptest! {
        #[test]
        fn patterns_match_what_trying_every_way_matches(pattern in "[ab*]{0,8}", text in "[ab]{0,8}") {
            assert_eq!(matches(&pattern, &text), tried(pattern.as_bytes(), text.as_bytes()), "{pattern} {text}");
        }
    }

    #[test]
    fn a_pattern_of_many_stars_costs_no_more_than_its_text() {
        let pattern = "*a".repeat(30_000) + "b";
        assert!(!matches(&pattern, &"a".repeat(60_000)));
    }
}
