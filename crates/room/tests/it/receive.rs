//! The way in: what is dropped, rejected, soft-failed and accepted.

use std::sync::Arc;

use cofactor_room::{AuthError, Checked, Dropped, Outcome, Pdu, Verified, receive::PDU_BYTES_MAX};
use proptest::prelude::*;
use ruma::{CanonicalJsonObject, signatures::hash_and_sign_event};
use serde_json::{Value, json};

use crate::support::{ALICE, BOB, CAROL, DAVE, State, World, key_pair, object, public_keys, user};

/// A room with Bob at 50 and Dave at 0, and the state in it.
fn room(version: u8) -> (World, State) {
    let world = World::named(&version.to_string());
    let state = world.furnish("public", &[(BOB, 50), (DAVE, 0)]);
    (world, state)
}

/// The whole way in for bytes, with the same state before the event and now.
fn receive(world: &World, state: &State, bytes: &[u8]) -> Result<Outcome, Dropped> {
    let verified = Checked::from_bytes(bytes, world.version)?.verify(&public_keys())?;
    let create = state.at("m.room.create", "").map(|pdu| pdu.event_id());
    Ok(verified.check_auth_events(create, world).unwrap().judge(state, state))
}

fn set(object: &mut CanonicalJsonObject, name: &str, value: Value) {
    object.insert(name.to_owned(), serde_json::from_value(value).unwrap());
}

#[test]
fn an_allowed_event_is_accepted_in_every_version_with_the_id_its_author_gave_it() {
    for version in 1..=12 {
        let (world, state) = room(version);
        for (sender, kind, key, content) in [
            (BOB, "m.room.message", None, json!({ "body": "hi" })),
            (BOB, "m.room.topic", Some(""), json!({ "topic": "日本語" })),
            ("@new:c.test", "m.room.member", Some("@new:c.test"), json!({ "membership": "join" })),
        ] {
            let pdu = world.attempt(sender, kind, key, &content, &state).unwrap();
            match receive(&world, &state, pdu.federation_json().as_bytes()).unwrap() {
                Outcome::Accepted(received) => {
                    assert_eq!(received.event_id(), pdu.event_id());
                    assert_eq!(received.room_id(), pdu.room_id());
                    assert_eq!(received.federation_json(), pdu.federation_json());
                }
                other => panic!("version {version}: {other:?}"),
            }
        }
    }
}

#[test]
fn a_whole_room_can_be_received_from_its_first_event_on() {
    for version in 1..=12 {
        let (world, state) = room(version);
        let mut order: Vec<Arc<Pdu>> = world.events.borrow().values().cloned().collect();
        order.sort_by_key(|pdu| world.positions.borrow()[pdu.event_id()]);
        let copy = World::new(world.version);
        let mut copied = State::default();
        for pdu in order {
            let checked = Checked::from_bytes(pdu.federation_json().as_bytes(), world.version).unwrap();
            let verified = checked.verify(&public_keys()).unwrap();
            let outcome = verified.check_auth_events(None, &copy).unwrap().judge(&copied, &copied);
            let Outcome::Accepted(received) = outcome else { panic!("version {version}: {outcome:?}") };
            copy.keep(&received);
            copied.set(&received);
        }
        assert_eq!(copied.0.len(), state.0.len());
    }
}

#[test]
fn an_event_without_the_signature_of_its_senders_server_is_dropped() {
    for version in 1..=12 {
        let (world, state) = room(version);
        let pdu = world.attempt(BOB, "m.room.message", None, &json!({}), &state).unwrap();
        let drop_with = |what: &str, change: &dyn Fn(&mut CanonicalJsonObject)| {
            let mut object = pdu.to_canonical_object();
            change(&mut object);
            let verdict = receive(&world, &state, &serde_json::to_vec(&object).unwrap());
            assert!(matches!(verdict, Err(Dropped::Signature(_))), "{what}, version {version}: {verdict:?}");
        };
        drop_with("none", &|object| {
            object.remove("signatures");
        });
        drop_with("empty", &|object| set(object, "signatures", json!({})));
        drop_with("wrong", &|object| set(object, "signatures", json!({ "b.test": { "ed25519:1": "AAAA" } })));
        drop_with("unknown key", &|object| set(object, "signatures", json!({ "b.test": { "ed25519:9": "AAAA" } })));
        drop_with("of another server", &|object| {
            object.remove("signatures");
            hash_and_sign_event("a.test", &key_pair("a.test"), object, &world.version.rules().redaction).unwrap();
        });
        drop_with("no hash", &|object| {
            object.remove("hashes");
        });
        drop_with("another sender", &|object| set(object, "sender", json!(DAVE)));
        drop_with("another time", &|object| set(object, "origin_server_ts", json!(5)));
        drop_with("another depth", &|object| set(object, "depth", json!(5)));
    }
}

#[test]
fn an_event_whose_content_was_changed_goes_on_redacted_under_the_same_id() {
    for version in 1..=12 {
        let (world, state) = room(version);
        let pdu = world.attempt(BOB, "m.room.message", None, &json!({ "body": "true" }), &state).unwrap();
        let mut object = pdu.to_canonical_object();
        set(&mut object, "content", json!({ "body": "forged" }));
        let checked = Checked::from_object(object, world.version).unwrap();
        let verified = checked.verify(&public_keys()).unwrap();
        assert!(verified.was_redacted());
        assert_eq!(verified.pdu().event_id(), pdu.event_id());
        assert_eq!(verified.pdu().content().get(), "{}");
    }
}

#[test]
fn unsigned_from_another_server_is_not_believed() {
    let (world, state) = room(12);
    let pdu = world.attempt(BOB, "m.room.message", None, &json!({}), &state).unwrap();
    let mut object = pdu.to_canonical_object();
    set(&mut object, "unsigned", json!({ "age": 5, "redacted_because": { "type": "m.room.redaction" } }));
    let verified = Checked::from_object(object, world.version).unwrap().verify(&public_keys()).unwrap();
    assert!(verified.pdu().unsigned().is_none());
    assert_eq!(verified.pdu().event_id(), pdu.event_id());
}

/// S24, S34 and the limits of <https://spec.matrix.org/v1.19/client-server-api/#size-limits>.
#[test]
fn sizes_and_forms_are_checked_at_their_limits() {
    for version in 1..=12 {
        let (world, state) = room(version);
        let pdu = world.attempt(BOB, "m.room.topic", Some(""), &json!({}), &state).unwrap();
        let is_formed = |change: &dyn Fn(&mut CanonicalJsonObject)| {
            let mut object = pdu.to_canonical_object();
            change(&mut object);
            Checked::from_object(object, world.version).is_ok()
        };
        for (length, fits) in [(254, true), (255, true), (256, false)] {
            let ascii = "x".repeat(length);
            // Bytes count, not code points.
            let wide = format!("{}é", "x".repeat(length - 2));
            for text in [&ascii, &wide] {
                for field in ["type", "state_key"] {
                    assert_eq!(is_formed(&|object| set(object, field, json!(text))), fits, "{field} {length}");
                }
            }
            let sender = format!("@{}:b.test", "x".repeat(length - 8));
            assert_eq!(is_formed(&|object| set(object, "sender", json!(sender))), fits, "sender {length}");
            let room_id = format!("!{}:b.test", "x".repeat(length - 8));
            assert_eq!(is_formed(&|object| set(object, "room_id", json!(room_id))), fits, "room_id {length}");
        }
        for (depth, fits) in [(0, true), (-1, false), (9_007_199_254_740_991_i64, true)] {
            assert_eq!(is_formed(&|object| set(object, "depth", json!(depth))), fits, "depth {depth}");
        }
        let text = pdu.federation_json().replace("\"depth\":", "\"depth\":9223372036854775808,\"x\":");
        assert!(matches!(Checked::from_bytes(text.as_bytes(), world.version), Err(Dropped::Json(_))));
        let id = |number: usize| match version {
            1 | 2 => json!([format!("$e{number}:a.test"), { "sha256": "x" }]),
            _ => json!(format!("$e{number}")),
        };
        let list = |length: usize| (0..length).map(id).collect::<Vec<_>>();
        for (field, longest) in [("auth_events", 10), ("prev_events", 20)] {
            assert!(is_formed(&|object| set(object, field, json!(list(longest)))), "{field}");
            assert!(!is_formed(&|object| set(object, field, json!(list(longest + 1)))), "{field}");
            for wrong in [json!(null), json!({}), json!("x"), json!([1]), json!([["x"]]), json!([[]]), json!(["x"])] {
                assert!(!is_formed(&|object| set(object, field, wrong.clone())), "{field} {wrong}");
            }
        }
        for field in ["type", "sender", "room_id", "prev_events", "auth_events", "depth", "content", "origin_server_ts"]
        {
            assert!(
                !is_formed(&|object| {
                    object.remove(field);
                }),
                "without {field}, version {version}"
            );
            assert!(!is_formed(&|object| set(object, field, json!(true))), "{field} true, version {version}");
        }
    }
}

#[test]
fn an_event_of_exactly_the_largest_size_passes_and_one_byte_more_is_dropped() {
    let (world, state) = room(12);
    let pdu = world.attempt(BOB, "m.room.message", None, &json!({ "body": "" }), &state).unwrap();
    let room_for_text = PDU_BYTES_MAX - pdu.federation_json().len();
    for (length, fits) in [(room_for_text, true), (room_for_text + 1, false)] {
        let body = "x".repeat(length);
        let mut object = pdu.to_canonical_object();
        set(&mut object, "content", json!({ "body": body }));
        let checked = Checked::from_object(object, world.version);
        assert_eq!(checked.is_ok(), fits, "{:?}", checked.err());
    }
}

#[test]
fn the_current_state_soft_fails_what_the_state_before_allowed() {
    for version in 1..=12 {
        let (world, before) = room(version);
        let message = world.attempt(DAVE, "m.room.message", None, &json!({}), &before).unwrap();
        let banned = before.with(&world.member(BOB, DAVE, "ban", &before));
        let cited = || {
            let checked = Checked::from_bytes(message.federation_json().as_bytes(), world.version).unwrap();
            checked.verify(&public_keys()).unwrap().check_auth_events(None, &world).unwrap()
        };
        assert!(matches!(cited().judge(&before, &before), Outcome::Accepted(_)));
        assert!(matches!(cited().judge(&before, &banned), Outcome::SoftFailed { .. }));
        let outcome = cited().judge(&banned, &banned);
        assert!(matches!(&outcome, Outcome::Rejected { pdu, .. } if pdu.is_rejected()), "{outcome:?}");
        assert!(matches!(cited().into_outlier(), Outcome::Accepted(_)));
    }
}

/// S7: what cites a rejected event is rejected.
#[test]
fn rejection_spreads_along_the_auth_events() {
    for version in 1..=12 {
        let (world, state) = room(version);
        let levels = world.build(DAVE, "m.room.power_levels", Some(""), object(&json!({ "users": {} })), None, &state);
        let outcome = receive(&world, &state, levels.federation_json().as_bytes()).unwrap();
        let Outcome::Rejected { pdu, .. } = outcome else { panic!("version {version}: {outcome:?}") };
        world.keep(&pdu);
        let forged = state.with(&pdu);
        let message = world.build(BOB, "m.room.message", None, object(&json!({})), None, &forged);
        let outcome = receive(&world, &state, message.federation_json().as_bytes()).unwrap();
        assert!(matches!(outcome, Outcome::Rejected { .. }), "version {version}: {outcome:?}");
    }
}

#[test]
fn local_events_meet_the_same_judgement() {
    let (world, state) = room(12);
    let allowed =
        world.build(CAROL, "m.room.member", Some(CAROL), object(&json!({ "membership": "join" })), None, &state);
    let forbidden = world.build(CAROL, "m.room.message", None, object(&json!({})), None, &state);
    let judge = |pdu: &Arc<Pdu>| {
        let verified = Verified::local(Pdu::clone(pdu));
        let in_steps = verified.clone().check_auth_events(None, &world).unwrap().judge(&state, &state);
        let levels = world.power_levels(&state);
        let at_once = verified.clone().judge_authored(&world, &state, levels.as_ref());
        [in_steps, at_once, verified.judge_authored(&world, &state, None)]
    };
    let ordinary = world.build(BOB, "m.room.message", None, object(&json!({})), None, &state);
    for allowed in [allowed, ordinary] {
        assert!(judge(&allowed).iter().all(|outcome| matches!(outcome, Outcome::Accepted(_))));
    }
    assert!(judge(&forbidden).iter().all(|outcome| matches!(outcome, Outcome::Rejected { .. })));
}

/// S2: a second create event, and events that rest on one.
#[test]
fn a_second_create_event_and_what_cites_it_are_rejected() {
    for version in 1..=11 {
        let (world, state) = room(version);
        let other = World::named(&version.to_string());
        other.serial.set(1_000);
        let second = other.create(ALICE, &json!({ "second": true }));
        let outcome = receive(&world, &state, second.federation_json().as_bytes()).unwrap();
        assert!(matches!(outcome, Outcome::Rejected { .. }), "version {version}");
        world.events.borrow_mut().insert(second.event_id().to_owned(), Arc::clone(&second));
        let join = json!({ "membership": "join" });
        let own = State::default().with(&second);
        *other.tip.borrow_mut() = vec![Arc::clone(&second)];
        let first_join = other.attempt(ALICE, "m.room.member", Some(ALICE), &join, &own).unwrap();
        let outcome = receive(&world, &state, first_join.federation_json().as_bytes()).unwrap();
        assert!(matches!(outcome, Outcome::Rejected { .. }), "version {version}");
    }
}

#[test]
fn a_missing_auth_event_is_asked_for() {
    let (world, state) = room(12);
    let message = world.attempt(BOB, "m.room.message", None, &json!({}), &state).unwrap();
    let missing = message.auth_events()[0].clone();
    world.events.borrow_mut().remove(&missing);
    let checked = Checked::from_bytes(message.federation_json().as_bytes(), world.version).unwrap();
    let verdict = checked.verify(&public_keys()).unwrap().check_auth_events(None, &world);
    assert_eq!(verdict.err(), Some(AuthError::UnknownAuthEvent(missing)));
}

/// Rule 5.2 of version 8 and later: who vouches for a join signs it; nobody else need.
#[test]
fn a_join_vouched_for_by_another_server_needs_its_signature() {
    for version in 8..=12 {
        let world = World::named(&version.to_string());
        let state = world.furnish("restricted", &[(BOB, 50)]);
        let new = "@new:c.test";
        let content = json!({ "membership": "join", "join_authorised_via_users_server": BOB });
        let join = world.attempt(new, "m.room.member", Some(new), &content, &state).unwrap();
        let checked = Checked::from_bytes(join.federation_json().as_bytes(), world.version).unwrap();
        let signers: Vec<_> = checked.required_signers().unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(signers, ["b.test", "c.test"]);
        assert!(matches!(checked.verify(&public_keys()), Err(Dropped::Signature(_))));
        let mut object = join.to_canonical_object();
        ruma::signatures::sign_event("b.test", &key_pair("b.test"), &mut object, &world.version.rules().redaction)
            .unwrap();
        let outcome = receive(&world, &state, &serde_json::to_vec(&object).unwrap()).unwrap();
        assert!(matches!(outcome, Outcome::Accepted(_)), "version {version}: {outcome:?}");
        let talk = json!({ "join_authorised_via_users_server": "@someone:c.test" });
        let message = world.attempt(BOB, "m.room.message", None, &talk, &state).unwrap();
        let outcome = receive(&world, &state, message.federation_json().as_bytes()).unwrap();
        assert!(matches!(outcome, Outcome::Accepted(_)), "version {version}: {outcome:?}");
    }
}

/// S53: user ids of older times, compared byte by byte.
#[test]
fn historical_user_ids_are_taken_and_never_folded() {
    for version in 1..=12 {
        let world = World::named(&version.to_string());
        let mut state = world.furnish("public", &[]);
        let names = ["@Bob:b.test", "@bob:b.test", "@b ob:b.test", "@bób:b.test", "@bo\u{301}b:b.test", "@:b.test"];
        for name in names {
            let join = world.attempt(name, "m.room.member", Some(name), &json!({ "membership": "join" }), &state);
            let join = join.unwrap();
            let outcome = receive(&world, &state, join.federation_json().as_bytes()).unwrap();
            let Outcome::Accepted(join) = outcome else { panic!("{name}: {outcome:?}") };
            assert_eq!(join.sender().as_str(), name);
            world.keep(&join);
            state.set(&join);
        }
        assert_eq!(state.0.keys().filter(|(kind, _)| kind == "m.room.member").count(), names.len() + 1);
        assert!(world.attempt("@BOB:b.test", "m.room.message", None, &json!({}), &state).is_err());
        assert!(user("@Bob:b.test") != user("@bob:b.test"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_events_never_panic_and_are_never_accepted_changed(
        version in 1_u8..=12, at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>(),
    ) {
        let (world, state) = room(version);
        let pdu = world.attempt(BOB, "m.room.topic", Some(""), &json!({ "topic": "x" }), &state).unwrap();
        let mut bytes = pdu.federation_json().as_bytes().to_vec();
        let at = at.index(bytes.len());
        if cut {
            bytes.truncate(at);
        } else {
            bytes[at] = byte;
        }
        if let Ok(outcome) = receive(&world, &state, &bytes) {
            // Only the content, what covers it, and fields that a redaction removes may differ.
            prop_assert_eq!(outcome.pdu().event_id(), pdu.event_id());
            prop_assert_eq!(outcome.pdu().sender(), pdu.sender());
        }
    }
}
