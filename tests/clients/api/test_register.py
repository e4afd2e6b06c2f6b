"""Registration: https://spec.matrix.org/v1.19/client-server-api/#account-registration."""
import pytest

from matrix import PASSWORD, TOKEN, User, anyone, is_error, register, unique

TOKEN_STAGE = "m.login.registration_token"


def offer(name):
    """What the server asks of someone who wants to register."""
    answer = anyone.ask("POST", "/v3/register", body={"username": name, "password": PASSWORD})
    assert answer.status_code == 401, answer.text
    return answer.json()


def by_token(name, token, session, **more):
    """Registers with a token, and with the dummy stage where one comes after it."""
    body = {"username": name, "password": PASSWORD, **more}
    auth = {"type": TOKEN_STAGE, "token": token, "session": session}
    answer = anyone.ask("POST", "/v3/register", body={**body, "auth": auth})
    if answer.status_code == 401 and answer.json().get("completed"):
        auth = {"type": "m.login.dummy", "session": session}
        answer = anyone.ask("POST", "/v3/register", body={**body, "auth": auth})
    return answer


def needs_token():
    if not any(TOKEN_STAGE in flow["stages"] for flow in offer(unique("probe"))["flows"]):
        pytest.skip("this server asks for no registration token")


def test_the_offer_has_flows_a_session_and_no_completed_stage():
    asked = offer(unique("offer"))
    assert asked["session"] and asked["flows"] and not asked.get("completed")
    assert isinstance(asked.get("params", {}), dict)


def test_the_right_token_makes_an_account_and_a_session():
    needs_token()
    name = unique("Token").lower()
    answer = by_token(name, TOKEN, offer(name)["session"], initial_device_display_name="kitchen")
    assert answer.status_code == 200, answer.text
    session = answer.json()
    assert session["user_id"].startswith(f"@{name}:") and session["device_id"]
    user = User(session, PASSWORD)
    assert user.get("/v3/account/whoami")["user_id"] == user.id
    assert user.get("/v3/devices")["devices"][0]["display_name"] == "kitchen"


def test_a_wrong_token_makes_none_and_may_be_corrected():
    needs_token()
    name = unique("wrong")
    session = offer(name)["session"]
    refusal = is_error(by_token(name, "not-the-token", session), 401)
    assert TOKEN_STAGE not in refusal.get("completed", [])
    assert anyone.get("/v3/register/available", username=name)["available"]
    assert by_token(name, TOKEN, session).status_code == 200


def test_a_token_can_be_tested_beforehand():
    needs_token()
    template = "/v1/register/m.login.registration_token/validity"
    assert anyone.get(template, token=TOKEN)["valid"] is True
    assert anyone.get(template, token="not-the-token")["valid"] is False


def test_a_session_that_never_was_is_refused():
    needs_token()
    answer = by_token(unique("stray"), TOKEN, "no-such-session")
    assert answer.status_code in (400, 401, 403), answer.text


def test_a_stage_that_is_in_no_flow_is_refused():
    needs_token()
    name = unique("dummy")
    auth = {"type": "m.login.password", "session": offer(name)["session"]}
    answer = anyone.ask("POST", "/v3/register", body={"username": name, "password": PASSWORD, "auth": auth})
    assert answer.status_code in (400, 401, 403), answer.text


def test_no_login_when_none_is_wanted():
    user = register("quiet", inhibit_login=True)
    assert user.token is None and user.device is None


def test_a_taken_name_is_refused_before_and_during_registration(alice):
    assert is_error(anyone.ask("GET", "/v3/register/available", query={"username": alice.localpart}), 400, "M_USER_IN_USE")
    body = {"username": alice.localpart, "password": PASSWORD}
    assert is_error(anyone.ask("POST", "/v3/register", body=body), 400, "M_USER_IN_USE")


@pytest.mark.parametrize("name", ["two words", "ünlaut", "a:b", "@alice", "x" * 300])
def test_a_name_outside_the_grammar_is_invalid(name):
    anyone.refused(400, "M_INVALID_USERNAME", "GET", "/v3/register/available", query={"username": name})
    body = {"username": name, "password": PASSWORD}
    anyone.refused(400, "M_INVALID_USERNAME", "POST", "/v3/register", body=body)


def test_guests_are_refused_or_are_guests():
    answer = anyone.ask("POST", "/v3/register", query={"kind": "guest"}, body={})
    if answer.status_code != 200:
        is_error(answer, 403)


def test_an_account_without_a_chosen_name_gets_one():
    first, second = register(None), register(None)
    assert first.id != second.id and first.id.startswith("@")


def test_a_chosen_device_id_is_kept():
    assert register("device", device_id="MYDEVICE").device == "MYDEVICE"
