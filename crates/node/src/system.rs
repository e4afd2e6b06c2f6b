//! The entities and services of one node, on any backends: what runs in a process, and what a simulation drives.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use cofactor_api::RuleNotifications;
use cofactor_entity::{Deliver, Env, EnvParts, Lease, LeaseError, Placement, Planted, Positions};
use cofactor_history::History;
use cofactor_rooms::{RoomsConfig, RoomsHandle};
use cofactor_store::{Key, LogReader, Scan, key, tables};
use cofactor_sync::{SyncOptions, SyncService};
use cofactor_types::{Clock, EntityId, EntityKind, Entropy, Fault, NodeId};
use cofactor_users::UsersHandle;
use tokio::sync::watch;

use crate::{Identity, IdentityError, backends::Backends};

/// The name of the lease of all shards, for a node that is alone.
const ALL_SHARDS: &str = "shards";

/// The entities and services of one node. Dropping it is its crash.
#[derive(Debug)]
pub struct Core {
    /// The environment of all actors.
    pub env: Env,
    /// Rooms.
    pub rooms: RoomsHandle,
    /// Users.
    pub users: UsersHandle,
    /// History.
    pub history: History,
    /// `/sync`.
    pub sync: SyncService,
    lease: Lease,
    // Messages between entities go by a weak reference, so that dropping the core ends everything.
    _router: Arc<dyn Deliver>,
}

#[derive(Debug)]
struct Router {
    rooms: RoomsHandle,
    users: UsersHandle,
}

#[async_trait]
impl Deliver for Router {
    async fn deliver(&self, target: &EntityId, payload: Bytes) -> Result<(), Fault> {
        match target.kind() {
            EntityKind::Room => self.rooms.entities().deliver(target, &payload).await,
            EntityKind::User => self.users.entities().deliver(target, &payload).await,
            EntityKind::Destination => Err(Fault::unavailable("this server does not federate yet")),
        }
    }
}

impl Core {
    /// Takes the shards and builds everything on them. Nothing runs by itself: the caller polls [`Self::run`].
    ///
    /// # Errors
    /// If the lease cannot be taken or the key is damaged.
    #[expect(clippy::too_many_arguments, reason = "each is a part of a node, given by the process or by a simulation")]
    pub async fn build(
        backends: &Backends,
        identity: &Identity,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
        placement: Placement,
        idle: Duration,
        sync: SyncOptions,
        shutdown: watch::Receiver<bool>,
        planted: Planted,
    ) -> Result<Self, BuildError> {
        let node = NodeId(entropy.u128() as u64);
        let lease = Lease::take(Arc::clone(&backends.store), &*clock, ALL_SHARDS, node).await?;
        let env = Env::new(EnvParts {
            store: Arc::clone(&backends.store),
            bus: Arc::clone(&backends.bus),
            positions: Positions::new(Arc::clone(&clock), lease.start(), lease.end()),
            clock: Arc::clone(&clock),
            entropy,
            node,
            epoch: lease.epoch(),
            shard_count: identity.shard_count,
            idle,
            planted,
        });
        let config = RoomsConfig::new(identity.server_name.clone(), identity.key_pair()?);
        let rooms = RoomsHandle::new(env.clone(), config, placement.clone());
        let users = UsersHandle::new(env.clone(), placement);
        let router: Arc<dyn Deliver> = Arc::new(Router { rooms: rooms.clone(), users: users.clone() });
        env.connect(&router);
        let reader: LogReader = env.reader().clone();
        let history = History::new(reader);
        let notifications = RuleNotifications::new(users.clone(), history.clone());
        let sync = SyncService::new(history.clone(), Arc::new(users.clone()), notifications, clock, sync, shutdown);
        Ok(Self { env, rooms, users, history, sync, lease, _router: router })
    }

    /// What must run for the node to live: hearing the bus, heartbeats. Ends when the bus closes.
    pub fn run(&self) -> impl Future<Output = ()> + 'static {
        let (env, sync) = (self.env.clone(), self.sync.clone());
        let subscription = env.bus().subscribe();
        async move {
            tokio::select! {
                () = env.heartbeats() => {}
                () = sync.run(subscription) => {}
            }
        }
    }

    /// Renews the lease once.
    ///
    /// # Errors
    /// If another node has taken it: then nothing more may be written, and the node must end.
    pub async fn renew(&mut self) -> Result<(), LeaseError> {
        let end = self.lease.renew(&**self.env.clock()).await?;
        self.env.positions().extend(end);
        Ok(())
    }

    /// Wakes the entities whose messages were under way when a node died.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn recover(&self) -> Result<usize, Fault> {
        let mut woken = 0;
        for shard in 0..u64::from(self.env.shard_count()) {
            for row in self.outbox(shard).await? {
                let id = row.clustering.text(1);
                match row.clustering.text(0) {
                    "room" => self.rooms.entities().activate(&EntityId::new(EntityKind::Room, id)),
                    "user" => self.users.entities().activate(&EntityId::new(EntityKind::User, id)),
                    _ => continue,
                }
                woken += 1;
            }
        }
        Ok(woken)
    }

    /// The outbox of one shard. So many shards are read that one read may well fail; it is tried again.
    async fn outbox(&self, shard: u64) -> Result<Vec<cofactor_store::Row>, Fault> {
        const TRIES_MAX: u32 = 5;
        let mut tries = 1;
        loop {
            let scan = Scan::new(&tables::OUTBOX, key![shard], Key::EMPTY, usize::MAX);
            match self.env.store().scan(scan).await {
                Ok(rows) => return Ok(rows),
                Err(error) if tries >= TRIES_MAX => return Err(error.into()),
                Err(_) => tokio::time::sleep(Duration::from_millis(20 << tries)).await,
            }
            tries += 1;
        }
    }

    /// Finishes what is under way, and hands the shards back.
    ///
    /// # Errors
    /// If the lease cannot be released; the next start then begins above its end, which costs nothing.
    pub async fn stop(&mut self) -> Result<(), LeaseError> {
        // Rooms first: what they still tell users is then finished with the users.
        self.rooms.entities().drain().await;
        self.users.entities().drain().await;
        let last = self.env.positions().last();
        self.lease.release(last).await
    }
}

/// Why a node cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The lease.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// The signing key.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}
