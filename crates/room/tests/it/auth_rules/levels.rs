//! Rule 10: power levels.

use cofactor_room::PowerLevels;
use ruma::events::room::power_levels::UserPowerLevel;
use serde_json::{Value, json};

use super::{Room, rule};
use crate::support::{ALICE, BOB, CAROL, DAVE, user};

const FIELDS: [&str; 7] = ["users_default", "events_default", "state_default", "ban", "redact", "kick", "invite"];

/// S5: each field in every form.
#[test]
fn rules_10_1_to_10_3_ask_for_integers_and_before_version_10_take_strings_of_them() {
    let set = |room: &Room, name: &str, value: Value| room.levels(ALICE, |levels| levels[name] = value.clone()).is_ok();
    for version in 1..=12 {
        let room = Room::new(version, "public");
        for field in FIELDS {
            assert!(set(&room, field, json!(1)), "{version} {field}");
            assert!(set(&room, field, json!(-9_007_199_254_740_991_i64)), "{version} {field}");
            for text in ["1", " 1 ", "+1", "-1", "001"] {
                assert_eq!(set(&room, field, json!(text)), version < 10, "{version} {field} {text:?}");
            }
            for wrong in [json!(null), json!("one"), json!("1.5"), json!(""), json!(true), json!([]), json!({})] {
                assert!(!set(&room, field, wrong.clone()), "{version} {field} {wrong}");
            }
        }
        for map in ["events", "notifications", "users"] {
            let key = if map == "users" { CAROL } else { "x" };
            assert!(room.levels(ALICE, |levels| levels[map][key] = json!(1)).is_ok(), "{version} {map}");
            let text = room.levels(ALICE, |levels| levels[map][key] = json!("1")).is_ok();
            assert_eq!(text, version < 10, "{version} {map}");
            for wrong in [json!(null), json!([]), json!(1), json!({ key: null }), json!({ key: "x" })] {
                assert!(!set(&room, map, wrong.clone()), "{version} {map} {wrong}");
            }
        }
        for name in ["nobody", "@nocolon", ""] {
            assert!(room.levels(ALICE, |levels| levels["users"][name] = json!(1)).is_err(), "{version} {name:?}");
        }
        // Floats and numbers out of range do not even parse.
        for number in ["1.5", "1e2", "9007199254740992", "NaN"] {
            let text = format!(r#"{{"ban":{number}}}"#);
            assert!(cofactor_room::parse_client_content(text.as_bytes()).is_err());
        }
    }
}

#[test]
fn rule_10_4_keeps_creators_out_of_the_levels() {
    rule(
        "creators are not listed",
        12..=12,
        "public",
        |room| vec![room.levels(ALICE, |levels| levels["users"][CAROL] = json!(100))],
        |room| vec![room.levels(ALICE, |levels| levels["users"][ALICE] = json!(100))],
    );
}

#[test]
fn rule_10_6_limits_changes_of_the_fields_to_what_the_sender_has() {
    rule(
        "fields",
        1..=12,
        "public",
        |room| FIELDS.iter().map(|field| room.levels(BOB, |levels| levels[*field] = json!(50))).collect(),
        |room| FIELDS.iter().map(|field| room.levels(BOB, |levels| levels[*field] = json!(51))).collect(),
    );
    for version in 1..=12 {
        for field in FIELDS.into_iter().filter(|field| *field != "state_default" && *field != "users_default") {
            let mut room = Room::new(version, "public");
            let high = room.levels(ALICE, |levels| levels[field] = json!(80)).unwrap();
            room.state.set(&high);
            assert!(room.levels(BOB, |levels| levels["x"] = json!(1)).is_ok(), "unchanged, {version} {field}");
            assert!(room.levels(BOB, |levels| levels[field] = json!(40)).is_err(), "lowered, {version} {field}");
            let removed = room.levels(BOB, |levels| {
                levels.as_object_mut().unwrap().remove(field);
            });
            assert!(removed.is_err(), "removed, {version} {field}");
        }
    }
}

#[test]
fn rules_10_7_and_10_8_limit_changes_of_the_listed_events_and_notifications() {
    let set = |room: &Room, map: &'static str, key: &'static str, level: i64| {
        room.levels(BOB, move |levels| levels[map][key] = json!(level))
    };
    rule(
        "events",
        1..=12,
        "public",
        |room| vec![set(room, "events", "new", 50), set(room, "events", "m.room.topic", 50)],
        |room| {
            vec![
                set(room, "events", "new", 51),
                set(room, "events", "m.room.topic", 51),
                set(room, "events", "org.example.high", 50),
                room.levels(BOB, |levels| levels["events"] = json!({})),
            ]
        },
    );
    let both = |room: &Room| vec![set(room, "notifications", "room", 51)];
    let low = |room: &Room| vec![set(room, "notifications", "room", 50)];
    rule("notifications", 6..=12, "public", low, both);
    rule(
        "notifications were free",
        1..=5,
        "public",
        |room| low(room).into_iter().chain(both(room)).collect(),
        |_| vec![],
    );
}

#[test]
fn rules_10_9_and_10_10_limit_changes_of_the_users() {
    let set = |room: &Room, user: &'static str, level: i64| {
        room.levels(BOB, move |levels| levels["users"][user] = json!(level))
    };
    rule(
        "users",
        1..=12,
        "public",
        |room| vec![set(room, CAROL, 50), set(room, BOB, 10)],
        |room| vec![set(room, CAROL, 51), set(room, BOB, 51)],
    );
    rule("the creator's entry", 1..=11, "public", |_| vec![], |room| vec![set(room, ALICE, 99), set(room, ALICE, 101)]);
    for version in 1..=12 {
        let mut room = Room::new(version, "public");
        let equal = room.levels(ALICE, |levels| levels["users"][DAVE] = json!(50)).unwrap();
        room.state.set(&equal);
        assert!(room.levels(BOB, |levels| levels["users"][DAVE] = json!(40)).is_err(), "an equal, {version}");
        let removed = room.levels(BOB, |levels| {
            levels["users"].as_object_mut().unwrap().remove(DAVE);
        });
        assert!(removed.is_err(), "removing an equal, {version}");
        let oneself = room.levels(BOB, |levels| {
            levels["users"].as_object_mut().unwrap().remove(BOB);
        });
        assert!(oneself.is_ok(), "removing oneself, {version}");
    }
}

/// The parsed view gives the answers of the rules.
#[test]
fn the_parsed_levels_agree_with_the_rules_in_every_version() {
    for version in 1..=12 {
        let room = Room::new(version, "public");
        let create = room.state.at("m.room.create", "").unwrap();
        let levels =
            PowerLevels::from_state(create, room.state.at("m.room.power_levels", "").map(|pdu| &**pdu)).unwrap();
        for sender in [ALICE, BOB, CAROL] {
            for kind in ["m.room.topic", "m.room.name", "org.example.high", "org.example.note"] {
                for key in [None, Some("")] {
                    let may = levels.may_send(user(sender), &kind.into(), key.is_some());
                    let allowed = room.send(sender, kind, key, &json!({})).is_ok();
                    assert_eq!(may, allowed, "{version} {sender} {kind} {key:?}");
                }
            }
            assert_eq!(levels.may_invite(user(sender)), room.member(sender, super::EVE, "invite").is_ok());
            for target in [ALICE, BOB, CAROL, DAVE] {
                if sender != target {
                    let kicked = room.member(sender, target, "leave").is_ok();
                    assert_eq!(levels.may_kick(user(sender), user(target)), kicked, "{version} {sender} {target}");
                }
                let banned = room.member(sender, target, "ban").is_ok();
                assert_eq!(levels.may_ban(user(sender), user(target)), banned, "{version} {sender} {target}");
            }
            let unbanned = room.member(sender, super::MALLORY, "leave").is_ok();
            assert_eq!(levels.may_unban(user(sender), user(super::MALLORY)), unbanned);
        }
        assert_eq!(levels.is_privileged_creator(user(ALICE)), version >= 12);
        assert_eq!(levels.user(user(ALICE)) == UserPowerLevel::Infinite, version >= 12);
        assert!(levels.may_notify(user(BOB), "room") && !levels.may_notify(user(CAROL), "room"));
        assert!(levels.may_redact_others(user(BOB)) && !levels.may_redact_others(user(CAROL)));
        let default = PowerLevels::from_state(create, None).unwrap();
        assert!(default.user(user(ALICE)) > default.user(user(BOB)));
        assert_eq!(default.creators().collect::<Vec<_>>(), [user(ALICE)]);
    }
}
