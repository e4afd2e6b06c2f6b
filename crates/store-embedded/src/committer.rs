//! The one thread that writes what must be durable.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
    time::Instant,
};

use bytes::Bytes;
use cofactor_store::{Append, CasOutcome, Fence, Mutation, StoreError, StoreResult, record, tables};
use fjall::{Database, Keyspace, OwnedWriteBatch as WriteBatch, PersistMode};
use tokio::sync::oneshot;

use crate::keys;

/// Requests that may wait; beyond it the store says that it is unavailable.
const WAITING_MAX: usize = 4_096;

/// Requests that go into one batch.
const BATCH_MAX: usize = 1_024;

/// Fences kept in memory. They are all forgotten when there are more; each then costs a read once.
const FENCES_MAX: usize = 100_000;

/// The database and its three keyspaces, one for each kind of table.
#[derive(Clone)]
pub(crate) struct Spaces {
    pub(crate) database: Database,
    pub(crate) logs: Keyspace,
    pub(crate) plain: Keyspace,
    pub(crate) conditional: Keyspace,
    /// Rows of the list of buckets that can be read.
    pub(crate) buckets: Arc<AtomicU64>,
}

type Reply<T> = oneshot::Sender<StoreResult<T>>;

/// What the committer is asked.
pub(crate) enum Request {
    Append(Box<Append>, Reply<()>),
    Write(Vec<Mutation>, Reply<()>),
    CompareAndSet { key: Vec<u8>, expected: Option<Bytes>, new: Option<Bytes>, reply: Reply<CasOutcome> },
    CompareAndSetAll { swaps: Vec<KeyedSwap>, reply: Reply<bool> },
    Fence(Vec<u8>, Reply<Option<Fence>>),
}

/// A row's key, what is expected there, and what shall stand there.
type KeyedSwap = (Vec<u8>, Option<Bytes>, Bytes);

/// The way to the committer.
#[derive(Debug)]
pub(crate) struct Committer {
    queue: Option<SyncSender<Request>>,
    thread: Option<JoinHandle<()>>,
}

impl Committer {
    pub(crate) fn start(spaces: Spaces) -> std::io::Result<Self> {
        let (queue, requests) = sync_channel(WAITING_MAX);
        let run = move || Work { spaces, fences: HashMap::new() }.run(&requests);
        let thread = std::thread::Builder::new().name("committer".into()).spawn(run)?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    /// Asks, and waits for the answer.
    pub(crate) async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> StoreResult<T> {
        let (reply, answer) = oneshot::channel();
        let queue = self.queue.as_ref().ok_or_else(|| StoreError::Unavailable("the store is closed".into()))?;
        match queue.try_send(request(reply)) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(StoreError::Unavailable("too many writes wait".into())),
            Err(TrySendError::Disconnected(_)) => return Err(StoreError::Unavailable("the store is closed".into())),
        }
        answer.await.unwrap_or_else(|_| Err(StoreError::Unknown("the committer stopped".into())))
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        // The thread finishes what waits and ends when the queue is gone.
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Answers to give when the batch is durable.
type Answers = Vec<Box<dyn FnOnce() + Send>>;

struct Work {
    spaces: Spaces,
    /// What stands, or will stand with the batch under way: only this thread changes fences.
    fences: HashMap<Vec<u8>, Option<Fence>>,
}

/// The batch under way.
struct Group {
    batch: WriteBatch,
    answers: Answers,
    /// Conditional rows as they will stand with this batch.
    rows: HashMap<Vec<u8>, Option<Bytes>>,
    writes: bool,
    /// Rows of the list of buckets.
    buckets: u64,
}

impl Work {
    fn run(mut self, requests: &Receiver<Request>) {
        while let Ok(first) = requests.recv() {
            let mut group = Group {
                batch: self.spaces.database.batch(),
                answers: Vec::new(),
                rows: HashMap::new(),
                writes: false,
                buckets: 0,
            };
            self.take(first, &mut group);
            let mut size = 1;
            while size < BATCH_MAX
                && let Ok(next) = requests.try_recv()
            {
                self.take(next, &mut group);
                size += 1;
            }
            if group.writes {
                commit(group.batch, size);
                self.spaces.buckets.fetch_add(group.buckets, Ordering::Release);
            }
            group.answers.into_iter().for_each(|answer| answer());
            if self.fences.len() > FENCES_MAX {
                self.fences.clear();
            }
        }
        if let Err(error) = self.spaces.database.persist(PersistMode::SyncAll) {
            die(&error);
        }
    }

    fn take(&mut self, request: Request, group: &mut Group) {
        match request {
            Request::Append(append, reply) => {
                let outcome = self.append(*append, group);
                group.answer(reply, outcome);
            }
            Request::Write(mutations, reply) => {
                self.mutate(mutations, group);
                group.answer(reply, Ok(()));
            }
            Request::CompareAndSet { key, expected, new, reply } => {
                let outcome = self.compare_and_set(key, &expected, new, group);
                group.answer(reply, outcome);
            }
            Request::CompareAndSetAll { swaps, reply } => {
                let outcome = self.compare_and_set_all(swaps, group);
                group.answer(reply, outcome);
            }
            Request::Fence(key, reply) => {
                let outcome = self.fence(&key);
                group.answer(reply, outcome);
            }
        }
    }

    fn append(&mut self, append: Append, group: &mut Group) -> StoreResult<()> {
        let key = keys::fence(append.table, &append.partition);
        let found = self.fence(&key)?;
        if found != append.expected || found.is_some_and(|fence| fence.sealed) {
            return Err(StoreError::Fenced(found));
        }
        let fence = record::encode(&append.fence)?;
        group.batch.insert(&self.spaces.logs, key.clone(), &*fence);
        for (clustering, value) in append.rows {
            let row = keys::row(append.table, &append.partition, &clustering);
            match value {
                Some(value) => group.batch.insert(&self.spaces.logs, row, &*value),
                None => group.batch.remove(&self.spaces.logs, row),
            }
        }
        self.mutate(append.also, group);
        self.fences.insert(key, Some(append.fence));
        group.writes = true;
        Ok(())
    }

    fn mutate(&self, mutations: Vec<Mutation>, group: &mut Group) {
        group.writes |= !mutations.is_empty();
        group.buckets += buckets_in(&mutations);
        stage(&self.spaces, mutations, &mut group.batch);
    }

    fn compare_and_set(
        &self,
        key: Vec<u8>,
        expected: &Option<Bytes>,
        new: Option<Bytes>,
        group: &mut Group,
    ) -> StoreResult<CasOutcome> {
        let found = self.found(&key, group)?;
        if found != *expected {
            return Ok(CasOutcome::Found(found));
        }
        match &new {
            Some(new) => group.batch.insert(&self.spaces.conditional, key.clone(), &**new),
            None => group.batch.remove(&self.spaces.conditional, key.clone()),
        }
        group.rows.insert(key, new);
        group.writes = true;
        Ok(CasOutcome::Applied)
    }

    fn compare_and_set_all(&self, swaps: Vec<KeyedSwap>, group: &mut Group) -> StoreResult<bool> {
        for (key, expected, _) in &swaps {
            if self.found(key, group)? != *expected {
                return Ok(false);
            }
        }
        for (key, _, new) in swaps {
            group.batch.insert(&self.spaces.conditional, key.clone(), &*new);
            group.rows.insert(key, Some(new));
        }
        group.writes = true;
        Ok(true)
    }

    /// What stands in a row of a conditional table, the group's own writes included.
    fn found(&self, key: &[u8], group: &Group) -> StoreResult<Option<Bytes>> {
        group.rows.get(key).map_or_else(|| get(&self.spaces.conditional, key), |found| Ok(found.clone()))
    }

    fn fence(&mut self, key: &[u8]) -> StoreResult<Option<Fence>> {
        if let Some(known) = self.fences.get(key) {
            return Ok(*known);
        }
        let found = get(&self.spaces.logs, key)?.map(|value| record::decode::<Fence>(&value)).transpose()?;
        self.fences.insert(key.to_vec(), found);
        Ok(found)
    }
}

impl Group {
    fn answer<T: Send + 'static>(&mut self, reply: Reply<T>, outcome: StoreResult<T>) {
        // An error says that the caller no longer waits.
        self.answers.push(Box::new(move || drop(reply.send(outcome))));
    }
}

/// How many of these are rows of the list of buckets.
pub(crate) fn buckets_in(mutations: &[Mutation]) -> u64 {
    mutations.iter().filter(|one| one.table.id == tables::LOG_BUCKETS.id).count() as u64
}

/// Puts plain writes into a batch.
pub(crate) fn stage(spaces: &Spaces, mutations: Vec<Mutation>, batch: &mut WriteBatch) {
    for Mutation { table, partition, clustering, value } in mutations {
        let is_log = table.kind == cofactor_store::TableKind::Log;
        let space = if is_log { &spaces.logs } else { &spaces.plain };
        let row = keys::row(table, &partition, &clustering);
        match value {
            Some(value) => batch.insert(space, row, &*value),
            None => batch.remove(space, row),
        }
    }
}

/// The value under a key.
pub(crate) fn get(space: &Keyspace, key: &[u8]) -> StoreResult<Option<Bytes>> {
    let found = space.get(key).map_err(|error| read_error(&error))?;
    Ok(found.map(|value| Bytes::copy_from_slice(&value)))
}

/// A read that fails has changed nothing.
pub(crate) fn read_error(error: &fjall::Error) -> StoreError {
    StoreError::Corrupt(error.to_string())
}

fn commit(batch: WriteBatch, size: usize) {
    let start = Instant::now();
    if let Err(error) = batch.durability(Some(PersistMode::SyncData)).commit() {
        die(&error);
    }
    metrics::histogram!("cofactor_store_commit_seconds").record(start.elapsed().as_secs_f64());
    metrics::histogram!("cofactor_store_commit_requests").record(size as f64);
    metrics::counter!("cofactor_store_commits_total").increment(1);
}

/// After a failed write or sync nobody knows what the disk holds. Whoever was promised nothing loses nothing.
fn die(error: &fjall::Error) -> ! {
    tracing::error!(%error, "the store could not write; the process ends so that nothing is acknowledged that may be lost. Check the disk of the data folder, then start again");
    std::process::abort()
}
