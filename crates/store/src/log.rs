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
    /// A bucket's start never changes, but there may be newer buckets than remembered: a read that reaches the newest remembered
    /// one asks again, unless the store knows that no log has begun one.
    known: Arc<Mutex<HashMap<EntityId, Known>>>,
}

/// The buckets of a log.
#[derive(Clone, Debug)]
struct Known {
    /// First positions of the buckets 1, 2, …
    starts: Arc<[Position]>,
    /// [`Store::buckets_begun`] before they were read.
    begun: Option<u64>,
}

impl LogReader {
    /// A reader of the logs in `store`.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, known: Arc::default() }
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
        if range.after >= range.up_to || range.limit == 0 {
            return Ok(Vec::new());
        }
        loop {
            let Known { starts, begun } = self.known(&log.entity).await?;
            if bucket_of(&starts, range.up_to) < starts.len() as u64 || begun.is_some() {
                return self.read_buckets(log, range, &starts).await;
            }
            // A bucket is announced before anything stands in it: if there is no newer one now, all there was when this read
            // began is in those that are known.
            let (rows, newer) =
                futures::future::join(self.read_buckets(log, range, &starts), self.has_newer(&log.entity, &starts))
                    .await;
            if !newer? {
                return rows;
            }
            self.forget(&log.entity);
        }
    }

    async fn read_buckets(&self, log: &LogKey, range: RangeRead, starts: &[Position]) -> StoreResult<Vec<LogRow>> {
        let mut rows = Vec::new();
        let first = bucket_of(starts, range.after.next());
        let last = bucket_of(starts, range.up_to);
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
        loop {
            let Known { starts, begun } = self.known(&log.entity).await?;
            let bucket = bucket_of(&starts, position);
            let partition = LogKey::partition(&log.entity, bucket);
            let clustering = LogKey::clustering(log.class, &log.sub, position);
            let found = self.store.get(LogKey::table(log.entity.kind()), &partition, &clustering).await?;
            let is_newest = bucket == starts.len() as u64;
            if found.is_some() || !is_newest || begun.is_some() || !self.has_newer(&log.entity, &starts).await? {
                return Ok(found);
            }
            self.forget(&log.entity);
        }
    }

    /// Whether the log has a bucket after the newest in `starts`.
    async fn has_newer(&self, entity: &EntityId, starts: &[Position]) -> StoreResult<bool> {
        let partition = key![entity.kind().as_str(), entity];
        let next = key![starts.len() as u64 + 1];
        Ok(self.store.get(&tables::LOG_BUCKETS, &partition, &next).await?.is_some())
    }

    /// The first positions of the buckets 1, 2, … of a log, as they stand in the store.
    ///
    /// # Errors
    /// Those of [`Store::scan`].
    pub async fn stored_starts(&self, entity: &EntityId) -> StoreResult<Vec<Position>> {
        let partition = key![entity.kind().as_str(), entity];
        let rows = self.store.scan(Scan::new(&tables::LOG_BUCKETS, partition, Key::EMPTY, usize::MAX)).await?;
        rows.iter().map(|row| crate::record::decode::<u64>(&row.value).map(Position)).collect()
    }

    fn forget(&self, entity: &EntityId) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(entity);
    }

    /// The buckets, as far as they are known; where the store counts them, as they are.
    async fn known(&self, entity: &EntityId) -> StoreResult<Known> {
        // Before the rows are read: what begins meanwhile counts as not read.
        let begun = self.store.buckets_begun();
        if let Some(known) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(entity)
            && known.begun == begun
        {
            return Ok(known.clone());
        }
        let known = Known { starts: self.stored_starts(entity).await?.into(), begun };
        let mut lists = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if lists.len() >= BUCKET_LISTS_MAX {
            lists.clear();
        }
        lists.insert(entity.clone(), known.clone());
        Ok(known)
    }
}

/// The bucket in which a record at `position` would stand.
pub fn bucket_of(starts: &[Position], position: Position) -> u64 {
    starts.partition_point(|start| *start <= position) as u64
}
