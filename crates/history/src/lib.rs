//! Reads rooms as a viewer may see them: history, state now and then, members, single events.
//!
//! Everything is read from the rows that room actors keep (`cofactor_wire::room`); nothing is asked of an actor and nothing
//! is written. What a viewer may see is decided by `cofactor_room::visibility` in one place, [`Viewpoint`].
//!
//! Invariant: no event leaves this crate for a viewer without having passed [`Viewpoint::sees`].

mod bundle;
mod filter;
mod known;
mod page;
mod recent;
mod relations;
mod render;
mod state;
mod viewpoint;

use std::sync::Arc;

use cofactor_store::{Direction, LogKey, LogReader, LogRow, RangeRead, key, record, tables};
use cofactor_types::{EntityId, Fault, Position};
use cofactor_wire::room::{EventRecord, class};
use ruma::{EventId, RoomId};

pub use self::{
    bundle::{Bundle, Bundles, ThreadBundle},
    filter::EventFilter,
    page::{Page, PageRequest, PageToken},
    recent::Recent,
    relations::{ActiveThread, PlacedChild},
    render::{EventFields, Reader, render},
    state::{Members, StateEvent},
    viewpoint::Viewpoint,
};

/// An event and where it stands. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Where.
    pub position: Position,
    /// What.
    pub event: Arc<EventRecord>,
}

impl Placed {
    /// The event in a row of a timeline.
    fn read(position: Position, row: &bytes::Bytes) -> Result<Self, Fault> {
        Ok(Self { position, event: Arc::new(EventRecord::read(row)?) })
    }
}

/// The reader. Cheap to clone.
#[derive(Clone, Debug)]
pub struct History {
    reader: LogReader,
    recent: Option<Arc<Recent>>,
}

impl History {
    /// Reads through `reader`.
    pub fn new(reader: LogReader) -> Self {
        Self { reader, recent: None }
    }

    /// The same, but for what is in memory: for those who tell `recent` all that is heard.
    #[must_use]
    pub fn with_recent(self, recent: Arc<Recent>) -> Self {
        Self { recent: Some(recent), ..self }
    }

    /// The reader of logs below.
    pub fn reader(&self) -> &LogReader {
        &self.reader
    }

    /// One of a room's sequences.
    pub fn log(room_id: &RoomId, class: u64, sub: &str) -> LogKey {
        LogKey { entity: EntityId::room(room_id), class, sub: Arc::from(sub) }
    }

    /// Rows of one of a room's sequences without a sub; the store is not asked where it is known that there are none.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn rows(&self, room_id: &RoomId, class: u64, range: RangeRead) -> Result<Vec<LogRow>, Fault> {
        if self.is_quiet(room_id, class, range.after, range.up_to).await? {
            return Ok(Vec::new());
        }
        Ok(self.reader.read(&Self::log(room_id, class, ""), range).await?)
    }

    /// Events in `(after, up_to]`, whoever may see them.
    ///
    /// # Errors
    /// If the store fails, as in all reads here.
    pub async fn events(&self, room_id: &RoomId, range: RangeRead) -> Result<Vec<Placed>, Fault> {
        match &self.recent {
            Some(recent) if range.direction == Direction::Backward && range.after < range.up_to && range.limit > 0 => {
                recent.newest(room_id, range, |range| self.stored_events(room_id, range)).await
            }
            _ => self.stored_events(room_id, range).await,
        }
    }

    async fn stored_events(&self, room_id: &RoomId, range: RangeRead) -> Result<Vec<Placed>, Fault> {
        let rows = self.reader.read(&Self::log(room_id, class::TIMELINE, ""), range).await?;
        rows.iter().map(|row| Placed::read(row.position, &row.value)).collect()
    }

    /// The event at a position.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn at(&self, room_id: &RoomId, position: Position) -> Result<Option<Placed>, Fault> {
        if let Some(found) = self.recent.as_ref().and_then(|recent| recent.at(room_id, position)) {
            return Ok(Some(found));
        }
        let found = self.reader.get(&Self::log(room_id, class::TIMELINE, ""), position).await?;
        found.map(|value| Placed::read(position, &value)).transpose()
    }

    /// The last event at or before a position.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn last_at(&self, room_id: &RoomId, up_to: Position) -> Result<Option<Placed>, Fault> {
        let range = RangeRead { after: Position::ZERO, up_to, direction: Direction::Backward, limit: 1 };
        Ok(self.events(room_id, range).await?.into_iter().next())
    }

    /// An event by its id, whoever may see it.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn find(&self, room_id: &RoomId, event_id: &EventId) -> Result<Option<Placed>, Fault> {
        let (partition, clustering) = (key![room_id.as_str()], key![event_id.as_str()]);
        let found = self.reader.store().get(&tables::EVENT_POSITIONS, &partition, &clustering).await?;
        match found {
            Some(value) => self.at(room_id, Position(record::decode(&value)?)).await,
            None => Ok(None),
        }
    }
}
