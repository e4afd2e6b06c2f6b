//! Moves shards: slice by slice, many slices side by side, each as soon as there is something to move in it. What is given
//! away is served by nobody until it is taken, so nothing waits for what moves in another slice.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use cofactor_shard::{Role, View};
use cofactor_store::StoreError;
use cofactor_types::{Epoch, ShardId};
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::Mutex,
    time::{Instant, MissedTickBehavior, Sleep},
};

use crate::{
    Env, handover,
    keeper::{KeeperOptions, RETRY, ShardHost},
    ownership::Offers,
    takeover::{self, Given, Leases, SLICE, Taken},
    watch::Watch,
};

/// Slices in which shards move at the same time.
const SLICES_AT_ONCE: usize = 16;

/// Those of them from which this node gives something away. What is not yet given away it goes on serving, and each slice that
/// moves beside another one makes it wait longer.
const GIVES_AT_ONCE: usize = 4;

/// How often within the length of a lease a node looks who is there: a dead one is noticed so much later than it could be.
const LOOKS_A_LEASE: u32 = 12;

/// After so many looks a node asks again for what should be its own and is not, although who is there has not changed and
/// nobody has told it anything: what it was told may have been lost.
const LOOKS_A_ROUND: u32 = 4;

/// How long a node that goes waits for shards that another one said were coming, to pass them on: left to a node that is gone,
/// they would be served by nobody until it is missed.
const COMING_MAX: Duration = Duration::from_secs(2);

/// Moves the shards of a node.
pub(crate) struct Shards {
    env: Env,
    options: Arc<KeeperOptions>,
    host: Arc<dyn ShardHost>,
    watch: Arc<Mutex<Watch>>,
    /// The look that is under way: whatever moves goes on moving beside it.
    looking: Option<BoxFuture<'static, Result<(), StoreError>>>,
    /// What was heard before it began, of shards that are not this node's by the members as seen before.
    unseen: Offers,
    /// The same, heard since it began.
    unseen_since: Offers,
    /// Shards whose rows say that they are this node's, or may come to say so, although it does not serve them: as long as
    /// this node lives, nobody else can take them.
    doubtful: BTreeMap<ShardId, Epoch>,
    /// Shards that this node has given away by a write that may still be on its way: it must not serve them in that epoch.
    unsettled: BTreeMap<ShardId, Epoch>,
    /// Slices to look at, by the order in which this node goes through them.
    wanted: BTreeSet<(u64, u64)>,
    /// Slices that are being looked at.
    busy: FuturesUnordered<BoxFuture<'static, Outcome>>,
    busy_slices: BTreeSet<u64>,
    /// In how many of them something is given away.
    giving: usize,
    /// The members as last seen.
    view: Arc<View>,
    /// What failed, or moved under our hands, is tried again after a pause, and not a look later.
    again: BTreeSet<u64>,
    pause: Option<Pin<Box<Sleep>>>,
    /// The leases of others, as read since the last look.
    leases: Arc<Leases>,
    taken: usize,
    released: usize,
}

/// The end of a pause, if there is one.
async fn end_of(pause: &mut Option<Pin<Box<Sleep>>>) {
    match pause {
        Some(pause) => pause.await,
        None => std::future::pending().await,
    }
}

/// The end of a look, if there is one.
async fn end_of_look(looking: &mut Option<BoxFuture<'static, Result<(), StoreError>>>) -> Result<(), StoreError> {
    match looking {
        Some(look) => look.await,
        None => std::future::pending().await,
    }
}

/// What became of the shards of a slice.
struct Outcome {
    slice: u64,
    given: Vec<(ShardId, Epoch, Given)>,
    taken: Vec<(ShardId, Taken)>,
}

impl std::fmt::Debug for Shards {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shards").field("doubtful", &self.doubtful).finish_non_exhaustive()
    }
}

impl Shards {
    pub(crate) fn new(env: Env, options: Arc<KeeperOptions>, host: Arc<dyn ShardHost>, length_us: u64) -> Self {
        Self {
            watch: Arc::new(Mutex::new(Watch::new(env.clone(), length_us))),
            looking: None,
            unseen: Offers::default(),
            unseen_since: Offers::default(),
            env,
            options,
            host,
            doubtful: BTreeMap::new(),
            unsettled: BTreeMap::new(),
            wanted: BTreeSet::new(),
            busy: FuturesUnordered::new(),
            busy_slices: BTreeSet::new(),
            giving: 0,
            view: Arc::default(),
            again: BTreeSet::new(),
            pause: None,
            leases: Arc::default(),
            taken: 0,
            released: 0,
        }
    }

    /// Looks and moves for ever.
    pub(crate) async fn run(&mut self) {
        let mut interval = tokio::time::interval(self.options.lease / LOOKS_A_LEASE);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ownership = Arc::clone(self.env.ownership());
        let mut looks = 0_u32;
        loop {
            self.start(None);
            tokio::select! {
                biased;
                Some(outcome) = self.busy.next() => self.note(outcome),
                () = end_of(&mut self.pause) => {
                    self.pause = None;
                    let slices = std::mem::take(&mut self.again);
                    self.want(slices);
                }
                looked = end_of_look(&mut self.looking) => self.looked(looked),
                _ = interval.tick() => {
                    self.say();
                    if self.looking.is_none() {
                        self.begin_look();
                    }
                    looks = (looks + 1) % LOOKS_A_ROUND;
                    self.want(if looks == 0 { self.all() } else { self.anothers() });
                }
                () = ownership.nudged() => self.hear(ownership.take_offers()),
            }
        }
    }

    /// What is offered to somebody who should not have it was said by who sees other members: who is there is looked at first.
    fn hear(&mut self, offers: Offers) {
        let is_news = offers.released.iter().chain(offers.coming.keys()).any(|shard| !self.is_mine(*shard));
        match (is_news, &self.looking) {
            (false, _) => self.accept(offers),
            (true, Some(_)) => self.unseen_since.merge(offers),
            (true, None) => {
                self.unseen = offers;
                self.begin_look();
            }
        }
    }

    /// Looks after shards that may come to be this node's, and after what is to be had.
    fn accept(&mut self, Offers { released, coming }: Offers) {
        for (shard, epoch) in coming {
            // What was said may have been on its way for long.
            let expected = self.doubtful.entry(shard).or_insert(epoch);
            *expected = epoch.max(*expected);
        }
        self.want(released.into_iter().map(takeover::slice).collect());
    }

    fn begin_look(&mut self) {
        self.leases = Arc::default();
        let watch = Arc::clone(&self.watch);
        self.looking = Some(Box::pin(async move { watch.lock().await.look().await }));
    }

    fn looked(&mut self, looked: Result<(), StoreError>) {
        self.looking = None;
        if let Err(error) = looked {
            tracing::warn!(%error, "the members cannot be read; trying again");
        }
        let view = self.env.ownership().view();
        if !Arc::ptr_eq(&view, &self.view) {
            // Who is there and has what should be this node's gives it away, and says so.
            let is_gone = self.view.members().any(|member| view.member(member.node).is_none());
            self.view = view;
            self.want(if is_gone { self.all() } else { self.anothers() });
        }
        let (unseen, unseen_since) = (std::mem::take(&mut self.unseen), std::mem::take(&mut self.unseen_since));
        self.accept(unseen);
        self.hear(unseen_since);
    }

    /// Looks who is there, while what moves goes on moving.
    pub(crate) async fn look(&mut self) -> Result<(), StoreError> {
        // Anew: one that is under way may have seen what is no longer so.
        self.begin_look();
        loop {
            tokio::select! {
                biased;
                looked = end_of_look(&mut self.looking) => {
                    self.looking = None;
                    return looked;
                }
                Some(outcome) = self.busy.next() => self.note(outcome),
            }
        }
    }

    /// Moves once all shards of which the assignment says something else than this node does. A node that is `leaving` gives
    /// back everything.
    pub(crate) async fn settle(&mut self, leaving: bool) {
        for heard in [
            std::mem::take(&mut self.unseen),
            std::mem::take(&mut self.unseen_since),
            self.env.ownership().take_offers(),
        ] {
            self.accept(heard);
        }
        let end = leaving.then(|| tokio::time::sleep(handover::LEAVE_MAX).deadline());
        let coming = tokio::time::sleep(COMING_MAX);
        tokio::pin!(coming);
        self.want(self.all());
        loop {
            self.start(end);
            while let Some(outcome) = self.busy.next().await {
                self.note(outcome);
                self.start(end);
            }
            // What this node said yes to comes soon, or never.
            let is_coming = !self.doubtful.is_empty() || !self.unsettled.is_empty();
            if !leaving || !is_coming || coming.is_elapsed() {
                return self.say();
            }
            tokio::select! {
                () = &mut coming => {}
                () = tokio::time::sleep(RETRY) => {}
            }
            self.want(self.anothers());
        }
    }

    fn all(&self) -> BTreeSet<u64> {
        (0..self.env.ownership().shard_count()).map(|shard| takeover::slice(ShardId(shard))).collect()
    }

    /// Slices of shards that should be another's and are, or may be, this node's.
    fn anothers(&self) -> BTreeSet<u64> {
        let owned = self.env.ownership().owned().1.into_iter().map(|(shard, _)| shard);
        let doubtful = self.doubtful.keys().copied();
        let anothers = owned.chain(doubtful).filter(|shard| !self.is_mine(*shard));
        anothers.chain(self.unsettled.keys().copied()).map(takeover::slice).collect()
    }

    fn is_mine(&self, shard: ShardId) -> bool {
        let ownership = self.env.ownership();
        ownership.view().owner(shard).is_some_and(|member| member.node == ownership.node())
    }

    /// Nodes go through the slices in different orders, so that they seldom meet in one.
    fn want(&mut self, slices: BTreeSet<u64>) {
        let turn = self.env.ownership().node().0;
        self.wanted.extend(slices.into_iter().map(|slice| ((slice ^ turn) % 64, slice)));
    }

    /// Begins with as many slices as may move at once. `end`: until when a node that goes waits for its actors.
    fn start(&mut self, end: Option<Instant>) {
        let ownership = Arc::clone(self.env.ownership());
        let view = ownership.view();
        let mut later = BTreeSet::new();
        while self.busy.len() < SLICES_AT_ONCE
            && let Some((order, slice)) = self.wanted.pop_first()
        {
            if self.busy_slices.contains(&slice) {
                later.insert((order, slice));
                continue;
            }
            let (take, give) = self.plan(slice, &view, end.is_some());
            if take.is_empty() && give.is_empty() {
                continue;
            }
            if !give.is_empty() && self.giving == GIVES_AT_ONCE {
                later.insert((order, slice));
                continue;
            }
            self.giving += usize::from(!give.is_empty());
            self.busy_slices.insert(slice);
            let (env, host, leases) = (self.env.clone(), Arc::clone(&self.host), Arc::clone(&self.leases));
            let view = Arc::clone(&view);
            self.busy.push(Box::pin(async move {
                let given = handover::give(&env, &*host, give, &view, end).await;
                let taken = handover::take(&env, take, &leases).await;
                Outcome { slice, given, taken }
            }));
        }
        self.wanted.extend(later);
    }

    /// What to take and what to give away in a slice.
    fn plan(&self, slice: u64, view: &View, leaving: bool) -> (Vec<ShardId>, Vec<(ShardId, Epoch)>) {
        let ownership = self.env.ownership();
        let (mut take, mut give) = (Vec::new(), Vec::new());
        let is_worker = self.options.roles.contains(&Role::Worker);
        let first = u32::try_from(slice).unwrap_or(u32::MAX).saturating_mul(SLICE);
        for shard in (first..first.saturating_add(SLICE).min(ownership.shard_count())).map(ShardId) {
            let owner = view.owner(shard);
            let mine = owner.is_some_and(|member| member.node == ownership.node());
            let owned = ownership.held(shard);
            if let Some(epoch) = self.unsettled.get(&shard) {
                give.push((shard, *epoch));
                continue;
            }
            match (mine, owned.or(self.doubtful.get(&shard).copied())) {
                (true, _) if owned.is_none() && is_worker => take.push(shard),
                // Without anybody to take it, it is handed over only by a node that goes.
                (false, Some(epoch)) if leaving || owner.is_some() => give.push((shard, epoch)),
                _ => {}
            }
        }
        (take, give)
    }

    /// Remembers what became of a slice.
    fn note(&mut self, outcome: Outcome) {
        self.busy_slices.remove(&outcome.slice);
        self.giving -= usize::from(!outcome.given.is_empty());
        let mut again = false;
        for (shard, epoch, given) in outcome.given {
            self.released += usize::from(given == Given::Away);
            match given {
                Given::Away | Given::Before => {
                    self.doubtful.remove(&shard);
                    self.unsettled.remove(&shard);
                }
                Given::Unsettled => drop(self.unsettled.insert(shard, epoch)),
                Given::Doubtful if self.unsettled.contains_key(&shard) => {}
                Given::Doubtful => drop(self.doubtful.insert(shard, epoch)),
            }
        }
        for (shard, taken) in outcome.taken {
            match taken {
                Taken::Ours(_) => {
                    self.taken += 1;
                    self.doubtful.remove(&shard);
                }
                // A write of an earlier attempt may still arrive.
                Taken::Held => {}
                Taken::Missed | Taken::Failed(_) => again = true,
                Taken::Doubtful(epoch, _) => {
                    again = true;
                    self.doubtful.insert(shard, epoch);
                }
            }
        }
        if again {
            self.again.insert(outcome.slice);
            self.pause.get_or_insert_with(|| Box::pin(tokio::time::sleep(RETRY)));
        }
    }

    /// Says what has moved since it was last said, when nothing moves any more.
    fn say(&mut self) {
        if self.busy.is_empty() && self.wanted.is_empty() && self.taken + self.released > 0 {
            let (taken, released) = (std::mem::take(&mut self.taken), std::mem::take(&mut self.released));
            let (owned, doubtful) = (self.env.ownership().owned_count(), self.doubtful.len() + self.unsettled.len());
            tracing::info!(taken, released, owned, doubtful, "shards changed hands");
        }
    }
}

#[cfg(test)]
mod tests;
