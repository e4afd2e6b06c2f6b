//! Publishers that are heard, so that their silence is noticed.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Publishers watched at once; those beyond are heard all the same, only their silence is not noticed.
const PEERS_MAX: usize = 10_000;

/// When each publisher had its last heartbeat. A publisher without heartbeats owes nobody any sign of life.
#[derive(Debug, Default)]
pub(crate) struct Peers(Mutex<HashMap<u64, Instant>>);

impl Peers {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn heard(&self, publisher: u64, now: Instant) {
        let mut peers = self.lock();
        if peers.len() < PEERS_MAX || peers.contains_key(&publisher) {
            peers.insert(publisher, now);
        }
    }

    /// The publisher said goodbye.
    pub(crate) fn left(&self, publisher: u64) {
        self.lock().remove(&publisher);
    }

    /// Forgets everybody: what they say cannot be heard.
    pub(crate) fn clear(&self) {
        self.lock().clear();
    }

    /// How many fell silent since the last call: each is told once.
    pub(crate) fn silent(&self, limit: Duration, now: Instant) -> usize {
        let mut peers = self.lock();
        let before = peers.len();
        peers.retain(|_, heard| now.saturating_duration_since(*heard) <= limit);
        before - peers.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_noticed_once_and_goodbye_is_not_silence() {
        let (peers, limit, start) = (Peers::default(), Duration::from_secs(1), Instant::now());
        let after = |ms| start + Duration::from_millis(ms);
        (1..=3).for_each(|publisher| peers.heard(publisher, start));
        peers.heard(1, after(900));
        peers.left(3);
        assert_eq!(peers.silent(limit, after(1_000)), 0);
        assert_eq!(peers.silent(limit, after(1_100)), 1);
        assert_eq!(peers.silent(limit, after(1_200)), 0);
        peers.clear();
        assert_eq!(peers.silent(limit, after(9_000)), 0);
    }
}
