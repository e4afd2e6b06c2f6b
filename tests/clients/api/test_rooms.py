"""Creating rooms, joining and leaving them, aliases, state."""
import pytest

from matrix import is_error, unique

VERSIONS = [str(number) for number in range(1, 13)]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_room_of_every_version_is_made_joined_and_spoken_in(alice, bob, version):
    room = alice.create_room(room_version=version, preset="public_chat", name="version")
    assert alice.state(room, "m.room.create").get("room_version", "1") == version
    assert (":" in room) == (version != "12")
    bob.join(room)
    event = bob.send(room, "hello")
    assert (":" in event) == (version in ("1", "2"))
    assert alice.get("/v3/rooms/{}/event/{}", room, event)["content"]["body"] == "hello"
    assert alice.redact(room, event) and "body" not in alice.get("/v3/rooms/{}/event/{}", room, event)["content"]
    alice.about("kick", room, bob)
    bob.refused(403, "M_FORBIDDEN", "PUT", "/v3/rooms/{}/send/m.room.message/1", room, body={"body": "x"})


def test_an_unknown_version_is_refused(alice):
    alice.refused(400, "M_UNSUPPORTED_ROOM_VERSION", "POST", "/v3/createRoom", body={"room_version": "nonsense"})


@pytest.mark.parametrize("preset, rule, guests, visibility", [
    ("private_chat", "invite", "can_join", "shared"),
    ("trusted_private_chat", "invite", "can_join", "shared"),
    ("public_chat", "public", "forbidden", "shared"),
])
def test_presets_set_rules_and_powers(alice, bob, preset, rule, guests, visibility):
    room = alice.create_room(preset=preset, invite=[bob.id], room_version="11")
    assert alice.state(room, "m.room.join_rules")["join_rule"] == rule
    assert alice.state(room, "m.room.history_visibility")["history_visibility"] == visibility
    guest_rule = alice.ask("GET", "/v3/rooms/{}/state/m.room.guest_access/", room)
    assert (guest_rule.json()["guest_access"] if guest_rule.status_code == 200 else "forbidden") == guests
    users = alice.state(room, "m.room.power_levels")["users"]
    assert users[alice.id] == 100
    assert (users.get(bob.id) == 100) == (preset == "trusted_private_chat")


def test_every_option_of_creation_takes_effect_in_order(alice, bob):
    alias = unique("alias")
    room = alice.create_room(
        name="A name", topic="A topic", room_alias_name=alias, invite=[bob.id], is_direct=True, visibility="public",
        room_version="11", creation_content={"m.federate": False, "org.example": 1},
        power_level_content_override={"events_default": 5, "users": {alice.id: 100, bob.id: 50}},
        initial_state=[{"type": "m.room.history_visibility", "state_key": "", "content": {"history_visibility": "joined"}},
                       {"type": "org.example.state", "state_key": "key", "content": {"a": 1}}],
    )
    create = alice.state(room, "m.room.create")
    assert create["m.federate"] is False and create["org.example"] == 1
    assert alice.state(room, "m.room.name")["name"] == "A name"
    assert alice.state(room, "m.room.topic")["topic"] == "A topic"
    assert alice.state(room, "m.room.canonical_alias")["alias"] == f"#{alias}:{alice.server}"
    assert alice.state(room, "m.room.history_visibility")["history_visibility"] == "joined"
    assert alice.state(room, "org.example.state", "key") == {"a": 1}
    levels = alice.state(room, "m.room.power_levels")
    assert levels["events_default"] == 5 and levels["users"][bob.id] == 50
    assert alice.state(room, "m.room.member", bob.id)["is_direct"] is True
    assert alice.get("/v3/directory/list/room/{}", room) == {"visibility": "public"}
    kinds = [event["type"] for event in alice.messages(room, dir="f", limit=50)["chunk"]]
    assert kinds[:3] == ["m.room.create", "m.room.member", "m.room.power_levels"]


@pytest.mark.parametrize("body, errcode", [
    ({"room_alias_name": "with:colon"}, None),
    ({"invite": ["not-a-user"]}, None),
    ({"preset": "nonsense"}, None),
    ({"initial_state": [{"content": {}}]}, None),
    ({"power_level_content_override": {"users": {"@x:y": "text"}}}, None),
])
def test_creation_options_of_no_sense_are_refused(alice, body, errcode):
    alice.refused((400, 403), errcode, "POST", "/v3/createRoom", body=body)


def test_an_invitation_is_accepted_or_rejected_or_withdrawn(alice, bob, carol):
    room = alice.create_room(preset="private_chat")
    bob.refused(403, "M_FORBIDDEN", "POST", "/v3/rooms/{}/join", room)
    for person in (bob, carol):
        alice.invite(room, person)
        assert alice.membership(room, person) == "invite"
    bob.join(room)
    carol.leave(room)
    assert alice.membership(room, bob) == "join" and alice.membership(room, carol) == "leave"
    carol.refused(403, "M_FORBIDDEN", "POST", "/v3/rooms/{}/join", room)
    alice.refused(403, "M_FORBIDDEN", "POST", "/v3/rooms/{}/invite", room, body={"user_id": bob.id})
    assert alice.get("/v3/joined_rooms")["joined_rooms"] == [room]
    assert set(alice.get("/v3/rooms/{}/joined_members", room)["joined"]) == {alice.id, bob.id}


def test_kicking_banning_and_unbanning_need_power(alice, bob, carol):
    room = alice.create_room(preset="public_chat")
    bob.join(room)
    carol.join(room)
    for verb in ("kick", "ban", "unban"):
        bob.refused(403, ("M_FORBIDDEN", "M_BAD_STATE"), "POST", "/v3/rooms/{}/" + verb, room, body={"user_id": carol.id})
    alice.about("kick", room, carol, reason="noise")
    assert alice.state(room, "m.room.member", carol.id)["reason"] == "noise"
    carol.join(room)
    alice.about("ban", room, carol, reason="more noise")
    assert alice.membership(room, carol) == "ban"
    carol.refused(403, ("M_FORBIDDEN", "M_BAD_STATE"), "POST", "/v3/join/{}", room)
    body = {"user_id": carol.id}
    alice.refused(403, ("M_FORBIDDEN", "M_BAD_STATE"), "POST", "/v3/rooms/{}/invite", room, body=body)
    alice.about("unban", room, carol)
    assert alice.membership(room, carol) == "leave"
    carol.join(room)


def test_one_cannot_kick_who_is_not_there(alice, bob):
    room = alice.create_room(preset="public_chat")
    alice.refused(403, "M_FORBIDDEN", "POST", "/v3/rooms/{}/kick", room, body={"user_id": bob.id})


def test_knocking_is_answered_by_an_invitation(alice, bob):
    room = alice.create_room(preset="private_chat", room_version="11")
    bob.refused(403, "M_FORBIDDEN", "POST", "/v3/knock/{}", room)
    alice.set_state(room, "m.room.join_rules", {"join_rule": "knock"})
    assert bob.post("/v3/knock/{}", room, body={"reason": "please"})["room_id"] == room
    assert alice.state(room, "m.room.member", bob.id).get("reason") == "please"
    assert room in bob.sync()["rooms"]["knock"]
    alice.invite(room, bob)
    bob.join(room)
    assert alice.membership(room, bob) == "join"


def test_a_restricted_room_opens_to_members_of_another(alice, bob, carol):
    club = alice.create_room(preset="private_chat", invite=[bob.id])
    bob.join(club)
    rule = {"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": club}]}
    state = [{"type": "m.room.join_rules", "state_key": "", "content": rule}]
    room = alice.create_room(room_version="11", initial_state=state)
    carol.refused(403, "M_FORBIDDEN", "POST", "/v3/join/{}", room)
    bob.join(room)
    assert alice.state(room, "m.room.member", bob.id)["join_authorised_via_users_server"] == alice.id


def test_forgetting_needs_to_have_left(alice, bob, room):
    bob.refused(400, None, "POST", "/v3/rooms/{}/forget", room)
    bob.leave(room)
    bob.post("/v3/rooms/{}/forget", room)
    bob.refused(403, "M_FORBIDDEN", "GET", "/v3/rooms/{}/messages", room, query={"dir": "b"})
    bob.refused(403, "M_FORBIDDEN", "PUT", "/v3/rooms/{}/send/m.room.message/1", room, body={"body": "x"})


def test_joining_or_leaving_twice_changes_nothing(alice, bob, room):
    before = alice.get("/v3/rooms/{}/state", room)
    bob.join(room)
    after = alice.get("/v3/rooms/{}/state", room)
    assert {event["event_id"] for event in before} == {event["event_id"] for event in after}


def test_joining_what_is_not_there_is_not_found(alice):
    answer = alice.ask("POST", "/v3/join/{}", f"!{unique('none')}:{alice.server}", body={})
    is_error(answer, (403, 404))
    alice.refused(404, "M_NOT_FOUND", "POST", "/v3/join/{}", f"#{unique('none')}:{alice.server}")
    alice.refused(400, None, "POST", "/v3/join/{}", "nonsense")


def test_aliases_are_made_resolved_listed_and_deleted(alice, bob, room):
    alias = f"#{unique('alias')}:{alice.server}"
    alice.put("/v3/directory/room/{}", alias, body={"room_id": room})
    alice.refused(409, None, "PUT", "/v3/directory/room/{}", alias, body={"room_id": room})
    found = bob.get("/v3/directory/room/{}", alias)
    assert found["room_id"] == room and alice.server in found["servers"]
    assert alice.get("/v3/rooms/{}/aliases", room)["aliases"] == [alias]
    bob.refused(403, "M_FORBIDDEN", "DELETE", "/v3/directory/room/{}", alias)
    alice.set_state(room, "m.room.canonical_alias", {"alias": alias})
    alice.delete("/v3/directory/room/{}", alias)
    bob.refused(404, "M_NOT_FOUND", "GET", "/v3/directory/room/{}", alias)
    alice.refused(400, None, "PUT", "/v3/directory/room/{}", "nonsense", body={"room_id": room})


def test_a_canonical_alias_must_lead_here(alice, room):
    body = {"alias": f"#{unique('nowhere')}:{alice.server}"}
    alice.refused(400, ("M_BAD_ALIAS", "M_INVALID_PARAM"), "PUT", "/v3/rooms/{}/state/m.room.canonical_alias/", room, body=body)


def test_a_taken_alias_stops_the_creation(alice, bob):
    alias = unique("alias")
    alice.create_room(room_alias_name=alias)
    bob.refused(400, "M_ROOM_IN_USE", "POST", "/v3/createRoom", body={"room_alias_name": alias})


def test_public_rooms_are_found_by_name(alice, bob):
    name = unique("Garden")
    room = alice.create_room(preset="public_chat", visibility="public", name=name, topic="flowers")
    found = bob.post("/v3/publicRooms", body={"filter": {"generic_search_term": name}})["chunk"]
    assert [entry["room_id"] for entry in found] == [room]
    assert found[0]["name"] == name and found[0]["num_joined_members"] == 1 and found[0]["topic"] == "flowers"
    bob.refused(403, "M_FORBIDDEN", "PUT", "/v3/directory/list/room/{}", room, body={"visibility": "private"})
    alice.put("/v3/directory/list/room/{}", room, body={"visibility": "private"})
    assert bob.post("/v3/publicRooms", body={"filter": {"generic_search_term": name}})["chunk"] == []


def test_public_rooms_come_in_pages(alice):
    word = unique("pages")
    rooms = {alice.create_room(preset="public_chat", visibility="public", name=f"{word} {n}") for n in range(3)}
    seen, since = [], {}
    for _ in range(4):
        page = alice.post("/v3/publicRooms", body={"limit": 1, "filter": {"generic_search_term": word}, **since})
        seen += [entry["room_id"] for entry in page["chunk"]]
        if "next_batch" not in page:
            break
        since = {"since": page["next_batch"]}
    assert set(seen) == rooms and len(seen) == 3
    back = []
    while "prev_batch" in page:
        query = {"limit": 1, "since": page["prev_batch"], "filter": {"generic_search_term": word}}
        page = alice.post("/v3/publicRooms", body=query)
        back += [entry["room_id"] for entry in page["chunk"]]
    assert back == seen[1::-1]
    alice.refused(400, "M_INVALID_PARAM", "POST", "/v3/publicRooms", body={"since": "nonsense"})


def test_the_directory_follows_the_room_and_shows_the_largest_first(alice, bob):
    word = unique("follows")
    small, large = (alice.create_room(preset="public_chat", visibility="public", name=f"{word} {n}") for n in range(2))
    space = alice.create_room(preset="public_chat", visibility="public", name=word, creation_content={"type": "m.space"})
    bob.join(large)
    alice.set_state(large, "m.room.topic", {"topic": "changed"})
    search = lambda **more: alice.post("/v3/publicRooms", body={"filter": {"generic_search_term": word, **more}})["chunk"]
    found = search()
    assert found[0]["room_id"] == large and {entry["room_id"] for entry in found} == {small, large, space}
    assert found[0]["num_joined_members"] == 2 and found[0]["topic"] == "changed"
    assert [entry["room_id"] for entry in search(room_types=["m.space"])] == [space]
    assert {entry["room_id"] for entry in search(room_types=[None])} == {small, large}


def test_state_is_set_read_and_overwritten_by_those_with_power(alice, bob, room):
    event = alice.set_state(room, "org.example.a", {"n": 1}, "key")
    assert alice.set_state(room, "org.example.a", {"n": 2}, "key") != event
    assert bob.state(room, "org.example.a", "key") == {"n": 2}
    full = bob.get("/v3/rooms/{}/state/org.example.a/{}", room, "key", format="event")
    assert full["content"] == {"n": 2} and full["state_key"] == "key" and full["sender"] == alice.id
    bob.refused(403, "M_FORBIDDEN", "PUT", "/v3/rooms/{}/state/org.example.a/key", room, body={"n": 3})
    bob.refused(404, "M_NOT_FOUND", "GET", "/v3/rooms/{}/state/org.example.a/other", room)
    kinds = [(event["type"], event["state_key"]) for event in bob.get("/v3/rooms/{}/state", room)]
    assert len(kinds) == len(set(kinds)) and ("org.example.a", "key") in kinds and ("m.room.create", "") in kinds


def test_nobody_sets_state_keyed_by_another_user(alice, bob, room):
    alice.set_state(room, "m.room.power_levels", {**alice.state(room, "m.room.power_levels"), "state_default": 0})
    bob.refused(403, "M_FORBIDDEN", "PUT", "/v3/rooms/{}/state/org.example.a/{}", room, alice.id, body={})
    bob.set_state(room, "org.example.a", {}, bob.id)


def test_nobody_raises_their_own_power(alice, bob, room):
    levels = alice.state(room, "m.room.power_levels")
    levels.setdefault("users", {})[bob.id] = 50
    levels["events"]["m.room.power_levels"] = 50
    alice.set_state(room, "m.room.power_levels", levels)
    levels["users"][bob.id] = 60
    bob.refused(403, "M_FORBIDDEN", "PUT", "/v3/rooms/{}/state/m.room.power_levels/", room, body=levels)
    levels["users"][bob.id] = 40
    bob.set_state(room, "m.room.power_levels", levels)


def test_the_same_state_again_is_the_same_event(alice, room):
    first = alice.set_state(room, "org.example.a", {"n": 1})
    assert alice.set_state(room, "org.example.a", {"n": 1}) == first


def test_an_upgrade_leads_from_the_old_room_to_the_new(alice, bob, room):
    bob.refused(403, "M_FORBIDDEN", "POST", "/v3/rooms/{}/upgrade", room, body={"new_version": "11"})
    new = alice.post("/v3/rooms/{}/upgrade", room, body={"new_version": "11"})["replacement_room"]
    assert alice.state(room, "m.room.tombstone")["replacement_room"] == new
    assert alice.state(new, "m.room.create")["predecessor"]["room_id"] == room
    assert alice.state(new, "m.room.name")["name"] == "two"
    body = {"msgtype": "m.text", "body": "too late"}
    bob.refused(403, "M_FORBIDDEN", "PUT", "/v3/rooms/{}/send/m.room.message/1", room, body=body)


def test_a_space_lists_its_children(alice, bob):
    child = alice.create_room(preset="public_chat", name="child")
    space = alice.create_room(preset="public_chat", name="space", creation_content={"type": "m.space"})
    alice.set_state(space, "m.space.child", {"via": [alice.server]}, child)
    bob.join(space)
    rooms = bob.get("/v1/rooms/{}/hierarchy", space)["rooms"]
    assert [entry["room_id"] for entry in rooms] == [space, child]
    assert rooms[0]["room_type"] == "m.space" and rooms[0]["children_state"][0]["state_key"] == child


def test_an_upgrade_takes_names_and_levels_along(alice, bob, room):
    alias = unique("upgraded")
    alice.put("/v3/directory/room/{}", f"#{alias}:{alice.server}", body={"room_id": room})
    levels = alice.state(room, "m.room.power_levels")
    alice.set_state(room, "m.room.topic", {"topic": "about"})
    alice.refused(400, "M_UNSUPPORTED_ROOM_VERSION", "POST", "/v3/rooms/{}/upgrade", room, body={"new_version": "x"})
    old = alice.create_room(room_version="10", preset="private_chat", invite=[bob.id],
                            power_level_content_override={"users": {alice.id: 100, bob.id: 60}})
    bob.join(old)
    for version in ("11", "12"):
        new = alice.post("/v3/rooms/{}/upgrade", old, body={"new_version": version})["replacement_room"]
        users = alice.state(new, "m.room.power_levels")["users"]
        assert users[bob.id] == 60 and (alice.id in users) == (version != "12")
        old = new
    new = alice.post("/v3/rooms/{}/upgrade", room, body={"new_version": "10"})["replacement_room"]
    assert alice.get("/v3/directory/room/{}", f"#{alias}:{alice.server}")["room_id"] == new
    assert alice.state(new, "m.room.topic")["topic"] == "about"
    assert alice.state(new, "m.room.power_levels")["users"][alice.id] == 100
    assert alice.state(room, "m.room.power_levels")["events_default"] == max(50, levels["users_default"] + 1)


def test_the_rooms_below_a_space_come_in_pages_and_hide_what_is_private(alice, bob):
    space = alice.create_room(preset="public_chat", creation_content={"type": "m.space"})
    rooms = [alice.create_room(preset="public_chat", name=f"{n}") for n in range(3)]
    hidden = alice.create_room(preset="private_chat", name="hidden")
    for order, child in zip("cba", rooms):
        alice.set_state(space, "m.space.child", {"via": [alice.server], "order": order, "suggested": order == "a"}, child)
    alice.set_state(space, "m.space.child", {"via": [alice.server]}, hidden)
    alice.set_state(space, "m.space.child", {}, "!gone:example.org")
    listed = lambda answer: [entry["room_id"] for entry in answer["rooms"]]
    template = "/v1/rooms/{}/hierarchy"
    assert listed(bob.get(template, space)) == [space, *rooms[::-1]]
    assert listed(alice.get(template, space)) == [space, *rooms[::-1], hidden]
    assert listed(bob.get(template, space, suggested_only="true")) == [space, rooms[2]]
    assert listed(bob.get(template, space, max_depth=0)) == [space]
    page = bob.get(template, space, limit=2)
    assert listed(page) + listed(bob.get(template, space, limit=2, **{"from": page["next_batch"]})) == [space, *rooms[::-1]]
    bob.refused(403, "M_FORBIDDEN", "GET", template, hidden)
    summary = bob.get("/v1/room_summary/{}", rooms[0])
    assert summary["name"] == "0" and summary["membership"] == "leave" and summary["num_joined_members"] == 1
    bob.refused(404, "M_NOT_FOUND", "GET", "/v1/room_summary/{}", hidden)
