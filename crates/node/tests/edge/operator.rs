//! What an operator sees, and strangers do not.

use std::net::SocketAddr;

use crate::support::{shared, start};

#[test]
fn strangers_do_not_see_metrics_or_the_operators_page() {
    for path in ["/metrics", "/status.json", "/"] {
        let reply = shared().ask("GET", path, None, b"");
        assert_eq!((reply.status, reply.errcode().as_str()), (404, "M_UNRECOGNIZED"), "{path}");
    }
    assert_eq!(shared().ask("GET", "/health/ready", None, b"").status, 200);
}

#[test]
fn the_operators_page_shows_the_node_and_that_all_is_well() {
    let server = start(|config| config.admin.listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))]);
    let page = server.ask_admin("GET", "/");
    assert_eq!(page.status, 200, "{}", page.text());
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(page.header("access-control-allow-origin"), None, "other web pages must not read it");
    let status = server.ask_admin("GET", "/status.json").json();
    assert_eq!(status["server_name"], "edge.example");
    assert_eq!((&status["shards"], &status["shards_owned"]), (&1024.into(), &1024.into()), "{status}");
    assert_eq!(status["nodes"].as_array().unwrap().len(), 1, "{status}");
    assert_eq!(status["nodes"][0]["status"]["shards_owned"], 1024);
    assert_eq!(server.ask_admin("GET", "/metrics").status, 200);
    assert_eq!(server.ask_admin("GET", "/_matrix/client/versions").status, 404);
}
