//! One trace follows a message from the request that sends it to the request that waited for it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::mpsc,
    time::Duration,
};

use cofactor_node::{Config, Node};
use cofactor_telemetry::Ended;
use serde_json::{Value, json};
use tokio::sync::oneshot;

/// How long a test waits for what should come at once.
const PATIENCE: Duration = Duration::from_secs(60);

/// The span of a request that sends a message.
const SEND: &str = "PUT /_matrix/client/v3/rooms/{room_id}/send/{event_type}/{txn_id}";

fn ask(address: SocketAddr, method: &str, path: &str, token: &str, body: &Value) -> Value {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {token}\r\n");
    write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    // The bodies of these answers come whole.
    serde_json::from_str(body).unwrap()
}

fn register(address: SocketAddr) -> String {
    let path = "/_matrix/client/v3/register";
    let mut body = json!({ "username": "alice", "password": "correct horse battery" });
    let begun = ask(address, "POST", path, "", &body);
    body["auth"] = json!({ "type": "m.login.dummy", "session": begun["session"] });
    ask(address, "POST", path, "", &body)["access_token"].as_str().unwrap().to_owned()
}

fn serve(config: Config) -> (SocketAddr, impl FnOnce()) {
    let (stop, stopped) = oneshot::channel::<()>();
    let (ready, is_ready) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        actix_rt::System::new().block_on(async move {
            let node = Node::start(&config).await.unwrap();
            ready.send(node.addresses()[0]).unwrap();
            let _ = stopped.await;
            node.stop().await;
        });
    });
    let address = is_ready.recv_timeout(PATIENCE).unwrap();
    let end = move || {
        let _ = stop.send(());
        thread.join().unwrap();
    };
    (address, end)
}

#[test]
fn a_message_and_the_sync_that_waited_for_it_are_in_one_trace() {
    let data_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("traces");
    let _ = std::fs::remove_dir_all(&data_dir);
    let options = cofactor_telemetry::Options { log: "warn".into(), ..Default::default() };
    let (_guard, collected) = cofactor_telemetry::init_collecting(&options).unwrap();
    let mut config = Config { server_name: "traces.example".into(), data_dir, ..Config::default() };
    config.http.listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
    config.registration.open = true;
    let (address, end) = serve(config);
    let token = register(address);
    let room = ask(address, "POST", "/_matrix/client/v3/createRoom", &token, &json!({}));
    let room_id = room["room_id"].as_str().unwrap().replace('!', "%21").replace(':', "%3A");
    let sync = move |since: &str, token: &str| {
        let path = format!("/_matrix/client/v3/sync?{since}");
        ask(address, "GET", &path, token, &Value::Null)
    };
    let mut batch = sync("timeout=0", &token)["next_batch"].as_str().unwrap().to_owned();
    // A message may be there before the sync waits for it; then the next one is waited for.
    for number in 0.. {
        let since = format!("timeout=30000&since={batch}");
        let waiting = std::thread::spawn({
            let token = token.clone();
            move || sync(&since, &token)
        });
        let path = format!("/_matrix/client/v3/rooms/{room_id}/send/m.room.message/{number}");
        let sent = ask(address, "PUT", &path, &token, &json!({ "msgtype": "m.text", "body": "a secret of mine" }));
        assert!(sent["event_id"].is_string(), "{sent}");
        let answer = waiting.join().unwrap();
        let since = format!("timeout=0&since={}", answer["next_batch"].as_str().unwrap());
        batch = sync(&since, &token)["next_batch"].as_str().unwrap().to_owned();
        let ended = collected.ended();
        let sent_in = |trace: &str| ended.iter().any(|span| span.name == SEND && span.trace_id == trace);
        if ended.iter().any(|span| span.name == "wake" && sent_in(&span.trace_id)) {
            break;
        }
        assert!(number < 200, "no sync was ever woken by a message: {ended:#?}");
    }
    end();
    let ended = collected.ended();
    let named = |name: &str| ended.iter().filter(move |span| span.name == name).collect::<Vec<&Ended>>();

    let requests = named(SEND);
    let traces: Vec<&str> = requests.iter().map(|span| span.trace_id.as_str()).collect();
    let woken = named("wake").into_iter().find(|span| traces.contains(&span.trace_id.as_str()));
    let woken = woken.expect("the sync was woken in the trace of a message");
    for name in ["command", "commit", "store", "publish"] {
        assert!(named(name).iter().any(|span| span.trace_id == woken.trace_id), "no {name} in the trace");
    }
    let syncs = named("GET /_matrix/client/v3/sync");
    let asked =
        syncs.iter().find(|span| span.links.contains(&woken.trace_id)).expect("the waiting request is tied to it");
    assert!(woken.links.contains(&asked.trace_id), "and it to the request");
    let all = format!("{ended:?}");
    assert!(!all.contains("a secret of mine") && !all.contains(&token) && !all.contains("alice"), "{all}");
}
