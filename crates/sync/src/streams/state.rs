//! The state that goes with a timeline.

use std::collections::BTreeSet;

use cofactor_history::{Bundles, EventFilter, Members, Placed, Reader, StateEvent, render};
use cofactor_types::Fault;
use ruma::api::client::filter::LazyLoadOptions;

use crate::{
    answer::{Look, RoomLook},
    json::Json,
    service::Inner,
    streams::joined::Timeline,
};

/// Which member events go with a timeline: with lazy loading those of its senders, and one's own.
/// <https://spec.matrix.org/v1.19/client-server-api/#lazy-loading-room-members>
///
/// What a client has got before is not remembered, so a sender's member event comes with every timeline it is in; the
/// specification allows that.
pub(crate) fn members(look: &Look<'_>, room: &RoomLook, timeline: &[Placed]) -> Members {
    if matches!(look.request.filter.room.state.lazy_load_options, LazyLoadOptions::Disabled) {
        return Members::All;
    }
    let mut wanted: BTreeSet<String> = timeline.iter().map(|placed| placed.event.sender.to_string()).collect();
    if room.is_new {
        wanted.insert(look.slot.user_id.to_string());
    }
    Members::Only(wanted)
}

/// The state events for a room: whole or what changed, before the timeline's start or after its end.
pub(crate) async fn read(
    inner: &Inner,
    look: &Look<'_>,
    room: &RoomLook,
    timeline: &Timeline,
) -> Result<Vec<StateEvent>, Fault> {
    let after_timeline = look.request.state_after.is_some();
    let whole = room.is_new || look.request.full_state;
    if whole && !after_timeline && timeline.begins_the_room() {
        return Ok(Vec::new());
    }
    // The state before the first event of the timeline, or after the last.
    let at = if after_timeline { room.up_to } else { timeline.start.previous() };
    let timeline = &timeline.events;
    let members = members(look, room, timeline);
    let room_id = &room.entry.room_id;
    let mut state = match whole {
        true => inner.history.state_at(room_id, at, &members).await?,
        false => inner.history.state_delta(room_id, room.after, at, &members).await?,
    };
    if let (false, Members::Only(wanted)) = (whole, &members) {
        // Senders whose member event did not change are named too.
        for user_id in wanted {
            let known = |event: &StateEvent| event.event.state_key.as_deref() == Some(user_id);
            let in_timeline = timeline.iter().any(|event| event.event.event_type == "m.room.member" && known(event));
            if !in_timeline && !state.iter().any(|event| event.event.event_type == "m.room.member" && known(event)) {
                state.extend(inner.history.current(room_id, "m.room.member", user_id).await?);
            }
        }
    }
    let filter = EventFilter::of(&look.request.filter.room.state, room_id);
    state.retain(|event| filter.takes(&event.event));
    Ok(state)
}

/// The events as a JSON array, with what goes with them.
pub(crate) fn array(events: &[StateEvent], look: &Look<'_>, now_ms: u64, bundles: Option<&Bundles>) -> Json {
    let (user_id, device_id) = (&look.slot.user_id, &look.request.device_id);
    let reader = Reader { user_id, device_id, now_ms, fields: look.fields.as_ref(), bundles };
    let mut array = Json::array();
    array.reserve(events.iter().map(|placed| placed.event.rendered_bytes()).sum());
    for placed in events {
        array.element_with(|out| render(out, placed, None, &reader));
    }
    array
}
