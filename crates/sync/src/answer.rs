//! One look: what is new for a token, and the token after it.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use cofactor_history::EventFields;
use cofactor_types::{EntityHash, EntityId, Fault, Position, SyncToken, limits::TOKEN_EXCEPTIONS_MAX};
use cofactor_wire::user::RoomEntry;
use futures::future::try_join_all;
use ruma::{OwnedRoomId, OwnedUserId, RoomId, events::room::member::MembershipState};
use tokio::sync::OnceCell;

use crate::{
    SyncRequest,
    json::Json,
    service::Inner,
    slot::Slot,
    streams::{
        account_data::{self, RoomData},
        invited, joined,
        left::{self, Turns},
        to_device,
    },
    unread::Notifications,
};

/// What an answer says beside its rooms, most often, in bytes.
const REST_BYTES: usize = 1 << 10;

/// An answer, and whether it says anything.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) body: Bytes,
    pub(crate) token: SyncToken,
    pub(crate) has_news: bool,
}

/// How often a look begins anew because the user's list of rooms went on meanwhile.
const LOOKS_MAX: usize = 8;

/// Rooms that are read side by side: what each of them reads goes one after the other.
const ROOMS_AT_ONCE: usize = 16;

/// What one look works on.
#[derive(Debug)]
pub(crate) struct Look<'a> {
    pub(crate) request: &'a SyncRequest,
    pub(crate) slot: &'a Slot,
    /// Up to where the user's own log was delivered; `None` in an initial sync.
    pub(crate) user_after: Option<Position>,
    /// Up to where the user's own log can be delivered now.
    pub(crate) user_up_to: Position,
    /// Users whose messages the user does not want to see.
    pub(crate) ignored: BTreeSet<OwnedUserId>,
    /// Fields of events that are wanted; `None`: all.
    pub(crate) fields: Option<EventFields>,
    /// Rooms whose account data changed since the token.
    pub(crate) with_data: BTreeSet<OwnedRoomId>,
    /// The account data of all rooms, where it was read at once.
    pub(crate) room_data: Option<RoomData>,
    /// Where memberships turned since the token, where a room was left.
    pub(crate) turns: Turns,
    /// Whether running totals say what the user's push rules say.
    plain: OnceCell<bool>,
}

impl<'a> Look<'a> {
    fn new(request: &'a SyncRequest, slot: &'a Slot, user_after: Option<Position>) -> Self {
        let fields = EventFields::of(request.filter.event_fields.as_deref());
        let (user_up_to, ignored, with_data, room_data, turns, plain) = Default::default();
        Self { request, slot, user_after, user_up_to, ignored, fields, with_data, room_data, turns, plain }
    }

    /// Whether running totals say what the user's push rules say of every room. Asked once.
    pub(crate) async fn counts_plainly(&self, notifications: &dyn Notifications) -> Result<bool, Fault> {
        self.plain.get_or_try_init(|| notifications.are_untouched(&self.slot.user_id)).await.copied()
    }

    /// Up to where a room was told before.
    fn told_of(&self, room_id: &RoomId) -> Position {
        self.request.since.as_ref().map_or(Position::ZERO, |since| since.lower_bound(&EntityId::room(room_id)))
    }

    /// Whether a record of the user's own log belongs into this answer.
    pub(crate) fn is_due(&self, position: Position) -> bool {
        self.user_after.is_none_or(|after| position > after) && position <= self.user_up_to
    }
}

/// A room to look at.
#[derive(Clone, Debug)]
pub(crate) struct RoomLook {
    pub(crate) entry: RoomEntry,
    /// Up to where the room was delivered; zero if nothing of it was.
    pub(crate) after: Position,
    /// Up to where it can be delivered now.
    pub(crate) up_to: Position,
    /// Nothing of this stay in the room was delivered yet.
    pub(crate) is_new: bool,
    /// Nothing was heard of the room yet, so it goes as far as its last event: a log is written in order, and where that
    /// stands, everything before it can be read.
    pub(crate) to_the_end: bool,
}

impl RoomLook {
    fn is_joined(&self) -> bool {
        self.entry.membership == MembershipState::Join
    }
}

/// Whether the entry says that a stay, or an invitation, has ended.
fn is_over(entry: &RoomEntry) -> bool {
    matches!(entry.membership, MembershipState::Leave | MembershipState::Ban)
}

/// What was told of rooms.
#[derive(Debug)]
struct Told {
    sections: Sections,
    /// Something did not fit, and follows at once.
    has_more: bool,
    /// Up to where the user's own log was told.
    user_delivered: Position,
    /// Up to where each room was told.
    delivered: Vec<(EntityHash, Position)>,
    /// What the token must not pass over, if that is below what is closed.
    held_back: Option<Position>,
}

impl Told {
    fn hold_back(&mut self, at: Position, closed: Position) {
        self.held_back = self.held_back.into_iter().chain((at < closed).then_some(at)).min();
    }
}

impl Inner {
    /// Answers with what is known of the user. Everything at or below `closed` can be read, nothing at or below it can still
    /// appear, and the slot knows of it.
    pub(crate) async fn answer(
        &self,
        slot: &Arc<Slot>,
        request: &SyncRequest,
        closed: Position,
    ) -> Result<Answer, Fault> {
        self.arm(slot);
        let user = EntityId::user(&slot.user_id);
        let since = request.since.as_ref();
        let mut token = match since {
            Some(since) => since.clone(),
            None => SyncToken::new(closed),
        };
        let user_after = since.map(|since| since.lower_bound(&user));
        let mut look = Look::new(request, slot, user_after);
        let (own, mut rooms) = self.look_over(&mut look, closed).await?;
        // New ones last and in the order of the user's log, so that it can be delivered up to the first that does not fit.
        rooms.sort_by_key(|room| room.is_new.then_some(room.entry.since));

        self.read_for(&mut look, &rooms).await?;
        let mut body = Json::object();
        // The token may only say what was looked at: rooms above their exception, everything else up to the closed position.
        token.raise(closed);
        let told = self.tell_rooms(&look, rooms, closed, &mut token).await?;
        let mut has_news = told.sections.write(&mut body) || told.has_more;

        if own {
            has_news |= account_data::write(self, &look, &mut body).await?;
        }
        let (changed, left) = match since {
            Some(since) => self.device_changes(slot, since, None).await?,
            None => Default::default(),
        };
        has_news |= write_device_lists(&mut body, &changed, &left);
        has_news |= to_device::write(self, &look, &mut token, closed, &mut body).await?;
        has_news |= to_device::write_key_counts(&look, &mut body);

        let (user_delivered, mut delivered) = (told.user_delivered, told.delivered);
        token.deliver(&user, user_delivered);
        delivered.push((user.hash64(), user_delivered));
        token = not_beyond(told.held_back.map(|lowest| lowest.min(user_delivered)), token, since, &delivered)?;
        body.text("next_batch", &token.to_string());
        Ok(Answer { body: body.end_object().into(), token, has_news })
    }

    /// Tells of rooms in their order, and says in the token up to where; some are read side by side.
    async fn tell_rooms(
        &self,
        look: &Look<'_>,
        rooms: Vec<RoomLook>,
        closed: Position,
        token: &mut SyncToken,
    ) -> Result<Told, Fault> {
        let is_initial = look.user_after.is_none();
        let mut told = Told {
            sections: Sections::default(),
            has_more: false,
            user_delivered: look.user_up_to,
            delivered: Vec::with_capacity(rooms.len()),
            held_back: None,
        };
        let mut rooms = rooms.into_iter();
        loop {
            let mut some: Vec<RoomLook> = rooms.by_ref().take(ROOMS_AT_ONCE).collect();
            if some.is_empty() {
                return Ok(told);
            }
            try_join_all(some.iter_mut().map(|room| self.find_end(look.slot, room, is_initial))).await?;
            // One place is the user's own.
            let mut places = (TOKEN_EXCEPTIONS_MAX - 1).saturating_sub(token.exceptions_len());
            some.retain_mut(|room| {
                if told.has_more && room.is_new {
                    // It follows with the one before it. What was said before a leave must not be passed over.
                    if is_over(&room.entry) {
                        told.hold_back(look.told_of(&room.entry.room_id), closed);
                    }
                    return false;
                }
                if !room.is_joined() || (room.up_to <= closed && !room.to_the_end) {
                    return true;
                }
                if places > 0 {
                    places -= 1;
                    return true;
                }
                if !is_initial && room.is_new && room.entry.room_position > closed {
                    // Nothing of it can be told yet; it follows at once, with the next request.
                    told.user_delivered = told.user_delivered.min(room.entry.since.previous());
                    told.has_more = true;
                    return false;
                }
                (room.up_to, room.to_the_end) = (closed.max(room.after), false);
                true
            });
            let parts = try_join_all(some.iter_mut().map(|room| part(self, look, room))).await?;
            for (room, part) in some.iter().zip(parts) {
                told.sections.add(&room.entry, part);
                // Nothing of a room follows in which the user is not, so that it needs no place in the token.
                if room.is_joined() {
                    told.hold_back(room.up_to, closed);
                    let entity = EntityId::room(&room.entry.room_id).hash64();
                    token.deliver_hash(entity, room.up_to);
                    told.delivered.push((entity, room.up_to));
                }
            }
        }
    }

    /// How far a room goes of which nothing was heard yet: in an initial sync its timeline begins with its last event,
    /// elsewhere that is asked for.
    async fn find_end(&self, slot: &Slot, room: &mut RoomLook, is_initial: bool) -> Result<(), Fault> {
        let is_unheard = room.is_new || slot.view().feed.seen(&room.entry.room_id) == Position::ZERO;
        if !room.is_joined() || !is_unheard {
            return Ok(());
        }
        room.to_the_end = is_initial;
        if !is_initial {
            let head = self.history.last_at(&room.entry.room_id, Position::MAX).await?;
            room.up_to = room.up_to.max(head.map_or(Position::ZERO, |head| head.position));
        }
        Ok(())
    }

    /// Reads what all these rooms need, once.
    async fn read_for(&self, look: &mut Look<'_>, rooms: &[RoomLook]) -> Result<(), Fault> {
        if !rooms.is_empty() {
            look.ignored = account_data::ignored(self, &look.slot.user_id).await?;
        }
        if rooms.iter().any(|room| is_over(&room.entry)) {
            look.turns = left::turns(self, look).await?;
        }
        if look.user_after.is_none() {
            look.room_data = Some(account_data::rooms(self, &look.slot.user_id).await?);
        }
        Ok(())
    }

    /// Decides up to where the user's own log is told, and which rooms are to be looked at: both from the same moment, since a
    /// room of which the list says what cannot be told yet must not be passed over. Says whether something of the own log is due.
    async fn look_over(&self, look: &mut Look<'_>, closed: Position) -> Result<(bool, Vec<RoomLook>), Fault> {
        for _ in 0..LOOKS_MAX {
            let (seen, touched) = {
                let view = look.slot.view();
                (view.feed.user_seen(), view.feed.user_touched())
            };
            look.user_up_to = seen.max(closed);
            let own = look.user_after.is_none_or(|after| after < touched);
            if look.user_after.is_some() && own {
                look.with_data = account_data::changed_rooms(self, look).await?;
            }
            if let Some(rooms) = self.rooms_to_look_at(look, closed) {
                return Ok((own, rooms));
            }
        }
        Err(Fault::unavailable("the user's list of rooms changes all the time; try again"))
    }

    /// Rooms with something new, and all of them in an initial sync; `None` if the list says by now of one of them what is not to
    /// be told yet.
    fn rooms_to_look_at(&self, look: &Look, closed: Position) -> Option<Vec<RoomLook>> {
        let view = look.slot.view();
        let since = look.request.since.as_ref();
        let mut ids: BTreeSet<OwnedRoomId> = BTreeSet::new();
        match (since, look.user_after) {
            (Some(since), Some(user_after)) if !look.request.full_state => {
                for (room_id, position) in view.feed.rooms_after(since.base()) {
                    if position > since.lower_bound(&EntityId::room(room_id)) {
                        ids.insert(room_id.clone());
                    }
                }
                let changed = view.by_since.range(user_after.next()..).map(|(_, room_id)| room_id.clone());
                ids.extend(changed);
                ids.extend(look.with_data.iter().cloned());
            }
            _ => ids.extend(view.rooms.keys().cloned()),
        }
        let filter = &look.request.filter.room;
        let wanted = |room_id: &OwnedRoomId| {
            filter.rooms.as_ref().is_none_or(|rooms| rooms.contains(room_id)) && !filter.not_rooms.contains(room_id)
        };
        let mut looks = Vec::with_capacity(ids.len());
        for room_id in ids.into_iter().filter(wanted) {
            let Some(entry) = view.rooms.get(&room_id).filter(|entry| !entry.forgotten) else { continue };
            if entry.position > look.user_up_to {
                // What begins later is told later, from its beginning on. What goes on or ends must not be passed over.
                if is_over(entry) || entry.since <= look.user_up_to {
                    return None;
                }
                continue;
            }
            let is_new = look.user_after.is_none_or(|after| entry.since > after);
            let after = if is_new { Position::ZERO } else { look.told_of(&room_id) };
            let up_to = view.feed.seen(&room_id).max(closed);
            looks.push(RoomLook { entry: entry.clone(), after, up_to, is_new, to_the_end: false });
        }
        Some(looks)
    }
}

/// The token, or one that stays below what is closed: a room says that the user has left it, the user's own list does not
/// yet. What comes after the leave must not be passed over, since whoever does not see the leave takes the rest for the user's.
fn not_beyond(
    held_back: Option<Position>,
    token: SyncToken,
    since: Option<&SyncToken>,
    delivered: &[(EntityHash, Position)],
) -> Result<SyncToken, Fault> {
    let Some(lowest) = held_back else { return Ok(token) };
    let mut below = since.cloned().unwrap_or_else(|| SyncToken::new(lowest));
    below.raise(lowest);
    for (entity, up_to) in delivered {
        below.deliver_hash(*entity, *up_to);
    }
    below.set_to_device(token.to_device());
    if below.exceptions_len() > TOKEN_EXCEPTIONS_MAX {
        return Err(Fault::unavailable("the user's list of rooms is behind the rooms; try again"));
    }
    Ok(below)
}

/// The sections of `rooms`.
#[derive(Debug)]
struct Sections {
    join: Json,
    invite: Json,
    knock: Json,
    leave: Json,
}

impl Default for Sections {
    fn default() -> Self {
        Self { join: Json::object(), invite: Json::object(), knock: Json::object(), leave: Json::object() }
    }
}

/// What there is to say of a room. It may be delivered less far than it was looked at; the look says so afterwards.
async fn part(inner: &Inner, look: &Look<'_>, room: &mut RoomLook) -> Result<Option<Vec<u8>>, Fault> {
    match room.entry.membership {
        MembershipState::Join => joined::write(inner, look, room).await,
        MembershipState::Invite if room.is_new => Ok(Some(invited::write(&room.entry, "invite_state"))),
        MembershipState::Knock if room.is_new => Ok(Some(invited::write(&room.entry, "knock_state"))),
        MembershipState::Leave | MembershipState::Ban if room.is_new => left::write(inner, look, room).await,
        _ => Ok(None),
    }
}

impl Sections {
    fn add(&mut self, entry: &RoomEntry, part: Option<Vec<u8>>) {
        let Some(part) = part else { return };
        let section = match entry.membership {
            MembershipState::Join => &mut self.join,
            MembershipState::Invite => &mut self.invite,
            MembershipState::Knock => &mut self.knock,
            _ => &mut self.leave,
        };
        section.member(entry.room_id.as_str(), &part);
    }

    fn write(self, body: &mut Json) -> bool {
        let sections = [("join", self.join), ("invite", self.invite), ("knock", self.knock), ("leave", self.leave)];
        if sections.iter().all(|(_, section)| section.is_empty()) {
            return false;
        }
        // All of an answer is copied here: into one piece of memory.
        body.reserve(sections.iter().map(|(_, section)| section.len()).sum::<usize>() + REST_BYTES);
        body.open("rooms");
        for (name, section) in sections.iter().filter(|(_, section)| !section.is_empty()) {
            body.open(name);
            body.members_of(section);
            body.close();
        }
        body.close();
        true
    }
}

fn write_device_lists(body: &mut Json, changed: &[OwnedUserId], left: &[OwnedUserId]) -> bool {
    if changed.is_empty() && left.is_empty() {
        return false;
    }
    let list = |users: &[OwnedUserId]| {
        let mut array = Json::array();
        users.iter().for_each(|user_id| array.text_element(user_id.as_str()));
        array.end_array()
    };
    let mut lists = Json::object();
    lists.member("changed", &list(changed));
    lists.member("left", &list(left));
    body.member("device_lists", &lists.end_object());
    true
}
