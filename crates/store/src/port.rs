//! The contract of a store.

use std::fmt::Debug;

use async_trait::async_trait;
use bytes::Bytes;
use cofactor_types::{Epoch, ErrorClass, Fault, Position};
use serde::{Deserialize, Serialize};

use crate::{Key, Table};

/// The outcome of a call.
pub type StoreResult<T> = Result<T, StoreError>;

/// Why a call did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The store cannot be asked. It is promised that nothing happened.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// No answer came. The write may be there, may come to be there later, or may never be.
    #[error("the store did not answer: {0}")]
    Unknown(String),
    /// The fence of the partition is not what the append expected. Nothing was written; the fence found is inside.
    #[error("another writer has the log")]
    Fenced(Option<Fence>),
    /// A batch or value is larger than the store takes. Nothing was written.
    #[error("too large for the store: {0}")]
    TooLarge(String),
    /// What was read cannot be what was written.
    #[error("the stored data is damaged: {0}")]
    Corrupt(String),
    /// A key that does not fit its table, or a write of the wrong kind: a defect of the caller.
    #[error("wrong use of the store: {0}")]
    Misuse(String),
}

impl StoreError {
    /// The class, for retries.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Unavailable(_) => ErrorClass::Unavailable,
            Self::Unknown(_) => ErrorClass::Unknown,
            Self::Fenced(_) => ErrorClass::NotOwner,
            Self::TooLarge(_) => ErrorClass::Invalid,
            Self::Corrupt(_) | Self::Misuse(_) => ErrorClass::Internal,
        }
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        match error.class() {
            ErrorClass::Invalid => Self::new(ErrorClass::Invalid, "M_TOO_LARGE", error.to_string()),
            class => Self::new(class, "M_UNKNOWN", error.to_string()),
        }
    }
}

/// The guard of a log partition: who wrote last, and how far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    /// The epoch of the last writer.
    pub epoch: Epoch,
    /// The highest position written.
    pub last: Position,
    /// The id of the last batch, by which a writer recognises its own after an unknown outcome.
    pub batch: u128,
    /// Set by the last batch of a bucket: the log goes on in the next bucket, and this one takes nothing more.
    pub sealed: bool,
}

/// A fenced append: all of it or nothing, and only if the partition's fence is the one expected.
#[derive(Clone, Debug)]
pub struct Append {
    /// A table of kind [`crate::TableKind::Log`].
    pub table: &'static Table,
    /// The partition.
    pub partition: Key,
    /// The fence that must stand; `None`: the partition must have none yet.
    pub expected: Option<Fence>,
    /// The fence that will stand.
    pub fence: Fence,
    /// Rows of this partition: clustering key and value, `None` to delete.
    pub rows: Vec<(Key, Option<Bytes>)>,
    /// Writes of plain tables that become visible together with the rows. Only a store whose
    /// [`Store::spans_partitions`] is true takes any.
    pub also: Vec<Mutation>,
}

/// A plain write of one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutation {
    /// A table of kind [`crate::TableKind::Plain`]; or a log, but then only a row of a sealed bucket, which no append can
    /// touch any more (redactions rewrite old events so).
    pub table: &'static Table,
    /// The partition.
    pub partition: Key,
    /// The clustering key.
    pub clustering: Key,
    /// The new value, `None` to delete.
    pub value: Option<Bytes>,
}

/// When a plain write is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// When it will survive the loss of the node.
    Synced,
    /// When it can be read. It is durable no later than the next synced write of this store; use it only for what can
    /// be derived again from a log.
    Deferred,
}

/// The order of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Ascending keys.
    Forward,
    /// Descending keys.
    Backward,
}

/// A read of consecutive rows of one partition.
#[derive(Clone, Debug)]
pub struct Scan {
    /// The table.
    pub table: &'static Table,
    /// The partition.
    pub partition: Key,
    /// Rows whose clustering key starts with these columns.
    pub prefix: Key,
    /// Only rows above this clustering key.
    pub after: Option<Key>,
    /// Only rows at or below this clustering key.
    pub up_to: Option<Key>,
    /// The order.
    pub direction: Direction,
    /// At most this many rows.
    pub limit: usize,
}

impl Scan {
    /// All rows of `partition` that start with `prefix`, ascending, at most `limit`.
    pub fn new(table: &'static Table, partition: Key, prefix: Key, limit: usize) -> Self {
        Self { table, partition, prefix, after: None, up_to: None, direction: Direction::Forward, limit }
    }

    /// Only rows above `after`.
    #[must_use]
    pub fn after(mut self, after: Key) -> Self {
        self.after = Some(after);
        self
    }

    /// Only rows at or below `up_to`.
    #[must_use]
    pub fn up_to(mut self, up_to: Key) -> Self {
        self.up_to = Some(up_to);
        self
    }

    /// Descending.
    #[must_use]
    pub fn backward(mut self) -> Self {
        self.direction = Direction::Backward;
        self
    }
}

/// One row of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The whole clustering key.
    pub clustering: Key,
    /// The value.
    pub value: Bytes,
}

/// The outcome of a compare-and-set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CasOutcome {
    /// It was as expected and is now as asked.
    Applied,
    /// It was not as expected; this is what stands.
    Found(Option<Bytes>),
}

/// One row of [`Store::compare_and_set_all`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swap {
    /// The clustering key.
    pub clustering: Key,
    /// What stands there, `None` if nothing.
    pub expected: Option<Bytes>,
    /// What shall stand there.
    pub new: Bytes,
}

/// A store.
///
/// Reads see every write that was answered before they began. Writes of one call are applied together where they share
/// a partition. A future that is dropped before it answers leaves the write *unknown*.
#[async_trait]
pub trait Store: Debug + Send + Sync + 'static {
    /// The value of one row of a plain or conditional table, or of a log. Of a conditional table it also settles what an
    /// earlier write of unknown outcome came to, as far as it got; where many ask about rows that others set at the same
    /// moment, [`Self::scan`] is the cheaper question.
    async fn get(&self, table: &'static Table, partition: &Key, clustering: &Key) -> StoreResult<Option<Bytes>>;

    /// Consecutive rows of one partition, as the writes that were answered left them.
    async fn scan(&self, scan: Scan) -> StoreResult<Vec<Row>>;

    /// Plain writes. Idempotent: after [`StoreError::Unknown`] or [`StoreError::Unavailable`] the caller may repeat them.
    /// Writes of different partitions may become visible apart, in any order.
    async fn write(&self, batch: Vec<Mutation>, durability: Durability) -> StoreResult<()>;

    /// Plain writes that count as of `position`, whenever they arrive: what was written as of a higher position stands. So a
    /// writer that has lost its log, and does not know yet, overwrites nothing of its successor's. Answered when durable; as
    /// idempotent as [`Self::write`].
    async fn write_at(&self, batch: Vec<Mutation>, position: Position) -> StoreResult<()>;

    /// The fenced append. Answered when durable. Never repeat one after [`StoreError::Unknown`] without asking
    /// [`Self::fence`] first: it may be there, or still on its way, in which case a changed fence keeps it out.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] if the fence is another; all others as their names say.
    async fn append(&self, append: Append) -> StoreResult<()>;

    /// The fence of a log partition, read so that no append answered or under way before can be missed.
    async fn fence(&self, table: &'static Table, partition: &Key) -> StoreResult<Option<Fence>>;

    /// Sets one row of a conditional table if it stands as `expected`. Answered when durable.
    async fn compare_and_set(
        &self,
        table: &'static Table,
        partition: &Key,
        clustering: &Key,
        expected: Option<Bytes>,
        new: Option<Bytes>,
    ) -> StoreResult<CasOutcome>;

    /// Sets several rows of one partition of a conditional table if every one of them stands as expected, or none; says
    /// which. Answered when durable.
    async fn compare_and_set_all(&self, table: &'static Table, partition: &Key, swaps: Vec<Swap>) -> StoreResult<bool>;

    /// Whether [`Append::also`] may carry writes of other partitions, applied atomically with the rows.
    fn spans_partitions(&self) -> bool;

    /// How many rows of [`crate::tables::LOG_BUCKETS`] were written through this store: a count that has not moved says that
    /// no log has begun a bucket meanwhile. It moves when the row can be read and before its writer is answered. `None`: others
    /// write, of whom this process does not know.
    fn buckets_begun(&self) -> Option<u64> {
        None
    }

    /// Makes every deferred write durable and stops the backend's own tasks.
    async fn close(&self) -> StoreResult<()>;
}
