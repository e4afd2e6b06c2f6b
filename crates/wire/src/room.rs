//! Rooms: the records of their logs, their commands and replies.

use async_trait::async_trait;
use bytes::Bytes;
use cofactor_types::{Fault, Position};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedDeviceId, OwnedEventId, OwnedRoomAliasId, OwnedRoomId, OwnedTransactionId,
    OwnedUserId, RoomId, RoomVersionId,
};
use serde::{Deserialize, Serialize};

/// The classes of records in a room's log, and of its messages on the bus.
pub mod class {
    /// Events in the order in which this server shows them. Rows, and payload without `federation`: [`super::EventRecord`].
    pub const TIMELINE: u64 = 1;
    /// Changes of the current state, at the position of the event that caused them. Rows: [`super::StateDelta`].
    pub const STATE: u64 = 2;
    /// The same by key: sub is [`super::state_sub`]. Rows: [`super::KeyHistory`]. "What was this key at position p" is one read.
    pub const KEY_HISTORY: u64 = 3;
    /// Receipts. Rows: [`super::ReceiptRecord`].
    pub const RECEIPT: u64 = 4;
    /// A member's devices changed. Rows: [`super::DeviceChange`].
    pub const DEVICE_LIST: u64 = 5;
    /// Who is typing: on the bus only. Payload: [`super::Typing`].
    pub const TYPING: u64 = 6;
    /// An event was rewritten by a redaction: on the bus only. Payload: [`super::Rewritten`].
    pub const REWRITTEN: u64 = 7;
    /// Children of an event: sub is the parent, the position that of the child. Rows: [`crate::relation::Child`].
    pub const RELATION: u64 = 8;
    /// Events of a thread: sub is the root. Rows: [`super::Totals`] of the thread after the event.
    pub const THREAD: u64 = 9;
    /// Threads, each where its last event stands. Rows: [`crate::relation::ThreadRoot`].
    pub const THREADS: u64 = 10;
}

/// The sub of [`class::KEY_HISTORY`] for a state key.
pub fn state_sub(event_type: &str, state_key: &str) -> String {
    // NUL cannot be part of an event type that the room core accepts, so the two never run together.
    format!("{event_type}\0{state_key}")
}

/// Running totals of a room, as they stand after an event: prefix sums, so that an unread count is a difference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Events that notify a member with the default rules.
    pub notify: u64,
    /// Events that highlight for every member (`m.mentions.room` by someone who may).
    pub highlight: u64,
}

/// An event in a room's log. `json` is the final client JSON; reading never parses and encodes it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// The event id.
    pub event_id: OwnedEventId,
    /// The event type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// The state key of a state event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_key: Option<String>,
    /// The sender.
    pub sender: OwnedUserId,
    /// `origin_server_ts` in milliseconds.
    pub ts: MilliSecondsSinceUnixEpoch,
    /// The client JSON object, without `room_id` and without `unsigned`.
    pub json: Bytes,
    /// The members of the client's `unsigned` object that are the same for every reader and time (`prev_content`,
    /// `replaces_state`, `redacted_because`, …), as JSON without the braces; may be empty.
    #[serde(default)]
    pub unsigned: Bytes,
    /// What the federation form has beyond the client form, as a JSON object: `auth_events`, `prev_events`, `depth`,
    /// `hashes`, `signatures`.
    pub federation: Bytes,
    /// The device and transaction id of a local sender.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transaction: Option<Transaction>,
    /// Totals after this event.
    pub totals: Totals,
    /// Totals after this event of what is in no thread.
    #[serde(default)]
    pub main: Totals,
    /// The thread that it is part of; a root is not part of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thread: Option<InThread>,
    /// Whether it notifies a member with the default rules.
    #[serde(default)]
    pub notify: bool,
    /// Whether it highlights for every member.
    #[serde(default)]
    pub highlight: bool,
    /// The forward extremities after this event, where they are not just this event.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extremities: Vec<OwnedEventId>,
    /// Soft-failed or rejected: kept for the DAG, never shown.
    #[serde(default)]
    pub hidden: bool,
    /// The event this one redacts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redacts: Option<OwnedEventId>,
}

impl EventRecord {
    /// Whether a redaction took its content away.
    pub fn is_redacted(&self) -> bool {
        self.unsigned.starts_with(br#""redacted_because""#)
    }
}

/// The place of an event in a thread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InThread {
    /// The root.
    pub root: OwnedEventId,
    /// Where the root stands.
    pub root_position: Position,
    /// Totals of the thread after this event.
    pub totals: Totals,
}

/// A local sender's transaction.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Transaction {
    /// The device.
    pub device_id: OwnedDeviceId,
    /// The id that the client chose.
    pub txn_id: OwnedTransactionId,
}

/// Keys of the current state that changed at one position.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateDelta {
    /// The changes.
    pub changes: Vec<StateChange>,
}

/// A change of one state key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateChange {
    /// The event type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// The state key.
    pub state_key: String,
    /// Where the event that is now current stands in [`class::TIMELINE`]; `None` if the key has no event any more.
    pub position: Option<Position>,
    /// Where the event that was current before stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Position>,
}

/// What a state key was from a position on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyHistory {
    /// Where the event stands in [`class::TIMELINE`]; `None` if the key has no event from here on.
    pub position: Option<Position>,
    /// The membership, or the history visibility, that the event says: what visibility asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// A row of the `room_summaries` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Joined members.
    pub joined: u64,
    /// Invited members.
    pub invited: u64,
    /// Members to name the room by, one more than is shown, for each leaves itself out.
    /// <https://spec.matrix.org/v1.19/client-server-api/#calculating-the-display-name-for-a-room>
    pub heroes: Vec<OwnedUserId>,
    /// Where the last change stands.
    pub position: Position,
}

/// A row of the `directory` table: what is shown of a published room.
/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3publicrooms>
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicRoom {
    /// Its name.
    #[serde(default)]
    pub name: Option<String>,
    /// Its topic.
    #[serde(default)]
    pub topic: Option<String>,
    /// Its alias.
    #[serde(default)]
    pub canonical_alias: Option<String>,
    /// Its picture.
    #[serde(default)]
    pub avatar_url: Option<String>,
    /// Who may join.
    #[serde(default)]
    pub join_rule: Option<String>,
    /// Its type, such as `m.space`.
    #[serde(default)]
    pub room_type: Option<String>,
    /// Anybody may read it.
    #[serde(default)]
    pub world_readable: bool,
    /// Guests may join.
    #[serde(default)]
    pub guest_can_join: bool,
    /// Joined members.
    #[serde(default)]
    pub joined: u64,
}

/// A row of the `reports` table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The event.
    pub event_id: OwnedEventId,
    /// Who sent it.
    pub sender: OwnedUserId,
    /// Who reported it.
    pub reporter: OwnedUserId,
    /// Why.
    #[serde(default)]
    pub reason: Option<String>,
    /// When, in milliseconds since the Unix epoch.
    pub reported_ms: u64,
}

/// A row of the `room_state` table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CurrentState {
    /// Where it stands in [`class::TIMELINE`].
    pub position: Position,
    /// The event.
    pub event: EventRecord,
}

/// A receipt. <https://spec.matrix.org/v1.19/client-server-api/#receipts>
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptRecord {
    /// Who read.
    pub user_id: OwnedUserId,
    /// `m.read` or `m.read.private`; only its own user may see the latter.
    pub receipt_type: String,
    /// Empty for an unthreaded receipt, `main`, or a thread root.
    pub thread_id: String,
    /// The event read up to.
    pub event_id: OwnedEventId,
    /// Where that event stands.
    pub event_position: Position,
    /// The room's totals at that event.
    pub totals: Totals,
    /// The totals at that event of what the receipt speaks of: of its thread, or else of what is in no thread.
    #[serde(default)]
    pub scoped: Totals,
    /// When, in milliseconds.
    pub ts: MilliSecondsSinceUnixEpoch,
    /// Where this receipt stands in the log.
    #[serde(default)]
    pub position: Position,
}

/// A row of the `receipts` table whose type is [`OWN_EVENT`]: the last notifying event that the user sent, up to which
/// everything counts as read. It is no receipt that anybody sees. There is one without a thread, for readers that know of none,
/// and one for each thread and for what is in none (`main`).
pub const OWN_EVENT: &str = "own_event";

/// A row of the `mentions` table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mention {
    /// Whether the mentioned user is highlighted.
    pub highlight: bool,
    /// Whether the event notifies by the default rules anyway, and so is part of the totals.
    pub counted: bool,
    /// The root of the event's thread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thread: Option<OwnedEventId>,
}

/// A member's devices or cross-signing keys changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceChange {
    /// Whose.
    pub user_id: OwnedUserId,
}

/// Who is typing now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Typing {
    /// All of them.
    pub user_ids: Vec<OwnedUserId>,
}

/// An event in the log was rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewritten {
    /// Where it stands.
    pub position: Position,
}

/// A new event, before the room builds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewEvent {
    /// The event type.
    pub event_type: String,
    /// The state key of a state event.
    pub state_key: Option<String>,
    /// The content, a JSON object.
    pub content: Bytes,
    /// The event to redact, for `m.room.redaction`.
    #[serde(default)]
    pub redacts: Option<OwnedEventId>,
}

/// A change of membership that a user asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MembershipAction {
    /// Join, or accept an invite.
    Join,
    /// Leave, or reject an invite, or take back a knock.
    Leave,
    /// Invite the target.
    Invite,
    /// Remove the target.
    Kick,
    /// Ban the target.
    Ban,
    /// Lift the target's ban.
    Unban,
    /// Ask to be let in.
    Knock,
}

/// What a room is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoomCommand {
    /// Create the room.
    Create(Box<CreateRoom>),
    /// Send an event. Answer: [`RoomReply::Sent`].
    Send {
        /// The sender.
        sender: OwnedUserId,
        /// The transaction, which is answered alike however often it comes.
        transaction: Option<Transaction>,
        /// The event.
        event: NewEvent,
    },
    /// Change a membership. Answer: [`RoomReply::Sent`].
    Membership {
        /// Who asks.
        sender: OwnedUserId,
        /// Whose membership.
        target: OwnedUserId,
        /// The change.
        action: MembershipAction,
        /// The reason, shown to people.
        reason: Option<String>,
        /// Further members of the content, a JSON object: display name, avatar, `is_direct`, a third party's signature.
        content: Bytes,
    },
    /// A member's profile changed: put these members into its member event, if it is joined. Answer: [`RoomReply::Done`].
    Profile {
        /// The member.
        user_id: OwnedUserId,
        /// `displayname` and `avatar_url` as they now are, a JSON object.
        content: Bytes,
    },
    /// Note a receipt. Answer: [`RoomReply::Done`].
    Receipt {
        /// Who read.
        user_id: OwnedUserId,
        /// `m.read` or `m.read.private`.
        receipt_type: String,
        /// Empty, `main` or a thread root.
        thread_id: String,
        /// The event read up to.
        event_id: OwnedEventId,
    },
    /// Note who is typing. Answer: [`RoomReply::Done`].
    Typing {
        /// Who.
        user_id: OwnedUserId,
        /// For how long, in milliseconds; zero for no longer.
        timeout_ms: u64,
    },
    /// A member's devices changed. Answer: [`RoomReply::Done`].
    DeviceChanged {
        /// Whose.
        user_id: OwnedUserId,
    },
    /// Show or hide the room in the public directory. Answer: [`RoomReply::Done`].
    SetDirectory {
        /// Who asks.
        user_id: OwnedUserId,
        /// Whether to show it.
        public: bool,
    },
    /// Whether `user_id` may add (or remove, if not its own) an alias. Answer: [`RoomReply::Done`].
    MayAlias {
        /// Who asks.
        user_id: OwnedUserId,
    },
    /// Whether `user_id` is joined and may set the state of a type. Answer: [`RoomReply::Done`].
    MaySet {
        /// Who asks.
        user_id: OwnedUserId,
        /// The type.
        event_type: String,
    },
    /// Where an event stands, whether or not anybody may see it. Answer: [`RoomReply::Located`].
    Locate {
        /// The event.
        event_id: OwnedEventId,
    },
    /// The room at a glance. Answer: [`RoomReply::Overview`].
    Overview,
}

/// How to create a room. The create event is built by whoever asks, since from room version 12 its hash is the room id.
/// <https://spec.matrix.org/v1.19/client-server-api/#creation>
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateRoom {
    /// The room version.
    pub room_version: RoomVersionId,
    /// The creator.
    pub creator: OwnedUserId,
    /// The create event in federation form, a JSON object, signed.
    pub create_event: Bytes,
    /// The events that follow, in order; state events of the creator.
    pub events: Vec<NewEvent>,
    /// Invitations that follow: the user, and the content of the member event as a JSON object.
    pub invites: Vec<(OwnedUserId, Bytes)>,
    /// Show it in the public directory.
    pub public: bool,
}

/// What a room answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoomReply {
    /// Done, or nothing to do.
    Done,
    /// The event is in the log.
    Sent {
        /// Its id.
        event_id: OwnedEventId,
        /// Where it stands.
        position: Position,
    },
    /// Where an event stands.
    Located {
        /// `None`: the room does not have it.
        position: Option<Position>,
    },
    /// The room at a glance.
    Overview(Box<Overview>),
}

/// A room at a glance, as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overview {
    /// The room version.
    pub room_version: RoomVersionId,
    /// Joined members.
    pub joined: u64,
    /// Invited members.
    pub invited: u64,
    /// The end of its timeline.
    pub head: Position,
    /// Totals at the end.
    pub totals: Totals,
}

/// Rooms, wherever they are.
#[async_trait]
pub trait Rooms: Send + Sync + std::fmt::Debug {
    /// Asks a room.
    ///
    /// # Errors
    /// The room's own refusal, or [`cofactor_types::ErrorClass::Unavailable`] and its kin where it cannot be asked.
    async fn ask(&self, room_id: &RoomId, command: RoomCommand) -> Result<RoomReply, Fault>;
}

/// A row of the `aliases` table. <https://spec.matrix.org/v1.19/client-server-api/#room-aliases>
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alias {
    /// The alias.
    pub alias: OwnedRoomAliasId,
    /// The room it stands for.
    pub room_id: OwnedRoomId,
    /// Who made it.
    pub creator: OwnedUserId,
}
