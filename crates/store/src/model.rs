//! A store in memory whose faults a test chooses.
//!
//! It keeps the whole contract of [`Store`], the unknown outcome included: a faulty append may be applied, not applied,
//! or applied later, when its writer has long moved on. All choices come from one seed, and time from tokio, so that a
//! simulation under a paused clock gives the same trace for the same seed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use cofactor_types::Position;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    Append, CasOutcome, Direction, Durability, Fence, Key, Mutation, Row, Scan, Store, StoreError, StoreResult, Swap,
    Table, TableKind, tables,
};

/// How often calls go wrong, in parts of a thousand, and how long they take.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Calls that fail with [`StoreError::Unavailable`]: nothing happens.
    pub unavailable_permille: u16,
    /// Writes that fail with [`StoreError::Unknown`] although they are applied.
    pub unknown_applied_permille: u16,
    /// Writes that fail with [`StoreError::Unknown`] and are not applied.
    pub unknown_lost_permille: u16,
    /// Writes that fail with [`StoreError::Unknown`] and are applied after up to `late_ms_max`.
    pub unknown_late_permille: u16,
    /// The longest delay of a late write, in milliseconds.
    pub late_ms_max: u64,
    /// The longest a call takes, in microseconds; zero answers at once.
    pub latency_us_max: u64,
}

#[derive(Default)]
struct Partition {
    rows: BTreeMap<Key, Bytes>,
    /// As of which position rows were written or deleted, for those written so.
    as_of: BTreeMap<Key, Position>,
    fence: Option<Fence>,
}

type Data = BTreeMap<(u8, Key), Partition>;

type Observer = Box<dyn Fn(&Append) + Send>;

struct State {
    observer: Option<Observer>,
    data: Data,
    faults: Faults,
    rng: StdRng,
    appends: u64,
    buckets_begun: u64,
    /// By the id of the table.
    reads: BTreeMap<u8, u64>,
}

/// The store. Clones share their data, as the clients of one server do.
#[derive(Clone)]
pub struct ModelStore {
    state: Arc<Mutex<State>>,
    spans_partitions: bool,
}

impl fmt::Debug for ModelStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelStore").field("spans_partitions", &self.spans_partitions).finish_non_exhaustive()
    }
}

enum Fate {
    Applied,
    UnknownApplied,
    UnknownLost,
    UnknownLate(Duration),
}

impl ModelStore {
    /// An empty store without faults. `spans_partitions` says which of the two kinds of stores it models.
    pub fn new(seed: u64, spans_partitions: bool) -> Self {
        let state = State {
            observer: None,
            data: Data::new(),
            faults: Faults::default(),
            rng: StdRng::seed_from_u64(seed),
            appends: 0,
            buckets_begun: 0,
            reads: BTreeMap::new(),
        };
        Self { state: Arc::new(Mutex::new(state)), spans_partitions }
    }

    /// Sets the faults from here on.
    pub fn set_faults(&self, faults: Faults) {
        self.lock().faults = faults;
    }

    /// Shows every append to `observer` at the moment in which it is applied. The observer must not ask the store.
    pub fn observe(&self, observer: impl Fn(&Append) + Send + 'static) {
        self.lock().observer = Some(Box::new(observer));
    }

    /// How many appends were applied.
    pub fn appends(&self) -> u64 {
        self.lock().appends
    }

    /// How often a table was read.
    pub fn reads(&self, table: &'static Table) -> u64 {
        self.lock().reads.get(&table.id).copied().unwrap_or_default()
    }

    /// All rows of a table, for checkers.
    pub fn rows(&self, table: &'static Table) -> Vec<(Key, Key, Bytes)> {
        let state = self.lock();
        let partitions = state.data.iter().filter(|((id, _), _)| *id == table.id);
        partitions
            .flat_map(|((_, key), partition)| {
                partition.rows.iter().map(|(clustering, value)| (key.clone(), clustering.clone(), value.clone()))
            })
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits as long as the call takes, and fails it if nothing is to happen.
    async fn call(&self) -> StoreResult<()> {
        let (latency_us, unavailable) = {
            let state = &mut *self.lock();
            let latency_us = match state.faults.latency_us_max {
                0 => 0,
                max => state.rng.random_range(0..=max),
            };
            (latency_us, chance(&mut state.rng, state.faults.unavailable_permille))
        };
        if latency_us > 0 {
            tokio::time::sleep(Duration::from_micros(latency_us)).await;
        }
        if unavailable { Err(StoreError::Unavailable("injected".into())) } else { Ok(()) }
    }

    fn fate(&self) -> Fate {
        let state = &mut *self.lock();
        let faults = state.faults;
        if chance(&mut state.rng, faults.unknown_applied_permille) {
            Fate::UnknownApplied
        } else if chance(&mut state.rng, faults.unknown_lost_permille) {
            Fate::UnknownLost
        } else if chance(&mut state.rng, faults.unknown_late_permille) {
            Fate::UnknownLate(Duration::from_millis(state.rng.random_range(0..=faults.late_ms_max)))
        } else {
            Fate::Applied
        }
    }

    /// Runs `apply` as the fate of a write says.
    async fn written<T>(&self, apply: impl FnOnce(&mut State) -> StoreResult<T> + Send + 'static) -> StoreResult<T> {
        self.call().await?;
        let unknown = || Err(StoreError::Unknown("injected".into()));
        match self.fate() {
            Fate::Applied => apply(&mut self.lock()),
            Fate::UnknownApplied => apply(&mut self.lock()).and_then(|_| unknown()),
            Fate::UnknownLost => unknown(),
            Fate::UnknownLate(delay) => {
                let store = self.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    // Nobody waits for the answer of a late write.
                    let _ = apply(&mut store.lock());
                });
                unknown()
            }
        }
    }
}

fn chance(rng: &mut StdRng, permille: u16) -> bool {
    permille > 0 && rng.random_range(0..1000) < permille
}

impl State {
    fn put(&mut self, table: &'static Table, partition: Key, clustering: Key, value: Option<Bytes>) {
        self.buckets_begun += u64::from(table.id == tables::LOG_BUCKETS.id);
        let rows = &mut self.data.entry((table.id, partition)).or_default().rows;
        match value {
            Some(value) => {
                rows.insert(clustering, value);
            }
            None => {
                rows.remove(&clustering);
            }
        }
    }

    fn mutate(&mut self, batch: Vec<Mutation>) {
        for Mutation { table, partition, clustering, value } in batch {
            self.put(table, partition, clustering, value);
        }
    }

    fn append(&mut self, append: Append) -> StoreResult<()> {
        let partition = self.data.entry((append.table.id, append.partition.clone())).or_default();
        let sealed = partition.fence.is_some_and(|fence| fence.sealed);
        if partition.fence != append.expected || sealed {
            return Err(StoreError::Fenced(partition.fence));
        }
        partition.fence = Some(append.fence);
        if let Some(observer) = &self.observer {
            observer(&append);
        }
        for (clustering, value) in append.rows {
            self.put(append.table, append.partition.clone(), clustering, value);
        }
        self.mutate(append.also);
        self.appends += 1;
        Ok(())
    }
}

/// Whether a key and a kind of write suit a table; every backend asks this before it does anything.
///
/// # Errors
/// [`StoreError::Misuse`] naming the table.
pub fn check(table: &'static Table, kind: Option<TableKind>, partition: &Key, clustering: &Key) -> StoreResult<()> {
    let fits = Table::fits(table.partition, partition, false) && Table::fits(table.clustering, clustering, false);
    if !fits || kind.is_some_and(|kind| kind != table.kind) {
        return Err(StoreError::Misuse(format!("{}: {partition:?} {clustering:?}", table.name)));
    }
    Ok(())
}

/// [`check`] for a whole append.
///
/// # Errors
/// [`StoreError::Misuse`] naming the table.
pub fn check_append(append: &Append, spans_partitions: bool) -> StoreResult<()> {
    for (clustering, _) in &append.rows {
        check(append.table, Some(TableKind::Log), &append.partition, clustering)?;
    }
    if !append.also.is_empty() && !spans_partitions {
        return Err(StoreError::Misuse("this store does not span partitions".into()));
    }
    append.also.iter().try_for_each(check_mutation)
}

/// [`check`] for [`Store::compare_and_set_all`]: rows of a conditional table, each named once.
///
/// # Errors
/// [`StoreError::Misuse`] naming the table.
pub fn check_swaps(table: &'static Table, partition: &Key, swaps: &[Swap]) -> StoreResult<()> {
    let mut rows = BTreeSet::new();
    for swap in swaps {
        check(table, Some(TableKind::Conditional), partition, &swap.clustering)?;
        if !rows.insert(&swap.clustering) {
            return Err(StoreError::Misuse(format!("{}: {:?} twice", table.name, swap.clustering)));
        }
    }
    if rows.is_empty() {
        return Err(StoreError::Misuse(format!("{}: nothing to set", table.name)));
    }
    Ok(())
}

/// [`check`] for a plain write: of a plain table, or of a log, where it may touch rows of a sealed bucket only.
///
/// # Errors
/// [`StoreError::Misuse`] naming the table.
pub fn check_mutation(one: &Mutation) -> StoreResult<()> {
    let kind = (one.table.kind != TableKind::Log).then_some(TableKind::Plain);
    check(one.table, kind, &one.partition, &one.clustering)
}

#[async_trait]
impl Store for ModelStore {
    async fn get(&self, table: &'static Table, partition: &Key, clustering: &Key) -> StoreResult<Option<Bytes>> {
        check(table, None, partition, clustering)?;
        self.call().await?;
        let mut state = self.lock();
        *state.reads.entry(table.id).or_default() += 1;
        let found = state.data.get(&(table.id, partition.clone()));
        Ok(found.and_then(|partition| partition.rows.get(clustering).cloned()))
    }

    async fn scan(&self, scan: Scan) -> StoreResult<Vec<Row>> {
        self.call().await?;
        let mut state = self.lock();
        *state.reads.entry(scan.table.id).or_default() += 1;
        let Some(partition) = state.data.get(&(scan.table.id, scan.partition.clone())) else { return Ok(Vec::new()) };
        let lower = match &scan.after {
            Some(after) if *after >= scan.prefix => Bound::Excluded(after.clone()),
            _ => Bound::Included(scan.prefix.clone()),
        };
        let in_range =
            |key: &&Key| key.starts_with(&scan.prefix) && scan.up_to.as_ref().is_none_or(|up_to| *key <= up_to);
        let keys = partition.rows.range((lower, Bound::Unbounded)).map(|(key, _)| key).take_while(in_range);
        let keys: Vec<&Key> = match scan.direction {
            Direction::Forward => keys.take(scan.limit).collect(),
            Direction::Backward => {
                let mut all: Vec<_> = keys.collect();
                all.reverse();
                all.truncate(scan.limit);
                all
            }
        };
        Ok(keys
            .into_iter()
            .map(|key| Row { clustering: key.clone(), value: partition.rows.get(key).cloned().unwrap_or_default() })
            .collect())
    }

    async fn write(&self, batch: Vec<Mutation>, _durability: Durability) -> StoreResult<()> {
        batch.iter().try_for_each(check_mutation)?;
        self.call().await?;
        // A plain write is idempotent and repeated by its caller, so a late one would overwrite newer data: stores with
        // client timestamps keep it out, and so does this one.
        self.lock().mutate(batch);
        Ok(())
    }

    async fn write_at(&self, batch: Vec<Mutation>, position: Position) -> StoreResult<()> {
        batch.iter().try_for_each(check_mutation)?;
        self.written(move |state| {
            for one in batch {
                let partition = state.data.entry((one.table.id, one.partition.clone())).or_default();
                let known = partition.as_of.entry(one.clustering.clone()).or_default();
                if *known <= position {
                    *known = position;
                    state.put(one.table, one.partition, one.clustering, one.value);
                }
            }
            Ok(())
        })
        .await
    }

    async fn append(&self, append: Append) -> StoreResult<()> {
        check_append(&append, self.spans_partitions)?;
        self.written(move |state| state.append(append)).await
    }

    async fn fence(&self, table: &'static Table, partition: &Key) -> StoreResult<Option<Fence>> {
        self.call().await?;
        Ok(self.lock().data.get(&(table.id, partition.clone())).and_then(|partition| partition.fence))
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
        let (partition, clustering) = (partition.clone(), clustering.clone());
        self.written(move |state| {
            let rows = &mut state.data.entry((table.id, partition)).or_default().rows;
            let found = rows.get(&clustering).cloned();
            if found != expected {
                return Ok(CasOutcome::Found(found));
            }
            match new {
                Some(new) => rows.insert(clustering, new),
                None => rows.remove(&clustering),
            };
            Ok(CasOutcome::Applied)
        })
        .await
    }

    async fn compare_and_set_all(&self, table: &'static Table, partition: &Key, swaps: Vec<Swap>) -> StoreResult<bool> {
        check_swaps(table, partition, &swaps)?;
        let partition = partition.clone();
        self.written(move |state| {
            let rows = &mut state.data.entry((table.id, partition)).or_default().rows;
            let stand = swaps.iter().all(|swap| rows.get(&swap.clustering) == swap.expected.as_ref());
            if stand {
                rows.extend(swaps.into_iter().map(|swap| (swap.clustering, swap.new)));
            }
            Ok(stand)
        })
        .await
    }

    fn spans_partitions(&self) -> bool {
        self.spans_partitions
    }

    fn buckets_begun(&self) -> Option<u64> {
        self.spans_partitions.then(|| self.lock().buckets_begun)
    }

    async fn close(&self) -> StoreResult<()> {
        Ok(())
    }
}
