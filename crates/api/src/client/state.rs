//! Room state and members. <https://spec.matrix.org/v1.19/client-server-api/#getting-events-for-a-room>

use bytes::Bytes;
use cofactor_history::{Bundles, Members, PageToken, Placed, Reader, Viewpoint, render};
use cofactor_http::{ApiError, Caller, LimitClass, Reply, Routes, Session};
use cofactor_types::Position;
use cofactor_wire::room::{MembershipAction, NewEvent, RoomCommand, RoomReply};
use ruma::{
    RoomId, UserId,
    api::client::{
        membership::{get_member_events, joined_members},
        state::{
            get_state_event_for_key::{self, v3::StateEventFormat},
            get_state_events, send_state_event,
        },
    },
    events::room::member::MembershipState,
};
use serde_json::{Map, Value, json, value::RawValue};

use crate::{Api, client::chunk::Chunk, service::unexpected};

pub(crate) fn mount(routes: &mut Routes<Api>) {
    routes.mount::<get_state_events::v3::Request, _, _>(all);
    routes.mount::<get_state_event_for_key::v3::Request, _, _>(one);
    routes.mount::<send_state_event::v3::Request, _, _>(put);
    for path in [
        "/_matrix/client/v3/rooms/{room_id}/state/{event_type}",
        "/_matrix/client/v3/rooms/{room_id}/state/{event_type}/",
        "/_matrix/client/r0/rooms/{room_id}/state/{event_type}",
        "/_matrix/client/r0/rooms/{room_id}/state/{event_type}/",
    ] {
        // An empty state key may be left out of the path.
        routes.mount_at::<get_state_event_for_key::v3::Request, _, _>(path, &[""], one);
        routes.mount_at::<send_state_event::v3::Request, _, _>(path, &[""], put);
    }
    routes.mount::<get_member_events::v3::Request, _, _>(members);
    routes.mount::<joined_members::v3::Request, _, _>(joined);
}

impl Api {
    /// How the caller sees a room, and up to where it may read the state.
    pub(crate) async fn view(&self, session: &Session, room_id: &RoomId) -> Result<(Viewpoint, Position), ApiError> {
        let hidden = || ApiError::forbidden("you are not in the room, or there is no such room");
        let entry = self.users.room(&session.user_id, room_id).await?;
        if entry.is_some_and(|entry| entry.forgotten) {
            return Err(hidden());
        }
        let view = self.history.viewpoint(room_id, &session.user_id).await?;
        let up_to = view.state_up_to().ok_or_else(hidden)?;
        Ok((view, up_to))
    }

    fn reader<'a>(&self, session: &'a Session, bundles: Option<&'a Bundles>) -> Reader<'a> {
        let (user_id, device_id) = (&session.user_id, &session.device_id);
        Reader { user_id, device_id, now_ms: self.clock.now_ms(), fields: None, bundles }
    }

    /// Events as a JSON array.
    pub(crate) fn events(&self, session: &Session, room_id: &RoomId, events: &[Placed]) -> Vec<u8> {
        array(room_id, events, &self.reader(session, None))
    }

    /// Events as a JSON array, with what their children say about them.
    pub(crate) async fn bundled(
        &self,
        session: &Session,
        room_id: &RoomId,
        view: &Viewpoint,
        events: &[Placed],
    ) -> Result<Vec<u8>, ApiError> {
        let bundles = self.history.bundles(room_id, &session.user_id, Some(view), events).await?;
        Ok(array(room_id, events, &self.reader(session, Some(&bundles))))
    }

    /// One event as JSON.
    pub(crate) fn event(&self, session: &Session, room_id: &RoomId, placed: &Placed) -> Box<RawValue> {
        let mut out = Vec::new();
        render(&mut out, placed, Some(room_id), &self.reader(session, None));
        raw(out)
    }

    /// One event as JSON, with what its children say about it.
    pub(crate) async fn bundled_event(
        &self,
        session: &Session,
        room_id: &RoomId,
        view: &Viewpoint,
        placed: &Placed,
    ) -> Result<Box<RawValue>, ApiError> {
        let one = std::slice::from_ref(placed);
        let bundles = self.history.bundles(room_id, &session.user_id, Some(view), one).await?;
        let mut out = Vec::new();
        render(&mut out, placed, Some(room_id), &self.reader(session, Some(&bundles)));
        Ok(raw(out))
    }
}

fn array(room_id: &RoomId, events: &[Placed], reader: &Reader) -> Vec<u8> {
    let rendered = |placed: &Placed| placed.event.rendered_bytes() + room_id.as_str().len();
    let mut out = Vec::with_capacity(events.iter().map(rendered).sum());
    out.push(b'[');
    for (index, placed) in events.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        render(&mut out, placed, Some(room_id), reader);
    }
    out.push(b']');
    out
}

/// JSON that was just written.
pub(crate) fn raw(json: Vec<u8>) -> Box<RawValue> {
    let text = String::from_utf8(json).ok();
    text.and_then(|text| RawValue::from_string(text).ok()).unwrap_or_default()
}

async fn all(api: Api, caller: Caller<Session>, request: get_state_events::v3::Request) -> Result<Reply, ApiError> {
    let (_, up_to) = api.view(&caller.session, &request.room_id).await?;
    let state = api.history.state_at(&request.room_id, up_to, &Members::All).await?;
    Ok(Reply::json(api.events(&caller.session, &request.room_id, &state).into()))
}

async fn one(
    api: Api,
    caller: Caller<Session>,
    request: get_state_event_for_key::v3::Request,
) -> Result<Reply, ApiError> {
    let (_, up_to) = api.view(&caller.session, &request.room_id).await?;
    let event_type = request.event_type.to_string();
    let found = if up_to == Position::MAX {
        api.history.current(&request.room_id, &event_type, &request.state_key).await?
    } else {
        let state = api.history.state_at(&request.room_id, up_to, &Members::All).await?;
        state.into_iter().find(|placed| {
            placed.event.event_type == event_type && placed.event.state_key.as_deref() == Some(&request.state_key)
        })
    };
    let found = found.ok_or_else(|| ApiError::not_found("the room has no such state"))?;
    if request.format == StateEventFormat::Event {
        return Reply::value(&api.event(&caller.session, &request.room_id, &found));
    }
    Reply::value(&content(&found)?)
}

fn content(placed: &Placed) -> Result<Box<RawValue>, ApiError> {
    #[derive(serde::Deserialize)]
    struct Event {
        content: Box<RawValue>,
    }
    let event: Result<Event, _> = serde_json::from_slice(&placed.event.json);
    event.map(|event| event.content).map_err(|_| unexpected())
}

/// <https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3roomsroomidstateeventtypestatekey>
async fn put(api: Api, caller: Caller<Session>, request: send_state_event::v3::Request) -> Result<Reply, ApiError> {
    api.limit(LimitClass::Send, &caller.session.user_id).await?;
    let event_type = request.event_type.to_string();
    if event_type == "m.room.member" {
        return put_member(&api, &caller.session, &request).await;
    }
    if event_type == "m.room.canonical_alias" {
        check_aliases(&api, &request).await?;
    }
    let event = NewEvent {
        event_type,
        state_key: Some(request.state_key),
        content: Bytes::copy_from_slice(request.body.json().get().as_bytes()),
        redacts: None,
    };
    let command = RoomCommand::Send { sender: caller.session.user_id, transaction: None, event };
    sent(api.room(&request.room_id, command).await?)
}

/// The answer to a request that sends an event.
pub(crate) fn sent(reply: RoomReply) -> Result<Reply, ApiError> {
    match reply {
        RoomReply::Sent { event_id, .. } => Reply::value(&json!({ "event_id": event_id })),
        _ => Err(unexpected()),
    }
}

/// A member event sent as state is the membership endpoint that it amounts to.
async fn put_member(api: &Api, session: &Session, request: &send_state_event::v3::Request) -> Result<Reply, ApiError> {
    let mut content: Map<String, Value> = serde_json::from_str(request.body.json().get())
        .map_err(|_| ApiError::bad_json("the content of an event is an object"))?;
    let target = UserId::parse(&request.state_key).map_err(|_| ApiError::invalid_param("not a user id"))?;
    let membership = content.remove("membership");
    let membership = membership.as_ref().and_then(Value::as_str).map(MembershipState::from);
    let membership = membership.ok_or_else(|| ApiError::bad_json("a member event has a membership"))?;
    let before = api.history.viewpoint(&request.room_id, &target).await?.membership();
    let own = session.user_id == target;
    let action = match membership {
        MembershipState::Join if own && before == cofactor_room::Membership::Join => {
            let content = serde_json::to_vec(&content).unwrap_or_default().into();
            let command = RoomCommand::Profile { user_id: target.clone(), content };
            api.room(&request.room_id, command).await?;
            let member = api.history.current(&request.room_id, "m.room.member", target.as_str()).await?;
            let member = member.ok_or_else(unexpected)?;
            return Reply::value(&json!({ "event_id": member.event.event_id }));
        }
        MembershipState::Join => MembershipAction::Join,
        MembershipState::Invite => MembershipAction::Invite,
        MembershipState::Ban => MembershipAction::Ban,
        MembershipState::Knock => MembershipAction::Knock,
        MembershipState::Leave if own => MembershipAction::Leave,
        MembershipState::Leave if before == cofactor_room::Membership::Ban => MembershipAction::Unban,
        MembershipState::Leave => MembershipAction::Kick,
        _ => return Err(ApiError::bad_json("unknown membership")),
    };
    let content = serde_json::to_vec(&content).unwrap_or_default().into();
    let sender = session.user_id.clone();
    let command = RoomCommand::Membership { sender, target, action, reason: None, content };
    sent(api.room(&request.room_id, command).await?)
}

/// Aliases that a room calls itself by must point at it.
/// <https://spec.matrix.org/v1.19/client-server-api/#mroomcanonical_alias>
async fn check_aliases(api: &Api, request: &send_state_event::v3::Request) -> Result<(), ApiError> {
    #[derive(serde::Deserialize)]
    struct Canonical {
        #[serde(default)]
        alias: Option<String>,
        #[serde(default)]
        alt_aliases: Vec<String>,
    }
    let bad = |message: String| ApiError::new(http::StatusCode::BAD_REQUEST, "M_BAD_ALIAS", message);
    let canonical: Canonical =
        serde_json::from_str(request.body.json().get()).map_err(|error| ApiError::invalid_param(error.to_string()))?;
    for alias in canonical.alias.into_iter().filter(|alias| !alias.is_empty()).chain(canonical.alt_aliases) {
        let parsed = ruma::RoomAliasId::parse(alias.as_str());
        let parsed = parsed.map_err(|_| ApiError::invalid_param(format!("{alias} is not an alias")))?;
        let found = api.rooms.resolve_alias(&parsed).await?;
        if found.is_none_or(|row| row.room_id != request.room_id) {
            return Err(bad(format!("{alias} does not stand for this room")));
        }
    }
    Ok(())
}

/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidmembers>
async fn members(
    api: Api,
    caller: Caller<Session>,
    request: get_member_events::v3::Request,
) -> Result<Reply, ApiError> {
    let (_, up_to) = api.view(&caller.session, &request.room_id).await?;
    let at = match &request.at {
        Some(token) => PageToken::read(token, &request.room_id)?.0.min(up_to),
        None => up_to,
    };
    let mut members = if at == Position::MAX {
        api.history.current_members(&request.room_id).await?
    } else {
        api.history.state_at(&request.room_id, at, &Members::All).await?
    };
    members.retain(|placed| {
        if placed.event.event_type != "m.room.member" {
            return false;
        }
        let membership = membership(placed);
        request.membership.as_ref().is_none_or(|wanted| *wanted == membership)
            && request.not_membership.as_ref() != Some(&membership)
    });
    Chunk { chunk: api.events(&caller.session, &request.room_id, &members), ..Chunk::default() }.reply()
}

fn membership(placed: &Placed) -> MembershipState {
    let content = content(placed).ok().and_then(|content| serde_json::from_str::<Value>(content.get()).ok());
    content.and_then(|content| content["membership"].as_str().map(Into::into)).unwrap_or(MembershipState::Leave)
}

/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidjoined_members>
async fn joined(api: Api, caller: Caller<Session>, request: joined_members::v3::Request) -> Result<Reply, ApiError> {
    let (view, _) = api.view(&caller.session, &request.room_id).await?;
    if !view.is_joined() {
        return Err(ApiError::forbidden("you are not joined to the room"));
    }
    let mut joined = Map::new();
    for placed in api.history.current_members(&request.room_id).await? {
        if membership(&placed) != MembershipState::Join {
            continue;
        }
        let member: Value = serde_json::from_str(content(&placed)?.get()).unwrap_or_default();
        let shown = json!({ "display_name": member["displayname"], "avatar_url": member["avatar_url"] });
        joined.insert(placed.event.state_key.clone().unwrap_or_default(), shown);
    }
    Reply::value(&json!({ "joined": joined }))
}
