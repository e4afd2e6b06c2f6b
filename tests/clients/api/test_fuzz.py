"""Every endpoint of the client-server API against bodies and paths of no sense.

Whatever is sent, the answer is no server error, and a refusal is a Matrix error with an errcode. The seed is in the
name of each test and in COFACTOR_FUZZ_SEED; the list of endpoints is the specification's.
"""
import csv
import json
import os
import pathlib
import random
import re
import zlib

import pytest

from matrix import unique

SEED = int(os.environ.get("COFACTOR_FUZZ_SEED", "1"))
LIST = pathlib.Path(__file__).parents[3] / "docs" / "reference" / "endpoints.tsv"
BODIES_EACH = 14
# Said of another server that a path names and that does not answer.
GATEWAY = (502, 504)
LONG_POLLS = ("/events", "/sync")
# Answer with a page for people, or are asked of another server.
FOR_PEOPLE = ("/login/sso/", "/fallback/", "/auth/", "/.well-known/", "/_matrix/media/v3/preview_url")

FIELDS = [
    "auth", "body", "content", "device_keys", "devices", "events", "filter", "id_access_token", "identifier", "invite",
    "m.read", "m.relates_to", "messages", "name", "one_time_keys", "password", "preset", "reason", "room", "room_id",
    "rooms", "search_categories", "session", "signatures", "timeout", "type", "typing", "user_id", "username", "version",
    "visibility", "initial_state", "power_level_content_override", "actions", "conditions", "pattern", "enabled",
    "new_password", "displayname", "avatar_url", "url", "presence", "algorithm", "auth_data", "limit", "since",
]
ODD = [
    None, True, 0, -1, 2**53, 1.5, 1e300, "", "x", "\u0000", "☃" * 10, "a" * 5000, [], [[]], {}, {"": {}}, [None], "@a:b",
    "!a:b", {"type": "m.login.password"}, {"session": 1}, ["@a:b"] * 3, {"@a:b": {"D": 1}}, {"users": {"@a:b": "100"}},
]
RAW = [
    b"", b"null", b"[]", b"1", b'"text"', b"{", b"\xff\xfe\x00", b'{"a":1,"a":2}', b"[" * 5000 + b"]" * 5000,
    b'{"a":' * 3000 + b"1" + b"}" * 3000, b'{"n":1e999}', b'{"\\ud800":"\\udfff"}',
]
ODD_VALUES = ["", ".", "..", "%00", "%2F%2F", "%F0%9F%90%88", "a" * 300, "!", "@:", "%ff", "-1", "null"]
ODD_QUERIES = [
    {}, {"limit": "-1"}, {"dir": "x", "from": "y"}, {"ts": "99999999999999999999"}, {"since": "s1_2_3"},
    {"filter": "[]"}, {"timeout": "-5"}, {"version": "x"}, {"from": "x", "to": "y"}, {"width": "1e9", "height": "0"},
]


def endpoints():
    with open(LIST, newline="") as lines:
        for row in csv.reader(lines, delimiter="\t"):
            api, method, template, operation = row[:4]
            if api == "client-server" and not any(part in template for part in FOR_PEOPLE):
                yield pytest.param(method, template, id=f"{operation}-{SEED}")


def values(alice, room, event):
    """Path values that lead somewhere."""
    return {
        "userId": alice.id, "roomId": room, "roomIdOrAlias": room, "roomAlias": f"#{unique('fuzz')}:{alice.server}",
        "eventId": event, "serverName": alice.server, "deviceId": alice.device, "eventType": "m.room.message",
        "type": "org.example.type", "txnId": unique("txn"), "stateKey": "", "receiptType": "m.read", "kind": "override",
        "ruleId": "mine", "relType": "m.annotation", "keyName": "displayname", "membership": "join",
    }


def fill(template, known, chance):
    """A path with its variables filled in, each by something odd at that chance."""
    def one(found):
        if chance and chance.random() < 0.6:
            return chance.choice(ODD_VALUES)
        return known.get(found.group(1), "x").replace("/", "%2F").replace("#", "%23").replace("?", "%3F")

    return re.sub(r"\{(\w+)\}", one, template)


def check(answer, what):
    status = answer.status_code
    assert status < 500 or status in GATEWAY, f"{what}: {status} {answer.text[:300]}"
    if status >= 400:
        body = answer.json()
        is_error = isinstance(body, dict) and ("flows" in body or isinstance(body.get("errcode"), str))
        assert is_error, f"{what}: {status} without errcode: {body}"


@pytest.mark.parametrize("method, template", list(endpoints()))
def test_no_body_and_no_path_breaks_it(alice, method, template):
    chance = random.Random(SEED * 1_000_003 + zlib.crc32(f"{method} {template}".encode()))
    room = alice.create_room()
    event = alice.send(room, "x")
    for number in range(BODIES_EACH):
        odd_path = number % 3 == 2
        where = fill(template, values(alice, room, event), chance if odd_path else None)
        # Long polls are asked not to wait.
        query = {**chance.choice(ODD_QUERIES), **({"timeout": "0"} if template.endswith(LONG_POLLS) else {})}
        raw = None
        if method in ("POST", "PUT", "DELETE"):
            raw = chance.choice(RAW) if number % 2 else json.dumps(
                {chance.choice(FIELDS): chance.choice(ODD) for _ in range(chance.randrange(1, 7))}).encode()
        headers = {"Content-Type": chance.choice(["application/json", "text/plain", "application/json; charset=x"])}
        # Percent-encoded by hand: the braces of a template are gone by now.
        answer = alice.ask(method, where.replace("{", "%7B").replace("}", "%7D"), raw=raw, query=query, headers=headers)
        check(answer, f"{method} {where} {query} {raw[:200] if raw else ''}")
