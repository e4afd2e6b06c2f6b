//! The CQL store keeps the contract of all stores, on a real server.
//!
//! The server is the one that `COFACTOR_TEST_CQL=HOST:PORT` names, or one that `scripts/services/cql` starts for the test.
//! Everything is one test, because a server takes ten seconds to start and 1 GiB of memory; a scenario that does not hold
//! panics with its name in the trace.

mod proxy;
mod server;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use cofactor_store::{
    Append, CasOutcome, Durability, Fence, Key, Mutation, Scan, Store, StoreError, conformance, key, tables,
};
use cofactor_store_cql::{CqlStore, OpenError, Options, check, migrate};
use cofactor_types::{Clock, Epoch, Position, SystemClock};
use scylla::client::{session::Session, session_builder::SessionBuilder};

use self::{proxy::Proxy, server::Server};

/// What the scenarios share.
struct Stage {
    options: Options,
    session: Session,
    store: CqlStore,
}

impl Stage {
    /// The same store with nothing in it.
    async fn empty(&self) -> Arc<dyn Store> {
        for table in tables::ALL {
            let name = format!("{}.{}", self.options.keyspace, table.name);
            let first = self.session.query_unpaged(format!("SELECT * FROM {name} LIMIT 1"), ()).await.expect("a read");
            // To truncate takes the server a tenth of a second.
            if first.into_rows_result().expect("rows").rows_num() > 0 {
                self.session.query_unpaged(format!("TRUNCATE {name}"), ()).await.expect("an empty table");
            }
        }
        Arc::new(self.store.clone())
    }

    async fn run(&self, text: &str) {
        let text = text.replace("THE_KEYSPACE", &self.options.keyspace);
        self.session.query_unpaged(text, ()).await.expect("a statement");
    }
}

/// Runs scenarios, and says which, for the trace of a failure is long.
macro_rules! run {
    ($stage:expr, $($scenario:ident),+ $(,)?) => {$(
        let start = std::time::Instant::now();
        println!("{} …", stringify!($scenario));
        $scenario($stage).await;
        println!("… took {:?}", start.elapsed());
    )+};
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cql_store_keeps_the_contract_on_a_real_server() {
    let server = Server::start();
    let options = Options {
        nodes: vec![server.address.clone()],
        keyspace: format!("cofactor_test_{}", std::process::id()),
        replication_factor: 1,
        ..Options::default()
    };
    let session = SessionBuilder::new().known_node(&server.address).build().await.expect("a session");

    nothing_is_made_by_a_node_that_may_not_migrate(&options).await;
    two_that_start_at_once_make_one_schema(&options).await;
    let store = CqlStore::open(&options).await.expect("a store");
    let stage = Stage { options, session, store };
    conformance::all(async || stage.empty().await).await;
    run!(
        &stage,
        a_dropped_append_is_unknown_and_the_fence_tells,
        an_append_whose_answer_is_lost_is_unknown_and_the_fence_tells,
        an_append_whose_connection_breaks_is_unknown_and_stands,
        a_late_append_meets_another_fence,
        a_server_that_is_not_there_is_unavailable,
        what_is_too_large_is_refused_whole,
        a_partition_larger_than_a_batch_is_written_and_scanned,
        rows_of_an_open_bucket_are_not_written_without_a_fence,
        the_later_write_stands_although_the_clock_stepped_back,
        conditional_rows_are_compared_without_changing_them,
        a_closed_store_refuses,
        a_table_that_is_new_is_made_without_a_migration,
        a_migration_that_was_broken_off_is_finished,
        a_schema_changed_by_hand_is_refused,
        another_datacenter_is_refused,
        a_newer_schema_is_refused,
    );
    stage.run("DROP KEYSPACE THE_KEYSPACE").await;
}

fn fence(epoch: u64, last: u64) -> Fence {
    Fence { epoch: Epoch(epoch), last: Position(last), batch: u128::MAX - u128::from(last), sealed: false }
}

fn append(room: &str, expected: Option<Fence>, fence: Fence) -> Append {
    let row = (key![1_u64, "", fence.last.0], Some(Bytes::from_static(b"x")));
    Append { table: &tables::ROOM_LOG, partition: key![room, 0_u64], expected, fence, rows: vec![row], also: vec![] }
}

async fn positions(store: &dyn Store, room: &str) -> Vec<u64> {
    let scan = Scan::new(&tables::ROOM_LOG, key![room, 0_u64], Key::EMPTY, usize::MAX);
    store.scan(scan).await.expect("a scan").iter().map(|row| row.clustering.number(2)).collect()
}

async fn standing(store: &dyn Store, room: &str) -> Option<Fence> {
    store.fence(&tables::ROOM_LOG, &key![room, 0_u64]).await.expect("a fence")
}

fn put(room: &str, state_key: &str, value: impl Into<Bytes>) -> Mutation {
    let clustering = key!["m.room.member", state_key];
    Mutation { table: &tables::ROOM_STATE, partition: key![room], clustering, value: Some(value.into()) }
}

async fn nothing_is_made_by_a_node_that_may_not_migrate(options: &Options) {
    let options = Options { migrate: false, ..options.clone() };
    let refused = CqlStore::open(&options).await.err();
    assert!(matches!(refused, Some(OpenError::SchemaNotReady { .. })), "{refused:?}");
}

async fn two_that_start_at_once_make_one_schema(options: &Options) {
    let (first, second) = tokio::join!(migrate(options), migrate(options));
    let mut applied = [first.expect("a schema").applied, second.expect("a schema").applied];
    applied.sort();
    assert_eq!(applied, [vec![], vec![1]], "one of them made it, the other found it made");
    assert_eq!(check(options).await, Ok(()));
}

async fn a_dropped_append_is_unknown_and_the_fence_tells(stage: &Stage) {
    let store = stage.empty().await;
    let mut applied = 0;
    for number in 0..50_u64 {
        let room = format!("!dropped{number}");
        let mine = append(&room, None, fence(1, 10));
        // Given up after so many microseconds: before it is sent, while it is under way, or after it was answered.
        let _ = tokio::time::timeout(Duration::from_micros(number * 100), store.append(mine.clone())).await;
        applied += u32::from(standing(&*store, &room).await.is_some());
        let again = store.append(mine).await;
        let recognised = again == Err(StoreError::Fenced(Some(fence(1, 10))));
        assert!(again.is_ok() || recognised, "{again:?}");
        assert_eq!(positions(&*store, &room).await, [10], "it is there once, whenever it was given up");
    }
    assert!(applied > 0, "some had been applied when they were given up");
}

async fn an_append_whose_answer_is_lost_is_unknown_and_the_fence_tells(stage: &Stage) {
    let store = stage.empty().await;
    let proxy = Proxy::to(&stage.options.nodes[0]).await;
    let options = Options { nodes: vec![proxy.address.clone()], request_timeout_ms: 1_000, ..stage.options.clone() };
    let behind = CqlStore::open(&options).await.expect("a store");
    store.append(append("!a", None, fence(1, 10))).await.expect("an append");
    proxy.swallow_answers();
    let mine = append("!a", Some(fence(1, 10)), fence(1, 20));
    let lost = behind.append(mine.clone()).await;
    assert!(matches!(lost, Err(StoreError::Unknown(_))), "{lost:?}");
    if standing(&*store, "!a").await != Some(fence(1, 20)) {
        // The server was slower than our patience. What it has not done when we ask, it cannot do later.
        assert_eq!(store.append(mine).await, Ok(()));
    }
    assert_eq!(positions(&*store, "!a").await, [10, 20]);
}

async fn an_append_whose_connection_breaks_is_unknown_and_stands(stage: &Stage) {
    let store = stage.empty().await;
    let proxy = Proxy::to(&stage.options.nodes[0]).await;
    let options = Options { nodes: vec![proxy.address.clone()], ..stage.options.clone() };
    let behind = CqlStore::open(&options).await.expect("a store");
    proxy.swallow_answers();
    let (lost, ()) = tokio::join!(behind.append(append("!a", None, fence(1, 10))), async {
        while positions(&*store, "!a").await.is_empty() {
            tokio::task::yield_now().await;
        }
        proxy.break_connections();
    });
    assert!(matches!(lost, Err(StoreError::Unknown(_))), "{lost:?}");
    assert_eq!(standing(&*store, "!a").await, Some(fence(1, 10)));
}

async fn a_late_append_meets_another_fence(stage: &Stage) {
    let store = stage.empty().await;
    store.append(append("!a", None, fence(1, 10))).await.expect("the old owner");
    store.append(append("!a", Some(fence(1, 10)), fence(2, 20))).await.expect("the new owner");
    let late = store.append(append("!a", Some(fence(1, 10)), fence(1, 15))).await;
    assert_eq!(late, Err(StoreError::Fenced(Some(fence(2, 20)))));
    assert_eq!(positions(&*store, "!a").await, [10, 20]);
}

async fn a_server_that_is_not_there_is_unavailable(stage: &Stage) {
    let proxy = Proxy::to(&stage.options.nodes[0]).await;
    let options = Options { nodes: vec![proxy.address.clone()], ..stage.options.clone() };
    let behind = CqlStore::open(&options).await.expect("a store");
    behind.append(append("!gone", None, fence(1, 10))).await.expect("an append");
    proxy.refuse_connections();
    proxy.break_connections();
    // The driver notices broken connections by and by; until then an outcome is unknown, and never a success.
    let failure = loop {
        match behind.append(append("!gone", Some(fence(1, 10)), fence(1, 20))).await {
            Err(StoreError::Unknown(_)) => tokio::task::yield_now().await,
            other => break other,
        }
    };
    assert!(matches!(failure, Err(StoreError::Unavailable(_))), "{failure:?}");
    let read = behind.fence(&tables::ROOM_LOG, &key!["!gone", 0_u64]).await;
    assert!(matches!(read, Err(StoreError::Unavailable(_))), "{read:?}");
    let opened = CqlStore::open(&options).await.err();
    assert!(matches!(opened, Some(OpenError::Connect { .. })), "{opened:?}");
}

async fn what_is_too_large_is_refused_whole(stage: &Stage) {
    let store = stage.empty().await;
    let most = stage.options.batch_bytes_max;
    let rows = (0..20_u64).map(|number| (key![1_u64, "", number], Some(Bytes::from(vec![7; most / 19])))).collect();
    let large = Append { rows, ..append("!a", None, fence(1, 20)) };
    assert!(matches!(store.append(large).await, Err(StoreError::TooLarge(_))));
    assert_eq!((standing(&*store, "!a").await, positions(&*store, "!a").await), (None, vec![]));
    let write =
        store.write(vec![put("!a", "@small", "x"), put("!a", "@large", vec![7; most])], Durability::Synced).await;
    assert!(matches!(write, Err(StoreError::TooLarge(_))), "{write:?}");
    assert_eq!(store.get(&tables::ROOM_STATE, &key!["!a"], &key!["m.room.member", "@small"]).await, Ok(None));

    // The most that the options allow is not too much for the server.
    let bold = CqlStore::open(&Options { batch_bytes_max: 4 << 20, ..stage.options.clone() }).await.expect("a store");
    let rows = (0..63_u64).map(|number| (key![1_u64, "", number], Some(Bytes::from(vec![7; 65_536])))).collect();
    assert_eq!(bold.append(Append { rows, ..append("!a", None, fence(1, 64)) }).await, Ok(()));
    assert_eq!(positions(&*store, "!a").await.len(), 63);
}

async fn a_partition_larger_than_a_batch_is_written_and_scanned(stage: &Stage) {
    let store = stage.empty().await;
    let member = |number: usize| format!("@user{number:05}");
    let batch: Vec<Mutation> = (0..5_000).map(|number| put("!a", &member(number), vec![7; 1_000])).collect();
    store.write(batch, Durability::Deferred).await.expect("a write of 5 MB");
    let rows = store.scan(Scan::new(&tables::ROOM_STATE, key!["!a"], key!["m.room.member"], usize::MAX)).await;
    let found: Vec<String> = rows.expect("a scan").iter().map(|row| row.clustering.text(1).to_owned()).collect();
    assert_eq!(found, (0..5_000).map(member).collect::<Vec<_>>(), "over many pages, in order");
}

async fn rows_of_an_open_bucket_are_not_written_without_a_fence(stage: &Stage) {
    let store = stage.empty().await;
    store.append(append("!a", None, fence(1, 10))).await.expect("an append");
    let clustering = key![1_u64, "", 10_u64];
    let value = Some(Bytes::from_static(b"rewritten"));
    let rewrite = Mutation { table: &tables::ROOM_LOG, partition: key!["!a", 0_u64], clustering, value };
    let refused = store.write(vec![rewrite], Durability::Synced).await;
    assert!(matches!(refused, Err(StoreError::Misuse(_))), "{refused:?}");
}

async fn the_later_write_stands_although_the_clock_stepped_back(stage: &Stage) {
    // Another process, whose clock is ten minutes ahead, owned the room and wrote its state.
    let store = stage.empty().await;
    let ahead = SystemClock.now_us() + 600_000_000;
    let theirs = format!(
        "INSERT INTO THE_KEYSPACE.room_state (room_id, type, state_key, value) \
         VALUES ('!a', 'm.room.member', '@x', 0x01) USING TIMESTAMP {}",
        ahead - 1
    );
    stage.run(&theirs).await;
    // Its successor appends above every position that it could have used, and then writes.
    store.append(append("!a", None, fence(2, ahead))).await.expect("an append");
    store.write(vec![put("!a", "@x", "ours")], Durability::Synced).await.expect("a write");
    let found = store.get(&tables::ROOM_STATE, &key!["!a"], &key!["m.room.member", "@x"]).await.expect("a read");
    assert_eq!(found.as_deref(), Some(&b"ours"[..]));
}

async fn conditional_rows_are_compared_without_changing_them(stage: &Stage) {
    let store = stage.empty().await;
    let none = async || {
        store.compare_and_set(&tables::LEASES, &key![1_u64], &Key::EMPTY, None, None).await.expect("an answer")
    };
    assert_eq!(none().await, CasOutcome::Applied);
    let value = Some(Bytes::from_static(b"node 1"));
    let set = store.compare_and_set(&tables::LEASES, &key![1_u64], &Key::EMPTY, None, value.clone()).await;
    assert_eq!(set, Ok(CasOutcome::Applied));
    assert_eq!(none().await, CasOutcome::Found(value));
    let rows = store.scan(Scan::new(&tables::LEASES, key![1_u64], Key::EMPTY, 10)).await.expect("a scan");
    assert_eq!(rows.len(), 1);
}

async fn a_closed_store_refuses(stage: &Stage) {
    let store = CqlStore::open(&stage.options).await.expect("a store");
    assert_eq!(store.close().await, Ok(()));
    let refused = store.append(append("!closed", None, fence(1, 10))).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    assert_eq!(store.close().await, Ok(()), "closing twice is closing once");
}

async fn a_table_that_is_new_is_made_without_a_migration(stage: &Stage) {
    stage.run("DROP TABLE THE_KEYSPACE.media").await;
    assert!(matches!(check(&stage.options).await, Err(OpenError::SchemaNotReady { .. })));
    let report = migrate(&stage.options).await.expect("a schema");
    assert_eq!((report.applied, report.created), (vec![], vec!["media".to_owned()]));
}

async fn a_migration_that_was_broken_off_is_finished(stage: &Stage) {
    let unfinished =
        "UPDATE THE_KEYSPACE.schema_versions SET finished_at = NULL WHERE scope = 'cofactor' AND number = 1 IF EXISTS";
    stage.run(unfinished).await;
    let refused = check(&stage.options).await;
    assert!(matches!(refused, Err(OpenError::SchemaNotReady { .. })), "{refused:?}");
    assert_eq!(migrate(&stage.options).await.expect("a schema").applied, [1]);
    assert_eq!(check(&stage.options).await, Ok(()));
}

async fn a_schema_changed_by_hand_is_refused(stage: &Stage) {
    stage.run("ALTER TABLE THE_KEYSPACE.aliases DROP value").await;
    let refused = CqlStore::open(&stage.options).await.err();
    assert!(matches!(refused, Some(OpenError::SchemaForeign { .. })), "{refused:?}");
    stage.run("ALTER TABLE THE_KEYSPACE.aliases ADD value blob").await;
    stage.run("ALTER TABLE THE_KEYSPACE.aliases ADD added_by_a_newer_version blob").await;
    assert_eq!(check(&stage.options).await, Ok(()), "columns of a newer version do not disturb");
}

async fn another_datacenter_is_refused(stage: &Stage) {
    let elsewhere = Options { local_datacenter: Some("elsewhere".into()), ..stage.options.clone() };
    let refused = CqlStore::open(&elsewhere).await.err();
    assert!(matches!(refused, Some(OpenError::Datacenter { .. })), "{refused:?}");
    let set = "UPDATE THE_KEYSPACE.schema_versions SET datacenter = 'elsewhere' WHERE scope = 'cofactor' IF datacenter != NULL";
    stage.run(set).await;
    let refused = CqlStore::open(&stage.options).await.err();
    assert!(matches!(refused, Some(OpenError::OtherDatacenter { .. })), "{refused:?}");
    stage
        .run("UPDATE THE_KEYSPACE.schema_versions SET datacenter = NULL WHERE scope = 'cofactor' IF datacenter != NULL")
        .await;
    assert!(CqlStore::open(&stage.options).await.is_ok());
}

async fn a_newer_schema_is_refused(stage: &Stage) {
    stage.run("INSERT INTO THE_KEYSPACE.schema_versions (scope, number, name) VALUES ('cofactor', 999, 'the future') IF NOT EXISTS").await;
    for migrate in [true, false] {
        let refused = CqlStore::open(&Options { migrate, ..stage.options.clone() }).await.err();
        assert!(matches!(refused, Some(OpenError::SchemaTooNew { found: 999, .. })), "{refused:?}");
    }
}
