"""Sending events, reading them page by page, redacting, receipts and typing."""
import threading
import json
import time

import pytest

from matrix import bodies, joined, login, of_type, timeline, unique

SEND = "/v3/rooms/{}/send/m.room.message/{}"


def test_the_same_transaction_is_sent_once(alice, bob, room):
    txn = unique("txn")
    first = alice.send(room, "once", txn)
    assert alice.send(room, "once", txn) == first
    assert bob.send(room, "mine", txn) != first
    assert bodies(alice.messages(room, dir="b")["chunk"]).count("once") == 1


def test_a_transaction_belongs_to_its_device_and_its_room(alice, room):
    other_room = alice.create_room()
    first = alice.send(room, "same", "txn")
    assert alice.send(other_room, "same", "txn") != first
    assert login(alice.id).send(room, "same", "txn") != first


def test_the_sender_alone_sees_the_transaction_id(alice, bob, room):
    alice.sync(), bob.sync()
    txn = unique("txn")
    event = alice.send(room, "echo", txn)
    find = lambda answer: [e for e in timeline(answer, room) if e["event_id"] == event]
    assert alice.sync_until("the echo", find)[0]["unsigned"]["transaction_id"] == txn
    assert "transaction_id" not in bob.sync_until("the message", find)[0].get("unsigned", {})


def test_many_senders_at_once_lose_and_double_nothing(alice, bob, room):
    def speak(who, name):
        for number in range(20):
            who.send(room, f"{name}-{number}")

    threads = [threading.Thread(target=speak, args=pair) for pair in ((alice, "a"), (bob, "b"), (alice, "c"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    texts = bodies(alice.messages(room, dir="f", limit=100)["chunk"])
    assert len(texts) == 60 and len(set(texts)) == 60
    for name in "abc":
        own = [text for text in texts if text.startswith(name)]
        assert own == [f"{name}-{number}" for number in range(20)], "a sender's messages changed their order"


@pytest.mark.parametrize("body, status", [({"body": "x" * 70_000}, 413), ([1], 400), ("text", 400)])
def test_content_too_large_or_of_the_wrong_shape_is_refused(alice, room, body, status):
    alice.refused((status, 400), None, "PUT", SEND, room, unique("txn"), body=body)


def test_numbers_outside_canonical_json_are_refused(alice, room):
    for number in (b"1.5", b"9007199254740993", b"-9007199254740993"):
        raw = b'{"msgtype": "m.text", "body": "a", "n": ' + number + b"}"
        alice.refused(400, "M_BAD_JSON", "PUT", SEND, room, unique("txn"), raw=raw)


def test_strangers_send_and_read_nothing(carol, room):
    carol.refused(403, "M_FORBIDDEN", "PUT", SEND, room, "1", body={"body": "x"})
    carol.refused(403, "M_FORBIDDEN", "GET", "/v3/rooms/{}/messages", room, query={"dir": "b"})
    carol.refused(403, "M_FORBIDDEN", "GET", "/v3/rooms/{}/members", room)


def walk(who, room, **query):
    """Every event of a room, page by page."""
    seen = []
    for _ in range(100):
        page = who.messages(room, limit=3, **query)
        seen += [event["event_id"] for event in page["chunk"]]
        if "end" not in page:
            return seen
        query["from_"] = page["end"]
    raise AssertionError("pages without end")


def test_pages_backwards_and_forwards_are_each_other_reversed(alice, bob, room):
    sent = [alice.send(room, f"{n}") for n in range(10)]
    back, forth = walk(alice, room, dir="b"), walk(alice, room, dir="f")
    assert back == list(reversed(forth)) and len(set(forth)) == len(forth)
    assert forth[-10:] == sent
    first = alice.get("/v3/rooms/{}/event/{}", room, forth[0])
    assert first["type"] == "m.room.create"


def test_pages_stop_where_they_are_told(alice, room):
    start = alice.sync()["next_batch"]
    sent = [alice.send(room, f"{n}") for n in range(6)]
    # What was just sent may reach another process, or another connection, a moment later.
    seen, end = [], start
    while seen != sent:
        answer = alice.sync(since=end, timeout=5000)
        end = answer["next_batch"]
        events = answer["rooms"].get("join", {}).get(room, {}).get("timeline", {}).get("events", [])
        seen += [event["event_id"] for event in events]
    alice.send(room, "after")
    between = walk(alice, room, dir="f", from_=start, to=end)
    assert between == sent
    assert walk(alice, room, dir="b", from_=end, to=start) == sent[::-1]


def test_page_arguments_of_no_sense_are_refused(alice, room):
    template = "/v3/rooms/{}/messages"
    for query in ({"dir": "x"}, {"dir": "b", "from": "nonsense"}, {"dir": "b", "limit": "x"}):
        alice.refused(400, None, "GET", template, room, query=query)
    assert alice.messages(room, dir="b", limit=1000000)["chunk"]


def test_a_page_filter_keeps_what_it_names(alice, room):
    for n in range(5):
        alice.send(room, f"{n}")
    only = alice.messages(room, dir="b", limit=10, filter='{"types":["m.room.message"]}')["chunk"]
    assert {event["type"] for event in only} == {"m.room.message"}
    none = alice.messages(room, dir="b", limit=50, filter='{"not_types":["m.room.message"]}')["chunk"]
    assert "m.room.message" not in {event["type"] for event in none}
    lazy = alice.messages(room, dir="b", limit=2, filter='{"lazy_load_members":true}')
    assert [event["state_key"] for event in of_type(lazy["state"], "m.room.member")] == [alice.id]


def test_context_lies_around_its_event(alice, room):
    sent = [alice.send(room, f"{n}") for n in range(9)]
    context = alice.get("/v3/rooms/{}/context/{}", room, sent[4], limit=4)
    assert context["event"]["event_id"] == sent[4]
    assert [event["event_id"] for event in context["events_before"]] == [sent[3], sent[2]]
    assert [event["event_id"] for event in context["events_after"]] == [sent[5], sent[6]]
    assert alice.messages(room, dir="b", from_=context["start"], limit=1)["chunk"][0]["event_id"] == sent[1]
    assert alice.messages(room, dir="f", from_=context["end"], limit=1)["chunk"][0]["event_id"] == sent[7]
    assert {event["type"] for event in context["state"]} >= {"m.room.create", "m.room.power_levels"}


def test_an_event_that_is_not_here_is_not_found(alice, room):
    other = alice.create_room()
    elsewhere = alice.send(other, "elsewhere")
    for event in ("$nonsense", elsewhere):
        alice.refused(404, "M_NOT_FOUND", "GET", "/v3/rooms/{}/event/{}", room, event)
        alice.refused(404, "M_NOT_FOUND", "GET", "/v3/rooms/{}/context/{}", room, event)


def test_an_event_is_found_by_its_time(alice, room):
    event = alice.send(room, "now")
    moment = alice.get("/v3/rooms/{}/event/{}", room, event)["origin_server_ts"]
    template = "/v1/rooms/{}/timestamp_to_event"
    assert alice.get(template, room, ts=moment, dir="f")["origin_server_ts"] == moment
    assert alice.get(template, room, ts=moment + 60_000, dir="b") == {"event_id": event, "origin_server_ts": moment}
    first = alice.get("/v3/rooms/{}/messages", room, dir="f", limit=1)["chunk"][0]["event_id"]
    assert alice.get(template, room, ts=0, dir="f")["event_id"] == first
    for query in ({"ts": moment + 60_000, "dir": "f"}, {"ts": 1, "dir": "b"}):
        alice.refused(404, "M_NOT_FOUND", "GET", template, room, query=query)


def test_a_redaction_empties_the_event_for_everyone(alice, bob, room):
    event = bob.send(room, "regret")
    own = alice.send(room, "mine")
    bob.refused(403, "M_FORBIDDEN", "PUT", "/v3/rooms/{}/redact/{}/{}", room, own, "1")
    txn = unique("txn")
    first = bob.put("/v3/rooms/{}/redact/{}/{}", room, event, txn, body={"reason": "oops"})
    assert bob.put("/v3/rooms/{}/redact/{}/{}", room, event, txn, body={"reason": "oops"}) == first
    seen = alice.get("/v3/rooms/{}/event/{}", room, event)
    assert seen["content"] == {} and seen["unsigned"]["redacted_because"]["event_id"] == first["event_id"]
    assert seen["unsigned"]["redacted_because"]["content"]["reason"] == "oops"
    assert "regret" not in bodies(alice.messages(room, dir="b")["chunk"])


def test_relations_are_listed_and_bundled(alice, bob, room):
    event = alice.send(room, "parent")
    relation = {"rel_type": "m.annotation", "event_id": event, "key": "👍"}
    reaction = bob.put("/v3/rooms/{}/send/m.reaction/1", room, body={"m.relates_to": relation})["event_id"]
    edit = {"msgtype": "m.text", "body": "* edited", "m.new_content": {"msgtype": "m.text", "body": "edited"},
            "m.relates_to": {"rel_type": "m.replace", "event_id": event}}
    edited = alice.put(SEND, room, unique("txn"), body=edit)["event_id"]
    reply = {"msgtype": "m.text", "body": "in thread", "m.relates_to": {"rel_type": "m.thread", "event_id": event}}
    threaded = bob.put(SEND, room, unique("txn"), body=reply)["event_id"]
    found = [e["event_id"] for e in alice.get("/v1/rooms/{}/relations/{}", room, event)["chunk"]]
    assert set(found) == {reaction, edited, threaded}
    only = alice.get("/v1/rooms/{}/relations/{}/m.annotation/m.reaction", room, event)["chunk"]
    assert [e["event_id"] for e in only] == [reaction]
    bundled = bob.get("/v3/rooms/{}/event/{}", room, event)["unsigned"]["m.relations"]
    assert bundled["m.replace"]["event_id"] == edited
    assert bundled["m.thread"]["count"] == 1 and bundled["m.thread"]["latest_event"]["event_id"] == threaded
    threads = alice.get("/v1/rooms/{}/threads", room)["chunk"]
    assert [e["event_id"] for e in threads] == [event]
    bob.refused(400, None, "PUT", "/v3/rooms/{}/send/m.reaction/2", room, body={"m.relates_to": relation})


def relate(who, room, rel_type, event, kind="m.room.message", **more):
    body = {"msgtype": "m.text", "body": "x", "m.relates_to": {"rel_type": rel_type, "event_id": event}, **more}
    return who.put("/v3/rooms/{}/send/{}/{}", room, kind, unique("txn"), body=body)["event_id"]


def bundle(who, room, event):
    return who.get("/v3/rooms/{}/event/{}", room, event)["unsigned"].get("m.relations", {})


def test_only_the_senders_latest_edit_counts_and_its_redaction_takes_it_back(alice, bob, room):
    event = alice.send(room, "parent")
    new = {"m.new_content": {"msgtype": "m.text", "body": "new"}}
    first = relate(alice, room, "m.replace", event, **new)
    assert bundle(bob, room, event)["m.replace"]["event_id"] == first
    second = relate(alice, room, "m.replace", event, **new)
    relate(bob, room, "m.replace", event, **new)
    relate(alice, room, "m.replace", event)
    relate(alice, room, "m.replace", event, kind="org.example.other", **new)
    assert bundle(bob, room, event)["m.replace"]["event_id"] == second
    alice.redact(room, second)
    assert bundle(bob, room, event)["m.replace"]["event_id"] == first
    assert bundle(bob, room, first) == {}
    alice.redact(room, event)
    assert bundle(bob, room, event) == {}


def test_threads_are_listed_by_their_latest_reply(alice, bob, room):
    roots = [alice.send(room, f"root {n}") for n in range(3)]
    replies = [relate(alice, room, "m.thread", root) for root in roots]
    mine = relate(bob, room, "m.thread", roots[0])
    listed = lambda who, **query: [e["event_id"] for e in who.get("/v1/rooms/{}/threads", room, **query)["chunk"]]
    assert listed(alice) == [roots[0], roots[2], roots[1]]
    assert listed(bob, include="participated") == [roots[0]] and len(listed(alice, include="participated")) == 3
    page = alice.get("/v1/rooms/{}/threads", room, limit=2)
    assert listed(alice, **{"from": page["next_batch"]}) == [roots[1]]
    thread = bundle(bob, room, roots[0])["m.thread"]
    assert thread["count"] == 2 and thread["current_user_participated"] and thread["latest_event"]["event_id"] == mine
    assert not bundle(bob, room, roots[1])["m.thread"]["current_user_participated"]
    new = {"m.new_content": {"msgtype": "m.text", "body": "new"}}
    edit = relate(bob, room, "m.replace", mine, **new)
    latest = bundle(alice, room, roots[0])["m.thread"]["latest_event"]
    assert latest["unsigned"]["m.relations"]["m.replace"]["event_id"] == edit
    bob.redact(room, mine)
    thread = bundle(alice, room, roots[0])["m.thread"]
    assert thread["count"] == 1 and thread["latest_event"]["event_id"] == replies[0]
    refused = {"m.relates_to": {"rel_type": "m.thread", "event_id": replies[1]}}
    bob.refused(400, "M_UNKNOWN", "PUT", "/v3/rooms/{}/send/m.room.message/nested", room, body=refused)


def test_relations_come_in_pages_and_with_their_own(alice, bob, room):
    event = alice.send(room, "parent")
    children = [relate(bob, room, "m.reference", event) for _ in range(5)]
    grandchild = relate(alice, room, "m.annotation", children[0], kind="m.reaction")
    template = "/v1/rooms/{}/relations/{}"
    for direction, expected in (("b", children[::-1]), ("f", children)):
        seen, where = [], {}
        while True:
            page = alice.get(template, room, event, dir=direction, limit=2, **where)
            seen += [e["event_id"] for e in page["chunk"]]
            if "next_batch" not in page:
                break
            where = {"from": page["next_batch"]}
        assert seen == expected
    deep = alice.get(template, room, event, recurse="true")
    assert [e["event_id"] for e in deep["chunk"]] == [grandchild, *children[::-1]] and deep["recursion_depth"] >= 1
    assert bundle(bob, room, event)["m.reference"]["chunk"] == [{"event_id": child} for child in children]
    synced = bob.get("/v3/sync", filter=json.dumps({"room": {"timeline": {"limit": 20}}}))
    parent = next(e for e in synced["rooms"]["join"][room]["timeline"]["events"] if e["event_id"] == event)
    assert len(parent["unsigned"]["m.relations"]["m.reference"]["chunk"]) == 5
    alice.refused(404, "M_NOT_FOUND", "GET", template, room, "$nothing")


def test_the_same_reaction_is_taken_once_until_it_is_redacted(alice, bob, room):
    event = alice.send(room, "parent")
    react = lambda key: {"m.relates_to": {"rel_type": "m.annotation", "event_id": event, "key": key}}
    send = lambda who, key: who.put("/v3/rooms/{}/send/m.reaction/{}", room, unique("t"), body=react(key))["event_id"]
    first = send(bob, "👍")
    send(alice, "👍"), send(bob, "👎"), send(bob, "k" * 300 + "a")
    again = ("PUT", "/v3/rooms/{}/send/m.reaction/{}", room)
    bob.refused(400, "M_DUPLICATE_ANNOTATION", *again, unique("t"), body=react("👍"))
    bob.redact(room, first)
    second = send(bob, "👍")
    bob.refused(400, "M_DUPLICATE_ANNOTATION", *again, unique("t"), body=react("👍"))
    assert first != second


def test_bodies_that_are_not_utf_8_are_refused_even_where_nobody_looks(alice, room):
    for path in ("/v3/rooms/{}/send/m.room.message/utf8", "/v3/rooms/{}/leave"):
        method = "PUT" if "send" in path else "POST"
        alice.refused(400, "M_NOT_JSON", method, path, room, raw=b'{"body":"x","ignored":"\xff"}')


def receipts(answer, room, kind="m.read"):
    found = {}
    for event in of_type(joined(answer, room).get("ephemeral", {}).get("events", []), "m.receipt"):
        for event_id, kinds in event["content"].items():
            found.update({user: event_id for user in kinds.get(kind, {})})
    return found


def test_public_receipts_are_seen_and_private_ones_by_oneself_alone(alice, bob, room):
    first, second = alice.send(room, "one"), alice.send(room, "two")
    alice.sync()
    bob.post("/v3/rooms/{}/receipt/m.read.private/{}", room, second)
    bob.post("/v3/rooms/{}/receipt/m.read/{}", room, first)
    assert alice.sync_until("the receipt", lambda answer: receipts(answer, room))[bob.id] == first
    mine = bob.sync()
    assert receipts(mine, room, "m.read.private").get(bob.id) == second
    later = login(alice.id).sync()
    assert bob.id not in receipts(later, room, "m.read.private") and receipts(later, room)[bob.id] == first


def test_receipts_of_no_sense_are_refused(alice, bob, room, carol):
    event = alice.send(room, "one")
    bob.refused(400, None, "POST", "/v3/rooms/{}/receipt/m.nonsense/{}", room, event)
    bob.refused(400, None, "POST", "/v3/rooms/{}/receipt/m.read/{}", room, event, body={"thread_id": 1})
    carol.refused((403, 404), None, "POST", "/v3/rooms/{}/receipt/m.read/{}", room, event)


def test_read_markers_set_all_three(alice, bob, room):
    first, second = alice.send(room, "one"), alice.send(room, "two")
    bob.sync()
    bob.post("/v3/rooms/{}/read_markers", room, body={"m.fully_read": first, "m.read": second})
    answer = bob.sync()
    marker = of_type(joined(answer, room)["account_data"]["events"], "m.fully_read")
    assert marker[0]["content"]["event_id"] == first
    assert receipts(answer, room)[bob.id] == second


def typists(answer, room):
    events = of_type(joined(answer, room).get("ephemeral", {}).get("events", []), "m.typing")
    return events[-1]["content"]["user_ids"] if events else None


def test_typing_begins_and_ends_and_runs_out(alice, bob, room):
    alice.sync()
    bob.put("/v3/rooms/{}/typing/{}", room, bob.id, body={"typing": True, "timeout": 30_000})
    assert alice.sync_until("typing", lambda answer: typists(answer, room)) == [bob.id]
    bob.put("/v3/rooms/{}/typing/{}", room, bob.id, body={"typing": False})
    assert alice.sync_until("no typing", lambda answer: typists(answer, room) == [])
    bob.put("/v3/rooms/{}/typing/{}", room, bob.id, body={"typing": True, "timeout": 500})
    alice.sync_until("typing", lambda answer: typists(answer, room) == [bob.id])
    alice.sync_until("the end of it", lambda answer: typists(answer, room) == [])


def test_nobody_types_for_another_or_where_they_are_not(alice, bob, carol, room):
    body = {"typing": True, "timeout": 1000}
    bob.refused((400, 403), "M_FORBIDDEN", "PUT", "/v3/rooms/{}/typing/{}", room, alice.id, body=body)
    carol.refused(403, "M_FORBIDDEN", "PUT", "/v3/rooms/{}/typing/{}", room, carol.id, body=body)


def test_members_now_and_then(alice, bob, carol, room):
    then = alice.sync()["next_batch"]
    alice.invite(room, carol)
    carol.join(room)
    ids = lambda **query: {event["state_key"] for event in alice.get("/v3/rooms/{}/members", room, **query)["chunk"]}
    assert ids() == {alice.id, bob.id, carol.id}
    assert ids(at=then) == {alice.id, bob.id}
    bob.leave(room)
    assert ids(membership="join") == {alice.id, carol.id}
    assert ids(not_membership="leave") == {alice.id, carol.id}


def test_search_finds_words_in_ones_rooms_alone(alice, bob, carol, room):
    word = unique("needle").replace("-", "")
    alice.send(room, f"a {word} in hay")
    search = {"search_categories": {"room_events": {"search_term": word}}}
    found = bob.post("/v3/search", body=search)["search_categories"]["room_events"]
    assert [hit["result"]["content"]["body"] for hit in found["results"]] == [f"a {word} in hay"]
    assert carol.post("/v3/search", body=search)["search_categories"]["room_events"]["results"] == []


def test_reports_are_taken_from_members(alice, bob, carol, room):
    event = alice.send(room, "bad")
    bob.post("/v3/rooms/{}/report/{}", room, event, body={"reason": "spam", "score": -100})
    carol.refused((403, 404), None, "POST", "/v3/rooms/{}/report/{}", room, event, body={"reason": "spam"})
