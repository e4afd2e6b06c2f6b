//! The only place that knows the names of backends.

use std::sync::Arc;

use cofactor_bus::{Bus, BusError, Shared, local};
use cofactor_bus_redis::{RedisBus, RedisShared};
use cofactor_store::Store;
use cofactor_store_cql::CqlStore;
use cofactor_store_embedded::EmbeddedStore;
use cofactor_types::{Clock, Entropy};

use crate::{BusBackend, Config, StartError, StoreBackend, measured::MeasuredStore};

/// What a node stands on.
#[derive(Clone, Debug)]
pub struct Backends {
    /// Persistence.
    pub store: Arc<dyn Store>,
    /// Positions and wake-ups.
    pub bus: Arc<dyn Bus>,
    /// Facts shared for a short while.
    pub shared: Arc<dyn Shared>,
    /// The bus to say goodbye to when the node stops.
    redis: Option<RedisBus>,
}

impl Backends {
    /// Backends that a test brings.
    pub fn new(store: Arc<dyn Store>, bus: Arc<dyn Bus>, shared: Arc<dyn Shared>) -> Self {
        Self { store, bus, shared, redis: None }
    }

    /// Says what still waits, and goodbye.
    pub async fn leave_bus(&self) {
        if let Some(redis) = &self.redis {
            redis.close().await;
        }
    }
}

/// Opens the backends that the configuration names.
///
/// # Errors
/// If the store cannot be used. A Redis that is away is no error: it is only missed.
pub async fn open(config: &Config, clock: Arc<dyn Clock>, entropy: Arc<dyn Entropy>) -> Result<Backends, StartError> {
    let store: Arc<dyn Store> = match config.store.backend {
        StoreBackend::Embedded => Arc::new(EmbeddedStore::open(&config.data_dir, &config.store.embedded)?),
        StoreBackend::Cql => Arc::new(CqlStore::open(&config.store.cql).await?),
    };
    let store = MeasuredStore::over(store, Arc::clone(&clock));
    match config.bus.backend {
        BusBackend::Local => {
            let bus = Arc::new(local::LocalBus::default());
            Ok(Backends::new(store, bus, Arc::new(local::LocalShared::new(clock))))
        }
        BusBackend::Redis => {
            let redis = RedisBus::start(config.bus.redis.clone(), entropy)?;
            let shared: Arc<dyn Shared> = Arc::new(RedisShared::new(&config.bus.redis)?);
            Ok(Backends { store, bus: Arc::new(redis.clone()), shared, redis: Some(redis) })
        }
    }
}

impl From<BusError> for StartError {
    fn from(error: BusError) -> Self {
        Self::Fault(error.into())
    }
}
