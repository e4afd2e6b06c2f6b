//! What rules say about events, by kind of rule and condition.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use cofactor_push::{Context, Judge, NotificationPower, Outcome, Rules, Work};
use ruma::{
    OwnedRoomId,
    push::{
        NewConditionalPushRule, NewPatternedPushRule, NewPushRule, NewSimplePushRule, PushCondition, RuleKind, Ruleset,
    },
    room_id, user_id,
};
use serde_json::{Value, json};

const NOTIFIES: Outcome = Outcome { notify: true, highlight: false };

fn context() -> Context {
    Context {
        room_id: room_id!("!room:x").to_owned(),
        member_count: 3,
        user_id: user_id!("@alice:x").to_owned(),
        display_name: "Alice (she)".to_owned(),
        power: NotificationPower {
            users: [(user_id!("@admin:x").to_owned(), 100)].into(),
            notifications: [("cake".to_owned(), 0)].into(),
            ..NotificationPower::default()
        },
    }
}

fn empty() -> Rules {
    Rules { global: Ruleset::new() }
}

fn actions() -> Vec<ruma::push::Action> {
    serde_json::from_value(json!(["notify"])).unwrap()
}

fn with(conditions: Value) -> Rules {
    let mut rules = empty();
    let conditions: Vec<PushCondition> = serde_json::from_value(conditions).unwrap();
    let rule = NewConditionalPushRule::new("mine".into(), conditions, actions());
    rules.put(NewPushRule::Underride(rule), None, None).unwrap();
    rules
}

fn judge(rules: &Rules, event: &Value) -> Outcome {
    let context = context();
    Judge::new(rules, &context).judge(event.to_string().as_bytes(), &mut Work::new(u64::MAX))
}

fn matches(condition: Value, event: Value) -> bool {
    judge(&with(json!([condition])), &event).notify
}

fn message(content: Value) -> Value {
    json!({ "type": "m.room.message", "sender": "@bob:x", "content": content })
}

#[test]
fn event_match_looks_at_the_whole_of_a_string_and_at_words_of_the_body() {
    let condition = |key: &str, pattern: &str| json!({ "kind": "event_match", "key": key, "pattern": pattern });
    assert!(matches(condition("content.topic", "lunc?*"), message(json!({ "topic": "Lunch plans" }))));
    assert!(!matches(condition("content.topic", "plans"), message(json!({ "topic": "Lunch plans" }))));
    assert!(matches(condition("content.body", "plans"), message(json!({ "body": "Lunch plans" }))));
    assert!(!matches(condition("content.topic", "*"), message(json!({ "topic": null }))));
    assert!(!matches(condition("content.topic", "*"), message(json!({}))));
    assert!(matches(condition("room_id", "!room:x"), message(json!({}))));
    assert!(matches(condition(r"content.m\.x.y", "z"), message(json!({ "m.x": { "y": "Z" } }))));
}

#[test]
fn event_property_is_compares_exactly() {
    let is = |value: Value| json!({ "kind": "event_property_is", "key": r"content.a\.b", "value": value });
    for (wanted, given, expected) in [
        (json!(true), json!(true), true),
        (json!(true), json!("true"), false),
        (json!(true), json!(1), false),
        (json!(null), json!(null), true),
        (json!(5), json!(5), true),
        (json!(5), json!(5.0), false),
        (json!("x"), json!("X"), false),
        (json!("x"), json!(["x"]), false),
    ] {
        assert_eq!(matches(is(wanted.clone()), message(json!({ "a.b": given }))), expected, "{wanted} {given}");
    }
    assert!(!matches(is(json!(null)), message(json!({}))), "an absent property is not null");
}

#[test]
fn event_property_contains_looks_into_an_array() {
    let condition = json!({ "kind": "event_property_contains", "key": "content.list", "value": "a" });
    assert!(matches(condition.clone(), message(json!({ "list": [{}, 1.5, "a"] }))));
    assert!(!matches(condition.clone(), message(json!({ "list": ["A", ["a"]] }))));
    assert!(!matches(condition, message(json!({ "list": "a" }))));
}

#[test]
fn contains_display_name_takes_the_name_as_it_stands() {
    let condition = json!({ "kind": "contains_display_name" });
    assert!(matches(condition.clone(), message(json!({ "body": "hey alice (she)!" }))));
    assert!(!matches(condition.clone(), message(json!({ "body": "malice (she)" }))));
    assert!(!matches(condition, message(json!({ "body": "" }))));
}

#[test]
fn room_member_count_compares_the_members() {
    for (is, expected) in [("3", true), ("==3", true), ("<3", false), ("<=3", true), (">2", true), (">=4", false)] {
        assert_eq!(matches(json!({ "kind": "room_member_count", "is": is }), message(json!({}))), expected, "{is}");
    }
}

#[test]
fn sender_notification_permission_asks_for_the_senders_level() {
    let condition = |key: &str| json!({ "kind": "sender_notification_permission", "key": key });
    let from = |sender: &str| json!({ "type": "t", "sender": sender, "content": {} });
    assert!(matches(condition("room"), from("@admin:x")) && !matches(condition("room"), from("@bob:x")));
    assert!(matches(condition("cake"), from("@bob:x")), "a key has the level that the room gives it");
}

#[test]
fn all_conditions_must_hold_and_an_unknown_one_never_does() {
    assert!(judge(&with(json!([])), &message(json!({}))).notify);
    let known = json!({ "kind": "room_member_count", "is": "3" });
    assert!(!judge(&with(json!([known, { "kind": "room_member_count", "is": "4" }])), &message(json!({}))).notify);
    assert!(!judge(&with(json!([known, { "kind": "org.example.unknown", "x": 1 }])), &message(json!({}))).notify);
}

#[test]
fn kinds_are_asked_in_their_order_and_the_first_rule_decides() {
    let mut rules = with(json!([]));
    let event = message(json!({ "body": "cake" }));
    let quiet = || vec![];
    let alone = |rules: &mut Rules, kind: RuleKind, id: &str, expected: bool| {
        assert_eq!(judge(rules, &event).notify, expected, "{kind:?} stands above all before it");
        rules.set_enabled(kind.clone(), id, false).unwrap();
        assert_ne!(judge(rules, &event).notify, expected, "a disabled rule says nothing");
        rules.set_enabled(kind, id, true).unwrap();
    };
    rules.put(NewPushRule::Sender(NewSimplePushRule::new(user_id!("@bob:x").to_owned(), quiet())), None, None).unwrap();
    alone(&mut rules, RuleKind::Sender, "@bob:x", false);
    let room = room_id!("!room:x").to_owned();
    rules.put(NewPushRule::Room(NewSimplePushRule::new(room, actions())), None, None).unwrap();
    alone(&mut rules, RuleKind::Room, "!room:x", true);
    let content = NewPatternedPushRule::new("k".into(), "cake".into(), quiet());
    rules.put(NewPushRule::Content(content), None, None).unwrap();
    alone(&mut rules, RuleKind::Content, "k", false);
    let first = NewConditionalPushRule::new("first".into(), vec![], actions());
    rules.put(NewPushRule::Override(first), None, None).unwrap();
    alone(&mut rules, RuleKind::Override, "first", true);
}

#[test]
fn the_predefined_rules_say_what_they_are_for() {
    let rules = Rules::server_default(user_id!("@alice:x"));
    let own = json!({ "type": "m.room.message", "sender": "@alice:x", "content": { "body": "alice" } });
    assert_eq!(judge(&rules, &own), Outcome::default());
    assert_eq!(judge(&rules, &message(json!({ "body": "alice" }))), NOTIFIES);
    assert!(judge(&rules, &message(json!({ "m.mentions": { "user_ids": ["@alice:x"] } }))).highlight);
    assert_eq!(judge(&rules, &message(json!({ "msgtype": "m.notice", "body": "x" }))), Outcome::default());
}

#[test]
fn a_large_body_is_searched_for_a_keyword_of_one_letter() {
    let mut rules = empty();
    let rule = NewPatternedPushRule::new("k".into(), "a".into(), actions());
    rules.put(NewPushRule::Content(rule), None, None).unwrap();
    assert!(!judge(&rules, &message(json!({ "body": "ax ".repeat(21_000) }))).notify);
    assert!(judge(&rules, &message(json!({ "body": format!("{}a", "ax ".repeat(21_000)) }))).notify);
}

#[test]
fn an_event_that_nests_deeply_is_judged_without_its_properties() {
    let json = format!(r#"{{"type":"t","content":{{"body":{}1{}}}}}"#, "[".repeat(500), "]".repeat(500));
    let (rules, context) = (with(json!([])), context());
    assert_eq!(Judge::new(&rules, &context).judge(json.as_bytes(), &mut Work::new(1_000)), NOTIFIES);
}

#[test]
fn rules_stand_where_they_are_put_and_a_wrong_place_changes_nothing() {
    let room = |name: &str| OwnedRoomId::try_from(format!("!{name}:x")).unwrap();
    let mut rules = Rules::server_default(user_id!("@alice:x"));
    let mut put = |name: &str, after: Option<&str>, before: Option<&str>| {
        let rule = NewPushRule::Room(NewSimplePushRule::new(room(name), vec![]));
        let done = rules.put(rule, after, before).map_err(|fault| fault.errcode.to_string());
        let order: String = rules.global.room.iter().filter_map(|rule| rule.rule_id.as_str().chars().nth(1)).collect();
        (order, done)
    };
    assert_eq!(put("a", None, None), ("a".into(), Ok(())));
    assert_eq!(put("b", None, None), ("ba".into(), Ok(())));
    assert_eq!(put("b", Some("!a:x"), None), ("ab".into(), Ok(())), "an existing rule moves behind the last");
    assert_eq!(put("c", Some("!a:x"), Some("!b:x")), ("acb".into(), Ok(())));
    assert_eq!(put("a", None, None), ("acb".into(), Ok(())), "a replaced rule stays");
    for (after, before) in [(Some("!a:x"), None), (None, Some("!z:x")), (Some(".m.rule.x"), None)] {
        assert_eq!(put("a", after, before), ("acb".into(), Err("M_UNKNOWN".into())));
    }
    assert_eq!(put("d", Some("!b:x"), Some("!a:x")), ("acb".into(), Err("M_UNKNOWN".into())));
}

#[test]
fn too_long_a_pattern_is_refused() {
    let rule = NewPatternedPushRule::new("k".into(), "*a".repeat(32_768), actions());
    let fault = empty().put(NewPushRule::Content(rule), None, None).unwrap_err();
    assert_eq!(fault.errcode, "M_TOO_LARGE");
}
