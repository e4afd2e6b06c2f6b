//! What every actor of a node shares.

use std::{
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use cofactor_bus::Bus;
use cofactor_store::{LogReader, Store};
use cofactor_types::{Clock, EntityId, Entropy, Fault, ShardId, limits};
use cofactor_wire::node::Transport;

use crate::{Ownership, Positions, publisher::Publisher};

/// Brings messages to entities, wherever they live.
#[async_trait]
pub trait Deliver: std::fmt::Debug + Send + Sync + 'static {
    /// Gives `payload` to `target` and waits until it is durable there.
    ///
    /// # Errors
    /// If it may not have arrived; the sender tries again later.
    async fn deliver(&self, target: &EntityId, payload: Bytes) -> Result<(), Fault>;

    /// Activates an entity of this node, so that it finishes what it left undone.
    fn wake(&self, entity: &EntityId);
}

/// Bugs that a test plants to prove that its checker sees them. No configuration reaches them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Planted {
    /// None.
    #[default]
    Nothing,
    /// Answers go out before the store has the change.
    AcknowledgeBeforeCommit,
    /// An append whose outcome is unknown is tried again as a new one.
    RetryUnknownAsNew,
    /// An append whose outcome is unknown is said to have failed.
    TakeUnknownForFailed,
    /// An append does not ask who else has written: the store takes it whatever the fence says.
    NoFence,
    /// `/sync` takes no notice of what it missed on the bus.
    IgnoreBusGaps,
    /// `/sync` answers from where it last stood itself, whatever the token says.
    TokenFromMemory,
    /// The transaction ids that stand in a room's log are not read back.
    ForgetTransactions,
}

/// What an [`Env`] is made of.
#[derive(Debug)]
pub struct EnvParts {
    /// The store.
    pub store: Arc<dyn Store>,
    /// The bus.
    pub bus: Arc<dyn Bus>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
    /// The node's positions.
    pub positions: Arc<Positions>,
    /// The node's shards, and its view of the others.
    pub ownership: Arc<Ownership>,
    /// The way to other nodes; `None` for a node that is alone.
    pub transport: Option<Arc<dyn Transport>>,
    /// How long an entity stays in memory without being asked anything.
    pub idle: Duration,
    /// For tests only.
    pub planted: Planted,
}

/// What every actor of a node shares. Cheap to clone; dropping the last clone drops the node.
#[derive(Clone)]
pub struct Env {
    inner: Arc<Inner>,
}

struct Inner {
    parts: EnvParts,
    reader: LogReader,
    publisher: Publisher,
    deliver: OnceLock<Weak<dyn Deliver>>,
}

impl std::fmt::Debug for Env {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Env").field("node", &self.inner.parts.ownership.node()).finish_non_exhaustive()
    }
}

impl Env {
    /// An environment whose messages go nowhere until [`Self::connect`].
    pub fn new(parts: EnvParts) -> Self {
        let publisher = Publisher::new(Arc::clone(&parts.bus), Arc::clone(&parts.ownership));
        let reader = LogReader::new(Arc::clone(&parts.store));
        Self { inner: Arc::new(Inner { parts, reader, publisher, deliver: OnceLock::new() }) }
    }

    /// Says who brings messages to other entities. The first call counts.
    pub fn connect(&self, deliver: &Arc<dyn Deliver>) {
        let _ = self.inner.deliver.set(Arc::downgrade(deliver));
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.inner.parts.store
    }

    /// The bus.
    pub fn bus(&self) -> &Arc<dyn Bus> {
        &self.inner.parts.bus
    }

    /// The reader of logs.
    pub fn reader(&self) -> &LogReader {
        &self.inner.reader
    }

    /// Time.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.inner.parts.clock
    }

    /// Randomness.
    pub fn entropy(&self) -> &Arc<dyn Entropy> {
        &self.inner.parts.entropy
    }

    /// The node's positions.
    pub fn positions(&self) -> &Arc<Positions> {
        &self.inner.parts.positions
    }

    /// The node's shards, and its view of the others.
    pub fn ownership(&self) -> &Arc<Ownership> {
        &self.inner.parts.ownership
    }

    /// The way to other nodes.
    pub fn transport(&self) -> Option<&Arc<dyn Transport>> {
        self.inner.parts.transport.as_ref()
    }

    /// The shard of `entity`.
    pub fn shard(&self, entity: &EntityId) -> ShardId {
        entity.shard(self.shard_count())
    }

    /// Shards of the cluster.
    pub fn shard_count(&self) -> u32 {
        self.ownership().shard_count()
    }

    /// Says on the bus how far this node is, for as long as the future is polled.
    pub async fn heartbeats(&self) {
        let mut interval = tokio::time::interval(Duration::from_millis(limits::HEARTBEAT_MS));
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            self.heartbeat();
        }
    }

    /// One heartbeat now.
    pub fn heartbeat(&self) {
        self.inner.publisher.heartbeat(self.positions());
    }

    pub(crate) fn idle(&self) -> Duration {
        self.inner.parts.idle
    }

    /// The bug that a test has planted.
    pub fn planted(&self) -> Planted {
        self.inner.parts.planted
    }

    pub(crate) fn publisher(&self) -> &Publisher {
        &self.inner.publisher
    }

    pub(crate) async fn deliver(&self, target: &EntityId, payload: Bytes) -> Result<(), Fault> {
        let deliver = self.inner.deliver.get().and_then(Weak::upgrade);
        match deliver {
            Some(deliver) => deliver.deliver(target, payload).await,
            None => Err(Fault::unavailable("this node is not connected to the entities")),
        }
    }

    pub(crate) fn wake(&self, entity: &EntityId) {
        if let Some(deliver) = self.inner.deliver.get().and_then(Weak::upgrade) {
            deliver.wake(entity);
        }
    }
}
