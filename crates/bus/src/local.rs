//! The bus of a process that is alone.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use cofactor_types::Clock;
use futures::future::BoxFuture;
use tokio::sync::broadcast::{self, error::RecvError, error::TryRecvError};

use crate::{Bus, BusError, Decision, Delivery, Heartbeat, Listener, Rate, Record, Shared, Subscription, rate::Bucket};

/// Deliveries that may wait for a slow subscriber before it is told of a gap instead.
const WAITING_MAX: usize = 8_192;

/// Shared facts kept at once, and buckets; those whose time is over go first.
const SHARED_MAX: usize = 100_000;

/// An in-process bus. Clones are the same bus.
#[derive(Clone)]
pub struct LocalBus {
    sender: broadcast::Sender<Delivery>,
    listeners: Arc<Listeners>,
}

/// Those who hear at once.
#[derive(Default)]
struct Listeners(RwLock<Vec<Arc<dyn Listener>>>);

/// A place among the listeners, until it is dropped.
struct Place {
    listeners: Arc<Listeners>,
    listener: Arc<dyn Listener>,
}

impl Listeners {
    fn add(self: &Arc<Self>, listener: Arc<dyn Listener>) -> Place {
        self.0.write().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&listener));
        Place { listeners: Arc::clone(self), listener }
    }

    fn hear(&self, delivery: &Delivery) {
        let listeners = self.0.read().unwrap_or_else(PoisonError::into_inner);
        listeners.iter().for_each(|listener| listener.hear(delivery));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut listeners = self.listeners.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = listeners.iter().position(|other| Arc::ptr_eq(other, &self.listener)) {
            listeners.remove(place);
        }
    }
}

impl fmt::Debug for LocalBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalBus").field("subscribers", &self.sender.receiver_count()).finish()
    }
}

impl Default for LocalBus {
    fn default() -> Self {
        Self { sender: broadcast::channel(WAITING_MAX).0, listeners: Arc::default() }
    }
}

impl LocalBus {
    /// Tells every subscriber that something was missed.
    pub fn gap(&self) {
        self.send(Delivery::Gap);
    }

    fn send(&self, delivery: Delivery) {
        self.listeners.hear(&delivery);
        // An error says that nobody else hears, which is no news for the speaker.
        let _ = self.sender.send(delivery);
    }
}

impl Bus for LocalBus {
    fn is_heard_at_once(&self) -> bool {
        true
    }

    fn publish(&self, record: Record) {
        self.send(Delivery::Record(Arc::new(record)));
    }

    fn heartbeat(&self, heartbeat: Heartbeat) {
        self.send(Delivery::Heartbeat(Arc::new(heartbeat)));
    }

    fn subscribe(&self) -> Box<dyn Subscription> {
        Box::new(LocalSubscription(self.sender.subscribe()))
    }

    fn listen(&self, listener: Arc<dyn Listener>) -> BoxFuture<'static, ()> {
        let place = self.listeners.add(listener);
        Box::pin(async move {
            let _place = place;
            std::future::pending().await
        })
    }
}

struct LocalSubscription(broadcast::Receiver<Delivery>);

#[async_trait]
impl Subscription for LocalSubscription {
    async fn next(&mut self) -> Option<Delivery> {
        match self.0.recv().await {
            Ok(delivery) => Some(delivery),
            Err(RecvError::Lagged(_)) => Some(Delivery::Gap),
            Err(RecvError::Closed) => None,
        }
    }

    fn try_next(&mut self) -> Option<Delivery> {
        match self.0.try_recv() {
            Ok(delivery) => Some(delivery),
            Err(TryRecvError::Lagged(_)) => Some(Delivery::Gap),
            Err(TryRecvError::Empty | TryRecvError::Closed) => None,
        }
    }
}

/// Shared facts in this process's memory. Clones share them.
#[derive(Clone, Debug)]
pub struct LocalShared {
    clock: Arc<dyn Clock>,
    facts: Arc<Mutex<BTreeMap<String, (u64, Bytes)>>>,
    buckets: Arc<Mutex<BTreeMap<String, Bucket>>>,
}

impl LocalShared {
    /// No facts yet; their time runs by `clock`.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, facts: Arc::default(), buckets: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, (u64, Bytes)>> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Shared for LocalShared {
    async fn get(&self, key: &str) -> Result<Option<Bytes>, BusError> {
        let now_us = self.clock.now_us();
        Ok(self.lock().get(key).filter(|(end_us, _)| *end_us > now_us).map(|(_, value)| value.clone()))
    }

    async fn put(&self, key: &str, value: Bytes, life: Duration) -> Result<(), BusError> {
        let now_us = self.clock.now_us();
        let end_us = now_us.saturating_add(u64::try_from(life.as_micros()).unwrap_or(u64::MAX));
        let mut facts = self.lock();
        if facts.len() >= SHARED_MAX {
            facts.retain(|_, (end_us, _)| *end_us > now_us);
        }
        if facts.len() >= SHARED_MAX {
            return Err(BusError("too many shared facts".into()));
        }
        facts.insert(key.to_owned(), (end_us, value));
        Ok(())
    }

    async fn take(&self, key: &str) -> Result<Option<Bytes>, BusError> {
        let now_us = self.clock.now_us();
        Ok(self.lock().remove(key).filter(|(end_us, _)| *end_us > now_us).map(|(_, value)| value))
    }

    async fn take_tokens(&self, key: &str, rate: Rate, cost: u32) -> Result<Decision, BusError> {
        let now_us = self.clock.now_us();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= SHARED_MAX {
            buckets.retain(|_, bucket| bucket.full_at_us > now_us);
        }
        if buckets.len() >= SHARED_MAX && !buckets.contains_key(key) {
            return Err(BusError("too many buckets".into()));
        }
        let bucket = buckets.entry(key.to_owned()).or_insert_with(|| Bucket::full(rate, now_us));
        Ok(bucket.take(rate, cost, now_us))
    }
}
