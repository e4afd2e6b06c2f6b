//! Moves shards: slice by slice, many slices side by side, each as soon as there is something to move in it. What is given
//! away is served by nobody until it is taken, so nothing waits for what moves in another slice.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::Arc,
};

use cofactor_shard::{Role, View};
use cofactor_store::StoreError;
use cofactor_types::{Epoch, ShardId};
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::{MissedTickBehavior, Sleep};

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

/// Moves the shards of a node.
pub(crate) struct Shards {
    env: Env,
    options: Arc<KeeperOptions>,
    host: Arc<dyn ShardHost>,
    watch: Watch,
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
            watch: Watch::new(env.clone(), length_us),
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
                    looks = (looks + 1) % LOOKS_A_ROUND;
                    self.want(if looks == 0 { self.all() } else { self.anothers() });
                }
                () = ownership.nudged() => {
                    let Offers { released, coming } = ownership.take_offers();
                    let is_news = released.iter().chain(coming.keys()).any(|shard| !self.is_mine(*shard));
                    self.expect(coming);
                    if is_news {
                        self.look_again().await;
                    }
                    self.want(released.into_iter().map(takeover::slice).collect());
                }
            }
        }
    }

    /// Looks after shards that may come to be this node's. What was said may have been on its way for long.
    fn expect(&mut self, coming: BTreeMap<ShardId, Epoch>) {
        for (shard, epoch) in coming {
            let expected = self.doubtful.entry(shard).or_insert(epoch);
            *expected = epoch.max(*expected);
        }
    }

    async fn look_again(&mut self) {
        if let Err(error) = self.look().await {
            tracing::warn!(%error, "the members cannot be read; trying again");
        }
        let view = self.env.ownership().view();
        if !Arc::ptr_eq(&view, &self.view) {
            // Who is there and has what should be this node's gives it away, and says so.
            let is_gone = self.view.members().any(|member| view.member(member.node).is_none());
            self.view = view;
            self.want(if is_gone { self.all() } else { self.anothers() });
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
            let (take, give) = self.plan(slice, &view, leaving);
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
                let given = handover::give(&env, &*host, give, &view).await;
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
        if self.busy.is_empty() && self.wanted.is_empty() && self.taken + self.released > 0 {
            let (taken, released) = (std::mem::take(&mut self.taken), std::mem::take(&mut self.released));
            let (owned, doubtful) = (self.env.ownership().owned_count(), self.doubtful.len() + self.unsettled.len());
            tracing::info!(taken, released, owned, doubtful, "shards changed hands");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashMap,
        sync::{Mutex, Weak},
        time::Duration,
    };

    use async_trait::async_trait;
    use bytes::Bytes;
    use cofactor_bus::local::LocalBus;
    use cofactor_store::{
        Durability,
        model::{Faults, ModelStore},
        record, tables,
    };
    use cofactor_types::{Fault, NodeId, Position, SystemClock, SystemEntropy};
    use cofactor_wire::node::{Call, ShardCall, Transport};

    use super::*;
    use crate::{
        EnvParts, Lease, Ownership, Planted, Positions,
        keeper::{MemberRow, member},
    };

    const SHARDS: u32 = 64;
    const LEASE: Duration = Duration::from_secs(6);

    /// Nobody lives in these shards.
    #[derive(Debug)]
    struct Empty;

    #[async_trait]
    impl ShardHost for Empty {
        async fn drain(&self, _: &BTreeSet<ShardId>) {}
    }

    /// What nodes say to one another arrives, unless the test says otherwise.
    #[derive(Debug, Default)]
    struct Ways {
        listening: Mutex<HashMap<String, Weak<Ownership>>>,
        /// Nobody understands that shards are coming.
        is_old: bool,
        /// Nobody hears that shards were released.
        is_deaf: bool,
    }

    #[async_trait]
    impl Transport for Ways {
        async fn call(&self, address: &str, call: Call) -> Result<Bytes, Fault> {
            let said = cofactor_wire::asked(&call.frame)?;
            let lost = match &said {
                ShardCall::Coming { .. } => self.is_old,
                ShardCall::Released { .. } => self.is_deaf,
            };
            let listening = self.listening.lock().unwrap().get(address).and_then(Weak::upgrade);
            let node = listening.filter(|_| !lost).ok_or_else(|| Fault::unavailable("nobody listens"))?;
            node.hear(said).map(|()| Bytes::new())
        }
    }

    struct Node {
        shards: Shards,
        env: Env,
        store: ModelStore,
    }

    impl Node {
        async fn new(number: u64, store: &ModelStore, ways: &Arc<Ways>) -> Self {
            let clock = Arc::new(SystemClock);
            let node = NodeId(number);
            let shared: Arc<dyn cofactor_store::Store> = Arc::new(store.clone());
            Lease::take(Arc::clone(&shared), &*clock, node, LEASE).await.unwrap();
            let ownership = Ownership::new(node, SHARDS, clock.clone());
            ownership.renewed(0, u64::MAX);
            ways.listening.lock().unwrap().insert(number.to_string(), Arc::downgrade(&ownership));
            let env = Env::new(EnvParts {
                store: shared,
                bus: Arc::new(LocalBus::default()),
                positions: Positions::new(clock.clone(), Position(1), Position::MAX),
                clock,
                entropy: Arc::new(SystemEntropy),
                ownership,
                transport: Some(Arc::clone(ways) as Arc<dyn Transport>),
                idle: Duration::from_secs(60),
                planted: Planted::Nothing,
            });
            let options = KeeperOptions {
                name: number.to_string(),
                address: number.to_string(),
                roles: vec![Role::Worker],
                lease: LEASE,
            };
            let shards = Shards::new(env.clone(), Arc::new(options), Arc::new(Empty), 6_000_000);
            let node = Self { shards, env, store: store.clone() };
            node.appears(false).await;
            node
        }

        async fn appears(&self, draining: bool) {
            let name = self.shards.options.name.clone();
            let row = MemberRow { address: name.clone(), name, roles: vec!["worker".to_owned()], draining, beat: 1 };
            let said = member(self.env.ownership().node(), Some(record::encode(&row).unwrap()));
            self.env.store().write(vec![said], Durability::Deferred).await.unwrap();
        }

        async fn settle(&mut self, leaving: bool) {
            self.shards.look().await.unwrap();
            self.shards.settle(leaving).await;
        }

        async fn leaves(&mut self) {
            self.appears(true).await;
            self.settle(true).await;
        }

        fn owned(&self) -> usize {
            self.env.ownership().owned_count()
        }

        /// How many shards are whose, and in which epoch, by the rows.
        fn rows(&self) -> BTreeMap<(Option<NodeId>, Epoch), usize> {
            let mut counts = BTreeMap::new();
            for (.., value) in self.store.rows(&tables::SHARDS) {
                let row: takeover::ShardRow = record::decode(&value).unwrap();
                *counts.entry((row.node, row.epoch)).or_default() += 1;
            }
            counts
        }
    }

    /// Lets nodes run for a while.
    async fn run<const N: usize>(nodes: [&mut Node; N], time: Duration) {
        let all = futures::future::join_all(nodes.map(|node| node.shards.run()));
        let _ = tokio::time::timeout(time, all).await;
    }

    fn in_paused_time(test: impl Future<Output = ()>) {
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        actix_rt::System::with_tokio_rt(runtime).block_on(test);
    }

    const ALL: usize = SHARDS as usize;
    const A_WHILE: Duration = Duration::from_secs(20);

    /// Two nodes of which the first has everything.
    async fn two(ways: Ways) -> (Node, Node, Arc<Ways>) {
        let (store, ways) = (ModelStore::new(1, false), Arc::new(ways));
        let mut first = Node::new(1, &store, &ways).await;
        first.settle(false).await;
        assert_eq!(first.owned(), ALL);
        let second = Node::new(2, &store, &ways).await;
        (first, second, ways)
    }

    #[test]
    fn who_goes_makes_its_shards_the_next_ones_by_one_write() {
        in_paused_time(async {
            let (mut first, mut second, _ways) = two(Ways::default()).await;
            first.leaves().await;
            let given = BTreeMap::from([((Some(NodeId(2)), Epoch(2)), ALL)]);
            assert_eq!((first.owned(), first.rows()), (0, given.clone()));
            run([&mut second], Duration::from_millis(10)).await;
            assert_eq!((second.owned(), second.rows()), (ALL, given));
        });
    }

    #[test]
    fn what_nothing_happened_in_is_taken_without_a_look_unless_its_owner_died() {
        in_paused_time(async {
            let (mut first, mut second, ways) = two(Ways::default()).await;
            let looks = |node: &Node| (node.store.reads(&tables::OUTBOX), node.store.reads(&tables::OPEN_LOGS));
            assert_eq!(looks(&first), (0, 0), "nobody had these shards before");
            first.env.ownership().touch(ShardId(5)).unwrap();
            first.leaves().await;
            run([&mut second], Duration::from_millis(10)).await;
            assert_eq!((second.owned(), looks(&second)), (ALL, (1, 1)));
            // Nobody knows what a dead node did.
            let mut third = Node::new(3, &first.store, &ways).await;
            let seen = Lease::read(&**third.env.store(), NodeId(2)).await.unwrap().unwrap();
            Lease::bury(&**third.env.store(), NodeId(2), &seen).await.unwrap().unwrap();
            second.appears(true).await;
            third.settle(false).await;
            let all = ALL as u64;
            assert_eq!((third.owned(), looks(&third)), (ALL, (1 + all, 1 + all)));
        });
    }

    #[test]
    fn who_does_not_understand_or_goes_itself_takes_nothing_by_anothers_write() {
        in_paused_time(async {
            for is_old in [true, false] {
                let (mut first, mut second, _ways) = two(Ways { is_old, ..Ways::default() }).await;
                if !is_old {
                    second.env.ownership().leave();
                }
                first.leaves().await;
                assert_eq!(first.rows(), BTreeMap::from([((None, Epoch(1)), ALL)]));
                run([&mut second], A_WHILE).await;
                assert_eq!(second.owned(), ALL);
            }
        });
    }

    #[test]
    fn who_was_given_shards_that_are_anothers_passes_them_on() {
        in_paused_time(async {
            for is_deaf in [true, false] {
                let (mut first, mut second, ways) = two(Ways { is_deaf, ..Ways::default() }).await;
                first.leaves().await;
                // The second one has not heard of it when the third one comes.
                let mut third = Node::new(3, &first.store, &ways).await;
                run([&mut second, &mut third], A_WHILE).await;
                assert!(third.owned() > 0);
                assert_eq!(second.owned() + third.owned(), ALL);
            }
        });
    }

    #[test]
    fn who_said_yes_to_what_never_came_takes_it_when_the_one_that_asked_is_gone() {
        in_paused_time(async {
            let (mut first, mut second, _ways) = two(Ways::default()).await;
            first.store.set_faults(Faults { unknown_lost_permille: 1_000, ..Faults::default() });
            first.leaves().await;
            first.store.set_faults(Faults::default());
            assert_eq!(first.rows(), BTreeMap::from([((Some(NodeId(1)), Epoch(1)), ALL)]));
            run([&mut second], A_WHILE).await;
            assert_eq!(second.owned(), 0, "the first one lives");
            let seen = Lease::read(&**first.env.store(), NodeId(1)).await.unwrap().unwrap();
            Lease::bury(&**first.env.store(), NodeId(1), &seen).await.unwrap().unwrap();
            run([&mut second], A_WHILE).await;
            assert_eq!(second.owned(), ALL);
        });
    }

    #[test]
    fn what_may_still_be_given_away_by_a_late_write_is_not_taken_back_in_the_same_epoch() {
        in_paused_time(async {
            let (mut first, second, _ways) = two(Ways::default()).await;
            let late = Faults { unknown_late_permille: 1_000, late_ms_max: 60_000, ..Faults::default() };
            first.store.set_faults(late);
            first.settle(false).await;
            let kept = first.owned();
            assert!(kept > 0 && kept < ALL, "{kept}");
            first.store.set_faults(Faults::default());
            // It is the first one's again before the write arrives.
            second.appears(true).await;
            run([&mut first], 10 * A_WHILE).await;
            assert_eq!(first.owned(), ALL);
            let owned: BTreeMap<_, _> = first.env.ownership().owned().1.into_iter().collect();
            for (_, clustering, value) in first.store.rows(&tables::SHARDS) {
                let row: takeover::ShardRow = record::decode(&value).unwrap();
                let shard = ShardId(u32::try_from(clustering.number(0)).unwrap());
                assert_eq!((row.node, Some(&row.epoch)), (Some(NodeId(1)), owned.get(&shard)));
            }
        });
    }
}
