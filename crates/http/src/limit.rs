//! Rate limits: token buckets by class and key.
//! <https://spec.matrix.org/v1.19/client-server-api/#rate-limiting>

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use cofactor_types::Clock;
use serde::{Deserialize, Serialize};

use crate::ApiError;

/// Buckets kept at once. When there are more, the full ones go, which limits nobody less.
const BUCKETS_MAX: usize = 100_000;

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LimitClass {
    /// Logins, by address and by account.
    Login,
    /// Registrations, by address.
    Registration,
    /// Events, by user.
    Send,
    /// Joins, by user.
    Join,
    /// Invites, by user.
    Invite,
    /// Rooms, by user.
    CreateRoom,
    /// Uploads, by user.
    Media,
    /// All else that costs much, by user or address.
    Other,
}

impl LimitClass {
    /// The word in keys and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::Registration => "registration",
            Self::Send => "send",
            Self::Join => "join",
            Self::Invite => "invite",
            Self::CreateRoom => "create_room",
            Self::Media => "media",
            Self::Other => "other",
        }
    }
}

/// A bucket's measures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Requests a second that may go on for ever.
    pub per_second: f64,
    /// Requests at once.
    pub burst: f64,
}

/// What an operator may choose.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitOptions {
    /// Whether there are limits at all.
    pub enabled: bool,
    /// Logins, by address and by account.
    pub login: Rate,
    /// Registrations, by address.
    pub registration: Rate,
    /// Events, by user.
    pub send: Rate,
    /// Joins, by user.
    pub join: Rate,
    /// Invites, by user.
    pub invite: Rate,
    /// New rooms, by user.
    pub create_room: Rate,
    /// Uploads, by user.
    pub media: Rate,
    /// Other costly requests, by user or address.
    pub other: Rate,
}

impl Default for LimitOptions {
    fn default() -> Self {
        let rate = |per_second, burst| Rate { per_second, burst };
        Self {
            enabled: true,
            login: rate(0.2, 10.0),
            registration: rate(0.17, 5.0),
            send: rate(20.0, 200.0),
            join: rate(1.0, 30.0),
            invite: rate(1.0, 50.0),
            create_room: rate(0.5, 20.0),
            media: rate(10.0, 50.0),
            other: rate(10.0, 100.0),
        }
    }
}

impl LimitOptions {
    /// The measures of a class.
    pub fn rate(&self, class: LimitClass) -> Rate {
        match class {
            LimitClass::Login => self.login,
            LimitClass::Registration => self.registration,
            LimitClass::Send => self.send,
            LimitClass::Join => self.join,
            LimitClass::Invite => self.invite,
            LimitClass::CreateRoom => self.create_room,
            LimitClass::Media => self.media,
            LimitClass::Other => self.other,
        }
    }

    /// The same limits with only this part of each rate and burst, which still lets one request through at a time.
    #[must_use]
    pub fn share(&self, part: f64) -> Self {
        let share = |rate: Rate| Rate {
            per_second: rate.per_second * part,
            burst: (rate.burst * part).max(1.0).min(rate.burst),
        };
        Self {
            enabled: self.enabled,
            login: share(self.login),
            registration: share(self.registration),
            send: share(self.send),
            join: share(self.join),
            invite: share(self.invite),
            create_room: share(self.create_room),
            media: share(self.media),
            other: share(self.other),
        }
    }
}

struct Bucket {
    tokens: f64,
    at_us: u64,
}

/// Limits that one process counts by itself.
#[derive(Clone)]
pub struct RateLimiter {
    options: Arc<LimitOptions>,
    clock: Arc<dyn Clock>,
    buckets: Arc<Mutex<HashMap<(LimitClass, String), Bucket>>>,
}

impl std::fmt::Debug for RateLimiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RateLimiter").field("options", &self.options).finish_non_exhaustive()
    }
}

impl RateLimiter {
    /// Limits by `options`, with full buckets.
    pub fn new(options: LimitOptions, clock: Arc<dyn Clock>) -> Self {
        Self { options: Arc::new(options), clock, buckets: Arc::default() }
    }

    /// Takes one token.
    ///
    /// # Errors
    /// [`ApiError::limit_exceeded`] if there is none.
    pub fn take(&self, class: LimitClass, key: &str) -> Result<(), ApiError> {
        if !self.options.enabled {
            return Ok(());
        }
        let rate = self.options.rate(class);
        let now_us = self.clock.now_us();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= BUCKETS_MAX {
            buckets
                .retain(|(class, _), bucket| self.refilled(*class, bucket, now_us) < self.options.rate(*class).burst);
        }
        if buckets.len() >= BUCKETS_MAX {
            // So many callers at once is an attack or a wrong limit; stricter is the safe side.
            return Err(ApiError::limit_exceeded(1_000));
        }
        let bucket = buckets.entry((class, key.to_owned())).or_insert(Bucket { tokens: rate.burst, at_us: now_us });
        bucket.tokens = self.refilled(class, bucket, now_us);
        bucket.at_us = now_us;
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Ok(());
        }
        let wait_ms = (1.0 - bucket.tokens) / rate.per_second.max(1e-6) * 1_000.0;
        Err(ApiError::limit_exceeded((wait_ms.ceil() as u64).clamp(1, 3_600_000)))
    }

    fn refilled(&self, class: LimitClass, bucket: &Bucket, now_us: u64) -> f64 {
        let rate = self.options.rate(class);
        let passed_s = now_us.saturating_sub(bucket.at_us) as f64 / 1e6;
        (bucket.tokens + passed_s * rate.per_second).min(rate.burst)
    }
}

#[cfg(test)]
mod tests {
    use cofactor_types::ManualClock;
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn a_burst_is_let_through_and_then_the_rate_with_the_time_to_wait() {
        let clock = Arc::new(ManualClock::default());
        let options = LimitOptions { login: Rate { per_second: 0.5, burst: 2.0 }, ..LimitOptions::default() };
        let limiter = RateLimiter::new(options, Arc::clone(&clock) as Arc<dyn Clock>);
        assert!(limiter.take(LimitClass::Login, "a").is_ok());
        assert!(limiter.take(LimitClass::Login, "a").is_ok());
        assert_eq!(limiter.take(LimitClass::Login, "a").unwrap_err().retry_after_ms, Some(2_000));
        assert!(limiter.take(LimitClass::Login, "b").is_ok());
        clock.0.store(2_000_000, Ordering::Relaxed);
        assert!(limiter.take(LimitClass::Login, "a").is_ok());
        assert!(limiter.take(LimitClass::Login, "a").is_err());
    }
}
