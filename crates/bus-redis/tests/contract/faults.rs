//! One server that fails.

use std::time::{Duration, Instant};

use cofactor_bus::{Bus, Decision, Delivery, Rate, Shared};
use cofactor_bus_redis::{RedisBus, RedisOptions};
use cofactor_types::SystemEntropy;

use crate::{
    SOON, heard, heartbeat, record,
    server::{self, Server},
    until, until_heard_again,
};

/// A lost or silent connection is told this soon: the silence that is allowed, and as much again for a busy machine.
pub(crate) const NOTICED: Duration = Duration::from_secs(2);

#[tokio::test]
async fn when_redis_is_killed_and_comes_back_there_is_a_gap_and_then_records_again() {
    let server = Server::start();
    let (speaker, listener) = (server.bus().await, server.bus().await);
    let (mut own, mut others) = (speaker.subscribe(), listener.subscribe());
    speaker.publish(record(1));
    assert_eq!(until(&mut others, &heard(1), SOON).await, [heard(1)]);

    server.signal(0, "KILL");
    until(&mut others, &Delivery::Gap, NOTICED).await;
    assert!(!listener.is_ready());
    (2..=5_000).for_each(|seq| speaker.publish(record(seq)));
    let own = until(&mut own, &heard(5_000), SOON).await;
    let records = own.iter().filter(|delivery| **delivery != Delivery::Gap).count();
    assert_eq!(records, 5_000, "one's own records are heard without redis");
    let mut late = listener.subscribe();
    assert_eq!(late.try_next(), Some(Delivery::Gap), "a subscription without redis begins with a gap");

    server.restart(0);
    let again = until_heard_again(&speaker, &mut others, 5_001).await;
    assert!(again.contains(&Delivery::Gap), "what was said meanwhile is a gap");
    let (last, before) = again.split_last().expect("a record");
    assert!(before.iter().all(|delivery| *delivery == Delivery::Gap), "{before:?} before {last:?}");
}

#[tokio::test]
async fn while_redis_is_down_gaps_are_told_again_and_again() {
    let server = Server::start();
    let bus = server::bus(RedisOptions { gap_every_ms: 100, ..server.options() }).await;
    let mut subscription = bus.subscribe();
    server.signal(0, "KILL");
    for _ in 0..5 {
        until(&mut subscription, &Delivery::Gap, NOTICED).await;
    }
}

#[tokio::test]
async fn what_the_speaker_alone_could_not_say_is_a_gap_for_the_others() {
    let server = Server::start();
    let (speaker, listener) = (server.bus().await, server.bus().await);
    let mut others = listener.subscribe();
    server.cli(0, &["CLIENT", "KILL", "TYPE", "normal"]);
    speaker.publish(record(1));
    assert_eq!(until(&mut others, &Delivery::Gap, NOTICED).await, [Delivery::Gap]);
    assert_eq!(until_heard_again(&speaker, &mut others, 2).await.len(), 1);
}

#[tokio::test]
async fn a_listener_that_is_cut_off_hears_a_gap_and_then_records_again() {
    let server = Server::start();
    let (speaker, listener) = (server.bus().await, server.bus().await);
    let mut others = listener.subscribe();
    server.cli(0, &["CLIENT", "KILL", "TYPE", "pubsub"]);
    until(&mut others, &Delivery::Gap, NOTICED).await;
    until(&mut others, &Delivery::Gap, SOON).await;
    listener.ready(SOON).await.expect("connected again");
    speaker.publish(record(1));
    assert_eq!(until(&mut others, &heard(1), SOON).await, [heard(1)]);
}

#[tokio::test]
async fn a_server_that_hangs_is_noticed_and_nobody_who_speaks_waits_for_it() {
    let server = Server::start();
    let (speaker, listener) = (server.bus().await, server.bus().await);
    let mut others = listener.subscribe();
    server.signal(0, "STOP");
    let start = Instant::now();
    until(&mut others, &Delivery::Gap, NOTICED).await;
    let noticed = start.elapsed();
    assert!(noticed <= NOTICED, "{noticed:?}");
    // Nothing moves here while the server hangs: if this waited for it, it would for ever.
    (1..=50_000).for_each(|seq| speaker.publish(record(seq)));
    server.signal(0, "CONT");
    let again = until_heard_again(&speaker, &mut others, 100_000).await;
    assert!(again.contains(&Delivery::Gap));
}

#[tokio::test]
async fn a_publisher_that_dies_is_a_gap_and_one_that_says_goodbye_is_not() {
    let server = Server::start();
    let (dies, leaves, listener) = (server.bus().await, server.bus().await, server.bus().await);
    let mut subscription = listener.subscribe();
    leaves.heartbeat(heartbeat(2));
    until(&mut subscription, &Delivery::Heartbeat(heartbeat(2).into()), SOON).await;
    leaves.close().await;
    let more = tokio::time::timeout(NOTICED, subscription.next()).await;
    assert!(more.is_err(), "the goodbye is no loss: {more:?}");
    dies.heartbeat(heartbeat(1));
    until(&mut subscription, &Delivery::Heartbeat(heartbeat(1).into()), SOON).await;
    drop(dies);
    assert_eq!(until(&mut subscription, &Delivery::Gap, NOTICED).await, [Delivery::Gap]);
}

#[tokio::test]
async fn a_flush_loses_the_facts_and_nothing_else() {
    let server = Server::start();
    let (speaker, listener, facts) = (server.bus().await, server.bus().await, server.facts());
    let mut subscription = listener.subscribe();
    let rate = Rate { per_second: 0.001, burst: 1.0 };
    facts.put("a", "x".into(), Duration::from_secs(60)).await.expect("a fact");
    assert_eq!(facts.take_tokens("a", rate, 1).await, Ok(Decision::Allowed));
    assert!(matches!(facts.take_tokens("a", rate, 1).await, Ok(Decision::Denied { .. })));
    server.cli(0, &["FLUSHALL"]);
    assert_eq!(facts.get("a").await, Ok(None));
    assert_eq!(facts.take_tokens("a", rate, 1).await, Ok(Decision::Allowed), "a lost bucket is a full one");
    speaker.publish(record(1));
    assert_eq!(until(&mut subscription, &heard(1), SOON).await, [heard(1)], "no gap");
}

#[tokio::test]
async fn facts_fail_quickly_without_redis_and_come_back_with_it() {
    let server = Server::start();
    let (one, other) = (server.facts(), server.facts());
    let life = Duration::from_secs(60);
    one.put("a", "x".into(), life).await.expect("a fact");
    assert_eq!(other.get("a").await, Ok(Some("x".into())), "processes share facts");
    for signal in ["STOP", "KILL"] {
        server.signal(0, signal);
        for _ in 0..3 {
            let start = Instant::now();
            one.get("a").await.expect_err("no redis");
            one.take_tokens("a", Rate { per_second: 1.0, burst: 1.0 }, 1).await.expect_err("no redis");
            assert!(start.elapsed() < Duration::from_secs(1), "{:?} after {signal}", start.elapsed());
        }
    }
    server.restart(0);
    let back = tokio::time::timeout(SOON, async {
        while one.put("a", "y".into(), life).await.is_err() {
            tokio::task::yield_now().await;
        }
    });
    back.await.expect("facts again");
    assert_eq!(one.get("a").await, Ok(Some("y".into())));
    let rate = Rate { per_second: 1.0, burst: 1.0 };
    assert_eq!(one.take_tokens("a", rate, 1).await, Ok(Decision::Allowed), "a new server is told the script");
}

#[tokio::test]
async fn who_asks_nothing_while_redis_is_away_does_not_notice() {
    let server = Server::start();
    let facts = server.facts();
    let rate = Rate { per_second: 1.0, burst: 1.0 };
    for _ in 0..2 {
        facts.put("a", "x".into(), Duration::from_secs(60)).await.expect("a fact");
        server.signal(0, "KILL");
        server.restart(0);
        assert_eq!(facts.get("a").await, Ok(None));
        server.signal(0, "KILL");
        server.restart(0);
        assert_eq!(facts.take_tokens("a", rate, 1).await, Ok(Decision::Allowed));
    }
}

#[tokio::test]
async fn a_bus_may_start_before_redis() {
    let server = Server::start();
    server.signal(0, "KILL");
    let start = || RedisBus::start(server.options(), std::sync::Arc::new(SystemEntropy)).expect("options that work");
    let (speaker, listener) = (start(), start());
    let mut subscription = listener.subscribe();
    speaker.publish(record(1));
    assert_eq!(subscription.try_next(), Some(Delivery::Gap));
    let short = RedisOptions { connect_timeout_ms: 200, ..server.options() };
    RedisBus::connect(short, std::sync::Arc::new(SystemEntropy)).await.expect_err("no redis");
    server.restart(0);
    listener.ready(SOON).await.expect("connected");
    speaker.ready(SOON).await.expect("connected");
    speaker.publish(record(2));
    let all = until(&mut subscription, &heard(2), SOON).await;
    assert!(all.contains(&Delivery::Gap) && !all.contains(&heard(1)), "{all:?}");
}
