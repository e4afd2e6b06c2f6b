//! What `/sync` says of stays in a room. <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3sync>

use std::time::Duration;

use cofactor_bus::{Delivery, Listener};
use cofactor_rooms::Preset;
use cofactor_store::{Durability, Key, Mutation, Store, Table, key, model::Faults, tables};
use cofactor_testkit::lab::{Lab, on_both_stores, room_options};
use cofactor_types::{EntityId, Position, SyncToken, limits::TOKEN_EXCEPTIONS_MAX};
use cofactor_wire::{
    room::MembershipAction,
    user::state,
    user_command::{Expected, UserCommand},
};
use ruma::{RoomId, UserId};
use serde_json::Value;

async fn sync(lab: &Lab, user_id: &UserId, since: Option<SyncToken>) -> Value {
    serde_json::from_slice(&lab.sync(user_id, since, Duration::ZERO).await.unwrap()).unwrap()
}

/// What a section says of a room: memberships and bodies, in order.
fn told(answer: &Value, section: &str, room_id: &RoomId) -> Vec<String> {
    let events = answer["rooms"][section][room_id.as_str()]["timeline"]["events"].as_array();
    let what = |event: &Value| {
        let content = &event["content"];
        content["membership"].as_str().or(content["body"].as_str()).unwrap_or("?").to_owned()
    };
    events.into_iter().flatten().map(what).collect()
}

fn next(answer: &Value) -> SyncToken {
    answer["next_batch"].as_str().unwrap().parse().unwrap()
}

async fn head(lab: &Lab, room_id: &RoomId) -> Position {
    lab.core().history.last_at(room_id, Position::MAX).await.unwrap().unwrap().position
}

#[test]
fn a_stay_that_began_and_ended_between_two_answers_is_told_from_its_join_on() {
    on_both_stores(async |lab| {
        let (alice, bob) = (lab.account("alice").await, lab.account("bob").await);
        let room_id = lab.room(&room_options(&alice, Preset::PublicChat)).await;
        for action in [MembershipAction::Join, MembershipAction::Leave] {
            lab.member(&room_id, &bob, &bob, action).await.unwrap();
        }
        lab.idle().await;
        let before = sync(&lab, &bob, None).await["next_batch"].as_str().unwrap().parse().unwrap();
        lab.member(&room_id, &bob, &bob, MembershipAction::Join).await.unwrap();
        // A token may pass over the join before the user's own log tells of it.
        let passed = SyncToken::new(head(&lab, &room_id).await);
        lab.say(&room_id, &bob, "PHONE", "1", "hello").await.unwrap();
        lab.member(&room_id, &bob, &bob, MembershipAction::Leave).await.unwrap();
        lab.say(&room_id, &alice, "PHONE", "2", "he is gone").await.unwrap();
        lab.idle().await;
        for since in [before, passed] {
            let answer = sync(&lab, &bob, Some(since)).await;
            assert_eq!(told(&answer, "leave", &room_id), ["join", "hello", "leave"], "{answer}");
            let after = answer["next_batch"].as_str().unwrap().parse().unwrap();
            let later = sync(&lab, &bob, Some(after)).await;
            assert_eq!(told(&later, "leave", &room_id), [""; 0], "{later}");
        }
    });
}

#[test]
fn who_was_removed_sees_nothing_of_what_follows_though_its_own_list_does_not_say_so_yet() {
    on_both_stores(async |lab| {
        let (alice, bob) = (lab.account("alice").await, lab.account("bob").await);
        let room_id = lab.room(&room_options(&alice, Preset::PublicChat)).await;
        lab.member(&room_id, &bob, &bob, MembershipAction::Join).await.unwrap();
        lab.idle().await;
        let mut since = next(&sync(&lab, &bob, None).await);
        // From when the room has it, the store is slow: the user's list takes a while to be told.
        let appends = lab.store().appends();
        let slow = async {
            while lab.store().appends() == appends {
                tokio::time::sleep(Duration::from_micros(10)).await;
            }
            lab.store().set_faults(Faults { latency_us_max: 500_000, ..Faults::default() });
        };
        let kick = lab.member(&room_id, &alice, &bob, MembershipAction::Kick);
        lab.store().set_faults(Faults { latency_us_max: 2_000, ..Faults::default() });
        let talk = async {
            slow.await;
            for number in 0..8 {
                lab.say(&room_id, &alice, "PHONE", &number.to_string(), "he is gone").await.unwrap();
            }
        };
        let mut behind = Vec::new();
        let follow = async {
            loop {
                tokio::time::sleep(Duration::from_millis(1)).await;
                let answer = sync(&lab, &bob, Some(since.clone())).await;
                assert_eq!(told(&answer, "join", &room_id), [""; 0], "{answer}");
                since = next(&answer);
                let left = told(&answer, "leave", &room_id);
                if !left.is_empty() {
                    assert_eq!(left, ["leave"], "{answer}");
                    return;
                }
                behind.push(since.clone());
            }
        };
        let (kicked, (), ()) = tokio::join!(kick, talk, follow);
        kicked.unwrap();
        lab.store().set_faults(Faults::default());
        let leave =
            lab.core().history.current(&room_id, "m.room.member", bob.as_str()).await.unwrap().unwrap().position;
        // Who was not told of the leave has a token that does not pass over it.
        let room = EntityId::room(&room_id);
        assert!(behind.iter().all(|token| token.lower_bound(&room) < leave));
    });
}

#[test]
fn what_was_said_before_a_leave_is_told_though_the_leave_comes_while_an_answer_is_made() {
    on_both_stores(async |lab| {
        let (alice, bob) = (lab.account("alice").await, lab.account("bob").await);
        let room_id = lab.room(&room_options(&alice, Preset::PublicChat)).await;
        for round in 0..5 {
            lab.member(&room_id, &bob, &bob, MembershipAction::Join).await.unwrap();
            lab.idle().await;
            let mut since = next(&sync(&lab, &bob, None).await);
            for number in 0..2 {
                lab.say(&room_id, &alice, "PHONE", &format!("{round} {number}"), "to you").await.unwrap();
            }
            // With something of bob's own to look for, an answer reads before it looks at the rooms.
            let content = format!("{{\"round\":{round}}}").into();
            let (event_type, expected) = ("org.example".into(), Expected::Anything);
            lab.user(&bob, UserCommand::SetAccountData { room_id: None, event_type, content, expected }).await;
            lab.idle().await;
            let leave = async {
                tokio::time::sleep(Duration::from_millis(1)).await;
                lab.store().set_faults(Faults::default());
                lab.member(&room_id, &bob, &bob, MembershipAction::Leave).await.unwrap();
            };
            lab.store().set_faults(Faults { latency_us_max: 1_000_000, ..Faults::default() });
            let (mut answer, ()) = tokio::join!(sync(&lab, &bob, Some(since)), leave);
            let mut came = Vec::new();
            for _ in 0..5 {
                came.extend(["join", "leave"].iter().flat_map(|section| told(&answer, section, &room_id)));
                since = next(&answer);
                lab.idle().await;
                answer = sync(&lab, &bob, Some(since)).await;
            }
            assert_eq!(came, ["to you", "to you", "leave"]);
        }
    });
}

#[test]
fn what_an_append_changes_is_not_passed_over_by_who_reads_the_append_first() {
    on_both_stores(async |lab| {
        if lab.store().spans_partitions() {
            // There both appear at the same moment.
            return;
        }
        let bob = lab.account("bob").await;
        let set = |content: &'static str| {
            let (content, event_type, expected) = (content.into(), "org.example".into(), Expected::Anything);
            lab.user(&bob, UserCommand::SetAccountData { room_id: None, event_type, content, expected })
        };
        set("{\"number\":1}").await;
        lab.idle().await;
        let since = next(&sync(&lab, &bob, None).await);
        let rows = [
            (&tables::USER_STATE, key![bob.as_str()], key![state::ACCOUNT_DATA, "org.example"]),
            (&tables::CHECKPOINTS, key!["user", bob.as_str()], Key::EMPTY),
        ];
        let read = async || {
            let row = async |(table, partition, clustering): &(&'static Table, Key, Key)| Mutation {
                table,
                partition: partition.clone(),
                clustering: clustering.clone(),
                value: lab.store().get(table, partition, clustering).await.unwrap(),
            };
            futures::future::join_all(rows.iter().map(row)).await
        };
        let before = read().await;
        set("{\"number\":2}").await;
        let display_name = Some("a phone".to_owned());
        lab.user(&bob, UserCommand::UpdateDevice { device_id: "PHONE".into(), display_name }).await;
        let after = read().await;
        // As it was when the appends stood, and before what they change did. Somebody begins to listen then.
        lab.store().write(before, Durability::Synced).await.unwrap();
        lab.core().service.as_ref().unwrap().hear(&Delivery::Gap);
        let since = next(&sync(&lab, &bob, Some(since)).await);
        lab.store().write(after, Durability::Synced).await.unwrap();
        lab.core().service.as_ref().unwrap().hear(&Delivery::Gap);
        let answer = sync(&lab, &bob, Some(since)).await;
        assert_eq!(answer["account_data"]["events"][0]["content"]["number"], 2, "{answer}");
    });
}

#[test]
fn many_rooms_joined_at_once_are_all_told_from_the_beginning_and_one_left_after_them_once() {
    // More than a token has exceptions.
    const ROOMS: usize = TOKEN_EXCEPTIONS_MAX + 20;
    on_both_stores(async |lab| {
        let (alice, bob) = (lab.account("alice").await, lab.account("bob").await);
        let mut rooms = Vec::new();
        for _ in 0..ROOMS {
            rooms.push(lab.room(&room_options(&alice, Preset::PublicChat)).await);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let left = lab.room(&room_options(&alice, Preset::PublicChat)).await;
        lab.member(&left, &bob, &bob, MembershipAction::Join).await.unwrap();
        lab.idle().await;
        let mut since = next(&sync(&lab, &bob, None).await);
        lab.say(&left, &alice, "PHONE", "before", "to you").await.unwrap();
        lab.idle().await;
        let joins = rooms.iter().map(|room_id| lab.member(room_id, &bob, &bob, MembershipAction::Join));
        futures::future::join_all(joins).await.into_iter().for_each(|joined| drop(joined.unwrap()));
        lab.member(&left, &bob, &bob, MembershipAction::Leave).await.unwrap();
        let mut joined = std::collections::BTreeSet::new();
        let mut came = Vec::new();
        for _ in 0..20 {
            // What does not fit and must not be passed over either may have to wait for a moment.
            if let Ok(answer) = lab.sync(&bob, Some(since.clone()), Duration::ZERO).await {
                let answer: Value = serde_json::from_slice(&answer).unwrap();
                since = next(&answer);
                came.extend(["join", "leave"].iter().flat_map(|section| told(&answer, section, &left)));
                joined.extend(
                    rooms.iter().filter(|room_id| told(&answer, "join", room_id).iter().any(|what| what == "join")),
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(joined.len(), ROOMS);
        assert_eq!(came, ["to you", "leave"], "told once, though the leave follows on joins that did not fit");
    });
}
