//! What changed last where: the index that makes "anything new since T?" cost what changed.

use std::collections::{BTreeMap, BTreeSet};

use cofactor_types::Position;
use ruma::OwnedRoomId;

/// Latest positions, by room and for the user's own log.
///
/// Two positions matter for each room: `touched` asks for a look, `seen` is the last record that was really heard, up to
/// which the store can be read. They differ for a room that was not watched until now.
#[derive(Debug, Default)]
pub(crate) struct Feed {
    rooms: BTreeMap<OwnedRoomId, (Position, Position)>,
    by_position: BTreeSet<(Position, OwnedRoomId)>,
    /// Rooms of which something was noted, and nothing will be until the user has looked.
    marked: BTreeSet<OwnedRoomId>,
    user_touched: Position,
    user_seen: Position,
    to_device: Position,
}

impl Feed {
    /// Asks for a look at `room_id` by everyone whose token is below `position`.
    pub(crate) fn touch(&mut self, room_id: &OwnedRoomId, position: Position) {
        let (touched, seen) = self.rooms.get(room_id).copied().unwrap_or_default();
        if position > touched {
            self.by_position.remove(&(touched, room_id.clone()));
            self.by_position.insert((position, room_id.clone()));
            self.rooms.insert(room_id.clone(), (position, seen));
        }
    }

    /// Notes a record of `room_id`.
    pub(crate) fn note(&mut self, room_id: &OwnedRoomId, position: Position) {
        self.touch(room_id, position);
        if let Some((_, seen)) = self.rooms.get_mut(room_id) {
            *seen = position.max(*seen);
        }
    }

    /// Notes that `room_id` tells nothing more until [`Self::take_marked`].
    pub(crate) fn mark(&mut self, room_id: &OwnedRoomId) {
        self.marked.insert(room_id.clone());
    }

    /// Whether some room tells nothing more.
    pub(crate) fn has_marked(&self) -> bool {
        !self.marked.is_empty()
    }

    /// The rooms that tell nothing more.
    pub(crate) fn take_marked(&mut self) -> BTreeSet<OwnedRoomId> {
        std::mem::take(&mut self.marked)
    }

    /// Rooms with something above `base`, and where it is.
    pub(crate) fn rooms_after(&self, base: Position) -> impl Iterator<Item = (&OwnedRoomId, Position)> {
        let from = base.next();
        // The smallest room id is not known, so the range begins at the position and skips nothing before it.
        self.by_position.iter().rev().take_while(move |(position, _)| *position >= from).map(|(at, room)| (room, *at))
    }

    /// The last record heard of `room_id`.
    pub(crate) fn seen(&self, room_id: &OwnedRoomId) -> Position {
        self.rooms.get(room_id).map_or(Position::ZERO, |(_, seen)| *seen)
    }

    /// Asks for a look at the user's own log.
    pub(crate) fn touch_user(&mut self, position: Position) {
        self.user_touched = position.max(self.user_touched);
        self.to_device = position.max(self.to_device);
    }

    /// Notes that the user's own log can be read up to `position`.
    pub(crate) fn see_user(&mut self, position: Position) {
        self.user_seen = position.max(self.user_seen);
    }

    /// Notes a record of the user's own log.
    pub(crate) fn note_user(&mut self, position: Position, is_to_device: bool) {
        self.user_seen = position.max(self.user_seen);
        if is_to_device {
            self.to_device = position.max(self.to_device);
        } else {
            self.user_touched = position.max(self.user_touched);
        }
    }

    /// The last change of the user's own log that is not a to-device message.
    pub(crate) fn user_touched(&self) -> Position {
        self.user_touched
    }

    /// The last record heard of the user's own log.
    pub(crate) fn user_seen(&self) -> Position {
        self.user_seen
    }

    /// The last to-device message of any of the user's devices.
    pub(crate) fn to_device(&self) -> Position {
        self.to_device
    }
}

#[cfg(test)]
mod tests {
    use ruma::room_id;

    use super::*;

    #[test]
    fn only_what_changed_is_listed_newest_first() {
        let (a, b) = (room_id!("!a:x").to_owned(), room_id!("!b:x").to_owned());
        let mut feed = Feed::default();
        feed.note(&a, Position(5));
        feed.note(&b, Position(7));
        feed.note(&a, Position(9));
        let after =
            |base: u64| feed.rooms_after(Position(base)).map(|(room, at)| (room.clone(), at.0)).collect::<Vec<_>>();
        assert_eq!(after(9), []);
        assert_eq!(after(8), [(a.clone(), 9)]);
        assert_eq!(after(0), [(a, 9), (b, 7)]);
    }
}
