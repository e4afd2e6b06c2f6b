//! What an event means to members with the default push rules, decided once for all of them.
//!
//! The room keeps running totals of this, so that an unread count is a difference of totals and a send costs nothing per
//! member. Members whose rules are not the default are evaluated when they read.
//! <https://spec.matrix.org/v1.19/client-server-api/#predefined-rules>

use ruma::{OwnedUserId, UserId};
use serde::Deserialize;

use crate::{Pdu, PowerLevels};

/// Mentions kept of one event.
pub const MENTIONS_MAX: usize = 100;

/// What an event means to a member with the default rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Class {
    /// It notifies every member but its sender.
    pub notify: bool,
    /// It highlights for every member but its sender.
    pub highlight_room: bool,
    /// It notifies and highlights for these users.
    pub mentions: Vec<OwnedUserId>,
}

#[derive(Default, Deserialize)]
struct Content {
    #[serde(default)]
    msgtype: Option<String>,
    #[serde(default, rename = "m.relates_to")]
    relates_to: Option<Relation>,
    #[serde(default, rename = "m.mentions")]
    mentions: Option<Mentions>,
}

#[derive(Deserialize)]
struct Relation {
    #[serde(default)]
    rel_type: Option<String>,
}

#[derive(Deserialize)]
struct Mentions {
    #[serde(default)]
    user_ids: Vec<String>,
    #[serde(default)]
    room: bool,
}

/// Judges an event by the default rules, in their order.
pub fn classify(pdu: &Pdu, power_levels: Option<&PowerLevels>) -> Class {
    // What does not have the form of the rule's condition does not match it.
    let content: Content = serde_json::from_str(pdu.content().get()).unwrap_or_default();
    let event_type = pdu.event_type().to_string();
    if content.msgtype.as_deref() == Some("m.notice") {
        return Class::default();
    }
    let mut class = Class::default();
    let is_edit = content.relates_to.is_some_and(|relation| relation.rel_type.as_deref() == Some("m.replace"));
    if let Some(mentions) = content.mentions {
        let ids = mentions.user_ids.iter().filter_map(|id| UserId::parse(id).ok());
        class.mentions = ids.take(MENTIONS_MAX).collect();
        let may_notify = power_levels.is_some_and(|levels| levels.may_notify(pdu.sender(), "room"));
        class.highlight_room = mentions.room && may_notify;
    }
    if event_type == "m.room.tombstone" && pdu.state_key() == Some("") {
        class.highlight_room = true;
    }
    let by_type = matches!(
        event_type.as_str(),
        "m.room.message" | "m.room.encrypted" | "m.call.invite" | "m.poll.start" | "m.poll.end"
    );
    class.notify = class.highlight_room || (by_type && !is_edit && pdu.state_key().is_none());
    class
}
