//! Bodies that are no JSON, strange JSON, or too much of it.

use serde_json::{Value, json};

use crate::support::{Server, User, head, shared};

/// Routes that read a body, and a body that they take. `ROOM` and `USER` stand for a room and the user.
const ROUTES: &[(&str, &str, &str)] = &[
    ("POST", "/v3/login", r#"{"type":"m.login.password"}"#),
    ("POST", "/v3/register", r#"{"username":"x"}"#),
    ("POST", "/v3/refresh", r#"{"refresh_token":"x"}"#),
    ("POST", "/v3/createRoom", r#"{"preset":"private_chat"}"#),
    ("PUT", "/v3/rooms/ROOM/send/m.room.message/TXN", r#"{"msgtype":"m.text","body":"x"}"#),
    ("PUT", "/v3/rooms/ROOM/state/org.example.state/x", "{}"),
    ("PUT", "/v3/rooms/ROOM/state/m.room.name", r#"{"name":"x"}"#),
    ("PUT", "/v3/rooms/ROOM/redact/$x/TXN", r#"{"reason":"x"}"#),
    ("PUT", "/v3/rooms/ROOM/typing/USER", r#"{"typing":true,"timeout":1}"#),
    ("POST", "/v3/rooms/ROOM/invite", r#"{"user_id":"@nobody:edge.example"}"#),
    ("POST", "/v3/rooms/ROOM/kick", r#"{"user_id":"@nobody:edge.example"}"#),
    ("POST", "/v3/rooms/ROOM/receipt/m.read/$x", "{}"),
    ("POST", "/v3/rooms/ROOM/read_markers", r#"{"m.read":"$x"}"#),
    ("POST", "/v3/user/USER/filter", r#"{"room":{}}"#),
    ("PUT", "/v3/user/USER/account_data/org.example.data", "{}"),
    ("PUT", "/v3/user/USER/rooms/ROOM/account_data/org.example.data", "{}"),
    ("PUT", "/v3/user/USER/rooms/ROOM/tags/u.tag", r#"{"order":0.5}"#),
    ("PUT", "/v3/profile/USER/displayname", r#"{"displayname":"x"}"#),
    ("PUT", "/v3/profile/USER/org.example.field", r#"{"org.example.field":1}"#),
    ("PUT", "/v3/pushrules/global/content/x", r#"{"actions":["notify"],"pattern":"x"}"#),
    ("PUT", "/v3/pushrules/global/content/.m.rule.contains_user_name/actions", r#"{"actions":[]}"#),
    ("POST", "/v3/keys/upload", r#"{"one_time_keys":{}}"#),
    ("POST", "/v3/keys/query", r#"{"device_keys":{"USER":[]}}"#),
    ("POST", "/v3/keys/claim", r#"{"one_time_keys":{}}"#),
    ("POST", "/v3/keys/device_signing/upload", "{}"),
    ("POST", "/v3/keys/signatures/upload", r#"{"USER":{}}"#),
    ("PUT", "/v3/sendToDevice/m.test/TXN", r#"{"messages":{}}"#),
    ("POST", "/v3/room_keys/version", r#"{"algorithm":"a","auth_data":{}}"#),
    ("PUT", "/v3/room_keys/keys?version=1", r#"{"rooms":{}}"#),
    ("PUT", "/v3/devices/PHONE", r#"{"display_name":"x"}"#),
    ("POST", "/v3/delete_devices", r#"{"devices":[]}"#),
];

struct Place<'a> {
    server: &'a Server,
    user: User,
    room: String,
    transactions: std::cell::Cell<u32>,
}

impl Place<'_> {
    fn new(name: &str) -> Place<'static> {
        let server = shared();
        let user = server.user(name);
        let made = server.must("POST", "/_matrix/client/v3/createRoom", user.token(), &json!({}));
        let room = made["room_id"].as_str().unwrap().to_owned();
        Place { server, user, room, transactions: Default::default() }
    }

    fn named(&self, text: &str) -> String {
        let next = self.transactions.get() + 1;
        self.transactions.set(next);
        text.replace("ROOM", &self.room).replace("USER", &self.user.id).replace("TXN", &format!("t{next}"))
    }

    /// What everybody reads afterwards still comes, and is JSON.
    fn assert_well(&self) {
        for path in ["sync", "rooms/ROOM/messages?dir=b&limit=100", "rooms/ROOM/state", "rooms/ROOM/members"] {
            let path = format!("/_matrix/client/v3/{}", self.named(path));
            let reply = self.server.ask("GET", &path, self.user.token(), b"");
            assert_eq!(reply.status, 200, "{path}: {}", reply.text());
            if let Err(error) = serde_json::from_slice::<Value>(&reply.body) {
                let at = error.column().saturating_sub(200);
                let around = &reply.body[at..reply.body.len().min(at + 400)];
                panic!("{path}: {error} in {}", String::from_utf8_lossy(around));
            }
        }
    }
}

fn nested(open: &str, close: &str, depth: usize) -> Vec<u8> {
    (open.repeat(depth) + "1" + &close.repeat(depth)).into_bytes()
}

/// Bodies that no route may choke on.
fn hostile() -> Vec<(&'static str, Vec<u8>)> {
    let text = |text: &str| text.as_bytes().to_vec();
    vec![
        ("nothing", text("")),
        ("a blank", text(" ")),
        ("no JSON", text("msgtype=m.text")),
        ("an array", text("[]")),
        ("an array of much", text(r#"[{"a":1},null,[[]]]"#)),
        ("a number", text("1")),
        ("a string", text("\"x\"")),
        ("null", text("null")),
        ("true", text("true")),
        ("something after the end", text(r#"{"a":1}{"b":2}"#)),
        ("a comma too many", text(r#"{"a":1,}"#)),
        ("a key twice", text(r#"{"a":1,"a":2,"body":"x","body":"y","type":"m.login.password","type":[]}"#)),
        ("a byte order mark", text("\u{feff}{}")),
        ("UTF-16", b"{\0}\0".to_vec()),
        ("invalid UTF-8", b"{\"body\":\"\xff\xfe\"}".to_vec()),
        ("over-long UTF-8", b"{\"body\":\"\xc0\x80\"}".to_vec()),
        ("UTF-8 of a surrogate", b"{\"body\":\"\xed\xa0\x80\"}".to_vec()),
        ("a lone surrogate", text(r#"{"body":"\ud800","msgtype":"m.text","a":"\udc00"}"#)),
        ("surrogates turned", text(r#"{"body":"\udc00\ud800"}"#)),
        ("a NUL", text(r#"{"body":"\u0000","\u0000":"\u0000"}"#)),
        ("a raw NUL", b"{\"body\":\"\0\"}".to_vec()),
        ("a raw line feed", b"{\"body\":\"\n\"}".to_vec()),
        ("depth 10", [b"{\"a\":".to_vec(), nested("[", "]", 10), b"}".to_vec()].concat()),
        ("depth 63", [b"{\"a\":".to_vec(), nested("[", "]", 63), b"}".to_vec()].concat()),
        ("depth 100", nested("{\"a\":", "}", 100)),
        ("depth 10,000", nested("[", "]", 10_000)),
        ("open depth", "{\"a\":".repeat(100_000).into_bytes()),
        ("infinity by exponent", text(r#"{"a":1e400,"timeout":1e400,"order":1e400}"#)),
        ("minus zero", text(r#"{"a":-0,"timeout":-0,"order":-0.0}"#)),
        ("2^53", text(r#"{"a":9007199254740992,"timeout":9007199254740992}"#)),
        ("2^63", text(r#"{"a":9223372036854775808,"timeout":9223372036854775808}"#)),
        ("2^64", text(r#"{"a":18446744073709551616,"timeout":18446744073709551616}"#)),
        ("a thousand digits", format!("{{\"a\":{}}}", "9".repeat(1_000)).into_bytes()),
        ("not a number", text(r#"{"a":NaN}"#)),
        ("infinity", text(r#"{"a":-Infinity}"#)),
        ("a fraction", text(r#"{"a":0.1}"#)),
        ("a leading zero", text(r#"{"a":01}"#)),
        ("a raw value token", text(r#"{"$serde_json::private::RawValue":"{"}"#)),
        ("a number token", text(r#"{"a":{"$serde_json::private::Number":"x"}}"#)),
        ("odd members", text(r#"{"type":1,"user_id":[],"actions":{},"device_keys":7,"messages":{"@a":[]},"auth":3}"#)),
        (
            "members of null",
            text(r#"{"type":null,"body":null,"user_id":null,"messages":null,"rooms":null,"auth":null}"#),
        ),
        ("objects everywhere", text(r#"{"type":{},"user_id":{},"one_time_keys":{"@a:b":{}},"auth":{"type":{}}}"#)),
    ]
}

#[test]
fn no_body_makes_any_route_fail() {
    let place = Place::new("bodies_small");
    for (method, template, _) in ROUTES {
        let mut connection = place.server.connect();
        for (name, body) in hostile() {
            let path = place.named(&format!("/_matrix/client{template}"));
            let what = format!("{method} {template} with {name}");
            // The server may close after what it could not read to the end.
            let Some(reply) = connection.ask(method, &path, place.user.token(), &body) else {
                panic!("{what}: no answer")
            };
            reply.assert_decent(&what);
            if reply.header("connection") == Some("close") {
                connection = place.server.connect();
            }
        }
    }
    place.assert_well();
}

#[test]
fn every_member_of_a_wrong_type_is_refused_without_failing() {
    let place = Place::new("bodies_members");
    let wrong = [json!(null), json!(1), json!("x"), json!([]), json!({}), json!([[1]]), json!({ "x": null })];
    for (method, template, body) in ROUTES {
        let mut connection = place.server.connect();
        let body: serde_json::Map<String, Value> = serde_json::from_str(&place.named(body)).unwrap();
        for name in body.keys() {
            for value in &wrong {
                let mut changed = body.clone();
                changed.insert(name.clone(), value.clone());
                let path = place.named(&format!("/_matrix/client{template}"));
                let sent = serde_json::to_vec(&changed).unwrap();
                let reply = connection.ask(method, &path, place.user.token(), &sent).unwrap();
                reply.assert_decent(&format!("{method} {template} with {name} = {value}"));
            }
            let mut without = body.clone();
            without.remove(name);
            let path = place.named(&format!("/_matrix/client{template}"));
            let sent = serde_json::to_vec(&without).unwrap();
            let reply = connection.ask(method, &path, place.user.token(), &sent).unwrap();
            reply.assert_decent(&format!("{method} {template} without {name}"));
        }
    }
    place.assert_well();
}

#[test]
fn large_bodies_are_refused_or_taken_but_never_fail() {
    let place = Place::new("bodies_large");
    let many: String = (0..100_000).map(|number| format!("\"k{number}\":0,")).collect();
    let object = |inner: String| format!("{{{inner}\"end\":0}}").into_bytes();
    let large = [
        ("10 MB of blanks", 413, " ".repeat(10 << 20).into_bytes()),
        ("a key of 1 MB", 413, object(format!("\"{}\":0,", "k".repeat(1 << 20)))),
        ("100,000 keys", 413, object(many.clone())),
        ("depth 1,000,000", 413, nested("[", "]", 1_000_000)),
        ("a key of 900 kB", 0, object(format!("\"{}\":0,", "k".repeat(900 << 10)))),
        ("70,000 keys", 0, object(many[..900 << 10].rsplit_once(',').unwrap().0.to_owned() + ",")),
        ("depth 400,000", 400, nested("[", "]", 400_000)),
    ];
    for (method, template, _) in ROUTES.iter().filter(|(_, template, _)| {
        ["send/m.room", "createRoom", "account_data", "filter", "login", "keys/upload"]
            .iter()
            .any(|one| template.contains(one))
    }) {
        for (name, status, body) in &large {
            let path = place.named(&format!("/_matrix/client{template}"));
            let what = format!("{method} {template} with {name}");
            let mut connection = place.server.connect();
            let head = head(method, &path, place.user.token(), &format!("content-length: {}\r\n", body.len()));
            connection.send(head);
            // Whoever is refused at once may not be able to send all of it.
            connection.send(body);
            match connection.reply() {
                Some(reply) => {
                    reply.assert_decent(&what);
                    assert!(*status == 0 || reply.status == *status, "{what}: {} {}", reply.status, reply.text());
                }
                None => assert_eq!(*status, 413, "{what}: closed"),
            }
        }
    }
    place.assert_well();
}

/// <https://spec.matrix.org/v1.19/appendices/#canonical-json>
#[test]
fn events_hold_integers_that_everybody_can_read_and_nothing_else() {
    let place = Place::new("bodies_numbers");
    let mut connection = place.server.connect();
    for (number, taken) in [
        ("0", true),
        ("9007199254740991", true),
        ("-9007199254740991", true),
        ("9007199254740992", false),
        ("-9007199254740992", false),
        ("9223372036854775808", false),
        ("1e400", false),
        ("0.5", false),
        ("NaN", false),
    ] {
        let body = format!(r#"{{"msgtype":"m.text","body":"x","deep":[{{"number":{number}}}]}}"#);
        for path in ["send/m.room.message/TXN", "state/org.example.number/x"] {
            let path = place.named(&format!("/_matrix/client/v3/rooms/ROOM/{path}"));
            let reply = connection.ask("PUT", &path, place.user.token(), body.as_bytes()).unwrap();
            assert_eq!(reply.status, if taken { 200 } else { 400 }, "{number}: {}", reply.text());
        }
    }
    place.assert_well();
}

/// <https://spec.matrix.org/v1.19/client-server-api/#size-limits>
#[test]
fn an_event_is_as_large_as_allowed_and_no_larger() {
    let place = Place::new("bodies_sizes");
    let mut connection = place.server.connect();
    for (length, status) in [(60_000, 200), (65_536, 413), (500_000, 413)] {
        let body = json!({ "msgtype": "m.text", "body": "x".repeat(length) }).to_string();
        let path = place.named("/_matrix/client/v3/rooms/ROOM/send/m.room.message/TXN");
        let reply = connection.ask("PUT", &path, place.user.token(), body.as_bytes()).unwrap();
        assert_eq!(reply.status, status, "{length}: {}", reply.text());
    }
    for (length, taken) in [(254, true), (255, true), (256, false), (1_000, false)] {
        for text in ["k".repeat(length), "é".repeat(length / 2) + &"k".repeat(length % 2)] {
            let key = percent(&text);
            for path in [format!("state/org.example.key/{key}"), format!("state/{key}/x"), format!("send/{key}/TXN")] {
                let path = place.named(&format!("/_matrix/client/v3/rooms/ROOM/{path}"));
                let reply = connection.ask("PUT", &path, place.user.token(), b"{}").unwrap();
                reply.assert_decent(&path);
                assert_eq!(reply.status == 200, taken, "{length} bytes: {} {}", reply.status, reply.text());
            }
        }
    }
    place.assert_well();
}

fn percent(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// Bodies that would be stored and then sent to others who have to read them.
#[test]
fn device_keys_of_a_wrong_form_are_refused_and_not_shown() {
    let place = Place::new("bodies_keys");
    let User { id, .. } = &place.user;
    let good = json!({
        "user_id": id, "device_id": "PHONE", "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
        "keys": { "curve25519:PHONE": "abc", "ed25519:PHONE": "def" },
        "signatures": { id.as_str(): { "ed25519:PHONE": "sig" } },
    });
    let mut bad = vec![json!(1), json!("x"), json!([]), json!([good.clone()])];
    for (name, value) in [
        ("user_id", json!("@somebody.else:edge.example")),
        ("user_id", json!(null)),
        ("device_id", json!("OTHER")),
        ("device_id", json!(7)),
        ("algorithms", json!("x")),
        ("keys", json!([])),
        ("keys", json!({ "ed25519:PHONE": 1 })),
        ("signatures", json!({ id.as_str(): "x" })),
    ] {
        let mut one = good.clone();
        one[name] = value;
        bad.push(one);
    }
    for keys in bad {
        let body = json!({ "device_keys": keys }).to_string();
        let reply = place.server.ask("POST", "/_matrix/client/v3/keys/upload", place.user.token(), body.as_bytes());
        assert_eq!(reply.status, 400, "{keys}: {}", reply.text());
        reply.assert_decent("keys/upload");
    }
    let query = json!({ "device_keys": { id.as_str(): [] } });
    let shown = place.server.must("POST", "/_matrix/client/v3/keys/query", place.user.token(), &query);
    assert_eq!(shown["device_keys"][id].as_object().map_or(0, |devices| devices.len()), 0, "{shown}");
}
