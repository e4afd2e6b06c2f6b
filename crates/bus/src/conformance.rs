//! The suite that every bus must pass: an implementation's tests call [`all`]. A case that does not hold panics with its
//! name.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use cofactor_types::{EntityId, EntityKind, Epoch, NodeId, Position, ShardId};

use crate::{Bus, Delivery, Heartbeat, Record, Shared, Subscription};

/// Runs every case, each on a bus of its own.
pub async fn all(make: impl Fn() -> Arc<dyn Bus>) {
    everybody_hears_everything_in_order(&*make()).await;
    nobody_hears_what_was_said_before(&*make()).await;
    a_slow_subscriber_is_told_of_a_gap(&*make()).await;
}

fn record(seq: u64) -> Record {
    Record {
        shard: ShardId(1),
        epoch: Epoch(1),
        seq,
        entity: EntityId::new(EntityKind::Room, "!a"),
        position: Position(seq),
        class: 1,
        payload: Bytes::from_static(b"x"),
    }
}

fn heartbeat(closed: u64) -> Heartbeat {
    Heartbeat {
        node: NodeId(1),
        closed: Position(closed),
        version: 1,
        full: true,
        shards: vec![(ShardId(1), Epoch(1), closed)],
    }
}

async fn next(subscription: &mut Box<dyn Subscription>) -> Delivery {
    let waited = tokio::time::timeout(Duration::from_secs(10), subscription.next()).await;
    waited.expect("a delivery in time").expect("an open bus")
}

async fn everybody_hears_everything_in_order(bus: &dyn Bus) {
    let mut subscriptions = [bus.subscribe(), bus.subscribe()];
    for seq in 1..=100 {
        bus.publish(record(seq));
    }
    bus.heartbeat(heartbeat(100));
    for subscription in &mut subscriptions {
        for seq in 1..=100 {
            assert_eq!(next(subscription).await, Delivery::Record(Arc::new(record(seq))));
        }
        assert_eq!(next(subscription).await, Delivery::Heartbeat(Arc::new(heartbeat(100))));
        assert!(subscription.try_next().is_none());
    }
}

async fn nobody_hears_what_was_said_before(bus: &dyn Bus) {
    bus.publish(record(1));
    let mut subscription = bus.subscribe();
    bus.publish(record(2));
    assert_eq!(next(&mut subscription).await, Delivery::Record(Arc::new(record(2))));
}

/// The speaker never waits: whoever cannot follow is told so, and hears what comes after.
async fn a_slow_subscriber_is_told_of_a_gap(bus: &dyn Bus) {
    const MANY: u64 = 100_000;
    let mut subscription = bus.subscribe();
    for seq in 1..=MANY {
        bus.publish(record(seq));
    }
    let mut heard = Vec::new();
    while let Some(delivery) = subscription.try_next() {
        heard.push(delivery);
    }
    assert!(heard.contains(&Delivery::Gap), "a gap is told");
    assert_eq!(heard.last(), Some(&Delivery::Record(Arc::new(record(MANY)))), "the newest is heard");
}

/// Runs every case of shared facts; `advance` moves the clock that they live by.
pub async fn shared(facts: Arc<dyn Shared>, advance: impl Fn(Duration)) {
    let value = Bytes::from_static(b"x");
    let life = Duration::from_secs(60);
    assert_eq!(facts.get("a").await, Ok(None));
    facts.put("a", value.clone(), life).await.expect("a fact");
    assert_eq!(facts.get("a").await, Ok(Some(value.clone())));
    let takers = futures::future::join_all((0..10).map(|_| facts.take("a"))).await;
    assert_eq!(takers.into_iter().filter(|taken| *taken == Ok(Some(value.clone()))).count(), 1, "one taker gets it");
    facts.put("b", value.clone(), life).await.expect("a fact");
    advance(life / 2);
    assert_eq!(facts.get("b").await, Ok(Some(value)));
    advance(life);
    assert_eq!(facts.get("b").await, Ok(None), "its time is over");
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use cofactor_types::Clock;

    use super::*;
    use crate::local::{LocalBus, LocalShared};

    #[derive(Debug, Default)]
    struct Hand(AtomicU64);

    impl Clock for Hand {
        fn now_us(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }

        fn steady_us(&self) -> u64 {
            self.now_us()
        }
    }

    #[tokio::test]
    async fn the_local_bus_keeps_the_contract() {
        all(|| Arc::new(LocalBus::default())).await;
    }

    #[tokio::test]
    async fn local_facts_keep_the_contract() {
        let clock = Arc::new(Hand::default());
        let facts = Arc::new(LocalShared::new(Arc::clone(&clock) as Arc<dyn Clock>));
        let advance = |by: Duration| {
            clock.0.fetch_add(by.as_micros() as u64, Ordering::Relaxed);
        };
        shared(facts, advance).await;
    }
}
