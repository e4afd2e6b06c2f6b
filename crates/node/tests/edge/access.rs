//! Who may ask what without a token.

use crate::support::{fill, head, served, shared};

/// What the specification serves without authentication, under all of its old names; everything else wants a token.
/// Downloads without a token and logins by other means are not served at all.
const OPEN: &[&str] = &[
    "GET /.well-known/matrix/client",
    "GET /.well-known/matrix/policy_server",
    "GET /.well-known/matrix/support",
    "GET /_matrix/client/v1/auth_metadata",
    "GET /_matrix/client/v1/register/m.login.registration_token/validity",
    "GET /_matrix/client/v3/directory/list/room/{room_id}",
    "GET /_matrix/client/v3/directory/room/{room_alias}",
    "GET /_matrix/client/v3/login",
    "GET /_matrix/client/v3/login/sso/redirect",
    "GET /_matrix/client/v3/login/sso/redirect/{idp_id}",
    "GET /_matrix/client/v3/profile/{user_id}",
    "GET /_matrix/client/v3/profile/{user_id}/{field}",
    "GET /_matrix/client/v3/publicRooms",
    "GET /_matrix/client/v3/register/available",
    "POST /_matrix/client/v3/account/3pid/email/requestToken",
    "POST /_matrix/client/v3/account/3pid/msisdn/requestToken",
    "POST /_matrix/client/v3/account/password/email/requestToken",
    "POST /_matrix/client/v3/account/password/msisdn/requestToken",
    "POST /_matrix/client/v3/login",
    "POST /_matrix/client/v3/refresh",
    "POST /_matrix/client/v3/register",
    "POST /_matrix/client/v3/register/email/requestToken",
    "POST /_matrix/client/v3/register/msisdn/requestToken",
    // Optional there: features of a user, and rooms that only a member may know of, can be told.
    "GET /_matrix/client/versions",
    "GET /_matrix/client/v1/room_summary/{room_id_or_alias}",
];

/// What stands outside of the specification's prefixes: for the operator's own tools.
const OPERATOR: &[&str] = &["GET /health/live", "GET /health/ready", "GET /metrics"];

/// What the routes take that look at their body first, since a token is not their only way in.
const BODY: &[u8] = br#"{"new_password":"x"}"#;

/// The newest name of a path: what was unstable or of an earlier release is judged as what it became.
fn stable(path: &str) -> String {
    let path = path.replace("/client/r0/", "/client/v3/").replace("/client/unstable/", "/client/v3/");
    let path = path.replace("org.matrix.msc2918/", "").replace("uk.tcpip.msc4133/", "");
    let validity = "/client/v3/org.matrix.msc3231/register/org.matrix.msc3231.login.registration_token/";
    let path = path.replace(validity, "/client/v1/register/m.login.registration_token/");
    match path.strip_prefix("/_matrix/client/v3/im.nheko.summary/rooms/").and_then(|rest| rest.strip_suffix("/summary"))
    {
        Some(room) => format!("/_matrix/client/v1/room_summary/{room}"),
        None => path,
    }
}

fn is_open(method: &str, path: &str) -> bool {
    let line = format!("{method} {}", stable(path));
    OPEN.contains(&line.as_str()) || OPERATOR.contains(&line.as_str())
}

#[test]
fn every_other_route_wants_a_token_that_is_known() {
    let server = shared();
    let mut connection = server.connect();
    let mut closed = 0;
    for (method, template) in served().into_iter().filter(|(method, path)| !is_open(method, path)) {
        let path = fill(template, "x");
        let reply = connection.ask(method, &path, None, BODY).unwrap();
        assert_eq!((reply.status, reply.errcode().as_str()), (401, "M_MISSING_TOKEN"), "{method} {template}");
        let reply = connection.ask(method, &path, Some("cfa_unknown"), BODY).unwrap();
        assert_eq!((reply.status, reply.errcode().as_str()), (401, "M_UNKNOWN_TOKEN"), "{method} {template}");
        closed += 1;
    }
    assert!(closed > 100, "{closed}");
}

#[test]
fn open_routes_are_served_without_a_token() {
    let mut connection = shared().connect();
    for (method, template) in served().into_iter().filter(|(method, path)| is_open(method, path)) {
        let reply = connection.ask(method, &fill(template, "x"), None, b"{}").unwrap();
        assert_ne!(reply.errcode(), "M_MISSING_TOKEN", "{method} {template}");
        assert!(reply.status < 500 || template == "/health/ready", "{method} {template}: {}", reply.text());
    }
}

/// <https://spec.matrix.org/v1.19/client-server-api/#using-access-tokens>
#[test]
fn a_token_comes_in_the_header_or_the_query_and_the_header_counts() {
    let server = shared();
    let [header, query] = ["token_header", "token_query"].map(|name| server.user(name));
    let whoami = |path: &str, token: Option<&str>| server.ask("GET", path, token, b"");
    let path = "/_matrix/client/v3/account/whoami";
    let with_query = format!("{path}?access_token={}", query.token);
    assert_eq!(whoami(path, header.token()).json()["user_id"], header.id.as_str());
    assert_eq!(whoami(&with_query, None).json()["user_id"], query.id.as_str());
    assert_eq!(whoami(&with_query, header.token()).json()["user_id"], header.id.as_str());
    // A bad token is not healed by a good one elsewhere.
    assert_eq!(whoami(&with_query, Some("nonsense")).errcode(), "M_UNKNOWN_TOKEN");
    for line in ["Bearer", "Bearer ", "Basic YTpi", "", "Bearer\u{e9}"] {
        let mut connection = server.connect();
        connection.send(head("GET", path, None, &format!("authorization: {line}\r\n")));
        assert_eq!(connection.reply().unwrap().status, 401, "{line:?}");
    }
    // A refresh token opens nothing.
    assert_eq!(whoami(path, Some(&header.refresh)).errcode(), "M_UNKNOWN_TOKEN");
    let long = "a".repeat(8_000);
    assert_eq!(whoami(path, Some(&long)).errcode(), "M_UNKNOWN_TOKEN");
}

#[test]
fn nobody_changes_or_reads_what_is_somebody_elses_by_naming_it() {
    let server = shared();
    let [victim, thief] = ["victim", "thief"].map(|name| server.user(name));
    let own = format!("/_matrix/client/v3/user/{}/account_data/org.example.own", victim.id);
    server.must("PUT", &own, victim.token(), &serde_json::json!({ "canary": 1 }));
    for (method, path) in [
        ("GET", own.clone()),
        ("PUT", own.clone()),
        ("POST", format!("/_matrix/client/v3/user/{}/filter", victim.id)),
        ("GET", format!("/_matrix/client/v3/user/{}/filter/0", victim.id)),
        ("PUT", format!("/_matrix/client/v3/profile/{}/displayname", victim.id)),
        ("DELETE", format!("/_matrix/client/v3/profile/{}/displayname", victim.id)),
        ("GET", format!("/_matrix/client/v3/user/{}/rooms/!a:edge.example/tags", victim.id)),
        ("PUT", format!("/_matrix/client/v3/user/{}/rooms/!a:edge.example/tags/u.x", victim.id)),
        ("DELETE", format!("/_matrix/client/v3/user/{}/rooms/!a:edge.example/tags/u.x", victim.id)),
        ("PUT", format!("/_matrix/client/v3/user/{}/rooms/!a:edge.example/account_data/x", victim.id)),
        ("PUT", format!("/_matrix/client/v3/rooms/!a:edge.example/typing/{}", victim.id)),
    ] {
        let body = br#"{"displayname":"x","typing":true,"timeout":1000}"#;
        let reply = server.ask(method, &path, thief.token(), body);
        assert!(matches!(reply.status, 403 | 404), "{method} {path}: {} {}", reply.status, reply.text());
        assert!(!reply.text().contains("canary"));
    }
    assert_eq!(server.ask("GET", &own, victim.token(), b"").json()["canary"], 1);
}
