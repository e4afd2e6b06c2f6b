//! Queues of to-device messages. <https://spec.matrix.org/v1.19/client-server-api/#send-to-device-messaging>

use std::time::Duration;

use cofactor_store::{record, tables};
use cofactor_testkit::lab::{Lab, on_both_stores};
use cofactor_types::{Position, SyncToken};
use cofactor_wire::{
    user::{ToDevice, state},
    user_command::UserCommand,
};
use ruma::{UserId, device_id};
use serde_json::Value;

async fn add(lab: &Lab, user_id: &UserId, number: u128) {
    let message = ToDevice {
        sender: user_id.to_owned(),
        event_type: "m.test".to_owned(),
        content: format!("{{\"n\":{number}}}").into(),
    };
    lab.user(user_id, UserCommand::AddToDevice { delivery: number, messages: vec![(None, message)] }).await;
}

async fn sync(lab: &Lab, user_id: &UserId, since: Option<SyncToken>) -> (Vec<u64>, SyncToken) {
    let answer: Value = serde_json::from_slice(&lab.sync(user_id, since, Duration::ZERO).await.unwrap()).unwrap();
    let events = answer["to_device"]["events"].as_array().into_iter().flatten();
    let numbers = events.map(|event| event["content"]["n"].as_u64().unwrap()).collect();
    (numbers, answer["next_batch"].as_str().unwrap().parse().unwrap())
}

/// Up to where the queue was taken, by the row that says so.
fn taken(lab: &Lab) -> Option<Position> {
    let rows = lab.store().rows(&tables::USER_STATE).into_iter();
    let mut taken = rows.filter(|(_, clustering, _)| clustering.text(0) == state::TO_DEVICE_TAKEN);
    taken.next().map(|(.., value)| record::decode(&value).unwrap())
}

#[test]
fn a_queue_is_read_from_where_it_was_taken_and_never_over_what_was_deleted() {
    on_both_stores(async |mut lab| {
        let bob = lab.account("bob").await;
        for number in 0..3 {
            add(&lab, &bob, number).await;
        }
        lab.idle().await;
        let (came, token) = sync(&lab, &bob, None).await;
        assert_eq!(came, [0, 1, 2]);
        assert_eq!(taken(&lab), None, "nothing is acknowledged yet");
        // The next request says that they came.
        add(&lab, &bob, 3).await;
        lab.idle().await;
        let (came, token) = sync(&lab, &bob, Some(token)).await;
        assert_eq!(came, [3]);
        lab.idle().await;
        let first = taken(&lab).unwrap();
        lab.crash().await;
        add(&lab, &bob, 4).await;
        lab.idle().await;
        assert_eq!(sync(&lab, &bob, None).await.0, [3, 4], "what was not acknowledged comes again");
        assert_eq!(sync(&lab, &bob, Some(token)).await.0, [4]);
        lab.idle().await;
        assert!(taken(&lab).unwrap() > first);
        let device_ids = Some(vec![device_id!("PHONE").to_owned()]);
        lab.user(&bob, UserCommand::DeleteDevices { device_ids }).await;
        lab.idle().await;
        assert_eq!(taken(&lab), None, "a device that is gone leaves nothing");
    });
}
