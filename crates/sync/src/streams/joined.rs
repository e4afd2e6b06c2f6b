//! A room that the user is in.

use cofactor_history::{EventFilter, PageToken, Placed, Viewpoint};
use cofactor_store::{Direction, RangeRead};
use cofactor_types::{Fault, Position};
use ruma::{UInt, events::room::member::MembershipState};

use crate::{
    answer::{Look, RoomLook},
    json::Json,
    service::Inner,
    streams::{account_data, ephemeral, state},
    unread::{self, Head, Known},
};

/// Events in a timeline, unless the filter says otherwise.
const LIMIT_DEFAULT: usize = 10;

/// Events in a timeline at most.
const LIMIT_MAX: usize = 200;

/// Events read for a timeline, whatever the filter leaves of them.
const READ_MAX: usize = 1_000;

/// What a room says beside its events, most often, in bytes.
const REST_BYTES: usize = 512;

/// A piece of timeline.
#[derive(Debug, Default)]
pub(crate) struct Timeline {
    pub(crate) events: Vec<Placed>,
    /// There is more between it and what was delivered before.
    pub(crate) limited: bool,
    /// Everything before this is earlier history.
    pub(crate) start: Position,
    /// Where the first of the events that were read stands, shown or not.
    read_from: Option<Position>,
    /// The last change of the user's own membership among what was read.
    own_membership: Option<Position>,
    /// The event by which the user joined, if it was read.
    join: Option<Head>,
    /// The last event that was read, shown or not.
    head: Option<Head>,
    /// Where the create event stands, if it was read: nothing of the room is older.
    create: Option<Position>,
}

impl Timeline {
    /// Whether it begins with the create event, before which there is no state.
    pub(crate) fn begins_the_room(&self) -> bool {
        self.create == Some(self.start)
    }
}

/// The room's part of the answer; `None` if there is nothing to say. Afterwards `room` says up to where it was delivered.
pub(crate) async fn write(inner: &Inner, look: &Look<'_>, room: &mut RoomLook) -> Result<Option<Vec<u8>>, Fault> {
    let now_ms = inner.clock.now_ms();
    let timeline = of_the_stay(inner, look, room).await?;
    let state = state::read(inner, look, room, &timeline).await?;
    let receipts = match room.is_new {
        true => Some(ephemeral::standing(inner, room).await?),
        false => None,
    };
    let standing = receipts.as_ref().map(|(receipts, _)| receipts.as_slice());
    let ephemeral = ephemeral::write(inner, look, room, standing).await?;
    let whole = room.is_new || look.request.full_state;
    let data = match whole || look.with_data.contains(&room.entry.room_id) {
        true => account_data::room(inner, look, &room.entry.room_id, whole).await?,
        false => Json::array(),
    };
    let receipt_moved = !ephemeral.is_empty();
    let quiet = timeline.events.is_empty() && state.is_empty() && ephemeral.is_empty() && data.is_empty();
    if quiet && !whole {
        return Ok(None);
    }

    let (room_id, user_id) = (&room.entry.room_id, &look.slot.user_id);
    let bundles = inner.history.bundles(room_id, user_id, None, &timeline.events).await?;
    let (events, state_events) =
        (state::array(&timeline.events, look, now_ms, Some(&bundles)), state::array(&state, look, now_ms, None));
    let mut json = Json::object_of(events.len() + state_events.len() + REST_BYTES);
    json.open("timeline");
    json.member("events", &events.end_array());
    json.member("limited", if timeline.limited { b"true" } else { b"false" });
    json.text("prev_batch", &PageToken(timeline.start.previous()).to_string());
    json.close();
    json.open(look.request.state_after.as_deref().unwrap_or("state"));
    json.member("events", &state_events.end_array());
    json.close();
    json.events("ephemeral", ephemeral);
    json.events("account_data", data);
    if whole || receipt_moved || !timeline.events.is_empty() {
        let all = receipts.as_ref().filter(|(_, are_all)| *are_all);
        let known =
            Known { head: timeline.head, join: timeline.join, receipts: all.map(|(receipts, _)| receipts.as_slice()) };
        write_unread(inner, look, room, known, &mut json).await?;
    }
    let is_member = |placed: &Placed| placed.event.event_type == "m.room.member";
    if whole || timeline.events.iter().chain(&state).any(is_member) {
        json.member("summary", &summary(inner, look, room).await?);
    }
    Ok(Some(json.end_object()))
}

/// <https://spec.matrix.org/v1.19/client-server-api/#receiving-notifications>
async fn write_unread(
    inner: &Inner,
    look: &Look<'_>,
    room: &RoomLook,
    known: Known<'_>,
    json: &mut Json,
) -> Result<(), Fault> {
    let by_thread = look.request.filter.room.timeline.unread_thread_notifications;
    let (slot, notifications) = (look.slot, &*inner.notifications);
    let (history, entry) = (&inner.history, &room.entry);
    let plain = look.counts_plainly(notifications).await?;
    let unread =
        unread::count(history, (!plain).then_some(notifications), slot, entry, room.up_to, by_thread, known).await?;
    let counts = |counts: unread::Counts| {
        let mut object = Json::object();
        object.number("notification_count", counts.notify);
        object.number("highlight_count", counts.highlight);
        object.end_object()
    };
    json.member("unread_notifications", &counts(if by_thread { unread.main } else { unread.total() }));
    if by_thread && !unread.threads.is_empty() {
        let mut threads = Json::object();
        unread.threads.iter().for_each(|(root, unread)| threads.member(root.as_str(), &counts(*unread)));
        json.member("unread_thread_notifications", &threads.end_object());
    }
    Ok(())
}

/// The timeline up to the end of the user's stay.
///
/// The room says that somebody has left before the user's own list does. What comes after is not for the user, and the
/// leave itself comes with the room as one that was left.
async fn of_the_stay(inner: &Inner, look: &Look<'_>, room: &mut RoomLook) -> Result<Timeline, Fault> {
    let end = if room.to_the_end { Position::MAX } else { room.up_to };
    let mut found = timeline(inner, look, room, end).await?;
    if room.to_the_end {
        room.up_to = room.up_to.max(found.head.map_or(Position::ZERO, |head| head.position));
        if found.events.is_empty() {
            found.start = room.up_to.next();
        }
    }
    let (user_id, entry) = (&look.slot.user_id, &room.entry);
    // A limited timeline may not reach back to the leave.
    let is_covered = !found.limited || found.read_from.is_some_and(|from| from <= entry.room_position);
    if is_covered && found.own_membership.is_none_or(|at| at <= entry.room_position) {
        return Ok(found);
    }
    let parting = inner.history.parting(&entry.room_id, user_id, entry.room_position, room.up_to).await?;
    let Some(parting) = parting else { return Ok(found) };
    room.up_to = parting.previous();
    timeline(inner, look, room, room.up_to).await
}

/// The end of the timeline, as the user may see it.
pub(crate) async fn timeline(
    inner: &Inner,
    look: &Look<'_>,
    room: &RoomLook,
    up_to: Position,
) -> Result<Timeline, Fault> {
    let room_id = &room.entry.room_id;
    let filter = &look.request.filter.room.timeline;
    let limit = filter.limit.map(UInt::into).and_then(|limit: u64| usize::try_from(limit).ok());
    let limit = limit.unwrap_or(LIMIT_DEFAULT).clamp(1, LIMIT_MAX);
    let filter = EventFilter::of(filter, room_id);
    let mut found = Timeline { start: up_to.next(), ..Timeline::default() };
    let mut viewpoint = None;
    let mut read = 0;
    let mut from = up_to;
    loop {
        let wanted = limit + 1 - found.events.len();
        let range = RangeRead { after: room.after, up_to: from, direction: Direction::Backward, limit: wanted };
        let events = inner.history.events(room_id, range).await?;
        let exhausted = events.len() < wanted;
        read += events.len();
        for placed in events {
            from = placed.position.previous();
            found.read_from = Some(placed.position);
            found.head = found.head.or_else(|| Some(Head::from(&placed)));
            if placed.position == room.entry.since_room {
                found.join = Some(Head::from(&placed));
            }
            if placed.event.event_type == "m.room.create" && placed.event.state_key.as_deref() == Some("") {
                found.create = Some(placed.position);
            }
            let is_own = placed.event.event_type == "m.room.member"
                && placed.event.state_key.as_deref() == Some(look.slot.user_id.as_str());
            found.own_membership = found.own_membership.or(is_own.then_some(placed.position));
            // A member sees what comes after its join; what was before is a question of the history visibility.
            let sees = if placed.position >= room.entry.since_room && room.entry.membership == MembershipState::Join {
                !placed.event.hidden
            } else {
                if viewpoint.is_none() {
                    let up_to = found.head.map_or(up_to, |head| head.position);
                    viewpoint = Some(early_viewpoint(inner, look, room, up_to).await?);
                }
                viewpoint.as_ref().is_some_and(|viewpoint| viewpoint.sees(placed.position, &placed.event))
            };
            let ignored = placed.event.state_key.is_none() && look.ignored.contains(&placed.event.sender);
            if !sees || ignored || !filter.takes(&placed.event) {
                continue;
            }
            if found.events.len() == limit {
                found.limited = true;
                break;
            }
            found.start = placed.position;
            found.events.push(placed);
        }
        if exhausted || found.limited || read >= READ_MAX {
            found.limited |= !exhausted;
            break;
        }
    }
    // In a new room everything before the timeline was never delivered.
    found.limited |= room.is_new && look.request.since.is_some();
    found.events.reverse();
    Ok(found)
}

/// How the user sees what was before its stay, or after it, up to `up_to`.
async fn early_viewpoint(inner: &Inner, look: &Look<'_>, room: &RoomLook, up_to: Position) -> Result<Viewpoint, Fault> {
    let (room_id, user_id) = (&room.entry.room_id, &look.slot.user_id);
    match room.entry.membership {
        MembershipState::Join => inner.history.viewpoint_before(room_id, user_id, room.entry.since_room, up_to).await,
        _ => inner.history.viewpoint(room_id, user_id).await,
    }
}

/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3sync_response-200_roomsummary>
async fn summary(inner: &Inner, look: &Look<'_>, room: &RoomLook) -> Result<Vec<u8>, Fault> {
    const HEROES: usize = 5;
    let summary = inner.history.summary_after(&room.entry.room_id, room.up_to).await?;
    let mut heroes = Json::array();
    let others = summary.heroes.iter().filter(|user_id| **user_id != look.slot.user_id);
    others.take(HEROES).for_each(|user_id| heroes.text_element(user_id.as_str()));
    let mut json = Json::object();
    json.member("m.heroes", &heroes.end_array());
    json.number("m.joined_member_count", summary.joined);
    json.number("m.invited_member_count", summary.invited);
    Ok(json.end_object())
}
