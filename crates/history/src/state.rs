//! The state of a room, now and at a position.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use cofactor_store::{Direction, Key, RangeRead, Scan, key, record, tables};
use cofactor_types::{Fault, Position};
use cofactor_wire::room::{CurrentState, StateDelta, Summary, class};
use ruma::RoomId;

use crate::{History, Placed};

/// A state event and its key.
pub type StateEvent = Placed;

const MEMBER: &str = "m.room.member";

/// Which member events a reader wants of a state.
#[derive(Clone, Debug)]
pub enum Members {
    /// All.
    All,
    /// These alone: lazy loading.
    Only(BTreeSet<String>),
}

impl History {
    /// One key of the current state.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn current(
        &self,
        room_id: &RoomId,
        event_type: &str,
        state_key: &str,
    ) -> Result<Option<StateEvent>, Fault> {
        let (partition, clustering) = (key![room_id.as_str()], key![event_type, state_key]);
        let found = self.reader().store().get(&tables::ROOM_STATE, &partition, &clustering).await?;
        found.map(|value| place(&value)).transpose()
    }

    /// The current state. Without all members it costs what the rest of the state is.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn current_state(&self, room_id: &RoomId, members: &Members) -> Result<Vec<StateEvent>, Fault> {
        let scan = || Scan::new(&tables::ROOM_STATE, key![room_id.as_str()], Key::EMPTY, usize::MAX);
        let store = self.reader().store();
        let rows = match members {
            Members::All => store.scan(scan()).await?,
            Members::Only(_) => {
                let mut rows = store.scan(scan().up_to(key![MEMBER])).await?;
                rows.extend(store.scan(scan().after(key![MEMBER, "\u{10ffff}"])).await?);
                rows
            }
        };
        let mut state = rows.iter().map(|row| place(&row.value)).collect::<Result<Vec<_>, _>>()?;
        if let Members::Only(wanted) = members {
            for user_id in wanted {
                state.extend(self.current(room_id, MEMBER, user_id).await?);
            }
        }
        Ok(state)
    }

    /// The current members.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn current_members(&self, room_id: &RoomId) -> Result<Vec<StateEvent>, Fault> {
        let scan = Scan::new(&tables::ROOM_STATE, key![room_id.as_str()], key![MEMBER], usize::MAX);
        let rows = self.reader().store().scan(scan).await?;
        rows.iter().map(|row| place(&row.value)).collect()
    }

    /// The current state of one type, at most `limit` events.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn state_of_type(
        &self,
        room_id: &RoomId,
        event_type: &str,
        limit: usize,
    ) -> Result<Vec<StateEvent>, Fault> {
        let scan = Scan::new(&tables::ROOM_STATE, key![room_id.as_str()], key![event_type], limit);
        let rows = self.reader().store().scan(scan).await?;
        rows.iter().map(|row| place(&row.value)).collect()
    }

    /// Changes of the state in `(after, up_to]`, the last of each key: its key, and where its event stands now and stood
    /// before the first of them.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn state_changes(
        &self,
        room_id: &RoomId,
        after: Position,
        up_to: Position,
    ) -> Result<BTreeMap<(String, String), (Option<Position>, Option<Position>)>, Fault> {
        let range = RangeRead { after, up_to, direction: Direction::Forward, limit: usize::MAX };
        let mut changes = BTreeMap::new();
        for row in self.rows(room_id, class::STATE, range).await? {
            let delta: StateDelta = record::decode(&row.value)?;
            for change in delta.changes {
                let entry =
                    changes.entry((change.event_type, change.state_key)).or_insert((change.position, change.before));
                entry.0 = change.position;
            }
        }
        Ok(changes)
    }

    /// The events that became current in `(after, up_to]`.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn state_delta(
        &self,
        room_id: &RoomId,
        after: Position,
        up_to: Position,
        members: &Members,
    ) -> Result<Vec<StateEvent>, Fault> {
        let mut delta = Vec::new();
        for ((event_type, state_key), (now, _)) in self.state_changes(room_id, after, up_to).await? {
            if let (true, Some(position)) = (wants(members, &event_type, &state_key), now) {
                delta.extend(self.at(room_id, position).await?);
            }
        }
        Ok(delta)
    }

    /// The state after everything at or before `position`: the current one, with later changes taken back.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn state_at(
        &self,
        room_id: &RoomId,
        position: Position,
        members: &Members,
    ) -> Result<Vec<StateEvent>, Fault> {
        let mut state = self.current_state(room_id, members).await?;
        let changes = self.state_changes(room_id, position, Position::MAX).await?;
        if changes.is_empty() {
            return Ok(state);
        }
        let key_of =
            |event: &StateEvent| (event.event.event_type.clone(), event.event.state_key.clone().unwrap_or_default());
        state.retain(|event| !changes.contains_key(&key_of(event)));
        for ((event_type, state_key), (_, before)) in changes {
            if let (true, Some(before)) = (wants(members, &event_type, &state_key), before) {
                state.extend(self.at(room_id, before).await?);
            }
        }
        Ok(state)
    }

    /// Member counts and heroes.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn summary(&self, room_id: &RoomId) -> Result<Summary, Fault> {
        let found = self.reader().store().get(&tables::ROOM_SUMMARIES, &key![room_id.as_str()], &Key::EMPTY).await?;
        Ok(found.map(|value| record::decode(&value)).transpose()?.unwrap_or_default())
    }
}

fn wants(members: &Members, event_type: &str, state_key: &str) -> bool {
    match members {
        Members::Only(wanted) if event_type == MEMBER => wanted.contains(state_key),
        _ => true,
    }
}

fn place(value: &[u8]) -> Result<StateEvent, Fault> {
    let row: CurrentState = record::decode(value)?;
    Ok(Placed { position: row.position, event: Arc::new(row.event) })
}
