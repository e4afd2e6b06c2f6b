//! The store and the way to other nodes, with a look at the clock before and after each call.
//!
//! Both are measured here and not in each backend, so that every backend is measured alike.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use cofactor_store::{
    Append, CasOutcome, Durability, Fence, Key, Mutation, Row, Scan, Store, StoreError, StoreResult, Swap, Table,
};
use cofactor_telemetry::Trace;
use cofactor_types::{Clock, ErrorClass, Fault, Position};
use cofactor_wire::node::{Call, Target, Transport};
use tracing::Instrument;

/// The store of a node, measured.
#[derive(Debug)]
pub(crate) struct MeasuredStore {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
}

impl MeasuredStore {
    pub(crate) fn over(store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Arc<dyn Store> {
        Arc::new(Self { store, clock })
    }

    async fn measure<T>(&self, op: &'static str, call: impl Future<Output = StoreResult<T>>) -> StoreResult<T> {
        let began_us = self.clock.steady_us();
        let span = cofactor_telemetry::span!("store", otel.kind = "client", op);
        let outcome = call.instrument(span).await;
        let took_us = self.clock.steady_us().saturating_sub(began_us);
        metrics::histogram!("cofactor_store_seconds", "op" => op).record(took_us as f64 / 1e6);
        // A fence that stands in the way is no failure of the store; who appends counts it.
        if let Err(error) = &outcome
            && !matches!(error, StoreError::Fenced(_))
        {
            metrics::counter!("cofactor_store_failures_total", "op" => op, "class" => word(error.class())).increment(1);
        }
        outcome
    }
}

#[async_trait]
impl Store for MeasuredStore {
    async fn get(&self, table: &'static Table, partition: &Key, clustering: &Key) -> StoreResult<Option<Bytes>> {
        self.measure("get", self.store.get(table, partition, clustering)).await
    }

    async fn scan(&self, scan: Scan) -> StoreResult<Vec<Row>> {
        self.measure("scan", self.store.scan(scan)).await
    }

    async fn write(&self, batch: Vec<Mutation>, durability: Durability) -> StoreResult<()> {
        self.measure("write", self.store.write(batch, durability)).await
    }

    async fn write_at(&self, batch: Vec<Mutation>, position: Position) -> StoreResult<()> {
        self.measure("write", self.store.write_at(batch, position)).await
    }

    async fn append(&self, append: Append) -> StoreResult<()> {
        self.measure("append", self.store.append(append)).await
    }

    async fn fence(&self, table: &'static Table, partition: &Key) -> StoreResult<Option<Fence>> {
        self.measure("fence", self.store.fence(table, partition)).await
    }

    async fn compare_and_set(
        &self,
        table: &'static Table,
        partition: &Key,
        clustering: &Key,
        expected: Option<Bytes>,
        new: Option<Bytes>,
    ) -> StoreResult<CasOutcome> {
        let call = self.store.compare_and_set(table, partition, clustering, expected, new);
        self.measure("compare_and_set", call).await
    }

    async fn compare_and_set_all(&self, table: &'static Table, partition: &Key, swaps: Vec<Swap>) -> StoreResult<bool> {
        self.measure("compare_and_set", self.store.compare_and_set_all(table, partition, swaps)).await
    }

    fn spans_partitions(&self) -> bool {
        self.store.spans_partitions()
    }

    fn buckets_begun(&self) -> Option<u64> {
        self.store.buckets_begun()
    }

    async fn close(&self) -> StoreResult<()> {
        self.store.close().await
    }
}

/// The way to other nodes, measured.
#[derive(Debug)]
pub(crate) struct MeasuredTransport {
    transport: Arc<dyn Transport>,
    clock: Arc<dyn Clock>,
}

impl MeasuredTransport {
    pub(crate) fn over(transport: Arc<dyn Transport>, clock: Arc<dyn Clock>) -> Arc<dyn Transport> {
        Arc::new(Self { transport, clock })
    }
}

#[async_trait]
impl Transport for MeasuredTransport {
    async fn call(&self, address: &str, mut call: Call) -> Result<Bytes, Fault> {
        let target = target_word(&call.target);
        let began_us = self.clock.steady_us();
        let span = cofactor_telemetry::span!("call", otel.kind = "client", target, server.address = address);
        if let Some(here) = Trace::of(&span) {
            call.trace = Some(here.to_string());
        }
        let outcome = self.transport.call(address, call).instrument(span).await;
        let took_us = self.clock.steady_us().saturating_sub(began_us);
        let word = outcome.as_ref().map_or_else(|fault| word(fault.class), |_| "ok");
        metrics::counter!("cofactor_rpc_calls_total", "target" => target, "outcome" => word).increment(1);
        // A call of `/sync` takes as long as nothing happens, which says nothing about the way.
        if target != "sync" {
            metrics::histogram!("cofactor_rpc_seconds", "target" => target).record(took_us as f64 / 1e6);
        }
        outcome
    }
}

/// What a call is for, in metrics and spans.
pub(crate) fn target_word(target: &Target) -> &'static str {
    match target {
        Target::Entity(id) => id.kind().as_str(),
        Target::Sync => "sync",
        Target::Shards => "shards",
        Target::Status => "status",
    }
}

fn word(class: ErrorClass) -> &'static str {
    match class {
        ErrorClass::NotFound => "not_found",
        ErrorClass::Forbidden => "forbidden",
        ErrorClass::Invalid => "invalid",
        ErrorClass::Conflict => "conflict",
        ErrorClass::Limited => "limited",
        ErrorClass::NotOwner => "not_owner",
        ErrorClass::Unavailable => "unavailable",
        ErrorClass::Unknown => "unknown",
        ErrorClass::Internal => "internal",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use cofactor_types::SystemClock;

    use super::*;

    /// Remembers what it was asked to carry.
    #[derive(Debug, Default)]
    struct Way(Mutex<Vec<Call>>);

    #[async_trait]
    impl Transport for Way {
        async fn call(&self, _address: &str, call: Call) -> Result<Bytes, Fault> {
            self.0.lock().unwrap().push(call);
            Ok(Bytes::new())
        }
    }

    #[tokio::test]
    async fn a_call_goes_on_as_it_came_where_traces_go_nowhere() {
        let way = Arc::new(Way::default());
        let measured = MeasuredTransport::over(Arc::clone(&way) as Arc<dyn Transport>, Arc::new(SystemClock));
        let trace = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned());
        let timeout = std::time::Duration::from_secs(1);
        let call = Call { target: Target::Sync, frame: Bytes::from_static(b"x"), timeout, trace };
        measured.call("a:1", call.clone()).await.unwrap();
        assert_eq!(*way.0.lock().unwrap(), [call]);
    }
}
