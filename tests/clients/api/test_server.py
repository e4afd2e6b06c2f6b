"""What a server says about itself, and how it answers what it does not know."""
import pytest

from matrix import Client, anyone, is_error

ROOM_VERSIONS = [str(number) for number in range(1, 13)]


def test_versions_need_no_token_and_name_a_recent_one():
    versions = anyone.get("/versions")["versions"]
    assert "v1.11" in versions and all(isinstance(version, str) for version in versions)


def test_well_known_is_an_address_or_not_there():
    answer = anyone.ask("GET", "/.well-known/matrix/client")
    if answer.status_code == 200:
        assert answer.json()["m.homeserver"]["base_url"].startswith("http")
    else:
        assert answer.status_code == 404
    assert answer.headers["access-control-allow-origin"] == "*"


def test_capabilities_name_every_room_version(alice):
    capabilities = alice.get("/v3/capabilities")["capabilities"]
    versions = capabilities["m.room_versions"]
    assert set(ROOM_VERSIONS) <= set(versions["available"])
    assert versions["available"][versions["default"]] == "stable"
    assert capabilities.get("m.change_password", {"enabled": True})["enabled"]
    anyone.refused(401, "M_MISSING_TOKEN", "GET", "/v3/capabilities")


@pytest.mark.parametrize("template", ["/v3/sync", "/v3/login", "/v1/media/config", "/v3/rooms/!a:b/messages"])
def test_a_preflight_is_answered_without_a_token(template):
    asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "PUT"}
    answer = anyone.ask("OPTIONS", template, headers=asked)
    assert answer.status_code in (200, 204)
    assert answer.headers["access-control-allow-origin"] == "*"
    methods = answer.headers["access-control-allow-methods"]
    assert all(method in methods for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"))
    headers = answer.headers["access-control-allow-headers"].lower()
    assert all(name in headers for name in ("authorization", "content-type", "x-requested-with"))


def test_errors_carry_cors_headers_too():
    for answer in (anyone.ask("GET", "/v3/sync"), anyone.ask("GET", "/v3/nonsense")):
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers["content-type"].startswith("application/json")


@pytest.mark.parametrize("template", ["/v3/nonsense", "/v9/sync", "/_matrix/nonsense", "/v3/rooms/!a:b/nonsense"])
def test_an_unknown_path_is_unrecognised(alice, template):
    alice.refused(404, "M_UNRECOGNIZED", "GET", template)


@pytest.mark.parametrize("method, template", [("DELETE", "/v3/sync"), ("PUT", "/v3/login"), ("GET", "/v3/createRoom")])
def test_a_wrong_method_is_unrecognised(alice, method, template):
    alice.refused(405, "M_UNRECOGNIZED", method, template)


def test_tokens_missing_unknown_and_malformed():
    anyone.refused(401, "M_MISSING_TOKEN", "GET", "/v3/account/whoami")
    Client("nonsense").refused(401, "M_UNKNOWN_TOKEN", "GET", "/v3/account/whoami")
    answer = anyone.ask("GET", "/v3/account/whoami", headers={"Authorization": "Basic abc"})
    is_error(answer, 401, ("M_MISSING_TOKEN", "M_UNKNOWN_TOKEN"))


def test_whoami_by_header_and_by_the_old_query_parameter(alice):
    expected = {"user_id": alice.id, "device_id": alice.device}
    assert expected.items() <= alice.get("/v3/account/whoami").items()
    assert expected.items() <= anyone.get("/v3/account/whoami", access_token=alice.token).items()


def test_old_prefixes_reach_the_same_endpoints(alice):
    assert alice.get("/r0/account/whoami")["user_id"] == alice.id


@pytest.mark.parametrize("raw", [b"{", b"\xff\xfe", b'{"a": }', b'{"a": 1'])
def test_a_body_that_is_no_json_is_said_to_be_none(alice, raw):
    alice.refused(400, "M_NOT_JSON", "POST", "/v3/createRoom", raw=raw)


@pytest.mark.parametrize("body", [[], "text", 1, None, {"preset": 1}, {"invite": "text"}])
def test_json_of_the_wrong_shape_is_bad_json(alice, body):
    if body is None:
        alice.refused(400, None, "POST", "/v3/createRoom", raw=b"null")
    else:
        alice.refused(400, ("M_BAD_JSON", "M_INVALID_PARAM", "M_UNKNOWN", "M_NOT_JSON"), "POST", "/v3/createRoom", body=body)
