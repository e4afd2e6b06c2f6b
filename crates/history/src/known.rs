//! Rows that every answer about a room asks for, from memory where nothing was heard that changes them.

use std::sync::Arc;

use cofactor_store::{Direction, Key, RangeRead, Row, Scan, key, record, tables};
use cofactor_types::{Fault, Position};
use cofactor_wire::{
    relation::Aggregate,
    room::{Mention, ReceiptRecord, Summary},
};
use ruma::{RoomId, UserId};

use crate::{
    History,
    recent::{Aggregated, Fact, Few, Lookup, Mentioned, ROWS_MAX},
};

/// Rows read to learn whether they are few.
const FEW: usize = ROWS_MAX + 1;

impl History {
    /// What is held of these rows of a room, or what `read` finds; `None` if they are too many, or cannot be held. What is true up
    /// to `up_to` is in them.
    pub(crate) async fn few<T: Fact>(
        &self,
        room_id: &RoomId,
        from: Position,
        up_to: Position,
        read: impl Future<Output = Result<Few<T>, Fault>>,
    ) -> Result<Option<Arc<Vec<T>>>, Fault> {
        let Some(recent) = &self.recent else { return Ok(None) };
        let version = match recent.fact::<T>(room_id, from, up_to) {
            Lookup::Known(few) => return Ok(few.rows),
            Lookup::Nowhere => return Ok(None),
            Lookup::Unknown(version) => version,
        };
        let few = read.await?;
        recent.learn(room_id, version, few.clone());
        Ok(few.rows)
    }

    async fn scan_few<T>(&self, scan: Scan, decode: impl Fn(&Row) -> Result<T, Fault>) -> Result<Few<T>, Fault> {
        let rows = self.reader().store().scan(scan).await?;
        let bytes = rows.iter().map(|row| row.value.len()).sum();
        Ok(Few::new(rows.iter().map(decode).collect::<Result<_, _>>()?, bytes))
    }

    /// All receipts of a room, if they are few, as they stand after everything at or before `up_to`.
    ///
    /// # Errors
    /// If the store fails, as in all reads here.
    pub async fn receipts(&self, room_id: &RoomId, up_to: Position) -> Result<Option<Arc<Vec<ReceiptRecord>>>, Fault> {
        let scan = Scan::new(&tables::RECEIPTS, key![room_id.as_str()], Key::EMPTY, FEW);
        self.few(room_id, Position::ZERO, up_to, self.scan_few(scan, |row| Ok(record::decode(&row.value)?))).await
    }

    /// Where a user is mentioned in `(after, up_to]`, at most `limit` times.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn mentions(
        &self,
        room_id: &RoomId,
        user_id: &UserId,
        after: Position,
        up_to: Position,
        limit: usize,
    ) -> Result<Vec<(Position, Mention)>, Fault> {
        let all = Scan::new(&tables::MENTIONS, key![room_id.as_str()], Key::EMPTY, FEW);
        let mentioned = |row: &Row| {
            let user_id = UserId::parse(row.clustering.text(0)).map_err(|error| Fault::internal(error.to_string()))?;
            let position = Position(row.clustering.number(1));
            Ok(Mentioned { user_id, position, mention: record::decode(&row.value)? })
        };
        if let Some(all) = self.few(room_id, Position::ZERO, up_to, self.scan_few(all, mentioned)).await? {
            let wanted = |one: &&Mentioned| one.user_id == user_id && one.position > after && one.position <= up_to;
            return Ok(all.iter().filter(wanted).take(limit).map(|one| (one.position, one.mention.clone())).collect());
        }
        let scan = Scan::new(&tables::MENTIONS, key![room_id.as_str()], key![user_id.as_str()], limit)
            .after(key![user_id.as_str(), after])
            .up_to(key![user_id.as_str(), up_to]);
        let rows = self.reader().store().scan(scan).await?;
        rows.iter().map(|row| Ok((Position(row.clustering.number(1)), record::decode(&row.value)?))).collect()
    }

    /// What the children of the events above `from` say about them, if that is little.
    pub(crate) async fn few_aggregates(
        &self,
        room_id: &RoomId,
        from: Position,
        up_to: Position,
    ) -> Result<Option<Arc<Vec<Aggregated>>>, Fault> {
        let scan = Scan::new(&tables::AGGREGATES, key![room_id.as_str()], key![], FEW).after(key![from]);
        let aggregated = |row: &Row| {
            let aggregate: Aggregate = record::decode(&row.value)?;
            Ok(Aggregated { position: Position(row.clustering.number(0)), aggregate })
        };
        let read = async { Ok(self.scan_few(scan, aggregated).await?.above(from)) };
        self.few(room_id, from, up_to, read).await
    }

    /// Member counts and heroes, as they are after everything at or before `up_to`.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn summary_after(&self, room_id: &RoomId, up_to: Position) -> Result<Summary, Fault> {
        let read = async { Ok(Few::new(vec![self.summary(room_id).await?], 0)) };
        match self.few(room_id, Position::ZERO, up_to, read).await?.as_deref().map(Vec::as_slice) {
            Some([summary]) => Ok(summary.clone()),
            _ => self.summary(room_id).await,
        }
    }

    /// Whether nothing of a class was said after `after` that can be read up to `up_to`, as far as that costs no more than a look at
    /// the last of them, which is remembered.
    pub(crate) async fn is_quiet(
        &self,
        room_id: &RoomId,
        class: u64,
        after: Position,
        up_to: Position,
    ) -> Result<bool, Fault> {
        let Some(recent) = &self.recent else { return Ok(false) };
        if recent.is_quiet(room_id, class, after, up_to) {
            return Ok(true);
        }
        let Some(version) = recent.version(room_id, up_to).filter(|_| recent.asks_for_last(room_id, class)) else {
            return Ok(false);
        };
        let last = RangeRead { after: Position::ZERO, up_to: Position::MAX, direction: Direction::Backward, limit: 1 };
        let rows = self.reader().read(&Self::log(room_id, class, ""), last).await?;
        let last = rows.first().map_or(Position::ZERO, |row| row.position);
        recent.learn_last(room_id, version, class, last);
        Ok(last <= after)
    }
}
