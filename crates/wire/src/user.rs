//! Users: the records of their logs and of their stored state, their commands and replies.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use cofactor_types::{Fault, Position};
use ruma::{OwnedDeviceId, OwnedEventId, OwnedRoomId, OwnedUserId, UserId, events::room::member::MembershipState};
use serde::{Deserialize, Serialize};

/// The classes of records in a user's log, and of its messages on the bus.
pub mod class {
    /// A change of the user's room list. Rows and payload: [`super::RoomEntry`].
    pub const MEMBERSHIP: u64 = 1;
    /// Account data changed, push rules included. Rows and payload: [`super::AccountDataChange`].
    pub const ACCOUNT_DATA: u64 = 2;
    /// A to-device message; sub is the receiving device. Rows and payload: [`super::ToDevice`].
    pub const TO_DEVICE: u64 = 3;
    /// Key counts of a device changed: on the bus only. Payload: [`super::KeyCounts`].
    pub const KEY_COUNTS: u64 = 4;
    /// The user's own devices or cross-signing keys changed. Rows and payload: [`super::DevicesChange`].
    pub const DEVICES: u64 = 5;
    /// Access tokens died: on the bus only. Payload: [`super::SessionsEnded`].
    pub const SESSIONS: u64 = 6;
    /// Ids of delivered messages, to know a repeated delivery: rows only.
    pub const DELIVERED: u64 = 7;
}

/// The kinds of rows in the `user_state` table: first column of the clustering key.
pub mod state {
    /// A room of the user; key: room id. Rows: [`super::RoomEntry`].
    pub const ROOM: &str = "room";
    /// Global account data; key: type. Rows: [`super::AccountData`].
    pub const ACCOUNT_DATA: &str = "account_data";
    /// A room's account data; key: room id, NUL, type. Rows: [`super::AccountData`].
    pub const ROOM_ACCOUNT_DATA: &str = "room_account_data";
    /// Key counts; key: device id. Rows: [`super::KeyCounts`].
    pub const KEY_COUNTS: &str = "key_counts";
    /// A filter; key: filter id. Rows: the JSON of the filter.
    pub const FILTER: &str = "filter";
    /// The profile; key: field name. Rows: the JSON of the value.
    pub const PROFILE: &str = "profile";
    /// The account itself; key: empty.
    pub const ACCOUNT: &str = "account";
    /// A device; key: device id.
    pub const DEVICE: &str = "device";
    /// Device keys, signatures included; key: device id. Rows: the JSON object of the specification.
    pub const DEVICE_KEYS: &str = "device_keys";
    /// Cross-signing keys; key: `master`, `self_signing`, `user_signing`. Rows: the JSON object of the specification.
    pub const CROSS_SIGNING: &str = "cross_signing";
    /// Up to where messages were taken from a device's queue, so that no read passes over what was deleted; key: device id. Rows: a
    /// position.
    pub const TO_DEVICE_TAKEN: &str = "to_device_taken";
    /// One-time keys; key: device id, NUL, `algorithm:key id`.
    pub const ONE_TIME_KEY: &str = "one_time_key";
    /// One-time keys handed out; key: device id, NUL, the number of the page. Rows: short hashes of the keys, a list of numbers.
    pub const ISSUED_KEYS: &str = "issued_keys";
    /// Fallback keys; key: device id, NUL, algorithm.
    pub const FALLBACK_KEY: &str = "fallback_key";
    /// Versions of the key backup; key: version.
    pub const BACKUP: &str = "backup";
    /// This user's signatures on another user's master key; key: that user. Rows: a JSON object of key ids and signatures.
    pub const USER_SIGNATURE: &str = "user_signature";
}

/// A room in the user's own list: the user's latest membership, where it stands in the room, and what an invited or
/// knocking user may see of the room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoomEntry {
    /// The room.
    pub room_id: OwnedRoomId,
    /// The membership.
    pub membership: MembershipState,
    /// Where the member event stands in the room's timeline.
    pub room_position: Position,
    /// The member event.
    pub event_id: OwnedEventId,
    /// Who sent it.
    pub sender: OwnedUserId,
    /// For invites and knocks: stripped state, a JSON array. <https://spec.matrix.org/v1.19/client-server-api/#stripped-state>
    #[serde(default)]
    pub stripped_state: Bytes,
    /// The user forgot the room.
    #[serde(default)]
    pub forgotten: bool,
    /// Where this stands in the user's log.
    #[serde(default)]
    pub position: Position,
    /// Where the membership became what it is, in the user's log: a new name or picture does not move it.
    #[serde(default)]
    pub since: Position,
    /// The same in the room's timeline.
    #[serde(default)]
    pub since_room: Position,
    /// Whether the user was joined before, so that history exists for it although it left.
    #[serde(default)]
    pub was_joined: bool,
}

/// A row of account data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountData {
    /// The content, a JSON object.
    pub content: Bytes,
    /// Where the last change stands in the user's log.
    pub position: Position,
}

/// Account data changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountDataChange {
    /// The room, if it is a room's.
    pub room_id: Option<OwnedRoomId>,
    /// The type.
    pub event_type: String,
    /// The new content, a JSON object.
    pub content: Bytes,
}

/// A to-device message as the receiver gets it. <https://spec.matrix.org/v1.19/client-server-api/#send-to-device-messaging>
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToDevice {
    /// The sender.
    pub sender: OwnedUserId,
    /// The event type.
    pub event_type: String,
    /// The content, a JSON object.
    pub content: Bytes,
}

/// Key counts of one device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyCounts {
    /// The device.
    pub device_id: Option<OwnedDeviceId>,
    /// Unclaimed one-time keys by algorithm.
    pub one_time: BTreeMap<String, u64>,
    /// Algorithms with an unused fallback key.
    pub unused_fallback: Vec<String>,
    /// Where the last change stands in the user's log.
    #[serde(default)]
    pub position: Position,
}

/// The user's own devices changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicesChange {
    /// The devices touched; empty for cross-signing keys.
    pub device_ids: Vec<OwnedDeviceId>,
}

/// Access tokens died.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionsEnded {
    /// Hashes of the tokens, as in the `tokens` table.
    pub token_hashes: Vec<String>,
}

/// What other entities tell a user, delivered at least once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UserDelivery {
    /// A room tells of the user's membership. One with a lower room position than the entry that stands is ignored.
    Membership(Box<RoomEntry>),
}

/// Users, wherever they are. Commands and replies are those of `users`; this is what other services need of them.
#[async_trait]
pub trait Users: Send + Sync + std::fmt::Debug {
    /// Forgets the to-device messages of `device_id` at or below `up_to`, for its `/sync` token has passed them.
    ///
    /// # Errors
    /// If the user cannot be asked; the messages then stay.
    async fn acknowledge_to_device(
        &self,
        user_id: &UserId,
        device_id: &ruma::DeviceId,
        up_to: Position,
    ) -> Result<(), Fault>;
}
