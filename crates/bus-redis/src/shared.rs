//! Facts that all processes share.

use std::{
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use cofactor_bus::{BusError, Decision, Rate, Shared};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, RedisFuture, RedisResult,
    Script, ServerErrorKind, Value, aio::ConnectionLike, aio::MultiplexedConnection, cluster::ClusterClient,
    cluster_async::ClusterConnection,
};
use tokio::time::{Instant, timeout_at};

use crate::{RedisOptions, door};

/// After an attempt to connect nobody else tries for this long, unless it succeeds.
const CONNECT_PAUSE: Duration = Duration::from_millis(100);

/// The longest life of a fact; Redis refuses numbers that overflow its clock.
const LIFE_MAX: Duration = Duration::from_secs(10 * 366 * 24 * 3_600);

const NO_SCRIPT: ErrorKind = ErrorKind::Server(ServerErrorKind::NoScript);

const TAKE_TOKENS: &str = include_str!("take_tokens.lua");

/// Shared facts in Redis. Clones share them and one connection, which is made when it is first needed and made again
/// after any failure. Every operation ends within [`RedisOptions::shared_timeout_ms`].
#[derive(Clone)]
pub struct RedisShared {
    inner: Arc<Inner>,
}

struct Inner {
    prefix: String,
    timeout: Duration,
    server: Server,
    line: Mutex<Line>,
    /// Held by the one that connects.
    connecting: tokio::sync::Mutex<()>,
    take_tokens: Script,
}

enum Server {
    One(Client),
    Cluster(Box<ClusterClient>),
}

/// The connection, if there is one.
#[derive(Default)]
struct Line {
    connection: Option<Connection>,
    /// Counts connections, so that a failure of an old one does not end its successor.
    number: u64,
    retry_at: Option<Instant>,
}

#[derive(Clone)]
enum Connection {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl fmt::Debug for RedisShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisShared").field("prefix", &self.inner.prefix).finish_non_exhaustive()
    }
}

impl RedisShared {
    /// Facts under the options' prefix. Does not connect yet.
    ///
    /// # Errors
    /// If an option makes no sense.
    pub fn new(options: &RedisOptions) -> Result<Self, BusError> {
        options.check()?;
        let timeout = options.shared_timeout();
        let mut seeds = door::seeds(options)?;
        let server = if options.is_cluster() {
            let builder =
                ClusterClient::builder(seeds).connection_timeout(timeout).response_timeout(timeout).retries(3);
            Server::Cluster(Box::new(builder.build().map_err(door::bus_error)?))
        } else {
            let seed = seeds.pop().ok_or_else(|| BusError("no address".into()))?;
            Server::One(Client::open(seed).map_err(door::bus_error)?)
        };
        let inner = Inner {
            prefix: options.prefix.clone(),
            timeout,
            server,
            line: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
            take_tokens: Script::new(TAKE_TOKENS),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    fn fact(&self, key: &str) -> String {
        format!("{}:fact:{key}", self.inner.prefix)
    }

    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, BusError> {
        self.inner.ask(command).await.map_err(door::bus_error)
    }
}

impl Inner {
    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks, and once more where the connection turns out to be lost: whoever did not use it for a while finds out by this.
    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
        let deadline = Instant::now() + self.timeout;
        match self.ask_once(command, deadline).await {
            Err(error) if error.is_connection_dropped() => self.ask_once(command, deadline).await,
            answer => answer,
        }
    }

    async fn ask_once<T: FromRedisValue>(&self, command: &Cmd, deadline: Instant) -> RedisResult<T> {
        let late = |_| RedisError::from(io::Error::from(io::ErrorKind::TimedOut));
        let (mut connection, number) = timeout_at(deadline, self.connection()).await.map_err(late)??;
        let answer = timeout_at(deadline, command.query_async(&mut connection)).await.map_err(late).flatten();
        if answer.as_ref().is_err_and(|error| error.kind() != NO_SCRIPT) {
            // Whatever it is, a new connection is the best that can be tried.
            let mut line = self.line();
            if line.number == number {
                line.connection = None;
            }
        }
        answer
    }

    /// The connection and its number.
    async fn connection(&self) -> RedisResult<(Connection, u64)> {
        let standing = |line: &Line| line.connection.clone().map(|connection| (connection, line.number));
        if let Some(standing) = standing(&self.line()) {
            return Ok(standing);
        }
        let _alone = self.connecting.lock().await;
        {
            let mut line = self.line();
            if let Some(standing) = standing(&line) {
                return Ok(standing);
            }
            let now = Instant::now();
            if line.retry_at.is_some_and(|retry_at| now < retry_at) {
                return Err(RedisError::from(io::Error::from(io::ErrorKind::NotConnected)));
            }
            // Set before the attempt, since the one who makes it may give up and be dropped.
            line.retry_at = Some(now + CONNECT_PAUSE);
        }
        let connection = self.connect().await?;
        let mut line = self.line();
        line.number += 1;
        line.retry_at = None;
        line.connection = Some(connection.clone());
        Ok((connection, line.number))
    }

    async fn connect(&self) -> RedisResult<Connection> {
        Ok(match &self.server {
            Server::One(client) => {
                let config = AsyncConnectionConfig::new()
                    .set_connection_timeout(Some(self.timeout))
                    .set_response_timeout(Some(self.timeout));
                Connection::One(client.get_multiplexed_async_connection_with_config(&config).await?)
            }
            Server::Cluster(client) => Connection::Cluster(client.get_async_connection().await?),
        })
    }
}

#[async_trait]
impl Shared for RedisShared {
    async fn get(&self, key: &str) -> Result<Option<Bytes>, BusError> {
        let value: Option<Vec<u8>> = self.ask(redis::cmd("GET").arg(self.fact(key))).await?;
        Ok(value.map(Bytes::from))
    }

    async fn put(&self, key: &str, value: Bytes, life: Duration) -> Result<(), BusError> {
        // At least one millisecond, at most a number that fits.
        let life_ms = life.clamp(Duration::from_millis(1), LIFE_MAX).as_millis() as u64;
        self.ask(redis::cmd("SET").arg(self.fact(key)).arg(&value[..]).arg("PX").arg(life_ms)).await
    }

    async fn take(&self, key: &str) -> Result<Option<Bytes>, BusError> {
        // Not twice: what the first attempt took would look as if it had never been there.
        let deadline = Instant::now() + self.inner.timeout;
        let command = redis::cmd("GETDEL").arg(self.fact(key)).take();
        let value: Option<Vec<u8>> = self.inner.ask_once(&command, deadline).await.map_err(door::bus_error)?;
        Ok(value.map(Bytes::from))
    }

    async fn take_tokens(&self, key: &str, rate: Rate, cost: u32) -> Result<Decision, BusError> {
        let rate = rate.sane();
        let script = &self.inner.take_tokens;
        let command = |run: &str, script: &str| {
            let mut command = redis::cmd(run);
            command.arg(script).arg(1).arg(format!("{}:bucket:{key}", self.inner.prefix));
            command.arg(rate.per_second).arg(rate.burst).arg(cost);
            command
        };
        let wait_ms: u64 = match self.inner.ask(&command("EVALSHA", script.get_hash())).await {
            // A server that does not know the script yet, or does not any more; it remembers what it is told.
            Err(error) if error.kind() == NO_SCRIPT => self.ask(&command("EVAL", TAKE_TOKENS)).await?,
            answer => answer.map_err(door::bus_error)?,
        };
        Ok(if wait_ms == 0 { Decision::Allowed } else { Decision::denied(wait_ms) })
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::One(connection) => connection.req_packed_command(command),
            Self::Cluster(connection) => connection.req_packed_command(command),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::One(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::One(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}
