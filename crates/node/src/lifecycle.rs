//! The life of a process: numbered stages up, and the same down.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use actix_rt::{Arbiter, ArbiterHandle};
use cofactor_api::{Api, ApiParts, Passwords, routes};
use cofactor_entity::{Placement, Planted};
use cofactor_http::{BindError, RateLimiter, RunningServer, serve};
use cofactor_media::Media;
use cofactor_store_embedded::OpenError;
use cofactor_sync::SyncOptions;
use cofactor_types::{Clock, Entropy, Fault, SystemClock, SystemEntropy};
use tokio::{sync::watch, task::JoinHandle};

use crate::{BuildError, Config, ConfigError, Core, Identity, IdentityError, backends, backends::Backends};

/// Set while the process takes requests.
static READY: AtomicBool = AtomicBool::new(false);

/// Why a node does not start. Each is one sentence that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data folder.
    #[error(transparent)]
    Open(#[from] OpenError),
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
    core: Core,
    server: RunningServer,
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
        let backends = backends::open(config, Arc::clone(&clock))?;
        // 2: who we are.
        let identity = Identity::establish(&backends.store, &*entropy, config.name()?).await?;
        // 3: threads for actors.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads: Vec<Arbiter> = (0..cores).map(|_| Arbiter::new()).collect();
        let handles: Vec<ArbiterHandle> = threads.iter().map(Arbiter::handle).collect();
        // 4: entities and services.
        let (shutdown, stopping) = watch::channel(false);
        let core = Core::build(
            &backends,
            &identity,
            Arc::clone(&clock),
            Arc::clone(&entropy),
            Placement::new(handles),
            Duration::from_secs(config.limits.idle_s),
            SyncOptions { slots_max: config.sync.users_max },
            stopping,
            Planted::Nothing,
        )
        .await?;
        let background = tokio::spawn(core.run());
        // 5: what a crash left undone.
        let woken = core.recover().await?;
        if woken > 0 {
            tracing::info!(woken, "finishing what was under way when the server last stopped");
        }
        // 6: requests.
        let media = open_media(config, &backends, &clock, &entropy)?;
        let api = Api::new(ApiParts {
            server_name: identity.server_name.clone(),
            public_url: config.public_url.clone(),
            registration: config.registration.clone(),
            rooms: core.rooms.clone(),
            users: core.users.clone(),
            history: core.history.clone(),
            sync: core.sync.clone(),
            media,
            shared: Arc::clone(&backends.shared),
            passwords: Passwords::new()?,
            limits: RateLimiter::new(config.rate_limits.clone(), Arc::clone(&clock)),
            clock,
            entropy: Arc::clone(&entropy),
            ready: || READY.load(Ordering::Acquire),
            metrics: cofactor_telemetry::render_metrics,
        });
        let prefix = entropy.u128() as u64 >> 32;
        let server = serve(routes(api), &config.http, prefix, config.limits.shutdown_s)?;
        READY.store(true, Ordering::Release);
        for address in server.addresses() {
            tracing::info!(server_name = %identity.server_name, %address, "ready");
        }
        Ok(Self { backends, core, server, background, threads, shutdown })
    }

    /// Where the node listens.
    pub fn addresses(&self) -> &[SocketAddr] {
        self.server.addresses()
    }

    /// Keeps the node's lease until `stop` is done, or the lease is lost.
    ///
    /// # Errors
    /// If another node has taken the shards; the process must then end at once.
    pub async fn keep<S: Future<Output = ()>>(&mut self, stop: S) -> Result<(), Fault> {
        let mut interval = tokio::time::interval(Duration::from_micros(cofactor_entity::Lease::renewal_us()));
        interval.tick().await;
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => return Ok(()),
                _ = interval.tick() => match self.core.renew().await {
                    Ok(()) => {}
                    Err(cofactor_entity::LeaseError::Lost(epoch)) => {
                        return Err(Fault::internal(format!("another process has taken the data (epoch {epoch})")));
                    }
                    Err(error) => tracing::warn!(%error, "the lease could not be renewed; trying again"),
                },
            }
        }
    }

    /// Stops the node: requests finish, actors finish, the shards are handed back, the store is closed.
    pub async fn stop(mut self) {
        READY.store(false, Ordering::Release);
        // Long-polls go home, so that the server need not wait for them.
        let _ = self.shutdown.send(true);
        self.server.stop().await;
        if let Err(error) = self.core.stop().await {
            tracing::warn!(%error, "the shards were not handed back; the next start takes them all the same");
        }
        self.background.abort();
        if let Err(error) = self.backends.store.close().await {
            tracing::warn!(%error, "the store was not closed cleanly; nothing acknowledged is lost");
        }
        for thread in self.threads {
            thread.stop();
        }
        tracing::info!("stopped");
    }
}

/// Media lives beside the store, in the data folder.
pub(crate) fn open_media(
    config: &Config,
    backends: &Backends,
    clock: &Arc<dyn Clock>,
    entropy: &Arc<dyn Entropy>,
) -> Result<Media, Fault> {
    let folder = config.data_dir.join("media");
    Media::open(&folder, config.media.clone(), Arc::clone(&backends.store), Arc::clone(clock), Arc::clone(entropy))
}
