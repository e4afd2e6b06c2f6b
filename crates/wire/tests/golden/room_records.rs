//! The records of rooms.

use cofactor_golden::Golden;
use cofactor_wire::{
    relation::{Aggregate, Child, Edit, Reference, Thread, ThreadRoot},
    room::{
        Alias, CurrentState, DeviceChange, KeyHistory, Mention, PublicRoom, ReceiptRecord, Report, Rewritten,
        StateChange, StateDelta, Summary, Totals, Typing,
    },
};
use ruma::owned_room_alias_id;

use crate::{alice, bob, event, event_record, position, room, root, totals, ts};

#[test]
fn events_are_read_for_ever() {
    let optional = [
        "state_key",
        "unsigned",
        "transaction",
        "main",
        "thread",
        "notify",
        "highlight",
        "extremities",
        "hidden",
        "redacts",
    ];
    Golden::new("store/event").optional(&optional).record(&[event_record()]);
    Golden::new("store/current_state").record(&[CurrentState { position: position(1), event: event_record() }]);
}

#[test]
fn states_are_read_for_ever() {
    let change = StateChange {
        event_type: "m.room.name".to_owned(),
        state_key: "key".to_owned(),
        position: Some(position(2)),
        before: Some(position(1)),
    };
    Golden::new("store/state_delta").record(&[StateDelta { changes: vec![change] }]);
    let history = KeyHistory { position: Some(position(1)), value: Some("shared".to_owned()) };
    Golden::new("store/key_history").optional(&["position", "value"]).record(&[history]);
    let summary = Summary { joined: 300, invited: 2, heroes: vec![alice(), bob()], position: position(9) };
    Golden::new("store/summary").record(&[summary]);
    Golden::new("store/totals").record(&[Totals { notify: 300, highlight: 7 }]);
}

#[test]
fn receipts_and_mentions_are_read_for_ever() {
    let receipt = ReceiptRecord {
        user_id: alice(),
        receipt_type: "m.read".to_owned(),
        thread_id: "main".to_owned(),
        event_id: event(),
        event_position: position(1),
        totals: totals(10),
        scoped: totals(8),
        ts: ts(),
        position: position(2),
    };
    Golden::new("store/receipt").optional(&["scoped", "position"]).record(&[receipt]);
    let mention = Mention { highlight: true, counted: true, thread: Some(root()) };
    Golden::new("store/mention").optional(&["thread"]).record(&[mention]);
}

#[test]
fn relations_are_read_for_ever() {
    let child = Child {
        event_id: event(),
        rel_type: "m.replace".to_owned(),
        event_type: "m.room.message".to_owned(),
        sender: alice(),
        ts: ts(),
        edits: true,
    };
    Golden::new("store/child").optional(&["edits"]).record(&[child]);
    let aggregate = Aggregate {
        edit: Some(Edit { position: position(1), ts: ts(), event_id: event() }),
        thread: Some(Thread { latest: position(2), active: position(3), count: 300, totals: totals(10) }),
        references: vec![Reference { position: position(4), event_id: event() }],
    };
    Golden::new("store/aggregate").optional(&["edit", "thread", "references"]).record(&[aggregate]);
    let thread = ThreadRoot { root: root(), root_position: position(1), totals: totals(10) };
    Golden::new("store/thread_root").record(&[thread]);
}

#[test]
fn rows_of_the_directory_are_read_for_ever() {
    let text = |text: &str| Some(text.to_owned());
    let card = PublicRoom {
        name: text("name"),
        topic: text("topic"),
        canonical_alias: text("#alias:example.org"),
        avatar_url: text("mxc://example.org/picture"),
        join_rule: text("public"),
        room_type: text("m.space"),
        world_readable: true,
        guest_can_join: true,
        joined: 300,
    };
    let optional = [
        "name",
        "topic",
        "canonical_alias",
        "avatar_url",
        "join_rule",
        "room_type",
        "world_readable",
        "guest_can_join",
        "joined",
    ];
    Golden::new("store/public_room").optional(&optional).record(&[card]);
    let alias = Alias { alias: owned_room_alias_id!("#alias:example.org"), room_id: room(), creator: alice() };
    Golden::new("store/alias").record(&[alias]);
    let report = Report {
        event_id: event(),
        sender: alice(),
        reporter: bob(),
        reason: Some("because".to_owned()),
        reported_ms: 1_780_000_000_000,
    };
    Golden::new("store/report").optional(&["reason"]).record(&[report]);
}

#[test]
fn messages_on_the_bus_are_read_for_ever() {
    Golden::new("store/device_change").record(&[DeviceChange { user_id: alice() }]);
    Golden::new("wire/typing").record(&[Typing { user_ids: vec![alice(), bob()] }]);
    Golden::new("wire/rewritten").record(&[Rewritten { position: position(1) }]);
}
