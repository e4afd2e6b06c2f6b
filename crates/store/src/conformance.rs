//! The suite that every backend must pass: a backend's tests call [`all`] with a way to make an empty store. A case that
//! does not hold panics with its name.

use std::sync::Arc;

use bytes::Bytes;
use cofactor_types::{EntityId, EntityKind, Epoch, Position};
use futures::future::join_all;

use crate::{
    Append, CasOutcome, Direction, Durability, Fence, Key, LogKey, LogReader, Mutation, RangeRead, Scan, Store,
    StoreError, Swap, key, record, tables,
};

/// Runs every case, each on an empty store.
pub async fn all(make: impl AsyncFn() -> Arc<dyn Store>) {
    rows_are_written_replaced_and_deleted(&*make().await).await;
    the_last_write_of_one_call_stands(&*make().await).await;
    scans_keep_order_bounds_and_limits(&*make().await).await;
    appends_form_a_chain(&*make().await).await;
    a_refused_append_changes_nothing(&*make().await).await;
    a_sealed_bucket_takes_nothing_more(&*make().await).await;
    rows_of_a_sealed_bucket_can_be_rewritten(&*make().await).await;
    effects_come_with_their_append(&*make().await).await;
    a_late_write_changes_nothing_newer(&*make().await).await;
    one_of_many_appends_wins(make().await).await;
    logs_side_by_side_do_not_disturb_each_other(make().await).await;
    compare_and_set_compares(make().await).await;
    rows_of_a_partition_are_set_together_or_not_at_all(make().await).await;
    misuse_is_refused(&*make().await).await;
    logs_are_read_across_buckets(make().await).await;
}

fn put(partition: &str, clustering: [&str; 2], value: &'static str) -> Mutation {
    let value = Some(Bytes::from_static(value.as_bytes()));
    Mutation {
        table: &tables::ROOM_STATE,
        partition: key![partition],
        clustering: key![clustering[0], clustering[1]],
        value,
    }
}

fn fence(epoch: u64, last: u64) -> Fence {
    Fence {
        epoch: Epoch(epoch),
        last: Position(last),
        batch: u128::from(epoch) << 64 | u128::from(last),
        sealed: false,
    }
}

fn append(room: &str, bucket: u64, expected: Option<Fence>, fence: Fence) -> Append {
    let row = (key![1_u64, "", fence.last.0], Some(Bytes::from(fence.last.0.to_string())));
    let partition = key![room, bucket];
    Append { table: &tables::ROOM_LOG, partition, expected, fence, rows: vec![row], also: Vec::new() }
}

async fn positions(store: &dyn Store, room: &str) -> Vec<u64> {
    let scan = Scan::new(&tables::ROOM_LOG, key![room, 0_u64], key![1_u64, ""], usize::MAX);
    store.scan(scan).await.expect("a scan").iter().map(|row| row.clustering.number(2)).collect()
}

async fn rows_are_written_replaced_and_deleted(store: &dyn Store) {
    let get = async |key: [&str; 2]| {
        store.get(&tables::ROOM_STATE, &key!["!a"], &key![key[0], key[1]]).await.expect("a read")
    };
    store
        .write(vec![put("!a", ["t", ""], "1"), put("!a", ["t", "k"], "2")], Durability::Synced)
        .await
        .expect("a write");
    store.write(vec![put("!a", ["t", ""], "3")], Durability::Deferred).await.expect("a deferred write");
    assert_eq!(get(["t", ""]).await.as_deref(), Some(&b"3"[..]), "the last write stands");
    assert_eq!(get(["t", "k"]).await.as_deref(), Some(&b"2"[..]));
    let delete = Mutation { value: None, ..put("!a", ["t", "k"], "") };
    store.write(vec![delete.clone()], Durability::Synced).await.expect("a delete");
    store.write(vec![delete], Durability::Synced).await.expect("a delete of nothing");
    assert_eq!(get(["t", "k"]).await, None);
}

async fn the_last_write_of_one_call_stands(store: &dyn Store) {
    let delete = |key: [&str; 2]| Mutation { value: None, ..put("!a", key, "") };
    let batch = vec![
        put("!a", ["t", "replaced"], "z"),
        put("!a", ["t", "deleted"], "z"),
        delete(["t", "restored"]),
        put("!a", ["t", "replaced"], "a"),
        delete(["t", "deleted"]),
        put("!a", ["t", "restored"], ""),
    ];
    store.write(batch, Durability::Synced).await.expect("a write");
    let get = async |state_key: &str| {
        store.get(&tables::ROOM_STATE, &key!["!a"], &key!["t", state_key]).await.expect("a read")
    };
    assert_eq!(get("replaced").await.as_deref(), Some(&b"a"[..]));
    assert_eq!(get("deleted").await, None);
    assert_eq!(get("restored").await.as_deref(), Some(&b""[..]), "an empty value is a value");
}

async fn scans_keep_order_bounds_and_limits(store: &dyn Store) {
    let keys = ["", "\0", "\0a", "a", "a\0", "aa", "b", "é", "\u{10ffff}"];
    for text in keys.iter().rev() {
        store
            .write(vec![put("!a", ["t", text], "x"), put("!b", ["t", text], "y")], Durability::Deferred)
            .await
            .expect("a write");
    }
    store
        .write(vec![put("!a", ["s", "z"], "x"), put("!a", ["u", "a"], "x")], Durability::Deferred)
        .await
        .expect("a write");
    let base = || Scan::new(&tables::ROOM_STATE, key!["!a"], key!["t"], usize::MAX);
    let found = async |scan: Scan| -> Vec<String> {
        store.scan(scan).await.expect("a scan").iter().map(|row| row.clustering.text(1).to_owned()).collect()
    };
    assert_eq!(found(base()).await, keys);
    let mut backward = keys;
    backward.reverse();
    assert_eq!(found(base().backward()).await, backward);
    assert_eq!(found(base().after(key!["t", "a"]).up_to(key!["t", "b"])).await, ["a\0", "aa", "b"]);
    assert_eq!(found(base().after(key!["t", "a"]).up_to(key!["t", "b"]).backward()).await, ["b", "aa", "a\0"]);
    assert_eq!(found(Scan { limit: 2, ..base().backward() }).await, ["\u{10ffff}", "é"]);
    assert_eq!(found(base().after(key!["t", "b"]).up_to(key!["t", "a"])).await, [""; 0]);
    let whole = Scan::new(&tables::ROOM_STATE, key!["!a"], Key::EMPTY, usize::MAX);
    assert_eq!(found(whole).await.len(), keys.len() + 2);
    assert_eq!(found(Scan::new(&tables::ROOM_STATE, key!["!none"], Key::EMPTY, 9)).await, [""; 0]);
}

async fn appends_form_a_chain(store: &dyn Store) {
    let partition = key!["!a", 0_u64];
    assert_eq!(store.fence(&tables::ROOM_LOG, &partition).await, Ok(None));
    store.append(append("!a", 0, None, fence(1, 10))).await.expect("the first append");
    store.append(append("!a", 0, Some(fence(1, 10)), fence(1, 20))).await.expect("the second");
    store.append(append("!a", 0, Some(fence(1, 20)), fence(2, 30))).await.expect("another owner");
    assert_eq!(store.fence(&tables::ROOM_LOG, &partition).await, Ok(Some(fence(2, 30))));
    assert_eq!(positions(store, "!a").await, [10, 20, 30]);
}

async fn a_refused_append_changes_nothing(store: &dyn Store) {
    store.append(append("!a", 0, None, fence(1, 10))).await.expect("the first append");
    for expected in [None, Some(fence(1, 9)), Some(fence(2, 10))] {
        let outcome = store.append(append("!a", 0, expected, fence(3, 99))).await;
        assert_eq!(outcome, Err(StoreError::Fenced(Some(fence(1, 10)))), "the fence that stands is told");
    }
    let absent = store.append(append("!b", 0, Some(fence(1, 1)), fence(1, 2))).await;
    assert_eq!(absent, Err(StoreError::Fenced(None)));
    assert_eq!(positions(store, "!a").await, [10]);
    assert_eq!(positions(store, "!b").await, [0; 0]);
}

async fn a_sealed_bucket_takes_nothing_more(store: &dyn Store) {
    let sealed = Fence { sealed: true, ..fence(1, 10) };
    store.append(append("!a", 0, None, sealed)).await.expect("the sealing append");
    let outcome = store.append(append("!a", 0, Some(sealed), fence(1, 20))).await;
    assert_eq!(outcome, Err(StoreError::Fenced(Some(sealed))));
}

async fn rows_of_a_sealed_bucket_can_be_rewritten(store: &dyn Store) {
    let sealed = Fence { sealed: true, ..fence(1, 10) };
    store.append(append("!a", 0, None, sealed)).await.expect("the sealing append");
    let (partition, clustering) = (key!["!a", 0_u64], key![1_u64, "", 10_u64]);
    let value = Some(Bytes::from_static(b"redacted"));
    let rewrite =
        Mutation { table: &tables::ROOM_LOG, partition: partition.clone(), clustering: clustering.clone(), value };
    store.write(vec![rewrite], Durability::Synced).await.expect("a write");
    let found = store.get(&tables::ROOM_LOG, &partition, &clustering).await.expect("a read");
    assert_eq!(found.as_deref(), Some(&b"redacted"[..]));
    assert_eq!(store.fence(&tables::ROOM_LOG, &partition).await, Ok(Some(sealed)), "the fence stands");
}

async fn effects_come_with_their_append(store: &dyn Store) {
    let with_effect = Append { also: vec![put("!a", ["t", ""], "1")], ..append("!a", 0, None, fence(1, 10)) };
    let outcome = store.append(with_effect.clone()).await;
    let effect = store.get(&tables::ROOM_STATE, &key!["!a"], &key!["t", ""]).await.expect("a read");
    if store.spans_partitions() {
        assert_eq!((outcome, effect.is_some()), (Ok(()), true));
        let refused = Append { also: vec![put("!a", ["t", "k"], "1")], ..with_effect };
        assert!(store.append(refused).await.is_err());
        assert_eq!(store.get(&tables::ROOM_STATE, &key!["!a"], &key!["t", "k"]).await, Ok(None));
    } else {
        assert!(matches!(outcome, Err(StoreError::Misuse(_))));
        assert_eq!(effect, None);
    }
}

async fn a_late_write_changes_nothing_newer(store: &dyn Store) {
    if store.spans_partitions() {
        // Effects go with their append there, and nobody else writes.
        return;
    }
    let now = 1_800_000_000_000_000_u64;
    let value = async || store.get(&tables::ROOM_STATE, &key!["!a"], &key!["t", ""]).await.expect("a read");
    store.write_at(vec![put("!a", ["t", ""], "new")], Position(now + 2)).await.expect("a write");
    store.write_at(vec![put("!a", ["t", ""], "old")], Position(now + 1)).await.expect("a late write");
    assert_eq!(value().await.as_deref(), Some(&b"new"[..]), "the higher position stands");
    let delete = Mutation { value: None, ..put("!a", ["t", ""], "") };
    store.write_at(vec![delete], Position(now + 3)).await.expect("a delete");
    store.write_at(vec![put("!a", ["t", ""], "new")], Position(now + 2)).await.expect("the same again");
    assert_eq!(value().await, None, "a deletion stands too");
}

async fn one_of_many_appends_wins(store: Arc<dyn Store>) {
    let tries = (1..=20).map(|epoch| store.append(append("!a", 0, None, fence(epoch, epoch))));
    let won = join_all(tries).await.into_iter().filter(Result::is_ok).count();
    assert_eq!((won, positions(&*store, "!a").await.len()), (1, 1));
}

async fn logs_side_by_side_do_not_disturb_each_other(store: Arc<dyn Store>) {
    let rooms: Vec<String> = (0..50).map(|number| format!("!room{number}")).collect();
    let writers = rooms.iter().map(|room| {
        let store = Arc::clone(&store);
        async move {
            let mut expected = None;
            for last in 1..=10 {
                store.append(append(room, 0, expected, fence(1, last))).await.expect("an append");
                expected = Some(fence(1, last));
            }
        }
    });
    join_all(writers).await;
    for room in &rooms {
        assert_eq!(positions(&*store, room).await, (1..=10).collect::<Vec<u64>>());
    }
}

async fn compare_and_set_compares(store: Arc<dyn Store>) {
    let value = |text: &'static str| Some(Bytes::from_static(text.as_bytes()));
    let name = key!["#a:x"];
    let set = async |expected: Option<Bytes>, new: Option<Bytes>| {
        store.compare_and_set(&tables::ALIASES, &name, &Key::EMPTY, expected, new).await.expect("an answer")
    };
    let racers = (0..20).map(|_| set(None, value("one")));
    let won = join_all(racers).await.into_iter().filter(|outcome| *outcome == CasOutcome::Applied).count();
    assert_eq!(won, 1);
    assert_eq!(set(value("other"), value("two")).await, CasOutcome::Found(value("one")));
    assert_eq!(set(value("one"), value("two")).await, CasOutcome::Applied);
    assert_eq!(store.get(&tables::ALIASES, &name, &Key::EMPTY).await, Ok(value("two")));
    assert_eq!(set(value("two"), None).await, CasOutcome::Applied);
    assert_eq!(set(value("two"), value("x")).await, CasOutcome::Found(None));
}

async fn rows_of_a_partition_are_set_together_or_not_at_all(store: Arc<dyn Store>) {
    let slice = key![7_u64];
    let bytes = |text: &'static str| Bytes::from_static(text.as_bytes());
    let swap = |row: u64, expected: Option<&'static str>, new| Swap {
        clustering: key![row],
        expected: expected.map(bytes),
        new: bytes(new),
    };
    let set = async |swaps| store.compare_and_set_all(&tables::SHARDS, &slice, swaps).await;
    let rows = async || {
        let scan = Scan::new(&tables::SHARDS, slice.clone(), Key::EMPTY, usize::MAX);
        let rows = store.scan(scan).await.expect("rows");
        rows.into_iter().map(|row| (row.clustering.number(0), row.value)).collect::<Vec<_>>()
    };
    let racers = (0..20).map(|_| set(vec![swap(1, None, "a"), swap(2, None, "b")]));
    let won = join_all(racers).await.into_iter().filter(|outcome| *outcome == Ok(true)).count();
    assert_eq!(won, 1);
    // What stands and what is new go together.
    assert_eq!(set(vec![swap(2, Some("b"), "c"), swap(3, None, "d")]).await, Ok(true));
    assert_eq!(set(vec![swap(1, Some("a"), "x"), swap(2, Some("b"), "x")]).await, Ok(false));
    assert_eq!(set(vec![swap(1, Some("a"), "x"), swap(3, None, "x")]).await, Ok(false));
    assert_eq!(rows().await, [(1, bytes("a")), (2, bytes("c")), (3, bytes("d"))]);
    // Others set other rows of the partition at the same time.
    let others = (10..26).map(|row| set(vec![swap(row, None, "e"), swap(row + 100, None, "e")]));
    assert!(join_all(others).await.into_iter().all(|outcome| outcome == Ok(true)));
    assert_eq!(rows().await.len(), 35);
    for wrong in [vec![], vec![swap(1, Some("a"), "x"), swap(1, Some("a"), "y")]] {
        assert!(matches!(set(wrong).await, Err(StoreError::Misuse(_))));
    }
}

async fn misuse_is_refused(store: &dyn Store) {
    let wrong_columns = store.get(&tables::ROOM_STATE, &key!["!a"], &key![1_u64]).await;
    assert!(matches!(wrong_columns, Err(StoreError::Misuse(_))));
    let conditional = Mutation { table: &tables::ALIASES, partition: key!["#a"], clustering: Key::EMPTY, value: None };
    assert!(matches!(store.write(vec![conditional], Durability::Synced).await, Err(StoreError::Misuse(_))));
    let plain = store.compare_and_set(&tables::ROOM_STATE, &key!["!a"], &key!["t", ""], None, None).await;
    assert!(matches!(plain, Err(StoreError::Misuse(_))));
}

async fn logs_are_read_across_buckets(store: Arc<dyn Store>) {
    let entity = EntityId::new(EntityKind::Room, "!a");
    for (bucket, range) in [(0, 1..=4), (1, 5..=8), (2, 9..=10)] {
        let mut expected = None;
        for last in range.clone() {
            store.append(append("!a", bucket, expected, fence(1, last))).await.expect("an append");
            expected = Some(fence(1, last));
        }
        if bucket > 0 {
            announce(&*store, bucket, *range.start()).await;
        }
    }
    let reader = LogReader::new(Arc::clone(&store));
    let log = LogKey { entity, class: 1, sub: "".into() };
    let read = async |after: u64, up_to: u64, direction, limit| -> Vec<u64> {
        let range = RangeRead { after: Position(after), up_to: Position(up_to), direction, limit };
        reader.read(&log, range).await.expect("a read").iter().map(|row| row.position.0).collect()
    };
    assert_eq!(read(0, u64::MAX, Direction::Forward, 99).await, (1..=10).collect::<Vec<u64>>());
    assert_eq!(read(3, 9, Direction::Forward, 99).await, [4, 5, 6, 7, 8, 9]);
    assert_eq!(read(3, 9, Direction::Backward, 4).await, [9, 8, 7, 6]);
    assert_eq!(read(4, 4, Direction::Forward, 4).await, [0; 0]);
    for position in 1..=10 {
        assert!(reader.get(&log, Position(position)).await.expect("a read").is_some());
    }
    assert_eq!(reader.get(&log, Position(11)).await, Ok(None));
    // A bucket that begins after a reader has looked is found all the same.
    let before = store.buckets_begun();
    announce(&*store, 3, 11).await;
    assert!(before.is_none() || store.buckets_begun() > before, "a bucket that is begun counts");
    store.append(append("!a", 3, None, fence(1, 11))).await.expect("an append");
    assert_eq!(read(8, u64::MAX, Direction::Backward, 99).await, [11, 10, 9]);
    assert!(reader.get(&log, Position(11)).await.expect("a read").is_some());
}

async fn announce(store: &dyn Store, bucket: u64, start: u64) {
    let start = Mutation {
        table: &tables::LOG_BUCKETS,
        partition: key!["room", "!a"],
        clustering: key![bucket],
        value: Some(record::encode(&start).expect("a record")),
    };
    store.write(vec![start], Durability::Synced).await.expect("a write");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelStore;

    #[tokio::test]
    async fn the_model_store_keeps_the_contract() {
        for spans_partitions in [true, false] {
            all(async || Arc::new(ModelStore::new(1, spans_partitions)) as Arc<dyn Store>).await;
        }
    }
}
