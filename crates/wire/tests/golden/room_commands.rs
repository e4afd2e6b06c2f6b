//! What rooms are asked, and what they answer.

use cofactor_golden::Golden;
use cofactor_wire::room::{CreateRoom, MembershipAction, NewEvent, Overview, RoomCommand, RoomReply, Transaction};
use ruma::{RoomVersionId, owned_device_id};

use crate::{alice, bob, bytes, event, position, root, totals};

fn new_event() -> NewEvent {
    NewEvent {
        event_type: "m.room.redaction".to_owned(),
        state_key: Some("key".to_owned()),
        content: bytes("{}"),
        redacts: Some(root()),
    }
}

fn commands() -> Vec<RoomCommand> {
    let create = CreateRoom {
        room_version: RoomVersionId::V12,
        creator: alice(),
        create_event: bytes(r#"{"type":"m.room.create"}"#),
        events: vec![new_event()],
        invites: vec![(bob(), bytes(r#"{"membership":"invite"}"#))],
        public: true,
    };
    vec![
        RoomCommand::Create(Box::new(create)),
        RoomCommand::Send {
            sender: alice(),
            transaction: Some(Transaction { device_id: owned_device_id!("DEVICE"), txn_id: "txn".into() }),
            event: new_event(),
        },
        RoomCommand::Membership {
            sender: alice(),
            target: bob(),
            action: MembershipAction::Kick,
            reason: Some("because".to_owned()),
            content: bytes("{}"),
        },
        RoomCommand::Profile { user_id: alice(), content: bytes(r#"{"displayname":"A"}"#) },
        RoomCommand::Receipt {
            user_id: alice(),
            receipt_type: "m.read".to_owned(),
            thread_id: "main".to_owned(),
            event_id: event(),
        },
        RoomCommand::Typing { user_id: alice(), timeout_ms: 30_000 },
        RoomCommand::DeviceChanged { user_id: alice() },
        RoomCommand::SetDirectory { user_id: alice(), public: true },
        RoomCommand::MayAlias { user_id: alice() },
        RoomCommand::MaySet { user_id: alice(), event_type: "m.room.name".to_owned() },
        RoomCommand::Locate { event_id: event() },
        RoomCommand::Overview,
    ]
}

#[test]
fn what_rooms_are_asked_is_read_for_ever() {
    Golden::new("wire/room_command").variants(&[&commands()]);
}

#[test]
fn what_rooms_answer_is_read_for_ever() {
    let overview =
        Overview { room_version: RoomVersionId::V12, joined: 300, invited: 2, head: position(9), totals: totals(10) };
    let replies = [
        RoomReply::Done,
        RoomReply::Sent { event_id: event(), position: position(1) },
        RoomReply::Located { position: Some(position(1)) },
        RoomReply::Located { position: None },
        RoomReply::Overview(Box::new(overview)),
    ];
    Golden::new("wire/room_reply").variants(&[&replies]);
}

#[test]
fn changes_of_membership_are_read_for_ever() {
    use MembershipAction::{Ban, Invite, Join, Kick, Knock, Leave, Unban};
    Golden::new("wire/membership_action").variants(&[&[Join, Leave, Invite, Kick, Ban, Unban, Knock]]);
}
