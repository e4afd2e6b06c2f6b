//! The embedded store keeps the contract of all stores, and its folder to itself.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use cofactor_store::{Append, Fence, Scan, Store, conformance, key, tables};
use cofactor_store_embedded::{EmbeddedStore, OpenError, Options};
use cofactor_types::{Epoch, Position};

#[tokio::test]
async fn the_embedded_store_keeps_the_contract() {
    let folders = Mutex::new(Vec::new());
    conformance::all(async || {
        let folder = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(folder.path(), &Options::default()).unwrap();
        folders.lock().unwrap().push(folder);
        Arc::new(store) as Arc<dyn Store>
    })
    .await;
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_opening_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut expected = None;
    for round in 0..5_u64 {
        let store = EmbeddedStore::open(folder.path(), &Options::default()).unwrap();
        assert_eq!(store.fence(&tables::ROOM_LOG, &key!["!a", 0_u64]).await, Ok(expected));
        for last in round * 10 + 1..=round * 10 + 10 {
            let fence = Fence { epoch: Epoch(round), last: Position(last), batch: u128::from(last), sealed: false };
            let rows = vec![(key![1_u64, "", last], Some(Bytes::from_static(b"x")))];
            let partition = key!["!a", 0_u64];
            let append = Append { table: &tables::ROOM_LOG, partition, expected, fence, rows, also: Vec::new() };
            store.append(append).await.unwrap();
            expected = Some(fence);
        }
    }
    let store = EmbeddedStore::open(folder.path(), &Options::default()).unwrap();
    let rows = store.scan(Scan::new(&tables::ROOM_LOG, key!["!a", 0_u64], key![1_u64], usize::MAX)).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.clustering.number(2)).collect::<Vec<_>>(), (1..=50).collect::<Vec<u64>>());
}

#[test]
fn a_folder_that_is_in_use_foreign_or_too_new_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let first = EmbeddedStore::open(folder.path(), &Options::default()).unwrap();
    assert!(matches!(EmbeddedStore::open(folder.path(), &Options::default()), Err(OpenError::Locked(_))));
    drop(first);
    drop(EmbeddedStore::open(folder.path(), &Options::default()).unwrap());

    std::fs::write(folder.path().join("FORMAT"), "cofactor 999\n").unwrap();
    assert!(matches!(EmbeddedStore::open(folder.path(), &Options::default()), Err(OpenError::TooNew { .. })));

    let foreign = tempfile::tempdir().unwrap();
    std::fs::write(foreign.path().join("thesis.txt"), "years of work").unwrap();
    assert!(matches!(EmbeddedStore::open(foreign.path(), &Options::default()), Err(OpenError::Foreign(_))));
    assert_eq!(std::fs::read_dir(foreign.path()).unwrap().count(), 1);
}
