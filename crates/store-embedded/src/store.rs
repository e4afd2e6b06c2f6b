//! The store itself.

use std::{
    fmt,
    ops::Bound,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
};

use async_trait::async_trait;
use bytes::Bytes;
use cofactor_store::{
    Append, CasOutcome, Direction, Durability, Fence, Key, Mutation, Row, Scan, Store, StoreResult, Swap, Table,
    TableKind,
    model::{check, check_append, check_mutation, check_swaps},
};
use cofactor_types::Position;
use fjall::{Database, Keyspace, KeyspaceCreateOptions};
use serde::{Deserialize, Serialize};

use crate::{
    committer::{Committer, Request, Spaces, buckets_in, get, read_error, stage},
    folder::{Folder, OpenError},
    keys,
};

/// What an operator may choose. Whether to sync is not among it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Memory for blocks read from disk, in MiB.
    pub cache_mib: u64,
    /// Memory for recent writes of each of the three keyspaces before they go to disk, in MiB.
    pub write_buffer_mib: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { cache_mib: 32, write_buffer_mib: 16 }
    }
}

/// The embedded store. Clones are the same store.
#[derive(Clone)]
pub struct EmbeddedStore {
    inner: Arc<Inner>,
}

struct Inner {
    // Fields drop in this order: the committer finishes before the folder is let go.
    committer: Committer,
    spaces: Spaces,
    path: PathBuf,
    _folder: Folder,
}

impl fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedStore").field("path", &self.inner.path).finish_non_exhaustive()
    }
}

impl EmbeddedStore {
    /// Opens the store in the folder `path`, making it if it is not there.
    ///
    /// # Errors
    /// One sentence that says what to do; nothing is changed.
    pub fn open(path: &Path, options: &Options) -> Result<Self, OpenError> {
        let folder = Folder::take(path)?;
        let database_error =
            |error: fjall::Error| OpenError::Database { path: path.to_owned(), message: error.to_string() };
        let database = Database::builder(folder.database()).cache_size(options.cache_mib << 20).worker_threads(1);
        let database = database.open().map_err(database_error)?;
        let space = |name: &str| -> Result<Keyspace, OpenError> {
            let create = || KeyspaceCreateOptions::default().max_memtable_size(options.write_buffer_mib << 20);
            database.keyspace(name, create).map_err(database_error)
        };
        let spaces = Spaces {
            logs: space("logs")?,
            plain: space("plain")?,
            conditional: space("conditional")?,
            buckets: Arc::default(),
            database: database.clone(),
        };
        let committer =
            Committer::start(spaces.clone()).map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
        Ok(Self { inner: Arc::new(Inner { committer, spaces, path: path.to_owned(), _folder: folder }) })
    }

    fn space(&self, table: &Table) -> &Keyspace {
        match table.kind {
            TableKind::Log => &self.inner.spaces.logs,
            TableKind::Plain => &self.inner.spaces.plain,
            TableKind::Conditional => &self.inner.spaces.conditional,
        }
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn get(&self, table: &'static Table, partition: &Key, clustering: &Key) -> StoreResult<Option<Bytes>> {
        check(table, None, partition, clustering)?;
        get(self.space(table), &keys::row(table, partition, clustering))
    }

    async fn scan(&self, scan: Scan) -> StoreResult<Vec<Row>> {
        let prefix = keys::row(scan.table, &scan.partition, &scan.prefix);
        let skip = prefix.len();
        let upper = match (&scan.up_to, keys::after_prefix(&prefix)) {
            (Some(up_to), end) => {
                let up_to = keys::row(scan.table, &scan.partition, up_to);
                match end {
                    Some(end) if end <= up_to => Bound::Excluded(end),
                    _ => Bound::Included(up_to),
                }
            }
            (None, Some(end)) => Bound::Excluded(end),
            (None, None) => Bound::Unbounded,
        };
        let lower = match &scan.after {
            Some(after) if *after >= scan.prefix => Bound::Excluded(keys::row(scan.table, &scan.partition, after)),
            _ => Bound::Included(prefix),
        };
        if is_empty(&lower, &upper) {
            return Ok(Vec::new());
        }
        let rows = self.space(scan.table).range((lower, upper));
        let decode = |guard: fjall::Guard| {
            let (key, value) = guard.into_inner().map_err(|error| read_error(&error))?;
            let clustering = keys::clustering(scan.table.clustering, &scan.prefix, &key, skip)?;
            Ok(Row { clustering, value: Bytes::copy_from_slice(&value) })
        };
        match scan.direction {
            Direction::Forward => rows.take(scan.limit).map(decode).collect(),
            Direction::Backward => rows.rev().take(scan.limit).map(decode).collect(),
        }
    }

    async fn write(&self, batch: Vec<Mutation>, durability: Durability) -> StoreResult<()> {
        batch.iter().try_for_each(check_mutation)?;
        if batch.is_empty() {
            return Ok(());
        }
        match durability {
            Durability::Synced => self.inner.committer.ask(|reply| Request::Write(batch, reply)).await,
            Durability::Deferred => {
                // The journal keeps the order of writes, so the next sync makes this durable too.
                let buckets = buckets_in(&batch);
                let mut staged = self.inner.spaces.database.batch();
                stage(&self.inner.spaces, batch, &mut staged);
                let outcome = staged.commit();
                self.inner.spaces.buckets.fetch_add(buckets, Ordering::Release);
                outcome.map_err(|error| cofactor_store::StoreError::Unknown(error.to_string()))
            }
        }
    }

    async fn write_at(&self, batch: Vec<Mutation>, _position: Position) -> StoreResult<()> {
        // Nobody else can have the folder open, so nobody's write comes late.
        self.write(batch, Durability::Synced).await
    }

    async fn append(&self, append: Append) -> StoreResult<()> {
        check_append(&append, true)?;
        self.inner.committer.ask(|reply| Request::Append(Box::new(append), reply)).await
    }

    async fn fence(&self, table: &'static Table, partition: &Key) -> StoreResult<Option<Fence>> {
        let key = keys::fence(table, partition);
        self.inner.committer.ask(|reply| Request::Fence(key, reply)).await
    }

    async fn compare_and_set(
        &self,
        table: &'static Table,
        partition: &Key,
        clustering: &Key,
        expected: Option<Bytes>,
        new: Option<Bytes>,
    ) -> StoreResult<CasOutcome> {
        check(table, Some(TableKind::Conditional), partition, clustering)?;
        let key = keys::row(table, partition, clustering);
        self.inner.committer.ask(|reply| Request::CompareAndSet { key, expected, new, reply }).await
    }

    async fn compare_and_set_all(&self, table: &'static Table, partition: &Key, swaps: Vec<Swap>) -> StoreResult<bool> {
        check_swaps(table, partition, &swaps)?;
        let keyed = |swap: Swap| (keys::row(table, partition, &swap.clustering), swap.expected, swap.new);
        let swaps = swaps.into_iter().map(keyed).collect();
        self.inner.committer.ask(|reply| Request::CompareAndSetAll { swaps, reply }).await
    }

    fn spans_partitions(&self) -> bool {
        true
    }

    fn buckets_begun(&self) -> Option<u64> {
        Some(self.inner.spaces.buckets.load(Ordering::Acquire))
    }

    async fn close(&self) -> StoreResult<()> {
        // A synced write of nothing else than the order of the journal: everything before it is durable after it.
        self.inner.committer.ask(|reply| Request::Write(Vec::new(), reply)).await?;
        let persisted = self.inner.spaces.database.persist(fjall::PersistMode::SyncAll);
        persisted.map_err(|error| cofactor_store::StoreError::Unknown(error.to_string()))
    }
}

/// A range whose bounds cross is empty; the database below would call it a mistake.
fn is_empty(lower: &Bound<Vec<u8>>, upper: &Bound<Vec<u8>>) -> bool {
    match (lower, upper) {
        (Bound::Included(lower), Bound::Included(upper)) => lower > upper,
        (Bound::Included(lower) | Bound::Excluded(lower), Bound::Excluded(upper))
        | (Bound::Excluded(lower), Bound::Included(upper)) => lower >= upper,
        _ => false,
    }
}
