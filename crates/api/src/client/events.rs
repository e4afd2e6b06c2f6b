//! Sending and redacting events, and reading one.
//! <https://spec.matrix.org/v1.19/client-server-api/#sending-events-to-a-room>

use bytes::Bytes;
use cofactor_history::{EventFilter, Members, PageRequest, PageToken};
use cofactor_http::{ApiError, Caller, LimitClass, Reply, Routes, Session};
use cofactor_store::Direction;
use cofactor_wire::room::{NewEvent, RoomCommand, Transaction};
use ruma::api::client::{
    context::get_context, filter::LazyLoadOptions, message::send_message_event, redact::redact_event,
    room::get_room_event,
};
use serde_json::json;

use crate::{
    Api,
    client::{
        chunk::Surroundings,
        state::{raw, sent},
    },
};

/// Events around one at most.
const CONTEXT_MAX: usize = 100;

pub(crate) fn mount(routes: &mut Routes<Api>) {
    routes.mount::<send_message_event::v3::Request, _, _>(send);
    routes.mount::<redact_event::v3::Request, _, _>(redact);
    routes.mount::<get_room_event::v3::Request, _, _>(event);
    routes.mount::<get_context::v3::Request, _, _>(context);
}

async fn send(api: Api, caller: Caller<Session>, request: send_message_event::v3::Request) -> Result<Reply, ApiError> {
    let Session { user_id, device_id } = caller.session;
    api.limit(LimitClass::Send, &user_id).await?;
    let content = request.body.json().get();
    let event_type = request.event_type.to_string();
    // A redaction sent as an event names its target in the content, as room versions from 11 on do.
    let redacts = match event_type.as_str() {
        "m.room.redaction" => {
            let content: serde_json::Value = serde_json::from_str(content).unwrap_or_default();
            let target = content["redacts"].as_str().and_then(|id| ruma::EventId::parse(id).ok());
            Some(target.ok_or_else(|| ApiError::missing_param("a redaction names the event that it redacts"))?)
        }
        _ => None,
    };
    let event = NewEvent { event_type, state_key: None, content: Bytes::copy_from_slice(content.as_bytes()), redacts };
    let transaction = Some(Transaction { device_id, txn_id: request.txn_id });
    sent(api.room(&request.room_id, RoomCommand::Send { sender: user_id, transaction, event }).await?)
}

async fn redact(api: Api, caller: Caller<Session>, request: redact_event::v3::Request) -> Result<Reply, ApiError> {
    let Session { user_id, device_id } = caller.session;
    api.limit(LimitClass::Send, &user_id).await?;
    let content = match &request.reason {
        Some(reason) => json!({ "reason": reason }).to_string(),
        None => "{}".to_owned(),
    };
    let event = NewEvent {
        event_type: "m.room.redaction".to_owned(),
        state_key: None,
        content: content.into(),
        redacts: Some(request.event_id),
    };
    let transaction = Some(Transaction { device_id, txn_id: request.txn_id });
    sent(api.room(&request.room_id, RoomCommand::Send { sender: user_id, transaction, event }).await?)
}

/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomideventeventid>
async fn event(api: Api, caller: Caller<Session>, request: get_room_event::v3::Request) -> Result<Reply, ApiError> {
    let missing = || ApiError::not_found("the room has no such event, or you may not see it");
    let entry = api.users.room(&caller.session.user_id, &request.room_id).await?;
    if entry.is_some_and(|entry| entry.forgotten) {
        return Err(missing());
    }
    let view = api.history.viewpoint(&request.room_id, &caller.session.user_id).await?;
    let found = api.history.find(&request.room_id, &request.event_id).await?;
    let found = found.filter(|placed| view.sees(placed.position, &placed.event)).ok_or_else(missing)?;
    Reply::value(&api.bundled_event(&caller.session, &request.room_id, &view, &found).await?)
}

/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidcontexteventid>
async fn context(api: Api, caller: Caller<Session>, request: get_context::v3::Request) -> Result<Reply, ApiError> {
    let missing = || ApiError::not_found("the room has no such event, or you may not see it");
    let (session, room_id) = (&caller.session, &request.room_id);
    let (view, _) = api.view(session, room_id).await?;
    let found = api.history.find(room_id, &request.event_id).await?;
    let found = found.filter(|placed| view.sees(placed.position, &placed.event)).ok_or_else(missing)?;
    let limit = usize::try_from(u64::from(request.limit)).unwrap_or(CONTEXT_MAX).min(CONTEXT_MAX);
    let page = |from, direction, limit: usize| PageRequest {
        from,
        to: None,
        direction,
        limit: limit.max(1),
        filter: EventFilter::of(&request.filter, room_id),
    };
    let mut before =
        api.history.page(room_id, &view, &page(found.position.previous(), Direction::Backward, limit / 2)).await?;
    let mut after =
        api.history.page(room_id, &view, &page(found.position, Direction::Forward, limit - limit / 2)).await?;
    before.events.truncate(limit / 2);
    after.events.truncate(limit - limit / 2);
    let last = after.events.last().unwrap_or(&found).position;
    let first = before.events.last().unwrap_or(&found).position;
    let events = before.events.iter().chain(&after.events).chain([&found]);
    let members = match request.filter.lazy_load_options {
        LazyLoadOptions::Enabled { .. } => Members::Only(events.map(|one| one.event.sender.to_string()).collect()),
        LazyLoadOptions::Disabled => Members::All,
    };
    let filter = EventFilter::of(&request.filter, room_id);
    let mut state = api.history.state_at(room_id, last, &members).await?;
    state.retain(|event| filter.takes(&event.event));
    Reply::value(&Surroundings {
        event: api.bundled_event(session, room_id, &view, &found).await?,
        events_before: raw(api.bundled(session, room_id, &view, &before.events).await?),
        events_after: raw(api.bundled(session, room_id, &view, &after.events).await?),
        start: PageToken(first.previous()).to_string(),
        end: PageToken(last).to_string(),
        state: raw(api.events(session, room_id, &state)),
    })
}
