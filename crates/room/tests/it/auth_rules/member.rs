//! Rule 5: membership.

use ruma::signatures::sign_json;
use serde_json::{Value, json};

use super::{EVE, IVAN, MALLORY, Room, Verdict, rule};
use crate::support::{ALICE, BOB, CAROL, DAVE, State, World, key_pair, object};

#[test]
fn rule_5_1_and_5_8_refuse_membership_without_user_or_of_an_unknown_kind() {
    rule(
        "well-formed membership",
        1..=12,
        "public",
        |room| vec![room.member(EVE, EVE, "join")],
        |room| {
            vec![
                room.send(EVE, "m.room.member", None, &json!({ "membership": "join" })),
                room.send(EVE, "m.room.member", Some(EVE), &json!({})),
                room.send(EVE, "m.room.member", Some(EVE), &json!({ "membership": 1 })),
                room.send(EVE, "m.room.member", Some("eve"), &json!({ "membership": "join" })),
                room.member(EVE, EVE, "visit"),
            ]
        },
    );
}

#[test]
fn rule_5_3_1_lets_the_creator_in_first_and_nobody_else() {
    for version in 1..=12 {
        let world = World::named(&version.to_string());
        let mut state = State::default();
        state.set(&world.create(ALICE, &json!({})));
        let join = json!({ "membership": "join" });
        assert!(world.attempt(ALICE, "m.room.member", Some(ALICE), &join, &state).is_ok());
        assert!(world.attempt(CAROL, "m.room.member", Some(CAROL), &join, &state).is_err());
        // Later the creator is judged as everybody else.
        let first = world.member(ALICE, ALICE, "join", &state);
        let left = state.with(&first).with(&world.member(ALICE, ALICE, "leave", &state.with(&first)));
        assert!(world.attempt(ALICE, "m.room.member", Some(ALICE), &join, &left).is_err());
    }
}

#[test]
fn rule_5_3_judges_joins_by_the_join_rule() {
    let everyone = |room: &Room| [EVE, IVAN].iter().map(|user| room.member(user, user, "join")).collect::<Vec<_>>();
    let banned = |room: &Room| vec![room.member(MALLORY, MALLORY, "join"), room.member(BOB, EVE, "join")];
    rule("public", 1..=12, "public", everyone, banned);
    let invited = |room: &Room| vec![room.member(IVAN, IVAN, "join"), room.member(CAROL, CAROL, "join")];
    let others = |room: &Room| {
        vec![room.member(EVE, EVE, "join"), room.member(MALLORY, MALLORY, "join"), room.member(BOB, IVAN, "join")]
    };
    rule("invite", 1..=12, "invite", invited, others);
    rule("knock", 7..=12, "knock", invited, others);
    rule(
        "knock is unknown",
        1..=6,
        "knock",
        |_| vec![],
        |room| invited(room).into_iter().chain(others(room)).collect(),
    );
    rule("private", 1..=12, "private", |_| vec![], |room| vec![room.member(EVE, EVE, "join")]);
}

fn restricted_join(room: &Room, user: &str, by: &str) -> Verdict {
    let content = json!({ "membership": "join", "join_authorised_via_users_server": by });
    room.send(user, "m.room.member", Some(user), &content)
}

#[test]
fn rule_5_3_5_lets_a_member_who_may_invite_vouch_for_a_join() {
    let allowed = |room: &Room| {
        vec![restricted_join(room, EVE, BOB), room.member(IVAN, IVAN, "join"), room.member(DAVE, DAVE, "join")]
    };
    let refused = |room: &Room| {
        vec![
            room.member(EVE, EVE, "join"),
            restricted_join(room, EVE, DAVE),
            restricted_join(room, EVE, IVAN),
            restricted_join(room, EVE, "@stranger:c.test"),
            restricted_join(room, MALLORY, BOB),
        ]
    };
    rule("restricted", 8..=12, "restricted", allowed, refused);
    rule("knock_restricted", 10..=12, "knock_restricted", allowed, refused);
    let all = |room: &Room| allowed(room).into_iter().take(2).chain(refused(room)).collect::<Vec<_>>();
    rule("restricted is unknown", 1..=7, "restricted", |_| vec![], all);
    rule("knock_restricted is unknown", 1..=9, "knock_restricted", |_| vec![], all);
}

#[test]
fn rule_5_4_lets_members_with_the_level_invite_those_outside() {
    rule(
        "invite",
        1..=12,
        "invite",
        |room| vec![room.member(BOB, EVE, "invite"), room.member(BOB, IVAN, "invite")],
        |room| {
            vec![
                room.member(CAROL, EVE, "invite"),
                room.member(EVE, "@other:c.test", "invite"),
                room.member(IVAN, EVE, "invite"),
                room.member(BOB, CAROL, "invite"),
                room.member(BOB, MALLORY, "invite"),
            ]
        },
    );
}

#[test]
fn rule_5_5_lets_users_leave_and_members_with_power_remove_others() {
    rule(
        "leave",
        1..=12,
        "public",
        |room| {
            vec![
                room.member(CAROL, CAROL, "leave"),
                room.member(IVAN, IVAN, "leave"),
                room.member(BOB, CAROL, "leave"),
                room.member(BOB, IVAN, "leave"),
                room.member(BOB, MALLORY, "leave"),
            ]
        },
        |room| {
            vec![
                room.member(EVE, EVE, "leave"),
                room.member(MALLORY, MALLORY, "leave"),
                room.member(CAROL, DAVE, "leave"),
                room.member(BOB, ALICE, "leave"),
                room.member(EVE, CAROL, "leave"),
                room.member(CAROL, MALLORY, "leave"),
            ]
        },
    );
    // Lifting a ban needs the ban level too.
    for version in 1..=12 {
        let mut room = Room::new(version, "public");
        let levels = room.levels(ALICE, |levels| levels["ban"] = json!(60)).unwrap();
        room.state.set(&levels);
        assert!(room.member(BOB, CAROL, "leave").is_ok());
        assert!(room.member(BOB, MALLORY, "leave").is_err());
    }
}

#[test]
fn rule_5_6_lets_members_with_power_ban() {
    rule(
        "ban",
        1..=12,
        "public",
        |room| vec![room.member(BOB, CAROL, "ban"), room.member(BOB, EVE, "ban"), room.member(ALICE, BOB, "ban")],
        |room| {
            vec![
                room.member(CAROL, DAVE, "ban"),
                room.member(BOB, ALICE, "ban"),
                room.member(BOB, BOB, "ban"),
                room.member(EVE, CAROL, "ban"),
            ]
        },
    );
}

#[test]
fn rule_5_7_lets_strangers_knock_where_the_join_rule_says_so() {
    let allowed = |room: &Room| vec![room.member(EVE, EVE, "knock")];
    let refused = |room: &Room| {
        vec![
            room.member(EVE, "@other:c.test", "knock"),
            room.member(MALLORY, MALLORY, "knock"),
            room.member(IVAN, IVAN, "knock"),
            room.member(CAROL, CAROL, "knock"),
        ]
    };
    rule("knock", 7..=12, "knock", allowed, refused);
    rule("knock_restricted", 10..=12, "knock_restricted", allowed, refused);
    rule("knock", 1..=6, "knock", |_| vec![], allowed);
    rule("knock_restricted", 7..=9, "knock_restricted", |_| vec![], allowed);
    rule("no knocking", 7..=12, "public", |_| vec![], allowed);
    for version in 7..=12 {
        let mut room = Room::new(version, "knock");
        let knock = room.member(EVE, EVE, "knock").unwrap();
        room.state.set(&knock);
        assert!(room.member(EVE, EVE, "leave").is_ok(), "a knock can be taken back");
        assert!(room.member(BOB, EVE, "invite").is_ok());
        assert!(room.member(EVE, EVE, "join").is_err());
    }
}

/// An invitation of the holder of a token, with a signature by the key of a server.
fn third_party_invite(mxid: &str, token: &str, signer: &str) -> Value {
    let mut signed = object(&json!({ "mxid": mxid, "token": token }));
    sign_json(signer, &key_pair(signer), &mut signed).unwrap();
    json!({ "membership": "invite", "third_party_invite": { "display_name": "x", "signed": signed } })
}

#[test]
fn rule_5_4_1_takes_third_party_invites_with_a_valid_signature_only() {
    for version in 1..=12 {
        let mut room = Room::new(version, "invite");
        let key = ruma::serde::Base64::<ruma::serde::base64::Standard>::new(key_pair("c.test").public_key().to_vec());
        for (token, keys) in [
            ("one", json!({ "public_key": key.encode() })),
            ("list", json!({ "public_keys": [{ "public_key": key.encode() }] })),
        ] {
            let pdu = room.send(BOB, "m.room.third_party_invite", Some(token), &keys).unwrap();
            room.state.set(&pdu);
        }
        let invite = |sender, target, content: &Value| room.send(sender, "m.room.member", Some(target), content);
        for token in ["one", "list"] {
            let verdict = invite(BOB, EVE, &third_party_invite(EVE, token, "c.test"));
            assert!(verdict.is_ok(), "version {version}: {verdict:?}");
        }
        let mut unsigned = third_party_invite(EVE, "one", "c.test");
        unsigned["third_party_invite"].as_object_mut().unwrap().remove("signed");
        let mut tokenless = third_party_invite(EVE, "one", "c.test");
        tokenless["third_party_invite"]["signed"].as_object_mut().unwrap().remove("token");
        for (sender, target, content) in [
            (BOB, MALLORY, third_party_invite(MALLORY, "one", "c.test")),
            (BOB, EVE, unsigned),
            (BOB, EVE, tokenless),
            (BOB, EVE, third_party_invite("@other:c.test", "one", "c.test")),
            (BOB, EVE, third_party_invite(EVE, "unknown", "c.test")),
            (ALICE, EVE, third_party_invite(EVE, "one", "c.test")),
            (BOB, EVE, third_party_invite(EVE, "one", "b.test")),
        ] {
            assert!(invite(sender, target, &content).is_err(), "version {version}: {content}");
        }
    }
}
