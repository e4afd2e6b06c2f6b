//! The bus between nodes, as Redis is: a doorbell that may be late, lose, repeat or be gone.
//!
//! What a node says is heard by its own subscribers at once, by those of others over a link of its own, in its order. While
//! a node is cut off from the bus it hears nobody and nobody hears it; it is told of a gap when that begins, now and then
//! while it lasts, and when it ends. The silence of a node that had heartbeats is a gap for those who heard it.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use cofactor_bus::{Bus, Delivery, Heartbeat, Record, Subscription, local::LocalBus};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{sync::mpsc, time::Instant};

use super::witness::Witness;
use crate::life::Life;

/// How often a node that is cut off is told of a gap.
const GAP_EVERY: Duration = Duration::from_secs(2);

/// After this without a heartbeat a node is silent.
const SILENCE: Duration = Duration::from_secs(1);

/// How often links and silences are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Deliveries under way on one link.
const LINK_MAX: usize = 8_192;

/// What is wrong with the bus.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct BusFaults {
    /// Nobody reaches it.
    pub(super) is_down: bool,
    /// Deliveries that are lost without a word.
    pub(super) lost_permille: u16,
    /// Deliveries that come twice.
    pub(super) twice_permille: u16,
    /// The longest delay, in microseconds.
    pub(super) delay_us_max: u64,
}

/// What all nodes share.
pub(super) struct Hub {
    state: Mutex<State>,
    witness: Arc<Witness>,
}

struct State {
    rng: StdRng,
    faults: BusFaults,
    next: u64,
    ports: BTreeMap<u64, Port>,
    links: BTreeMap<(u64, u64), Link>,
}

struct Port {
    address: String,
    local: LocalBus,
    is_cut: bool,
    /// When it was last told of a gap, while it is cut off.
    told: Option<Instant>,
    /// The last heartbeat of each other node.
    heard: BTreeMap<u64, Instant>,
}

struct Link {
    sender: mpsc::Sender<(Instant, Delivery)>,
    last: Instant,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hub")
    }
}

impl Hub {
    pub(super) fn new(seed: u64, witness: Arc<Witness>) -> Arc<Self> {
        let state = State {
            rng: StdRng::seed_from_u64(seed ^ 0x6275_7300),
            faults: BusFaults::default(),
            next: 0,
            ports: BTreeMap::new(),
            links: BTreeMap::new(),
        };
        let hub = Arc::new(Self { state: Mutex::new(state), witness });
        let weak = Arc::downgrade(&hub);
        actix_rt::spawn(async move {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                match weak.upgrade() {
                    Some(hub) => hub.look(),
                    None => return,
                }
            }
        });
        hub
    }

    pub(super) fn set_faults(&self, faults: BusFaults) {
        self.lock().faults = faults;
        self.look();
    }

    /// Cuts the node at an address off the bus, or lets it in again.
    pub(super) fn cut(&self, address: &str, is_cut: bool) {
        self.lock().ports.values_mut().filter(|port| port.address == address).for_each(|port| port.is_cut = is_cut);
        self.look();
    }

    /// A bus value of a new process.
    pub(super) fn join(self: &Arc<Self>, address: &str, life: &Life) -> SimBus {
        let mut state = self.lock();
        state.next += 1;
        let me = state.next;
        let local = LocalBus::default();
        let port = Port {
            address: address.to_owned(),
            local: local.clone(),
            is_cut: false,
            told: None,
            heard: BTreeMap::new(),
        };
        let others: Vec<u64> = state.ports.keys().copied().collect();
        for other in others {
            for (from, to) in [(me, other), (other, me)] {
                let (sender, mut receiver) = mpsc::channel(LINK_MAX);
                state.links.insert((from, to), Link { sender, last: Instant::now() });
                let hub = Arc::downgrade(self);
                actix_rt::spawn(async move {
                    while let Some((at, delivery)) = receiver.recv().await {
                        tokio::time::sleep_until(at).await;
                        let Some(hub) = hub.upgrade() else { return };
                        hub.arrive(from, to, delivery);
                    }
                });
            }
        }
        state.ports.insert(me, port);
        drop(state);
        SimBus { hub: Arc::clone(self), me, local, life: life.clone() }
    }

    /// A process has ended. One that says goodbye is not missed.
    pub(super) fn leave(&self, me: u64, goodbye: bool) {
        let mut state = self.lock();
        state.ports.remove(&me);
        state.links.retain(|(from, to), _| *from != me && *to != me);
        if goodbye {
            for port in state.ports.values_mut() {
                port.heard.remove(&me);
            }
        }
    }

    /// Tells of gaps.
    fn look(&self) {
        let now = Instant::now();
        let state = &mut *self.lock();
        for port in state.ports.values_mut() {
            if state.faults.is_down || port.is_cut {
                port.heard.clear();
                if port.told.is_none_or(|told| now - told >= GAP_EVERY) {
                    port.told = Some(now);
                    port.local.gap();
                }
                continue;
            }
            let before = port.heard.len();
            port.heard.retain(|_, heard| now - *heard <= SILENCE);
            if port.told.take().is_some() || port.heard.len() < before {
                port.local.gap();
            }
        }
    }

    fn carry(&self, from: u64, delivery: &Delivery) {
        let State { rng, faults, ports, links, .. } = &mut *self.lock();
        if faults.is_down || ports.get(&from).is_none_or(|port| port.is_cut) {
            return;
        }
        let mut chance = |permille: u16| permille > 0 && rng.random_range(0..1000) < permille;
        for ((_, _), link) in links.range_mut((from, 0)..=(from, u64::MAX)) {
            if chance(faults.lost_permille) {
                continue;
            }
            let times = if chance(faults.twice_permille) { 2 } else { 1 };
            // Slow once in a while.
            let delay_us = if chance(100) { faults.delay_us_max } else { faults.delay_us_max / 20 };
            link.last = link.last.max(Instant::now() + Duration::from_micros(delay_us));
            for _ in 0..times {
                // A link that is full loses.
                let _ = link.sender.try_send((link.last, delivery.clone()));
            }
        }
    }

    fn arrive(&self, from: u64, to: u64, delivery: Delivery) {
        let state = &mut *self.lock();
        let Some(port) = state.ports.get_mut(&to) else { return };
        if state.faults.is_down || port.is_cut {
            return;
        }
        match delivery {
            Delivery::Record(record) => port.local.publish((*record).clone()),
            Delivery::Heartbeat(heartbeat) => {
                port.heard.insert(from, Instant::now());
                port.local.heartbeat((*heartbeat).clone());
            }
            Delivery::Gap => port.local.gap(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bus of one process.
#[derive(Debug)]
pub(super) struct SimBus {
    hub: Arc<Hub>,
    me: u64,
    local: LocalBus,
    life: Life,
}

impl SimBus {
    pub(super) fn number(&self) -> u64 {
        self.me
    }
}

impl Bus for SimBus {
    fn publish(&self, record: Record) {
        if !self.life.is_dead() {
            self.local.publish(record.clone());
            self.hub.carry(self.me, &Delivery::Record(Arc::new(record)));
        }
    }

    fn heartbeat(&self, heartbeat: Heartbeat) {
        // A process that stands still says nothing; its timers come due only because those of the simulation do.
        if self.life.is_running() {
            self.hub.witness.heartbeat(&heartbeat);
            self.local.heartbeat(heartbeat.clone());
            self.hub.carry(self.me, &Delivery::Heartbeat(Arc::new(heartbeat)));
        }
    }

    fn subscribe(&self) -> Box<dyn Subscription> {
        Box::new(Gated { inner: self.local.subscribe(), life: self.life.clone() })
    }
}

struct Gated {
    inner: Box<dyn Subscription>,
    life: Life,
}

#[async_trait]
impl Subscription for Gated {
    async fn next(&mut self) -> Option<Delivery> {
        self.life.gate().await;
        let delivery = self.inner.next().await;
        self.life.gate().await;
        delivery
    }

    fn try_next(&mut self) -> Option<Delivery> {
        self.inner.try_next()
    }
}
