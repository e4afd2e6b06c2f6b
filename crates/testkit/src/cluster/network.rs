//! The network between nodes: calls are delayed, refused, lost on their way there, or on their way back.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use cofactor_node::NodeServer;
use cofactor_types::Fault;
use cofactor_wire::node::{Call, Serve, Transport};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::sync::oneshot;

use crate::life::Life;

/// What is wrong with the network everywhere.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NetworkFaults {
    /// Calls that are lost on their way there, or whose answer is lost.
    pub(super) lost_permille: u16,
    /// The longest that a message takes, in microseconds.
    pub(super) delay_us_max: u64,
}

#[derive(Clone, Debug)]
struct Peer {
    server: NodeServer,
    life: Life,
}

/// All ways between nodes.
pub(super) struct Network {
    state: Mutex<State>,
}

struct State {
    rng: StdRng,
    faults: NetworkFaults,
    peers: BTreeMap<String, Peer>,
    /// From one address to another nothing comes through.
    cuts: BTreeSet<(String, String)>,
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Network")
    }
}

/// What becomes of one call.
#[derive(Clone, Copy, Debug)]
struct Journey {
    there: Duration,
    back: Duration,
    is_lost: bool,
    answer_is_lost: bool,
    /// A loss is noticed, as that of a connection that is closed; else the caller waits in vain.
    is_noticed: bool,
}

impl Network {
    pub(super) fn new(seed: u64) -> Arc<Self> {
        let rng = StdRng::seed_from_u64(seed ^ 0x6e65_7477);
        let state = State { rng, faults: NetworkFaults::default(), peers: BTreeMap::new(), cuts: BTreeSet::new() };
        Arc::new(Self { state: Mutex::new(state) })
    }

    pub(super) fn set_faults(&self, faults: NetworkFaults) {
        self.lock().faults = faults;
    }

    /// Lets nothing through in this direction any more.
    pub(super) fn cut(&self, from: &str, to: &str) {
        self.lock().cuts.insert((from.to_owned(), to.to_owned()));
    }

    /// Mends what is cut in this direction.
    pub(super) fn mend(&self, from: &str, to: &str) {
        self.lock().cuts.remove(&(from.to_owned(), to.to_owned()));
    }

    /// Whether nothing comes through in this direction.
    pub(super) fn is_cut(&self, from: &str, to: &str) -> bool {
        self.lock().cuts.contains(&(from.to_owned(), to.to_owned()))
    }

    /// A node listens; it takes the place of an earlier one at the address.
    pub(super) fn listen(&self, address: &str, server: NodeServer, life: Life) {
        self.lock().peers.insert(address.to_owned(), Peer { server, life });
    }

    fn peer(&self, address: &str) -> Option<Peer> {
        self.lock().peers.get(address).filter(|peer| !peer.life.is_dead()).cloned()
    }

    fn journey(&self) -> Journey {
        let state = &mut *self.lock();
        let NetworkFaults { lost_permille, delay_us_max } = state.faults;
        let mut delay = || Duration::from_micros(state.rng.random_range(0..=delay_us_max));
        let (there, back) = (delay(), delay());
        let mut chance = |permille: u16| state.rng.random_range(0..1000) < permille;
        Journey {
            there,
            back,
            is_lost: chance(lost_permille),
            answer_is_lost: chance(lost_permille),
            is_noticed: chance(500),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One node's way to the others.
#[derive(Debug)]
pub(super) struct SimTransport {
    network: Arc<Network>,
    address: String,
    life: Life,
}

impl SimTransport {
    pub(super) fn new(network: &Arc<Network>, address: &str, life: &Life) -> Self {
        Self { network: Arc::clone(network), address: address.to_owned(), life: life.clone() }
    }

    async fn carry(&self, address: &str, call: Call) -> Result<Bytes, Fault> {
        let (network, journey) = (&self.network, self.network.journey());
        tokio::time::sleep(journey.there).await;
        if network.is_cut(&self.address, address) {
            return match journey.is_noticed {
                true => Err(Fault::unavailable("there is no way to this node")),
                false => std::future::pending().await,
            };
        }
        if journey.is_lost {
            return lost(journey).await;
        }
        let Some(peer) = network.peer(address) else { return Err(Fault::unavailable("nobody listens there")) };
        let (sender, receiver) = oneshot::channel();
        let Peer { server, life } = peer.clone();
        // What has arrived is done, whether or not the caller waits.
        actix_rt::spawn(async move {
            life.gate().await;
            let answer = server.serve(call).await;
            life.gate().await;
            let _ = sender.send(answer);
        });
        let answer = tokio::select! {
            biased;
            answer = receiver => answer.unwrap_or_else(|_| Err(Fault::unknown("the node failed"))),
            () = peer.life.death() => return lost(journey).await,
        };
        tokio::time::sleep(journey.back).await;
        if journey.answer_is_lost || network.is_cut(address, &self.address) {
            return lost(journey).await;
        }
        answer
    }
}

async fn lost(journey: Journey) -> Result<Bytes, Fault> {
    match journey.is_noticed {
        true => Err(Fault::unknown("the connection was lost")),
        false => std::future::pending().await,
    }
}

#[async_trait]
impl Transport for SimTransport {
    async fn call(&self, address: &str, call: Call) -> Result<Bytes, Fault> {
        self.life.gate().await;
        let outcome = tokio::time::timeout(call.timeout, self.carry(address, call)).await;
        self.life.gate().await;
        outcome.unwrap_or_else(|_| Err(Fault::unknown("no answer came in time")))
    }
}
