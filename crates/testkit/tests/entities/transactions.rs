//! Transaction ids. <https://spec.matrix.org/v1.19/client-server-api/#transaction-identifiers>

use std::time::Duration;

use cofactor_rooms::Preset;
use cofactor_testkit::lab::{on_both_stores, room_options};
use cofactor_wire::room::MembershipAction;

#[test]
fn a_transaction_gives_the_same_event_after_the_room_left_the_memory_and_after_a_crash() {
    on_both_stores(async |mut lab| {
        let alice = lab.account("alice").await;
        let room_id = lab.room(&room_options(&alice, Preset::PrivateChat)).await;
        let first = lab.say(&room_id, &alice, "PHONE", "t1", "hello").await.unwrap();
        assert_eq!(lab.say(&room_id, &alice, "PHONE", "t1", "hello").await.unwrap(), first);
        lab.idle().await;
        assert_eq!(lab.say(&room_id, &alice, "PHONE", "t1", "something else").await.unwrap(), first);
        lab.crash().await;
        assert_eq!(lab.say(&room_id, &alice, "PHONE", "t1", "hello").await.unwrap(), first);
        assert_ne!(lab.say(&room_id, &alice, "LAPTOP", "t1", "hello").await.unwrap(), first);
        assert_ne!(lab.say(&room_id, &alice, "PHONE", "t2", "hello").await.unwrap(), first);
    });
}

#[test]
fn transactions_are_their_senders_and_their_rooms_own() {
    on_both_stores(async |lab| {
        let (alice, bob) = (lab.account("alice").await, lab.account("bob").await);
        let room_id = lab.room(&room_options(&alice, Preset::PublicChat)).await;
        let other = lab.room(&room_options(&alice, Preset::PublicChat)).await;
        lab.member(&room_id, &bob, &bob, MembershipAction::Join).await.unwrap();
        let of_alice = lab.say(&room_id, &alice, "PHONE", "t", "hello").await.unwrap();
        assert_ne!(lab.say(&room_id, &bob, "PHONE", "t", "hello").await.unwrap(), of_alice);
        assert_ne!(lab.say(&other, &alice, "PHONE", "t", "hello").await.unwrap(), of_alice);
    });
}

#[test]
fn a_transaction_is_forgotten_after_a_day_but_not_before() {
    on_both_stores(async |mut lab| {
        let alice = lab.account("alice").await;
        let room_id = lab.room(&room_options(&alice, Preset::PrivateChat)).await;
        let first = lab.say(&room_id, &alice, "PHONE", "t", "hello").await.unwrap();
        lab.skip(Duration::from_secs(23 * 3_600)).await;
        assert_eq!(lab.say(&room_id, &alice, "PHONE", "t", "hello").await.unwrap(), first);
        lab.skip(Duration::from_secs(2 * 3_600)).await;
        lab.say(&room_id, &alice, "PHONE", "another", "hello").await.unwrap();
        assert_ne!(lab.say(&room_id, &alice, "PHONE", "t", "hello").await.unwrap(), first);
    });
}

#[test]
fn the_same_transaction_sent_many_times_at_once_gives_one_event() {
    on_both_stores(async |lab| {
        let alice = lab.account("alice").await;
        let room_id = lab.room(&room_options(&alice, Preset::PrivateChat)).await;
        let sends = (0..50).map(|_| lab.say(&room_id, &alice, "PHONE", "t", "hello"));
        let event_ids = futures::future::join_all(sends).await;
        let first = event_ids[0].as_ref().unwrap();
        assert!(event_ids.iter().all(|event_id| event_id.as_ref().unwrap() == first));
    });
}
