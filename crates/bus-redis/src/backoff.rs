//! Pauses between attempts.

use std::{sync::Arc, time::Duration};

use cofactor_types::Entropy;

use crate::RedisOptions;

/// Pauses that double up to a limit, each drawn from its upper half, so that processes that lost the same server do not
/// all come back at once.
#[derive(Debug)]
pub(crate) struct Backoff {
    entropy: Arc<dyn Entropy>,
    min_ms: u64,
    max_ms: u64,
    ceiling_ms: u64,
}

impl Backoff {
    pub(crate) fn new(options: &RedisOptions, entropy: Arc<dyn Entropy>) -> Self {
        let (min_ms, max_ms) = (options.retry_min_ms, options.retry_max_ms.max(options.retry_min_ms));
        Self { entropy, min_ms, max_ms, ceiling_ms: min_ms }
    }

    /// An attempt held: the next pause is a short one.
    pub(crate) fn reset(&mut self) {
        self.ceiling_ms = self.min_ms;
    }

    pub(crate) fn next(&mut self) -> Duration {
        let half_ms = self.ceiling_ms / 2;
        let jitter_ms = self.entropy.u128() % u128::from(self.ceiling_ms - half_ms + 1);
        self.ceiling_ms = self.ceiling_ms.saturating_mul(2).min(self.max_ms);
        // Smaller than the ceiling, which is 64 bits.
        Duration::from_millis(half_ms + jitter_ms as u64)
    }
}

#[cfg(test)]
mod tests {
    use cofactor_types::SystemEntropy;

    use super::*;

    #[test]
    fn pauses_grow_to_their_bound_and_start_again_after_success() {
        let options = RedisOptions { retry_min_ms: 10, retry_max_ms: 100, ..Default::default() };
        let mut backoff = Backoff::new(&options, Arc::new(SystemEntropy));
        for ceiling_ms in [10, 20, 40, 80, 100, 100] {
            let pause_ms = backoff.next().as_millis();
            assert!((ceiling_ms / 2..=ceiling_ms).contains(&pause_ms), "{pause_ms} of {ceiling_ms}");
        }
        backoff.reset();
        assert!(backoff.next().as_millis() <= 10);
    }
}
