//! Many requests on one connection: each gets its own answer, and nobody somebody else's.

use crate::support::{head, shared, start};

#[test]
fn a_hundred_pipelined_requests_of_two_users_are_answered_in_order_each_to_its_own() {
    let server = shared();
    let users = [server.user("pipeline_a"), server.user("pipeline_b")];
    let order = |index: usize| &users[usize::from(index.is_multiple_of(3))];
    let path = "/_matrix/client/v3/account/whoami";
    let requests: String = (0..100).map(|index| head("GET", path, order(index).token(), "")).collect();
    let mut connection = server.connect();
    connection.send(requests);
    for index in 0..100 {
        let reply = connection.reply().unwrap();
        assert_eq!(reply.json()["user_id"], order(index).id.as_str(), "answer {index}: {}", reply.text());
    }
}

#[test]
fn a_slow_request_does_not_let_a_later_one_overtake_it() {
    let server = shared();
    let user = server.user("pipeline_c");
    let synced = server.must("GET", "/_matrix/client/v3/sync", user.token(), &serde_json::Value::Null);
    let since = synced["next_batch"].as_str().unwrap();
    let poll = format!("/_matrix/client/v3/sync?timeout=300&since={since}");
    let mut connection = server.connect();
    connection.send(head("GET", &poll, user.token(), "") + &head("GET", "/_matrix/client/versions", None, ""));
    assert!(connection.reply().unwrap().json()["next_batch"].is_string());
    assert!(connection.reply().unwrap().json()["versions"].is_array());
}

#[test]
fn a_refused_body_does_not_become_the_next_request() {
    let server = shared();
    let user = server.user("pipeline_d");
    let hidden = head("GET", "/_matrix/client/v3/account/whoami", user.token(), "");
    // The route is refused before its body is read; what follows is a body nevertheless.
    for (method, path) in [("POST", "/_matrix/client/v3/nothing"), ("PATCH", "/_matrix/client/v3/login")] {
        let mut connection = server.connect();
        connection.send(head(method, path, None, &format!("content-length: {}\r\n", hidden.len())) + &hidden);
        connection.finish();
        assert!(matches!(connection.reply().unwrap().status, 404 | 405));
        assert!(connection.reply().is_none());
    }
}

#[test]
fn whoever_asks_on_an_open_connection_of_a_server_that_ends_is_answered_and_sent_away() {
    let mut server = start(|_| ());
    let user = server.user("pipeline_e");
    let synced = server.must("GET", "/_matrix/client/v3/sync", user.token(), &serde_json::Value::Null);
    let since = synced["next_batch"].as_str().unwrap();
    let poll = format!("/_matrix/client/v3/sync?timeout=30000&since={since}");
    let (mut held, mut idle) = (server.connect(), server.connect());
    let mut ask_idle = || idle.ask("GET", "/_matrix/client/versions", None, b"");
    assert_eq!(ask_idle().unwrap().header("connection"), None);
    held.send(head("GET", &poll, user.token(), ""));
    server.begin_to_stop();
    let answer = held.reply().unwrap();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    // The first one knows that the server ends; the other did not hear of it yet.
    let answer = ask_idle().unwrap();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert!(ask_idle().is_none());
}
