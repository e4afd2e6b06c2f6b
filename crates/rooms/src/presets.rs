//! From the options of a new room to its first events, in the order that the specification gives.
//! <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3createroom>

use cofactor_room::RoomVersion;
use cofactor_types::Fault;
use cofactor_wire::room::NewEvent;
use ruma::{OwnedRoomAliasId, OwnedUserId};
use serde_json::{Map, Value, json};

/// Invitations in one request.
const INVITES_MAX: usize = 100;

/// State events in one request.
const INITIAL_STATE_MAX: usize = 500;

/// What kind of room it is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// By invitation; history is shared with members.
    PrivateChat,
    /// As [`Self::PrivateChat`], and all who are invited have the creator's power.
    TrustedPrivateChat,
    /// Anyone may join.
    PublicChat,
}

/// A request for a new room.
#[derive(Clone, Debug)]
pub struct CreateRoomOptions {
    /// The creator.
    pub creator: OwnedUserId,
    /// The creator's member event beside the membership: display name and avatar.
    pub creator_profile: Map<String, Value>,
    /// The room version.
    pub version: &'static RoomVersion,
    /// The preset.
    pub preset: Preset,
    /// Extra members of the create event's content.
    pub creation_content: Map<String, Value>,
    /// Changes to the power levels that the preset gives.
    pub power_level_content_override: Map<String, Value>,
    /// State events: type, state key, content.
    pub initial_state: Vec<(String, String, Map<String, Value>)>,
    /// The name.
    pub name: Option<String>,
    /// The topic.
    pub topic: Option<String>,
    /// A local alias, reserved already.
    pub alias: Option<OwnedRoomAliasId>,
    /// Who is invited, with the profile that the invitation shows.
    pub invite: Vec<(OwnedUserId, Map<String, Value>)>,
    /// Mark the invitations as direct.
    pub is_direct: bool,
    /// Show it in the public directory.
    pub public: bool,
}

impl CreateRoomOptions {
    /// The content of the create event.
    pub(crate) fn create_content(&self) -> Result<Map<String, Value>, Fault> {
        if self.invite.len() > INVITES_MAX || self.initial_state.len() > INITIAL_STATE_MAX {
            return Err(Fault::invalid("too many invitations or state events at once"));
        }
        let mut content = self.creation_content.clone();
        content.insert("room_version".into(), self.version.name().into());
        if self.version.rules().authorization.use_room_create_sender {
            content.remove("creator");
        } else {
            content.insert("creator".into(), self.creator.as_str().into());
        }
        if self.version.rules().authorization.additional_room_creators && self.preset == Preset::TrustedPrivateChat {
            let creators = content.entry("additional_creators").or_insert_with(|| json!([]));
            if let Value::Array(creators) = creators {
                for (user_id, _) in &self.invite {
                    if !creators.iter().any(|known| known == user_id.as_str()) {
                        creators.push(user_id.as_str().into());
                    }
                }
            }
        }
        Ok(content)
    }

    /// The events after the create event.
    pub(crate) fn events(&self) -> Result<Vec<NewEvent>, Fault> {
        let mut events = vec![self.creator_joins()?];
        events.push(state("m.room.power_levels", "", &Value::Object(self.power_levels()))?);
        if let Some(alias) = &self.alias {
            events.push(state("m.room.canonical_alias", "", &json!({ "alias": alias }))?);
        }
        events.extend(self.preset_events()?);
        for (event_type, state_key, content) in &self.initial_state {
            let is_reserved = matches!(event_type.as_str(), "m.room.create" | "m.room.member");
            if is_reserved {
                return Err(Fault::invalid(format!("{event_type} cannot be part of the initial state")));
            }
            events.push(state(event_type, state_key, &Value::Object(content.clone()))?);
        }
        if let Some(name) = &self.name {
            events.push(state("m.room.name", "", &json!({ "name": name }))?);
        }
        if let Some(topic) = &self.topic {
            let block = json!({ "m.text": [{ "body": topic }] });
            events.push(state("m.room.topic", "", &json!({ "topic": topic, "m.topic": block }))?);
        }
        Ok(events)
    }

    /// The invitations: the user and the content of its member event.
    pub(crate) fn invites(&self) -> Result<Vec<(OwnedUserId, bytes::Bytes)>, Fault> {
        let invite = |(user_id, profile): &(OwnedUserId, Map<String, Value>)| {
            let mut content = profile.clone();
            content.insert("membership".into(), "invite".into());
            if self.is_direct {
                content.insert("is_direct".into(), true.into());
            }
            Ok((user_id.clone(), encode(&Value::Object(content))?))
        };
        self.invite.iter().map(invite).collect()
    }

    fn creator_joins(&self) -> Result<NewEvent, Fault> {
        let mut content = self.creator_profile.clone();
        content.insert("membership".into(), "join".into());
        state("m.room.member", self.creator.as_str(), &Value::Object(content))
    }

    fn power_levels(&self) -> Map<String, Value> {
        let privileged = self.version.rules().authorization.explicitly_privilege_room_creators;
        let mut users = Map::new();
        // From version 12 on creators stand above every level and must not be named.
        if !privileged {
            users.insert(self.creator.to_string(), 100.into());
            if self.preset == Preset::TrustedPrivateChat {
                users.extend(self.invite.iter().map(|(user_id, _)| (user_id.to_string(), 100.into())));
            }
        }
        let tombstone = if privileged { 150 } else { 100 };
        let content = json!({
            "ban": 50,
            "events": {
                "m.room.avatar": 50,
                "m.room.canonical_alias": 50,
                "m.room.encryption": 100,
                "m.room.history_visibility": 100,
                "m.room.name": 50,
                "m.room.power_levels": 100,
                "m.room.server_acl": 100,
                "m.room.tombstone": tombstone,
            },
            "events_default": 0,
            "invite": 0,
            "kick": 50,
            "redact": 50,
            "state_default": 50,
            "users": users,
            "users_default": 0,
        });
        let Value::Object(mut content) = content else { return Map::new() };
        content.extend(self.power_level_content_override.clone());
        content
    }

    fn preset_events(&self) -> Result<Vec<NewEvent>, Fault> {
        let (join_rule, guest_access) = match self.preset {
            Preset::PrivateChat | Preset::TrustedPrivateChat => ("invite", "can_join"),
            Preset::PublicChat => ("public", "forbidden"),
        };
        let events = [
            ("m.room.join_rules", json!({ "join_rule": join_rule })),
            ("m.room.history_visibility", json!({ "history_visibility": "shared" })),
            ("m.room.guest_access", json!({ "guest_access": guest_access })),
        ];
        // What the request says itself replaces what the preset would say.
        let said = |kind: &str| self.initial_state.iter().any(|(named, key, _)| named == kind && key.is_empty());
        events.iter().filter(|(kind, _)| !said(kind)).map(|(kind, content)| state(kind, "", content)).collect()
    }
}

fn state(event_type: &str, state_key: &str, content: &Value) -> Result<NewEvent, Fault> {
    Ok(NewEvent {
        event_type: event_type.to_owned(),
        state_key: Some(state_key.to_owned()),
        content: encode(content)?,
        redacts: None,
    })
}

fn encode(content: &Value) -> Result<bytes::Bytes, Fault> {
    serde_json::to_vec(content).map(Into::into).map_err(|error| Fault::internal(error.to_string()))
}
