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

const SHARDS: u32 = 256;
const LEASE: Duration = Duration::from_secs(6);

/// Who lives in these shards.
#[derive(Debug)]
enum Inhabitants {
    None,
    DoneInASecond,
    NeverDone,
}

#[async_trait]
impl ShardHost for Inhabitants {
    async fn drain(&self, _: &BTreeSet<ShardId>) {
        match self {
            Self::None => {}
            Self::DoneInASecond => tokio::time::sleep(Duration::from_secs(1)).await,
            Self::NeverDone => std::future::pending().await,
        }
    }
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
        let shards = Shards::new(env.clone(), Arc::new(options), Arc::new(Inhabitants::None), 6_000_000);
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
fn who_goes_does_not_wait_for_long_for_actors_that_are_never_done() {
    in_paused_time(async {
        let (mut first, mut second, _ways) = two(Ways::default()).await;
        first.shards.host = Arc::new(Inhabitants::NeverDone);
        let asked = Instant::now();
        first.leaves().await;
        assert!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());
        run([&mut second], Duration::from_millis(10)).await;
        assert_eq!((first.owned(), second.owned()), (0, ALL));
    });
}

#[test]
fn what_is_offered_is_taken_though_the_members_cannot_be_read() {
    in_paused_time(async {
        let (mut first, mut second, _ways) = two(Ways::default()).await;
        first.appears(true).await;
        second.shards.look().await.unwrap();
        second.shards.looking = Some(Box::pin(std::future::pending()));
        first.settle(true).await;
        run([&mut second], Duration::from_millis(10)).await;
        assert_eq!(second.owned(), ALL);
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
fn who_goes_passes_on_what_it_said_yes_to() {
    in_paused_time(async {
        let (mut first, mut second, _ways) = two(Ways::default()).await;
        first.shards.host = Arc::new(Inhabitants::DoneInASecond);
        let goes = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            second.env.ownership().leave();
            second.leaves().await;
        };
        tokio::join!(first.settle(false), goes);
        assert!(first.rows().keys().all(|(node, _)| *node != Some(NodeId(2))), "{:?}", first.rows());
        run([&mut first], Duration::from_secs(2)).await;
        assert_eq!(first.owned(), ALL);
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
