//! The positions of a node, and the promise about them.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cofactor_types::{Clock, Fault, Position};

/// Allocates positions for all shards of a node.
///
/// A position is `max(now in µs, last position + 1)`, never past the end of the lease. From its allocation until it is
/// published or given up it is *open*; the closed position stays below every open one.
#[derive(Debug)]
pub struct Positions {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The highest position allocated or promised away.
    last: u64,
    /// No position above this may be used.
    end: u64,
    open: BTreeSet<u64>,
}

/// A position that is not yet visible. Dropping it says that it is published, or never will be.
#[derive(Debug)]
pub struct OpenPosition {
    position: Position,
    positions: Arc<Positions>,
}

impl OpenPosition {
    /// The position.
    pub fn get(&self) -> Position {
        self.position
    }
}

impl Drop for OpenPosition {
    fn drop(&mut self) {
        self.positions.lock().open.remove(&self.position.0);
    }
}

impl Positions {
    /// Positions above `start`, which the last lease's row gives, and up to `end`.
    pub fn new(clock: Arc<dyn Clock>, start: Position, end: Position) -> Arc<Self> {
        let state = State { last: start.0, end: end.0, open: BTreeSet::new() };
        Arc::new(Self { clock, state: Mutex::new(state) })
    }

    /// The lease is good until `end`.
    pub fn extend(&self, end: Position) {
        let mut state = self.lock();
        state.end = state.end.max(end.0);
    }

    /// Positions go on above `floor`, whatever the clock says.
    pub(crate) fn raise(&self, floor: Position) {
        let mut state = self.lock();
        state.last = state.last.max(floor.0);
    }

    /// Whether a decision that begins now gets all the positions it asks for. One that is refused half-way would leave its
    /// entity changed without a record of it.
    pub(crate) fn has_room(&self) -> bool {
        const DECISION_US: u64 = 100_000;
        let now_us = self.clock.now_us();
        let state = self.lock();
        now_us.max(state.last).saturating_add(DECISION_US) <= state.end
    }

    /// The next position.
    ///
    /// # Errors
    /// [`cofactor_types::ErrorClass::Unavailable`] past the end of the lease.
    pub fn allocate(self: &Arc<Self>) -> Result<OpenPosition, Fault> {
        let now_us = self.clock.now_us();
        let mut state = self.lock();
        let position = now_us.max(state.last.saturating_add(1));
        if position > state.end {
            return Err(Fault::unavailable("this node's lease has ended; it must renew it before it can write"));
        }
        state.last = position;
        state.open.insert(position);
        drop(state);
        Ok(OpenPosition { position: Position(position), positions: Arc::clone(self) })
    }

    /// Promises that no record at or below the answer will ever become visible, and keeps the promise.
    pub fn close(&self) -> Position {
        let now_us = self.clock.now_us();
        let mut state = self.lock();
        match state.open.first() {
            Some(lowest) => Position(lowest - 1),
            None => {
                state.last = state.last.max(now_us.min(state.end));
                Position(state.last)
            }
        }
    }

    /// The highest position used or promised: a successor must start above it.
    pub fn last(&self) -> Position {
        Position(self.lock().last)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use cofactor_types::ManualClock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn positions(now_us: u64, start: u64, end: u64) -> (Arc<ManualClock>, Arc<Positions>) {
        let clock = Arc::new(ManualClock(AtomicU64::new(now_us)));
        (Arc::clone(&clock), Positions::new(clock, Position(start), Position(end)))
    }

    #[test]
    fn positions_rise_although_the_clock_steps_back() {
        let (clock, positions) = positions(100, 0, 1_000);
        let first = positions.allocate().unwrap().get();
        clock.0.store(50, Ordering::Relaxed);
        let second = positions.allocate().unwrap().get();
        assert_eq!((first, second), (Position(100), Position(101)));
    }

    #[test]
    fn a_closed_position_stays_below_every_open_one_and_is_never_used_again() {
        let (_clock, positions) = positions(100, 0, 1_000);
        let open = positions.allocate().unwrap();
        let later = positions.allocate().unwrap();
        drop(later);
        assert_eq!(positions.close(), Position(99));
        drop(open);
        let closed = positions.close();
        assert_eq!(closed, Position(101));
        assert!(positions.allocate().unwrap().get() > closed);
    }

    #[test]
    fn a_successor_starts_above_the_row_even_if_its_clock_is_behind() {
        let (_clock, positions) = positions(10, 500, 1_000);
        assert_eq!(positions.allocate().unwrap().get(), Position(501));
    }

    #[test]
    fn nothing_is_allocated_past_the_end_of_the_lease() {
        let (_clock, positions) = positions(10, 998, 1_000);
        assert!(positions.allocate().is_ok());
        assert!(positions.allocate().is_ok());
        assert!(positions.allocate().is_err());
        positions.extend(Position(2_000));
        assert!(positions.allocate().is_ok());
    }
}
