//! What one user may see of one room.

use cofactor_room::{EventView, HistoryVisibility, Membership, is_visible};
use cofactor_store::{Direction, RangeRead, record};
use cofactor_types::{Fault, Position};
use cofactor_wire::room::{EventRecord, KeyHistory, class, state_sub};
use ruma::{OwnedUserId, RoomId, UserId};

use crate::{
    History,
    recent::{Few, Visibility},
};

/// Changes of one key that are looked at; a user that came and went more often is judged by the latest.
const CHANGES_MAX: usize = 1_000;

/// What one user may see of one room: the user's memberships and the room's history visibilities, by position.
/// <https://spec.matrix.org/v1.19/client-server-api/#room-history-visibility>
#[derive(Clone, Debug)]
pub struct Viewpoint {
    user_id: OwnedUserId,
    memberships: Vec<(Position, Membership)>,
    visibilities: Vec<(Position, HistoryVisibility)>,
}

impl History {
    /// How `user_id` sees the room.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn viewpoint(&self, room_id: &RoomId, user_id: &UserId) -> Result<Viewpoint, Fault> {
        let visibilities = self.visibilities(room_id, Position::MAX).await?;
        Ok(Viewpoint {
            user_id: user_id.to_owned(),
            memberships: self.memberships(room_id, user_id).await?,
            visibilities,
        })
    }

    /// How `user_id`, who has been in the room since `joined`, sees what was before that. Of interest are events up to `up_to`.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn viewpoint_before(
        &self,
        room_id: &RoomId,
        user_id: &UserId,
        joined: Position,
        up_to: Position,
    ) -> Result<Viewpoint, Fault> {
        let visibilities = self.visibilities(room_id, up_to).await?;
        let for_later = |visibility| matches!(visibility, HistoryVisibility::Shared | HistoryVisibility::WorldReadable);
        // Where whoever joins later sees everything, earlier stays do not matter.
        let memberships = match visibilities.iter().all(|(_, visibility)| for_later(*visibility)) {
            true => vec![(joined, Membership::Join)],
            false => self.memberships(room_id, user_id).await?,
        };
        Ok(Viewpoint { user_id: user_id.to_owned(), memberships, visibilities })
    }

    async fn memberships(&self, room_id: &RoomId, user_id: &UserId) -> Result<Vec<(Position, Membership)>, Fault> {
        let history = self.key_history(room_id, "m.room.member", user_id.as_str()).await?;
        Ok(history.into_iter().map(|(at, value)| (at, Membership::from_content(value.as_deref()))).collect())
    }

    /// The history visibilities that the room had up to `up_to` at least.
    async fn visibilities(
        &self,
        room_id: &RoomId,
        up_to: Position,
    ) -> Result<Vec<(Position, HistoryVisibility)>, Fault> {
        let read = async || {
            let history = self.key_history(room_id, "m.room.history_visibility", "").await?;
            let visibility = |(position, value): (Position, Option<String>)| Visibility {
                position,
                visibility: HistoryVisibility::from_content(value.as_deref()),
            };
            Ok::<Vec<_>, Fault>(history.into_iter().map(visibility).collect())
        };
        let few = async { Ok(Few::new(read().await?, 0)) };
        let pair = |one: &Visibility| (one.position, one.visibility);
        match self.few(room_id, Position::ZERO, up_to, few).await? {
            Some(few) => Ok(few.iter().map(pair).collect()),
            None => Ok(read().await?.iter().map(pair).collect()),
        }
    }

    /// The first event in `(after, up_to]` that ended a user's stay in a room.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn parting(
        &self,
        room_id: &RoomId,
        user_id: &UserId,
        after: Position,
        up_to: Position,
    ) -> Result<Option<Position>, Fault> {
        let log = Self::log(room_id, class::KEY_HISTORY, &state_sub("m.room.member", user_id.as_str()));
        let range = RangeRead { after, up_to, direction: Direction::Forward, limit: CHANGES_MAX };
        for row in self.reader().read(&log, range).await? {
            let history: KeyHistory = record::decode(&row.value)?;
            if Membership::from_content(history.value.as_deref()) != Membership::Join {
                return Ok(Some(row.position));
            }
        }
        Ok(None)
    }

    async fn key_history(
        &self,
        room_id: &RoomId,
        event_type: &str,
        state_key: &str,
    ) -> Result<Vec<(Position, Option<String>)>, Fault> {
        let log = Self::log(room_id, class::KEY_HISTORY, &state_sub(event_type, state_key));
        let all = RangeRead {
            after: Position::ZERO,
            up_to: Position::MAX,
            direction: Direction::Backward,
            limit: CHANGES_MAX,
        };
        let mut rows = self.reader().read(&log, all).await?;
        rows.reverse();
        let value = |row: cofactor_store::LogRow| {
            let history: KeyHistory = record::decode(&row.value)?;
            Ok((row.position, history.value))
        };
        rows.into_iter().map(value).collect()
    }
}

fn before<T: Copy + Default>(changes: &[(Position, T)], position: Position) -> T {
    let index = changes.partition_point(|(at, _)| *at < position);
    index.checked_sub(1).and_then(|index| changes.get(index)).map(|(_, value)| *value).unwrap_or_default()
}

fn set_at<T: Copy>(changes: &[(Position, T)], position: Position) -> Option<T> {
    changes.iter().find(|(at, _)| *at == position).map(|(_, value)| *value)
}

impl Viewpoint {
    /// The membership as it is.
    pub fn membership(&self) -> Membership {
        before(&self.memberships, Position::MAX)
    }

    /// Whether the user is in the room.
    pub fn is_joined(&self) -> bool {
        self.membership() == Membership::Join
    }

    /// Whether anybody may read the room as it is.
    pub fn is_world_readable(&self) -> bool {
        before(&self.visibilities, Position::MAX) == HistoryVisibility::WorldReadable
    }

    /// Up to where the user may read the room's *state*: `None`, not at all; otherwise the end of its last stay, or no end.
    pub fn state_up_to(&self) -> Option<Position> {
        if self.is_joined() || self.is_world_readable() {
            return Some(Position::MAX);
        }
        let last_join = self.memberships.iter().rposition(|(_, membership)| *membership == Membership::Join)?;
        let left = self.memberships.get(last_join + 1);
        Some(left.map_or(Position::MAX, |(at, _)| *at))
    }

    /// Whether the user may read anything at all.
    pub fn may_read(&self) -> bool {
        self.state_up_to().is_some()
    }

    /// Whether the user may see an event.
    pub fn sees(&self, position: Position, event: &EventRecord) -> bool {
        if event.hidden {
            return false;
        }
        let own = event.event_type == "m.room.member" && event.state_key.as_deref() == Some(self.user_id.as_str());
        let sets_visibility = event.event_type == "m.room.history_visibility" && event.state_key.as_deref() == Some("");
        let mut later = self.memberships.iter().filter(|(at, _)| *at > position);
        is_visible(EventView {
            visibility_before: before(&self.visibilities, position),
            visibility_set: sets_visibility.then(|| set_at(&self.visibilities, position)).flatten(),
            membership_before: before(&self.memberships, position),
            membership_set: own.then(|| set_at(&self.memberships, position)).flatten(),
            joined_later: later.any(|(_, membership)| *membership == Membership::Join),
        })
    }
}
