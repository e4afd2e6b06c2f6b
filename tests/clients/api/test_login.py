"""Sessions, devices and passwords."""
import pytest

from matrix import PASSWORD, Client, anyone, is_error, login, unique


def by_password(identifier, password=PASSWORD, **more):
    body = {"type": "m.login.password", "identifier": identifier, "password": password, **more}
    return anyone.ask("POST", "/v3/login", body=body)


def test_the_flows_hold_the_password():
    assert {"type": "m.login.password"} in [{"type": flow["type"]} for flow in anyone.get("/v3/login")["flows"]]


def test_login_by_full_id_by_localpart_and_by_the_old_field(alice):
    for name in (alice.id, alice.localpart):
        answer = by_password({"type": "m.id.user", "user": name})
        assert answer.json()["user_id"] == alice.id
    old = anyone.post("/v3/login", body={"type": "m.login.password", "user": alice.localpart, "password": PASSWORD})
    assert old["user_id"] == alice.id and old["device_id"] != alice.device


def test_a_wrong_password_and_an_unknown_user_look_alike(alice):
    wrong = is_error(by_password({"type": "m.id.user", "user": alice.id}, "wrong"), 403, "M_FORBIDDEN")
    unknown = is_error(by_password({"type": "m.id.user", "user": unique("nobody")}), 403, "M_FORBIDDEN")
    assert wrong == unknown


@pytest.mark.parametrize("body", [{}, {"type": "m.login.nonsense"}, {"type": "m.login.password"}, {"type": 1}])
def test_a_login_without_sense_is_refused(body):
    anyone.refused((400, 403), None, "POST", "/v3/login", body=body)


def test_login_to_a_device_again_replaces_its_token(alice):
    again = login(alice.id, device_id=alice.device)
    assert again.device == alice.device and again.token != alice.token
    alice.refused(401, "M_UNKNOWN_TOKEN", "GET", "/v3/account/whoami")
    assert len(again.get("/v3/devices")["devices"]) == 1


def test_refreshing_gives_a_new_pair_and_ends_the_old(alice):
    first = login(alice.id, refresh_token=True)
    pair = first.session
    assert pair["refresh_token"] and pair["expires_in_ms"] > 0
    second = anyone.post("/v3/refresh", body={"refresh_token": pair["refresh_token"]})
    assert second["access_token"] != pair["access_token"]
    renewed = Client(second["access_token"])
    assert renewed.get("/v3/account/whoami")["device_id"] == first.device
    if "refresh_token" in second:
        answer = anyone.ask("POST", "/v3/refresh", body={"refresh_token": pair["refresh_token"]})
        assert answer.status_code in (401, 403), "a refresh token was good twice after its successor was used"
    assert renewed.get("/v3/account/whoami")["device_id"] == first.device
    anyone.refused(401, "M_UNKNOWN_TOKEN", "POST", "/v3/refresh", body={"refresh_token": "nonsense"})


def test_a_login_that_asks_for_no_refresh_token_gets_none(alice):
    assert "refresh_token" not in alice.session and "refresh_token" not in login(alice.id).session


def test_logout_ends_one_session_and_its_device(alice):
    other = login(alice.id)
    other.post("/v3/logout")
    other.refused(401, "M_UNKNOWN_TOKEN", "GET", "/v3/account/whoami")
    assert [device["device_id"] for device in alice.get("/v3/devices")["devices"]] == [alice.device]


def test_logout_everywhere_ends_all_sessions(alice):
    other = login(alice.id)
    alice.post("/v3/logout/all")
    for client in (alice, other):
        client.refused(401, "M_UNKNOWN_TOKEN", "GET", "/v3/account/whoami")


def test_devices_are_listed_named_and_deleted_after_the_password(alice):
    other = login(alice.id, initial_device_display_name="phone")
    names = {device["device_id"]: device.get("display_name") for device in alice.get("/v3/devices")["devices"]}
    assert names[other.device] == "phone" and len(names) == 2
    alice.put("/v3/devices/{}", other.device, body={"display_name": "tablet"})
    assert alice.get("/v3/devices/{}", other.device)["display_name"] == "tablet"
    asked = alice.ask("DELETE", "/v3/devices/{}", other.device, body={})
    assert asked.status_code == 401 and asked.json()["session"]
    alice.confirmed("DELETE", "/v3/devices/{}", other.device)
    other.refused(401, "M_UNKNOWN_TOKEN", "GET", "/v3/account/whoami")
    alice.refused(404, "M_NOT_FOUND", "GET", "/v3/devices/{}", other.device)
    alice.refused(404, "M_NOT_FOUND", "PUT", "/v3/devices/{}", "NEVERWAS", body={"display_name": "x"})


def test_several_devices_are_deleted_at_once(alice):
    others = [login(alice.id) for _ in range(3)]
    alice.confirmed("POST", "/v3/delete_devices", body={"devices": [other.device for other in others]})
    assert [device["device_id"] for device in alice.get("/v3/devices")["devices"]] == [alice.device]


def test_devices_of_others_are_out_of_reach(alice, bob):
    alice.refused(404, "M_NOT_FOUND", "GET", "/v3/devices/{}", bob.device)


def test_a_wrong_password_does_not_confirm_and_a_right_one_then_does(alice):
    other = login(alice.id)
    offer = alice.ask("DELETE", "/v3/devices/{}", other.device, body={}).json()
    identifier = {"type": "m.id.user", "user": alice.id}
    auth = {"type": "m.login.password", "identifier": identifier, "password": "wrong", "session": offer["session"]}
    refusal = is_error(alice.ask("DELETE", "/v3/devices/{}", other.device, body={"auth": auth}), 401)
    assert refusal["flows"] and not refusal.get("completed")
    auth["password"] = PASSWORD
    assert alice.ask("DELETE", "/v3/devices/{}", other.device, body={"auth": auth}).status_code == 200


def test_one_cannot_confirm_as_somebody_else(alice, bob):
    offer = alice.ask("DELETE", "/v3/devices/{}", alice.device, body={}).json()
    identifier = {"type": "m.id.user", "user": bob.id}
    auth = {"type": "m.login.password", "identifier": identifier, "password": PASSWORD, "session": offer["session"]}
    answer = alice.ask("DELETE", "/v3/devices/{}", alice.device, body={"auth": auth})
    assert answer.status_code in (400, 401, 403)
    assert alice.get("/v3/account/whoami")["user_id"] == alice.id


@pytest.mark.parametrize("logs_out", [True, False])
def test_a_new_password_replaces_the_old_and_ends_other_sessions_unless_told(alice, logs_out):
    other = login(alice.id)
    body = {"new_password": "another battery staple", "logout_devices": logs_out}
    alice.confirmed("POST", "/v3/account/password", body=body)
    assert alice.get("/v3/account/whoami")["user_id"] == alice.id
    status = other.ask("GET", "/v3/account/whoami").status_code
    assert status == (401 if logs_out else 200)
    is_error(by_password({"type": "m.id.user", "user": alice.id}), 403, "M_FORBIDDEN")
    assert login(alice.id, "another battery staple").id == alice.id


def test_a_deactivated_account_is_gone_for_good(alice, bob):
    room = bob.create_room(invite=[alice.id])
    alice.join(room)
    alice.confirmed("POST", "/v3/account/deactivate")
    alice.refused(401, "M_UNKNOWN_TOKEN", "GET", "/v3/account/whoami")
    answer = by_password({"type": "m.id.user", "user": alice.id})
    is_error(answer, 403, ("M_FORBIDDEN", "M_USER_DEACTIVATED"))
    anyone.refused(400, "M_USER_IN_USE", "GET", "/v3/register/available", query={"username": alice.localpart})
    bob.sync_until("alice has left", lambda _: bob.membership(room, alice) == "leave")
