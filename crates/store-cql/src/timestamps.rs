//! Timestamps of plain writes.

use std::sync::atomic::{AtomicI64, Ordering};

use cofactor_types::{Clock, Position, SystemClock};

/// How far ahead of this machine's clock a position may lift the timestamps, in microseconds: one hour. A position of a
/// damaged log must not make every later write of this row lose for ever.
const LIFT_MAX_US: u64 = 3_600_000_000;

/// Gives every plain write a later timestamp than the one before, and than the log positions appended here before.
///
/// On CQL the write with the highest timestamp stands. Within one process the order of calls is kept whatever the clock
/// does. Across processes the positions carry it: a new owner's first append is above all positions of the old one, so what
/// it writes afterwards is too, even if its clock is behind.
#[derive(Debug, Default)]
pub(crate) struct Timestamps {
    last_us: AtomicI64,
}

impl Timestamps {
    /// A timestamp in microseconds above all given before.
    pub(crate) fn next(&self) -> i64 {
        self.above(i64::try_from(SystemClock.now_us()).unwrap_or(i64::MAX - 1))
    }

    fn above(&self, now_us: i64) -> i64 {
        let step = |last: i64| now_us.max(last.saturating_add(1));
        let before = self.last_us.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(step(last)));
        before.map_or(now_us, step)
    }

    /// Keeps the next timestamps above `position`.
    pub(crate) fn lift(&self, position: Position) {
        if position.0 <= SystemClock.now_us().saturating_add(LIFT_MAX_US)
            && let Ok(position) = i64::try_from(position.0)
        {
            self.last_us.fetch_max(position, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_rise_when_the_clock_stands_or_steps_back() {
        let timestamps = Timestamps::default();
        assert_eq!([50, 50, 40, 60].map(|now| timestamps.above(now)), [50, 51, 52, 60]);
    }

    #[test]
    fn a_position_lifts_them_and_an_absurd_one_does_not() {
        let timestamps = Timestamps::default();
        let ahead = SystemClock.now_us() + 60_000_000;
        timestamps.lift(Position(ahead));
        assert_eq!(timestamps.next(), i64::try_from(ahead).expect("a time") + 1);
        timestamps.lift(Position::MAX);
        assert_eq!(timestamps.next(), i64::try_from(ahead).expect("a time") + 2);
    }
}
