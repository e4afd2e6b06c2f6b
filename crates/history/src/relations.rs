//! Relations between events: children, threads, and what is served with a parent.

use std::collections::BTreeMap;

use cofactor_store::{Direction, RangeRead, Scan, key, record, tables};
use cofactor_types::{Fault, Position};
use cofactor_wire::{
    relation::{Aggregate, Child, ThreadRoot},
    room::{Totals, class},
};
use ruma::{EventId, RoomId, UserId};

use crate::History;

/// A thread, and where its last event stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveThread {
    /// Where.
    pub position: Position,
    /// The thread.
    pub thread: ThreadRoot,
}

/// A child, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedChild {
    /// Where.
    pub position: Position,
    /// The child.
    pub child: Child,
}

impl History {
    /// What the children of the events from `first` to `last` say about them, by where the events stand.
    ///
    /// # Errors
    /// If the store fails, as in all reads here.
    pub async fn aggregates(
        &self,
        room_id: &RoomId,
        first: Position,
        last: Position,
    ) -> Result<BTreeMap<Position, Aggregate>, Fault> {
        if let Some(few) = self.few_aggregates(room_id, first.previous(), last).await? {
            let wanted = few.iter().filter(|one| one.position >= first && one.position <= last);
            return Ok(wanted.map(|one| (one.position, one.aggregate.clone())).collect());
        }
        let scan = Scan::new(&tables::AGGREGATES, key![room_id.as_str()], key![], usize::MAX)
            .after(key![first.previous()])
            .up_to(key![last]);
        let rows = self.reader().store().scan(scan).await?;
        rows.iter().map(|row| Ok((Position(row.clustering.number(0)), record::decode(&row.value)?))).collect()
    }

    /// The children of an event.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn children(
        &self,
        room_id: &RoomId,
        parent: &EventId,
        range: RangeRead,
    ) -> Result<Vec<PlacedChild>, Fault> {
        let rows = self.reader().read(&Self::log(room_id, class::RELATION, parent.as_str()), range).await?;
        let child = |row: cofactor_store::LogRow| {
            Ok(PlacedChild { position: row.position, child: record::decode(&row.value)? })
        };
        rows.into_iter().map(child).collect()
    }

    /// Threads by where their last event stands.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn threads(&self, room_id: &RoomId, range: RangeRead) -> Result<Vec<ActiveThread>, Fault> {
        let rows = self.reader().read(&Self::log(room_id, class::THREADS, ""), range).await?;
        let thread = |row: cofactor_store::LogRow| {
            Ok(ActiveThread { position: row.position, thread: record::decode(&row.value)? })
        };
        rows.into_iter().map(thread).collect()
    }

    /// The totals of a thread after everything at or before `up_to`.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn thread_totals(&self, room_id: &RoomId, root: &EventId, up_to: Position) -> Result<Totals, Fault> {
        let range = RangeRead { after: Position::ZERO, up_to, direction: Direction::Backward, limit: 1 };
        let rows = self.reader().read(&Self::log(room_id, class::THREAD, root.as_str()), range).await?;
        Ok(rows.first().map(|row| record::decode(&row.value)).transpose()?.unwrap_or_default())
    }

    /// Whether a user replied in the thread whose root stands at `root_position`.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn took_part(&self, room_id: &RoomId, user_id: &UserId, root_position: Position) -> Result<bool, Fault> {
        let (partition, clustering) = (key![room_id.as_str()], key![user_id.as_str(), root_position]);
        Ok(self.reader().store().get(&tables::THREAD_USERS, &partition, &clustering).await?.is_some())
    }
}
