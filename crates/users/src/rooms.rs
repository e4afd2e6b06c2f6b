//! The user's list of rooms, as the rooms tell it.

use std::sync::Arc;

use cofactor_entity::Cx;
use cofactor_store::record;
use cofactor_types::Fault;
use cofactor_wire::user::{RoomEntry, class, state};
use ruma::{OwnedRoomId, RoomId, events::room::member::MembershipState};

use crate::entity::UserEntity;

impl UserEntity {
    /// Takes a room's word, unless a later one stands already: rooms may repeat themselves and overtake themselves.
    pub(crate) fn note_membership(&mut self, mut entry: RoomEntry, cx: &mut Cx) -> Result<(), Fault> {
        if self.account.is_none() {
            // An invitation to a name that nobody has goes nowhere.
            return Ok(());
        }
        let before = self.rooms.get(&entry.room_id);
        if before.is_some_and(|before| before.room_position >= entry.room_position) {
            return Ok(());
        }
        entry.was_joined |= before.is_some_and(|before| before.was_joined && !before.forgotten);
        entry.position = cx.allocate()?;
        (entry.since, entry.since_room) = match before.filter(|before| before.membership == entry.membership) {
            Some(before) => (before.since, before.since_room),
            None => (entry.position, entry.room_position),
        };
        self.put_room(entry, cx)
    }

    /// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3roomsroomidforget>
    pub(crate) fn forget(&mut self, room_id: &RoomId, cx: &mut Cx) -> Result<(), Fault> {
        let missing = || Fault::not_found("the room is not in your list");
        let entry = self.rooms.get(room_id).cloned().ok_or_else(missing)?;
        if !matches!(entry.membership, MembershipState::Leave | MembershipState::Ban) {
            return Err(Fault::new(
                cofactor_types::ErrorClass::Invalid,
                "M_UNKNOWN",
                "leave the room before you forget it",
            ));
        }
        let position = cx.allocate()?;
        self.put_room(RoomEntry { forgotten: true, position, ..entry }, cx)
    }

    fn put_room(&mut self, entry: RoomEntry, cx: &mut Cx) -> Result<(), Fault> {
        let encoded = record::encode(&entry)?;
        self.put(cx, state::ROOM, entry.room_id.as_str(), &entry)?;
        cx.append(class::MEMBERSHIP, &Arc::from(""), entry.position, encoded.clone());
        cx.publish(class::MEMBERSHIP, entry.position, encoded);
        let room_id: OwnedRoomId = entry.room_id.clone();
        self.rooms.insert(room_id, entry);
        Ok(())
    }
}
