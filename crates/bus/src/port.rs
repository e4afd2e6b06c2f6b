//! The contracts.

use std::{fmt::Debug, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use cofactor_telemetry::Trace;
use cofactor_types::{EntityId, Epoch, Fault, NodeId, Position, ShardId};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::{Decision, Rate};

/// Something happened to an entity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The shard of the entity.
    pub shard: ShardId,
    /// The owner's epoch.
    pub epoch: Epoch,
    /// Counts the records of this shard and epoch, from 1, without holes.
    pub seq: u64,
    /// The entity.
    pub entity: EntityId,
    /// Where the record stands in the entity's log; for ephemera, where it would stand.
    pub position: Position,
    /// The class of the record, as in the log.
    pub class: u64,
    /// What readers need at once, a MessagePack record of `wire`.
    pub payload: Bytes,
    /// The trace of the request that caused it, where traces are sent anywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<Trace>,
}

/// What the owner of shards says every [`cofactor_types::limits::HEARTBEAT_MS`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The speaker.
    pub node: NodeId,
    /// The closed position of all its shards: it will never again make visible a record at or below it.
    pub closed: Position,
    /// Counts the full lists. A subscriber that has not heard the last one has missed something, perhaps records too, and
    /// believes nothing until it hears the next.
    #[serde(default)]
    pub version: u64,
    /// Whether `shards` is all of its shards: now and then, and whenever these are others than before.
    #[serde(default)]
    pub full: bool,
    /// The last sequence number of each shard, of those that had a record since the last full list, or of all: so that what
    /// is promised about them is never heard without what was said of them.
    pub shards: Vec<(ShardId, Epoch, u64)>,
}

/// What a subscriber hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// A record.
    Record(Arc<Record>),
    /// A heartbeat.
    Heartbeat(Arc<Heartbeat>),
    /// Something was missed; which, nobody knows.
    Gap,
}

/// The bus cannot be reached. What was to be said is not said; nobody may depend on it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bus is unavailable: {0}")]
pub struct BusError(pub String);

impl From<BusError> for Fault {
    fn from(error: BusError) -> Self {
        Self::unavailable(error.to_string())
    }
}

/// A subscriber's end. Dropping it ends the subscription.
#[async_trait]
pub trait Subscription: Send {
    /// The next delivery. Deliveries of one publisher come in the order in which it spoke. `None`: the bus is closed.
    async fn next(&mut self) -> Option<Delivery>;

    /// The next delivery if one is waiting.
    fn try_next(&mut self) -> Option<Delivery>;
}

/// Hears deliveries, those of one publisher in the order in which it spoke. Whoever speaks may have to wait for it, so it is
/// quick, and says nothing itself.
pub trait Listener: Send + Sync + 'static {
    /// Hears one.
    fn hear(&self, delivery: &Delivery);
}

/// Positions and wake-ups.
pub trait Bus: Debug + Send + Sync + 'static {
    /// Says that something happened. Returns at once and keeps the order of calls; what cannot be said becomes a gap for
    /// the subscribers, never an error for the speaker, who has already made it durable.
    fn publish(&self, record: Record);

    /// Whether all who listen have heard what is said when [`Self::publish`] returns, and nobody else says anything.
    fn is_heard_at_once(&self) -> bool {
        false
    }

    /// Says how far the speaker is.
    fn heartbeat(&self, heartbeat: Heartbeat);

    /// Hears everything from here on: all that this bus value is told after the call, and what others say once it is on
    /// its way.
    fn subscribe(&self) -> Box<dyn Subscription>;

    /// Lets `listener` hear everything from here on, for as long as the future lives and is polled. What is said in the same
    /// process it may hear at once, without a thread that must be woken.
    fn listen(&self, listener: Arc<dyn Listener>) -> BoxFuture<'static, ()> {
        let mut subscription = self.subscribe();
        Box::pin(async move {
            while let Some(delivery) = subscription.next().await {
                listener.hear(&delivery);
            }
        })
    }
}

/// Small facts that all processes share for a short while: rate limits, interactive-authentication sessions. They may
/// be lost at any time; whoever keeps something here must do the safe thing without it.
#[async_trait]
pub trait Shared: Debug + Send + Sync + 'static {
    /// The value under `key`, unless its time is over.
    async fn get(&self, key: &str) -> Result<Option<Bytes>, BusError>;

    /// Sets the value for `life`.
    async fn put(&self, key: &str, value: Bytes, life: Duration) -> Result<(), BusError>;

    /// Forgets the value and says what it was; of several callers at once only one gets it.
    async fn take(&self, key: &str) -> Result<Option<Bytes>, BusError>;

    /// Takes `cost` tokens from the bucket under `key`, all or none; a bucket that nobody knows is full. Buckets and
    /// values have their own keys. A cost above the burst is always denied.
    async fn take_tokens(&self, key: &str, rate: Rate, cost: u32) -> Result<Decision, BusError>;
}
