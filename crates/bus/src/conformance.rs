//! The suite that every bus must pass: an implementation's tests call [`all`] and [`shared`]. A case that does not hold panics with its
//! name.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use cofactor_types::{EntityId, EntityKind, Epoch, NodeId, Position, ShardId};

use crate::{Bus, Decision, Delivery, Heartbeat, Listener, RETRY_AFTER_MAX, Rate, Record, Shared, Subscription};

/// Two ends of one bus, perhaps in two processes.
pub struct Ends {
    /// Where things are said.
    pub speaker: Arc<dyn Bus>,
    /// Where they are heard.
    pub listener: Arc<dyn Bus>,
}

impl Ends {
    /// Both ends are the same value.
    pub fn same(bus: Arc<dyn Bus>) -> Self {
        Self { speaker: Arc::clone(&bus), listener: bus }
    }
}

/// Runs every case, each on a bus of its own.
pub async fn all(make: impl AsyncFn() -> Ends) {
    everybody_hears_everything_in_order(&make().await).await;
    nobody_hears_what_was_said_before(&make().await).await;
    a_slow_subscriber_is_told_of_a_gap(&make().await).await;
    a_listener_hears_in_order_while_its_future_lives(&make().await).await;
}

fn record(seq: u64) -> Record {
    Record {
        // More than one shard, since an implementation may spread them.
        shard: ShardId((seq % 7) as u32),
        epoch: Epoch(1),
        seq,
        entity: EntityId::new(EntityKind::Room, "!a"),
        position: Position(seq),
        class: 1,
        payload: Bytes::from_static(b"x"),
        trace: None,
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

/// All deliveries up to the record with this number.
async fn until(subscription: &mut Box<dyn Subscription>, seq: u64) -> Vec<Delivery> {
    let last = Delivery::Record(Arc::new(record(seq)));
    let mut heard = Vec::new();
    while heard.last() != Some(&last) {
        heard.push(next(subscription).await);
    }
    heard
}

async fn everybody_hears_everything_in_order(ends: &Ends) {
    let mut subscriptions = [ends.listener.subscribe(), ends.listener.subscribe(), ends.speaker.subscribe()];
    for seq in 1..=100 {
        ends.speaker.publish(record(seq));
    }
    ends.speaker.heartbeat(heartbeat(100));
    for subscription in &mut subscriptions {
        for seq in 1..=100 {
            assert_eq!(next(subscription).await, Delivery::Record(Arc::new(record(seq))));
        }
        assert_eq!(next(subscription).await, Delivery::Heartbeat(Arc::new(heartbeat(100))));
        assert!(subscription.try_next().is_none());
    }
}

async fn nobody_hears_what_was_said_before(ends: &Ends) {
    let mut before = [ends.listener.subscribe(), ends.speaker.subscribe()];
    ends.speaker.publish(record(1));
    // Once it has arrived at an end it is in the past there.
    for subscription in &mut before {
        assert_eq!(next(subscription).await, Delivery::Record(Arc::new(record(1))));
    }
    let mut after = [ends.listener.subscribe(), ends.speaker.subscribe()];
    ends.speaker.publish(record(2));
    for subscription in &mut after {
        assert_eq!(next(subscription).await, Delivery::Record(Arc::new(record(2))));
    }
}

/// The speaker never waits: whoever cannot follow is told so, and hears what comes after.
async fn a_slow_subscriber_is_told_of_a_gap(ends: &Ends) {
    const MANY: u64 = 100_000;
    let mut slow = ends.listener.subscribe();
    let mut quick = ends.listener.subscribe();
    for seq in 1..=MANY {
        ends.speaker.publish(record(seq));
    }
    // What the quick one has heard waits for the slow one, or is lost to it.
    until(&mut quick, MANY).await;
    let mut heard = Vec::new();
    while let Some(delivery) = slow.try_next() {
        heard.push(delivery);
    }
    assert!(heard.contains(&Delivery::Gap), "a gap is told");
    assert_eq!(heard.last(), Some(&Delivery::Record(Arc::new(record(MANY)))), "the newest is heard");
}

/// What a listener has heard.
#[derive(Default)]
struct Heard(Mutex<Vec<Delivery>>);

impl Heard {
    fn all(&self) -> Vec<Delivery> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Listener for Heard {
    fn hear(&self, delivery: &Delivery) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(delivery.clone());
    }
}

async fn a_listener_hears_in_order_while_its_future_lives(ends: &Ends) {
    let heard = Arc::new(Heard::default());
    let listening = ends.listener.listen(Arc::clone(&heard) as Arc<dyn Listener>);
    let mut subscription = ends.listener.subscribe();
    let said = async {
        (1..=100).for_each(|seq| ends.speaker.publish(record(seq)));
        ends.speaker.heartbeat(heartbeat(100));
        while heard.all().len() < 101 {
            tokio::task::yield_now().await;
        }
    };
    let said = tokio::time::timeout(Duration::from_secs(10), said);
    let ended = futures::future::select(listening, Box::pin(said)).await;
    assert!(matches!(ended, futures::future::Either::Right((Ok(()), _))), "the listener hears in time");
    drop(ended);
    let mut expected: Vec<_> = (1..=100).map(|seq| Delivery::Record(Arc::new(record(seq)))).collect();
    expected.push(Delivery::Heartbeat(Arc::new(heartbeat(100))));
    assert_eq!(heard.all(), expected);
    until(&mut subscription, 100).await;
    assert_eq!(next(&mut subscription).await, Delivery::Heartbeat(Arc::new(heartbeat(100))));
    ends.speaker.publish(record(101));
    until(&mut subscription, 101).await;
    assert_eq!(heard.all(), expected, "whoever has gone hears no more");
}

/// Runs every case of shared facts. `advance` lets time pass by the clock that they live by; `unit` is the measure of
/// time in the cases: long enough that what happens within a tenth of it happens at once.
pub async fn shared(facts: &dyn Shared, unit: Duration, advance: impl AsyncFn(Duration)) {
    a_fact_is_taken_once(facts, unit).await;
    a_fact_ends_with_its_time(facts, unit, &advance).await;
    a_bucket_lets_a_burst_through_and_then_its_rate(facts, unit, &advance).await;
    tokens_are_taken_all_or_none(facts, unit).await;
}

async fn a_fact_is_taken_once(facts: &dyn Shared, unit: Duration) {
    let value = Bytes::from_static(b"x\0\xff");
    assert_eq!(facts.get("a").await, Ok(None));
    facts.put("a", value.clone(), unit * 100).await.expect("a fact");
    assert_eq!(facts.get("a").await, Ok(Some(value.clone())));
    let takers = futures::future::join_all((0..10).map(|_| facts.take("a"))).await;
    assert_eq!(takers.into_iter().filter(|taken| *taken == Ok(Some(value.clone()))).count(), 1, "one taker gets it");
    assert_eq!(facts.get("a").await, Ok(None));
}

async fn a_fact_ends_with_its_time(facts: &dyn Shared, unit: Duration, advance: &impl AsyncFn(Duration)) {
    let (old, new) = (Bytes::from_static(b"old"), Bytes::from_static(b"new"));
    facts.put("b", old, unit / 2).await.expect("a fact");
    facts.put("b", new.clone(), unit * 2).await.expect("the last word counts, and its time");
    advance(unit).await;
    assert_eq!(facts.get("b").await, Ok(Some(new)));
    advance(unit * 2).await;
    assert_eq!(facts.get("b").await, Ok(None), "its time is over");
    assert_eq!(facts.take("b").await, Ok(None));
}

async fn a_bucket_lets_a_burst_through_and_then_its_rate(
    facts: &dyn Shared,
    unit: Duration,
    advance: &impl AsyncFn(Duration),
) {
    let rate = Rate { per_second: 1.0 / unit.as_secs_f64(), burst: 3.0 };
    let wait = |decision: Decision| match decision {
        Decision::Allowed => panic!("more than the burst is let through"),
        Decision::Denied { retry_after } => retry_after,
    };
    let takers = futures::future::join_all((0..10).map(|_| facts.take_tokens("c", rate, 1))).await;
    let allowed = takers.iter().filter(|decision| **decision == Ok(Decision::Allowed)).count();
    assert_eq!(allowed, 3, "a full bucket is one burst, whoever takes");
    let retry_after = wait(facts.take_tokens("c", rate, 1).await.expect("a decision"));
    assert!(retry_after > unit / 2 && retry_after <= unit, "a token comes after {retry_after:?}");
    assert_eq!(facts.take_tokens("d", rate, 1).await, Ok(Decision::Allowed), "other keys have their own");
    advance(retry_after).await;
    assert_eq!(facts.take_tokens("c", rate, 1).await, Ok(Decision::Allowed));
    wait(facts.take_tokens("c", rate, 1).await.expect("a decision"));
    advance(unit * 5).await;
    for _ in 0..3 {
        assert_eq!(facts.take_tokens("c", rate, 1).await, Ok(Decision::Allowed), "it fills up again");
    }
    wait(facts.take_tokens("c", rate, 1).await.expect("a decision"));
}

async fn tokens_are_taken_all_or_none(facts: &dyn Shared, unit: Duration) {
    let rate = Rate { per_second: 0.01 / unit.as_secs_f64(), burst: 5.0 };
    facts.put("e", Bytes::from_static(b"x"), unit * 100).await.expect("a value under a bucket's key");
    assert_eq!(facts.take_tokens("e", rate, 3).await, Ok(Decision::Allowed));
    assert!(matches!(facts.take_tokens("e", rate, 3).await, Ok(Decision::Denied { .. })));
    assert_eq!(facts.take_tokens("e", rate, 2).await, Ok(Decision::Allowed), "the refusal cost nothing");
    assert!(matches!(facts.take_tokens("f", rate, 6).await, Ok(Decision::Denied { .. })), "more than a burst");
    let never = Rate { per_second: f64::NAN, burst: -1.0 };
    assert_eq!(facts.take_tokens("g", never, 1).await, Ok(Decision::Allowed), "the least burst that makes sense");
    assert_eq!(facts.take_tokens("g", never, 1).await, Ok(Decision::Denied { retry_after: RETRY_AFTER_MAX }));
}

#[cfg(test)]
mod tests {
    use cofactor_types::ManualClock;
    use std::sync::atomic::Ordering;

    use cofactor_types::Clock;

    use super::*;
    use crate::local::{LocalBus, LocalShared};

    #[tokio::test]
    async fn the_local_bus_keeps_the_contract() {
        all(async || Ends::same(Arc::new(LocalBus::default()))).await;
    }

    #[tokio::test]
    async fn local_facts_keep_the_contract() {
        let clock = Arc::new(ManualClock::default());
        let facts = LocalShared::new(Arc::clone(&clock) as Arc<dyn Clock>);
        let advance = async |by: Duration| {
            clock.0.fetch_add(by.as_micros() as u64, Ordering::Relaxed);
        };
        shared(&facts, Duration::from_secs(60), advance).await;
    }
}
