//! The numbered authorisation rules: for each, one case that is allowed and those that are not, in every room
//! version that has the rule. The numbers are those of room version 12, or of the version named.
//!
//! See <https://spec.matrix.org/v1.19/rooms/v12/#authorisation-rules>.

mod citing;
mod levels;
mod member;

use std::{ops::RangeInclusive, sync::Arc};

use cofactor_room::{AuthError, Pdu};
use serde_json::{Value, json};

use crate::support::{ALICE, BOB, CAROL, DAVE, State, World, object};

/// Never was in the room.
const EVE: &str = "@eve:c.test";
/// Is banned.
const MALLORY: &str = "@mallory:c.test";
/// Is invited.
const IVAN: &str = "@ivan:c.test";

type Verdict = Result<Arc<Pdu>, AuthError>;

/// A room in which Alice made everything, Bob has 50, Carol and Dave have 0.
struct Room {
    world: World,
    state: State,
}

impl Room {
    fn new(version: u8, join_rule: &str) -> Self {
        let world = World::named(&version.to_string());
        let mut state = world.furnish("public", &[(BOB, 50), (CAROL, 0), (DAVE, 0)]);
        let mut levels = json!({
            "users": { BOB: 50 },
            "invite": 10,
            "events": { "m.room.topic": 0, "org.example.high": 70 },
            "kick": 50,
            "redact": 50,
        });
        if version < 12 {
            levels["users"][ALICE] = json!(100);
        }
        state.set(&world.state_event(ALICE, "m.room.power_levels", "", &levels, &state));
        state.set(&world.member(ALICE, MALLORY, "ban", &state));
        state.set(&world.member(ALICE, IVAN, "invite", &state));
        let content = json!({ "join_rule": join_rule });
        state.set(&world.state_event(ALICE, "m.room.join_rules", "", &content, &state));
        Self { world, state }
    }

    fn send(&self, sender: &str, kind: &str, key: Option<&str>, content: &Value) -> Verdict {
        self.world.attempt(sender, kind, key, content, &self.state)
    }

    fn member(&self, sender: &str, target: &str, membership: &str) -> Verdict {
        self.send(sender, "m.room.member", Some(target), &json!({ "membership": membership }))
    }

    /// The power levels in force, changed.
    fn levels(&self, sender: &str, change: impl Fn(&mut Value)) -> Verdict {
        let current = self.state.at("m.room.power_levels", "").unwrap();
        let mut content: Value = serde_json::from_str(current.content().get()).unwrap();
        change(&mut content);
        self.send(sender, "m.room.power_levels", Some(""), &content)
    }
}

/// In rooms of the versions and join rule, `allowed` must be allowed and all of `refused` must not.
fn rule(
    name: &str,
    versions: RangeInclusive<u8>,
    join_rule: &str,
    allowed: impl Fn(&Room) -> Vec<Verdict>,
    refused: impl Fn(&Room) -> Vec<Verdict>,
) {
    for version in versions {
        let room = Room::new(version, join_rule);
        for (index, verdict) in allowed(&room).into_iter().enumerate() {
            assert!(verdict.is_ok(), "{name}, version {version}, allowed case {index}: {verdict:?}");
        }
        for (index, verdict) in refused(&room).into_iter().enumerate() {
            assert!(matches!(verdict, Err(AuthError::Forbidden(_))), "{name}, version {version}, refused case {index}");
        }
    }
}

#[test]
fn rule_4_keeps_other_servers_out_of_a_room_that_does_not_federate() {
    for version in 1..=12 {
        let world = World::named(&version.to_string());
        let mut state = State::default();
        state.set(&world.create(ALICE, &json!({ "m.federate": false })));
        state.set(&world.member(ALICE, ALICE, "join", &state));
        state.set(&world.state_event(ALICE, "m.room.join_rules", "", &json!({ "join_rule": "public" }), &state));
        let join = json!({ "membership": "join" });
        assert!(world.attempt(CAROL, "m.room.member", Some(CAROL), &join, &state).is_ok());
        assert!(world.attempt(BOB, "m.room.member", Some(BOB), &join, &state).is_err());
    }
}

#[test]
fn rule_4_of_version_1_lets_a_server_name_its_own_aliases() {
    let content = json!({ "aliases": [] });
    rule(
        "aliases",
        1..=5,
        "public",
        // Not even membership is asked for.
        |room| {
            vec![
                room.send(CAROL, "m.room.aliases", Some("a.test"), &content),
                room.send(EVE, "m.room.aliases", Some("c.test"), &content),
            ]
        },
        |room| {
            vec![
                room.send(CAROL, "m.room.aliases", Some("b.test"), &content),
                room.send(CAROL, "m.room.aliases", None, &content),
            ]
        },
    );
    rule(
        "aliases are ordinary state",
        6..=12,
        "public",
        |room| vec![room.send(BOB, "m.room.aliases", Some("a.test"), &content)],
        |room| vec![room.send(CAROL, "m.room.aliases", Some("a.test"), &content)],
    );
}

#[test]
fn rule_6_asks_for_membership() {
    let text = json!({ "body": "hello" });
    rule(
        "sender in the room",
        1..=12,
        "public",
        |room| vec![room.send(CAROL, "m.room.message", None, &text)],
        |room| [EVE, MALLORY, IVAN].iter().map(|user| room.send(user, "m.room.message", None, &text)).collect(),
    );
}

#[test]
fn rule_7_lets_those_who_may_invite_make_third_party_invites() {
    let content = json!({ "display_name": "x" });
    rule(
        "third-party invite",
        1..=12,
        "public",
        |room| vec![room.send(BOB, "m.room.third_party_invite", Some("token"), &content)],
        |room| vec![room.send(CAROL, "m.room.third_party_invite", Some("token"), &content)],
    );
}

#[test]
fn rule_8_asks_for_the_required_level() {
    let content = json!({});
    rule(
        "required level",
        1..=12,
        "public",
        |room| {
            vec![
                room.send(CAROL, "m.room.topic", Some(""), &content),
                room.send(BOB, "m.room.name", Some(""), &content),
                room.send(CAROL, "org.example.note", None, &content),
                room.send(ALICE, "org.example.high", None, &content),
            ]
        },
        |room| {
            vec![
                room.send(CAROL, "m.room.name", Some(""), &content),
                room.send(CAROL, "org.example.note", Some("x"), &content),
                room.send(BOB, "org.example.high", None, &content),
            ]
        },
    );
}

#[test]
fn rule_9_keeps_the_state_keys_of_users_for_themselves() {
    let content = json!({});
    rule(
        "state key of a user",
        1..=12,
        "public",
        |room| vec![room.send(BOB, "org.example.own", Some(BOB), &content)],
        |room| {
            vec![
                room.send(BOB, "org.example.own", Some(CAROL), &content),
                room.send(ALICE, "org.example.own", Some("@not a user"), &content),
            ]
        },
    );
}

/// S26: in versions 1 and 2 a redaction needs the power, or the domain of the event.
#[test]
fn rule_11_of_version_1_judges_redactions_by_power_or_domain() {
    for version in 1..=12 {
        let room = Room::new(version, "public");
        let theirs = room.send(DAVE, "m.room.message", None, &json!({})).unwrap();
        let own = room.send(CAROL, "m.room.message", None, &json!({})).unwrap();
        let redact = |sender: &str, target: &Arc<Pdu>| {
            let target = Some(target.event_id());
            let pdu = room.world.build(sender, "m.room.redaction", None, object(&json!({})), target, &room.state);
            assert_eq!(pdu.redacts(), target);
            cofactor_room::authorize_event(&pdu, &room.state)
        };
        assert!(redact(BOB, &own).is_ok());
        assert!(redact(CAROL, &own).is_ok());
        // From version 3 on the redaction is allowed, and does not take effect.
        assert_eq!(redact(CAROL, &theirs).is_ok(), version >= 3, "version {version}");
        let aimless = room.world.build(CAROL, "m.room.redaction", None, object(&json!({})), None, &room.state);
        assert_eq!(cofactor_room::authorize_event(&aimless, &room.state).is_ok(), version >= 3);
    }
}

/// S6.
#[test]
fn without_power_levels_only_the_creator_sends_state() {
    for version in 1..=12 {
        let room = Room::new(version, "public");
        let state = room.state.without("m.room.power_levels", "");
        let content = json!({});
        let send = |sender, key| room.world.attempt(sender, "org.example.note", key, &content, &state);
        assert!(send(ALICE, Some("")).is_ok());
        assert!(send(BOB, Some("")).is_err());
        assert!(send(BOB, None).is_ok());
        // Rule 10.5: the first power levels are free for whoever may send them.
        let levels = json!({ "users": { BOB: 1000 } });
        assert!(room.world.attempt(ALICE, "m.room.power_levels", Some(""), &levels, &state).is_ok());
        assert!(room.world.attempt(BOB, "m.room.power_levels", Some(""), &levels, &state).is_err());
    }
}

/// S7: what was rejected authorises nothing, even if a view of the state offers it.
#[test]
fn a_rejected_event_in_a_view_of_the_state_counts_for_nothing() {
    for version in 1..=12 {
        let room = Room::new(version, "public");
        let join = room.member(EVE, EVE, "join").unwrap();
        let content = json!({});
        let accepted = room.state.with(&join);
        assert!(room.world.attempt(EVE, "m.room.message", None, &content, &accepted).is_ok());
        let rejected = room.state.with(&Arc::new(Pdu::clone(&join).with_rejected(true)));
        assert!(room.world.attempt(EVE, "m.room.message", None, &content, &rejected).is_err());
    }
}

#[test]
fn an_event_is_not_allowed_by_the_state_of_another_room() {
    for version in 1..=12 {
        let room = Room::new(version, "public");
        let other = World::named(&version.to_string());
        let other_state = other.furnish("public", &[(BOB, 50), (DAVE, 7)]);
        // Version 12 tells the rooms apart by itself; before, the name is what differs.
        *room.world.room_id.borrow_mut() = Some("!elsewhere:a.test".try_into().unwrap());
        let message = room.world.build(BOB, "m.room.message", None, object(&json!({})), None, &room.state);
        assert!(cofactor_room::authorize_event(&message, &other_state).is_err(), "version {version}");
    }
}
