//! What an event costs those who wait for it, and what they see of it.

use std::time::Duration;

use cofactor_bus::Delivery;
use cofactor_rooms::Preset;
use cofactor_store::{record, tables};
use cofactor_testkit::lab::{Lab, on_both_stores, room_options};
use cofactor_types::SyncToken;
use cofactor_wire::room::{EventRecord, MembershipAction, NewEvent, RoomCommand, Rooms, class};
use futures::future::join_all;
use ruma::{EventId, OwnedUserId, RoomId, UserId};
use serde_json::Value;

const WAITERS: usize = 100;

async fn sync(lab: &Lab, user_id: &UserId, since: Option<SyncToken>) -> (String, SyncToken) {
    let body = lab.sync(user_id, since, Duration::from_secs(30)).await.unwrap();
    let json: Value = serde_json::from_slice(&body).unwrap();
    let token = json["next_batch"].as_str().unwrap().parse().unwrap();
    (String::from_utf8(body.to_vec()).unwrap(), token)
}

/// All wait, `body` is said, all have it; their tokens.
async fn wake(lab: &Lab, room_id: &RoomId, waiters: &[OwnedUserId], since: &[SyncToken], body: &str) -> Vec<SyncToken> {
    let waiting = waiters.iter().zip(since).map(|(waiter, token)| sync(lab, waiter, Some(token.clone())));
    let say = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        lab.say(room_id, &waiters[0], "PHONE", &body.len().to_string(), body).await.unwrap();
    };
    let (answers, ()) = futures::join!(join_all(waiting), say);
    answers.iter().for_each(|(answer, _)| assert!(answer.contains(body), "{answer}"));
    answers.into_iter().map(|(_, token)| token).collect()
}

async fn full_room(lab: &Lab) -> (ruma::OwnedRoomId, Vec<OwnedUserId>, Vec<SyncToken>) {
    let mut waiters = Vec::new();
    for number in 0..WAITERS {
        waiters.push(lab.account(&format!("waiter-{number}")).await);
    }
    let room_id = lab.room(&room_options(&waiters[0], Preset::PublicChat)).await;
    for waiter in &waiters[1..] {
        lab.member(&room_id, waiter, waiter, MembershipAction::Join).await.unwrap();
    }
    let mut tokens = Vec::new();
    for waiter in &waiters {
        tokens.push(sync(lab, waiter, None).await.1);
        // So that no two of them were here at the same time.
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    (room_id, waiters, tokens)
}

#[test]
fn an_event_is_read_for_none_of_a_hundred_waiters() {
    on_both_stores(async |lab| {
        let (room_id, waiters, tokens) = full_room(&lab).await;
        let tokens = wake(&lab, &room_id, &waiters, &tokens, "first").await;
        let before = lab.store().reads(&tables::ROOM_LOG);
        wake(&lab, &room_id, &waiters, &tokens, "second").await;
        assert_eq!(lab.store().reads(&tables::ROOM_LOG) - before, 0);
    });
}

#[test]
fn nobody_is_shown_what_a_redaction_took_away() {
    on_both_stores(async |lab| {
        let (room_id, waiters, tokens) = full_room(&lab).await;
        wake(&lab, &room_id, &waiters, &tokens, "a-secret").await;
        let (before, _) = sync(&lab, &waiters[1], Some(tokens[1].clone())).await;
        let secret = event_id_of(&before, &room_id, "a-secret");
        let waiting = waiters.iter().zip(&tokens).skip(2).map(|(waiter, token)| async {
            let (answer, token) = sync(&lab, waiter, Some(token.clone())).await;
            assert!(answer.contains("a-secret"));
            // The next one comes with the redaction; whoever asks again from the beginning gets what is left.
            let (redaction, _) = sync(&lab, waiter, Some(token)).await;
            assert!(redaction.contains("m.room.redaction"), "{redaction}");
        });
        let redact = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            redact(&lab, &room_id, &waiters[0], &secret).await;
        };
        futures::join!(join_all(waiting), redact);
        for (waiter, token) in waiters.iter().zip(&tokens) {
            let (after, _) = sync(&lab, waiter, Some(token.clone())).await;
            assert!(!after.contains("a-secret") && after.contains("redacted_because"), "{after}");
        }
    });
}

fn event_id_of(answer: &str, room_id: &RoomId, body: &str) -> ruma::OwnedEventId {
    let json: Value = serde_json::from_str(answer).unwrap();
    let events = json["rooms"]["join"][room_id.as_str()]["timeline"]["events"].as_array().unwrap();
    let event = events.iter().find(|event| event["content"]["body"] == body).unwrap();
    EventId::parse(event["event_id"].as_str().unwrap()).unwrap()
}

async fn redact(lab: &Lab, room_id: &RoomId, sender: &UserId, event_id: &EventId) {
    let event = NewEvent {
        event_type: "m.room.redaction".to_owned(),
        state_key: None,
        content: serde_json::json!({ "redacts": event_id }).to_string().into(),
        redacts: Some(event_id.to_owned()),
    };
    let command = RoomCommand::Send { sender: sender.to_owned(), transaction: None, event };
    lab.core().rooms.ask(room_id, command).await.unwrap();
}

/// What an event weighs on the bus beside its own JSON, in bytes: names of fields, ids, totals.
const BESIDE_JSON_BYTES_MAX: usize = 400;

#[test]
fn an_event_weighs_on_the_bus_what_clients_see_of_it() {
    on_both_stores(async |lab| {
        let alice = lab.account("alice").await;
        let room_id = lab.room(&room_options(&alice, Preset::PublicChat)).await;
        let mut heard = lab.core().env.bus().subscribe();
        lab.say(&room_id, &alice, "PHONE", "t", "hello").await.unwrap();
        let record = loop {
            if let Some(Delivery::Record(record)) = heard.next().await
                && record.class == class::TIMELINE
            {
                break record;
            }
        };
        let event: EventRecord = record::decode(&record.payload).unwrap();
        assert!(event.federation.is_empty() && !event.json.is_empty());
        let beside = record.payload.len() - event.json.len();
        println!("payload: {} bytes, of which JSON: {}", record.payload.len(), event.json.len());
        assert!(beside <= BESIDE_JSON_BYTES_MAX, "{beside} bytes");
        let found = lab.core().history.last_at(&room_id, cofactor_types::Position::MAX).await.unwrap().unwrap();
        println!("stored: {} bytes", record::encode(&found.event).unwrap().len());
        assert!(!found.event.federation.is_empty());
    });
}
