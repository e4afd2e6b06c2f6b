//! Token buckets: how often something may happen.

use std::time::Duration;

/// The longest wait that a refusal names; a caller that comes back then is told again.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(3_600);

/// The slowest rate that is told from none at all, in tokens a second.
const PER_SECOND_MIN: f64 = 1e-6;

/// The largest rate and burst; beyond them nothing is limited anyway.
const VALUE_MAX: f64 = 1e9;

/// A bucket's measures. Values that make no sense (negative, not a number) are taken as the least that do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Tokens a second that may be taken for ever.
    pub per_second: f64,
    /// Tokens in a full bucket: how many may be taken at once.
    pub burst: f64,
}

impl Rate {
    /// The same measures with both of them finite and above zero, as every implementation must use them.
    pub fn sane(self) -> Self {
        // A number that is none is not above anything.
        let sane = |value: f64, least: f64| if value > least { value.min(VALUE_MAX) } else { least };
        Self { per_second: sane(self.per_second, PER_SECOND_MIN), burst: sane(self.burst, 1.0) }
    }
}

/// What [`crate::Shared::take_tokens`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The tokens are taken.
    Allowed,
    /// There are too few, and none was taken.
    Denied {
        /// When there will be enough if nobody takes any until then; whole milliseconds, at least one, at most
        /// [`RETRY_AFTER_MAX`].
        retry_after: Duration,
    },
}

impl Decision {
    /// A refusal with the wait in milliseconds, brought within its bounds.
    pub fn denied(retry_after_ms: u64) -> Self {
        Self::Denied { retry_after: Duration::from_millis(retry_after_ms.max(1)).min(RETRY_AFTER_MAX) }
    }
}

/// A bucket in this process's memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    tokens: f64,
    at_us: u64,
    /// When it will be full again, which is as good as gone.
    pub(crate) full_at_us: u64,
}

impl Bucket {
    pub(crate) fn full(rate: Rate, now_us: u64) -> Self {
        Self { tokens: rate.sane().burst, at_us: now_us, full_at_us: now_us }
    }

    pub(crate) fn take(&mut self, rate: Rate, cost: u32, now_us: u64) -> Decision {
        let Rate { per_second, burst } = rate.sane();
        let cost = f64::from(cost);
        let passed_s = now_us.saturating_sub(self.at_us) as f64 / 1e6;
        self.tokens = (self.tokens + passed_s * per_second).min(burst);
        self.at_us = now_us;
        let decision = if self.tokens >= cost {
            self.tokens -= cost;
            Decision::Allowed
        } else {
            Decision::denied(((cost - self.tokens) / per_second * 1e3).ceil() as u64)
        };
        self.full_at_us = now_us.saturating_add(((burst - self.tokens) / per_second * 1e6) as u64);
        decision
    }
}
