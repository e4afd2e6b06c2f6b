//! Power levels of a room, parsed once.

use std::collections::{BTreeMap, BTreeSet};

use ruma::{
    Int, OwnedUserId, UserId,
    events::{TimelineEventType, room::power_levels::UserPowerLevel},
    state_res::events::{RoomCreateEvent, RoomPowerLevelsEvent, RoomPowerLevelsIntField},
};

use crate::pdu::Pdu;

/// The level of the creator of a room that has no `m.room.power_levels` event, before room version 12.
const CREATOR_DEFAULT: i32 = 100;

/// The level needed for a notification key that is not listed.
///
/// See <https://spec.matrix.org/v1.19/client-server-api/#mroompower_levels>.
const NOTIFICATION_DEFAULT: i32 = 50;

/// Who may do what in one state of a room.
///
/// The answers are those of the authorisation rules; from room version 12 on creators stand above every level.
#[derive(Debug, Clone)]
pub struct PowerLevels {
    creators: BTreeSet<OwnedUserId>,
    creators_infinite: bool,
    users: BTreeMap<OwnedUserId, Int>,
    users_default: Int,
    events: BTreeMap<TimelineEventType, Int>,
    events_default: Int,
    state_default: Int,
    notifications: BTreeMap<String, Int>,
    ban: Int,
    kick: Int,
    invite: Int,
    redact: Int,
}

impl PowerLevels {
    /// Reads the levels out of the create event and the `m.room.power_levels` event, if there is one.
    ///
    /// # Errors
    ///
    /// A sentence about the malformed field.
    pub fn from_state(create: &Pdu, power_levels: Option<&Pdu>) -> Result<Self, String> {
        use RoomPowerLevelsIntField as Field;

        let rules = &create.version().rules().authorization;
        let creators: BTreeSet<_> = RoomCreateEvent::new(create).creators(rules)?.into_iter().collect();
        let event = power_levels.map(RoomPowerLevelsEvent::new);
        let level = |field: Field| match &event {
            Some(event) => event.get_as_int_or_default(field, rules),
            None => Ok(field.default_value()),
        };
        let creators_infinite = rules.explicitly_privilege_room_creators;
        let (mut users, mut events, mut notifications) = Default::default();
        match &event {
            Some(event) => {
                users = event.users(rules)?.cloned().unwrap_or_default();
                events = event.events(rules)?.unwrap_or_default();
                notifications = event.notifications(rules)?.unwrap_or_default();
            }
            None if !creators_infinite => {
                users = creators.iter().map(|id| (id.clone(), CREATOR_DEFAULT.into())).collect()
            }
            None => {}
        }
        Ok(Self {
            users_default: level(Field::UsersDefault)?,
            events_default: level(Field::EventsDefault)?,
            state_default: level(Field::StateDefault)?,
            ban: level(Field::Ban)?,
            kick: level(Field::Kick)?,
            invite: level(Field::Invite)?,
            redact: level(Field::Redact)?,
            creators,
            creators_infinite,
            users,
            events,
            notifications,
        })
    }

    /// The level of a user.
    pub fn user(&self, user_id: &UserId) -> UserPowerLevel {
        if self.creators_infinite && self.creators.contains(user_id) {
            return UserPowerLevel::Infinite;
        }
        UserPowerLevel::Int(self.users.get(user_id).copied().unwrap_or(self.users_default))
    }

    /// The creators of the room.
    pub fn creators(&self) -> impl Iterator<Item = &UserId> {
        self.creators.iter().map(|id| &**id)
    }

    /// Whether the user is a creator whose power nothing limits (room version 12 and later).
    pub fn is_privileged_creator(&self, user_id: &UserId) -> bool {
        self.creators_infinite && self.creators.contains(user_id)
    }

    /// The level needed to send an event of the type; with a state key or without.
    pub fn event(&self, event_type: &TimelineEventType, is_state: bool) -> Int {
        let default = if is_state { self.state_default } else { self.events_default };
        self.events.get(event_type).copied().unwrap_or(default)
    }

    /// Whether the user may send an event of the type, as far as power goes.
    pub fn may_send(&self, user_id: &UserId, event_type: &TimelineEventType, is_state: bool) -> bool {
        self.user(user_id) >= self.event(event_type, is_state)
    }

    /// Whether the user may invite.
    pub fn may_invite(&self, user_id: &UserId) -> bool {
        self.user(user_id) >= self.invite
    }

    /// Whether the user may remove the other from the room.
    pub fn may_kick(&self, user_id: &UserId, target: &UserId) -> bool {
        self.user(user_id) >= self.kick && self.user(target) < self.user(user_id)
    }

    /// Whether the user may ban the other.
    pub fn may_ban(&self, user_id: &UserId, target: &UserId) -> bool {
        self.user(user_id) >= self.ban && self.user(target) < self.user(user_id)
    }

    /// Whether the user may lift the ban of the other: both levels are needed.
    pub fn may_unban(&self, user_id: &UserId, target: &UserId) -> bool {
        self.user(user_id) >= self.ban && self.may_kick(user_id, target)
    }

    /// Whether the user may redact events of others.
    pub fn may_redact_others(&self, user_id: &UserId) -> bool {
        self.user(user_id) >= self.redact
    }

    /// Whether the user may notify with the key, such as `room` for `@room`.
    pub fn may_notify(&self, user_id: &UserId, key: &str) -> bool {
        self.user(user_id) >= self.notifications.get(key).copied().unwrap_or(NOTIFICATION_DEFAULT.into())
    }

    /// The level needed to invite.
    pub fn invite(&self) -> Int {
        self.invite
    }

    /// The level needed to remove a user.
    pub fn kick(&self) -> Int {
        self.kick
    }

    /// The level needed to ban a user.
    pub fn ban(&self) -> Int {
        self.ban
    }

    /// The level needed to redact events of others.
    pub fn redact(&self) -> Int {
        self.redact
    }
}
