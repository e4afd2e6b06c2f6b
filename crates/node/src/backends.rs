//! The only place that knows the names of backends.

use std::sync::Arc;

use cofactor_bus::{Bus, Shared, local};
use cofactor_store::Store;
use cofactor_store_embedded::{EmbeddedStore, OpenError};
use cofactor_types::Clock;

use crate::{Config, StoreBackend};

/// What a node stands on.
#[derive(Clone, Debug)]
pub struct Backends {
    /// Persistence.
    pub store: Arc<dyn Store>,
    /// Positions and wake-ups.
    pub bus: Arc<dyn Bus>,
    /// Facts shared for a short while.
    pub shared: Arc<dyn Shared>,
}

/// Opens the backends of a node that is alone.
///
/// # Errors
/// If the data folder cannot be used.
pub fn open(config: &Config, clock: Arc<dyn Clock>) -> Result<Backends, OpenError> {
    let store: Arc<dyn Store> = match config.store.backend {
        StoreBackend::Embedded => Arc::new(EmbeddedStore::open(&config.data_dir, &config.store.embedded)?),
    };
    Ok(Backends { store, bus: Arc::new(local::LocalBus::default()), shared: Arc::new(local::LocalShared::new(clock)) })
}
