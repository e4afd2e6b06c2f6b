//! Stored records and the messages of nodes, as bytes; see `cofactor_golden` for what is held and how to change one.

use bytes::Bytes;
use cofactor_golden::Golden;
use cofactor_types::{Epoch, ErrorClass, Position, ShardId};
use cofactor_wire::{
    node::ShardCall,
    room::{EventRecord, InThread, RoomCommand, RoomReply, Totals, Transaction},
    status::{KindStatus, Latency, NodeStatus, SyncStatus},
    user::RoomEntry,
};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId, UInt, event_id,
    events::room::member::MembershipState, owned_device_id, room_id, user_id,
};

mod room_commands;
mod room_records;
mod user_commands;
mod user_records;

fn position(number: u64) -> Position {
    Position(1_780_000_000_000_000 + number)
}

fn ts() -> MilliSecondsSinceUnixEpoch {
    MilliSecondsSinceUnixEpoch(UInt::from(1_780_000_000_u32))
}

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn alice() -> OwnedUserId {
    user_id!("@alice:example.org").to_owned()
}

fn bob() -> OwnedUserId {
    user_id!("@bob:example.org").to_owned()
}

fn room() -> OwnedRoomId {
    room_id!("!room:example.org").to_owned()
}

fn event() -> OwnedEventId {
    event_id!("$event").to_owned()
}

fn root() -> OwnedEventId {
    event_id!("$root").to_owned()
}

fn totals(number: u64) -> Totals {
    Totals { notify: number, highlight: number / 2 }
}

fn event_record() -> EventRecord {
    EventRecord {
        event_id: event(),
        event_type: "m.room.message".to_owned(),
        state_key: Some("key".to_owned()),
        sender: alice(),
        ts: ts(),
        json: bytes(r#"{"content":{"body":"hello"}}"#),
        unsigned: bytes(r#""replaces_state":"$before""#),
        federation: bytes(r#"{"depth":7}"#),
        transaction: Some(Transaction { device_id: owned_device_id!("DEVICE"), txn_id: "txn".into() }),
        totals: totals(300),
        main: totals(200),
        thread: Some(InThread { root: root(), root_position: position(1), totals: totals(100) }),
        notify: true,
        highlight: true,
        extremities: vec![event(), root()],
        hidden: true,
        redacts: Some(root()),
    }
}

#[test]
fn an_event_is_the_same_whether_its_texts_are_copied_or_shared() {
    let whole = event_record();
    let bare = EventRecord {
        state_key: None,
        unsigned: Default::default(),
        transaction: None,
        thread: None,
        extremities: Vec::new(),
        redacts: None,
        ..event_record()
    };
    for event in [whole, bare] {
        let row = cofactor_wire::encode(&event).unwrap();
        let shared = EventRecord::read(&row).unwrap();
        assert_eq!(shared, event);
        assert_eq!(shared, cofactor_wire::decode(&row).unwrap());
        assert!(row.as_ptr_range().contains(&shared.json.as_ptr()), "not copied");
    }
    assert!(EventRecord::read(&bytes("no event")).is_err());
}

fn room_entry() -> RoomEntry {
    RoomEntry {
        room_id: room(),
        membership: MembershipState::Invite,
        room_position: position(1),
        event_id: event(),
        sender: bob(),
        stripped_state: bytes("[{}]"),
        forgotten: true,
        position: position(2),
        since: position(3),
        since_room: position(4),
        was_joined: true,
    }
}

#[test]
fn what_the_keeper_of_shards_is_told_is_read_for_ever() {
    let released = ShardCall::Released { shards: vec![ShardId(3), ShardId(1023)] };
    let coming = ShardCall::Coming { shards: vec![(ShardId(3), Epoch(300))] };
    Golden::new("wire/shard_call").variants(&[&[released], &[coming]]);
}

#[test]
fn what_a_node_says_of_itself_is_read_for_ever() {
    let kind = || KindStatus { live: 300, queued: 7, busiest: vec![("!room:example.org".to_owned(), 5)] };
    let latency = Some(Latency { p50_ms: 0.5, p99_ms: 2.25 });
    let status = NodeStatus {
        version: "0.1.0".to_owned(),
        is_ready: true,
        shards_owned: 1024,
        members: 7,
        lease_remaining_ms: 5_000,
        rooms: kind(),
        users: kind(),
        append: latency,
        read: latency,
        bus: latency,
        sync: Some(SyncStatus { waiting: 300, slots: 1_000, lag_ms: Some(100) }),
        memory_bytes: 1 << 30,
    };
    let optional = [
        "version",
        "is_ready",
        "shards_owned",
        "members",
        "lease_remaining_ms",
        "rooms",
        "users",
        "append",
        "read",
        "bus",
        "sync",
        "memory_bytes",
    ];
    Golden::new("wire/node_status").optional(&optional).record(&[status]);
}

/// As a later release may call a new command.
const LATER: &[u8] = b"\x81\xa3new\x80";

#[test]
fn a_command_of_a_later_release_is_refused_before_anything_happened() {
    let refused = cofactor_wire::asked::<RoomCommand>(LATER).unwrap_err();
    assert_eq!(refused.class, ErrorClass::Unavailable);
    assert!(refused.message.contains("older than the caller"), "{refused}");
}

#[test]
fn a_reply_of_a_later_release_promises_nothing() {
    assert_eq!(cofactor_wire::answered::<RoomReply>(LATER).unwrap_err().class, ErrorClass::Unknown);
}

#[test]
fn records_are_messagepack_with_named_fields() {
    let event = event_record();
    let written = cofactor_wire::encode(&event).unwrap();
    assert_eq!(written, rmp_serde::to_vec_named(&event).unwrap());
    assert_eq!(cofactor_wire::decode::<EventRecord>(&written).unwrap(), event);
}
