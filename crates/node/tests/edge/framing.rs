//! Requests whose form is wrong, or right in more than one way.

use crate::support::{head, served, shared};

const WHOAMI: &str = "/_matrix/client/v3/account/whoami";
const LOGIN: &str = "/_matrix/client/v3/login";

#[test]
fn heads_without_measure_are_refused() {
    let server = shared();
    let many: String = (0..1_000).map(|number| format!("x-{number}: a\r\n")).collect();
    let long = format!("x-long: {}\r\n", "a".repeat(64 << 10));
    let too_long_url = format!("/_matrix/client/versions?a={}", "a".repeat(100 << 10));
    let too_long_path = format!("/_matrix/client/v3/profile/@{}:edge.example", "a".repeat(100 << 10));
    for head in [
        head("GET", "/_matrix/client/versions", None, &many),
        head("GET", "/_matrix/client/versions", None, &long),
        head("GET", &too_long_url, None, ""),
        head("GET", &too_long_path, None, ""),
        head(&"G".repeat(100 << 10), "/", None, ""),
        // Without an end.
        "GET / HTTP/1.1\r\nx-endless: ".to_owned() + &"a".repeat(1 << 20),
    ] {
        let mut connection = server.connect();
        connection.send(&head);
        if let Some(reply) = connection.reply() {
            assert!(matches!(reply.status, 400 | 404 | 405 | 414 | 431), "{}: {}", &head[..60], reply.status);
        }
    }
    server.assert_well();
}

#[test]
fn a_length_that_lies_does_nothing() {
    let server = shared();
    let user = server.user("lying_length");
    let path = format!("/_matrix/client/v3/user/{}/account_data/org.example.lie", user.id);
    // Too long: the rest never comes.
    let mut connection = server.connect();
    connection.send(head("PUT", &path, user.token(), "content-length: 100\r\n") + "{}");
    connection.finish();
    if let Some(reply) = connection.reply() {
        assert_eq!(reply.status, 400, "{}", reply.text());
    }
    assert_eq!(server.ask("GET", &path, user.token(), b"").status, 404);
    // Too short: what follows is no request.
    let mut connection = server.connect();
    connection.send(head("PUT", &path, user.token(), "content-length: 2\r\n") + "{} and much more than that\r\n\r\n");
    assert_eq!(connection.reply().unwrap().status, 200);
    assert!(connection.reply().is_none_or(|reply| reply.status == 400));
    assert!(connection.is_over());
    // None that a number holds.
    for length in ["-1", "18446744073709551616", "1e3", "0x10", "+5", "5 5", ""] {
        let mut connection = server.connect();
        connection.send(head("PUT", &path, user.token(), &format!("content-length: {length}\r\n")) + "{\"a\":1}");
        connection.finish();
        assert!(connection.reply().is_none_or(|reply| reply.status == 400), "{length:?}");
    }
}

#[test]
fn a_body_larger_than_allowed_is_refused_before_it_is_read() {
    let server = shared();
    let mut connection = server.connect();
    connection.send(head("POST", LOGIN, None, "content-length: 1000000000000\r\n"));
    let reply = connection.reply().unwrap();
    assert_eq!((reply.status, reply.errcode().as_str()), (413, "M_TOO_LARGE"));
}

#[test]
fn chunks_that_lie_are_refused() {
    let server = shared();
    for chunks in ["fffffffffffffffff\r\na", "-1\r\na\r\n0\r\n\r\n", "1\r\nabc\r\n0\r\n\r\n", "zz\r\n", "1;\0\r\na\r\n"]
    {
        let mut connection = server.connect();
        connection.send(head("POST", LOGIN, None, "transfer-encoding: chunked\r\n") + chunks);
        connection.finish();
        assert!(connection.reply().is_none_or(|reply| reply.status == 400), "{chunks:?}");
    }
    server.assert_well();
}

#[test]
fn requests_with_two_readings_are_refused_and_hide_no_second_request() {
    let server = shared();
    let user = server.user("smuggler");
    let hidden = head("GET", WHOAMI, user.token(), "");
    let length = hidden.len();
    let chunked = format!("0\r\n\r\n{hidden}");
    let start = format!("POST {LOGIN} HTTP/1.1\r\nhost: edge.example\r\n");
    let cases = [
        ("both", format!("content-length: {}\r\ntransfer-encoding: chunked\r\n\r\n{chunked}", chunked.len())),
        ("both, turned", format!("transfer-encoding: chunked\r\ncontent-length: {}\r\n\r\n{chunked}", chunked.len())),
        ("two lengths", format!("content-length: 0\r\ncontent-length: {length}\r\n\r\n{hidden}")),
        ("one length twice", format!("content-length: {length}\r\ncontent-length: {length}\r\n\r\n{hidden}")),
        ("a list of lengths", format!("content-length: {length}, {length}\r\n\r\n{hidden}")),
        ("two encodings", format!("transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n{chunked}")),
        ("an odd encoding", format!("transfer-encoding: xchunked\r\n\r\n{chunked}")),
        ("a list of encodings", format!("transfer-encoding: identity, chunked\r\n\r\n{chunked}")),
        ("a folded line", format!("content-length: 0\r\n 1\r\ncontent-length : {length}\r\n\r\n{hidden}")),
        ("a blank before the colon", format!("content-length : {length}\r\n\r\n{hidden}")),
        ("a NUL in a value", format!("x: a\0b\r\ncontent-length: {length}\r\n\r\n{hidden}")),
        ("a return in a value", format!("x: a\rcontent-length: 0\r\ncontent-length: {length}\r\n\r\n{hidden}")),
        ("two hosts", format!("host: other.example\r\ncontent-length: {length}\r\n\r\n{hidden}")),
    ];
    for (name, rest) in cases {
        let mut connection = server.connect();
        connection.send(start.clone() + &rest);
        connection.finish();
        let mut refused = true;
        while let Some(reply) = connection.reply() {
            assert_ne!(reply.status, 200, "{name}: the hidden request was answered");
            refused &= matches!(reply.status, 400 | 501);
        }
        assert!(refused, "{name}: was taken in one of its readings");
    }
    server.assert_well();
}

#[test]
fn bare_line_feeds_give_no_second_reading() {
    let server = shared();
    let user = server.user("line_feeder");
    let hidden = head("GET", WHOAMI, user.token(), "");
    let mut connection = server.connect();
    let request = format!("POST {LOGIN} HTTP/1.1\nhost: a\ncontent-length: {}\n\n{hidden}", hidden.len());
    connection.send(request);
    connection.finish();
    // Either the whole is refused, or line feeds end lines here as they do for everybody: the body stays a body.
    assert!(connection.reply().is_none_or(|reply| reply.status == 400));
    assert!(connection.reply().is_none());
}

#[test]
fn http_1_0_is_served_and_closed() {
    let mut connection = shared().connect();
    connection.send("GET /_matrix/client/versions HTTP/1.0\r\n\r\n");
    assert_eq!(connection.reply().unwrap().status, 200);
    assert!(connection.is_over());
}

#[test]
fn an_expectation_is_met_or_refused() {
    let server = shared();
    let mut connection = server.connect();
    connection.send(head("POST", LOGIN, None, "content-length: 2\r\nexpect: 100-continue\r\n"));
    assert_eq!(connection.reply().unwrap().status, 100);
    connection.send("{}");
    connection.reply().unwrap().assert_decent("login after 100");
}

#[test]
fn compressed_bodies_are_refused() {
    let server = shared();
    for encoding in ["gzip", "br", "deflate", "zstd", "gzip, gzip", "nonsense"] {
        let mut connection = server.connect();
        connection.send(
            head("POST", LOGIN, None, &format!("content-length: 2\r\ncontent-encoding: {encoding}\r\n"))
                + "\u{1f}\u{b}",
        );
        let reply = connection.reply().unwrap();
        assert_eq!(reply.status, 415, "{encoding}");
        reply.assert_decent(encoding);
    }
}

#[test]
fn unknown_paths_and_wrong_methods_are_told_apart_under_every_prefix() {
    let server = shared();
    let mut connection = server.connect();
    for prefix in ["client", "client/v3", "client/v99", "media", "media/v3", "federation/v1", "key/v2", "unknown"] {
        for path in [format!("/_matrix/{prefix}/nothing"), format!("/_matrix/{prefix}/"), format!("/_matrix/{prefix}")]
        {
            let reply = connection.ask("GET", &path, None, b"").unwrap();
            assert_eq!((reply.status, reply.errcode().as_str()), (404, "M_UNRECOGNIZED"), "{path}");
        }
    }
    for (method, path) in [
        ("PATCH", "/_matrix/client/v3/login"),
        ("DELETE", "/_matrix/client/v3/sync"),
        ("GET", "/_matrix/client/v3/createRoom"),
        ("GET", "/_matrix/media/v3/upload"),
        ("TRACE", "/_matrix/client/versions"),
        ("BREW", "/_matrix/client/versions"),
    ] {
        let reply = connection.ask(method, path, None, b"").unwrap();
        assert_eq!((reply.status, reply.errcode().as_str()), (405, "M_UNRECOGNIZED"), "{method} {path}");
    }
}

#[test]
fn browsers_may_ask_every_route() {
    let mut connection = shared().connect();
    for (method, template) in served() {
        let path = template.replace(['{', '}'], "");
        let reply = connection.ask("OPTIONS", &path, None, b"").unwrap();
        assert!(matches!(reply.status, 200 | 204), "{path}");
        assert!(reply.body.is_empty());
        assert_eq!(reply.header("access-control-allow-origin"), Some("*"), "{path}");
        assert!(reply.header("access-control-allow-methods").unwrap().contains(method), "{path}");
        assert!(reply.header("access-control-allow-headers").unwrap().contains("Authorization"), "{path}");
        assert_eq!(reply.header("access-control-allow-credentials"), None);
    }
    let refused = connection.ask("GET", WHOAMI, None, b"").unwrap();
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (401, Some("*")));
}
