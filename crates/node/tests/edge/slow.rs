//! Clients that are slow on purpose.

use std::sync::OnceLock;

use crate::support::{Server, head, shared, start};

/// A node that waits for nobody.
fn impatient() -> &'static Server {
    static IMPATIENT: OnceLock<Server> = OnceLock::new();
    IMPATIENT.get_or_init(|| {
        start(|config| {
            config.http.head_timeout_ms = 1_500;
            config.http.body_timeout_ms = 1_500;
            config.http.write_timeout_ms = 1_500;
            config.http.keep_alive_s = 1;
        })
    })
}

#[test]
fn a_head_that_drips_is_cut_off() {
    let mut connection = impatient().connect();
    connection.send("GET /_matrix/client/versions HTTP/1.1\r\nx-drip: ");
    if connection.drip(b'a') {
        assert_eq!(connection.reply().unwrap().status, 408);
    }
    assert!(connection.is_over());
    impatient().assert_well();
}

#[test]
fn a_second_head_that_drips_is_cut_off_too() {
    let mut connection = impatient().connect();
    assert_eq!(connection.ask("GET", "/_matrix/client/versions", None, b"").unwrap().status, 200);
    connection.send("GET /_matrix/client/versions HTTP/1.1\r\nx-drip: ");
    if connection.drip(b'a') {
        assert_eq!(connection.reply().unwrap().status, 408);
    }
    assert!(connection.is_over());
}

#[test]
fn a_body_that_drips_is_refused_in_time() {
    let mut connection = impatient().connect();
    connection.send(head("POST", "/_matrix/client/v3/login", None, "content-length: 100000\r\n"));
    assert!(connection.drip(b' '));
    let reply = connection.reply().unwrap();
    assert_eq!((reply.status, reply.errcode().as_str()), (408, "M_UNKNOWN"));
}

#[test]
fn an_upload_that_drips_is_refused_in_time() {
    let user = impatient().user("dripping_uploader");
    let mut connection = impatient().connect();
    connection.send(head("POST", "/_matrix/media/v3/upload", user.token(), "content-length: 100000\r\n"));
    assert!(connection.drip(b' '));
    let reply = connection.reply().unwrap();
    assert!(matches!(reply.status, 400 | 408));
    reply.assert_decent("upload");
}

#[test]
fn a_connection_that_says_nothing_is_closed() {
    let mut silent = impatient().connect();
    let mut idle = impatient().connect();
    assert_eq!(idle.ask("GET", "/_matrix/client/versions", None, b"").unwrap().status, 200);
    assert!(idle.is_over());
    // One that never said anything may be told so.
    if let Some(reply) = silent.reply() {
        assert_eq!(reply.status, 408);
    }
    assert!(silent.is_over());
}

#[test]
fn readers_that_never_read_hold_nobody_up() {
    let server = shared();
    let mut readers: Vec<_> = (0..50).map(|_| server.connect()).collect();
    let request = head("GET", "/_matrix/client/v3/capabilities", None, "");
    for reader in &mut readers {
        reader.send(request.repeat(16));
    }
    for _ in 0..20 {
        server.assert_well();
    }
}

#[test]
fn an_answer_that_nobody_reads_is_given_up() {
    let server = impatient();
    let user = server.user("never_reader");
    // More than both kernels keep on the way.
    let uploaded = server.ask("POST", "/_matrix/media/v3/upload", user.token(), &vec![7; 24 << 20]);
    let uri = uploaded.json()["content_uri"].as_str().unwrap().to_owned();
    let path = format!("/_matrix/client/v1/media/download/{}", &uri["mxc://".len()..]);
    let mut connection = server.connect();
    connection.send(head("GET", &path, user.token(), ""));
    connection.wait_for_the_end();
    server.assert_well();
}

#[test]
fn chunks_without_end_are_bounded() {
    let server = impatient();
    let mut connection = server.connect();
    connection.send(head("POST", "/_matrix/client/v3/login", None, "transfer-encoding: chunked\r\n"));
    let chunk = format!("10000\r\n{}\r\n", "a".repeat(1 << 16));
    // Beyond the limit of 1 MiB, what is sent may be read and thrown away for a moment, but not for ever.
    while connection.send(&chunk) {
        connection.assert_in_time();
    }
    if let Some(reply) = connection.reply() {
        assert_eq!((reply.status, reply.errcode().as_str()), (413, "M_TOO_LARGE"));
    }
    server.assert_well();
}
