"""Profiles, account data and filters."""
import pytest

from matrix import anyone, joined, of_type, unique


def test_names_and_avatars_are_public_and_can_be_taken_away(alice, bob):
    alice.put("/v3/profile/{}/displayname", alice.id, body={"displayname": "Alice ☃"})
    alice.put("/v3/profile/{}/avatar_url", alice.id, body={"avatar_url": "mxc://example.org/abc"})
    expected = {"displayname": "Alice ☃", "avatar_url": "mxc://example.org/abc"}
    assert expected.items() <= bob.get("/v3/profile/{}", alice.id).items()
    assert bob.get("/v3/profile/{}/displayname", alice.id) == {"displayname": "Alice ☃"}
    assert bob.get("/v3/profile/{}/avatar_url", alice.id) == {"avatar_url": "mxc://example.org/abc"}
    alice.put("/v3/profile/{}/avatar_url", alice.id, body={"avatar_url": ""})
    assert not bob.get("/v3/profile/{}", alice.id).get("avatar_url")


def test_a_profile_of_nobody_is_not_found(alice):
    nobody = f"@{unique('nobody')}:{alice.server}"
    alice.refused(404, "M_NOT_FOUND", "GET", "/v3/profile/{}", nobody)
    alice.refused(404, "M_NOT_FOUND", "GET", "/v3/profile/{}/displayname", nobody)


def test_nobody_changes_the_profile_of_another(alice, bob):
    alice.refused((400, 403), None, "PUT", "/v3/profile/{}/displayname", bob.id, body={"displayname": "Mallory"})
    anyone.refused(401, "M_MISSING_TOKEN", "PUT", "/v3/profile/{}/displayname", bob.id, body={"displayname": "x"})


def test_a_new_name_reaches_the_rooms_one_is_in(alice, bob, room):
    bob.sync()
    alice.put("/v3/profile/{}/displayname", alice.id, body={"displayname": "Alice the second"})

    def renamed(answer):
        events = of_type(joined(answer, room).get("timeline", {}).get("events", []), "m.room.member")
        return any(event["content"].get("displayname") == "Alice the second" for event in events)

    bob.sync_until("the member event", renamed)
    assert bob.state(room, "m.room.member", alice.id)["membership"] == "join"


def test_other_profile_fields_can_be_kept(alice, bob):
    capabilities = alice.get("/v3/capabilities")["capabilities"]
    if not capabilities.get("m.profile_fields", {}).get("enabled"):
        pytest.skip("this server keeps no other profile fields")
    alice.put("/v3/profile/{}/m.tz", alice.id, body={"m.tz": "Europe/London"})
    assert bob.get("/v3/profile/{}/m.tz", alice.id) == {"m.tz": "Europe/London"}
    assert bob.get("/v3/profile/{}", alice.id)["m.tz"] == "Europe/London"
    alice.delete("/v3/profile/{}/m.tz", alice.id)
    bob.refused(404, "M_NOT_FOUND", "GET", "/v3/profile/{}/m.tz", alice.id)


def test_account_data_is_kept_replaced_and_synced(alice):
    alice.sync()
    for value in ({"a": 1}, {"b": [1, 2]}):
        alice.put("/v3/user/{}/account_data/org.example.thing", alice.id, body=value)
        assert alice.get("/v3/user/{}/account_data/org.example.thing", alice.id) == value
    events = alice.sync_until("the data", lambda answer: answer.get("account_data", {}).get("events"))
    assert [event["content"] for event in of_type(events, "org.example.thing")] == [{"b": [1, 2]}]
    assert not alice.sync().get("account_data", {}).get("events")


def test_account_data_of_a_room_is_kept_apart(alice, bob, room):
    alice.sync()
    alice.put("/v3/user/{}/rooms/{}/account_data/org.example.thing", alice.id, room, body={"here": True})
    got = alice.get("/v3/user/{}/rooms/{}/account_data/org.example.thing", alice.id, room)
    assert got == {"here": True}
    alice.refused(404, "M_NOT_FOUND", "GET", "/v3/user/{}/account_data/org.example.thing", alice.id)
    events = alice.sync_until("the data", lambda answer: joined(answer, room).get("account_data", {}).get("events"))
    assert of_type(events, "org.example.thing")[0]["content"] == {"here": True}
    bob.refused(404, "M_NOT_FOUND", "GET", "/v3/user/{}/rooms/{}/account_data/org.example.thing", bob.id, room)


def test_account_data_is_nobody_elses(alice, bob):
    bob.refused(403, "M_FORBIDDEN", "GET", "/v3/user/{}/account_data/a", alice.id)
    bob.refused(403, "M_FORBIDDEN", "PUT", "/v3/user/{}/account_data/a", alice.id)
    alice.refused(404, "M_NOT_FOUND", "GET", "/v3/user/{}/account_data/never.set", alice.id)


def test_data_that_the_server_manages_cannot_be_set_directly(alice, room):
    alice.refused(405, "M_BAD_JSON", "PUT", "/v3/user/{}/account_data/m.push_rules", alice.id)
    alice.refused(405, "M_BAD_JSON", "PUT", "/v3/user/{}/rooms/{}/account_data/m.fully_read", alice.id, room)


def test_account_data_that_is_no_object_is_refused(alice):
    alice.refused(400, ("M_BAD_JSON", "M_NOT_JSON"), "PUT", "/v3/user/{}/account_data/a", alice.id, body=[1])


def test_direct_chats_and_tags(alice, bob, room):
    alice.put("/v3/user/{}/account_data/m.direct", alice.id, body={bob.id: [room]})
    alice.put("/v3/user/{}/rooms/{}/tags/{}", alice.id, room, "m.favourite", body={"order": 0.5})
    assert alice.get("/v3/user/{}/rooms/{}/tags", alice.id, room)["tags"] == {"m.favourite": {"order": 0.5}}
    data = joined(alice.sync(), room)["account_data"]["events"]
    assert of_type(data, "m.tag")[0]["content"]["tags"] == {"m.favourite": {"order": 0.5}}
    alice.delete("/v3/user/{}/rooms/{}/tags/{}", alice.id, room, "m.favourite")
    assert alice.get("/v3/user/{}/rooms/{}/tags", alice.id, room)["tags"] == {}


def test_a_filter_reads_back_and_is_nobody_elses(alice, bob):
    wanted = {"room": {"timeline": {"limit": 3, "types": ["m.room.message"]}}}
    number = alice.post("/v3/user/{}/filter", alice.id, body=wanted)["filter_id"]
    assert not number.startswith("{")
    assert alice.get("/v3/user/{}/filter/{}", alice.id, number)["room"]["timeline"]["limit"] == 3
    bob.refused(403, "M_FORBIDDEN", "GET", "/v3/user/{}/filter/{}", alice.id, number)
    bob.refused(403, "M_FORBIDDEN", "POST", "/v3/user/{}/filter", alice.id)
    alice.refused(404, "M_NOT_FOUND", "GET", "/v3/user/{}/filter/{}", alice.id, "98765")


@pytest.mark.parametrize("bad", [{"room": 1}, {"room": {"timeline": {"limit": "x"}}}, {"presence": []}])
def test_a_filter_of_the_wrong_shape_is_refused(alice, bad):
    alice.refused(400, None, "POST", "/v3/user/{}/filter", alice.id, body=bad)


def test_another_user_can_be_searched_for_by_name(alice, bob, room):
    bob.put("/v3/profile/{}/displayname", bob.id, body={"displayname": "Robert Uncommon"})
    found = alice.post("/v3/user_directory/search", body={"search_term": bob.localpart})
    assert isinstance(found["results"], list) and isinstance(found["limited"], bool)
