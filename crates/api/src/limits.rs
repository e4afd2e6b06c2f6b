//! Rate limits, counted by all frontends together. <https://spec.matrix.org/v1.19/client-server-api/#rate-limiting>

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use cofactor_bus::{Decision, Rate, Shared};
use cofactor_http::{ApiError, LimitClass, LimitOptions, RateLimiter};
use cofactor_types::Clock;

/// What of each rate and burst a process grants by itself while the shared count cannot be asked. The others do the same:
/// up to so many of them are together no looser than with the count.
const ALONE_SHARE: f64 = 0.25;

/// After a failure the shared count is left alone for this long, in microseconds: who cannot answer must not slow down
/// every request.
const PAUSE_US: u64 = 1_000_000;

/// The rate limits of a deployment.
#[derive(Debug)]
pub struct RateLimits {
    options: LimitOptions,
    shared: Arc<dyn Shared>,
    alone: RateLimiter,
    clock: Arc<dyn Clock>,
    /// By the steady clock.
    ask_again_us: AtomicU64,
}

impl RateLimits {
    /// Limits by `options`, counted in `shared`.
    pub fn new(options: LimitOptions, shared: Arc<dyn Shared>, clock: Arc<dyn Clock>) -> Self {
        let alone = RateLimiter::new(options.share(ALONE_SHARE), Arc::clone(&clock));
        Self { options, shared, alone, clock, ask_again_us: AtomicU64::new(0) }
    }

    /// Takes one token.
    ///
    /// # Errors
    /// [`ApiError::limit_exceeded`] if there is none.
    pub async fn take(&self, class: LimitClass, key: &str) -> Result<(), ApiError> {
        if !self.options.enabled {
            return Ok(());
        }
        let outcome = match self.ask(class, key).await {
            Some(Decision::Allowed) => Ok(()),
            Some(Decision::Denied { retry_after }) => {
                Err(ApiError::limit_exceeded(u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX)))
            }
            None => self.alone.take(class, key),
        };
        if outcome.is_err() {
            metrics::counter!("cofactor_rate_limited_total", "class" => class.as_str()).increment(1);
        }
        outcome
    }

    /// What the shared count says; `None` if it cannot be asked.
    async fn ask(&self, class: LimitClass, key: &str) -> Option<Decision> {
        if self.clock.steady_us() < self.ask_again_us.load(Ordering::Relaxed) {
            return None;
        }
        let rate = self.options.rate(class);
        let rate = Rate { per_second: rate.per_second, burst: rate.burst };
        let bucket = format!("limit:{}:{key}", class.as_str());
        match self.shared.take_tokens(&bucket, rate, 1).await {
            Ok(decision) => Some(decision),
            Err(error) => {
                let again_us = self.clock.steady_us().saturating_add(PAUSE_US);
                let before_us = self.ask_again_us.swap(again_us, Ordering::Relaxed);
                metrics::counter!("cofactor_rate_limit_failures_total").increment(1);
                // Many requests may fail together: one line for all of them.
                if before_us < again_us.saturating_sub(PAUSE_US) {
                    tracing::warn!(%error, "rate limits cannot be counted together; this process counts by itself, more strictly");
                }
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use cofactor_types::ManualClock;
    use std::{
        sync::atomic::{AtomicBool, AtomicUsize},
        time::Duration,
    };

    use async_trait::async_trait;
    use bytes::Bytes;
    use cofactor_bus::{BusError, local::LocalShared};

    use super::*;

    /// Shared facts that can go away.
    #[derive(Debug)]
    struct Line {
        facts: LocalShared,
        is_down: AtomicBool,
        asked: AtomicUsize,
    }

    #[async_trait]
    impl Shared for Line {
        async fn get(&self, key: &str) -> Result<Option<Bytes>, BusError> {
            self.facts.get(key).await
        }

        async fn put(&self, key: &str, value: Bytes, life: Duration) -> Result<(), BusError> {
            self.facts.put(key, value, life).await
        }

        async fn take(&self, key: &str) -> Result<Option<Bytes>, BusError> {
            self.facts.take(key).await
        }

        async fn take_tokens(&self, key: &str, rate: Rate, cost: u32) -> Result<Decision, BusError> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            if self.is_down.load(Ordering::Relaxed) {
                return Err(BusError("gone".into()));
            }
            self.facts.take_tokens(key, rate, cost).await
        }
    }

    fn line(clock: &Arc<ManualClock>) -> Arc<Line> {
        let facts = LocalShared::new(Arc::clone(clock) as Arc<dyn Clock>);
        Arc::new(Line { facts, is_down: AtomicBool::new(false), asked: AtomicUsize::new(0) })
    }

    fn limits(line: &Arc<Line>, clock: &Arc<ManualClock>, burst: f64) -> RateLimits {
        let login = cofactor_http::Rate { per_second: 0.5, burst };
        let options = LimitOptions { login, ..LimitOptions::default() };
        RateLimits::new(options, Arc::clone(line) as Arc<dyn Shared>, Arc::clone(clock) as Arc<dyn Clock>)
    }

    /// How many of 100 requests are let through.
    async fn granted(limits: &RateLimits, key: &str) -> usize {
        let mut granted = 0;
        for _ in 0..100 {
            granted += usize::from(limits.take(LimitClass::Login, key).await.is_ok());
        }
        granted
    }

    #[tokio::test]
    async fn two_frontends_grant_together_what_one_would() {
        let clock = Arc::new(ManualClock::default());
        let line = line(&clock);
        let (one, other) = (limits(&line, &clock, 8.0), limits(&line, &clock, 8.0));
        for _ in 0..4 {
            assert!(one.take(LimitClass::Login, "a").await.is_ok());
            assert!(other.take(LimitClass::Login, "a").await.is_ok());
        }
        assert_eq!(one.take(LimitClass::Login, "a").await.unwrap_err().retry_after_ms, Some(2_000));
        assert!(other.take(LimitClass::Login, "a").await.is_err());
        assert!(other.take(LimitClass::Login, "b").await.is_ok(), "another key has its own bucket");
        assert!(other.take(LimitClass::Send, "a").await.is_ok(), "and so has another class");
    }

    #[tokio::test]
    async fn without_the_shared_count_a_process_grants_less_and_does_not_ask_each_time() {
        let clock = Arc::new(ManualClock::default());
        let line = line(&clock);
        let limits = limits(&line, &clock, 8.0);
        line.is_down.store(true, Ordering::Relaxed);
        assert_eq!(granted(&limits, "a").await, 2);
        assert_eq!(line.asked.load(Ordering::Relaxed), 1);
        line.is_down.store(false, Ordering::Relaxed);
        clock.0.store(PAUSE_US, Ordering::Relaxed);
        assert_eq!(granted(&limits, "a").await, 8, "the shared count is asked again after a pause");
    }

    #[tokio::test]
    async fn a_burst_of_one_stays_one_without_the_shared_count() {
        let clock = Arc::new(ManualClock::default());
        let line = line(&clock);
        let limits = limits(&line, &clock, 1.0);
        line.is_down.store(true, Ordering::Relaxed);
        assert_eq!(granted(&limits, "a").await, 1);
    }
}
