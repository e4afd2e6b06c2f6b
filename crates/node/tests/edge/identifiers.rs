//! Identifiers and path arguments that are none.

use serde_json::json;

use crate::support::{fill, served, shared};

/// Whatever may stand between two slashes.
fn segments() -> Vec<String> {
    let mut all: Vec<String> = [
        "x",
        "%2F",
        "%2F..%2F..%2Fetc%2Fpasswd",
        "..",
        ".",
        "%2e%2e",
        "%00",
        "a%00b",
        "%C0%AE%C0%AE",
        "%FF",
        "%ED%A0%80",
        "%E2%80%AE%E2%81%A6",
        "%0D%0Aset-cookie:a",
        "%25",
        "%",
        "%zz",
        "@:edge.example",
        "@a:[::1]:8448",
        "@a:[fe80::1%25eth0]",
        "@a:edge.example:99999",
        "@a:edge.example.",
        "@A.UPPER:EDGE.example",
        "@%C3%A9:edge.example",
        "@a:xn--bcher-kva.example",
        "!a:edge.example",
        "!:",
        "%23a:edge.example",
        "%23:edge.example",
        "$a",
        "$",
        "-1",
        "18446744073709551616",
    ]
    .map(ToOwned::to_owned)
    .to_vec();
    for length in [255, 256, 5_000] {
        all.push("a".repeat(length));
        all.push(format!("@{}:edge.example", "a".repeat(length - 14)));
        all.push(format!("!{}:edge.example", "a".repeat(length - 14)));
    }
    all
}

/// What would end the caller's session.
const ENDING: &[&str] = &["logout", "deactivate", "delete_devices", "account/password", "/sync"];

#[test]
fn no_path_argument_makes_any_route_fail() {
    let server = shared();
    let user = server.user("identifiers");
    let routes = served().into_iter().filter(|(_, path)| {
        let old = path.contains("/r0/") || path.contains("/unstable/");
        path.contains('{') && !old && !ENDING.iter().any(|ending| path.contains(ending))
    });
    let segments = segments();
    for (method, template) in routes {
        let mut connection = server.connect();
        for segment in &segments {
            let path = fill(template, segment);
            let what = format!("{method} {template} with {}", &segment[..segment.len().min(60)]);
            let reply = connection.ask(method, &path, user.token(), b"{}").unwrap_or_else(|| panic!("{what}: closed"));
            // A reserved media id that is not uploaded is a gateway timeout by the specification.
            reply.assert_decent(&what);
            if reply.header("connection") == Some("close") {
                connection = server.connect();
            }
        }
    }
    server.assert_well();
}

#[test]
fn no_query_makes_any_route_fail() {
    let server = shared();
    let user = server.user("queries");
    let values = ["", "x", "-1", "1e9", "18446744073709551616", "%00", "%FF", "%", "null", "{", "{}", "[]", "a%0D%0Ab"];
    let made = server.must("POST", "/_matrix/client/v3/createRoom", user.token(), &json!({}));
    let room = made["room_id"].as_str().unwrap();
    let mut connection = server.connect();
    for (path, names) in [
        ("sync", &["since", "filter", "timeout", "full_state", "set_presence", "use_state_after"][..]),
        ("rooms/ROOM/messages", &["from", "to", "dir", "limit", "filter"]),
        ("rooms/ROOM/members", &["at", "membership", "not_membership"]),
        ("rooms/ROOM/context/$x", &["limit", "filter"]),
        ("keys/changes", &["from", "to"]),
        ("register/available", &["username"]),
        ("room_keys/keys", &["version"]),
        ("rooms/ROOM/state/m.room.name/", &["format"]),
    ] {
        let path = format!("/_matrix/client/v3/{}", path.replace("ROOM", room));
        for name in names {
            for value in values {
                let timeout = if *name == "timeout" && value.starts_with('1') { "0" } else { value };
                let other = if *name == "dir" { "" } else { "&dir=b" };
                let path = format!("{path}?{name}={timeout}{other}");
                connection.ask("GET", &path, user.token(), b"").unwrap().assert_decent(&path);
            }
        }
        let twice = format!("{path}?{0}=a&{0}=b&&&=&=x", names[0]);
        connection.ask("GET", &twice, user.token(), b"").unwrap().assert_decent(&twice);
    }
    server.assert_well();
}

/// <https://spec.matrix.org/v1.19/appendices/#user-identifiers>
#[test]
fn new_user_names_are_of_the_strict_grammar_and_of_bounded_length() {
    let server = shared();
    let mut connection = server.connect();
    let longest = 255 - "@:edge.example".len();
    for (name, free) in [
        ("good.name_=-/+1".to_owned(), true),
        ("a".repeat(longest), true),
        ("a".repeat(longest + 1), false),
        ("Upper".into(), false),
        ("%C3%A9".into(), false),
        ("%D0%B0lice".into(), false),
        ("a%00b".into(), false),
        ("a%20b".into(), false),
        ("a:b".into(), false),
        ("%E2%80%AEevil".into(), false),
        (String::new(), false),
        ("_bridge".into(), false),
        ("@a:other.example".into(), false),
        ("@a:edge.example:8448".into(), false),
    ] {
        let path = format!("/_matrix/client/v3/register/available?username={}", name.replace('+', "%2B"));
        let reply = connection.ask("GET", &path, None, b"").unwrap();
        reply.assert_decent(&path);
        assert_eq!(reply.status == 200, free, "{name}: {}", reply.text());
        if !free {
            assert_eq!(reply.errcode(), "M_INVALID_USERNAME", "{name}");
        }
    }
}

#[test]
fn media_ids_never_become_paths() {
    let server = shared();
    let user = server.user("media_paths");
    let mut connection = server.connect();
    for media_id in
        ["..", "..%2F..%2FCargo.toml", "%2Fetc%2Fpasswd", "a%2Fb", "a%00", ".", "%2e%2e%2f", "CON", "a:b", ""]
    {
        for path in ["client/v1/media/download", "client/v1/media/thumbnail"] {
            let path = format!("/_matrix/{path}/edge.example/{media_id}?width=32&height=32");
            let reply = connection.ask("GET", &path, user.token(), b"").unwrap();
            assert!(matches!(reply.status, 400 | 404), "{path}: {}", reply.status);
            reply.assert_decent(&path);
        }
        let path = format!("/_matrix/media/v3/upload/edge.example/{media_id}");
        let reply = server.ask("PUT", &path, user.token(), b"x");
        assert!(matches!(reply.status, 400 | 403 | 404), "{path}: {}", reply.status);
    }
}
