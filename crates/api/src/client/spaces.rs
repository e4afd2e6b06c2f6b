//! Rooms as those see them who are not in them: summaries, and the rooms below a space.
//! <https://spec.matrix.org/v1.19/client-server-api/#spaces>

use std::collections::BTreeSet;

use cofactor_http::{ApiError, Caller, LimitClass, Reply, Routes, Session};
use cofactor_wire::room::PublicRoom;
use ruma::{
    OwnedRoomId, RoomId, UserId,
    api::client::{room::get_summary, space::get_hierarchy},
    events::room::member::MembershipState,
};
use serde_json::{Value, json};

use crate::{Api, client::directory::card};

/// Rooms in one page, unless asked otherwise, and at most.
const LIMIT_DEFAULT: usize = 50;

const LIMIT_MAX: usize = 100;

/// Rooms below one space that are looked at, and children of each.
const ROOMS_MAX: usize = 1_000;

const DEPTH_MAX: u64 = 50;

pub(crate) fn mount(routes: &mut Routes<Api>) {
    routes.mount::<get_hierarchy::v1::Request, _, _>(hierarchy);
    routes.mount::<get_summary::v1::Request, _, _>(summary);
}

/// A room as it shows itself.
struct Preview {
    room: PublicRoom,
    version: Option<String>,
    encryption: Option<String>,
    allowed: Vec<OwnedRoomId>,
    membership: Option<MembershipState>,
}

impl Api {
    /// How a room shows itself to somebody, who may not be in it; `None`: not at all.
    async fn preview(&self, room_id: &RoomId, user_id: Option<&UserId>) -> Result<Option<Preview>, ApiError> {
        let create = self.state_content(room_id, "m.room.create").await?;
        if create.is_null() {
            return Ok(None);
        }
        let join_rules = self.state_content(room_id, "m.room.join_rules").await?;
        let history = self.state_content(room_id, "m.room.history_visibility").await?;
        let guests = self.state_content(room_id, "m.room.guest_access").await?;
        let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(ToOwned::to_owned);
        let room = PublicRoom {
            name: text(&self.state_content(room_id, "m.room.name").await?["name"]),
            topic: text(&self.state_content(room_id, "m.room.topic").await?["topic"]),
            canonical_alias: text(&self.state_content(room_id, "m.room.canonical_alias").await?["alias"]),
            avatar_url: text(&self.state_content(room_id, "m.room.avatar").await?["url"]),
            join_rule: Some(text(&join_rules["join_rule"]).unwrap_or_else(|| "invite".to_owned())),
            room_type: text(&create["type"]),
            world_readable: history["history_visibility"] == "world_readable",
            guest_can_join: guests["guest_access"] == "can_join",
            joined: self.history.summary(room_id).await?.joined,
        };
        let allow = join_rules["allow"].as_array().into_iter().flatten();
        let allowed = allow.filter_map(|rule| RoomId::parse(rule["room_id"].as_str()?).ok()).collect();
        let membership = match user_id {
            Some(user_id) => self.users.room(user_id, room_id).await?.map(|entry| entry.membership),
            None => None,
        };
        let version = Some(text(&create["room_version"]).unwrap_or_else(|| "1".to_owned()));
        let encryption = text(&self.state_content(room_id, "m.room.encryption").await?["algorithm"]);
        let preview = Preview { room, version, encryption, allowed, membership };
        Ok(self.may_preview(&preview, user_id).await?.then_some(preview))
    }

    /// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1room_summaryroomidoralias>
    async fn may_preview(&self, preview: &Preview, user_id: Option<&UserId>) -> Result<bool, ApiError> {
        if matches!(preview.membership, Some(MembershipState::Ban)) && !preview.room.world_readable {
            return Ok(false);
        }
        let inside = matches!(preview.membership, Some(MembershipState::Join | MembershipState::Invite));
        let join_rule = preview.room.join_rule.as_deref().unwrap_or_default();
        if inside || preview.room.world_readable || matches!(join_rule, "public" | "knock" | "knock_restricted") {
            return Ok(true);
        }
        if let (Some(user_id), "restricted") = (user_id, join_rule) {
            for allowed in preview.allowed.iter().take(LIMIT_MAX) {
                let entry = self.users.room(user_id, allowed).await?;
                if entry.is_some_and(|entry| entry.membership == MembershipState::Join) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// The content of a state event; null if there is none.
    async fn state_content(&self, room_id: &RoomId, event_type: &str) -> Result<Value, ApiError> {
        let found = self.history.current(room_id, event_type, "").await?;
        let event: Option<Value> = found.and_then(|found| serde_json::from_slice(&found.event.json).ok());
        Ok(event.map(|mut event| event["content"].take()).unwrap_or_default())
    }

    /// The children of a space: stripped state, in the order in which they are shown.
    /// <https://spec.matrix.org/v1.19/client-server-api/#ordering-of-children-within-a-space>
    async fn children(&self, room_id: &RoomId, suggested_only: bool) -> Result<Vec<(OwnedRoomId, Value)>, ApiError> {
        let mut children = Vec::new();
        for placed in self.history.state_of_type(room_id, "m.space.child", ROOMS_MAX).await? {
            let Ok(event) = serde_json::from_slice::<Value>(&placed.event.json) else { continue };
            let content = &event["content"];
            let is_child = content["via"].as_array().is_some_and(|via| !via.is_empty());
            let state_key = placed.event.state_key.as_deref().unwrap_or_default();
            let (true, Ok(child)) = (is_child, RoomId::parse(state_key)) else { continue };
            if suggested_only && content["suggested"] != true {
                continue;
            }
            let order = content["order"].as_str().filter(|order| is_order(order)).map(ToOwned::to_owned);
            let stripped = json!({
                "type": "m.space.child",
                "state_key": child,
                "sender": placed.event.sender,
                "origin_server_ts": placed.event.ts,
                "content": content,
            });
            children.push(((order.is_none(), order, placed.event.ts, child.clone()), stripped));
        }
        children.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(children.into_iter().map(|((_, _, _, child), stripped)| (child, stripped)).collect())
    }
}

fn is_order(order: &str) -> bool {
    order.len() <= 50 && order.bytes().all(|byte| (0x20..=0x7e).contains(&byte))
}

/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1roomsroomidhierarchy>
async fn hierarchy(api: Api, caller: Caller<Session>, request: get_hierarchy::v1::Request) -> Result<Reply, ApiError> {
    let user_id = &caller.session.user_id;
    api.limit(LimitClass::Other, user_id).await?;
    let limit = request.limit.map_or(LIMIT_DEFAULT, |limit| usize::try_from(u64::from(limit)).unwrap_or(LIMIT_MAX));
    let limit = limit.clamp(1, LIMIT_MAX);
    let depth_max = request.max_depth.map_or(DEPTH_MAX, u64::from).min(DEPTH_MAX);
    // The walk is the same each time, so a place in it is a number.
    let from = match request.from.as_deref().filter(|from| !from.is_empty()) {
        Some(from) => from.strip_prefix('h').and_then(|number| number.parse::<usize>().ok()),
        None => Some(0),
    };
    let from = from.ok_or_else(|| ApiError::invalid_param("the token was not made by this server"))?;
    let mut seen = BTreeSet::from([request.room_id.clone()]);
    let mut waiting = vec![(request.room_id.clone(), 0)];
    let mut rooms = Vec::new();
    let mut number = 0;
    while let Some((room_id, depth)) = waiting.pop() {
        let Some(preview) = api.preview(&room_id, Some(user_id)).await? else {
            if depth == 0 {
                return Err(ApiError::forbidden("you may not see this room, or there is no such room"));
            }
            continue;
        };
        if rooms.len() == limit {
            return Reply::value(&json!({ "rooms": rooms, "next_batch": format!("h{number}") }));
        }
        let is_space = preview.room.room_type.as_deref() == Some("m.space");
        let children = if is_space { api.children(&room_id, request.suggested_only).await? } else { Vec::new() };
        if number >= from {
            let mut entry = preview_json(&room_id, &preview);
            entry["children_state"] = children.iter().map(|(_, stripped)| stripped.clone()).collect();
            rooms.push(entry);
        }
        number += 1;
        if depth < depth_max {
            for (child, _) in children.into_iter().rev() {
                if seen.len() < ROOMS_MAX && seen.insert(child.clone()) {
                    waiting.push((child, depth + 1));
                }
            }
        }
    }
    Reply::value(&json!({ "rooms": rooms }))
}

async fn summary(
    api: Api,
    caller: Caller<Option<Session>>,
    request: get_summary::v1::Request,
) -> Result<Reply, ApiError> {
    let user_id = caller.session.as_ref().map(|session| &*session.user_id);
    let room_id = api.resolve(&request.room_id_or_alias).await?;
    let preview = api.preview(&room_id, user_id).await?;
    let preview = preview.ok_or_else(|| ApiError::not_found("there is no such room, or you may not see it"))?;
    let mut body = preview_json(&room_id, &preview);
    if user_id.is_some() {
        let membership = preview.membership.as_ref().unwrap_or(&MembershipState::Leave);
        body["membership"] = membership.as_str().into();
    }
    Reply::value(&body)
}

fn preview_json(room_id: &RoomId, preview: &Preview) -> Value {
    let mut json = card(room_id, &preview.room);
    if let Some(version) = &preview.version {
        json["room_version"] = version.as_str().into();
    }
    if let Some(encryption) = &preview.encryption {
        json["encryption"] = encryption.as_str().into();
    }
    if !preview.allowed.is_empty() {
        json["allowed_room_ids"] = json!(preview.allowed);
    }
    json
}
