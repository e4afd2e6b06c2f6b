//! Looks who is there, and moves shards: slice by slice, many slices side by side, each as soon as there is something to move
//! in it. What is given back is served by nobody until it is taken, so nothing waits for what moves in another slice.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use cofactor_shard::{Member, Role, View};
use cofactor_store::{Durability, Key, Scan, StoreError, key, record, tables};
use cofactor_types::{Epoch, NodeId, ShardId};
use cofactor_wire::node::{Call, ShardCall, Target};
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::{MissedTickBehavior, Sleep};

use crate::{
    Env,
    keeper::{BEATS_A_LEASE, CLUSTER, KeeperOptions, MemberRow, RETRY, ShardHost, member},
    lease::Lease,
    takeover::{self, Given, Leases, SLICE, Taken},
};

/// Slices in which shards move at the same time.
const SLICES_AT_ONCE: usize = 16;

/// How long the actors of a slice may take to finish before it is handed over all the same.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// How long another node is waited for when it is told of released shards.
const TELL_MAX: Duration = Duration::from_secs(1);

/// How often within the length of a lease a node looks who is there: a dead one is noticed so much later than it could be.
const LOOKS_A_LEASE: u32 = 12;

/// The longest pause, in microseconds, after which another node tries again to reach a store that was away.
const RECONNECT_MAX_US: u64 = 12_000_000;

/// When another node was last seen to move.
#[derive(Debug)]
struct Seen {
    beat: u64,
    since_us: u64,
}

/// Looks who is there.
#[derive(Debug)]
struct Watch {
    env: Env,
    length_us: u64,
    seen: HashMap<NodeId, Seen>,
    /// Since when the store has not answered.
    away_since_us: Option<u64>,
    /// The silence of who was not heard since the store was away does not count before this.
    patient_until_us: u64,
}

impl Watch {
    fn new(env: Env, length_us: u64) -> Self {
        Self { env, length_us, seen: HashMap::new(), away_since_us: None, patient_until_us: 0 }
    }

    /// Reads the members, and ends the leases of those who have not moved for a whole length.
    async fn look(&mut self) -> Result<(), StoreError> {
        // Before the rows are read: if this process stands still while it reads them, that is nobody else's silence.
        let now_us = self.env.clock().steady_us();
        let rows = self.env.store().scan(Scan::new(&tables::MEMBERS, key![CLUSTER], Key::EMPTY, usize::MAX)).await;
        let took_us = self.env.clock().steady_us().saturating_sub(now_us);
        if rows.is_err() || took_us > self.length_us / u64::from(BEATS_A_LEASE) {
            // While the store does not answer nobody can say that it lives: whoever is silent then is given a whole lease.
            self.seen.clear();
        }
        match (&rows, self.away_since_us) {
            (Err(_), None) => self.away_since_us = Some(now_us),
            (Err(_), Some(_)) | (Ok(_), None) => {}
            (Ok(_), Some(since_us)) => {
                // Others may find it later than this node: who tries again and again pauses as long as it has tried already.
                self.away_since_us = None;
                self.patient_until_us = now_us + now_us.saturating_sub(since_us).min(RECONNECT_MAX_US);
            }
        }
        let rows = rows?;
        let me = self.env.ownership().node();
        let mut members = Vec::with_capacity(rows.len());
        for row in rows {
            let node = NodeId(row.clustering.number(0));
            let said: MemberRow = record::decode(&row.value)?;
            if node != me && self.is_silent(node, said.beat, now_us) && self.bury(node).await? {
                continue;
            }
            members.push(Member {
                node,
                name: said.name,
                address: said.address,
                roles: said.roles.iter().filter_map(|word| Role::parse(word)).collect(),
                draining: said.draining,
            });
        }
        self.seen.retain(|node, _| members.iter().any(|member| member.node == *node));
        self.env.ownership().set_view(View::new(members));
        Ok(())
    }

    /// Whether a node's beat has stood still for the length of a lease. On a store that only this process can have open,
    /// every other node is a process that has ended.
    fn is_silent(&mut self, node: NodeId, beat: u64, now_us: u64) -> bool {
        if self.env.store().spans_partitions() {
            return true;
        }
        let patient_us = now_us.max(self.patient_until_us);
        let seen = self.seen.entry(node).or_insert(Seen { beat, since_us: patient_us });
        if seen.beat != beat {
            *seen = Seen { beat, since_us: now_us };
        }
        now_us.saturating_sub(seen.since_us) > self.length_us
    }

    /// Ends the lease of a silent node; says whether it is over.
    async fn bury(&mut self, node: NodeId) -> Result<bool, StoreError> {
        let store = self.env.store();
        let over = match Lease::read(&**store, node).await? {
            None => true,
            Some(seen) => !seen.row.alive || Lease::bury(&**store, node, &seen).await?.is_some(),
        };
        if over {
            metrics::counter!("cofactor_members_buried_total").increment(1);
            tracing::warn!(%node, "a node is gone; its shards pass on");
            store.write(vec![member(node, None)], Durability::Deferred).await?;
        } else {
            self.seen.remove(&node);
        }
        Ok(over)
    }
}

/// Moves the shards of a node.
pub(crate) struct Shards {
    env: Env,
    options: Arc<KeeperOptions>,
    host: Arc<dyn ShardHost>,
    watch: Watch,
    /// Shards whose rows say that they are this node's, or may come to say so, although it does not serve them: as long as
    /// this node lives, nobody else can take them.
    doubtful: BTreeMap<ShardId, Epoch>,
    /// Slices to look at, by the order in which this node goes through them.
    wanted: BTreeSet<(u64, u64)>,
    /// Slices that are being looked at.
    busy: FuturesUnordered<BoxFuture<'static, Outcome>>,
    busy_slices: BTreeSet<u64>,
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

/// What became of the shards of a slice.
struct Outcome {
    slice: u64,
    released: Vec<(ShardId, Epoch, Given)>,
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
            watch: Watch::new(env.clone(), length_us),
            env,
            options,
            host,
            doubtful: BTreeMap::new(),
            wanted: BTreeSet::new(),
            busy: FuturesUnordered::new(),
            busy_slices: BTreeSet::new(),
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
        loop {
            self.start(false);
            tokio::select! {
                biased;
                Some(outcome) = self.busy.next() => self.note(outcome),
                () = end_of(&mut self.pause) => {
                    self.pause = None;
                    let slices = std::mem::take(&mut self.again);
                    self.want(slices);
                }
                _ = interval.tick() => {
                    self.look_again().await;
                    self.want(self.all());
                }
                () = ownership.nudged() => {
                    let offered = ownership.take_offers();
                    if offered.iter().any(|shard| !self.is_mine(*shard)) {
                        // That the shards are ours is news to this node.
                        self.look_again().await;
                    }
                    self.want(offered.into_iter().map(takeover::slice).collect());
                }
            }
        }
    }

    async fn look_again(&mut self) {
        if let Err(error) = self.look().await {
            tracing::warn!(%error, "the members cannot be read; trying again");
        }
    }

    /// Looks who is there, while what moves goes on moving.
    pub(crate) async fn look(&mut self) -> Result<(), StoreError> {
        self.leases = Arc::default();
        let mut outcomes = Vec::new();
        let looked = {
            let look = self.watch.look();
            tokio::pin!(look);
            loop {
                tokio::select! {
                    biased;
                    looked = &mut look => break looked,
                    Some(outcome) = self.busy.next() => outcomes.push(outcome),
                }
            }
        };
        outcomes.into_iter().for_each(|outcome| self.note(outcome));
        looked
    }

    /// Moves once all shards of which the assignment says something else than this node does. A node that is `leaving` gives
    /// back everything.
    pub(crate) async fn settle(&mut self, leaving: bool) {
        self.want(self.all());
        self.start(leaving);
        while let Some(outcome) = self.busy.next().await {
            self.note(outcome);
            self.start(leaving);
        }
    }

    fn all(&self) -> BTreeSet<u64> {
        (0..self.env.ownership().shard_count()).map(|shard| takeover::slice(ShardId(shard))).collect()
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

    /// Begins with as many slices as may move at once.
    fn start(&mut self, leaving: bool) {
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
            let (take, release) = self.plan(slice, &view, leaving);
            if take.is_empty() && release.is_empty() {
                continue;
            }
            self.busy_slices.insert(slice);
            let (env, host, leases) = (self.env.clone(), Arc::clone(&self.host), Arc::clone(&self.leases));
            let view = Arc::clone(&view);
            self.busy.push(Box::pin(async move {
                let released = release_slice(&env, &*host, release, &view).await;
                let taken = take_slice(&env, take, &leases).await;
                Outcome { slice, released, taken }
            }));
        }
        self.wanted.extend(later);
    }

    /// What to take and what to give back in a slice.
    fn plan(&self, slice: u64, view: &View, leaving: bool) -> (Vec<ShardId>, Vec<(ShardId, Epoch)>) {
        let ownership = self.env.ownership();
        let (mut take, mut release) = (Vec::new(), Vec::new());
        let is_worker = self.options.roles.contains(&Role::Worker);
        let first = u32::try_from(slice).unwrap_or(u32::MAX).saturating_mul(SLICE);
        for shard in (first..first.saturating_add(SLICE).min(ownership.shard_count())).map(ShardId) {
            let owner = view.owner(shard);
            let mine = owner.is_some_and(|member| member.node == ownership.node());
            let owned = ownership.held(shard);
            match (mine, owned.or(self.doubtful.get(&shard).copied())) {
                (true, _) if owned.is_none() && is_worker => take.push(shard),
                // Without anybody to take it, it is handed over only by a node that goes.
                (false, Some(epoch)) if leaving || owner.is_some() => release.push((shard, epoch)),
                _ => {}
            }
        }
        (take, release)
    }

    /// Remembers what became of a slice.
    fn note(&mut self, outcome: Outcome) {
        self.busy_slices.remove(&outcome.slice);
        let mut again = false;
        for (shard, epoch, given) in outcome.released {
            self.released += usize::from(given == Given::Back);
            match given {
                Given::Back | Given::Before => drop(self.doubtful.remove(&shard)),
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
        if self.busy.is_empty() && self.wanted.is_empty() && self.taken + self.released > 0 {
            let (taken, released) = (std::mem::take(&mut self.taken), std::mem::take(&mut self.released));
            let (owned, doubtful) = (self.env.ownership().owned_count(), self.doubtful.len());
            tracing::info!(taken, released, owned, doubtful, "shards changed hands");
        }
    }
}

/// Lets the actors of these shards, all of one slice, finish, gives the shards back, and tells who shall have them.
async fn release_slice(
    env: &Env,
    host: &dyn ShardHost,
    slice: Vec<(ShardId, Epoch)>,
    view: &View,
) -> Vec<(ShardId, Epoch, Given)> {
    if slice.is_empty() {
        return Vec::new();
    }
    let shards: BTreeSet<ShardId> = slice.iter().map(|(shard, _)| *shard).collect();
    shards.iter().for_each(|shard| env.ownership().set(*shard, None));
    if tokio::time::timeout(DRAIN_MAX, host.drain(&shards)).await.is_err() {
        tracing::warn!(?shards, "actors did not finish in time; their shards are handed over all the same");
    }
    let released = takeover::release(env, slice).await;
    let mut by_owner: BTreeMap<&str, Vec<ShardId>> = BTreeMap::new();
    let back = released.iter().filter(|(.., given)| *given == Given::Back).map(|(shard, ..)| *shard);
    let mut count = 0;
    for shard in back {
        count += 1;
        env.ownership().note_owner(shard, None);
        if let Some(owner) = view.owner(shard) {
            by_owner.entry(&owner.address).or_default().push(shard);
        }
    }
    for (address, shards) in by_owner {
        tell(env, address.to_owned(), shards);
    }
    metrics::counter!("cofactor_shards_released_total").increment(count);
    released
}

/// Tells the next owner, which would notice by itself a look later.
fn tell(env: &Env, address: String, shards: Vec<ShardId>) {
    let Some(transport) = env.transport().cloned() else { return };
    let Ok(frame) = cofactor_wire::encode(&ShardCall::Released { shards }) else { return };
    let call = Call { target: Target::Shards, frame, timeout: TELL_MAX, trace: None };
    actix_rt::spawn(async move {
        if let Err(fault) = transport.call(&address, call).await {
            tracing::debug!(%address, error = %fault, "the next owner was not told");
        }
    });
}

/// Takes those of the shards, all of one slice, that can be had.
async fn take_slice(env: &Env, slice: Vec<ShardId>, leases: &Leases) -> Vec<(ShardId, Taken)> {
    let taken = takeover::take(env, slice, leases).await;
    for (shard, taken) in &taken {
        match taken {
            Taken::Ours(unfinished) => {
                metrics::counter!("cofactor_shards_taken_total").increment(1);
                unfinished.iter().for_each(|entity| env.wake(entity));
            }
            Taken::Held | Taken::Missed => {}
            Taken::Failed(error) | Taken::Doubtful(_, error) => {
                tracing::warn!(%shard, %error, "a shard could not be taken; trying again");
            }
        }
    }
    taken
}
