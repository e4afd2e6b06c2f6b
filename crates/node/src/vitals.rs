//! What the process says of itself to its operator: whether it takes requests, and its metrics.

use std::sync::{
    Arc, Mutex, PoisonError, Weak,
    atomic::{AtomicBool, Ordering},
};

use cofactor_entity::Ownership;

/// Set while the process takes requests.
static READY: AtomicBool = AtomicBool::new(false);

/// The shards of the node that runs in this process. Weak: a node that has ended owns nothing.
static OWNERSHIP: Mutex<Weak<Ownership>> = Mutex::new(Weak::new());

/// The process takes requests from now on, or no more.
pub(crate) fn set_ready(ready: bool) {
    READY.store(ready, Ordering::Release);
}

/// Whether the process takes requests.
pub(crate) fn is_ready() -> bool {
    READY.load(Ordering::Acquire)
}

/// Metrics tell of these shards from now on.
pub(crate) fn observe(ownership: &Arc<Ownership>) {
    *OWNERSHIP.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(ownership);
}

/// The metrics page, with what is measured only when somebody asks.
pub(crate) fn metrics() -> String {
    let ownership = OWNERSHIP.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
    if let Some(ownership) = ownership {
        let owned = if ownership.is_valid() { ownership.owned_count() } else { 0 };
        metrics::gauge!("cofactor_shards").set(f64::from(ownership.shard_count()));
        metrics::gauge!("cofactor_shards_owned").set(owned as f64);
        metrics::gauge!("cofactor_members").set(ownership.view().members().count() as f64);
    }
    cofactor_telemetry::render_metrics()
}
