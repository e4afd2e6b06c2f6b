"""/sync: https://spec.matrix.org/v1.19/client-server-api/#syncing."""
import json
import threading
import time

import pytest

from matrix import bodies, eventually, joined, of_type, register, timeline, unique

LIMIT_3 = json.dumps({"room": {"timeline": {"limit": 3}}})
LAZY = json.dumps({"room": {"state": {"lazy_load_members": True}, "timeline": {"limit": 2}}})


def state_of(answer, room):
    """What the answer says the state before the timeline is, by type and key."""
    events = joined(answer, room).get("state", {}).get("events", [])
    return {(event["type"], event["state_key"]): event["content"] for event in events}


def test_a_new_account_has_its_rules_and_no_rooms(alice):
    answer = alice.sync()
    assert not any(answer.get("rooms", {}).values())
    assert of_type(answer["account_data"]["events"], "m.push_rules")
    assert isinstance(answer["next_batch"], str)


def test_the_first_sync_holds_every_room_whole(alice, bob, room):
    alice.send(room, "hello")
    answer = bob.sync()
    part = joined(answer, room)
    state = {**state_of(answer, room)}
    for event in part["timeline"]["events"]:
        if "state_key" in event:
            state[event["type"], event["state_key"]] = event["content"]
    assert state["m.room.name", ""] == {"name": "two"}
    assert {key for kind, key in state if kind == "m.room.member"} == {alice.id, bob.id}
    assert bodies(part["timeline"]["events"]) == ["hello"]
    assert all("room_id" not in event for event in of_type(part["timeline"]["events"], "m.room.message"))


def test_a_later_sync_holds_only_what_is_new(alice, bob, room):
    bob.sync()
    assert not joined(bob.sync(), room)
    sent = [alice.send(room, "one"), alice.send(room, "two")]
    answer = bob.sync_until("both", lambda answer: len(timeline(answer, room)) and answer)
    assert [event["event_id"] for event in timeline(answer, room)] == sent[:len(timeline(answer, room))]
    assert not joined(answer, room)["timeline"].get("limited")
    assert not state_of(answer, room)


def test_syncing_from_the_same_token_again_gives_the_same(alice, bob, room):
    since = bob.sync()["next_batch"]
    event = alice.send(room, "one")
    for _ in range(3):
        bob.since = since
        bob.sync_until("the message", lambda answer: timeline(answer, room)[-1:] and
                       timeline(answer, room)[-1]["event_id"] == event)


def test_a_token_of_no_sense_is_refused(alice):
    alice.refused(400, None, "GET", "/v3/sync", query={"since": "nonsense"})
    alice.refused(400, None, "GET", "/v3/sync", query={"timeout": "x"})
    alice.refused(400, None, "GET", "/v3/sync", query={"filter": "{nonsense"})
    alice.refused((400, 404), None, "GET", "/v3/sync", query={"filter": "987654"})


def test_a_gap_is_limited_and_its_state_is_a_delta(alice, bob, room):
    bob.sync(filter=LIMIT_3)
    alice.set_state(room, "m.room.topic", {"topic": "in the gap"})
    sent = [alice.send(room, f"{n}") for n in range(6)]
    answer = bob.sync_until("the gap", lambda answer: joined(answer, room) and answer, filter=LIMIT_3)
    part = joined(answer, room)
    assert part["timeline"]["limited"] is True
    assert [event["event_id"] for event in part["timeline"]["events"]] == sent[-3:]
    assert list(state_of(answer, room)) == [("m.room.topic", "")]
    before = bob.messages(room, dir="b", from_=part["timeline"]["prev_batch"], limit=4)["chunk"]
    assert [event["event_id"] for event in before[:3]] == sent[2::-1] and before[3]["type"] == "m.room.topic"


def test_state_inside_the_timeline_is_not_repeated_before_it(alice, bob, room):
    bob.sync()
    alice.set_state(room, "m.room.topic", {"topic": "seen"})
    answer = bob.sync_until("the topic", lambda answer: joined(answer, room) and answer)
    assert of_type(timeline(answer, room), "m.room.topic") and not state_of(answer, room)


@pytest.mark.parametrize("parameter, key", [
    ("use_state_after", "state_after"), ("org.matrix.msc4222.use_state_after", "org.matrix.msc4222.state_after"),
])
def test_state_after_the_timeline_when_asked_for(alice, bob, room, parameter, key):
    asked = {parameter: "true", "filter": LIMIT_3}
    first = joined(bob.sync(**asked), room)
    if key not in first:
        pytest.skip(f"this server does not know {parameter}")
    assert "state" not in first
    after = {(event["type"], event["state_key"]) for event in first[key]["events"]}
    assert {("m.room.create", ""), ("m.room.member", bob.id), ("m.room.member", alice.id)} <= after
    alice.set_state(room, "m.room.topic", {"topic": "new"})
    alice.send(room, "and more")
    part = bob.sync_until("the topic", lambda answer: joined(answer, room), **asked)
    assert [event["content"] for event in of_type(part[key]["events"], "m.room.topic")] == [{"topic": "new"}]


def test_full_state_repeats_everything(alice, bob, room):
    bob.sync()
    answer = bob.sync(full_state="true")
    assert ("m.room.create", "") in state_of(answer, room)


def test_lazy_members_are_senders_and_oneself(alice, bob, room):
    crowd = [register("crowd") for _ in range(4)]
    for person in crowd:
        alice.invite(room, person)
        person.join(room)
    crowd[0].send(room, "hello"), crowd[0].send(room, "again")
    answer = bob.sync(filter=LAZY)
    members = {key for kind, key in state_of(answer, room) if kind == "m.room.member"}
    assert members == {bob.id, crowd[0].id}
    crowd[1].send(room, "me too")
    later = bob.sync_until("the message", lambda answer: joined(answer, room) and answer, filter=LAZY)
    members = {key for kind, key in state_of(later, room) if kind == "m.room.member"}
    # Members that the client knows may be left out and may be repeated.
    assert {crowd[1].id} <= members <= {crowd[1].id, crowd[0].id, bob.id}


def test_the_summary_counts_and_names_heroes(alice, bob, carol):
    room = alice.create_room(invite=[bob.id, carol.id])
    bob.join(room)
    summary = joined(alice.sync(filter=LAZY), room)["summary"]
    assert summary["m.joined_member_count"] == 2 and summary["m.invited_member_count"] == 1
    assert set(summary["m.heroes"]) == {bob.id, carol.id}
    carol.join(room)
    later = alice.sync_until("the new count", lambda answer: joined(answer, room).get("summary"), filter=LAZY)
    assert later["m.joined_member_count"] == 3 and later.get("m.invited_member_count", 0) == 0


def test_an_invitation_shows_the_room_and_the_inviter(alice, bob):
    bob.sync()
    room = alice.create_room(name="come in", invite=[bob.id])
    invitation = bob.sync_until("the invitation", lambda answer: answer.get("rooms", {}).get("invite", {}).get(room))
    stripped = {(event["type"], event["state_key"]): event for event in invitation["invite_state"]["events"]}
    assert stripped["m.room.name", ""]["content"]["name"] == "come in"
    mine = stripped["m.room.member", bob.id]
    assert mine["content"]["membership"] == "invite" and mine["sender"] == alice.id
    assert ("m.room.join_rules", "") in stripped
    assert room in bob.get("/v3/sync")["rooms"]["invite"], "a first sync lost the invitation"
    bob.join(room)
    answer = bob.sync_until("the room", lambda answer: joined(answer, room) and answer)
    assert room not in answer["rooms"].get("invite", {})


def test_leaving_shows_once_and_forgetting_not_at_all(alice, bob, room):
    bob.sync()
    bob.leave(room)
    left = bob.sync_until("leaving", lambda answer: answer.get("rooms", {}).get("leave", {}).get(room))
    assert left["timeline"]["events"][-1]["content"]["membership"] == "leave"
    alice.send(room, "gone?")
    assert not bob.sync().get("rooms", {}).get("leave")
    everything = json.dumps({"room": {"include_leave": True}})
    assert room in bob.get("/v3/sync", filter=everything)["rooms"]["leave"]
    assert room not in bob.get("/v3/sync").get("rooms", {}).get("leave", {})
    bob.post("/v3/rooms/{}/forget", room)
    assert room not in bob.get("/v3/sync", filter=everything).get("rooms", {}).get("leave", {})


def test_a_kick_shows_as_leaving_and_a_rejoin_shows_the_gap(alice, bob, room):
    bob.sync()
    alice.about("kick", room, bob, reason="test")
    left = bob.sync_until("the kick", lambda answer: answer.get("rooms", {}).get("leave", {}).get(room))
    assert left["timeline"]["events"][-1]["sender"] == alice.id
    alice.send(room, "unseen")
    alice.invite(room, bob)
    bob.join(room)
    answer = bob.sync_until("the room again", lambda answer: joined(answer, room) and answer)
    kinds = {kind for kind, _ in state_of(answer, room)} | {e["type"] for e in timeline(answer, room)}
    assert "m.room.create" in kinds, "one who joins gets the whole state"


def test_a_waiting_sync_wakes_for_a_message(alice, bob, room):
    bob.sync()
    since, got = bob.since, {}

    def wait():
        started = time.monotonic()
        got["answer"] = bob.get("/v3/sync", since=since, timeout=30_000)
        got["seconds"] = time.monotonic() - started

    waiter = threading.Thread(target=wait)
    waiter.start()
    time.sleep(1)  # The one place where waiting is the subject: the request must be parked.
    event = alice.send(room, "wake up")
    waiter.join(40)
    assert [e["event_id"] for e in timeline(got["answer"], room)] == [event]
    assert 0.9 < got["seconds"] < 10, got["seconds"]


def test_a_sync_without_news_ends_after_its_time(alice):
    alice.sync()
    since, started = alice.since, time.monotonic()
    answer = alice.get("/v3/sync", since=since, timeout=1500)
    assert 1.2 < time.monotonic() - started < 10
    assert not any(answer.get("rooms", {}).values())


def test_a_first_sync_does_not_wait(alice):
    started = time.monotonic()
    alice.get("/v3/sync", timeout=20_000)
    assert time.monotonic() - started < 10


def test_unread_counts_follow_messages_and_receipts(alice, bob, room):
    bob.sync()
    counts = lambda answer: joined(answer, room).get("unread_notifications", {})
    alice.send(room, "one")
    last = alice.send(room, f"two, {bob.localpart}")
    # Two people in a room: every message notifies (.m.rule.room_one_to_one).
    bob.sync_until("two unread", lambda answer: counts(answer).get("notification_count") == 2)
    body = {"msgtype": "m.text", "body": "mention", "m.mentions": {"user_ids": [bob.id]}}
    last = alice.put("/v3/rooms/{}/send/m.room.message/m", room, body=body)["event_id"]
    seen = bob.sync_until("the mention", lambda answer: counts(answer).get("notification_count") == 3 and counts(answer))
    assert seen["highlight_count"] >= 1
    bob.post("/v3/rooms/{}/receipt/m.read/{}", room, last)
    bob.sync_until("none unread", lambda answer: counts(answer).get("notification_count") == 0)
    bob.send(room, "mine")
    assert counts(bob.get("/v3/sync")).get("notification_count", 0) == 0


def test_unread_counts_by_thread_when_asked_for(alice, bob, room):
    root = alice.send(room, "root")
    bob.post("/v3/rooms/{}/receipt/m.read/{}", room, root)
    asked = json.dumps({"room": {"timeline": {"unread_thread_notifications": True}}})
    bob.sync(filter=asked)
    relation = {"rel_type": "m.thread", "event_id": root}
    body = {"msgtype": "m.text", "body": "in it", "m.relates_to": relation}
    event = alice.put("/v3/rooms/{}/send/m.room.message/t", room, body=body)["event_id"]
    counts = lambda answer: joined(answer, room).get("unread_thread_notifications", {}).get(root, {})
    bob.sync_until("one in the thread", lambda answer: counts(answer).get("notification_count") == 1, filter=asked)
    bob.post("/v3/rooms/{}/receipt/m.read/{}", room, event, body={"thread_id": root})
    again = joined(bob.get("/v3/sync", filter=asked), room)
    assert again.get("unread_thread_notifications", {}).get(root, {}).get("notification_count", 0) == 0


@pytest.mark.parametrize("own_rules", [False, True])
def test_receipts_in_a_thread_leave_the_others_unread(alice, bob, room, own_rules):
    if own_rules:
        bob.put("/v3/pushrules/global/content/{}", "cake", body={"pattern": "cake", "actions": ["notify"]})
    roots = [alice.send(room, "one"), alice.send(room, "two")]
    asked = json.dumps({"room": {"timeline": {"unread_thread_notifications": True}}})

    def reply(root):
        relation = {"rel_type": "m.thread", "event_id": root}
        body = {"msgtype": "m.text", "body": "in it", "m.relates_to": relation}
        return alice.put("/v3/rooms/{}/send/m.room.message/{}", room, unique("t"), body=body)["event_id"]

    def unread(query):
        answer = joined(bob.get("/v3/sync", **query), room)
        threads = answer.get("unread_thread_notifications", {})
        return answer["unread_notifications"]["notification_count"], [
            threads.get(root, {}).get("notification_count", 0) for root in roots]

    def becomes(main, threads, total):
        eventually(f"{main} {threads}", lambda: unread({"filter": asked}) == (main, threads))
        assert unread({}) == (total, [0, 0])

    replies = [reply(roots[0]), reply(roots[1]), reply(roots[1])]
    becomes(2, [1, 2], 5)
    read = "/v3/rooms/{}/receipt/m.read/{}"
    bob.refused(400, "M_INVALID_PARAM", "POST", read, room, replies[0], body={"thread_id": roots[1]})
    bob.refused(400, "M_INVALID_PARAM", "POST", read, room, replies[0], body={"thread_id": "main"})
    bob.post(read, room, replies[1], body={"thread_id": roots[1]})
    becomes(2, [1, 1], 4)
    bob.post(read, room, roots[1], body={"thread_id": "main"})
    becomes(0, [1, 1], 2)
    bob.post(read, room, replies[1])
    becomes(0, [0, 1], 1)
    last = reply(roots[0])
    becomes(0, [1, 1], 2)
    bob.post(read, room, last)
    becomes(0, [0, 0], 0)


def test_a_filter_leaves_out_rooms_and_types(alice, bob, room):
    other = alice.create_room(name="other")
    alice.send(other, "x")
    only = json.dumps({"room": {"rooms": [other]}})
    assert set(alice.get("/v3/sync", filter=only)["rooms"]["join"]) == {other}
    without = json.dumps({"room": {"not_rooms": [other]}})
    assert set(alice.get("/v3/sync", filter=without)["rooms"]["join"]) == {room}
    names = json.dumps({"room": {"state": {"types": ["m.room.name"]}, "timeline": {"types": ["m.room.message"]}}})
    answer = alice.get("/v3/sync", filter=names)
    assert {kind for kind, _ in state_of(answer, other)} <= {"m.room.name"}
    assert {event["type"] for event in timeline(answer, other)} == {"m.room.message"}


def test_ignored_people_are_not_heard(alice, bob, room):
    alice.put("/v3/user/{}/account_data/m.ignored_user_list", alice.id, body={"ignored_users": {bob.id: {}}})
    alice.sync()
    bob.send(room, "ignored")
    mine = alice.send(room, "mine")
    events = alice.sync_until("my message", lambda answer: timeline(answer, room))
    assert [event["event_id"] for event in events if event["type"] == "m.room.message"] == [mine]


def test_the_filter_of_fields_strips_events(alice, room):
    alice.send(room, "short")
    asked = json.dumps({"event_fields": ["type", "content.body"], "room": {"timeline": {"limit": 1}}})
    assert timeline(alice.get("/v3/sync", filter=asked), room) == [{"type": "m.room.message", "content": {"body": "short"}}]
