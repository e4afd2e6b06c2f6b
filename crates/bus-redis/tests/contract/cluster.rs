//! A Redis Cluster of three.

use std::{sync::Arc, time::Duration};

use cofactor_bus::{
    Bus, Delivery,
    conformance::{self, Ends},
};

use crate::{SOON, faults::NOTICED, heard, record, server::Server, until, until_heard_again};

#[tokio::test]
async fn a_cluster_keeps_the_contract() {
    let server = Server::cluster();
    // Publishers draw their lanes, so that several pairs meet more than one.
    for _ in 0..3 {
        conformance::all(async || Ends {
            speaker: Arc::new(server.bus().await),
            listener: Arc::new(server.bus().await),
        })
        .await;
    }
    conformance::shared(&server.facts(), Duration::from_secs(1), tokio::time::sleep).await;
}

#[tokio::test]
async fn lanes_lie_on_different_servers_and_every_publisher_is_heard() {
    let server = Server::cluster();
    let listener = server.bus().await;
    let mut subscription = listener.subscribe();
    let mut speakers = Vec::new();
    for seq in 1..=10 {
        let speaker = server.bus().await;
        speaker.publish(record(seq));
        until(&mut subscription, &heard(seq), SOON).await;
        speakers.push(speaker);
    }
    let with_channels = (0..3).filter(|n| !server.cli(*n, &["PUBSUB", "SHARDCHANNELS"]).is_empty()).count();
    assert!(with_channels > 1, "the lanes are spread over {with_channels} servers");
}

/// Gives a hash slot to another server, as an operator who moves load does.
fn move_slot(server: &Server, slot: &str, from: usize, to: usize) {
    let id = |n: usize| server.cli(n, &["CLUSTER", "MYID"]);
    let (from_id, to_id) = (id(from), id(to));
    server.cli(to, &["CLUSTER", "SETSLOT", slot, "IMPORTING", &from_id]);
    server.cli(from, &["CLUSTER", "SETSLOT", slot, "MIGRATING", &to_id]);
    let rest = (0..3).filter(|n| ![from, to].contains(n));
    for n in [to, from].into_iter().chain(rest) {
        server.cli(n, &["CLUSTER", "SETSLOT", slot, "NODE", &to_id]);
    }
}

#[tokio::test]
async fn when_the_lanes_move_there_is_a_gap_and_then_records_again() {
    let server = Server::cluster();
    let (speaker, listener) = (server.bus().await, server.bus().await);
    let mut subscription = listener.subscribe();
    let homes: Vec<Vec<String>> =
        (0..3).map(|n| server.cli(n, &["PUBSUB", "SHARDCHANNELS"]).lines().map(str::to_owned).collect()).collect();
    for (from, channels) in homes.iter().enumerate() {
        for channel in channels.iter().filter(|channel| channel.ends_with(":h")) {
            let slot = server.cli(from, &["CLUSTER", "KEYSLOT", channel]);
            move_slot(&server, &slot, from, (from + 1) % 3);
        }
    }
    until(&mut subscription, &Delivery::Gap, NOTICED).await;
    until_heard_again(&speaker, &mut subscription, 1).await;
    listener.ready(SOON).await.expect("every lane is heard again");
    speaker.ready(SOON).await.expect("the speaker found its lane");
    speaker.publish(record(1_000_000));
    until(&mut subscription, &heard(1_000_000), SOON).await;
}

#[tokio::test]
async fn when_a_server_of_the_cluster_is_killed_and_comes_back_all_lanes_are_heard_again() {
    let server = Server::cluster();
    let (speaker, listener) = (server.bus().await, server.bus().await);
    let mut subscription = listener.subscribe();
    // One that has a lane.
    let lost = (0..3).find(|n| !server.cli(*n, &["PUBSUB", "SHARDCHANNELS"]).is_empty()).expect("a lane");
    server.signal(lost, "KILL");
    until(&mut subscription, &Delivery::Gap, SOON).await;
    server.restart(lost);
    until_heard_again(&speaker, &mut subscription, 1).await;
    listener.ready(SOON).await.expect("every lane is heard again");
}
