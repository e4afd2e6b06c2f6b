//! One life of a node of the cluster.

use std::{cell::RefCell, sync::Arc, time::Duration};

use cofactor_bus::local::LocalShared;
use cofactor_entity::{Keeper, KeeperOptions, Placement, Planted};
use cofactor_node::{Core, CoreParts, Identity, backends::Backends};
use cofactor_shard::Role;
use cofactor_store::{Store, model::ModelStore};
use cofactor_sync::SyncOptions;
use cofactor_types::{Clock, Entropy};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
};

use super::{
    bus::Hub,
    clock::MachineClock,
    network::{Network, SimTransport},
};
use crate::{connection::Connection, life::Life, node::SimEntropy};

/// Shards of the simulated cluster.
pub(super) const SHARDS: u32 = 16;

/// The lease of a node.
pub(super) const LEASE: Duration = Duration::from_secs(2);

/// How long an entity stays in memory without being asked anything.
const IDLE: Duration = Duration::from_secs(3);

/// What all nodes stand on.
#[derive(Debug)]
pub(super) struct Ground {
    pub(super) store: ModelStore,
    pub(super) network: Arc<Network>,
    pub(super) hub: Arc<Hub>,
    pub(super) entropy: Arc<SimEntropy>,
    pub(super) planted: Planted,
}

/// A process.
#[derive(Debug)]
pub(super) struct ClusterNode {
    pub(super) core: Core,
    pub(super) life: Life,
    pub(super) connection: Connection,
    ground: Arc<Ground>,
    number: u64,
    background: JoinHandle<()>,
    shutdown: watch::Sender<bool>,
    leave: RefCell<Option<oneshot::Sender<()>>>,
}

impl ClusterNode {
    /// Starts a process at an address, which is its name too. `None`: the store did not let it.
    pub(super) async fn start(ground: &Arc<Ground>, address: &str, clock: &MachineClock) -> Option<Self> {
        let life = Life::default();
        let planted = ground.planted;
        let clock: Arc<dyn Clock> = Arc::new(clock.clone());
        let entropy: Arc<dyn Entropy> = Arc::clone(&ground.entropy) as Arc<dyn Entropy>;
        let connection = Connection::new(&ground.store, &life, planted);
        let store: Arc<dyn Store> = Arc::new(connection.clone());
        let name = crate::lab::SERVER.try_into().ok()?;
        let mut identity = Identity::establish(&store, &*entropy, name).await.ok()?;
        identity.shard_count = SHARDS;
        let bus = ground.hub.join(address, &life);
        let number = bus.number();
        let (shutdown, stopping) = watch::channel(false);
        let built = Core::build(CoreParts {
            backends: Backends::new(store, Arc::new(bus), Arc::new(LocalShared::new(Arc::clone(&clock)))),
            identity,
            clock,
            entropy,
            placement: Placement::default(),
            idle: IDLE,
            sync: SyncOptions::default(),
            shutdown: stopping,
            keeper: KeeperOptions {
                name: address.to_owned(),
                address: address.to_owned(),
                roles: Role::ALL.to_vec(),
                lease: LEASE,
            },
            transport: Some(Arc::new(SimTransport::new(&ground.network, address, &life))),
            planted,
        })
        .await;
        let Ok((core, keeper)) = built else {
            ground.hub.leave(number, false);
            return None;
        };
        ground.network.listen(address, core.server(), life.clone());
        let (leave, left) = oneshot::channel();
        // What a dead process left in memory is not told of its death.
        let kept = shutdown.clone();
        actix_rt::spawn(async move {
            let _kept = kept;
            std::future::pending::<()>().await;
        });
        let background = actix_rt::spawn(live(core.run(), keeper, left, life.clone()));
        let (ground, leave) = (Arc::clone(ground), RefCell::new(Some(leave)));
        Some(Self { core, life, connection, ground, number, background, shutdown, leave })
    }

    /// Ends it between two of its steps.
    pub(super) fn crash(&self) {
        self.life.kill();
        self.background.abort();
        self.ground.hub.leave(self.number, false);
    }

    /// Lets it answer what waits.
    pub(super) fn send_home(&self) {
        let _ = self.shutdown.send(true);
    }

    /// Lets it hand over what it has and go; returns when it has gone.
    pub(super) async fn leave(&self) {
        self.send_home();
        let leave = self.leave.borrow_mut().take();
        if let Some(leave) = leave {
            let _ = leave.send(());
        }
        self.life.death().await;
        self.ground.hub.leave(self.number, true);
    }
}

/// What runs in a process, until it leaves or has lost its lease.
async fn live(run: impl Future<Output = ()>, mut keeper: Keeper, leave: oneshot::Receiver<()>, life: Life) {
    let keep = async {
        tokio::select! {
            error = async {
                match keeper.begin().await {
                    Ok(()) => keeper.run().await,
                    Err(error) => error,
                }
            } => tracing::warn!(%error, "a node ends"),
            Ok(()) = leave => {
                if let Err(error) = keeper.leave().await {
                    tracing::warn!(%error, "a node could not hand over");
                }
            }
        }
    };
    tokio::select! {
        () = run => {}
        () = keep => {}
    }
    life.kill();
}
