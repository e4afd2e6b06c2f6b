//! Buses and shared facts on real Redis servers: the contract, and what happens when Redis does not.
//!
//! Each test starts its own servers. `COFACTOR_TEST_REDIS` (`HOST:PORT`, several with commas for a Redis Cluster) makes
//! the contract be tried on others; tests that kill need their own all the same.

mod cluster;
mod faults;
mod server;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use cofactor_bus::{
    Bus, Delivery, Heartbeat, Listener, Record, Subscription,
    conformance::{self, Ends},
};
use cofactor_bus_redis::{RedisBus, RedisOptions, RedisShared};
use cofactor_types::{EntityId, EntityKind, Epoch, NodeId, Position, ShardId, SystemEntropy};
use server::Server;

/// Within this time everything must happen that needs no fault to be noticed.
const SOON: Duration = Duration::from_secs(10);

fn record(seq: u64) -> Record {
    Record {
        shard: ShardId((seq % 7) as u32),
        epoch: Epoch(1),
        seq,
        entity: EntityId::new(EntityKind::Room, "!a"),
        position: Position(seq),
        class: 1,
        payload: Bytes::from_static(b"x"),
        trace: None,
    }
}

fn heard(seq: u64) -> Delivery {
    Delivery::Record(Arc::new(record(seq)))
}

fn heartbeat(node: u64) -> Heartbeat {
    Heartbeat { node: NodeId(node), closed: Position(1), version: 1, full: true, shards: vec![] }
}

/// All deliveries up to this one, which must come within `limit`.
async fn until(subscription: &mut Box<dyn Subscription>, last: &Delivery, limit: Duration) -> Vec<Delivery> {
    let mut all = Vec::new();
    let waited = tokio::time::timeout(limit, async {
        while all.last() != Some(last) {
            all.push(subscription.next().await.expect("an open bus"));
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{last:?} does not come"));
    all
}

/// Publishes one record after the other until one is heard, and says what was heard until then.
async fn until_heard_again(speaker: &dyn Bus, listener: &mut Box<dyn Subscription>, first: u64) -> Vec<Delivery> {
    let mut all = Vec::new();
    let waited = tokio::time::timeout(SOON * 2, async {
        for seq in first.. {
            speaker.publish(record(seq));
            while let Ok(delivery) = tokio::time::timeout(Duration::from_millis(50), listener.next()).await {
                all.push(delivery.expect("an open bus"));
                if matches!(all.last(), Some(Delivery::Record(record)) if record.seq >= first) {
                    return;
                }
            }
        }
    });
    waited.await.expect("records are heard again");
    all
}

/// The servers that the environment names, or one that is started.
fn tried() -> (Option<Server>, RedisOptions) {
    match std::env::var("COFACTOR_TEST_REDIS") {
        Ok(addresses) => {
            let addresses: Vec<String> = addresses.split(',').map(str::to_owned).collect();
            (None, RedisOptions { prefix: server::prefix(), ..server::options(&addresses) })
        }
        Err(_) => {
            let server = Server::start();
            let options = server.options();
            (Some(server), options)
        }
    }
}

#[tokio::test]
async fn one_bus_keeps_the_contract() {
    let (_server, options) = tried();
    conformance::all(async || Ends::same(Arc::new(server::bus(options.clone()).await))).await;
}

#[tokio::test]
async fn two_buses_keep_the_contract() {
    let (_server, options) = tried();
    conformance::all(async || Ends {
        speaker: Arc::new(server::bus(options.clone()).await),
        listener: Arc::new(server::bus(options.clone()).await),
    })
    .await;
}

#[tokio::test]
async fn facts_keep_the_contract() {
    let (_server, options) = tried();
    let facts = RedisShared::new(&options).expect("options that work");
    // The server's clock can only be waited for.
    conformance::shared(&facts, Duration::from_secs(1), tokio::time::sleep).await;
}

#[tokio::test]
async fn buses_with_other_prefixes_hear_nothing_of_one_another() {
    let server = Server::start();
    let (ours, listener) = (server.bus().await, server.bus().await);
    let theirs = server::bus(RedisOptions { prefix: "other".into(), ..server.options() }).await;
    let mut subscription = listener.subscribe();
    theirs.publish(record(1));
    ours.publish(record(2));
    assert_eq!(until(&mut subscription, &heard(2), SOON).await, [heard(2)]);
}

/// More than one test lets a listener hear.
const DELIVERIES_MAX: usize = 1_000;

/// Passes on what it hears.
struct Passing(tokio::sync::mpsc::Sender<Delivery>);

impl Listener for Passing {
    fn hear(&self, delivery: &Delivery) {
        self.0.try_send(delivery.clone()).expect("few deliveries");
    }
}

#[tokio::test]
async fn a_bus_that_only_a_listener_uses_hears_the_others() {
    let server = Server::start();
    let speaker = server.bus().await;
    let bus = RedisBus::start(server.options(), Arc::new(SystemEntropy)).expect("options that work");
    let (sender, mut heard_here) = tokio::sync::mpsc::channel(DELIVERIES_MAX);
    let _listening = bus.listen(Arc::new(Passing(sender)));
    bus.ready(SOON).await.expect("a bus that hears");
    speaker.publish(record(1));
    let arrives = async { while heard_here.recv().await != Some(heard(1)) {} };
    tokio::time::timeout(SOON, arrives).await.expect("the record is heard");
}

#[tokio::test]
async fn a_thousand_small_records_go_out_in_few_round_trips() {
    let server = Server::start();
    let (speaker, listener) = (server.bus().await, server.bus().await);
    let mut subscription = listener.subscribe();
    let reads = |server: &Server| {
        let stats = server.cli(0, &["INFO", "stats"]);
        let line = stats.lines().find_map(|line| line.strip_prefix("total_reads_processed:"));
        line.expect("a count").trim().parse::<u64>().expect("a number")
    };
    let before = reads(&server);
    (1..=1_000).for_each(|seq| speaker.publish(record(seq)));
    until(&mut subscription, &heard(1_000), SOON).await;
    let rounds = reads(&server) - before;
    assert!(rounds < 100, "{rounds} reads by the server");
}
