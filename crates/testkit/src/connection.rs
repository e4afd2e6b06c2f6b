//! A node's connection to the store.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use cofactor_entity::Planted;
use cofactor_store::{
    Append, CasOutcome, Durability, Fence, Key, Mutation, Row, Scan, Store, StoreError, StoreResult, Swap, Table,
    model::ModelStore,
};
use cofactor_types::Position;

use crate::life::Life;

/// How long a node waits for a store that does not answer.
const PATIENCE: Duration = Duration::from_millis(400);

/// What is wrong with the way between a node and the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Nothing.
    #[default]
    Whole,
    /// Connections are refused: nothing happens, and that is known.
    Refused,
    /// What the node asks is lost.
    Requests,
    /// What the store answers is lost.
    Answers,
}

/// A node's connection to the store; a paused node's calls wait, a dead node's never come back and begin nothing.
#[derive(Clone)]
pub(crate) struct Connection {
    store: ModelStore,
    life: Life,
    cut: Arc<Mutex<Cut>>,
    planted: Planted,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connection")
    }
}

impl Connection {
    pub(crate) fn new(store: &ModelStore, life: &Life, planted: Planted) -> Self {
        Self { store: store.clone(), life: life.clone(), cut: Arc::default(), planted }
    }

    /// Breaks or mends the way to the store.
    pub(crate) fn cut(&self, cut: Cut) {
        *self.cut.lock().unwrap_or_else(PoisonError::into_inner) = cut;
    }

    fn is_cut(&self) -> Cut {
        *self.cut.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read<T>(&self, ask: impl Future<Output = StoreResult<T>>) -> StoreResult<T> {
        self.life.gate().await;
        let answer = match self.is_cut() {
            Cut::Whole => ask.await,
            Cut::Refused => Err(StoreError::Unavailable("refused".into())),
            Cut::Requests | Cut::Answers => {
                tokio::time::sleep(PATIENCE).await;
                Err(StoreError::Unavailable("no answer".into()))
            }
        };
        self.life.gate().await;
        answer
    }

    async fn write<T>(&self, ask: impl Future<Output = StoreResult<T>>) -> StoreResult<T> {
        self.life.gate().await;
        let answer = match self.is_cut() {
            Cut::Whole => ask.await,
            Cut::Refused => Err(StoreError::Unavailable("refused".into())),
            cut => {
                if cut == Cut::Answers {
                    let _ = ask.await;
                }
                tokio::time::sleep(PATIENCE).await;
                Err(StoreError::Unknown("no answer".into()))
            }
        };
        self.life.gate().await;
        answer
    }
}

#[async_trait]
impl Store for Connection {
    async fn get(&self, table: &'static Table, partition: &Key, clustering: &Key) -> StoreResult<Option<Bytes>> {
        self.read(self.store.get(table, partition, clustering)).await
    }

    async fn scan(&self, scan: Scan) -> StoreResult<Vec<Row>> {
        self.read(self.store.scan(scan)).await
    }

    async fn write(&self, batch: Vec<Mutation>, durability: Durability) -> StoreResult<()> {
        self.write(self.store.write(batch, durability)).await
    }

    async fn write_at(&self, batch: Vec<Mutation>, position: Position) -> StoreResult<()> {
        self.write(self.store.write_at(batch, position)).await
    }

    async fn append(&self, mut append: Append) -> StoreResult<()> {
        let ask = async {
            if self.planted == Planted::NoFence {
                append.expected = self.store.fence(append.table, &append.partition).await?;
            }
            self.store.append(append).await
        };
        self.write(ask).await
    }

    async fn fence(&self, table: &'static Table, partition: &Key) -> StoreResult<Option<Fence>> {
        self.read(self.store.fence(table, partition)).await
    }

    async fn compare_and_set(
        &self,
        table: &'static Table,
        partition: &Key,
        clustering: &Key,
        expected: Option<Bytes>,
        new: Option<Bytes>,
    ) -> StoreResult<CasOutcome> {
        self.write(self.store.compare_and_set(table, partition, clustering, expected, new)).await
    }

    async fn compare_and_set_all(&self, table: &'static Table, partition: &Key, swaps: Vec<Swap>) -> StoreResult<bool> {
        self.write(self.store.compare_and_set_all(table, partition, swaps)).await
    }

    fn spans_partitions(&self) -> bool {
        self.store.spans_partitions()
    }

    fn buckets_begun(&self) -> Option<u64> {
        self.store.buckets_begun()
    }

    async fn close(&self) -> StoreResult<()> {
        Ok(())
    }
}
