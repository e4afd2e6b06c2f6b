//! Logs that grow beyond one partition.

use cofactor_store::tables;
use cofactor_testkit::lab::{Lab, on_both_stores};
use cofactor_types::Position;
use cofactor_wire::{user::ToDevice, user_command::UserCommand};
use ruma::device_id;

fn buckets(lab: &Lab) -> usize {
    lab.store().rows(&tables::LOG_BUCKETS).len()
}

#[test]
fn a_user_goes_on_in_a_new_bucket_and_old_messages_can_be_acknowledged() {
    on_both_stores(async |mut lab| {
        let (alice, bob) = (lab.account("alice").await, lab.account("bob").await);
        let message = |number: usize| ToDevice {
            sender: alice.clone(),
            event_type: "m.test".to_owned(),
            content: format!("{{\"n\":{number},\"x\":\"{}\"}}", "x".repeat(900_000)).into(),
        };
        let mut count = 0;
        while buckets(&lab) == 0 {
            let messages = vec![(None, message(count))];
            lab.user(&bob, UserCommand::AddToDevice { delivery: count as u128, messages }).await;
            count += 1;
            assert!(count < 100, "no bucket is sealed");
        }
        lab.crash().await;
        let messages = vec![(None, message(count))];
        lab.user(&bob, UserCommand::AddToDevice { delivery: count as u128, messages: messages.clone() }).await;
        // Tried again, it is there once.
        lab.user(&bob, UserCommand::AddToDevice { delivery: count as u128, messages }).await;
        let waiting = || lab.store().rows(&tables::USER_LOG).into_iter().filter(|(_, _, value)| value.len() > 900_000);
        assert_eq!(waiting().count(), count + 1);
        let device_id = device_id!("PHONE").to_owned();
        lab.user(&bob, UserCommand::AckToDevice { device_id, up_to: Position::MAX }).await;
        lab.idle().await;
        assert_eq!(waiting().count(), 0, "acknowledged messages stay in the sealed bucket");
    });
}
