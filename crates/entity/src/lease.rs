//! Leases: who may append, from which position, until when.

use std::sync::Arc;

use cofactor_store::{CasOutcome, Key, Store, StoreError, key, record, tables};
use cofactor_types::{Clock, Epoch, NodeId, Position};
use serde::{Deserialize, Serialize};

/// How far ahead a lease reaches, in microseconds. It is renewed at a third of it. A node that restarts after a crash
/// does not wait for it: it starts above the end that the row records.
const LENGTH_US: u64 = 60_000_000;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct LeaseRow {
    epoch: Epoch,
    node: NodeId,
    /// No position above this was used or promised.
    end: Position,
}

/// Why a lease is not ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another node has taken the shards.
    #[error("another node has taken the lease (epoch {0})")]
    Lost(Epoch),
}

/// The right to append to the logs of a group of shards.
#[derive(Debug)]
pub struct Lease {
    store: Arc<dyn Store>,
    name: String,
    row: LeaseRow,
    start: Position,
}

impl Lease {
    /// Takes the lease called `name`, whoever held it: the epoch rises, and positions start above all that the row allows
    /// the holder before. Taking what another *live* node holds is for the membership protocol to prevent.
    ///
    /// # Errors
    /// [`LeaseError::Store`] if the store fails, [`LeaseError::Lost`] if others keep taking it first.
    pub async fn take(
        store: Arc<dyn Store>,
        clock: &dyn Clock,
        name: impl Into<String>,
        node: NodeId,
    ) -> Result<Self, LeaseError> {
        const TRIES_MAX: usize = 16;
        let name = name.into();
        let partition = key![name.as_str()];
        let mut last_seen = Epoch(0);
        for _ in 0..TRIES_MAX {
            let found = store.get(&tables::LEASES, &partition, &Key::EMPTY).await?;
            let before = found.as_deref().map(record::decode::<LeaseRow>).transpose()?;
            let (epoch, start) = before.map_or((Epoch(0), Position::ZERO), |row| (row.epoch, row.end));
            last_seen = epoch;
            let row = LeaseRow { epoch: Epoch(epoch.0 + 1), node, end: end_after(clock, start) };
            let new = record::encode(&row)?;
            match store.compare_and_set(&tables::LEASES, &partition, &Key::EMPTY, found, Some(new)).await {
                Ok(CasOutcome::Applied) => return Ok(Self { store, name, row, start }),
                // After an unknown outcome the next round reads what stands; an epoch may be skipped, which harms nobody.
                Ok(CasOutcome::Found(_)) | Err(StoreError::Unknown(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(LeaseError::Lost(last_seen))
    }

    /// The epoch of our appends.
    pub fn epoch(&self) -> Epoch {
        self.row.epoch
    }

    /// Positions start above this.
    pub fn start(&self) -> Position {
        self.start
    }

    /// Positions end here until the lease is renewed.
    pub fn end(&self) -> Position {
        self.row.end
    }

    /// How often to renew, in microseconds.
    pub fn renewal_us() -> u64 {
        LENGTH_US / 3
    }

    /// Moves the end on; returns the new one.
    ///
    /// # Errors
    /// [`LeaseError::Lost`] if another node has taken it: nothing more may be written.
    pub async fn renew(&mut self, clock: &dyn Clock) -> Result<Position, LeaseError> {
        let end = end_after(clock, self.row.end.previous());
        self.set_end(end).await?;
        Ok(end)
    }

    /// Hands the shards back: a successor may start right above `last`.
    ///
    /// # Errors
    /// As [`Self::renew`].
    pub async fn release(&mut self, last: Position) -> Result<(), LeaseError> {
        self.set_end(last).await
    }

    async fn set_end(&mut self, end: Position) -> Result<(), LeaseError> {
        let row = LeaseRow { end, ..self.row.clone() };
        let (expected, new) = (record::encode(&self.row)?, record::encode(&row)?);
        let partition = key![self.name.as_str()];
        let outcome = self
            .store
            .compare_and_set(&tables::LEASES, &partition, &Key::EMPTY, Some(expected), Some(new.clone()))
            .await;
        let found = match outcome {
            Ok(CasOutcome::Applied) => Some(new.clone()),
            Ok(CasOutcome::Found(found)) => found,
            Err(StoreError::Unknown(_)) => self.store.get(&tables::LEASES, &partition, &Key::EMPTY).await?,
            Err(error) => return Err(error.into()),
        };
        let found = found.as_deref().map(record::decode::<LeaseRow>).transpose()?;
        match found {
            Some(found) if found == row => {
                self.row = row;
                Ok(())
            }
            // The write is still on its way or lost; the old end is what we may rely on.
            Some(found) if found == self.row => Err(StoreError::Unavailable("the lease was not renewed".into()).into()),
            Some(found) => Err(LeaseError::Lost(found.epoch)),
            None => Err(LeaseError::Lost(Epoch(0))),
        }
    }
}

/// A new end: ahead of the clock, and above `floor`, which a clock that stepped back may be below.
fn end_after(clock: &dyn Clock, floor: Position) -> Position {
    Position(clock.now_us().max(floor.0).saturating_add(LENGTH_US))
}

#[cfg(test)]
mod tests {
    use cofactor_store::model::ModelStore;
    use cofactor_types::SystemClock;

    use super::*;

    async fn take(store: &ModelStore, node: u64) -> Lease {
        Lease::take(Arc::new(store.clone()), &SystemClock, "all", NodeId(node)).await.unwrap()
    }

    #[tokio::test]
    async fn a_successor_starts_above_the_end_that_the_row_records() {
        let store = ModelStore::new(1, true);
        let first = take(&store, 1).await;
        let second = take(&store, 2).await;
        assert_eq!((first.epoch(), second.epoch()), (Epoch(1), Epoch(2)));
        assert_eq!(second.start(), first.end());
        assert!(second.end() > second.start());
    }

    #[tokio::test]
    async fn after_a_release_the_successor_starts_at_the_released_position() {
        let store = ModelStore::new(1, true);
        let mut first = take(&store, 1).await;
        let last = Position(first.start().0 + 7);
        first.release(last).await.unwrap();
        assert_eq!(take(&store, 2).await.start(), last);
    }

    #[tokio::test]
    async fn a_lease_taken_by_another_cannot_be_renewed() {
        let store = ModelStore::new(1, true);
        let mut first = take(&store, 1).await;
        let _second = take(&store, 2).await;
        assert_eq!(first.renew(&SystemClock).await, Err(LeaseError::Lost(Epoch(2))));
    }
}
