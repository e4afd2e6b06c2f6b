//! What a decision stages.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use cofactor_store::{Key, LogKey, LogRow, Mutation, RangeRead, Table};
use cofactor_telemetry::Trace;
use cofactor_types::{EntityId, Fault, Position};

use crate::{Entity, Env, OpenPosition, publisher::Notice};

/// What becomes of a command.
pub enum Decision<E: Entity> {
    /// Answered without a change. The answer still waits for changes before it that are not durable yet.
    Reply(Result<E::Reply, Fault>),
    /// What was staged is committed, then this is answered.
    Commit(E::Reply),
    /// The command must be decided again with these in hand.
    Need(E::Command, Vec<Read>),
}

impl<E: Entity> Decision<E> {
    /// The decision, or the refusal as an answer.
    pub fn from_result(result: Result<Self, Fault>) -> Self {
        result.unwrap_or_else(|fault| Self::Reply(Err(fault)))
    }
}

/// Something to read from the store before a command can be decided.
#[derive(Clone, Debug)]
pub enum Read {
    /// One row.
    Row {
        /// The table.
        table: &'static Table,
        /// The partition.
        partition: Key,
        /// The clustering key.
        clustering: Key,
    },
    /// Records of the entity's own log.
    Log {
        /// The class.
        class: u64,
        /// The sub.
        sub: Arc<str>,
        /// Which.
        range: RangeRead,
    },
}

pub(crate) type RowKey = (u8, Key, Key);

/// What was read for a command.
#[derive(Debug, Default)]
pub(crate) struct Fetched {
    pub(crate) rows: HashMap<RowKey, Option<Bytes>>,
    pub(crate) logs: Vec<Vec<LogRow>>,
}

/// Changes that go into the log together.
#[derive(Debug, Default)]
pub(crate) struct Change {
    pub(crate) rows: Vec<(Key, Option<Bytes>)>,
    pub(crate) effects: Vec<Mutation>,
    pub(crate) messages: Vec<(EntityId, Bytes)>,
    pub(crate) notices: Vec<Notice>,
    pub(crate) open: Vec<OpenPosition>,
    /// Of the command that asked for it.
    pub(crate) trace: Option<Trace>,
}

impl Change {
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.effects.is_empty() && self.messages.is_empty() && self.notices.is_empty()
    }

    /// About how much room it takes in an append. Effects may have to be kept beside the rows.
    pub(crate) fn bytes(&self) -> usize {
        const KEYS: usize = 64;
        let of = |value: &Option<Bytes>| value.as_ref().map_or(0, Bytes::len) + KEYS;
        let rows = self.rows.iter().map(|(_, value)| of(value)).sum::<usize>();
        rows + self.effects.iter().map(|effect| of(&effect.value)).sum::<usize>()
    }
}

/// The context of a decision: time, positions, what was read for it, and where it stages what is to be written.
pub struct Cx<'a> {
    pub(crate) env: &'a Env,
    pub(crate) id: &'a EntityId,
    pub(crate) change: Change,
    pub(crate) overlay: &'a HashMap<RowKey, Option<Bytes>>,
    pub(crate) fetched: Fetched,
    pub(crate) tick: Option<Duration>,
}

impl std::fmt::Debug for Cx<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cx").field("id", self.id).finish_non_exhaustive()
    }
}

impl Cx<'_> {
    /// The entity.
    pub fn id(&self) -> &EntityId {
        self.id
    }

    /// The node's environment.
    pub fn env(&self) -> &Env {
        self.env
    }

    /// Milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> u64 {
        self.env.clock().now_ms()
    }

    /// A new position, above all before it.
    ///
    /// # Errors
    /// When the node's lease has ended.
    pub fn allocate(&mut self) -> Result<Position, Fault> {
        let open = self.env.positions().allocate()?;
        let position = open.get();
        self.change.open.push(open);
        Ok(position)
    }

    /// Stages a record of the entity's log.
    pub fn append(&mut self, class: u64, sub: &Arc<str>, position: Position, value: Bytes) {
        self.change.rows.push((LogKey::clustering(class, sub, position), Some(value)));
    }

    /// Stages the removal of a record of the entity's log. One in a sealed bucket is removed all the same.
    pub fn remove(&mut self, class: u64, sub: &Arc<str>, position: Position) {
        self.change.rows.push((LogKey::clustering(class, sub, position), None));
    }

    /// Stages a write of a plain table.
    pub fn put(&mut self, table: &'static Table, partition: Key, clustering: Key, value: Bytes) {
        self.change.effects.push(Mutation { table, partition, clustering, value: Some(value) });
    }

    /// Stages a removal from a plain table.
    pub fn delete(&mut self, table: &'static Table, partition: Key, clustering: Key) {
        self.change.effects.push(Mutation { table, partition, clustering, value: None });
    }

    /// Stages a message to another entity: it arrives at least once, even if this node dies, and the answer of this
    /// command waits for it.
    pub fn deliver(&mut self, target: EntityId, payload: Bytes) {
        self.change.messages.push((target, payload));
    }

    /// Stages a record on the bus.
    pub fn publish(&mut self, class: u64, position: Position, payload: Bytes) {
        self.change.notices.push(Notice { class, position, payload, trace: None });
    }

    /// Asks for [`Entity::tick`] in `after`. The latest call counts.
    pub fn tick_in(&mut self, after: Duration) {
        self.tick = Some(after);
    }

    /// A row of a plain table, as it will stand once everything decided before is durable. `None`: it was not read; answer
    /// [`Decision::Need`] with it.
    pub fn row(&self, table: &'static Table, partition: &Key, clustering: &Key) -> Option<Option<Bytes>> {
        let key = (table.id, partition.clone(), clustering.clone());
        let staged = self.change.effects.iter().rev();
        let mut staged =
            staged.filter(|one| one.table.id == key.0 && one.partition == key.1 && one.clustering == key.2);
        match staged.next() {
            Some(mutation) => Some(mutation.value.clone()),
            None => self.overlay.get(&key).or_else(|| self.fetched.rows.get(&key)).cloned(),
        }
    }

    /// What the `number`th [`Read::Log`] of [`Decision::Need`] gave. `None`: it was not read.
    pub fn log(&self, number: usize) -> Option<&[LogRow]> {
        self.fetched.logs.get(number).map(Vec::as_slice)
    }
}
