//! The clock of one machine: its steady time never steps, its wall clock is set as somebody pleases.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use cofactor_types::Clock;
use tokio::time::Instant;

/// Where simulated time begins, in microseconds since the Unix epoch.
const BEGIN_US: u64 = 1_800_000_000_000_000;

/// A machine's clock. Clones are the same clock.
#[derive(Clone, Debug)]
pub(super) struct MachineClock {
    start: Instant,
    /// Since the start of the machine, at the start of the simulation, in microseconds.
    up_us: u64,
    off_us: Arc<AtomicI64>,
}

impl MachineClock {
    pub(super) fn new(start: Instant, up_us: u64, off_us: i64) -> Self {
        Self { start, up_us, off_us: Arc::new(AtomicI64::new(off_us)) }
    }

    /// Sets the wall clock so much ahead of true time, or behind it.
    pub(super) fn set(&self, off_us: i64) {
        self.off_us.store(off_us, Ordering::Relaxed);
    }

    fn elapsed_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(0)
    }
}

impl Clock for MachineClock {
    fn now_us(&self) -> u64 {
        (BEGIN_US + self.elapsed_us()).saturating_add_signed(self.off_us.load(Ordering::Relaxed))
    }

    fn steady_us(&self) -> u64 {
        self.up_us + self.elapsed_us()
    }
}
