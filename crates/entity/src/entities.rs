//! The entities of one kind on a node: who is live, and how to reach it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use actix::{Actor, Addr};
use actix_rt::ArbiterHandle;
use bytes::Bytes;
use cofactor_types::{EntityId, Epoch, ErrorClass, Fault, ShardId, limits};
use cofactor_wire::{self as wire, node::Target};
use futures::future::join_all;
use tokio::sync::oneshot;

use crate::{
    Entity, Env,
    actor::EntityActor,
    envelope::{Answer, Drain, Envelope},
    measure::{self, Load},
    ownership::Place,
    route::{Route, not_owner},
};

/// Set in [`Slot::state`] when the actor takes no more commands.
const CLOSED: usize = 1 << (usize::BITS - 1);

/// How often a command that an actor gave back is given to the next one.
const TRIES_MAX: usize = 8;

/// Where actors run.
#[derive(Clone, Debug, Default)]
pub struct Placement(Arc<[ArbiterHandle]>);

impl Placement {
    /// On these threads, by shard; on the current one if there are none.
    pub fn new(threads: Vec<ArbiterHandle>) -> Self {
        Self(threads.into())
    }

    fn of(&self, shard: u32) -> Option<&ArbiterHandle> {
        let count = self.0.len();
        (count > 0).then(|| &self.0[shard as usize % count])
    }
}

/// The life of one actor, shared with those who send to it: how many commands wait, and whether it takes more.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    state: AtomicUsize,
}

enum Entry {
    Entered,
    Full,
    Closed,
}

impl Slot {
    fn enter(&self) -> Entry {
        let outcome = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| {
            (state & CLOSED == 0 && state < limits::MAILBOX_MAX).then_some(state + 1)
        });
        match outcome {
            Ok(_) => Entry::Entered,
            Err(state) if state & CLOSED != 0 => Entry::Closed,
            Err(_) => Entry::Full,
        }
    }

    pub(crate) fn leave(&self) {
        self.state.fetch_sub(1, Ordering::AcqRel);
    }

    pub(crate) fn close(&self) {
        self.state.fetch_or(CLOSED, Ordering::AcqRel);
    }

    /// Closes the slot unless a command is on its way.
    pub(crate) fn try_retire(&self) -> bool {
        self.state.compare_exchange(0, CLOSED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Commands that wait, or that the actor is at; none once it is closed.
    fn queued(&self) -> usize {
        match self.state.load(Ordering::Relaxed) {
            state if state & CLOSED != 0 => 0,
            state => state,
        }
    }

    fn is_closed(&self) -> bool {
        self.state.load(Ordering::Acquire) & CLOSED != 0
    }
}

struct Live<E: Entity> {
    slot: Arc<Slot>,
    /// The epoch in which it was activated: what it knows of another one is not what stands.
    epoch: Option<Epoch>,
    address: Addr<EntityActor<E>>,
}

/// What became of a command asked on this node.
enum Asked<E: Entity> {
    Answered(Result<E::Reply, Fault>),
    /// The entity is not this node's, or not any more; the command is untouched.
    NotHere(E::Command),
}

/// The entities of one kind: those that live on this node, and the way to all others. Cheap to clone.
pub struct Entities<E: Entity> {
    inner: Arc<Inner<E>>,
}

struct Inner<E: Entity> {
    env: Env,
    config: E::Config,
    placement: Placement,
    live: Mutex<HashMap<EntityId, Live<E>>>,
}

impl<E: Entity> Clone for Entities<E> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<E: Entity> fmt::Debug for Entities<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entities").field("kind", &E::KIND).finish_non_exhaustive()
    }
}

impl<E: Entity> Entities<E> {
    /// No live entity yet.
    pub fn new(env: Env, config: E::Config, placement: Placement) -> Self {
        Self { inner: Arc::new(Inner { env, config, placement, live: Mutex::default() }) }
    }

    /// Asks an entity, wherever it lives, activating it if need be. Where nobody owns it at the moment, or its owner cannot be
    /// reached and nothing can have happened, it is asked again until it answers or the time is over.
    ///
    /// # Errors
    /// The entity's own; [`ErrorClass::Limited`] if too many commands wait for it already; [`ErrorClass::Unknown`] if it died
    /// with the command in hand; [`ErrorClass::Unavailable`] if nobody could be asked.
    pub async fn ask(&self, id: &EntityId, command: E::Command) -> Result<E::Reply, Fault> {
        let env = &self.inner.env;
        let shard = env.shard(id);
        let mut command = match self.ask_here(id, command).await {
            Asked::Answered(reply) => return reply,
            Asked::NotHere(command) => command,
        };
        let mut route = Route::new(env, shard);
        loop {
            match env.ownership().place(shard) {
                Place::Here => match self.ask_here(id, command).await {
                    Asked::Answered(reply) => return reply,
                    Asked::NotHere(returned) => command = returned,
                },
                Place::At(address) => {
                    let frame = wire::encode(&command)?;
                    match route.call(&address, Target::Entity(id.clone()), frame).await {
                        Err(fault) if matches!(fault.class, ErrorClass::NotOwner | ErrorClass::Unavailable) => {}
                        outcome => return wire::answered(&outcome?),
                    }
                }
                Place::Nowhere => {}
            }
            route.again().await?;
        }
    }

    /// Answers a call from another node, about an entity that should live here.
    ///
    /// # Errors
    /// [`ErrorClass::NotOwner`] if it does not; else as [`Self::ask`].
    pub async fn serve(&self, id: &EntityId, frame: &[u8]) -> Result<Bytes, Fault> {
        match self.ask_here(id, wire::asked(frame)?).await {
            Asked::Answered(reply) => wire::encode(&reply?),
            Asked::NotHere(_) => Err(not_owner()),
        }
    }

    async fn ask_here(&self, id: &EntityId, mut command: E::Command) -> Asked<E> {
        let env = &self.inner.env;
        let shard = env.shard(id);
        for _ in 0..TRIES_MAX {
            if env.ownership().epoch(shard).is_none() {
                return Asked::NotHere(command);
            }
            let (slot, address) = self.live(id);
            match slot.enter() {
                Entry::Entered => {}
                Entry::Full => {
                    measure::refused(E::KIND);
                    return Asked::Answered(Err(Fault::limited("too many requests wait for this room or user", 1_000)));
                }
                Entry::Closed => {
                    tokio::task::yield_now().await;
                    continue;
                }
            }
            let (sender, receiver) = oneshot::channel();
            address.do_send(Envelope::new(command, sender, slot));
            match receiver.await {
                Ok(Answer::Reply(reply)) => return Asked::Answered(reply),
                Ok(Answer::Returned(returned)) => command = returned,
                Err(_) => {
                    return Asked::Answered(Err(Fault::unknown("the request was lost on its way; try again")));
                }
            }
        }
        Asked::Answered(Err(Fault::unavailable("the entity keeps going away; try again")))
    }

    /// Gives an entity another entity's message.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub async fn deliver(&self, id: &EntityId, payload: &Bytes) -> Result<(), Fault> {
        self.ask(id, E::delivered(payload)?).await.map(drop)
    }

    /// Activates an entity without asking anything, so that it finishes what it left undone.
    pub fn activate(&self, id: &EntityId) {
        self.live(id);
    }

    /// How many are live.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether none is live.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How much there is to do; the `named` busiest entities are named.
    pub fn load(&self, named: usize) -> Load {
        let all = self.lock();
        let live = all.iter().filter(|(_, live)| !live.slot.is_closed());
        Load::of(live.map(|(id, live)| (id, live.slot.queued())), named)
    }

    /// Lets every actor of these shards finish what is under way, and stops it.
    pub async fn drain(&self, shards: &BTreeSet<ShardId>) {
        // In an order of its own, so that the same seed of a simulation takes the same way.
        let mut addresses = BTreeMap::new();
        let shard_count = self.inner.env.shard_count();
        self.lock().retain(|id, live| {
            let stays = !shards.contains(&id.shard(shard_count));
            if !stays {
                addresses.insert(id.clone(), live.address.clone());
            }
            stays
        });
        let drains = addresses.into_values().map(|address| async move {
            let (sender, receiver) = oneshot::channel();
            address.do_send(Drain(sender));
            // An error says that it has gone already.
            let _ = receiver.await;
        });
        join_all(drains).await;
    }

    fn live(&self, id: &EntityId) -> (Arc<Slot>, Addr<EntityActor<E>>) {
        let epoch = self.inner.env.ownership().epoch(self.inner.env.shard(id));
        let mut all = self.lock();
        let is_current = |live: &&Live<E>| {
            !live.slot.is_closed() && live.address.connected() && (live.epoch == epoch || epoch.is_none())
        };
        if let Some(live) = all.get(id).filter(is_current) {
            return (Arc::clone(&live.slot), live.address.clone());
        }
        // Those who have gone are swept when the table would grow otherwise.
        if all.len() == all.capacity() {
            all.retain(|_, live| !live.slot.is_closed());
        }
        let slot = Arc::new(Slot::default());
        let inner = &self.inner;
        let (env, config) = (inner.env.clone(), inner.config.clone());
        let (actor_id, actor_slot) = (id.clone(), Arc::clone(&slot));
        let make = move || EntityActor::new(env, config, actor_id, actor_slot);
        let address = match inner.placement.of(inner.env.shard(id).0) {
            Some(thread) => EntityActor::start_in_arbiter(thread, move |_| make()),
            None => make().start(),
        };
        all.insert(id.clone(), Live { slot: Arc::clone(&slot), epoch, address: address.clone() });
        (slot, address)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<EntityId, Live<E>>> {
        self.inner.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
