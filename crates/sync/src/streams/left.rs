//! A room that the user has left, or was banned from: what happened up to that, and nothing after.

use std::{collections::BTreeMap, sync::Arc};

use cofactor_history::PageToken;
use cofactor_store::{Direction, LogKey, RangeRead, record};
use cofactor_types::{EntityId, Fault, Position};
use cofactor_wire::user::{RoomEntry, class};
use ruma::OwnedRoomId;

use crate::{
    answer::{Look, RoomLook},
    json::Json,
    service::Inner,
    streams::{joined, state},
};

/// Changes of the user's memberships that are read at once.
const CHANGES_MAX: usize = 500;

/// The room's part of the answer; `None` if there is nothing to say. Afterwards `room` says up to where it was delivered.
pub(crate) async fn write(inner: &Inner, look: &Look<'_>, room: &mut RoomLook) -> Result<Option<Vec<u8>>, Fault> {
    let is_initial = look.user_after.is_none();
    if is_initial && !look.request.filter.room.include_leave {
        return Ok(None);
    }
    let now_ms = inner.clock.now_ms();
    let end = room.entry.room_position;
    room.up_to = end;
    if !room.entry.was_joined {
        // Somebody who was never inside hears of the end of the invitation, and nothing of the room.
        let mut json = Json::object();
        let own = inner.history.at(&room.entry.room_id, end).await?;
        let mut part = Json::object();
        let events: Vec<_> = own.into_iter().collect();
        part.member("events", &state::array(&events, look, now_ms, None).end_array());
        part.member("limited", b"false");
        part.text("prev_batch", &PageToken(end.previous()).to_string());
        json.member("timeline", &part.end_object());
        json.member("state", &crate::json::wrap_events(Json::array()));
        return Ok(Some(json.end_object()));
    }
    let since = look.request.since.as_ref();
    let after = since.map_or(Position::ZERO, |since| since.lower_bound(&EntityId::room(&room.entry.room_id)));
    let turn = look.turns.get(&room.entry.room_id).copied().unwrap_or(room.entry.since_room);
    let (after, entry) = (after.min(turn.previous()), room.entry.clone());
    let room = RoomLook { after, up_to: end, is_new: is_initial, to_the_end: false, entry };
    let timeline = joined::timeline(inner, look, &room, end).await?;
    let state = state::read(inner, look, &room, &timeline).await?;
    let mut json = Json::object();
    let mut part = Json::object();
    part.member("events", &state::array(&timeline.events, look, now_ms, None).end_array());
    part.member("limited", if timeline.limited { b"true" } else { b"false" });
    part.text("prev_batch", &PageToken(timeline.start.previous()).to_string());
    json.member("timeline", &part.end_object());
    let name = look.request.state_after.as_deref().unwrap_or("state");
    json.member(name, &crate::json::wrap_events(state::array(&state, look, now_ms, None)));
    Ok(Some(json.end_object()))
}

/// Where in each room the user's membership first became another than what was delivered.
pub(crate) type Turns = BTreeMap<OwnedRoomId, Position>;

/// The turns since the token.
///
/// It tells only of the stay that it knew: it may have passed over a later one, which the user's own log told of afterwards,
/// and which has ended since.
pub(crate) async fn turns(inner: &Inner, look: &Look<'_>) -> Result<Turns, Fault> {
    let mut turns = Turns::new();
    let Some(mut after) = look.user_after else { return Ok(turns) };
    let log = LogKey { entity: EntityId::user(&look.slot.user_id), class: class::MEMBERSHIP, sub: Arc::from("") };
    loop {
        let range = RangeRead { after, up_to: look.user_up_to, direction: Direction::Forward, limit: CHANGES_MAX };
        let rows = inner.history.reader().read(&log, range).await?;
        for row in &rows {
            let change: RoomEntry = record::decode(&row.value)?;
            if change.since == change.position {
                turns.entry(change.room_id).or_insert(change.room_position);
            }
        }
        match rows.last() {
            Some(last) if rows.len() == CHANGES_MAX => after = last.position,
            _ => return Ok(turns),
        }
    }
}
