//! A simulated node.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use cofactor_bus::local::{LocalBus, LocalShared};
use cofactor_entity::{KeeperOptions, Placement, Planted};
use cofactor_node::{Core, CoreParts, Identity, backends::Backends};
use cofactor_shard::Role;
use cofactor_store::model::ModelStore;
use cofactor_sync::SyncOptions;
use cofactor_types::{Clock, Entropy};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{sync::watch, task::JoinHandle, time::Instant};

use crate::{connection::Connection, life::Life};

/// Shards of the simulated deployment: enough for rooms and users to lie in different ones.
const SHARDS: u32 = 16;

/// The lease of a simulated node.
pub(crate) const LEASE: Duration = Duration::from_secs(2);

/// The paused clock of the simulation.
#[derive(Clone, Debug)]
pub(crate) struct SimClock {
    start: Instant,
    skipped_us: Arc<AtomicU64>,
}

/// Where simulated time begins, in microseconds since the Unix epoch.
const BEGIN_US: u64 = 1_800_000_000_000_000;

impl SimClock {
    pub(crate) fn new(start: Instant) -> Self {
        Self { start, skipped_us: Arc::default() }
    }

    /// Goes on at a later time, with nothing that would have happened meanwhile.
    pub(crate) fn skip(&self, time: Duration) {
        self.skipped_us.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
    }
}

impl Clock for SimClock {
    fn now_us(&self) -> u64 {
        let passed_us = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(0);
        BEGIN_US + passed_us + self.skipped_us.load(Ordering::Relaxed)
    }

    fn steady_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(0) + self.skipped_us.load(Ordering::Relaxed)
    }
}

/// Randomness of one seed.
#[derive(Debug)]
pub(crate) struct SimEntropy(Mutex<StdRng>);

impl SimEntropy {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self(Mutex::new(StdRng::seed_from_u64(seed))))
    }
}

impl Entropy for SimEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(bytes);
    }
}

/// How long an entity stays in memory without being asked anything.
pub(crate) const IDLE: Duration = Duration::from_secs(5);

/// One life of a node.
#[derive(Debug)]
pub(crate) struct SimNode {
    pub(crate) core: Core,
    life: Life,
    background: JoinHandle<()>,
    _shutdown: watch::Sender<bool>,
}

impl SimNode {
    /// Starts a node on `store`; tries until the store lets it.
    pub(crate) async fn start(
        store: &ModelStore,
        clock: &SimClock,
        entropy: &Arc<SimEntropy>,
        planted: Planted,
    ) -> Self {
        loop {
            match Self::try_start(store, clock, entropy, planted).await {
                Some(node) => return node,
                None => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn try_start(
        store: &ModelStore,
        clock: &SimClock,
        entropy: &Arc<SimEntropy>,
        planted: Planted,
    ) -> Option<Self> {
        let life = Life::default();
        let clock: Arc<dyn Clock> = Arc::new(clock.clone());
        let entropy: Arc<dyn Entropy> = Arc::clone(entropy) as Arc<dyn Entropy>;
        let backends = Backends::new(
            Arc::new(Connection::new(store, &life, planted)),
            Arc::new(LocalBus::default()),
            Arc::new(LocalShared::new(Arc::clone(&clock))),
        );
        let name = "sim.example".try_into().ok()?;
        let mut identity = Identity::establish(&backends.store, &*entropy, name).await.ok()?;
        identity.shard_count = SHARDS;
        let (shutdown, stopping) = watch::channel(false);
        let (core, mut keeper) = Core::build(CoreParts {
            backends,
            identity,
            clock,
            entropy,
            placement: Placement::default(),
            idle: IDLE,
            sync: SyncOptions { event_cache_bytes: 64 << 20, ..SyncOptions::default() },
            shutdown: stopping,
            keeper: KeeperOptions {
                name: "sim".to_owned(),
                address: String::new(),
                roles: Role::ALL.to_vec(),
                lease: LEASE,
            },
            transport: None,
            planted,
        })
        .await
        .ok()?;
        let run = core.run();
        let background = actix_rt::spawn(async move {
            let keep = async {
                // What fails at the beginning is tried again by what follows.
                let _ = keeper.begin().await;
                keeper.run().await
            };
            tokio::select! {
                () = run => {}
                _ = keep => {}
            }
        });
        Some(Self { core, life, background, _shutdown: shutdown })
    }

    /// Ends the node between two of its steps.
    pub(crate) fn crash(&self) {
        self.life.kill();
        self.background.abort();
    }
}
