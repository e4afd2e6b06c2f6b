//! What `wire::node::Transport` and `Serve` promise, held over real sockets.

mod common;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use cofactor_rpc::{BindError, ClientOptions, RpcServer, RpcTransport, Security, SecurityError, ServerOptions};
use cofactor_types::{ErrorClass, SystemClock};
use cofactor_wire::node::{Call, Target, Transport};
use common::{CLASSES, LONG, Scripted, client, client_with, echo, fault, nobody, secret, server, server_with, wait};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

#[tokio::test]
async fn small_empty_and_large_frames_come_back_whole() {
    let (_scripted, running, address) = server().await;
    let client = client();
    for size in [0, 1, 70_000, 20 * 1024 * 1024] {
        let frame: Bytes = (0..size).map(|index: u32| index.to_le_bytes()[0]).collect::<Vec<_>>().into();
        assert!(client.call(&address, echo(frame.clone())).await.unwrap() == frame, "{size} bytes");
    }
    running.stop(LONG).await;
}

#[tokio::test]
async fn a_frame_beyond_the_limit_is_refused_before_it_is_sent() {
    let (scripted, _running, address) = server().await;
    let client = client_with(ClientOptions { frame_bytes_max: 1_000, ..ClientOptions::new(secret()) });
    let fault = client.call(&address, echo(vec![0; 1_001])).await.unwrap_err();
    assert_eq!((fault.class, &*fault.errcode), (ErrorClass::Invalid, "M_TOO_LARGE"));
    assert_eq!(scripted.begun.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_answer_beyond_the_limit_is_unknown_since_the_work_is_done() {
    let options = ServerOptions { frame_bytes_max: 1_000, ..ServerOptions::new("127.0.0.1:0", secret()) };
    let (scripted, _running, address) = server_with(options).await;
    // The envelope's allowance lets the request in, though the same frame may not go back.
    let fault = client().call(&address, echo(vec![0; 1_001])).await.unwrap_err();
    assert_eq!(fault.class, ErrorClass::Unknown, "{fault}");
    assert_eq!(scripted.begun.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_fault_of_every_class_arrives_as_it_was() {
    let (_scripted, _running, address) = server().await;
    let client = client();
    for index in 0..CLASSES.len() {
        let call = Call { target: Target::Shards, ..echo(vec![u8::try_from(index).unwrap()]) };
        assert_eq!(client.call(&address, call).await.unwrap_err(), fault(index));
    }
}

#[tokio::test]
async fn the_trace_of_the_caller_arrives() {
    let (scripted, _running, address) = server().await;
    let trace = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned());
    client().call(&address, Call { trace: trace.clone(), ..echo("x") }).await.unwrap();
    assert_eq!(*scripted.last_trace.lock().unwrap(), trace);
}

#[tokio::test]
async fn a_caller_with_a_wrong_secret_is_refused_whatever_it_sends() {
    let (scripted, _running, address) = server().await;
    let stranger = client_with(ClientOptions::new(Security::Secret("incorrect-horse-battery".to_owned())));
    for size in [1, 20 * 1024 * 1024] {
        let fault = stranger.call(&address, echo(vec![0; size])).await.unwrap_err();
        assert_eq!(fault.class, ErrorClass::Unavailable, "{fault}");
        assert!(fault.message.contains("does not know the secret"), "{fault}");
    }
    assert_eq!(scripted.begun.load(Ordering::SeqCst), 0);
    client().call(&address, echo("x")).await.unwrap();
}

#[tokio::test]
async fn neither_side_starts_with_a_secret_that_can_be_guessed() {
    for weak in ["", "short"] {
        let weak = Security::Secret(weak.to_owned());
        let options = ServerOptions::new("127.0.0.1:0", weak.clone());
        let refused = RpcServer::bind(options, Arc::new(Scripted::default())).await.unwrap_err();
        assert!(matches!(refused, BindError::Security(SecurityError::ShortSecret(_))), "{refused}");
        let refused = RpcTransport::new(ClientOptions::new(weak), Arc::new(SystemClock)).unwrap_err();
        assert!(matches!(refused, SecurityError::ShortSecret(_)), "{refused}");
    }
}

#[tokio::test]
async fn an_address_in_use_is_told() {
    let (_scripted, _running, address) = server().await;
    let options = ServerOptions::new(&address, secret());
    let error = RpcServer::bind(options, Arc::new(Scripted::default())).await.unwrap_err();
    assert!(error.to_string().contains(&address), "{error}");
}

#[tokio::test]
async fn when_the_callers_time_is_up_it_is_told_unknown_and_the_work_is_cut() {
    let (scripted, _running, address) = server().await;
    let fault = client().call(&address, wait(Duration::from_millis(200))).await.unwrap_err();
    assert_eq!(fault.class, ErrorClass::Unknown, "{fault}");
    scripted.was_cut.notified().await;
    assert_eq!(scripted.begun.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn the_work_is_cut_when_the_caller_goes_away() {
    let (scripted, _running, address) = server().await;
    let client = Arc::new(client());
    let call = tokio::spawn(async move { client.call(&address, wait(LONG)).await });
    scripted.arrived.acquire().await.unwrap().forget();
    call.abort();
    scripted.was_cut.notified().await;
}

#[tokio::test]
async fn a_call_takes_no_longer_than_the_server_allows() {
    let call_timeout_max = Duration::from_millis(200);
    let options = ServerOptions { call_timeout_max, ..ServerOptions::new("127.0.0.1:0", secret()) };
    let (scripted, _running, address) = server_with(options).await;
    let fault = client().call(&address, wait(LONG)).await.unwrap_err();
    assert_eq!(fault.class, ErrorClass::Unknown, "{fault}");
    assert_eq!(scripted.cut.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn where_nobody_listens_the_call_is_unavailable_at_once() {
    let address = nobody().await.to_string();
    let client = client();
    let before = Instant::now();
    for _ in 0..3 {
        let fault = client.call(&address, echo("x")).await.unwrap_err();
        assert_eq!(fault.class, ErrorClass::Unavailable, "{fault}");
    }
    assert!(before.elapsed() < Duration::from_secs(1), "{:?}", before.elapsed());
}

#[tokio::test]
async fn a_server_that_comes_back_on_its_port_is_found_again() {
    let (_scripted, running, address) = server().await;
    let client = client();
    client.call(&address, echo("before")).await.unwrap();
    running.stop(LONG).await;
    let fault = client.call(&address, echo("between")).await.unwrap_err();
    assert_eq!(fault.class, ErrorClass::Unavailable, "{fault}");
    let (_scripted, _running, _) = server_with(ServerOptions::new(&address, secret())).await;
    assert_eq!(client.call(&address, echo("after")).await.unwrap(), "after");
}

#[tokio::test]
async fn a_stopping_server_finishes_what_is_under_way_and_begins_nothing() {
    let (scripted, running, address) = server().await;
    let client = Arc::new(client());
    let (caller, its_address) = (Arc::clone(&client), address.clone());
    let under_way = tokio::spawn(async move { caller.call(&its_address, wait(LONG)).await });
    scripted.arrived.acquire().await.unwrap().forget();
    let stopping = tokio::spawn(running.stop(LONG));
    let refused = loop {
        match client.call(&address, echo("late")).await {
            // The order to stop may not have been looked at yet.
            Ok(_) => tokio::task::yield_now().await,
            Err(fault) => break fault,
        }
    };
    assert_eq!(refused.class, ErrorClass::Unavailable, "{refused}");
    scripted.release.add_permits(1);
    assert_eq!(under_way.await.unwrap().unwrap(), "done");
    stopping.await.unwrap();
}

#[tokio::test]
async fn what_a_stopping_server_cannot_finish_in_time_is_cut_and_unknown() {
    let (scripted, running, address) = server().await;
    let client = client();
    let under_way = tokio::spawn(async move { client.call(&address, wait(LONG)).await });
    scripted.arrived.acquire().await.unwrap().forget();
    let before = Instant::now();
    running.stop(Duration::from_millis(50)).await;
    let fault = under_way.await.unwrap().unwrap_err();
    assert!(before.elapsed() < LONG / 3, "it was not cut: {:?}", before.elapsed());
    assert_eq!(fault.class, ErrorClass::Unknown, "{fault}");
    assert_eq!(scripted.cut.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_calls_at_one_time_each_get_their_own_answer() {
    let (scripted, running, address) = server().await;
    let client = Arc::new(client());
    let calls: Vec<_> = (0..1_000_u32)
        .map(|number| {
            let (client, address) = (Arc::clone(&client), address.clone());
            let call = Call { frame: Bytes::from(number.to_string()), ..wait(LONG) };
            tokio::spawn(async move { client.call(&address, call).await })
        })
        .collect();
    // All of them are inside before any of them leaves.
    scripted.arrived.acquire_many(1_000).await.unwrap().forget();
    scripted.release.add_permits(1_000);
    for (number, call) in calls.into_iter().enumerate() {
        assert_eq!(call.await.unwrap().unwrap(), number.to_string());
    }
    running.stop(LONG).await;
}

#[tokio::test]
async fn calls_beyond_the_limit_are_refused_at_once_and_welcome_later() {
    let options = ServerOptions { calls_max: 2, ..ServerOptions::new("127.0.0.1:0", secret()) };
    let (scripted, _running, address) = server_with(options).await;
    let client = Arc::new(client());
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let (client, address) = (Arc::clone(&client), address.clone());
            tokio::spawn(async move { client.call(&address, wait(LONG)).await })
        })
        .collect();
    scripted.arrived.acquire_many(2).await.unwrap().forget();
    let fault = client.call(&address, echo("x")).await.unwrap_err();
    assert_eq!(fault.class, ErrorClass::Limited, "{fault}");
    assert!(fault.retry_after_ms.is_some());
    assert_eq!(scripted.begun.load(Ordering::SeqCst), 2);
    scripted.release.add_permits(2);
    for call in waiting {
        call.await.unwrap().unwrap();
    }
    assert_eq!(client.call(&address, echo("x")).await.unwrap(), "x");
}

#[tokio::test]
async fn a_call_survives_the_eviction_of_its_connection_from_the_pool() {
    let (scripted, _running, address) = server().await;
    let (_other, _other_running, other_address) = server().await;
    let client = Arc::new(client_with(ClientOptions { connections_max: 1, ..ClientOptions::new(secret()) }));
    let (caller, its_address) = (Arc::clone(&client), address.clone());
    let under_way = tokio::spawn(async move { caller.call(&its_address, wait(LONG)).await });
    scripted.arrived.acquire().await.unwrap().forget();
    client.call(&other_address, echo("x")).await.unwrap();
    scripted.release.add_permits(1);
    assert_eq!(under_way.await.unwrap().unwrap(), "done");
}

#[tokio::test]
async fn health_answers_serving_without_a_secret() {
    let (_scripted, _running, address) = server().await;
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
    let mut health = HealthClient::new(channel);
    let reply = health.check(HealthCheckRequest { service: String::new() }).await.unwrap().into_inner();
    assert_eq!(reply.status(), ServingStatus::Serving);
    let refused = health.watch(HealthCheckRequest { service: String::new() }).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
}
