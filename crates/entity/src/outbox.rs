//! Messages from one entity to another: written with the change that causes them, brought to their targets, and forgotten
//! when they have arrived. One that is brought twice, or late, is recognised by its target.

use std::time::Duration;

use bytes::Bytes;
use cofactor_store::{Durability, Key, Mutation, Scan, StoreError, key, record, tables};
use cofactor_types::{EntityId, Fault, limits};
use futures::future::join_all;

use crate::{
    Env,
    log::{Group, Message as Outgoing},
};

/// How often a message is tried before it is left to the next activation.
const TRIES_MAX: u32 = 6;

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

/// Brings messages to their targets, side by side but for those to the same target.
///
/// # Errors
/// Why one of them did not arrive; it stays in the outbox.
pub(crate) async fn empty(env: Env, id: EntityId, outgoing: Vec<(Key, Outgoing)>) -> Result<(), Fault> {
    let mut by_target: Vec<(EntityId, Vec<(Key, Bytes)>)> = Vec::new();
    for (clustering, Outgoing { target, payload }) in outgoing {
        match by_target.iter_mut().find(|(known, _)| *known == target) {
            Some((_, messages)) => messages.push((clustering, payload)),
            None => by_target.push((target, vec![(clustering, payload)])),
        }
    }
    let targets = by_target.into_iter().map(|(target, messages)| deliver_all(&env, target, messages));
    let mut sent = Vec::new();
    let mut failed = Ok(());
    for (delivered, outcome) in join_all(targets).await {
        sent.extend(delivered);
        failed = failed.and(outcome);
    }
    let partition = partition(&env, &id);
    let forget =
        |clustering| Mutation { table: &tables::OUTBOX, partition: partition.clone(), clustering, value: None };
    // A row that stays is delivered once more, which its target recognises.
    let _ = env.store().write(sent.into_iter().map(forget).collect(), Durability::Deferred).await;
    failed
}

/// The messages that arrived, and why the rest did not.
async fn deliver_all(env: &Env, target: EntityId, messages: Vec<(Key, Bytes)>) -> (Vec<Key>, Result<(), Fault>) {
    let mut delivered = Vec::new();
    for (clustering, payload) in messages {
        let mut tries = 1;
        while let Err(fault) = env.deliver(&target, payload.clone()).await {
            if tries >= TRIES_MAX {
                tracing::warn!(target = ?target, error = %fault, "a message to an entity stays in the outbox");
                return (delivered, Err(fault));
            }
            tokio::time::sleep(Duration::from_millis(20 << tries)).await;
            tries += 1;
        }
        delivered.push(clustering);
    }
    (delivered, Ok(()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_trait::async_trait;
    use cofactor_bus::local::LocalBus;
    use cofactor_store::model::ModelStore;
    use cofactor_types::{EntityKind, NodeId, Position, ShardId, SystemClock, SystemEntropy};
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
        type Config = ();

        fn load(_: Env, (): (), _: EntityId, _: Position) -> LocalBoxFuture<'static, Result<Self, Fault>> {
            Box::pin(async { Ok(Self) })
        }

        fn decide(&mut self, (): (), cx: &mut Cx) -> Decision<Self> {
            cx.deliver(EntityId::new(EntityKind::User, "@b:x"), Bytes::from_static(b"hello"));
            Decision::Commit(())
        }

        fn delivered(_: &[u8]) -> Result<(), Fault> {
            Ok(())
        }
    }

    /// Messages arrive when the test lets them.
    #[derive(Debug)]
    struct Held {
        coming: Semaphore,
        through: Semaphore,
    }

    #[async_trait]
    impl Deliver for Held {
        async fn deliver(&self, _: &EntityId, _: Bytes) -> Result<(), Fault> {
            self.coming.add_permits(1);
            self.through.acquire().await.unwrap().forget();
            Ok(())
        }

        fn wake(&self, _: &EntityId) {}
    }

    #[test]
    fn who_goes_does_not_wait_for_its_messages_and_they_arrive_all_the_same() {
        actix_rt::System::new().block_on(goes_without_waiting());
    }

    async fn goes_without_waiting() {
        let (clock, shard) = (Arc::new(SystemClock), ShardId(0));
        let ownership = Ownership::new(NodeId(1), 1, clock.clone());
        ownership.renewed(0, u64::MAX);
        let env = Env::new(EnvParts {
            store: Arc::new(ModelStore::new(1, false)),
            bus: Arc::new(LocalBus::default()),
            positions: Positions::new(clock.clone(), Position(1), Position::MAX),
            clock,
            entropy: Arc::new(SystemEntropy),
            ownership: Arc::clone(&ownership),
            transport: None,
            idle: Duration::from_secs(60),
            planted: Planted::Nothing,
        });
        let taken = takeover::take(&env, vec![shard], &Leases::default()).await;
        assert!(matches!(taken[..], [(_, Taken::Ours(_))]), "{taken:?}");
        let held = Arc::new(Held { coming: Semaphore::new(0), through: Semaphore::new(0) });
        let deliver: Arc<dyn Deliver> = held.clone();
        env.connect(&deliver);
        let entities = Entities::<Teller>::new(env.clone(), (), Placement::new(Vec::new()));
        let id = EntityId::new(EntityKind::Room, "!a:x");

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
        ownership.set(shard, None);
        entities.drain(&[shard].into()).await;
        assert_eq!(unsent(&env, &id).await.unwrap().len(), 1, "whoever takes the shard finds it");
        held.through.add_permits(1);
        assert_eq!(ask.await, Ok(()));
        assert_eq!(unsent(&env, &id).await.unwrap().len(), 0);
    }
}
