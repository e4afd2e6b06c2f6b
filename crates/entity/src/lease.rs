//! The lease of a node: until when, and up to which position, it may act.
//!
//! One row a node, set by compare-and-set. The node moves its end on; another node that has not seen it move for a whole
//! length may end it, after which it cannot be moved any more. What the node owned then passes to others, who begin above
//! the end that the row records.

use std::{sync::Arc, time::Duration};

use cofactor_store::{
    CasOutcome, Key, Store, StoreError, key,
    record::{self, Seen},
    tables,
};
use cofactor_types::{Clock, NodeId, Position};
use serde::{Deserialize, Serialize};

/// A row of the `leases` table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRow {
    /// Whether the node still acts.
    pub alive: bool,
    /// No position above this was used or promised by it.
    pub end: Position,
}

/// Why a lease cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another node has ended it: nothing more may be written.
    #[error("another node took this one for dead and ended its lease")]
    Ended,
}

/// How often a row that moved meanwhile is tried again.
const TRIES_MAX: u32 = 5;

/// What is in the row after an attempt to set it.
enum Stands {
    AsAsked,
    /// Another row of this node, which lives.
    Other,
}

/// This node's lease.
#[derive(Debug)]
pub struct Lease {
    store: Arc<dyn Store>,
    node: NodeId,
    length_us: u64,
    row: LeaseRow,
}

impl Lease {
    /// A lease for a new node.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn take(
        store: Arc<dyn Store>,
        clock: &dyn Clock,
        node: NodeId,
        length: Duration,
    ) -> Result<Self, LeaseError> {
        let length_us = u64::try_from(length.as_micros()).unwrap_or(u64::MAX);
        let row = LeaseRow { alive: true, end: Position(clock.now_us().saturating_add(length_us)) };
        let mut lease = Self { store, node, length_us, row: row.clone() };
        match lease.set(None, &row).await? {
            Stands::AsAsked => Ok(lease),
            Stands::Other => Err(StoreError::Unavailable("another node has this number".into()).into()),
        }
    }

    /// Positions end here until the lease is renewed.
    pub fn end(&self) -> Position {
        self.row.end
    }

    /// How long it lasts, in microseconds.
    pub fn length_us(&self) -> u64 {
        self.length_us
    }

    /// Moves the end on, beyond now and beyond `last`; returns the new one.
    ///
    /// # Errors
    /// [`LeaseError::Ended`]: nothing more may be written.
    pub async fn renew(&mut self, clock: &dyn Clock, last: Position) -> Result<Position, LeaseError> {
        let end = Position(clock.now_us().max(last.0).saturating_add(self.length_us));
        self.replace(|row| LeaseRow { alive: true, end: end.max(row.end) }).await?;
        Ok(self.row.end)
    }

    /// Ends it: successors may begin right above `last`.
    ///
    /// # Errors
    /// If the store fails; it then ends by itself.
    pub async fn end_at(&mut self, last: Position) -> Result<(), LeaseError> {
        self.replace(|_| LeaseRow { alive: false, end: last }).await
    }

    /// Sets the row. Where an earlier renewal of this node arrived that was given up, its row is the one to go on from.
    async fn replace(&mut self, next: impl Fn(&LeaseRow) -> LeaseRow) -> Result<(), LeaseError> {
        for _ in 0..TRIES_MAX {
            let (expected, row) = (self.row.clone(), next(&self.row));
            if let Stands::AsAsked = self.set(Some(expected), &row).await? {
                return Ok(());
            }
        }
        Err(StoreError::Unavailable("the lease keeps moving".into()).into())
    }

    /// The lease of any node.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn read(store: &dyn Store, node: NodeId) -> Result<Option<Seen<LeaseRow>>, StoreError> {
        let found = store.get(&tables::LEASES, &key![node.0], &Key::EMPTY).await?;
        found.map(Seen::read).transpose()
    }

    /// Ends the lease of another node, if it still stands as `seen`. `None`: it has moved, so the node lives.
    ///
    /// # Errors
    /// If the store fails or says nothing; then nobody knows, and it is asked again later.
    pub async fn bury(store: &dyn Store, node: NodeId, seen: &Seen<LeaseRow>) -> Result<Option<LeaseRow>, StoreError> {
        let dead = LeaseRow { alive: false, end: seen.row.end };
        let (expected, new) = (seen.bytes().clone(), record::encode(&dead)?);
        match store.compare_and_set(&tables::LEASES, &key![node.0], &Key::EMPTY, Some(expected), Some(new)).await? {
            CasOutcome::Applied => Ok(Some(dead)),
            CasOutcome::Found(found) => {
                let found = found.as_deref().map(record::decode::<LeaseRow>).transpose()?;
                Ok(found.filter(|row| !row.alive))
            }
        }
    }

    async fn set(&mut self, expected: Option<LeaseRow>, row: &LeaseRow) -> Result<Stands, LeaseError> {
        let before = expected.as_ref().map(record::encode).transpose()?;
        let new = record::encode(row)?;
        let partition = key![self.node.0];
        let outcome =
            self.store.compare_and_set(&tables::LEASES, &partition, &Key::EMPTY, before, Some(new.clone())).await;
        let found = match outcome {
            Ok(CasOutcome::Applied) => Some(new),
            Ok(CasOutcome::Found(found)) => found,
            Err(StoreError::Unknown(_)) => self.store.get(&tables::LEASES, &partition, &Key::EMPTY).await?,
            Err(error) => return Err(error.into()),
        };
        match found.as_deref().map(record::decode::<LeaseRow>).transpose()? {
            Some(found) if found == *row => {
                self.row = found;
                Ok(Stands::AsAsked)
            }
            // The write was lost, or is still on its way; either way the end that stands is the one we may rely on.
            found if found == expected => Err(StoreError::Unavailable("the lease could not be renewed".into()).into()),
            Some(found) if found.alive => {
                self.row = found;
                Ok(Stands::Other)
            }
            _ => Err(LeaseError::Ended),
        }
    }
}

#[cfg(test)]
mod tests {
    use cofactor_store::model::ModelStore;
    use cofactor_types::SystemClock;

    use super::*;

    async fn take(store: &ModelStore, node: u64) -> Lease {
        let length = Duration::from_secs(6);
        Lease::take(Arc::new(store.clone()), &SystemClock, NodeId(node), length).await.unwrap()
    }

    #[test]
    fn leases_are_read_for_ever() {
        let row = LeaseRow { alive: true, end: Position(1_780_000_000_000_000) };
        cofactor_golden::Golden::new("store/lease").record(&[row]);
    }

    #[tokio::test]
    async fn a_lease_that_a_node_of_a_later_release_left_can_be_buried() {
        #[derive(Serialize)]
        struct Later {
            alive: bool,
            zone: &'static str,
            end: Position,
        }
        let store = ModelStore::new(1, true);
        let later = record::encode(&Later { alive: true, zone: "a", end: Position(7) }).unwrap();
        let put = store.compare_and_set(&tables::LEASES, &key![1_u64], &Key::EMPTY, None, Some(later)).await;
        assert_eq!(put, Ok(CasOutcome::Applied));
        let seen = Lease::read(&store, NodeId(1)).await.unwrap().unwrap();
        let over = Lease::bury(&store, NodeId(1), &seen).await;
        assert_eq!(over, Ok(Some(LeaseRow { alive: false, end: Position(7) })));
    }

    #[tokio::test]
    async fn a_lease_moves_on_and_ends_where_its_node_says() {
        let store = ModelStore::new(1, true);
        let mut lease = take(&store, 1).await;
        let before = lease.end();
        let far = Position(before.0 + 10_000_000);
        assert!(lease.renew(&SystemClock, far).await.unwrap() > far, "positions may run ahead of the clock");
        lease.end_at(Position(5)).await.unwrap();
        let row = Lease::read(&store, NodeId(1)).await.unwrap().map(|seen| seen.row);
        assert_eq!(row, Some(LeaseRow { alive: false, end: Position(5) }));
    }

    #[tokio::test]
    async fn a_renewal_that_was_given_up_and_arrived_does_not_keep_the_lease_from_moving_or_ending() {
        let store = ModelStore::new(1, true);
        let mut lease = take(&store, 1).await;
        for ends in [false, true] {
            let before = Lease::read(&store, NodeId(1)).await.unwrap().unwrap();
            let end = Position(before.row.end.0 + 60_000_000);
            let arrived = record::encode(&LeaseRow { alive: true, end }).unwrap();
            let expected = Some(before.bytes().clone());
            let put = store.compare_and_set(&tables::LEASES, &key![1_u64], &Key::EMPTY, expected, Some(arrived)).await;
            assert_eq!(put, Ok(CasOutcome::Applied));
            if ends {
                lease.end_at(Position(5)).await.unwrap();
            } else {
                assert!(lease.renew(&SystemClock, Position::ZERO).await.unwrap() >= end);
            }
        }
        let row = Lease::read(&store, NodeId(1)).await.unwrap().map(|seen| seen.row);
        assert_eq!(row, Some(LeaseRow { alive: false, end: Position(5) }));
    }

    #[tokio::test]
    async fn a_buried_lease_cannot_be_renewed() {
        let store = ModelStore::new(1, true);
        let mut lease = take(&store, 1).await;
        let seen = Lease::read(&store, NodeId(1)).await.unwrap().unwrap();
        assert!(Lease::bury(&store, NodeId(1), &seen).await.unwrap().is_some());
        assert_eq!(lease.renew(&SystemClock, Position::ZERO).await, Err(LeaseError::Ended));
    }

    #[tokio::test]
    async fn a_lease_that_moved_cannot_be_buried() {
        let store = ModelStore::new(1, true);
        let mut lease = take(&store, 1).await;
        let seen = Lease::read(&store, NodeId(1)).await.unwrap().unwrap();
        lease.renew(&SystemClock, Position(seen.row.end.0 + 1)).await.unwrap();
        assert_eq!(Lease::bury(&store, NodeId(1), &seen).await, Ok(None));
    }
}
