"""Who may see what: history visibility × membership × every room-scoped reading endpoint."""
import pytest

SETTINGS = ["world_readable", "shared", "invited", "joined"]
MESSAGES = ["before", "invited", "joined", "left"]

# What someone who was invited, joined and then left sees of the four messages, sent before the invitation, while
# invited, while joined, and after leaving. https://spec.matrix.org/v1.19/client-server-api/#room-history-visibility
SEEN_BY_FORMER_MEMBER = {
    "world_readable": ["before", "invited", "joined", "left"],
    "shared": ["before", "invited", "joined"],
    "invited": ["invited", "joined"],
    "joined": ["joined"],
}


@pytest.fixture(params=SETTINGS)
def story(request, alice, bob):
    """A room with one setting from its start, and a message at each stage of bob's membership."""
    setting = request.param
    content = {"history_visibility": setting}
    state = [{"type": "m.room.history_visibility", "state_key": "", "content": content}]
    room = alice.create_room(preset="private_chat", initial_state=state)
    events = {"before": alice.send(room, "before")}
    alice.invite(room, bob)
    events["invited"] = alice.send(room, "invited")
    bob.join(room)
    events["joined"] = alice.send(room, "joined")
    return setting, room, events


def texts(chunk):
    return [event["content"]["body"] for event in chunk if event["type"] == "m.room.message" and "body" in event["content"]]


def reads(who, room, event):
    """Whether someone gets an event by its id; a refusal must not tell that it exists."""
    answer = who.ask("GET", "/v3/rooms/{}/event/{}", room, event)
    context = who.ask("GET", "/v3/rooms/{}/context/{}", room, event, query={"limit": 0})
    assert answer.status_code in (200, 403, 404), answer.text
    assert (context.status_code == 200) == (answer.status_code == 200), f"/event and /context disagree: {context.text}"
    return answer.status_code == 200


def test_a_member_sees_from_where_the_setting_lets_them(story, bob):
    setting, room, events = story
    expected = [name for name in SEEN_BY_FORMER_MEMBER[setting] if name != "left"]
    assert texts(bob.messages(room, dir="f", limit=50)["chunk"]) == expected
    assert [name for name in events if reads(bob, room, events[name])] == expected
    synced = bob.sync(filter='{"room":{"timeline":{"limit":50}}}')["rooms"]["join"][room]["timeline"]["events"]
    assert texts(synced) == expected


def test_who_left_sees_what_they_could_and_no_more(story, alice, bob):
    setting, room, events = story
    bob.leave(room)
    events["left"] = alice.send(room, "left")
    alice.set_state(room, "m.room.topic", {"topic": "after"})
    expected = SEEN_BY_FORMER_MEMBER[setting]
    assert texts(bob.messages(room, dir="f", limit=50)["chunk"]) == expected
    assert [name for name in events if reads(bob, room, events[name])] == expected
    topic = bob.ask("GET", "/v3/rooms/{}/state/m.room.topic/", room)
    kinds = {event["type"] for event in bob.get("/v3/rooms/{}/state", room)}
    if setting != "world_readable":
        assert topic.status_code in (403, 404) and "m.room.topic" not in kinds, "the state of now shows to one who left"


def test_a_stranger_sees_world_readable_rooms_alone(story, alice, carol):
    setting, room, events = story
    open_to_all = setting == "world_readable"
    for template in ("state", "messages?dir=b", "members", "joined_members", "state/m.room.create/", "aliases"):
        part, _, query = template.partition("?")
        parameters = dict(pair.split("=") for pair in query.split("&")) if query else None
        answer = carol.ask("GET", "/v3/rooms/{}/" + part, room, query=parameters)
        if part in ("members", "joined_members"):
            assert answer.status_code in ((200, 403) if open_to_all else (403,)), f"{part}: {answer.text[:200]}"
        else:
            assert answer.status_code == (200 if open_to_all else 403), f"{part}: {answer.text[:200]}"
    assert all(reads(carol, room, event) == open_to_all for event in events.values())
    for template in ("/v1/rooms/{}/threads", "/v1/rooms/{}/hierarchy"):
        assert carol.ask("GET", template, room).status_code in ((200, 403) if open_to_all else (403, 404))
    found = carol.ask("GET", "/v1/rooms/{}/relations/{}", room, events["before"])
    assert found.status_code in ((200,) if open_to_all else (403, 404))
    moment = carol.ask("GET", "/v1/rooms/{}/timestamp_to_event", room, query={"ts": 1, "dir": "f"})
    assert moment.status_code in ((200, 403) if open_to_all else (403, 404))


def test_one_invited_sees_neither_messages_nor_state(story, alice, carol):
    setting, room, events = story
    alice.invite(room, carol)
    if setting == "world_readable":
        assert texts(carol.messages(room, dir="f", limit=50)["chunk"])
        return
    for part in ("messages", "state", "members"):
        carol.refused(403, "M_FORBIDDEN", "GET", "/v3/rooms/{}/" + part, room, query={"dir": "b"})
    assert not reads(carol, room, events["joined"])


def test_a_setting_holds_from_its_event_on(alice, bob):
    room = alice.create_room(preset="private_chat")
    alice.send(room, "shared")
    alice.set_state(room, "m.room.history_visibility", {"history_visibility": "joined"})
    alice.send(room, "hidden")
    alice.invite(room, bob)
    bob.join(room)
    alice.send(room, "seen")
    assert texts(bob.messages(room, dir="f", limit=50)["chunk"]) == ["shared", "seen"]


def test_a_redacted_text_is_hidden_from_members_too(story, alice, bob):
    _, room, events = story
    alice.redact(room, events["joined"])
    assert "joined" not in texts(bob.messages(room, dir="f", limit=50)["chunk"])
