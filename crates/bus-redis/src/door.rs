//! Makes connections: to the one server, or to the server of a cluster that has a lane.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use cofactor_bus::BusError;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, PushInfo,
    RedisError, Value, aio::MultiplexedConnection, io::tcp::TcpSettings,
};

use crate::{RedisOptions, core};

/// Hears what a connection is told unasked.
pub(crate) type Ear = Box<dyn Fn(PushInfo) -> Result<(), Infallible> + Send + Sync>;

pub(crate) fn bus_error(error: RedisError) -> BusError {
    BusError(error.to_string())
}

/// Waits for an answer no longer than this.
pub(crate) async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, RedisError>>,
) -> Result<T, BusError> {
    match tokio::time::timeout(limit, answer).await {
        Ok(answer) => answer.map_err(bus_error),
        Err(_) => Err(BusError("no answer in time".into())),
    }
}

/// A server to connect to.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    info: ConnectionInfo,
    /// What the cluster calls it, whatever address it is known by; nothing for a server that is alone.
    pub(crate) id: Vec<u8>,
}

/// Finds servers and connects to them.
#[derive(Debug)]
pub(crate) struct Door {
    seeds: Vec<ConnectionInfo>,
    /// A key in each lane.
    keys: Vec<String>,
    connect_timeout: Duration,
    /// The seed to ask next: one that is gone must not be asked for ever.
    turn: AtomicUsize,
}

impl Door {
    pub(crate) fn new(options: &RedisOptions) -> Result<Self, BusError> {
        let keys = (0..options.lanes()).filter_map(|lane| core::channels(options, lane).pop()).collect();
        let seeds = seeds(options)?;
        Ok(Self { seeds, keys, connect_timeout: options.connect_timeout(), turn: AtomicUsize::new(0) })
    }

    /// The server that has the lane, as one of the others knows it.
    pub(crate) async fn locate(&self, lane: u16) -> Result<Home, BusError> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let seed = self.seeds.get(turn % self.seeds.len().max(1)).ok_or_else(|| BusError("no address".into()))?;
        if self.seeds.len() == 1 {
            return Ok(Home { info: seed.clone(), id: Vec::new() });
        }
        let key = self.keys.get(usize::from(lane)).ok_or_else(|| BusError("no such lane".into()))?;
        self.owner(seed, key).await
    }

    pub(crate) async fn connect(
        &self,
        home: &Home,
        answer_timeout: Duration,
        ear: Option<Ear>,
    ) -> Result<MultiplexedConnection, BusError> {
        let mut config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(Some(answer_timeout));
        if let Some(ear) = ear {
            config = config.set_push_sender(ear);
        }
        let client = Client::open(home.info.clone()).map_err(bus_error)?;
        within(self.connect_timeout, client.get_multiplexed_async_connection_with_config(&config)).await
    }

    /// Asks a server of the cluster which one has the key.
    async fn owner(&self, seed: &ConnectionInfo, key: &str) -> Result<Home, BusError> {
        let asked = Home { info: seed.clone(), id: Vec::new() };
        let mut connection = self.connect(&asked, self.connect_timeout, None).await?;
        let mut questions = redis::pipe();
        questions.cmd("CLUSTER").arg("KEYSLOT").arg(key);
        questions.cmd("CLUSTER").arg("SLOTS");
        questions.cmd("CLUSTER").arg("INFO");
        let answers = within(self.connect_timeout, questions.query_async(&mut connection)).await?;
        let (slot, ranges, info): (i64, Vec<Vec<Value>>, String) = answers;
        if !info.contains("cluster_state:ok") {
            // It is cut off from most of the cluster, and what it knows may be old.
            return Err(BusError("the server that was asked sees no working cluster".into()));
        }
        let owner = ranges.iter().find_map(|range| match range.as_slice() {
            [Value::Int(first), Value::Int(last), Value::Array(owner), ..] if (*first..=*last).contains(&slot) => {
                Some(owner)
            }
            _ => None,
        });
        let owner = owner.ok_or_else(|| BusError(format!("no server of the cluster has slot {slot}")))?;
        home(seed, owner).ok_or_else(|| BusError(format!("the server of slot {slot} has no known address")))
    }
}

/// The addresses that the operator named, with what every connection has in common.
pub(crate) fn seeds(options: &RedisOptions) -> Result<Vec<ConnectionInfo>, BusError> {
    let seed = |(n, url): (usize, &String)| {
        // The error says what is wrong; the address may hold a password and is not shown.
        let named = |error: RedisError| BusError(format!("redis.urls, number {}: {error}", n + 1));
        let info = url.as_str().into_connection_info().map_err(named)?;
        // Messages and answers on one connection need the third protocol.
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        Ok(info.set_redis_settings(settings).set_tcp_settings(TcpSettings::default().set_nodelay(true)))
    };
    options.urls.iter().enumerate().map(seed).collect()
}

/// The server in an entry of `CLUSTER SLOTS`: host, port, id and more. One that does not know its own host is the one that
/// was asked.
fn home(asked: &ConnectionInfo, owner: &[Value]) -> Option<Home> {
    let [host, Value::Int(port), Value::BulkString(id), ..] = owner else { return None };
    let host = match host {
        Value::BulkString(host) => str::from_utf8(host).ok()?,
        Value::Nil => "",
        _ => return None,
    };
    if host == "?" {
        return None;
    }
    let named = |asked: &str| if host.is_empty() { asked.to_owned() } else { host.to_owned() };
    let port = u16::try_from(*port).ok()?;
    let address = match asked.addr() {
        ConnectionAddr::Tcp(asked, _) => ConnectionAddr::Tcp(named(asked), port),
        ConnectionAddr::TcpTls { host, insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host: named(host), port, insecure: *insecure, tls_params: tls_params.clone() }
        }
        _ => return None,
    };
    Some(Home { info: asked.clone().set_addr(address), id: id.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_in_an_address_is_named_without_the_address() {
        let options = RedisOptions::at(["redis://127.0.0.1", "http://user:secret@example.org"]);
        let error = Door::new(&options).expect_err("a refusal").to_string();
        assert!(error.contains("redis.urls, number 2") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn a_server_without_a_name_is_the_one_that_was_asked() {
        let asked = "redis://:secret@10.0.0.1:6379".into_connection_info().expect("an address");
        let at = |host: Value| {
            let home = home(&asked, &[host, Value::Int(7000), Value::BulkString(b"id".to_vec()), Value::Nil])?;
            assert_eq!((home.id.as_slice(), home.info.redis_settings().password()), (&b"id"[..], Some("secret")));
            Some(home.info.addr().to_string())
        };
        assert_eq!(at(Value::BulkString(b"h".to_vec())).as_deref(), Some("h:7000"));
        assert_eq!(at(Value::Nil).as_deref(), Some("10.0.0.1:7000"));
        assert_eq!(at(Value::BulkString(b"".to_vec())).as_deref(), Some("10.0.0.1:7000"));
        assert_eq!(at(Value::BulkString(b"?".to_vec())), None);
    }
}
