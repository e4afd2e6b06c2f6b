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

    /// A connection to the server that has the lane.
    pub(crate) async fn open(
        &self,
        lane: u16,
        answer_timeout: Duration,
        ear: Option<Ear>,
    ) -> Result<MultiplexedConnection, BusError> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let seed = self.seeds.get(turn % self.seeds.len().max(1)).ok_or_else(|| BusError("no address".into()))?;
        if self.seeds.len() == 1 {
            return self.connect(seed.clone(), answer_timeout, ear).await;
        }
        let key = self.keys.get(usize::from(lane)).ok_or_else(|| BusError("no such lane".into()))?;
        let owner = self.owner(seed, key).await?;
        self.connect(seed.clone().set_addr(owner), answer_timeout, ear).await
    }

    async fn connect(
        &self,
        info: ConnectionInfo,
        answer_timeout: Duration,
        ear: Option<Ear>,
    ) -> Result<MultiplexedConnection, BusError> {
        let mut config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(Some(answer_timeout));
        if let Some(ear) = ear {
            config = config.set_push_sender(ear);
        }
        let client = Client::open(info).map_err(bus_error)?;
        within(self.connect_timeout, client.get_multiplexed_async_connection_with_config(&config)).await
    }

    /// Asks a server of the cluster which one has the key.
    async fn owner(&self, seed: &ConnectionInfo, key: &str) -> Result<ConnectionAddr, BusError> {
        let mut connection = self.connect(seed.clone(), self.connect_timeout, None).await?;
        let mut questions = redis::pipe();
        questions.cmd("CLUSTER").arg("KEYSLOT").arg(key);
        questions.cmd("CLUSTER").arg("SLOTS");
        let answers = within(self.connect_timeout, questions.query_async(&mut connection)).await?;
        let (slot, ranges): (i64, Vec<Vec<Value>>) = answers;
        let owner = ranges.iter().find_map(|range| match range.as_slice() {
            [Value::Int(first), Value::Int(last), Value::Array(owner), ..] if (*first..=*last).contains(&slot) => {
                Some(owner)
            }
            _ => None,
        });
        let owner = owner.ok_or_else(|| BusError(format!("no server of the cluster has slot {slot}")))?;
        address(seed.addr(), owner).ok_or_else(|| BusError(format!("the server of slot {slot} has no known address")))
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

/// The address in an entry of `CLUSTER SLOTS`: host, port, and more. A server that does not know its own host means the
/// one that was asked.
fn address(asked: &ConnectionAddr, owner: &[Value]) -> Option<ConnectionAddr> {
    let [host, Value::Int(port), ..] = owner else { return None };
    let host = match host {
        Value::BulkString(host) => str::from_utf8(host).ok()?,
        Value::SimpleString(host) => host,
        Value::Nil => "",
        _ => return None,
    };
    if host == "?" {
        return None;
    }
    let named = |asked: &str| if host.is_empty() { asked.to_owned() } else { host.to_owned() };
    let port = u16::try_from(*port).ok()?;
    match asked {
        ConnectionAddr::Tcp(asked, _) => Some(ConnectionAddr::Tcp(named(asked), port)),
        ConnectionAddr::TcpTls { host, insecure, tls_params, .. } => Some(ConnectionAddr::TcpTls {
            host: named(host),
            port,
            insecure: *insecure,
            tls_params: tls_params.clone(),
        }),
        _ => None,
    }
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
        let asked = ConnectionAddr::Tcp("10.0.0.1".into(), 6379);
        let entry = |host: Value| [host, Value::Int(7000), Value::Nil];
        let address = |host: Value| address(&asked, &entry(host));
        assert_eq!(address(Value::BulkString(b"h".to_vec())), Some(ConnectionAddr::Tcp("h".into(), 7000)));
        assert_eq!(address(Value::Nil), Some(ConnectionAddr::Tcp("10.0.0.1".into(), 7000)));
        assert_eq!(address(Value::BulkString(b"".to_vec())), Some(ConnectionAddr::Tcp("10.0.0.1".into(), 7000)));
        assert_eq!(address(Value::BulkString(b"?".to_vec())), None);
    }
}
