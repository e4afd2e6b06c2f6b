//! What an operator may choose.

use std::{fmt, time::Duration};

use cofactor_bus::BusError;
use serde::{Deserialize, Serialize};

/// The Redis of a cluster. All processes of a cluster must have the same `prefix`, `lanes` and `channels`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RedisOptions {
    /// Where Redis is: `redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]`. One address is a single server; several are
    /// servers of one Redis Cluster, of which any that answers tells about the others. Default: `redis://127.0.0.1:6379`.
    pub urls: Vec<String>,
    /// The beginning of every key and channel, for a Redis that is shared with others. Default: `cofactor`.
    pub prefix: String,
    /// Hash slots over which the publishers spread; a listener has one connection for each. Used with a Redis Cluster
    /// only, a single server has one lane. Default: 8.
    pub lanes: u16,
    /// Channels in a lane over which the shards spread. Default: 64.
    pub channels: u16,
    /// How long making a connection may take, in milliseconds. Default: 2,000.
    pub connect_timeout_ms: u64,
    /// How long Redis may take to accept what is published, in milliseconds; then it is taken for lost. Default: 1,000.
    pub publish_timeout_ms: u64,
    /// How long a connection or a publisher may be silent before it is taken for dead, in milliseconds. Publishers speak
    /// every 100 ms. Default: 1,000.
    pub silence_ms: u64,
    /// How often subscribers are told of a gap while Redis cannot be heard, in milliseconds; each makes them look at the
    /// store. Default: 2,000.
    pub gap_every_ms: u64,
    /// The pause before connecting again after the first failure, in milliseconds; doubled by each one. Default: 50.
    pub retry_min_ms: u64,
    /// The longest pause before connecting again, in milliseconds. Default: 2,000.
    pub retry_max_ms: u64,
    /// Frames that may wait for being published. Default: 16,384.
    pub queue_frames_max: usize,
    /// Bytes that may wait for being published. Default: 8 MiB.
    pub queue_bytes_max: usize,
    /// Bytes that are published in one round trip, if more than one frame waits. Default: 256 KiB.
    pub batch_bytes_max: usize,
    /// How long a shared fact is waited for, in milliseconds. Default: 250.
    pub shared_timeout_ms: u64,
}

impl Default for RedisOptions {
    fn default() -> Self {
        Self {
            urls: vec!["redis://127.0.0.1:6379".into()],
            prefix: "cofactor".into(),
            lanes: 8,
            channels: 64,
            connect_timeout_ms: 2_000,
            publish_timeout_ms: 1_000,
            silence_ms: 1_000,
            gap_every_ms: 2_000,
            retry_min_ms: 50,
            retry_max_ms: 2_000,
            queue_frames_max: 16_384,
            queue_bytes_max: 8 << 20,
            batch_bytes_max: 256 << 10,
            shared_timeout_ms: 250,
        }
    }
}

impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The addresses may hold passwords.
        f.debug_struct("RedisOptions")
            .field("urls", &self.urls.len())
            .field("prefix", &self.prefix)
            .field("lanes", &self.lanes())
            .field("channels", &self.channels)
            .finish_non_exhaustive()
    }
}

impl RedisOptions {
    /// The options of a Redis at these addresses, the rest by default.
    pub fn at(urls: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { urls: urls.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// Lanes in use.
    pub(crate) fn lanes(&self) -> u16 {
        if self.is_cluster() { self.lanes } else { 1 }
    }

    pub(crate) fn is_cluster(&self) -> bool {
        self.urls.len() > 1
    }

    pub(crate) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    pub(crate) fn publish_timeout(&self) -> Duration {
        Duration::from_millis(self.publish_timeout_ms)
    }

    pub(crate) fn silence(&self) -> Duration {
        Duration::from_millis(self.silence_ms)
    }

    pub(crate) fn shared_timeout(&self) -> Duration {
        Duration::from_millis(self.shared_timeout_ms)
    }

    /// Refuses what cannot work, naming the option.
    pub(crate) fn check(&self) -> Result<(), BusError> {
        let times = [
            ("connect_timeout_ms", self.connect_timeout_ms),
            ("publish_timeout_ms", self.publish_timeout_ms),
            ("silence_ms", self.silence_ms / 4),
            ("gap_every_ms", self.gap_every_ms),
            ("retry_min_ms", self.retry_min_ms),
            ("retry_max_ms", self.retry_max_ms),
            ("shared_timeout_ms", self.shared_timeout_ms),
            ("lanes", self.lanes.into()),
            ("channels", self.channels.into()),
            ("queue_frames_max", self.queue_frames_max as u64),
            ("queue_bytes_max", self.queue_bytes_max as u64),
            ("batch_bytes_max", self.batch_bytes_max as u64),
        ];
        if let Some((name, _)) = times.iter().find(|(_, value)| *value == 0) {
            return Err(BusError(format!("redis.{name} is too small")));
        }
        if self.urls.is_empty() {
            return Err(BusError("redis.urls is empty".into()));
        }
        if self.prefix.is_empty() || self.prefix.contains(['{', '}']) {
            // Braces would take the place of the lane as hash tag.
            return Err(BusError("redis.prefix is empty or has braces".into()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_work_and_what_cannot_is_refused_by_name() {
        assert_eq!(RedisOptions::default().check(), Ok(()));
        let refused = |options: RedisOptions| options.check().expect_err("a refusal").to_string();
        assert!(refused(RedisOptions { channels: 0, ..Default::default() }).contains("redis.channels"));
        assert!(refused(RedisOptions { silence_ms: 3, ..Default::default() }).contains("redis.silence_ms"));
        assert!(refused(RedisOptions { prefix: "a{b}".into(), ..Default::default() }).contains("redis.prefix"));
        assert!(refused(RedisOptions::at(Vec::<String>::new())).contains("redis.urls"));
    }

    #[test]
    fn passwords_are_not_shown() {
        let options = RedisOptions::at(["redis://me:secret@example.org"]);
        assert!(!format!("{options:?}").contains("secret"));
    }
}
