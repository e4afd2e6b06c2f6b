//! The writer's end of a log: fenced appends, unknown outcomes, buckets, effects that survive a crash.

use std::{collections::HashSet, sync::Arc, time::Duration};

use bytes::Bytes;
use cofactor_store::{
    Append, Direction, Durability, Fence, Key, LogKey, Mutation, RangeRead, StoreError, bucket_of, key, record, tables,
};
use cofactor_types::{EntityId, Epoch, Position};
use serde::{Deserialize, Serialize};

use crate::{Env, Planted, takeover};

/// The class of the rows that keep effects until they are applied, on stores that do not span partitions.
const REDO: u64 = 0;

/// A bucket takes no more than about this many rows.
const BUCKET_ROWS_MAX: u64 = 100_000;

/// A bucket takes no more than about this many bytes of values.
const BUCKET_BYTES_MAX: u64 = 32 << 20;

/// How often a question with an unknown answer is asked before the log is given up.
const TRIES_MAX: u32 = 5;

/// Effects of one append, as kept in its [`REDO`] row.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Redo {
    effects: Vec<RedoEffect>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RedoEffect {
    table: u8,
    partition: Vec<RedoPart>,
    clustering: Vec<RedoPart>,
    value: Option<Bytes>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum RedoPart {
    Text(Arc<str>),
    U64(u64),
    Bytes(Bytes),
}

/// A message in the outbox.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Message {
    pub(crate) target: EntityId,
    pub(crate) payload: Bytes,
}

/// The end of a log, as its one writer knows it.
pub(crate) struct Writer {
    env: Env,
    id: EntityId,
    epoch: Epoch,
    /// Set while the log is listed among the open ones: where it stands there.
    listed: Option<Key>,
    /// The first positions of the buckets after the first.
    starts: Vec<Position>,
    bucket: u64,
    fence: Option<Fence>,
    rows: u64,
    bytes: u64,
}

/// What goes into one append.
#[derive(Default)]
pub(crate) struct Group {
    pub(crate) last: Position,
    pub(crate) rows: Vec<(Key, Option<Bytes>)>,
    pub(crate) effects: Vec<Mutation>,
}

impl Writer {
    /// Finds the end of the log, finishes what a dead writer left undone, and returns the last position.
    pub(crate) async fn open(env: Env, id: EntityId, epoch: Epoch) -> Result<(Self, Position), StoreError> {
        let store = env.store();
        let starts = env.reader().stored_starts(&id).await?;
        let bucket = starts.len() as u64;
        let fence = store.fence(LogKey::table(id.kind()), &LogKey::partition(&id, bucket)).await?;
        let before = starts.last().map(|start| start.previous());
        let last = fence.map(|fence| fence.last).or(before).unwrap_or_default();
        let mut writer = Self { env, id, epoch, listed: None, starts, bucket, fence, rows: 0, bytes: 0 };
        if fence.is_some_and(|fence| fence.sealed) {
            writer.open_next(last).await?;
        }
        if !writer.env.store().spans_partitions() {
            writer.redo().await?;
        }
        Ok((writer, last))
    }

    /// Makes sure that no earlier owner can append any more, and finishes what one left undone.
    pub(crate) async fn take_over(env: Env, id: EntityId, epoch: Epoch) -> Result<(), StoreError> {
        let (mut writer, last) = Self::open(env, id, epoch).await?;
        if writer.fence.is_none_or(|fence| fence.epoch < epoch) {
            // Also where nothing was written yet: only a log with a fence can refuse what is still on its way.
            writer.append_rows(last, Vec::new(), Vec::new(), false).await?;
            writer.redo().await?;
        }
        Ok(())
    }

    /// Makes sure that an append of unknown outcome either stands, with its effects, or never will: whoever else writes has
    /// moved the fence that it expects, or this does.
    pub(crate) async fn settle(&mut self) -> Result<(), StoreError> {
        let partition = LogKey::partition(&self.id, self.bucket);
        let found = self.env.store().fence(LogKey::table(self.id.kind()), &partition).await?;
        // A sealed bucket takes nothing more; only its announcement was in doubt, and everybody announces the same.
        if found == self.fence && !found.is_some_and(|fence| fence.sealed) {
            let last = found.map_or(Position::ZERO, |fence| fence.last);
            match self.append_rows(last, Vec::new(), Vec::new(), false).await {
                Err(StoreError::Fenced(_)) | Ok(()) => {}
                Err(error) => return Err(error),
            }
        }
        if self.env.store().spans_partitions() { Ok(()) } else { self.redo().await }
    }

    /// The epoch of this writer's appends.
    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Lists the log among those that a successor must fence, then makes sure that there is no successor yet. Once for the
    /// life of a writer, before its first append.
    async fn list_open(&mut self) -> Result<(), StoreError> {
        let shard = self.env.shard(&self.id);
        let activation = self.env.entropy().u128() as u64 >> 1;
        let clustering = key![self.id.kind().as_str(), &self.id, activation];
        let row = Mutation {
            table: &tables::OPEN_LOGS,
            partition: key![u64::from(shard.0)],
            clustering: clustering.clone(),
            value: Some(Bytes::new()),
        };
        self.repeat_write(vec![row], Durability::Synced).await?;
        if !takeover::still_ours(&self.env, shard, self.epoch).await? {
            return Err(StoreError::Fenced(None));
        }
        self.listed = Some(clustering);
        Ok(())
    }

    /// Takes the log off the list of open ones. Nothing may be under way.
    pub(crate) async fn close(self) {
        let Some(clustering) = self.listed.clone() else { return };
        let partition = key![u64::from(self.env.shard(&self.id).0)];
        let row = Mutation { table: &tables::OPEN_LOGS, partition, clustering, value: None };
        // What stays on the list is fenced once more than needed.
        let _ = self.env.store().write(vec![row], Durability::Deferred).await;
    }

    /// Appends a group. When this returns, it is durable and its effects can be read.
    pub(crate) async fn append(&mut self, mut group: Group) -> Result<(), StoreError> {
        let spans = self.env.store().spans_partitions();
        if !spans && self.listed.is_none() {
            self.list_open().await?;
        }
        if self.rows >= BUCKET_ROWS_MAX || self.bytes >= BUCKET_BYTES_MAX {
            self.roll().await?;
        }
        let mut effects = std::mem::take(&mut group.effects);
        let deferred = self.split_old_rows(&mut group);
        effects.extend(deferred);
        keep_last(&mut effects);
        if !spans && !effects.is_empty() {
            let redo = record::encode(&Redo::of(&effects))?;
            group.rows.push((LogKey::clustering(REDO, &Arc::from(""), group.last), Some(redo)));
        }
        self.rows += group.rows.len() as u64;
        self.bytes += group.rows.iter().map(|(_, value)| value.as_ref().map_or(0, Bytes::len) as u64).sum::<u64>();
        let also = if spans { std::mem::take(&mut effects) } else { Vec::new() };
        self.append_rows(group.last, group.rows, also, false).await?;
        if !effects.is_empty() {
            // The append stands, whatever becomes of its effects.
            let applied = self.apply(effects, group.last).await;
            applied.map_err(|error| StoreError::Unknown(error.to_string()))?;
        }
        Ok(())
    }

    /// Rows that stand in sealed buckets cannot be part of the append; they become effects.
    fn split_old_rows(&self, group: &mut Group) -> Vec<Mutation> {
        if self.bucket == 0 {
            return Vec::new();
        }
        let table = LogKey::table(self.id.kind());
        let mut old = Vec::new();
        group.rows.retain(|(clustering, value)| {
            let bucket = bucket_of(&self.starts, Position(clustering.number(2)));
            let is_old = bucket < self.bucket;
            if is_old {
                let partition = LogKey::partition(&self.id, bucket);
                old.push(Mutation { table, partition, clustering: clustering.clone(), value: value.clone() });
            }
            !is_old
        });
        old
    }

    /// Goes on in the next bucket: seal this one, announce the next. Dying in between is finished by the next writer. Only
    /// who could seal announces, and whoever announces says the same, so an earlier owner's announcement may come late.
    async fn roll(&mut self) -> Result<(), StoreError> {
        let last = self.fence.map(|fence| fence.last).unwrap_or_default();
        self.append_rows(last, Vec::new(), Vec::new(), true).await?;
        self.open_next(last).await
    }

    /// Announces the bucket after this one, which is sealed at `last`, and goes on there.
    async fn open_next(&mut self, last: Position) -> Result<(), StoreError> {
        let start = last.next();
        let announcement = Mutation {
            table: &tables::LOG_BUCKETS,
            partition: key![self.id.kind().as_str(), &self.id],
            clustering: key![self.bucket + 1],
            value: Some(record::encode(&start.0)?),
        };
        self.repeat_write(vec![announcement], Durability::Synced).await?;
        self.starts.push(start);
        self.bucket += 1;
        self.fence = None;
        self.rows = 0;
        self.bytes = 0;
        Ok(())
    }

    /// The fenced append itself, and what to do when its outcome is unknown: ask the fence, serially. Ours: it is there.
    /// As before: the same batch again, with the same id. Anything else: another writer has the log.
    async fn append_rows(
        &mut self,
        last: Position,
        rows: Vec<(Key, Option<Bytes>)>,
        also: Vec<Mutation>,
        sealed: bool,
    ) -> Result<(), StoreError> {
        let fence = Fence { epoch: self.epoch, last, batch: self.env.entropy().u128(), sealed };
        let append = Append {
            table: LogKey::table(self.id.kind()),
            partition: LogKey::partition(&self.id, self.bucket),
            expected: self.fence,
            fence,
            rows,
            also,
        };
        let mut outcome = self.env.store().append(append.clone()).await;
        let mut tries = 1;
        let mut in_doubt = false;
        while let Err(StoreError::Unknown(why)) = &outcome {
            in_doubt = true;
            let why = why.clone();
            if self.env.planted() == Planted::TakeUnknownForFailed {
                return Err(StoreError::Unavailable(why));
            }
            tries += 1;
            if tries > TRIES_MAX {
                return Err(StoreError::Unknown(why));
            }
            outcome = self.resolve(&append).await;
        }
        // What became of a later try does not say that the first was not there, before another writer came, or will not be.
        outcome.map_err(|error| if in_doubt { StoreError::Unknown(error.to_string()) } else { error })?;
        self.fence = Some(fence);
        Ok(())
    }

    async fn resolve(&mut self, append: &Append) -> Result<(), StoreError> {
        if self.env.planted() == Planted::RetryUnknownAsNew {
            self.fence = self.env.store().fence(append.table, &append.partition).await?;
            let mut again = append.clone();
            again.expected = self.fence;
            let shift = |clustering: &Key| key![clustering.number(0), clustering.text(1), clustering.number(2) + 1];
            again.rows = again.rows.iter().map(|(clustering, value)| (shift(clustering), value.clone())).collect();
            return self.env.store().append(again).await;
        }
        let found = match self.env.store().fence(append.table, &append.partition).await {
            Ok(found) => found,
            // Still no answer; the loop of the caller counts.
            Err(error) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                return Err(StoreError::Unknown(error.to_string()));
            }
        };
        if found == Some(append.fence) {
            Ok(())
        } else if found == append.expected {
            // The first try may still be on its way: both carry the same fence, so at most one of them applies, and the
            // other is refused. A refusal is therefore asked once more.
            match self.env.store().append(append.clone()).await {
                Err(StoreError::Fenced(Some(found))) if found == append.fence => Ok(()),
                outcome => outcome,
            }
        } else {
            Err(StoreError::Fenced(found))
        }
    }

    /// Applies effects and notes how far they are, on stores that could not apply them with the append.
    ///
    /// Each effect counts as of its position, whenever it is written: one of an earlier owner that arrives late changes
    /// nothing that was written since.
    async fn apply(&self, effects: Vec<Mutation>, upto: Position) -> Result<(), StoreError> {
        self.repeat(|| self.env.store().write_at(effects.clone(), upto)).await?;
        let checkpoint = Mutation {
            table: &tables::CHECKPOINTS,
            partition: key![self.id.kind().as_str(), &self.id],
            clustering: Key::EMPTY,
            value: Some(record::encode(&upto.0)?),
        };
        self.repeat(|| self.env.store().write_at(vec![checkpoint.clone()], upto)).await
    }

    /// Applies again the effects of every append after the checkpoint.
    async fn redo(&mut self) -> Result<(), StoreError> {
        const PAGE: usize = 100;
        let store = Arc::clone(self.env.store());
        let partition = key![self.id.kind().as_str(), &self.id];
        let checkpoint = store.get(&tables::CHECKPOINTS, &partition, &Key::EMPTY).await?;
        let mut after = Position(checkpoint.map(|value| record::decode::<u64>(&value)).transpose()?.unwrap_or(0));
        let log = LogKey { entity: self.id.clone(), class: REDO, sub: Arc::from("") };
        loop {
            let range = RangeRead { after, up_to: Position::MAX, direction: Direction::Forward, limit: PAGE };
            let rows = self.env.reader().read(&log, range).await?;
            for row in &rows {
                self.apply(record::decode::<Redo>(&row.value)?.into_mutations()?, row.position).await?;
                after = row.position;
            }
            if rows.len() < PAGE {
                return Ok(());
            }
        }
    }

    async fn repeat_write(&self, batch: Vec<Mutation>, durability: Durability) -> Result<(), StoreError> {
        self.repeat(|| self.env.store().write(batch.clone(), durability)).await
    }

    /// Plain writes are idempotent, so they are repeated until they are there or the store is given up.
    async fn repeat<F: Future<Output = Result<(), StoreError>>>(
        &self,
        write: impl Fn() -> F,
    ) -> Result<(), StoreError> {
        let mut tries = 1;
        loop {
            match write().await {
                Err(StoreError::Unknown(_) | StoreError::Unavailable(_)) if tries < TRIES_MAX => {
                    tokio::time::sleep(Duration::from_millis(20 << tries)).await;
                    tries += 1;
                }
                outcome => return outcome,
            }
        }
    }
}

/// Of several effects on one row only the last counts, and the others need not be written: a group may move the same row many
/// times.
fn keep_last(effects: &mut Vec<Mutation>) {
    let mut known = HashSet::with_capacity(effects.len());
    let mut kept: Vec<bool> =
        effects.iter().rev().map(|one| known.insert((one.table.id, &one.partition, &one.clustering))).collect();
    effects.retain(|_| kept.pop().unwrap_or(true));
}

impl Redo {
    fn of(effects: &[Mutation]) -> Self {
        let effects = effects
            .iter()
            .map(|one| RedoEffect {
                table: one.table.id,
                partition: RedoPart::all(&one.partition),
                clustering: RedoPart::all(&one.clustering),
                value: one.value.clone(),
            })
            .collect();
        Self { effects }
    }

    fn into_mutations(self) -> Result<Vec<Mutation>, StoreError> {
        let effect = |one: RedoEffect| {
            let table = tables::ALL.iter().find(|table| table.id == one.table);
            let table = table.ok_or_else(|| {
                let table = one.table;
                StoreError::Corrupt(format!("effects on table {table}, which only a later release knows"))
            })?;
            let (partition, clustering) = (RedoPart::key(one.partition), RedoPart::key(one.clustering));
            Ok(Mutation { table, partition, clustering, value: one.value })
        };
        self.effects.into_iter().map(effect).collect()
    }
}

impl RedoPart {
    fn all(key: &Key) -> Vec<Self> {
        use cofactor_store::KeyPart;
        let part = |part: &KeyPart| match part {
            KeyPart::Text(text) => Self::Text(Arc::clone(text)),
            KeyPart::U64(number) => Self::U64(*number),
            KeyPart::Bytes(bytes) => Self::Bytes(bytes.clone()),
        };
        key.parts().iter().map(part).collect()
    }

    fn key(parts: Vec<Self>) -> Key {
        parts.into_iter().fold(Key::EMPTY, |key, part| match part {
            Self::Text(text) => key.with(text),
            Self::U64(number) => key.with(number),
            Self::Bytes(bytes) => key.with(bytes),
        })
    }
}

#[cfg(test)]
mod tests {
    use cofactor_golden::Golden;

    use super::*;

    #[test]
    fn effects_kept_in_logs_are_read_for_ever() {
        let parts =
            || [RedoPart::Text("!room".into()), RedoPart::U64(300), RedoPart::Bytes(Bytes::from_static(b"key"))];
        let effect = RedoEffect {
            table: tables::ROOM_STATE.id,
            partition: parts().into(),
            clustering: parts().into(),
            value: Some(Bytes::from_static(b"value")),
        };
        Golden::new("store/redo").closed(&["partition", "clustering"]).record(&[Redo { effects: vec![effect] }]);
        Golden::new("store/redo_part").variants(&[&parts()]);
        // Checkpoints, and the first positions of buckets.
        Golden::new("store/position").record(&[Position(1_780_000_000_000_000)]);
    }

    #[test]
    fn of_effects_on_one_row_the_last_is_kept_where_it_stood() {
        let effect = |row: u64, value: Option<&'static str>| Mutation {
            table: &tables::RECEIPTS,
            partition: key!["!room"],
            clustering: key!["@user", "type", row.to_string()],
            value: value.map(|value| Bytes::from_static(value.as_bytes())),
        };
        let mut effects = vec![effect(1, Some("a")), effect(2, None), effect(1, Some("b")), effect(3, None)];
        let expected = vec![effect(2, None), effect(1, Some("b")), effect(3, None)];
        keep_last(&mut effects);
        assert_eq!(format!("{effects:?}"), format!("{expected:?}"));
    }

    #[test]
    fn messages_in_the_outbox_are_read_for_ever() {
        let target = EntityId::new(cofactor_types::EntityKind::Room, "!room:example.org");
        Golden::new("store/outgoing").record(&[Message { target, payload: Bytes::from_static(b"payload") }]);
    }

    #[test]
    fn effects_on_a_table_of_a_later_release_are_refused_whole() {
        let known = RedoEffect { table: tables::ROOM_STATE.id, partition: vec![], clustering: vec![], value: None };
        let unknown = RedoEffect { table: u8::MAX, partition: vec![], clustering: vec![], value: None };
        let refused = Redo { effects: vec![known, unknown] }.into_mutations();
        assert!(matches!(refused, Err(StoreError::Corrupt(why)) if why.contains("later release")));
    }
}
