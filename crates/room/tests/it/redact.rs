//! Redactions: who may, what remains, and that nothing follows them in circles.

use std::sync::Arc;

use cofactor_room::{Pdu, PowerLevels, may_request_redaction, redact_pdu, redaction_applies};
use ruma::EventId;
use serde_json::{Value, json};

use crate::support::{ALICE, BOB, CAROL, DAVE, State, World, object, user};

fn room(version: u8) -> (World, State, PowerLevels) {
    let world = World::named(&version.to_string());
    let state = world.furnish("public", &[(BOB, 50), (CAROL, 0), (DAVE, 0)]);
    let create = state.at("m.room.create", "").unwrap();
    let levels = PowerLevels::from_state(create, state.at("m.room.power_levels", "").map(|pdu| &**pdu)).unwrap();
    (world, state, levels)
}

fn message(world: &World, state: &State, sender: &str) -> Arc<Pdu> {
    world.attempt(sender, "m.room.message", None, &json!({ "body": "secret", "msgtype": "m.text" }), state).unwrap()
}

fn redaction(world: &World, state: &State, sender: &str, target: &EventId) -> Arc<Pdu> {
    world.build(sender, "m.room.redaction", None, object(&json!({ "reason": "spam" })), Some(target), state)
}

/// S27: at the client API a redaction needs one's own event or the power.
#[test]
fn a_user_may_ask_to_redact_own_events_and_with_power_those_of_others() {
    for version in 1..=12 {
        let (world, state, levels) = room(version);
        let by_carol = message(&world, &state, CAROL);
        for (who, may) in [(CAROL, true), (BOB, true), (ALICE, true), (DAVE, false)] {
            assert_eq!(may_request_redaction(user(who), &by_carol, &levels), may, "version {version} {who}");
        }
        let by_alice = message(&world, &state, ALICE);
        assert!(!may_request_redaction(user(CAROL), &by_alice, &levels), "the same server is not enough");
    }
}

/// S26: without power a server redacts nothing of another, in any version.
#[test]
fn a_redaction_takes_effect_with_power_or_from_the_same_server_only() {
    for version in 1..=12 {
        let (world, state, levels) = room(version);
        let target = message(&world, &state, CAROL);
        for (who, applies) in [(CAROL, true), (BOB, true), (ALICE, true), (DAVE, false)] {
            let pdu = redaction(&world, &state, who, target.event_id());
            assert_eq!(redaction_applies(&pdu, &target, &levels), applies, "version {version} {who}");
            let rejected = Pdu::clone(&pdu).with_rejected(true);
            assert!(!redaction_applies(&rejected, &target, &levels));
            let other = message(&world, &state, CAROL);
            assert!(!redaction_applies(&pdu, &other, &levels), "another target");
        }
    }
}

/// S25 and S26: the create event stays whole, and circles lead nowhere.
#[test]
fn the_create_event_cannot_be_redacted_and_redactions_of_redactions_end() {
    for version in 1..=12 {
        let (world, state, levels) = room(version);
        let create = state.at("m.room.create", "").unwrap();
        let pdu = redaction(&world, &state, ALICE, create.event_id());
        assert!(!redaction_applies(&pdu, create, &levels));
        let target = message(&world, &state, CAROL);
        let first = redaction(&world, &state, BOB, target.event_id());
        let second = redaction(&world, &state, BOB, first.event_id());
        assert!(redaction_applies(&second, &first, &levels));
        let redacted = redact_pdu(&first, &second).unwrap();
        let keeps_target = version >= 11;
        assert_eq!(redacted.pdu.redacts(), keeps_target.then_some(target.event_id()), "version {version}");
        assert!(!redaction_applies(&first, &first, &levels), "itself");
    }
    // Only ids chosen by their author can form a circle: one redaction naming itself, two naming each other.
    for version in 1..=2 {
        let (world, state, levels) = room(version);
        let name = |number: u32| EventId::parse(format!("$event{}:b.test", world.serial.get() + number)).unwrap();
        let itself = redaction(&world, &state, BOB, &name(1));
        assert_eq!(itself.redacts(), Some(itself.event_id()));
        assert!(!redaction_applies(&itself, &itself, &levels));
        let first = redaction(&world, &state, BOB, &name(2));
        let second = redaction(&world, &state, BOB, first.event_id());
        assert_eq!(first.redacts(), Some(second.event_id()));
        assert!(redaction_applies(&first, &second, &levels) && redaction_applies(&second, &first, &levels));
        assert!(redact_pdu(&second, &first).unwrap().pdu.redacts().is_none());
    }
}

#[test]
fn a_redacted_event_keeps_its_id_and_place_and_shows_the_redaction_to_clients() {
    for version in 1..=12 {
        let (world, state, _) = room(version);
        let target = message(&world, &state, CAROL);
        let pdu = redaction(&world, &state, BOB, target.event_id());
        let redacted = redact_pdu(&target, &pdu).unwrap();
        assert_eq!(redacted.pdu.event_id(), target.event_id());
        assert_eq!(redacted.pdu.prev_events(), target.prev_events());
        assert!(!redacted.pdu.federation_json().contains("secret"));
        let json: Value = serde_json::from_slice(&redacted.client_json).unwrap();
        assert_eq!(json["content"], json!({}));
        assert_eq!(json["event_id"], target.event_id().as_str());
        let because = &json["unsigned"]["redacted_because"];
        assert_eq!(because["type"], "m.room.redaction");
        assert_eq!(because["sender"], BOB);
        assert_eq!(because["content"]["reason"], "spam");
        assert_eq!(because["redacts"], target.event_id().as_str());
        assert_eq!(because["content"]["redacts"], target.event_id().as_str());
    }
}

/// What remains of the contents that some versions keep; see <https://spec.matrix.org/v1.19/rooms/v11/#redactions>.
#[test]
fn each_version_keeps_its_own_parts_of_a_redacted_content() {
    for version in 1..=12 {
        let (world, state, _) = room(version);
        let remains = |kind: &str, key: &str, content: &Value| -> Value {
            let target = world.build(ALICE, kind, Some(key), object(content), None, &state);
            let pdu = redaction(&world, &state, ALICE, target.event_id());
            let redacted = redact_pdu(&target, &pdu).unwrap();
            assert_eq!(redacted.pdu.event_id(), target.event_id(), "version {version} {kind}");
            serde_json::from_str(redacted.pdu.content().get()).unwrap()
        };
        let kept = |name: &str, from: u8, to: u8, value: Value| {
            if (from..=to).contains(&version) { json!({ name: value }) } else { json!({}) }
        };
        assert_eq!(
            remains("m.room.aliases", "a.test", &json!({ "aliases": [], "x": 1 })),
            kept("aliases", 1, 5, json!([]))
        );
        assert_eq!(remains("m.room.join_rules", "", &json!({ "allow": [], "x": 1 })), kept("allow", 8, 12, json!([])));
        assert_eq!(
            remains("m.room.power_levels", "", &json!({ "invite": 1, "x": 1 })),
            kept("invite", 11, 12, json!(1))
        );
        let via = json!({ "membership": "join", "join_authorised_via_users_server": BOB, "displayname": "x" });
        let mut expected = kept("join_authorised_via_users_server", 9, 12, json!(BOB));
        expected["membership"] = json!("join");
        assert_eq!(remains("m.room.member", ALICE, &via), expected);
        assert_eq!(
            remains("m.room.history_visibility", "", &json!({ "history_visibility": "joined", "x": 1 })),
            json!({ "history_visibility": "joined" })
        );
    }
}
