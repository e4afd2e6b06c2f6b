//! The life of a process: numbered stages up, and the same down.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use actix_rt::{Arbiter, ArbiterHandle};
use cofactor_api::{Api, ApiParts, Passwords, RateLimits, operator_routes, routes};
use cofactor_entity::{Keeper, KeeperOptions, Placement, Planted};
use cofactor_http::{BindError, RunningServer, serve};
use cofactor_media::Media;
use cofactor_rpc::Running;
use cofactor_shard::Role;
use cofactor_store::Store;
use cofactor_store_embedded::OpenError;
use cofactor_sync::SyncOptions;
use cofactor_types::{Clock, Entropy, Fault, SystemClock, SystemEntropy};
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    BuildError, Config, ConfigError, Core, CoreParts, Identity, IdentityError, backends, backends::Backends,
    calls::Rpc, operator, vitals,
};

/// Why a node does not start. Each is one sentence that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data folder.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The CQL cluster.
    #[error(transparent)]
    Cql(#[from] cofactor_store_cql::OpenError),
    /// Another server's data.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The shards.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// An address.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Something else.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    backends: Backends,
    // Held for what hangs on it by weak references.
    _core: Core,
    keeper: Keeper,
    calls: Option<Running>,
    server: RunningServer,
    operator: Option<RunningServer>,
    background: JoinHandle<()>,
    threads: Vec<Arbiter>,
    shutdown: watch::Sender<bool>,
}

impl Node {
    /// Starts a node. Must be called inside an actix system.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running and no data is harmed.
    pub async fn start(config: &Config) -> Result<Self, StartError> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
        // 1: the store.
        let backends = backends::open(config, Arc::clone(&clock), Arc::clone(&entropy)).await?;
        // 2: who we are.
        let identity = Identity::establish(&backends.store, &*entropy, config.name()?).await?;
        // 3: threads for actors.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads: Vec<Arbiter> = (0..cores).map(|_| Arbiter::new()).collect();
        let handles: Vec<ArbiterHandle> = threads.iter().map(Arbiter::handle).collect();
        // 4: entities and services.
        let (shutdown, stopping) = watch::channel(false);
        let roles = config.roles()?;
        let rpc = Rpc::choose(config, &*backends.store, &clock)?;
        let (core, mut keeper) = Core::build(CoreParts {
            backends: backends.clone(),
            identity: identity.clone(),
            clock: Arc::clone(&clock),
            entropy: Arc::clone(&entropy),
            placement: Placement::new(handles),
            idle: Duration::from_secs(config.limits.idle_s),
            sync: SyncOptions {
                slots_max: config.sync.users_max,
                event_cache_bytes: config.sync.event_cache_bytes,
                ..SyncOptions::default()
            },
            shutdown: stopping,
            keeper: keeper_options(config, &*backends.store)?,
            transport: rpc.as_ref().map(Rpc::transport),
            planted: Planted::Nothing,
        })
        .await?;
        vitals::observe(&core.probe);
        let run = core.run();
        let background = tokio::spawn(async {
            tokio::select! {
                () = run => {}
                () = vitals::keep_up() => {}
            }
        });
        // Others may call before this node owns anything; they are told so.
        let calls = match rpc {
            Some(rpc) => Some(rpc.listen(&core).await?),
            None => None,
        };
        // 5: shards, and what a crash left undone in them.
        keeper.begin().await.map_err(BuildError::from)?;
        // 6: requests. A node without the role serves its operator only.
        let api = open_api(config, &backends, &identity, &core, &clock, &entropy)?;
        let operator = operator::listen(config, &core.probe, &identity)?;
        let routes = if roles.contains(&Role::Frontend) { routes(api) } else { operator_routes(api) };
        let prefix = entropy.u128() as u64 >> 32;
        let server = serve(routes, &config.http, prefix, config.limits.shutdown_s)?;
        vitals::set_ready(true);
        for address in server.addresses() {
            tracing::info!(server_name = %identity.server_name, %address, "ready");
        }
        Ok(Self { backends, _core: core, keeper, calls, server, operator, background, threads, shutdown })
    }

    /// Where the node listens.
    pub fn addresses(&self) -> &[SocketAddr] {
        self.server.addresses()
    }

    /// Where the operator's page is.
    pub fn admin_addresses(&self) -> &[SocketAddr] {
        self.operator.as_ref().map_or(&[], RunningServer::addresses)
    }

    /// Keeps the node's lease until `stop` is done, or the lease is lost.
    ///
    /// # Errors
    /// If another node has taken the shards; the process must then end at once.
    pub async fn keep<S: Future<Output = ()>>(&mut self, stop: S) -> Result<(), Fault> {
        tokio::select! {
            () = stop => Ok(()),
            error = self.keeper.run() => Err(Fault::internal(error.to_string())),
        }
    }

    /// Stops the node: requests finish, actors finish, the shards are handed back, the store is closed.
    pub async fn stop(mut self) {
        vitals::set_ready(false);
        self.server.send_away();
        // Long-polls go home, so that the server need not wait for them.
        let _ = self.shutdown.send(true);
        self.server.stop().await;
        if let Err(error) = self.keeper.leave().await {
            tracing::warn!(%error, "the shards were not handed back; the next start takes them all the same");
        }
        if let Some(calls) = self.calls {
            calls.stop(CALLS_STOP).await;
        }
        self.backends.leave_bus().await;
        self.background.abort();
        if let Some(operator) = self.operator {
            operator.stop().await;
        }
        if let Err(error) = self.backends.store.close().await {
            tracing::warn!(%error, "the store was not closed cleanly; nothing acknowledged is lost");
        }
        for thread in self.threads {
            thread.stop();
        }
        tracing::info!("stopped");
    }
}

/// Everything that requests need.
fn open_api(
    config: &Config,
    backends: &Backends,
    identity: &Identity,
    core: &Core,
    clock: &Arc<dyn Clock>,
    entropy: &Arc<dyn Entropy>,
) -> Result<Api, StartError> {
    let shows_metrics = config.admin.public_metrics || !config.roles()?.contains(&Role::Frontend);
    Ok(Api::new(ApiParts {
        server_name: identity.server_name.clone(),
        public_url: config.public_url.clone(),
        registration: config.registration.clone(),
        rooms: core.rooms.clone(),
        users: core.users.clone(),
        history: core.history.clone(),
        sync: core.sync.clone(),
        media: open_media(config, backends, clock, entropy)?,
        shared: Arc::clone(&backends.shared),
        passwords: Passwords::new()?,
        limits: RateLimits::new(config.rate_limits.clone(), Arc::clone(&backends.shared), Arc::clone(clock)),
        clock: Arc::clone(clock),
        entropy: Arc::clone(entropy),
        ready: vitals::is_ready,
        metrics: shows_metrics.then_some(vitals::metrics as fn() -> String),
    }))
}

/// How long calls of other nodes may take to finish when this one stops; its shards are others' by then.
const CALLS_STOP: Duration = Duration::from_secs(2);

/// A node that is alone renews its lease now and then: nobody can take its place while it holds the folder.
const LEASE_ALONE: Duration = Duration::from_secs(60);

pub(crate) fn keeper_options(config: &Config, store: &dyn Store) -> Result<KeeperOptions, ConfigError> {
    let lease = if store.spans_partitions() { LEASE_ALONE } else { Duration::from_secs(config.cluster.lease_s) };
    let name = config.instance();
    let address = config.cluster.advertise.clone().unwrap_or_else(|| config.cluster.listen.clone());
    Ok(KeeperOptions { name, address, roles: config.roles()?, lease })
}

/// Media lives beside the store, in the data folder, unless it has a folder of its own.
pub(crate) fn open_media(
    config: &Config,
    backends: &Backends,
    clock: &Arc<dyn Clock>,
    entropy: &Arc<dyn Entropy>,
) -> Result<Media, Fault> {
    let folder = config.media.dir.clone().unwrap_or_else(|| config.data_dir.join("media"));
    Media::open(&folder, config.media.clone(), Arc::clone(&backends.store), Arc::clone(clock), Arc::clone(entropy))
}
