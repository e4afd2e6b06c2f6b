//! Connections to other nodes, one for each address.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cofactor_types::{Clock, Fault};
use futures::future::BoxFuture;
use hyper::rt::Executor;
use tokio::runtime::Handle;
use tonic::{
    codegen::http::uri::Authority,
    transport::{Channel, ClientTlsConfig, Endpoint},
};

use crate::{
    options::{ClientOptions, Security, SecurityError},
    server::sentence,
};

/// What the other side may send ahead of its being read, in bytes: of one call, and of all.
const CALL_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// Calls of one connection that were given up and whose late answers are still ignored quietly. A node that was paused
/// answers many of them at once, and must not be taken for an attacker.
const GIVEN_UP_MAX: usize = 32_768;
/// How long they are ignored quietly. Beyond it a late answer counts as an offence of the other node.
const GIVEN_UP_FOR: Duration = Duration::from_secs(60);

/// Channels by address. A channel connects when it is first used and again whenever its connection is gone.
pub(crate) struct Pool {
    options: ClientOptions,
    tls: Option<ClientTlsConfig>,
    clock: Arc<dyn Clock>,
    home: Home,
    entries: Mutex<HashMap<String, Entry>>,
}

/// The runtime on which all connections live. Callers are on runtimes of their own, of which one may end while others
/// still wait for what comes over the same connection.
#[derive(Clone, Debug)]
struct Home(Handle);

impl Executor<BoxFuture<'static, ()>> for Home {
    fn execute(&self, work: BoxFuture<'static, ()>) {
        self.0.spawn(work);
    }
}

#[derive(Debug)]
struct Entry {
    channel: Channel,
    used_us: u64,
}

impl Pool {
    /// Of the runtime inside which it is called.
    pub(crate) fn new(options: ClientOptions, clock: Arc<dyn Clock>) -> Result<Self, SecurityError> {
        let tls = match &options.security {
            Security::Secret(_) => None,
            Security::MutualTls(tls) => Some(tls.client()?),
        };
        let pool = Self { options, tls, clock, home: Home(Handle::current()), entries: Mutex::default() };
        // Certificates that cannot be used shall stop the node as it starts, not the first call.
        let unfit = |error: tonic::transport::Error| SecurityError::Certificates(sentence(&error));
        pool.endpoint("localhost:1").map_err(unfit)?;
        Ok(pool)
    }

    /// The channel to `address`, a host and port. Calls that still use one which is dropped here go on undisturbed.
    ///
    /// # Errors
    /// If `address` is none.
    pub(crate) fn channel(&self, address: &str) -> Result<Channel, Fault> {
        let now_us = self.clock.now_us();
        let mut entries = self.lock();
        if let Some(entry) = entries.get_mut(address) {
            entry.used_us = now_us;
            return Ok(entry.channel.clone());
        }
        let nowhere = |why: &str| Fault::unavailable(format!("cannot call a node at `{address}`: {why}"));
        if !is_host_and_port(address) {
            return Err(nowhere("it is no host and port"));
        }
        let channel = self.endpoint(address).map_err(|error| nowhere(&sentence(&error)))?.connect_lazy();
        self.make_room(&mut entries, now_us);
        entries.insert(address.to_owned(), Entry { channel: channel.clone(), used_us: now_us });
        Ok(channel)
    }

    /// Drops idle channels, and the one unused for longest if there are still too many.
    fn make_room(&self, entries: &mut HashMap<String, Entry>, now_us: u64) {
        let idle = |entry: &Entry| Duration::from_micros(now_us.saturating_sub(entry.used_us)) > self.options.idle;
        entries.retain(|_, entry| !idle(entry));
        while entries.len() >= self.options.connections_max.max(1) {
            let oldest = entries.iter().min_by_key(|(_, entry)| entry.used_us).map(|(address, _)| address.clone());
            let Some(oldest) = oldest else { return };
            entries.remove(&oldest);
        }
    }

    fn endpoint(&self, address: &str) -> Result<Endpoint, tonic::transport::Error> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))?
            .executor(self.home.clone())
            .connect_timeout(self.options.connect_timeout)
            .http2_keep_alive_interval(self.options.ping_interval)
            .keep_alive_timeout(self.options.ping_timeout)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(CALL_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_max_concurrent_reset_streams(GIVEN_UP_MAX)
            .http2_reset_stream_duration(GIVEN_UP_FOR)
            .http2_max_local_error_reset_streams(GIVEN_UP_MAX);
        match &self.tls {
            Some(tls) => endpoint.tls_config(tls.clone()),
            None => Ok(endpoint),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        // No code that can panic runs under the lock, and a map of channels is whole at any time.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_host_and_port(address: &str) -> bool {
    let parsed = address.parse::<Authority>();
    parsed.is_ok_and(|parsed| parsed.port_u16().is_some() && !parsed.host().is_empty() && !address.contains('@'))
}

/// Without the TLS configuration, which would print its private key.
impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("options", &self.options).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use cofactor_types::ManualClock;
    use std::sync::atomic::Ordering;

    use super::*;

    fn pool(connections_max: usize, idle: Duration) -> (Pool, Arc<ManualClock>) {
        let security = Security::Secret("correct-horse-battery".to_owned());
        let hand = Arc::new(ManualClock::default());
        let options = ClientOptions { connections_max, idle, ..ClientOptions::new(security) };
        let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&hand);
        (Pool::new(options, clock).unwrap(), hand)
    }

    fn addresses(pool: &Pool) -> Vec<String> {
        let mut addresses: Vec<_> = pool.lock().keys().cloned().collect();
        addresses.sort();
        addresses
    }

    #[tokio::test]
    async fn the_channel_unused_for_longest_makes_room() {
        let (pool, hand) = pool(2, Duration::from_secs(60));
        for (now_us, address) in [(1, "a:1"), (2, "b:1"), (3, "a:1"), (4, "c:1")] {
            hand.0.store(now_us, Ordering::Relaxed);
            pool.channel(address).unwrap();
        }
        assert_eq!(addresses(&pool), ["a:1", "c:1"]);
    }

    #[tokio::test]
    async fn idle_channels_go() {
        let (pool, hand) = pool(10, Duration::from_secs(60));
        pool.channel("a:1").unwrap();
        hand.0.store(30_000_000, Ordering::Relaxed);
        pool.channel("b:1").unwrap();
        hand.0.store(61_000_000, Ordering::Relaxed);
        pool.channel("c:1").unwrap();
        assert_eq!(addresses(&pool), ["b:1", "c:1"]);
    }

    #[tokio::test]
    async fn what_is_no_address_is_refused_and_not_kept() {
        let (pool, _) = pool(10, Duration::from_secs(60));
        for wrong in ["", ":1", "host", "host:port", "two words:1", "user@host:1", "host:1/path"] {
            let fault = pool.channel(wrong).unwrap_err();
            assert_eq!(fault.class, cofactor_types::ErrorClass::Unavailable, "{wrong}");
        }
        assert!(addresses(&pool).is_empty());
    }
}
