//! Messages from one entity to another: written with the change that causes them, brought to their targets, and forgotten
//! when they have arrived. One that is brought twice, or late, is recognised by its target.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use cofactor_store::{Durability, Key, Mutation, Scan, StoreError, key, record, tables};
use cofactor_types::{EntityId, Fault, limits};
use futures::future::join_all;

use crate::{
    Env,
    log::{Group, Message as Outgoing},
};

/// How often a message is tried in a row.
const TRIES_MAX: u32 = 6;

/// How long after that it is tried again: not all of a node's entities at the same moment.
pub(crate) fn again(env: &Env) -> Duration {
    Duration::from_millis(4_000 + env.entropy().u128() as u64 % 2_000)
}

/// What did not arrive, and why. It stays in the outbox.
#[derive(Debug)]
pub(crate) struct Left {
    pub(crate) fault: Fault,
    pub(crate) messages: Vec<(Key, Outgoing)>,
}

fn partition(env: &Env, id: &EntityId) -> Key {
    key![u64::from(env.shard(id).0)]
}

/// Writes messages into the outbox together with the change that causes them.
pub(crate) fn stage(
    env: &Env,
    id: &EntityId,
    messages: Vec<(EntityId, Bytes)>,
    group: &mut Group,
) -> Result<Vec<(Key, Outgoing)>, StoreError> {
    let mut outgoing = Vec::with_capacity(messages.len());
    for (number, (target, payload)) in messages.into_iter().enumerate() {
        let message = Outgoing { target, payload };
        let clustering = key![id.kind().as_str(), id, group.last, number as u64];
        let value = Some(record::encode(&message)?);
        let partition = partition(env, id);
        group.effects.push(Mutation { table: &tables::OUTBOX, partition, clustering: clustering.clone(), value });
        outgoing.push((clustering, message));
    }
    Ok(outgoing)
}

/// What a dead writer, or one that gave up, left in the outbox.
pub(crate) async fn unsent(env: &Env, id: &EntityId) -> Result<Vec<(Key, Outgoing)>, StoreError> {
    let prefix = key![id.kind().as_str(), id];
    let scan = Scan::new(&tables::OUTBOX, partition(env, id), prefix, limits::MAILBOX_MAX);
    let rows = env.store().scan(scan).await?;
    rows.into_iter().map(|row| Ok((row.clustering, record::decode(&row.value)?))).collect()
}

/// These messages behind those that are `left` for the same targets.
pub(crate) fn behind(left: &mut Vec<(Key, Outgoing)>, outgoing: Vec<(Key, Outgoing)>) -> Vec<(Key, Outgoing)> {
    let goes_along = |(_, one): &mut (Key, Outgoing)| outgoing.iter().any(|(_, other)| other.target == one.target);
    let mut all: Vec<_> = left.extract_if(.., goes_along).collect();
    all.extend(outgoing);
    all
}

/// Brings messages to their targets, side by side but for those to the same target.
///
/// # Errors
/// What did not arrive.
pub(crate) async fn empty(env: Env, id: EntityId, outgoing: Vec<(Key, Outgoing)>) -> Result<(), Left> {
    let mut by_target: Vec<(EntityId, VecDeque<(Key, Bytes)>)> = Vec::new();
    for (clustering, Outgoing { target, payload }) in outgoing {
        match by_target.iter_mut().find(|(known, _)| *known == target) {
            Some((_, messages)) => messages.push_back((clustering, payload)),
            None => by_target.push((target, [(clustering, payload)].into())),
        }
    }
    let deliveries = by_target.iter_mut().map(|(target, messages)| deliver_all(&env, &id, target, messages));
    let (mut arrived, mut failed) = (Vec::new(), None);
    for (some, fault) in join_all(deliveries).await {
        arrived.extend(some);
        failed = failed.or(fault);
    }
    let partition = partition(&env, &id);
    let forget =
        |clustering| Mutation { table: &tables::OUTBOX, partition: partition.clone(), clustering, value: None };
    // A row that stays is delivered once more, which its target recognises.
    let _ = env.store().write(arrived.into_iter().map(forget).collect(), Durability::Deferred).await;
    let Some(fault) = failed else { return Ok(()) };
    let left = by_target.into_iter().flat_map(|(target, messages)| {
        let message = move |(clustering, payload)| (clustering, Outgoing { target: target.clone(), payload });
        messages.into_iter().map(message)
    });
    Err(Left { fault, messages: left.collect() })
}

/// Takes the messages that arrive from the queue of a target, in order, and says why the next one does not.
async fn deliver_all(
    env: &Env,
    id: &EntityId,
    target: &EntityId,
    messages: &mut VecDeque<(Key, Bytes)>,
) -> (Vec<Key>, Option<Fault>) {
    let mut arrived = Vec::new();
    while let Some((_, payload)) = messages.front() {
        let mut tries = 1;
        while let Err(fault) = env.deliver(target, payload.clone()).await {
            if env.ownership().held(env.shard(id)).is_none() {
                // Whoever has the shard now sends them.
                return (arrived, Some(fault));
            }
            if tries >= TRIES_MAX {
                tracing::warn!(?target, error = %fault, "a message to an entity does not arrive; trying again later");
                return (arrived, Some(fault));
            }
            tokio::time::sleep(Duration::from_millis(20 << tries)).await;
            tries += 1;
        }
        arrived.extend(messages.pop_front().map(|(clustering, _)| clustering));
    }
    (arrived, None)
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    };

    use async_trait::async_trait;
    use cofactor_bus::local::LocalBus;
    use cofactor_store::model::{Faults, ModelStore};
    use cofactor_types::{EntityKind, ErrorClass, NodeId, Position, ShardId, SystemClock, SystemEntropy};
    use futures::{FutureExt, future::LocalBoxFuture};
    use tokio::sync::Semaphore;

    use super::*;
    use crate::{
        Cx, Decision, Deliver, Entities, Entity, EnvParts, Ownership, Placement, Planted, Positions,
        takeover::{self, Leases, Taken},
    };

    /// Tells somebody whatever it is asked.
    struct Teller;

    impl Entity for Teller {
        const KIND: EntityKind = EntityKind::Room;
        type Command = ();
        type Reply = ();
        type Config = Arc<Counter>;

        fn load(_: Env, fails: Arc<Counter>, _: EntityId, _: Position) -> LocalBoxFuture<'static, Result<Self, Fault>> {
            Box::pin(async move { if fails.take() { Err(Fault::unavailable("not now")) } else { Ok(Self) } })
        }

        fn decide(&mut self, (): (), cx: &mut Cx) -> Decision<Self> {
            cx.deliver(EntityId::new(EntityKind::User, "@b:x"), Bytes::from_static(b"hello"));
            Decision::Commit(())
        }

        fn delivered(_: &[u8]) -> Result<(), Fault> {
            Ok(())
        }
    }

    /// How often something is still to fail.
    #[derive(Debug, Default)]
    struct Counter(AtomicU32);

    impl Counter {
        fn take(&self) -> bool {
            self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
        }

        fn set(&self, times: u32) {
            self.0.store(times, Ordering::Relaxed);
        }
    }

    /// Messages arrive when the test lets them.
    #[derive(Debug)]
    struct Held {
        coming: Semaphore,
        through: Semaphore,
        refusals: Counter,
        store: ModelStore,
        entities: OnceLock<Entities<Teller>>,
        activations: Arc<Counter>,
    }

    #[async_trait]
    impl Deliver for Held {
        async fn deliver(&self, _: &EntityId, _: Bytes) -> Result<(), Fault> {
            self.coming.add_permits(1);
            if self.refusals.take() {
                return Err(Fault::unavailable("not now"));
            }
            self.through.acquire().await.unwrap().forget();
            Ok(())
        }

        fn wake(&self, entity: &EntityId) {
            self.entities.get().unwrap().activate(entity);
        }
    }

    /// A node with one shard, a teller in it, and its messages.
    async fn set_up() -> (Env, Entities<Teller>, EntityId, Arc<Held>) {
        let (clock, shard, store) = (Arc::new(SystemClock), ShardId(0), ModelStore::new(1, false));
        let ownership = Ownership::new(NodeId(1), 1, clock.clone());
        ownership.renewed(0, u64::MAX);
        let env = Env::new(EnvParts {
            store: Arc::new(store.clone()),
            bus: Arc::new(LocalBus::default()),
            positions: Positions::new(clock.clone(), Position(1), Position::MAX),
            clock,
            entropy: Arc::new(SystemEntropy),
            ownership,
            transport: None,
            idle: Duration::from_secs(60),
            planted: Planted::Nothing,
        });
        let taken = takeover::take(&env, vec![shard], &Leases::default()).await;
        assert!(matches!(taken[..], [(_, Taken::Ours(_))]), "{taken:?}");
        let held = Arc::new(Held {
            coming: Semaphore::new(0),
            through: Semaphore::new(0),
            refusals: Counter::default(),
            store,
            entities: OnceLock::new(),
            activations: Arc::default(),
        });
        let deliver: Arc<dyn Deliver> = held.clone();
        env.connect(&deliver);
        let fails = Arc::clone(&held.activations);
        let entities = Entities::new(env.clone(), fails, Placement::new(Vec::new()));
        held.entities.set(entities.clone()).unwrap();
        (env, entities, EntityId::new(EntityKind::Room, "!a:x"), held)
    }

    fn run(test: impl Future<Output = ()>) {
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        actix_rt::System::with_tokio_rt(runtime).block_on(test);
    }

    #[test]
    fn who_goes_does_not_wait_for_its_messages_and_they_arrive_all_the_same() {
        run(async {
            let (env, entities, id, held) = set_up().await;
            let ask = entities.ask(&id, ());
            tokio::pin!(ask);
            assert_eq!((&mut ask).now_or_never(), None);
            let coming = async { held.coming.acquire().await.unwrap().forget() };
            tokio::select! {
                biased;
                answer = &mut ask => panic!("{answer:?} although the message has not arrived"),
                () = coming => {}
            }
            // Its target may be in a shard that moves as well, and be there again only when this one has gone.
            let shard = env.shard(&id);
            env.ownership().set(shard, None);
            entities.drain(&[shard].into()).await;
            assert_eq!(unsent(&env, &id).await.unwrap().len(), 1, "whoever takes the shard finds it");
            held.through.add_permits(1);
            assert_eq!(ask.await, Ok(()));
            assert_eq!(unsent(&env, &id).await.unwrap().len(), 0);
        });
    }

    #[test]
    fn what_does_not_arrive_is_tried_again_though_nobody_asks() {
        run(async {
            let (env, entities, id, held) = set_up().await;
            held.through.add_permits(10);
            for rounds in [1, 3] {
                held.refusals.set(rounds * TRIES_MAX);
                let error = entities.ask(&id, ()).await.expect_err("its target is away");
                assert_eq!(error.class, ErrorClass::Unknown, "the change stands");
                assert_eq!(unsent(&env, &id).await.unwrap().len(), 1);
                // Longer than it would stay in memory with nothing to do.
                tokio::time::sleep(Duration::from_secs(180)).await;
                assert_eq!(unsent(&env, &id).await.unwrap().len(), 0);
            }
        });
    }

    #[test]
    fn what_is_left_when_an_append_fails_is_sent_by_who_comes_after() {
        run(async {
            let (env, entities, id, held) = set_up().await;
            held.through.add_permits(10);
            held.refusals.set(TRIES_MAX);
            entities.ask(&id, ()).await.expect_err("its target is away");
            held.store.set_faults(Faults { unavailable_permille: 1_000, ..Faults::default() });
            entities.ask(&id, ()).await.expect_err("the store is away");
            held.store.set_faults(Faults::default());
            assert_eq!(unsent(&env, &id).await.unwrap().len(), 1);
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_eq!(unsent(&env, &id).await.unwrap().len(), 0);
        });
    }

    #[test]
    fn what_a_dead_writer_left_is_sent_though_it_cannot_be_read_at_first() {
        run(async {
            let (env, entities, id, held) = set_up().await;
            held.through.add_permits(10);
            held.refusals.set(TRIES_MAX);
            entities.ask(&id, ()).await.expect_err("its target is away");
            entities.drain(&[env.shard(&id)].into()).await;
            held.activations.set(3);
            env.wake(&id);
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_eq!(unsent(&env, &id).await.unwrap().len(), 0);
        });
    }

    #[test]
    fn what_is_left_goes_before_what_follows_to_the_same_target() {
        let message = |number: u64, target: &str| {
            let target = EntityId::new(EntityKind::User, target);
            (key![number], Outgoing { target, payload: Bytes::new() })
        };
        let mut left = vec![message(1, "@b:x"), message(2, "@c:x"), message(3, "@b:x")];
        let all = behind(&mut left, vec![message(4, "@b:x"), message(5, "@d:x")]);
        let numbers = |some: &[(Key, Outgoing)]| some.iter().map(|(key, _)| key.number(0)).collect::<Vec<_>>();
        assert_eq!((numbers(&all), numbers(&left)), (vec![1, 3, 4, 5], vec![2]));
    }
}
