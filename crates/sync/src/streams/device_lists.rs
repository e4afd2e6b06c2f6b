//! Whose devices changed, and with whom no room is shared any more.
//! <https://spec.matrix.org/v1.19/client-server-api/#tracking-the-device-list-for-a-user>

use std::collections::BTreeSet;

use cofactor_store::{Direction, LogKey, RangeRead, Scan, key, record, tables};
use cofactor_types::{EntityId, Fault, Position, SyncToken};
use cofactor_wire::{
    room::{DeviceChange, class},
    user::{self, RoomEntry},
};
use ruma::{OwnedRoomId, OwnedUserId, UserId, events::room::member::MembershipState};

use crate::{service::Inner, slot::Slot};

/// Changes of one room that are listed one by one.
const CHANGES_MAX: usize = 10_000;

const MEMBER: &str = "m.room.member";

/// Rooms to look at, each with the range of its log; for rooms that are new, everybody in them is.
#[derive(Default)]
struct Ranges {
    rooms: Vec<(OwnedRoomId, Position, Position)>,
    joined: Vec<OwnedRoomId>,
    parted: Vec<(OwnedRoomId, Position)>,
    own: Option<(Position, Position)>,
}

impl Inner {
    /// Users whose devices changed, and users with whom no room is shared any more, after `from` and up to `to` or now.
    pub(crate) async fn device_changes(
        &self,
        slot: &Slot,
        from: &SyncToken,
        to: Option<&SyncToken>,
    ) -> Result<(Vec<OwnedUserId>, Vec<OwnedUserId>), Fault> {
        let ranges = self.device_ranges(slot, from, to);
        let mut changed = BTreeSet::new();
        let mut parted = BTreeSet::new();
        for (room_id, after, up_to) in &ranges.rooms {
            self.changes_in(room_id, *after, *up_to, &mut changed, &mut parted).await?;
        }
        for room_id in &ranges.joined {
            for member in self.history.current_members(room_id).await? {
                changed.extend(joined_user(&member.event));
            }
        }
        for (room_id, at) in &ranges.parted {
            let state = self.history.state_at(room_id, *at, &cofactor_history::Members::All).await?;
            parted.extend(state.iter().filter_map(|member| joined_user(&member.event)));
        }
        parted.remove(&slot.user_id);
        changed.remove(&slot.user_id);
        let mut left = Vec::new();
        // Seldom anybody: the list of all rooms is made for nobody else.
        let shared = if parted.is_empty() { BTreeSet::new() } else { joined_rooms(slot) };
        for user_id in parted {
            if !self.shares_room(&user_id, &shared).await? {
                changed.remove(&user_id);
                left.push(user_id);
            }
        }
        if let Some((after, up_to)) = ranges.own
            && self.own_devices_changed(&slot.user_id, after, up_to).await?
        {
            changed.insert(slot.user_id.clone());
        }
        Ok((changed.into_iter().collect(), left))
    }

    fn device_ranges(&self, slot: &Slot, from: &SyncToken, to: Option<&SyncToken>) -> Ranges {
        let closed = self.closed();
        let view = slot.view();
        let me = EntityId::user(&slot.user_id);
        let user_after = from.lower_bound(&me);
        let bound = |entity: &EntityId, seen: Position| to.map_or(seen.max(closed), |to| to.lower_bound(entity));
        let user_up_to = bound(&me, view.feed.user_seen());
        let mut ranges = Ranges::default();
        if view.feed.user_touched() > user_after {
            ranges.own = Some((user_after, user_up_to));
        }
        let fresh: BTreeSet<_> = view.by_since.range(user_after.next()..).map(|(_, room_id)| room_id.clone()).collect();
        for (room_id, position) in view.feed.rooms_after(from.base()) {
            let entity = EntityId::room(room_id);
            let after = from.lower_bound(&entity);
            let is_joined = view.rooms.get(room_id).is_some_and(|entry| entry.membership == MembershipState::Join);
            if position > after && is_joined && !fresh.contains(room_id) {
                ranges.rooms.push((room_id.clone(), after, bound(&entity, view.feed.seen(room_id))));
            }
        }
        for room_id in fresh {
            match view.rooms.get(&room_id) {
                Some(entry) if entry.membership == MembershipState::Join => ranges.joined.push(room_id),
                Some(entry) if entry.was_joined => ranges.parted.push((room_id, entry.room_position)),
                _ => {}
            }
        }
        ranges
    }

    /// Device changes and comings and goings in one room.
    async fn changes_in(
        &self,
        room_id: &OwnedRoomId,
        after: Position,
        up_to: Position,
        changed: &mut BTreeSet<OwnedUserId>,
        parted: &mut BTreeSet<OwnedUserId>,
    ) -> Result<(), Fault> {
        let range = RangeRead { after, up_to, direction: Direction::Forward, limit: CHANGES_MAX };
        for row in self.history.rows(room_id, class::DEVICE_LIST, range).await? {
            changed.insert(record::decode::<DeviceChange>(&row.value)?.user_id);
        }
        for ((event_type, state_key), (now, _)) in self.history.state_changes(room_id, after, up_to).await? {
            let (true, Some(position), Ok(user_id)) = (event_type == MEMBER, now, UserId::parse(&state_key)) else {
                continue;
            };
            let Some(member) = self.history.at(room_id, position).await? else { continue };
            match joined_user(&member.event) {
                Some(user_id) => changed.insert(user_id),
                None => parted.insert(user_id),
            };
        }
        Ok(())
    }

    async fn own_devices_changed(&self, user_id: &UserId, after: Position, up_to: Position) -> Result<bool, Fault> {
        let log = LogKey { entity: EntityId::user(user_id), class: user::class::DEVICES, sub: "".into() };
        let range = RangeRead { after, up_to, direction: Direction::Forward, limit: 1 };
        Ok(!self.history.reader().read(&log, range).await?.is_empty())
    }

    /// Whether the user is in one of these rooms. A remote user has no list here, so its member events are asked.
    async fn shares_room(&self, user_id: &UserId, rooms: &BTreeSet<OwnedRoomId>) -> Result<bool, Fault> {
        let scan = Scan::new(&tables::USER_STATE, key![user_id.as_str()], key![user::state::ROOM], usize::MAX);
        let list = self.history.reader().store().scan(scan).await?;
        if !list.is_empty() {
            let entries = list.iter().map(|row| record::decode::<RoomEntry>(&row.value));
            let entries = entries.collect::<Result<Vec<_>, _>>()?;
            let joined = |entry: &RoomEntry| entry.membership == MembershipState::Join;
            return Ok(entries.iter().any(|entry| joined(entry) && rooms.contains(&entry.room_id)));
        }
        for room_id in rooms {
            let member = self.history.current(room_id, MEMBER, user_id.as_str()).await?;
            if member.is_some_and(|member| joined_user(&member.event).is_some()) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn joined_rooms(slot: &Slot) -> BTreeSet<OwnedRoomId> {
    let view = slot.view();
    let joined = view.rooms.values().filter(|entry| entry.membership == MembershipState::Join);
    joined.map(|entry| entry.room_id.clone()).collect()
}

/// The user that a member event says is joined.
fn joined_user(event: &cofactor_wire::room::EventRecord) -> Option<OwnedUserId> {
    #[derive(serde::Deserialize)]
    struct Member {
        content: Content,
    }
    #[derive(serde::Deserialize)]
    struct Content {
        membership: String,
    }
    if event.event_type != MEMBER {
        return None;
    }
    let member: Member = serde_json::from_slice(&event.json).ok()?;
    (member.content.membership == "join").then(|| UserId::parse(event.state_key.as_deref()?).ok()).flatten()
}
