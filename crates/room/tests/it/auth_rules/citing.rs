//! Rules 1 to 3: the create event, the room id and the auth events.

use std::sync::Arc;

use cofactor_room::{AuthError, EventSource, Pdu, check_auth_events};
use ruma::{CanonicalJsonObject, CanonicalJsonValue};
use serde_json::{Value, json};

use super::Room;
use crate::support::{ALICE, BOB, CAROL, IntoOwnedValue, State, World, object};

/// A create event with parts of its JSON changed.
fn create(version: u8, change: impl Fn(&mut CanonicalJsonObject)) -> Result<(), AuthError> {
    let world = World::named(&version.to_string());
    let mut object = world.create(ALICE, &json!({})).to_canonical_object();
    change(&mut object);
    let pdu = Pdu::from_canonical(object, world.version).unwrap();
    check_auth_events(&pdu, &world)
}

fn content(object: &mut CanonicalJsonObject) -> &mut CanonicalJsonObject {
    match object.get_mut("content") {
        Some(CanonicalJsonValue::Object(content)) => content,
        _ => panic!("an event has content"),
    }
}

#[test]
fn rule_1_judges_the_create_event() {
    for version in 1..=12_u8 {
        create(version, |_| {}).unwrap();
        let refused = |what: &str, change: &dyn Fn(&mut CanonicalJsonObject)| {
            assert!(matches!(create(version, change), Err(AuthError::Invalid(_))), "{what}, version {version}");
        };
        refused("previous events", &|object| {
            let reference = match version {
                1 | 2 => json!([["$x:a.test", { "sha256": "x" }]]),
                _ => json!(["$x"]),
            };
            object.insert("prev_events".to_owned(), serde_json::from_value(reference).unwrap());
        });
        refused("room id", &|object| {
            object.insert("room_id".to_owned(), "!room:other.test".into_owned_value());
        });
        refused("unknown version", &|object| {
            content(object).insert("room_version".to_owned(), "org.example.none".into_owned_value());
        });
        // S31: the version is the one that the create event names, not one that a peer claims.
        refused("another version", &|object| {
            let other = if version == 12 { "11" } else { "12" };
            content(object).insert("room_version".to_owned(), other.into_owned_value());
        });
        refused("state key", &|object| {
            object.insert("state_key".to_owned(), "x".into_owned_value());
        });
        let absent = create(version, |object| {
            content(object).remove("room_version");
        });
        assert_eq!(absent.is_ok(), version == 1, "no version means version 1");
        let without_creator = create(version, |object| {
            content(object).remove("creator");
        });
        assert_eq!(without_creator.is_ok(), version >= 11);
        for wrong in [json!("x"), json!(["x"]), json!([1]), json!(null), json!(["@a:b.test", "nobody"])] {
            let malformed = create(version, |object| {
                let wrong = serde_json::from_value(wrong.clone()).unwrap();
                content(object).insert("additional_creators".to_owned(), wrong);
            });
            assert_eq!(malformed.is_ok(), version < 12, "{wrong}");
        }
    }
    let named = |object: &mut CanonicalJsonObject| {
        let list = serde_json::from_value(json!(["@b:b.test"])).unwrap();
        content(object).insert("additional_creators".to_owned(), list);
    };
    create(12, named).unwrap();
}

/// S2: in version 12 the create event's hash names the room, in the event and out of it.
#[test]
fn a_version_12_room_is_named_by_its_create_event() {
    let world = World::named("12");
    let first = world.create(ALICE, &json!({}));
    assert_eq!(first.room_id().as_str(), first.event_id().as_str().replace('$', "!"));
    assert!(!first.federation_json().contains("room_id"));
    let second = World::named("12").create(ALICE, &json!({ "x": 1 }));
    assert_ne!(first.room_id(), second.room_id());
}

#[test]
fn a_room_takes_no_second_create_event() {
    for version in 1..=12 {
        let room = Room::new(version, "public");
        let other = World::named(&version.to_string());
        // In versions 1 and 2 the number makes the event id.
        other.serial.set(1_000);
        let second = other.create(ALICE, &json!({ "second": true }));
        assert!(cofactor_room::authorize_event(&second, &room.state).is_err());
        let first = room.state.at("m.room.create", "").unwrap();
        assert!(cofactor_room::authorize_event(first, &room.state).is_ok());
        assert!(cofactor_room::authorize_event(first, &State::default()).is_ok());
    }
}

/// A message of Carol's with other auth events than the right ones.
fn citing(room: &Room, auth: &[&Arc<Pdu>]) -> Result<(), AuthError> {
    let auth: Vec<_> = auth.iter().map(|pdu| Arc::clone(pdu)).collect();
    let tip = room.world.tip.borrow().clone();
    let pdu = room.world.build_citing(CAROL, "m.room.message", None, object(&json!({})), None, &auth, &tip);
    check_auth_events(&pdu, &room.world)
}

#[test]
fn rule_3_judges_the_auth_events() {
    for version in 1..=12_u8 {
        let room = Room::new(version, "public");
        let at = |kind: &str, key: &str| room.state.at(kind, key).unwrap();
        let (create, levels, own) =
            (at("m.room.create", ""), at("m.room.power_levels", ""), at("m.room.member", CAROL));
        let mut right = vec![levels, own];
        if version < 12 {
            right.push(create);
        }
        citing(&room, &right).unwrap();
        citing(&room, &right[1..]).unwrap();
        let refused = |what: &str, more: &[&Arc<Pdu>]| {
            let auth: Vec<_> = right.iter().copied().chain(more.iter().copied()).collect();
            let verdict = citing(&room, &auth);
            assert!(matches!(verdict, Err(AuthError::Invalid(_))), "{what}, version {version}: {verdict:?}");
        };
        let older = room.world.event(&levels.auth_events()[0]).unwrap();
        assert_eq!(older.event_type(), levels.event_type());
        refused("3.1 two of one kind", &[&older]);
        refused("3.2 not selected", &[at("m.room.member", BOB)]);
        refused("3.2 not selected", &[at("m.room.join_rules", "")]);
        if version < 12 {
            assert!(matches!(citing(&room, &[levels, own]), Err(AuthError::Invalid(_))), "3.4 no create event");
        } else {
            refused("3.2 the create event", &[create]);
        }
        let rejected = Arc::new(Pdu::clone(levels).with_rejected(true));
        room.world.events.borrow_mut().insert(rejected.event_id().to_owned(), rejected);
        assert!(matches!(citing(&room, &right), Err(AuthError::Invalid(_))), "3.3 rejected");
    }
}

#[test]
fn an_unknown_auth_event_is_named_and_not_judged() {
    for version in 1..=12 {
        let room = Room::new(version, "public");
        let message = room.send(CAROL, "m.room.message", None, &json!({})).unwrap();
        let missing = message.auth_events()[0].clone();
        room.world.events.borrow_mut().remove(&missing);
        assert_eq!(check_auth_events(&message, &room.world), Err(AuthError::UnknownAuthEvent(missing)));
    }
}

/// S3: a valid event of another room authorises nothing here, in any version.
#[test]
fn rule_3_5_refuses_auth_events_of_another_room() {
    for version in 1..=12_u8 {
        let room = Room::new(version, "public");
        let other = World::named(&version.to_string());
        *other.room_id.borrow_mut() = None;
        let mut other_state = State::default();
        other_state.set(&other.create(ALICE, &json!({ "other": true })));
        if version < 12 {
            *other.room_id.borrow_mut() = Some("!other:a.test".try_into().unwrap());
        }
        let tip = other.tip.borrow().clone();
        let create: Vec<_> = if version < 12 { tip.clone() } else { vec![] };
        let levels: Value = json!({ "users": { CAROL: 100 } });
        let foreign = other.build_citing(ALICE, "m.room.power_levels", Some(""), object(&levels), None, &create, &tip);
        room.world.events.borrow_mut().insert(foreign.event_id().to_owned(), Arc::clone(&foreign));
        let own = room.state.at("m.room.member", CAROL).unwrap();
        let mut auth = vec![&foreign, own];
        if version < 12 {
            auth.push(room.state.at("m.room.create", "").unwrap());
        }
        let verdict = citing(&room, &auth);
        assert!(matches!(verdict, Err(AuthError::Invalid(_))), "version {version}: {verdict:?}");
    }
}

#[test]
fn rule_2_of_version_12_refuses_a_room_id_that_is_not_of_an_accepted_create_event() {
    let room = Room::new(12, "public");
    let levels = room.state.at("m.room.power_levels", "").unwrap();
    let message = |room: &Room| {
        let auth = [Arc::clone(room.state.at("m.room.member", CAROL).unwrap())];
        let tip = room.world.tip.borrow().clone();
        room.world.build_citing(CAROL, "m.room.message", None, object(&json!({})), None, &auth, &tip)
    };
    let real = room.world.room_id.borrow().clone();
    *room.world.room_id.borrow_mut() = Some(levels.event_id().as_str().replace('$', "!").try_into().unwrap());
    assert!(matches!(check_auth_events(&message(&room), &room.world), Err(AuthError::Invalid(_))));
    *room.world.room_id.borrow_mut() = real;
    check_auth_events(&message(&room), &room.world).unwrap();
    let create = room.state.at("m.room.create", "").unwrap();
    let rejected = Arc::new(Pdu::clone(create).with_rejected(true));
    room.world.events.borrow_mut().insert(create.event_id().to_owned(), rejected);
    assert!(matches!(check_auth_events(&message(&room), &room.world), Err(AuthError::Invalid(_))));
}
