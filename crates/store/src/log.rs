//! Reading bucketed logs.
//!
//! A log is a run of partitions, its buckets, so that no partition grows without bound. The writer seals a bucket and
//! goes on in the next; the first position of each later bucket stands in [`tables::LOG_BUCKETS`].

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use cofactor_types::{EntityId, EntityKind, Position};

use crate::{Direction, Key, Scan, Store, StoreResult, Table, key, tables};

/// The entities whose bucket list is remembered.
const BUCKET_LISTS_MAX: usize = 10_000;

/// One of the side by side sequences of an entity's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogKey {
    /// The entity.
    pub entity: EntityId,
    /// The class of records.
    pub class: u64,
    /// Which one of them; empty for classes that have but one.
    pub sub: Arc<str>,
}

impl LogKey {
    /// The table of the logs of `kind`.
    pub fn table(kind: EntityKind) -> &'static Table {
        match kind {
            EntityKind::Room => &tables::ROOM_LOG,
            EntityKind::User | EntityKind::Destination => &tables::USER_LOG,
        }
    }

    /// The partition of bucket `bucket` of `entity`.
    pub fn partition(entity: &EntityId, bucket: u64) -> Key {
        key![entity, bucket]
    }

    /// The clustering key of a record.
    pub fn clustering(class: u64, sub: &Arc<str>, position: Position) -> Key {
        key![class, Arc::clone(sub), position]
    }
}

/// A record of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRow {
    /// Where it stands.
    pub position: Position,
    /// What it says.
    pub value: Bytes,
}

/// A read of a sequence: records in `(after, up_to]`.
#[derive(Clone, Copy, Debug)]
pub struct RangeRead {
    /// Exclusive lower bound.
    pub after: Position,
    /// Inclusive upper bound.
    pub up_to: Position,
    /// The order.
    pub direction: Direction,
    /// At most this many.
    pub limit: usize,
}

/// Reads logs across their buckets. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LogReader {
    store: Arc<dyn Store>,
    /// First positions of the buckets 1, 2, … of logs that have more than one. A bucket's start never changes, but there may be newer
    /// buckets than remembered: a read that reaches the newest remembered one asks again.
    starts: Arc<Mutex<HashMap<EntityId, Arc<[Position]>>>>,
}

impl LogReader {
    /// A reader of the logs in `store`.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, starts: Arc::default() }
    }

    /// The store below.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Records of one sequence in `(after, up_to]`.
    ///
    /// # Errors
    /// Those of [`Store::scan`].
    pub async fn read(&self, log: &LogKey, range: RangeRead) -> StoreResult<Vec<LogRow>> {
        let mut rows = Vec::new();
        if range.after >= range.up_to || range.limit == 0 {
            return Ok(rows);
        }
        let starts = self.starts(&log.entity).await?;
        let first = bucket_of(&starts, range.after.next());
        let last = bucket_of(&starts, range.up_to);
        let buckets: Vec<u64> = match range.direction {
            Direction::Forward => (first..=last).collect(),
            Direction::Backward => (first..=last).rev().collect(),
        };
        for bucket in buckets {
            let left = range.limit - rows.len();
            if left == 0 {
                break;
            }
            let prefix = key![log.class, Arc::clone(&log.sub)];
            let scan = Scan {
                table: LogKey::table(log.entity.kind()),
                partition: LogKey::partition(&log.entity, bucket),
                after: Some(prefix.clone().with(range.after)),
                up_to: Some(prefix.clone().with(range.up_to)),
                prefix,
                direction: range.direction,
                limit: left,
            };
            let found = self.store.scan(scan).await?;
            rows.extend(
                found.into_iter().map(|row| LogRow { position: Position(row.clustering.number(2)), value: row.value }),
            );
        }
        Ok(rows)
    }

    /// The record at `position`, if there is one.
    ///
    /// # Errors
    /// Those of [`Store::get`].
    pub async fn get(&self, log: &LogKey, position: Position) -> StoreResult<Option<Bytes>> {
        let starts = self.starts(&log.entity).await?;
        let partition = LogKey::partition(&log.entity, bucket_of(&starts, position));
        let clustering = LogKey::clustering(log.class, &log.sub, position);
        self.store.get(LogKey::table(log.entity.kind()), &partition, &clustering).await
    }

    /// The first positions of the later buckets as far as they are remembered, for the log's own writer.
    pub fn known_starts(&self, entity: &EntityId) -> Arc<[Position]> {
        let starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
        starts.get(entity).cloned().unwrap_or_else(|| Arc::from([]))
    }

    /// Makes [`Self::known_starts`] complete.
    ///
    /// # Errors
    /// Those of [`Store::scan`].
    pub async fn load_starts(&self, entity: &EntityId) -> StoreResult<()> {
        self.starts(entity).await.map(drop)
    }

    /// Forgets what is remembered of `entity`: its log has a new bucket.
    pub fn forget(&self, entity: &EntityId) {
        self.starts.lock().unwrap_or_else(PoisonError::into_inner).remove(entity);
    }

    /// The first positions of the later buckets. A writer in this process keeps them complete; a reader elsewhere must
    /// [`Self::forget`] when it hears of a new bucket.
    async fn starts(&self, entity: &EntityId) -> StoreResult<Arc<[Position]>> {
        if let Some(known) = self.starts.lock().unwrap_or_else(PoisonError::into_inner).get(entity) {
            return Ok(Arc::clone(known));
        }
        let partition = key![entity.kind().as_str(), entity];
        let rows = self.store.scan(Scan::new(&tables::LOG_BUCKETS, partition, Key::EMPTY, usize::MAX)).await?;
        let starts: Arc<[Position]> = rows
            .iter()
            .map(|row| crate::record::decode::<u64>(&row.value).map(Position))
            .collect::<StoreResult<Vec<_>>>()?
            .into();
        let mut lists = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
        if lists.len() >= BUCKET_LISTS_MAX {
            lists.clear();
        }
        lists.insert(entity.clone(), Arc::clone(&starts));
        Ok(starts)
    }
}

/// The bucket in which a record at `position` would stand.
fn bucket_of(starts: &[Position], position: Position) -> u64 {
    starts.partition_point(|start| *start <= position) as u64
}
