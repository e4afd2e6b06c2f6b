//! What this node owns, what it knows of the others, and where an entity is to be found.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use cofactor_shard::View;
use cofactor_types::{Clock, Epoch, Fault, NodeId, ShardId};
use cofactor_wire::node::ShardCall;
use tokio::sync::Notify;

/// The end of a lease counts a little earlier for its owner than for everybody else, in microseconds.
const MARGIN_US: u64 = 500_000;

/// Where an entity is to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Here.
    Here,
    /// At this address.
    At(String),
    /// Nobody knows at this moment.
    Nowhere,
}

/// What other nodes said of shards that are to be this node's.
#[derive(Debug, Default)]
pub(crate) struct Offers {
    /// Their owners have given them away.
    pub(crate) released: BTreeSet<ShardId>,
    /// A row that is about to be written says that they are this node's in these epochs.
    pub(crate) coming: BTreeMap<ShardId, Epoch>,
}

impl Offers {
    pub(crate) fn merge(&mut self, later: Self) {
        self.released.extend(later.released);
        for (shard, epoch) in later.coming {
            let expected = self.coming.entry(shard).or_insert(epoch);
            *expected = epoch.max(*expected);
        }
    }
}

/// The shards of a node, and its view of the cluster.
#[derive(Debug)]
pub struct Ownership {
    node: NodeId,
    clock: Arc<dyn Clock>,
    /// Epoch by shard; zero: not ours.
    epochs: Box<[AtomicU64]>,
    /// By shard: the last epoch in which an entity of it was activated here.
    touched: Box<[AtomicU64]>,
    /// Rises with every change of `epochs`.
    version: AtomicU64,
    /// Until when what is ours is ours, by the steady clock.
    valid_until_us: AtomicU64,
    view: RwLock<Arc<View>>,
    /// Owners that differ from the assignment, as last read from the store.
    found: Mutex<HashMap<ShardId, NodeId>>,
    offers: Mutex<Offers>,
    /// Whether it looks after nothing new.
    is_leaving: AtomicBool,
    nudge: Notify,
}

impl Ownership {
    /// Of `node`, which owns nothing yet, in a cluster of `shard_count` shards.
    pub fn new(node: NodeId, shard_count: u32, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            node,
            clock,
            epochs: (0..shard_count).map(|_| AtomicU64::new(0)).collect(),
            touched: (0..shard_count).map(|_| AtomicU64::new(0)).collect(),
            version: AtomicU64::new(1),
            valid_until_us: AtomicU64::new(0),
            view: RwLock::default(),
            found: Mutex::default(),
            offers: Mutex::default(),
            is_leaving: AtomicBool::new(false),
            nudge: Notify::new(),
        })
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Shards of the cluster.
    pub fn shard_count(&self) -> u32 {
        u32::try_from(self.epochs.len()).unwrap_or(u32::MAX)
    }

    /// The members as last seen.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The epoch of a shard that is ours, while the lease is good.
    pub fn epoch(&self, shard: ShardId) -> Option<Epoch> {
        self.held(shard).filter(|_| self.is_valid())
    }

    /// The epoch in which a shard is ours, whether or not the lease is good.
    pub(crate) fn held(&self, shard: ShardId) -> Option<Epoch> {
        let epoch = self.epochs.get(shard.0 as usize)?.load(Ordering::Acquire);
        (epoch != 0).then_some(Epoch(epoch))
    }

    /// As [`Self::epoch`], for an entity that is about to be activated: who is told an epoch is seen to have touched the shard
    /// by whoever takes the epoch away first and looks afterwards.
    pub(crate) fn touch(&self, shard: ShardId) -> Option<Epoch> {
        let index = shard.0 as usize;
        let (slot, touched) = (self.epochs.get(index)?, self.touched.get(index)?);
        let epoch = slot.load(Ordering::SeqCst);
        touched.fetch_max(epoch, Ordering::SeqCst);
        (epoch != 0 && slot.load(Ordering::SeqCst) == epoch && self.is_valid()).then_some(Epoch(epoch))
    }

    /// Whether an entity of a shard was activated here in this epoch.
    pub(crate) fn is_touched(&self, shard: ShardId, epoch: Epoch) -> bool {
        self.touched.get(shard.0 as usize).is_none_or(|touched| touched.load(Ordering::SeqCst) == epoch.0)
    }

    /// Whether a shard is still ours in `epoch`, though the lease may have to be renewed before anything is done with it.
    pub(crate) fn holds(&self, shard: ShardId, epoch: Epoch) -> bool {
        self.held(shard) == Some(epoch)
    }

    /// Whether the lease is good.
    pub fn is_valid(&self) -> bool {
        self.clock.steady_us() < self.valid_until_us.load(Ordering::Acquire)
    }

    /// How long the lease is still good if it is not renewed.
    pub fn remaining(&self) -> Duration {
        let until_us = self.valid_until_us.load(Ordering::Acquire);
        Duration::from_micros(until_us.saturating_sub(self.clock.steady_us()))
    }

    /// All shards that are ours, and the version of that list.
    pub(crate) fn owned(&self) -> (u64, Vec<(ShardId, Epoch)>) {
        loop {
            let version = self.version.load(Ordering::Acquire);
            let owned = self.epochs.iter().zip(0..).filter_map(|(epoch, shard)| {
                let epoch = epoch.load(Ordering::Acquire);
                (epoch != 0).then_some((ShardId(shard), Epoch(epoch)))
            });
            let owned = owned.collect();
            if self.version.load(Ordering::Acquire) == version {
                return (version, owned);
            }
        }
    }

    /// How many shards are ours.
    pub fn owned_count(&self) -> usize {
        self.epochs.iter().filter(|epoch| epoch.load(Ordering::Relaxed) != 0).count()
    }

    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    pub(crate) fn set(&self, shard: ShardId, epoch: Option<Epoch>) {
        if let Some(slot) = self.epochs.get(shard.0 as usize) {
            slot.store(epoch.map_or(0, |epoch| epoch.0), Ordering::SeqCst);
            self.version.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// The lease was renewed by a call that began at `began_us` of the steady clock.
    pub(crate) fn renewed(&self, began_us: u64, length_us: u64) {
        let until = began_us.saturating_add(length_us.saturating_sub(MARGIN_US));
        self.valid_until_us.fetch_max(until, Ordering::AcqRel);
    }

    pub(crate) fn set_view(&self, view: View) {
        let changed = *self.view() != view;
        if changed {
            *self.view.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(view);
            self.lock_found().clear();
        }
    }

    /// Where to ask an entity of `shard`.
    pub(crate) fn place(&self, shard: ShardId) -> Place {
        if self.epoch(shard).is_some() {
            return Place::Here;
        }
        let view = self.view();
        let found = self.lock_found().get(&shard).copied();
        let member = found.and_then(|node| view.member(node)).or_else(|| view.owner(shard));
        match member {
            // The assignment is ahead of the rows: nothing to ask here yet.
            Some(member) if member.node == self.node => Place::Nowhere,
            Some(member) => Place::At(member.address.clone()),
            None => Place::Nowhere,
        }
    }

    /// The store says who owns `shard`.
    pub(crate) fn note_owner(&self, shard: ShardId, owner: Option<NodeId>) {
        let mut found = self.lock_found();
        match owner {
            Some(node) => found.insert(shard, node),
            None => found.remove(&shard),
        };
    }

    /// Another node says something of shards that should be this node's.
    ///
    /// # Errors
    /// This node is about to go, and looks after no more shards.
    pub fn hear(&self, said: ShardCall) -> Result<(), Fault> {
        let mut offers = self.offers.lock().unwrap_or_else(PoisonError::into_inner);
        match said {
            ShardCall::Released { shards } => offers.released.extend(shards),
            ShardCall::Coming { .. } if self.is_leaving.load(Ordering::Acquire) => {
                return Err(Fault::unavailable("this node is about to go"));
            }
            ShardCall::Coming { shards } => {
                let coming = shards.into_iter().filter(|(shard, _)| shard.0 < self.shard_count()).collect();
                offers.merge(Offers { coming, ..Offers::default() });
            }
        }
        drop(offers);
        self.nudge.notify_one();
        Ok(())
    }

    /// Looks after nothing new any more.
    pub(crate) fn leave(&self) {
        self.is_leaving.store(true, Ordering::Release);
    }

    pub(crate) fn take_offers(&self) -> Offers {
        std::mem::take(&mut self.offers.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until shards were offered.
    pub async fn nudged(&self) {
        self.nudge.notified().await;
    }

    fn lock_found(&self) -> MutexGuard<'_, HashMap<ShardId, NodeId>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
