//! Time and randomness as parameters, so that a simulation owns both.

use std::{
    fmt::Debug,
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use rustix::time::{ClockId, clock_gettime};

/// Wall-clock time.
///
/// Positions and `origin_server_ts` come from here. Nothing may assume that it never steps back: owners keep their own
/// last position and only ever go above it.
pub trait Clock: Debug + Send + Sync + 'static {
    /// Microseconds since the Unix epoch.
    fn now_us(&self) -> u64;

    /// Milliseconds since the Unix epoch.
    fn now_ms(&self) -> u64 {
        self.now_us() / 1_000
    }

    /// Microseconds since some fixed moment. It never steps, and goes on while the machine sleeps or the process is
    /// stopped: by it a node knows how old its lease is.
    fn steady_us(&self) -> u64;
}

/// Randomness fit for secrets and identifiers.
pub trait Entropy: Debug + Send + Sync + 'static {
    /// Fills `bytes` with unpredictable bytes.
    fn fill(&self, bytes: &mut [u8]);

    /// A random 128-bit number, for batch ids and the like.
    fn u128(&self) -> u128 {
        let mut bytes = [0; 16];
        self.fill(&mut bytes);
        u128::from_le_bytes(bytes)
    }

    /// A random string of `len` characters out of `[A-Za-z0-9]`.
    fn alphanumeric(&self, len: usize) -> String {
        const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
        // 248 is the largest multiple of 62 in a byte: values above it are drawn again, else some letters come more often.
        const FAIR_MAX: u8 = 248;
        let mut out = String::with_capacity(len);
        let mut bytes = [0; 64];
        while out.len() < len {
            self.fill(&mut bytes);
            let fair = bytes.iter().filter(|byte| **byte < FAIR_MAX);
            out.extend(fair.take(len - out.len()).map(|byte| char::from(ALPHABET[usize::from(byte % 62)])));
        }
        out
    }

    /// A random string of `len` upper-case letters, the usual shape of a device id.
    fn upper_case(&self, len: usize) -> String {
        const FAIR_MAX: u8 = 234;
        let mut out = String::with_capacity(len);
        let mut bytes = [0; 32];
        while out.len() < len {
            self.fill(&mut bytes);
            let fair = bytes.iter().filter(|byte| **byte < FAIR_MAX);
            out.extend(fair.take(len - out.len()).map(|byte| char::from(b'A' + byte % 26)));
        }
        out
    }
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

/// A clock that stands still until it is told otherwise, in microseconds: for tests.
#[derive(Debug, Default)]
pub struct ManualClock(pub AtomicU64);

impl Clock for ManualClock {
    fn now_us(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn steady_us(&self) -> u64 {
        self.now_us()
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the machine's clock")]
    fn now_us(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }

    fn steady_us(&self) -> u64 {
        let since = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(since.tv_sec).unwrap_or(0);
        seconds.saturating_mul(1_000_000) + u64::try_from(since.tv_nsec).unwrap_or(0) / 1_000
    }
}

/// The operating system's random source.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        if let Err(error) = getrandom::fill(bytes) {
            // Going on with predictable secrets would be worse than stopping.
            panic!("the operating system gives no randomness: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_strings_have_the_length_and_alphabet_asked_for() {
        let text = SystemEntropy.alphanumeric(200);
        assert_eq!(text.len(), 200);
        assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        let device = SystemEntropy.upper_case(10);
        assert_eq!(device.len(), 10);
        assert!(device.bytes().all(|byte| byte.is_ascii_uppercase()));
        assert_ne!(SystemEntropy.alphanumeric(32), SystemEntropy.alphanumeric(32));
    }
}
