//! Nodes that die, freeze or are cut off. A proxy in this process stands for the network between the two.
#![expect(clippy::unwrap_used, reason = "helpers of tests may fail the test")]

#[expect(dead_code, reason = "shared with the other tests, which use more of it")]
mod common;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use cofactor_rpc::ClientOptions;
use cofactor_types::ErrorClass;
use cofactor_wire::node::{Call, Transport};
use common::{LONG, client, client_with, echo, secret, server, wait};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// How much longer than its timeout a call may take on a machine that is busy with other things.
const SLACK: Duration = Duration::from_secs(2);

/// What the network does with bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Weather {
    Fair,
    /// Connections stay open, and nothing moves: what a stopped process looks like.
    Frozen,
}

struct Proxy {
    address: String,
    weather: watch::Sender<Weather>,
    task: JoinHandle<()>,
}

impl Proxy {
    async fn before(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (weather, seen) = watch::channel(Weather::Fair);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (from, _) = listener.accept().await.unwrap();
                connections.spawn(carry(from, TcpStream::connect(server.clone()).await.unwrap(), seen.clone()));
            }
        });
        Self { address, weather, task }
    }

    /// Ends all connections and the listener.
    async fn die(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }
}

async fn carry(mut from: TcpStream, mut to: TcpStream, mut weather: watch::Receiver<Weather>) {
    loop {
        // An end of this function drops both connections.
        if weather.wait_for(|weather| *weather == Weather::Fair).await.is_err() {
            return;
        }
        tokio::select! {
            _ = copy_bidirectional(&mut from, &mut to) => return,
            _ = weather.changed() => {}
        }
    }
}

#[tokio::test]
async fn a_server_that_dies_during_a_call_leaves_it_unknown() {
    let (scripted, _running, address) = server().await;
    let proxy = Proxy::before(address).await;
    let (client, address) = (client(), proxy.address.clone());
    let call = tokio::spawn(async move { client.call(&address, wait(LONG)).await });
    scripted.arrived.acquire().await.unwrap().forget();
    let before = Instant::now();
    proxy.die().await;
    let fault = call.await.unwrap().unwrap_err();
    assert_eq!(fault.class, ErrorClass::Unknown, "{fault}");
    assert!(before.elapsed() < SLACK, "told at once, not at the timeout");
}

#[tokio::test]
async fn a_server_that_freezes_during_a_call_costs_no_more_than_the_timeout() {
    let (scripted, _running, address) = server().await;
    let proxy = Proxy::before(address).await;
    let (client, address) = (Arc::new(client()), proxy.address.clone());
    client.call(&address, echo("x")).await.unwrap();
    proxy.weather.send(Weather::Frozen).unwrap();
    let timeout = Duration::from_millis(300);
    let before = Instant::now();
    let fault = client.call(&address, wait(timeout)).await.unwrap_err();
    assert_eq!(fault.class, ErrorClass::Unknown, "{fault}");
    assert!(before.elapsed() < timeout + SLACK, "{:?}", before.elapsed());
    assert_eq!(scripted.arrived.available_permits(), 0);
    // And the connection is as good as before when it thaws.
    proxy.weather.send(Weather::Fair).unwrap();
    assert_eq!(client.call(&address, echo("y")).await.unwrap(), "y");
}

#[tokio::test]
async fn a_server_that_was_frozen_survives_the_calls_given_up_meanwhile() {
    let (scripted, _running, address) = server().await;
    let proxy = Proxy::before(address).await;
    let (client, address) = (Arc::new(client()), proxy.address.clone());
    let long = tokio::spawn({
        let (client, address) = (Arc::clone(&client), address.clone());
        async move { client.call(&address, wait(LONG)).await }
    });
    scripted.arrived.acquire().await.unwrap().forget();
    proxy.weather.send(Weather::Frozen).unwrap();
    let calls = (0..500).map(|_| client.call(&address, wait(Duration::from_millis(500))));
    let outcomes = futures::future::join_all(calls).await;
    let unknown = outcomes.iter().filter(|outcome| outcome.as_ref().unwrap_err().class == ErrorClass::Unknown).count();
    // A busy machine may not get around to sending all of them.
    assert!(unknown > 100, "only {unknown} were sent before they were given up");
    proxy.weather.send(Weather::Fair).unwrap();
    assert_eq!(client.call(&address, echo("y")).await.unwrap(), "y");
    scripted.release.add_permits(501);
    assert_eq!(long.await.unwrap().unwrap(), "done", "the connection was not closed as if under attack");
}

#[tokio::test]
async fn late_answers_to_many_calls_given_up_do_not_end_the_connection() {
    const CALLS: u32 = 2_000;
    let (scripted, _running, address) = server().await;
    let proxy = Proxy::before(address).await;
    let (client, address) = (Arc::new(client()), proxy.address.clone());
    let call = || {
        let (client, address) = (Arc::clone(&client), address.clone());
        tokio::spawn(async move { client.call(&address, wait(LONG)).await })
    };
    let mut given_up: Vec<_> = (0..CALLS).map(|_| call()).collect();
    scripted.arrived.acquire_many(CALLS).await.unwrap().forget();
    let kept = given_up.swap_remove(0);
    proxy.weather.send(Weather::Frozen).unwrap();
    scripted.release.add_permits(CALLS as usize);
    for call in &given_up {
        call.abort();
    }
    futures::future::join_all(given_up).await;
    proxy.weather.send(Weather::Fair).unwrap();
    assert_eq!(kept.await.unwrap().unwrap(), "done");
    assert_eq!(client.call(&address, echo("y")).await.unwrap(), "y");
}

#[tokio::test]
async fn a_dead_connection_is_noticed_by_pings_before_the_timeout() {
    let (scripted, _running, address) = server().await;
    let proxy = Proxy::before(address).await;
    let ping = Duration::from_millis(100);
    let options = ClientOptions { ping_interval: ping, ping_timeout: ping, ..ClientOptions::new(secret()) };
    let (client, address) = (client_with(options), proxy.address.clone());
    let call = tokio::spawn(async move { client.call(&address, wait(LONG)).await });
    scripted.arrived.acquire().await.unwrap().forget();
    let before = Instant::now();
    proxy.weather.send(Weather::Frozen).unwrap();
    let fault = call.await.unwrap().unwrap_err();
    assert_eq!(fault.class, ErrorClass::Unknown, "the call may well be under way: {fault}");
    assert!(before.elapsed() < SLACK, "{:?}", before.elapsed());
}

#[tokio::test]
async fn a_process_that_was_stopped_before_it_accepted_costs_no_more_than_the_timeout() {
    // The kernel completes connections on behalf of a process that never looks at them.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let timeout = Duration::from_millis(300);
    let before = Instant::now();
    let fault = client().call(&address, wait(timeout)).await.unwrap_err();
    assert!(matches!(fault.class, ErrorClass::Unknown | ErrorClass::Unavailable), "{fault}");
    assert!(before.elapsed() < timeout + SLACK, "{:?}", before.elapsed());
}

#[tokio::test]
async fn what_answers_but_is_no_node_is_no_success() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let stranger = tokio::spawn(async move {
        let (mut connection, _) = listener.accept().await.unwrap();
        connection.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        let mut rest = Vec::new();
        drop(connection.read_to_end(&mut rest).await);
    });
    let fault = client().call(&address, wait(Duration::from_secs(5))).await.unwrap_err();
    assert!(matches!(fault.class, ErrorClass::Unknown | ErrorClass::Unavailable), "{fault}");
    stranger.await.unwrap();
}

#[tokio::test]
async fn a_call_that_was_reported_unavailable_is_never_begun() {
    // Calls that time out while the connection is being made race with their being sent: whoever wins, the report and
    // the server must agree.
    let (scripted, running, address) = server().await;
    let mut promised = Vec::new();
    for number in 0..300_u32 {
        let timeout = Duration::from_micros(u64::from(number) * 10);
        let frame = Bytes::from(number.to_string());
        match client().call(&address, Call { timeout, ..echo(frame.clone()) }).await {
            Err(fault) if fault.class == ErrorClass::Unavailable => promised.push(frame),
            Ok(_) => {}
            Err(fault) => assert_eq!(fault.class, ErrorClass::Unknown, "{fault}"),
        }
    }
    // Whatever is still on its way arrives or is cut.
    running.stop(LONG).await;
    let begun = scripted.frames.lock().unwrap();
    for frame in &promised {
        assert!(!begun.contains(frame), "call {frame:?} was begun though it was promised not to be");
    }
    assert!(!promised.is_empty() && !begun.is_empty(), "one of the two never happened: the race was not run");
}

#[tokio::test]
async fn a_call_goes_on_though_the_thread_that_opened_the_connection_ends() {
    let (scripted, _running, address) = server().await;
    let client = Arc::new(client());
    let (first, to) = (Arc::clone(&client), address.clone());
    let (opened, is_open) = tokio::sync::oneshot::channel();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            first.call(&to, echo("first")).await.unwrap();
            opened.send(()).unwrap();
            ended.await.unwrap();
        });
    });
    is_open.await.unwrap();
    let waiting = tokio::spawn(async move { client.call(&address, wait(LONG)).await });
    scripted.arrived.acquire().await.unwrap().forget();
    end.send(()).unwrap();
    tokio::task::spawn_blocking(|| thread.join().unwrap()).await.unwrap();
    scripted.release.add_permits(1);
    assert_eq!(waiting.await.unwrap().unwrap(), "done");
}
