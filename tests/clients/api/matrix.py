"""A plain Matrix client for the black-box suite: every call is one request, every answer is checked.

Each request goes to a random one of the base URLs, so that the suite runs unchanged against a cluster.
"""
import itertools
import os
import random
import time
import uuid
from urllib.parse import quote

import httpx

URLS = os.environ.get("COFACTOR_URLS", "http://127.0.0.1:8008").split(",")
TOKEN = os.environ.get("COFACTOR_TOKEN", "")
WAIT_SECONDS_MAX = 20
PASSWORD = "correct horse battery staple"

RUN = uuid.uuid4().hex[:6]
numbers = itertools.count(1)
wire = httpx.Client(timeout=60, limits=httpx.Limits(max_connections=50))


def unique(name):
    """A name that no other test and no earlier run has used."""
    return f"{name}-{RUN}-{next(numbers)}"


def path(template, *values):
    """Fills the {} of a path with percent-encoded values; short paths lie under /_matrix/client."""
    filled = template.format(*(quote(value, safe="") for value in values))
    return filled if filled.startswith(("/_matrix", "/.well-known", "/health")) else f"/_matrix/client{filled}"


def is_error(answer, status, errcode=None):
    """Checks that an answer is a Matrix error of this status (or one of these) and errcode (or one of these)."""
    statuses = status if isinstance(status, tuple) else (status,)
    assert answer.status_code in statuses, f"status {answer.status_code}, not {statuses}: {answer.text[:400]}"
    body = answer.json()
    assert isinstance(body.get("errcode"), str), f"no errcode in {body}"
    if errcode is not None:
        errcodes = errcode if isinstance(errcode, tuple) else (errcode,)
        assert body["errcode"] in errcodes, f"errcode {body['errcode']}, not {errcodes}: {body}"
    return body


class Client:
    """Someone with or without an access token."""

    def __init__(self, token=None):
        self.token = token

    def ask(self, method, template, *values, body=None, query=None, headers=None, raw=None, timeout=60):
        """One request, whatever its answer."""
        headers = dict(headers or {})
        if self.token and "Authorization" not in headers:
            headers["Authorization"] = f"Bearer {self.token}"
        options = {"headers": headers, "params": query, "timeout": timeout}
        if raw is not None:
            options["content"] = raw
        elif body is not None:
            options["json"] = body
        return wire.request(method, random.choice(URLS) + path(template, *values), **options)

    def done(self, method, template, *values, **options):
        """One request that must succeed; its JSON."""
        answer = self.ask(method, template, *values, **options)
        assert answer.status_code == 200, f"{method} {answer.url}: {answer.status_code} {answer.text[:600]}"
        return answer.json()

    def get(self, template, *values, **query):
        return self.done("GET", template, *values, query=query)

    def post(self, template, *values, body=None):
        return self.done("POST", template, *values, body={} if body is None else body)

    def put(self, template, *values, body=None):
        return self.done("PUT", template, *values, body={} if body is None else body)

    def delete(self, template, *values, body=None):
        return self.done("DELETE", template, *values, body=body)

    def refused(self, status, errcode, method, template, *values, **options):
        """One request that must fail so."""
        if method in ("POST", "PUT") and "raw" not in options:
            options.setdefault("body", {})
        return is_error(self.ask(method, template, *values, **options), status, errcode)


anyone = Client()


def register(name="user", password=PASSWORD, **more):
    """A new account, through whatever flow the server offers: a registration token, or nothing at all."""
    chosen = {"username": unique(name)} if name else {}
    body = {**chosen, "password": password, **more}
    answer = anyone.ask("POST", "/v3/register", body=body)
    for _ in range(3):
        if answer.status_code != 401:
            break
        offer = answer.json()
        known = {"m.login.registration_token", "m.login.dummy"}
        flow = next(flow["stages"] for flow in offer["flows"] if set(flow["stages"]) <= known)
        stage = next(stage for stage in flow if stage not in offer.get("completed", []))
        auth = {"type": stage, "session": offer["session"]}
        if stage == "m.login.registration_token":
            auth["token"] = TOKEN
        answer = anyone.ask("POST", "/v3/register", body={**body, "auth": auth})
    assert answer.status_code == 200, answer.text
    return User(answer.json(), password)


def login(user_id, password=PASSWORD, **more):
    """A new session of an account."""
    identifier = {"type": "m.id.user", "user": user_id}
    body = {"type": "m.login.password", "identifier": identifier, "password": password, **more}
    return User(anyone.post("/v3/login", body=body), password)


class User(Client):
    """A session of an account, and what people do with one."""

    def __init__(self, session, password):
        super().__init__(session.get("access_token"))
        self.session = session
        self.id = session["user_id"]
        self.device = session.get("device_id")
        self.password = password
        self.since = None

    @property
    def localpart(self):
        return self.id[1:].split(":", 1)[0]

    @property
    def server(self):
        return self.id.split(":", 1)[1]

    def confirmed(self, method, template, *values, body=None):
        """A request that asks for the password (user-interactive authentication)."""
        answer = self.ask(method, template, *values, body=body or {})
        if answer.status_code == 401 and "flows" in answer.json():
            offer = answer.json()
            assert any(flow["stages"] == ["m.login.password"] for flow in offer["flows"]), offer
            identifier = {"type": "m.id.user", "user": self.id}
            auth = {"type": "m.login.password", "identifier": identifier, "password": self.password}
            auth["session"] = offer["session"]
            answer = self.ask(method, template, *values, body={**(body or {}), "auth": auth})
        assert answer.status_code == 200, answer.text
        return answer.json()

    # Rooms

    def create_room(self, **options):
        return self.post("/v3/createRoom", body=options)["room_id"]

    def join(self, room):
        return self.post("/v3/join/{}", room)["room_id"]

    def leave(self, room):
        self.post("/v3/rooms/{}/leave", room)

    def about(self, verb, room, other, **more):
        """invite, kick, ban or unban someone."""
        self.post("/v3/rooms/{}/" + verb, room, body={"user_id": other.id, **more})

    def invite(self, room, other):
        self.about("invite", room, other)

    def send(self, room, text, txn=None, kind="m.room.message"):
        """Sends a text message; its event id."""
        content = {"msgtype": "m.text", "body": text}
        return self.put("/v3/rooms/{}/send/{}/{}", room, kind, txn or unique("txn"), body=content)["event_id"]

    def set_state(self, room, kind, content, key=""):
        return self.put("/v3/rooms/{}/state/{}/{}", room, kind, key, body=content)["event_id"]

    def state(self, room, kind, key=""):
        return self.get("/v3/rooms/{}/state/{}/{}", room, kind, key)

    def redact(self, room, event, reason=None):
        body = {"reason": reason} if reason else {}
        return self.put("/v3/rooms/{}/redact/{}/{}", room, event, unique("txn"), body=body)["event_id"]

    def messages(self, room, **query):
        query = {key.rstrip("_"): value for key, value in query.items()}
        return self.get("/v3/rooms/{}/messages", room, **query)

    def membership(self, room, other=None):
        return self.state(room, "m.room.member", (other or self).id)["membership"]

    # Sync

    def sync(self, timeout=0, **query):
        """One sync from where the last one ended."""
        if self.since:
            query.setdefault("since", self.since)
        answer = self.get("/v3/sync", timeout=timeout, **query)
        self.since = answer["next_batch"]
        return answer

    def sync_until(self, what, found, **query):
        """Syncs until `found` returns something true of an answer; returns that."""
        end = time.monotonic() + WAIT_SECONDS_MAX
        while time.monotonic() < end:
            answer = found(self.sync(timeout=1000, **query))
            if answer:
                return answer
        raise AssertionError(f"not within {WAIT_SECONDS_MAX} s: {what}")


def joined(answer, room):
    return answer.get("rooms", {}).get("join", {}).get(room, {})


def timeline(answer, room):
    return joined(answer, room).get("timeline", {}).get("events", [])


def bodies(events):
    return [event["content"].get("body") for event in events if event["type"] == "m.room.message"]


def of_type(events, kind):
    return [event for event in events if event["type"] == kind]


def eventually(what, ask):
    """Asks until the answer is true: for what travels between nodes."""
    end = time.monotonic() + WAIT_SECONDS_MAX
    while time.monotonic() < end:
        answer = ask()
        if answer:
            return answer
        time.sleep(0.05)
    raise AssertionError(f"not within {WAIT_SECONDS_MAX} s: {what}")
