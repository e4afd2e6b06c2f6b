//! One-time keys. <https://spec.matrix.org/v1.19/client-server-api/#one-time-and-fallback-keys>

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use cofactor_testkit::lab::{Lab, on_both_stores};
use cofactor_wire::user_command::{UserCommand, UserReply};
use ruma::{OwnedUserId, device_id};

const ALGORITHM: &str = "signed_curve25519";

fn keys(numbers: std::ops::Range<u32>) -> BTreeMap<String, Bytes> {
    let key = |number| (format!("{ALGORITHM}:{number:03}"), format!("{{\"key\":\"{number}\"}}").into());
    numbers.map(key).collect()
}

async fn upload(lab: &Lab, user_id: &OwnedUserId, one_time: BTreeMap<String, Bytes>) -> u64 {
    let device_id = device_id!("PHONE").to_owned();
    let command = UserCommand::UploadKeys { device_id, device_keys: None, one_time, fallback: BTreeMap::new() };
    match lab.user(user_id, command).await {
        UserReply::Counts(counts) => counts.one_time[ALGORITHM],
        other => panic!("{other:?}"),
    }
}

async fn claim(lab: &Lab, user_id: &OwnedUserId) -> Option<String> {
    let keys = vec![(device_id!("PHONE").to_owned(), ALGORITHM.to_owned())];
    match lab.user(user_id, UserCommand::ClaimKeys { keys }).await {
        UserReply::Claimed(mut claimed) => claimed.pop().map(|(_, key_id, _)| key_id),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_key_is_handed_out_once_over_passivation_and_crashes_and_then_there_is_none() {
    on_both_stores(async |mut lab| {
        let alice = lab.account("alice").await;
        assert_eq!(upload(&lab, &alice, keys(0..30)).await, 30);
        let mut handed_out = BTreeSet::new();
        for round in 0..30 {
            let key_id = claim(&lab, &alice).await.unwrap();
            assert!(handed_out.insert(key_id.clone()), "{key_id} was handed out twice");
            match round % 10 {
                3 => lab.idle().await,
                7 => lab.crash().await,
                _ => {}
            }
        }
        assert_eq!(claim(&lab, &alice).await, None);
    });
}

#[test]
fn a_key_that_was_handed_out_is_never_again_even_if_it_is_uploaded_again() {
    on_both_stores(async |mut lab| {
        let alice = lab.account("alice").await;
        upload(&lab, &alice, keys(0..2)).await;
        let first = claim(&lab, &alice).await.unwrap();
        // The client never heard of its upload, and tries again after everything else has happened.
        assert_eq!(upload(&lab, &alice, keys(0..2)).await, 1);
        lab.crash().await;
        assert_eq!(upload(&lab, &alice, keys(0..2)).await, 1);
        lab.idle().await;
        let second = claim(&lab, &alice).await.unwrap();
        assert_ne!(first, second);
        assert_eq!(claim(&lab, &alice).await, None);
    });
}

#[test]
fn claims_at_once_get_different_keys() {
    on_both_stores(async |lab| {
        let alice = lab.account("alice").await;
        upload(&lab, &alice, keys(0..40)).await;
        let claimed = futures::future::join_all((0..50).map(|_| claim(&lab, &alice))).await;
        let different: BTreeSet<_> = claimed.iter().flatten().collect();
        assert_eq!((different.len(), claimed.iter().flatten().count()), (40, 40));
    });
}

#[test]
fn a_fallback_key_stands_in_when_there_is_none_left_and_is_said_to_be_used() {
    on_both_stores(async |mut lab| {
        let alice = lab.account("alice").await;
        let fallback = BTreeMap::from([(format!("{ALGORITHM}:fallback"), Bytes::from_static(b"{}"))]);
        let upload = |fallback, one_time| UserCommand::UploadKeys {
            device_id: device_id!("PHONE").to_owned(),
            device_keys: None,
            one_time,
            fallback,
        };
        lab.user(&alice, upload(fallback, keys(0..1))).await;
        assert_eq!(claim(&lab, &alice).await.unwrap(), format!("{ALGORITHM}:000"));
        lab.crash().await;
        for _ in 0..3 {
            assert_eq!(claim(&lab, &alice).await.unwrap(), format!("{ALGORITHM}:fallback"));
            lab.idle().await;
        }
        let UserReply::Counts(counts) = lab.user(&alice, upload(BTreeMap::new(), BTreeMap::new())).await else {
            panic!("no counts");
        };
        assert_eq!((counts.one_time[ALGORITHM], counts.unused_fallback), (0, vec![]));
    });
}

#[test]
fn a_device_keeps_a_bounded_number_of_keys() {
    on_both_stores(async |lab| {
        let alice = lab.account("alice").await;
        let device_id = device_id!("PHONE").to_owned();
        let one_time = keys(0..100_000);
        let command = UserCommand::UploadKeys { device_id, device_keys: None, one_time, fallback: BTreeMap::new() };
        assert!(lab.core().users.ask(&alice, command).await.is_err());
        assert_eq!(upload(&lab, &alice, keys(0..100)).await, 100);
    });
}
