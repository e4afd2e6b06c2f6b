//! Receipts. <https://spec.matrix.org/v1.19/client-server-api/#receipts>

use cofactor_rooms::Preset;
use cofactor_store::{key, record, tables};
use cofactor_testkit::lab::{Lab, on_both_stores, room_options};
use cofactor_types::Fault;
use cofactor_wire::room::{MembershipAction, ReceiptRecord, RoomCommand, Rooms};
use ruma::{EventId, OwnedEventId, RoomId, UserId, event_id};

async fn read(lab: &Lab, room_id: &RoomId, user_id: &UserId, kind: &str, event_id: &EventId) -> Result<(), Fault> {
    let command = RoomCommand::Receipt {
        user_id: user_id.to_owned(),
        receipt_type: kind.to_owned(),
        thread_id: String::new(),
        event_id: event_id.to_owned(),
    };
    lab.core().rooms.ask(room_id, command).await.map(drop)
}

async fn receipt(lab: &Lab, room_id: &RoomId, user_id: &UserId, kind: &str) -> Option<OwnedEventId> {
    let (partition, clustering) = (key![room_id.as_str()], key![user_id.as_str(), kind, ""]);
    // Effects follow the log where a store does not span partitions.
    lab.idle().await;
    let found = lab.core().env.store().get(&tables::RECEIPTS, &partition, &clustering).await.unwrap();
    found.map(|value| record::decode::<ReceiptRecord>(&value).unwrap().event_id)
}

#[test]
fn receipts_only_move_forwards_over_passivation_and_crashes() {
    on_both_stores(async |mut lab| {
        let (alice, bob) = (lab.account("alice").await, lab.account("bob").await);
        let room_id = lab.room(&room_options(&alice, Preset::PublicChat)).await;
        lab.member(&room_id, &bob, &bob, MembershipAction::Join).await.unwrap();
        let mut events = Vec::new();
        for number in 0..4 {
            events.push(lab.say(&room_id, &alice, "PHONE", &number.to_string(), "hello").await.unwrap());
        }
        read(&lab, &room_id, &bob, "m.read", &events[2]).await.unwrap();
        assert_eq!(receipt(&lab, &room_id, &bob, "m.read").await.as_ref(), Some(&events[2]));
        read(&lab, &room_id, &bob, "m.read", &events[0]).await.unwrap();
        assert_eq!(receipt(&lab, &room_id, &bob, "m.read").await.as_ref(), Some(&events[2]));
        lab.crash().await;
        read(&lab, &room_id, &bob, "m.read", &events[1]).await.unwrap();
        assert_eq!(receipt(&lab, &room_id, &bob, "m.read").await.as_ref(), Some(&events[2]));
        read(&lab, &room_id, &bob, "m.read", &events[3]).await.unwrap();
        assert_eq!(receipt(&lab, &room_id, &bob, "m.read").await.as_ref(), Some(&events[3]));
        // A private receipt moves by itself.
        read(&lab, &room_id, &bob, "m.read.private", &events[0]).await.unwrap();
        assert_eq!(receipt(&lab, &room_id, &bob, "m.read.private").await.as_ref(), Some(&events[0]));
        assert_eq!(receipt(&lab, &room_id, &alice, "m.read").await, None);
    });
}

#[test]
fn nobody_has_receipts_in_a_room_of_others_or_for_an_event_of_another_room() {
    on_both_stores(async |lab| {
        let (alice, bob) = (lab.account("alice").await, lab.account("bob").await);
        let room_id = lab.room(&room_options(&alice, Preset::PublicChat)).await;
        let other = lab.room(&room_options(&bob, Preset::PrivateChat)).await;
        let event_id = lab.say(&room_id, &alice, "PHONE", "t", "hello").await.unwrap();
        assert!(read(&lab, &room_id, &bob, "m.read", &event_id).await.is_err());
        assert!(read(&lab, &other, &bob, "m.read", &event_id).await.is_err());
        assert!(read(&lab, &room_id, &alice, "m.read", event_id!("$unheard-of")).await.is_err());
        lab.member(&room_id, &bob, &bob, MembershipAction::Join).await.unwrap();
        read(&lab, &room_id, &bob, "m.read", &event_id).await.unwrap();
        lab.member(&room_id, &bob, &bob, MembershipAction::Leave).await.unwrap();
        assert!(read(&lab, &room_id, &bob, "m.read", &event_id).await.is_err());
    });
}
