//! Replacing a room by one of another version. <https://spec.matrix.org/v1.19/client-server-api/#room-upgrades>

use std::collections::BTreeSet;

use cofactor_history::Members;
use cofactor_http::{ApiError, Caller, LimitClass, Reply, Routes, Session};
use cofactor_room::{RoomVersion, room_version};
use cofactor_rooms::{CreateRoomOptions, Preset};
use cofactor_types::ErrorClass;
use cofactor_wire::room::{NewEvent, RoomCommand, RoomReply};
use http::StatusCode;
use ruma::{OwnedUserId, RoomId, UserId, api::client::room::upgrade_room};
use serde_json::{Map, Value, json};

use crate::{Api, service::unexpected};

/// State that goes along; power levels go their own way.
const TRANSFERRED: [&str; 8] = [
    "m.room.server_acl",
    "m.room.encryption",
    "m.room.name",
    "m.room.avatar",
    "m.room.topic",
    "m.room.guest_access",
    "m.room.history_visibility",
    "m.room.join_rules",
];

/// The creator's level while it sets the new room up.
const CREATOR_LEVEL: i64 = 100;

pub(crate) fn mount(routes: &mut Routes<Api>) {
    routes.mount::<upgrade_room::v3::Request, _, _>(upgrade);
}

/// The state of the old room that matters here.
struct Old {
    create: Map<String, Value>,
    power_levels: Map<String, Value>,
    canonical_alias: Option<Map<String, Value>>,
    transferred: Vec<(String, String, Map<String, Value>)>,
}

/// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3roomsroomidupgrade>
async fn upgrade(api: Api, caller: Caller<Session>, request: upgrade_room::v3::Request) -> Result<Reply, ApiError> {
    let (user_id, room_id) = (&caller.session.user_id, &request.room_id);
    api.limit(LimitClass::CreateRoom, user_id).await?;
    let version = room_version(request.new_version.as_str()).ok_or_else(|| {
        ApiError::new(StatusCode::BAD_REQUEST, "M_UNSUPPORTED_ROOM_VERSION", "this room version is not supported")
    })?;
    let may = RoomCommand::MaySet { user_id: user_id.clone(), event_type: "m.room.tombstone".to_owned() };
    api.room(room_id, may).await?;
    let old = api.old_room(room_id).await?;
    let public = api.rooms.is_public(room_id).await?;
    let levels = new_levels(&old, version, user_id);
    let last = api.history.last_at(room_id, cofactor_types::Position::MAX).await?;
    let mut creation_content = Map::new();
    let mut predecessor = json!({ "room_id": room_id });
    if let Some(last) = last {
        predecessor["event_id"] = last.event.event_id.as_str().into();
    }
    creation_content.insert("predecessor".to_owned(), predecessor);
    for name in ["type", "m.federate"] {
        if let Some(value) = old.create.get(name) {
            creation_content.insert(name.to_owned(), value.clone());
        }
    }
    if version.rules().authorization.additional_room_creators && !request.additional_creators.is_empty() {
        creation_content.insert("additional_creators".to_owned(), json!(request.additional_creators));
    }
    let options = CreateRoomOptions {
        creator: user_id.clone(),
        creator_profile: api.users.member_profile(user_id).await?,
        version,
        preset: Preset::PrivateChat,
        creation_content,
        power_level_content_override: levels.during,
        initial_state: old.transferred.clone(),
        name: None,
        topic: None,
        alias: None,
        invite: Vec::new(),
        is_direct: false,
        public,
    };
    let new_room = api.rooms.create(&options).await?;
    api.set(
        room_id,
        user_id,
        "m.room.tombstone",
        &json!({
            "body": "This room has been replaced",
            "replacement_room": new_room,
        }),
    )
    .await?;
    api.move_names(room_id, &new_room, user_id, old.canonical_alias.as_ref(), public).await?;
    if let Some(after) = levels.after {
        api.set(&new_room, user_id, "m.room.power_levels", &Value::Object(after)).await?;
    }
    api.quieten(room_id, user_id, &old.power_levels).await?;
    Reply::value(&json!({ "replacement_room": new_room }))
}

/// The power levels of a new room: while it is set up, and after that if they differ.
struct Levels {
    during: Map<String, Value>,
    after: Option<Map<String, Value>>,
}

fn new_levels(old: &Old, version: &RoomVersion, creator: &UserId) -> Levels {
    let mut during = old.power_levels.clone();
    let mut users = match during.remove("users") {
        Some(Value::Object(users)) => users,
        _ => Map::new(),
    };
    let before = users.get(creator.as_str()).and_then(Value::as_i64);
    if version.rules().authorization.explicitly_privilege_room_creators {
        // Creators stand above every level there and must not be named.
        users.remove(creator.as_str());
        during.insert("users".to_owned(), users.into());
        return Levels { during, after: None };
    }
    let level = before.unwrap_or(CREATOR_LEVEL).max(CREATOR_LEVEL);
    users.insert(creator.to_string(), level.into());
    during.insert("users".to_owned(), users.into());
    let mut after = before.filter(|before| *before < level).map(|_| during.clone());
    if let (Some(after), Some(before)) = (&mut after, before) {
        after["users"][creator.as_str()] = before.into();
    }
    Levels { during, after }
}

impl Api {
    async fn old_room(&self, room_id: &RoomId) -> Result<Old, ApiError> {
        let mut old =
            Old { create: Map::new(), power_levels: Map::new(), canonical_alias: None, transferred: Vec::new() };
        for placed in self.history.current_state(room_id, &Members::Only(BTreeSet::new())).await? {
            let event: Value = serde_json::from_slice(&placed.event.json).map_err(|_| unexpected())?;
            let Value::Object(content) = event["content"].clone() else { continue };
            let state_key = placed.event.state_key.clone().unwrap_or_default();
            match (placed.event.event_type.as_str(), state_key.as_str()) {
                ("m.room.create", "") => old.create = content,
                ("m.room.power_levels", "") => old.power_levels = content,
                ("m.room.canonical_alias", "") => old.canonical_alias = Some(content),
                (event_type, "") if TRANSFERRED.contains(&event_type) => {
                    old.transferred.push((event_type.to_owned(), state_key, content));
                }
                _ => {}
            }
        }
        Ok(old)
    }

    async fn set(&self, room_id: &RoomId, sender: &UserId, event_type: &str, content: &Value) -> Result<(), ApiError> {
        let event = NewEvent {
            event_type: event_type.to_owned(),
            state_key: Some(String::new()),
            content: content.to_string().into(),
            redacts: None,
        };
        let sender: OwnedUserId = sender.to_owned();
        match self.room(room_id, RoomCommand::Send { sender, transaction: None, event }).await? {
            RoomReply::Sent { .. } => Ok(()),
            _ => Err(unexpected()),
        }
    }

    /// Aliases and the place in the directory go to the new room.
    async fn move_names(
        &self,
        old: &RoomId,
        new: &RoomId,
        user_id: &UserId,
        canonical_alias: Option<&Map<String, Value>>,
        public: bool,
    ) -> Result<(), ApiError> {
        for alias in self.rooms.aliases_of(old).await? {
            match self.rooms.delete_alias(&alias, user_id).await {
                Ok(_) => self.rooms.set_alias(&alias, new, user_id).await?,
                // Some aliases are not the user's to move.
                Err(fault) if matches!(fault.class, ErrorClass::Forbidden | ErrorClass::NotFound) => {}
                Err(fault) => return Err(fault.into()),
            }
        }
        if let Some(content) = canonical_alias {
            self.set(new, user_id, "m.room.canonical_alias", &Value::Object(content.clone())).await?;
        }
        if public {
            let command = RoomCommand::SetDirectory { user_id: user_id.to_owned(), public: false };
            if_allowed(self.room(old, command).await.map(drop))?;
        }
        Ok(())
    }

    /// Nobody talks in the old room any more, if the user may say so.
    async fn quieten(&self, room_id: &RoomId, user_id: &UserId, levels: &Map<String, Value>) -> Result<(), ApiError> {
        let mut levels = levels.clone();
        let level = |name: &str| levels.get(name).and_then(Value::as_i64).unwrap_or_default();
        let needed = (level("users_default") + 1).max(50);
        let (events_default, invite) = (level("events_default").max(needed), level("invite").max(needed));
        levels.insert("events_default".to_owned(), events_default.into());
        levels.insert("invite".to_owned(), invite.into());
        if_allowed(self.set(room_id, user_id, "m.room.power_levels", &Value::Object(levels)).await)
    }
}

/// What would be good to do, but is not the user's to do, is left.
fn if_allowed(outcome: Result<(), ApiError>) -> Result<(), ApiError> {
    match outcome {
        Err(error) if error.status == StatusCode::FORBIDDEN => Ok(()),
        outcome => outcome,
    }
}
