//! The entities and services of one node, on any backends: what runs in a process, and what a simulation drives.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use cofactor_api::RuleNotifications;
use cofactor_entity::{
    Deliver, Env, EnvParts, Keeper, KeeperOptions, Lease, LeaseError, Ownership, Placement, Planted, Positions,
    ShardHost,
};
use cofactor_history::History;
use cofactor_rooms::{RoomsConfig, RoomsHandle};
use cofactor_shard::Role;
use cofactor_store::LogReader;
use cofactor_sync::{SyncOptions, SyncService, Syncs};
use cofactor_types::{Clock, EntityId, EntityKind, Entropy, ErrorClass, Fault, NodeId, ShardId};
use cofactor_users::UsersHandle;
use cofactor_wire::{
    self as wire,
    node::{Call, Serve, Target, Transport},
};
use tokio::sync::watch;
use tracing::Instrument;

use crate::{Identity, IdentityError, backends::Backends, measured::target_word, vitals::Probe};

/// What a node is built of.
#[derive(Debug)]
pub struct CoreParts {
    /// Store, bus and shared facts.
    pub backends: Backends,
    /// Who the deployment is.
    pub identity: Identity,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
    /// Where actors run.
    pub placement: Placement,
    /// How long an entity stays in memory without being asked anything.
    pub idle: Duration,
    /// `/sync`.
    pub sync: SyncOptions,
    /// Turns true when waiting requests are to go home.
    pub shutdown: watch::Receiver<bool>,
    /// Name, address, roles and lease.
    pub keeper: KeeperOptions,
    /// The way to other nodes; `None` for a node that is alone.
    pub transport: Option<Arc<dyn Transport>>,
    /// For tests only.
    pub planted: Planted,
}

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
    /// `/sync`, wherever it is served.
    pub sync: Syncs,
    /// The `/sync` of this node, if that is one of its roles.
    pub service: Option<SyncService>,
    pub(crate) probe: Arc<Probe>,
    // Messages between entities go by a weak reference, so that dropping the core ends everything.
    _actors: Arc<Actors>,
}

/// The actors of a node, for those that know entities by id only.
#[derive(Debug)]
struct Actors {
    rooms: RoomsHandle,
    users: UsersHandle,
}

#[async_trait]
impl Deliver for Actors {
    async fn deliver(&self, target: &EntityId, payload: Bytes) -> Result<(), Fault> {
        match target.kind() {
            EntityKind::Room => self.rooms.entities().deliver(target, &payload).await,
            EntityKind::User => self.users.entities().deliver(target, &payload).await,
            EntityKind::Destination => Err(Fault::unavailable("this server does not federate yet")),
        }
    }

    fn wake(&self, entity: &EntityId) {
        match entity.kind() {
            EntityKind::Room => self.rooms.entities().activate(entity),
            EntityKind::User => self.users.entities().activate(entity),
            EntityKind::Destination => {}
        }
    }
}

#[async_trait]
impl ShardHost for Actors {
    async fn drain(&self, shards: &BTreeSet<ShardId>) {
        // Rooms first: what they still tell users is then finished with the users.
        self.rooms.entities().drain(shards).await;
        self.users.entities().drain(shards).await;
    }
}

/// Answers the calls of other nodes.
#[derive(Clone, Debug)]
pub struct NodeServer {
    probe: Arc<Probe>,
}

#[async_trait]
impl Serve for NodeServer {
    async fn serve(&self, call: Call) -> Result<Bytes, Fault> {
        let span = cofactor_telemetry::span!("serve", otel.kind = "server", target = target_word(&call.target));
        cofactor_telemetry::follow(&span, call.trace.as_deref());
        self.answer(call).instrument(span).await
    }
}

impl NodeServer {
    async fn answer(&self, call: Call) -> Result<Bytes, Fault> {
        let Probe { env, rooms, users, sync } = &*self.probe;
        match &call.target {
            Target::Entity(id) => match id.kind() {
                EntityKind::Room => rooms.entities().serve(id, &call.frame).await,
                EntityKind::User => users.entities().serve(id, &call.frame).await,
                EntityKind::Destination => {
                    Err(Fault::new(ErrorClass::NotOwner, "M_UNKNOWN", "this node does not send to other servers"))
                }
            },
            Target::Sync => sync.serve(&call.frame).await,
            Target::Shards => {
                env.ownership().hear(wire::asked(&call.frame)?)?;
                Ok(Bytes::new())
            }
            Target::Status => wire::encode(&self.probe.status()),
        }
    }
}

impl Core {
    /// Takes a lease and builds everything. Nothing runs by itself and nothing is owned yet: the caller polls [`Self::run`]
    /// and [`Keeper::run`].
    ///
    /// # Errors
    /// If the lease cannot be taken or the key is damaged.
    pub async fn build(parts: CoreParts) -> Result<(Self, Keeper), BuildError> {
        let CoreParts { backends, identity, clock, entropy, placement, sync, shutdown, keeper, .. } = parts;
        let node = NodeId(entropy.u128() as u64 >> 1);
        let lease = Lease::take(Arc::clone(&backends.store), &*clock, node, keeper.lease).await?;
        let ownership = Ownership::new(node, identity.shard_count, Arc::clone(&clock));
        let env = Env::new(EnvParts {
            store: Arc::clone(&backends.store),
            bus: Arc::clone(&backends.bus),
            positions: Positions::new(Arc::clone(&clock), cofactor_types::Position::ZERO, lease.end()),
            clock: Arc::clone(&clock),
            entropy,
            ownership,
            transport: parts.transport,
            idle: parts.idle,
            planted: parts.planted,
        });
        let config = RoomsConfig::new(identity.server_name.clone(), identity.key_pair()?);
        let rooms = RoomsHandle::new(env.clone(), config, placement.clone());
        let users = UsersHandle::new(env.clone(), placement);
        let actors = Arc::new(Actors { rooms: rooms.clone(), users: users.clone() });
        let deliver: Arc<dyn Deliver> = Arc::clone(&actors) as Arc<dyn Deliver>;
        env.connect(&deliver);
        let reader: LogReader = env.reader().clone();
        let history = History::new(reader);
        let service = keeper.roles.contains(&Role::Sync).then(|| {
            let notifications = RuleNotifications::new(users.clone(), history.clone());
            let options = SyncOptions {
                shard_count: identity.shard_count,
                hears_at_once: backends.bus.is_heard_at_once(),
                planted: parts.planted,
                ..sync
            };
            SyncService::new(history.clone(), Arc::new(users.clone()), notifications, clock, options, shutdown.clone())
        });
        let sync = Syncs::new(env.clone(), service.clone(), shutdown);
        let keeper = Keeper::new(env.clone(), keeper, Arc::clone(&actors) as Arc<dyn ShardHost>, lease);
        let probe = Probe { env: env.clone(), rooms: rooms.clone(), users: users.clone(), sync: sync.clone() };
        let probe = Arc::new(probe);
        Ok((Self { env, rooms, users, history, sync, service, probe, _actors: actors }, keeper))
    }

    /// What answers the calls of other nodes.
    pub fn server(&self) -> NodeServer {
        NodeServer { probe: Arc::clone(&self.probe) }
    }

    /// What must run for the node to live: hearing the bus, heartbeats. Ends when the bus closes.
    pub fn run(&self) -> impl Future<Output = ()> + 'static {
        let env = self.env.clone();
        let hear = match self.service.clone() {
            Some(service) => env.bus().listen(Arc::new(service)),
            None => Box::pin(std::future::pending()),
        };
        async move {
            tokio::select! {
                () = env.heartbeats() => {}
                () = hear => {}
            }
        }
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
