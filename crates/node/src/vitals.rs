//! What the process says of itself to its operator: whether it takes requests, how it is doing, and its metrics.

use std::sync::{
    Arc, Mutex, PoisonError, Weak,
    atomic::{AtomicBool, Ordering},
};

use cofactor_entity::{Env, Load};
use cofactor_rooms::RoomsHandle;
use cofactor_sync::Syncs;
use cofactor_types::EntityKind;
use cofactor_users::UsersHandle;
use cofactor_wire::status::{KindStatus, Latency, NodeStatus, SyncStatus};

/// How often histograms are tidied up, in seconds.
const KEEP_UP_S: u64 = 5;

/// Entities of each kind that are named because much waits for them.
const BUSIEST_MAX: usize = 5;

/// Set while the process takes requests.
static READY: AtomicBool = AtomicBool::new(false);

/// The node that runs in this process. Weak: a node that has ended has nothing to say.
static PROBE: Mutex<Weak<Probe>> = Mutex::new(Weak::new());

/// The process takes requests from now on, or no more.
pub(crate) fn set_ready(ready: bool) {
    READY.store(ready, Ordering::Release);
}

/// Whether the process takes requests.
pub(crate) fn is_ready() -> bool {
    READY.load(Ordering::Acquire)
}

/// Metrics tell of this node from now on.
pub(crate) fn observe(probe: &Arc<Probe>) {
    *PROBE.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(probe);
}

/// The metrics page, with what is measured only when somebody asks.
pub(crate) fn metrics() -> String {
    let probe = PROBE.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
    if let Some(probe) = probe {
        probe.set_gauges();
    }
    cofactor_telemetry::render_metrics()
}

/// Tidies up after the histograms for as long as it is polled, so that a process whose metrics nobody reads does not keep
/// every measurement.
pub(crate) async fn keep_up() {
    let mut interval = tokio::time::interval(std::time::Duration::from_secs(KEEP_UP_S));
    loop {
        interval.tick().await;
        cofactor_telemetry::keep_up();
    }
}

/// Looks into a node.
#[derive(Debug)]
pub(crate) struct Probe {
    pub(crate) env: Env,
    pub(crate) rooms: RoomsHandle,
    pub(crate) users: UsersHandle,
    pub(crate) sync: Syncs,
}

impl Probe {
    /// How the node is doing.
    pub(crate) fn status(&self) -> NodeStatus {
        let page = cofactor_telemetry::render_metrics();
        let store = |op: &str| latency(&page, "cofactor_store_seconds", &format!("op=\"{op}\","));
        let memory = sample(&page, "process_resident_memory_bytes");
        NodeStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            is_ready: is_ready(),
            append: store("append"),
            read: store("scan"),
            bus: latency(&page, "cofactor_bus_delay_seconds", ""),
            memory_bytes: memory.unwrap_or_default() as u64,
            ..self.counts()
        }
    }

    /// What can be counted without a look at the metrics.
    fn counts(&self) -> NodeStatus {
        let ownership = self.env.ownership();
        let owned = if ownership.is_valid() { ownership.owned_count() } else { 0 };
        NodeStatus {
            shards_owned: u32::try_from(owned).unwrap_or(u32::MAX),
            members: u32::try_from(ownership.view().members().count()).unwrap_or(u32::MAX),
            lease_remaining_ms: u64::try_from(ownership.remaining().as_millis()).unwrap_or(u64::MAX),
            rooms: kind(self.rooms.entities().load(BUSIEST_MAX)),
            users: kind(self.users.entities().load(BUSIEST_MAX)),
            sync: self.sync.load().map(|load| SyncStatus {
                waiting: load.waiting as u64,
                slots: load.slots as u64,
                lag_ms: load.lag.map(|lag| u64::try_from(lag.as_millis()).unwrap_or(u64::MAX)),
            }),
            ..NodeStatus::default()
        }
    }

    fn set_gauges(&self) {
        let counts = self.counts();
        metrics::gauge!("cofactor_shards").set(f64::from(self.env.shard_count()));
        metrics::gauge!("cofactor_shards_owned").set(f64::from(counts.shards_owned));
        metrics::gauge!("cofactor_members").set(f64::from(counts.members));
        metrics::gauge!("cofactor_lease_remaining_seconds").set(counts.lease_remaining_ms as f64 / 1e3);
        for (kind, load) in [(EntityKind::Room, &counts.rooms), (EntityKind::User, &counts.users)] {
            let deepest = load.busiest.first().map_or(0, |(_, queued)| *queued);
            metrics::gauge!("cofactor_entity_live", "kind" => kind.as_str()).set(load.live as f64);
            metrics::gauge!("cofactor_entity_queued", "kind" => kind.as_str()).set(load.queued as f64);
            metrics::gauge!("cofactor_entity_queued_max", "kind" => kind.as_str()).set(deepest as f64);
        }
        if let Some(sync) = counts.sync {
            metrics::gauge!("cofactor_sync_waiting").set(sync.waiting as f64);
            metrics::gauge!("cofactor_sync_slots").set(sync.slots as f64);
            // Nothing is more behind than what has heard nothing.
            let lag_s = sync.lag_ms.map_or(f64::INFINITY, |lag_ms| lag_ms as f64 / 1e3);
            metrics::gauge!("cofactor_sync_lag_seconds").set(lag_s);
        }
    }
}

fn kind(load: Load) -> KindStatus {
    let busiest = load.busiest.into_iter().map(|(id, queued)| (id.as_str().to_owned(), queued as u64));
    KindStatus { live: load.live as u64, queued: load.queued as u64, busiest: busiest.collect() }
}

/// The quantiles of a summary on a metrics page; `None` if it has measured nothing of late.
fn latency(page: &str, name: &str, labels: &str) -> Option<Latency> {
    let quantile = |q: &str| sample(page, &format!("{name}{{{labels}quantile=\"{q}\"}}")).map(|s| s * 1e3);
    let (p50_ms, p99_ms) = (quantile("0.5")?, quantile("0.99")?);
    (p99_ms > 0.0).then_some(Latency { p50_ms, p99_ms })
}

/// The value of a series on a metrics page.
fn sample(page: &str, series: &str) -> Option<f64> {
    page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_read_from_the_metrics_page() {
        let page = "# TYPE a summary\na{op=\"append\",quantile=\"0.5\"} 0.002\na{op=\"append\",quantile=\"0.99\"} 0.25\n\
                    b{quantile=\"0.5\"} 0\nb{quantile=\"0.99\"} 0\n";
        assert_eq!(latency(page, "a", "op=\"append\","), Some(Latency { p50_ms: 2.0, p99_ms: 250.0 }));
        assert_eq!(latency(page, "a", "op=\"scan\","), None);
        assert_eq!(latency(page, "b", ""), None, "nothing of late");
    }
}
