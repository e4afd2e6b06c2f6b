"""Push rules: https://spec.matrix.org/v1.19/client-server-api/#push-rules."""
import pytest

from matrix import of_type

RULE = "/v3/pushrules/global/{}/{}"
NOTIFY = {"actions": ["notify"]}


def ids(alice, kind):
    return [rule["rule_id"] for rule in alice.get("/v3/pushrules/")["global"][kind]]


def test_the_default_rules_are_there(alice):
    rules = alice.get("/v3/pushrules/")["global"]
    assert {"override", "underride"} <= set(rules)
    override = {rule["rule_id"]: rule for rule in rules["override"]}
    underride = {rule["rule_id"]: rule for rule in rules["underride"]}
    assert not override[".m.rule.master"]["enabled"] and override[".m.rule.master"]["default"]
    assert {".m.rule.suppress_notices", ".m.rule.invite_for_me", ".m.rule.is_user_mention"} <= set(override)
    assert {".m.rule.call", ".m.rule.message", ".m.rule.encrypted", ".m.rule.room_one_to_one"} <= set(underride)


def test_a_rule_is_added_read_and_deleted(alice):
    alice.put(RULE, "content", "cake", body={"pattern": "cake", "actions": ["notify", {"set_tweak": "highlight"}]})
    rule = alice.get(RULE, "content", "cake")
    assert rule["pattern"] == "cake" and rule["enabled"] and not rule["default"]
    alice.delete(RULE, "content", "cake")
    alice.refused(404, "M_NOT_FOUND", "GET", RULE, "content", "cake")
    alice.refused(404, "M_NOT_FOUND", "DELETE", RULE, "content", "cake")


def test_rules_stand_where_they_are_put(alice):
    condition = {"kind": "event_match", "key": "type", "pattern": "a"}
    body = {"conditions": [condition], **NOTIFY}
    for name, where in (("one", {}), ("two", {}), ("three", {"after": "two"}), ("four", {"before": "one"})):
        alice.done("PUT", RULE, "override", name, body=body, query=where)
    mine = [name for name in ids(alice, "override") if not name.startswith(".")]
    assert mine == ["two", "three", "four", "one"]
    everything = ids(alice, "override")
    assert everything[0] == ".m.rule.master" and everything[1:5] == mine


def test_a_rule_is_switched_off_and_its_actions_change(alice):
    alice.put(RULE + "/enabled", "underride", ".m.rule.message", body={"enabled": False})
    assert alice.get(RULE + "/enabled", "underride", ".m.rule.message") == {"enabled": False}
    alice.put(RULE + "/actions", "underride", ".m.rule.message", body={"actions": []})
    assert alice.get(RULE + "/actions", "underride", ".m.rule.message") == {"actions": []}
    assert not alice.get(RULE, "underride", ".m.rule.message")["enabled"]


def test_changes_are_synced(alice):
    alice.sync()
    alice.put(RULE, "room", "!somewhere:example.org", body=NOTIFY)
    events = alice.sync_until("the rules", lambda answer: answer.get("account_data", {}).get("events"))
    rooms = of_type(events, "m.push_rules")[0]["content"]["global"]["room"]
    assert [rule["rule_id"] for rule in rooms] == ["!somewhere:example.org"]


@pytest.mark.parametrize("kind, name, body", [
    ("content", ".m.mine", {"pattern": "x", **NOTIFY}),
    ("nonsense", "mine", NOTIFY),
    ("content", "mine", NOTIFY),
    ("content", "mine", {"pattern": "x"}),
    ("override", "mine", {"conditions": 1, **NOTIFY}),
    ("content", "a/b", {"pattern": "x", **NOTIFY}),
])
def test_a_rule_of_the_wrong_shape_is_refused(alice, kind, name, body):
    alice.refused((400, 404), None, "PUT", RULE, kind, name, body=body)


def test_default_rules_stay_and_neighbours_must_exist(alice):
    alice.refused((400, 404), None, "DELETE", RULE, "underride", ".m.rule.message")
    body = {"conditions": [], **NOTIFY}
    alice.refused((400, 404), None, "PUT", RULE, "override", "mine", body=body, query={"after": "nobody"})
    alice.refused(404, "M_NOT_FOUND", "PUT", RULE + "/enabled", "content", "nobody", body={"enabled": True})
