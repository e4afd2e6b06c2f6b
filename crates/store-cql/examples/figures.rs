//! Measures appends on a CQL server: `cargo run --release -p cofactor-store-cql --example figures -- HOST:PORT`.
//!
//! One writer a log, one append under way for each, one event of 500 bytes an append; and then 32 events an append.

#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    reason = "a measurement is read on the terminal, and ends where it cannot go on"
)]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use cofactor_store::{Append, Fence, Store, StoreError, key, tables};
use cofactor_store_cql::{CqlStore, Options};
use cofactor_types::{Clock, Epoch, Position, SystemClock};
use tokio::task::JoinSet;

const LASTS: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() {
    let node = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9042".into());
    let keyspace = "cofactor_figures".into();
    let options = Options { nodes: vec![node], keyspace, replication_factor: 1, ..Options::default() };
    let store = Arc::new(CqlStore::open(&options).await.expect("a store"));
    println!(
        "{:>5} {:>14} {:>10} {:>9} {:>9} {:>9}",
        "logs", "events/append", "appends/s", "events/s", "p50 ms", "p99 ms"
    );
    for (logs, events) in [(1, 1), (64, 1), (64, 32)] {
        measure(&store, logs, events).await;
    }
    store.close().await.expect("a close");
}

async fn measure(store: &Arc<CqlStore>, logs: usize, events: u64) {
    let run = SystemClock.now_us();
    let mut writers = JoinSet::new();
    for log in 0..logs {
        writers.spawn(write(Arc::clone(store), format!("!figures{run}-{log}"), events));
    }
    let mut took: Vec<Duration> = writers.join_all().await.concat();
    took.sort();
    let at = |part: usize| took[(took.len() - 1) * part / 100].as_secs_f64() * 1_000.0;
    let appends = took.len() as f64 / LASTS.as_secs_f64();
    let total = appends * events as f64;
    println!("{logs:>5} {events:>14} {appends:>10.0} {total:>9.0} {:>9.1} {:>9.1}", at(50), at(99));
}

/// Appends to one log for as long as the measurement lasts; how long each append took.
async fn write(store: Arc<CqlStore>, room: String, events: u64) -> Vec<Duration> {
    let (mut expected, mut took) = (None, Vec::new());
    let value = Bytes::from(vec![7; 500]);
    let start = Instant::now();
    while start.elapsed() < LASTS {
        let before = expected.map_or(0, |fence: Fence| fence.last.0);
        let last = before + events;
        let fence = Fence { epoch: Epoch(1), last: Position(last), batch: u128::from(last), sealed: false };
        let rows = (before + 1..=last).map(|position| (key![1_u64, "", position], Some(value.clone()))).collect();
        let partition = key![room.as_str(), 0_u64];
        let append = Append { table: &tables::ROOM_LOG, partition, expected, fence, rows, also: Vec::new() };
        let sent = Instant::now();
        match store.append(append).await {
            Ok(()) => expected = Some(fence),
            Err(StoreError::Unknown(_)) => {
                expected = store.fence(&tables::ROOM_LOG, &key![room.as_str(), 0_u64]).await.expect("a fence");
            }
            Err(error) => {
                println!("{room}: {error}");
                return took;
            }
        }
        took.push(sent.elapsed());
    }
    took
}
