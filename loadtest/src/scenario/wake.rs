//! One event wakes everybody who waits in a room: how long until each has it, and what each delivery costs with the
//! sync that the client makes next.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use tokio::task::JoinSet;

use super::{Case, Context, FloorOf, Plan, Sample, Scenario, share};
use crate::check::{Findings, Ledger, Sent};
use crate::client::{Ask, Failure};
use crate::load::{Outcome, Tally};
use crate::matrix::{Homeserver, Session, sync_path};
use crate::proc::Snapshot;
use crate::world::{Room, World};

/// How long a sync is held.
const HOLD: Duration = Duration::from_secs(30);
/// Between two events, so that every waiter waits again.
const BETWEEN: Duration = Duration::from_secs(1);

/// A fresh scenario.
#[must_use]
pub fn make() -> Box<dyn Scenario> {
    Box::new(Wake::default())
}

#[derive(Default)]
struct Wake {
    rooms: BTreeMap<u64, Room>,
}

#[async_trait(?Send)]
impl Scenario for Wake {
    fn cases(&self, plan: &Plan) -> Vec<Case> {
        let case = |size: &u64| Case {
            series: "wake".to_owned(),
            variable: "waiters",
            size: *size,
            in_flight: 1,
            floor: FloorOf::Sync,
        };
        plan.waiters.iter().map(case).collect()
    }

    async fn prepare(&mut self, world: &mut World, case: &Case, context: &Context) -> Result<()> {
        let members = usize::try_from(case.size)?;
        self.rooms.insert(case.size, world.room(&format!("room-{members}"), members, &context.progress).await?);
        Ok(())
    }

    async fn measure(&mut self, world: &mut World, case: &Case, context: &Context, round: u32) -> Result<Sample> {
        let plan = &context.plan;
        let room = self.rooms.get(&case.size).context("the case was not prepared")?.clone();
        let users = world.users(room.members, &context.progress).await?.to_vec();
        let ledger = Ledger::new(&format!("{}-wake-{}-{round}", plan.run, case.size));
        // Everything is sent before the last waiters give up.
        let events = u64::try_from(plan.time.div_duration_f64(BETWEEN).ceil() as i64)?.max(2);
        let end = Instant::now() + plan.warm_up + BETWEEN * u32::try_from(events)? + plan.patience.lost;
        let mut waiting = JoinSet::new();
        for session in users.clone() {
            let since = world.server.position(&session, None).await?;
            let waiter = Waiter { session, since, ledger: Arc::clone(&ledger), room_id: room.id.clone(), events, end };
            waiting.spawn(waiter.wait(Arc::clone(&world.server)));
        }
        tokio::time::sleep(plan.warm_up).await;
        let (before, me, start) = (Snapshot::of(&world.target.pids), Snapshot::of_myself(), Instant::now());
        for number in 0..events {
            ledger.send(&world.server, &users[0], &room.id, number).await;
            tokio::time::sleep_until((start + BETWEEN * u32::try_from(number + 1)?).into()).await;
        }
        let usage = before.until(&Snapshot::of(&world.target.pids));
        let generator = share(&me, start);
        let own_ns = me.until(&Snapshot::of_myself()).cpu_ns;
        let mut seen = Vec::new();
        while let Some(one) = waiting.join_next().await {
            seen.push(one.context("a waiter")??);
        }
        let mut sample = sum_up(&ledger.sent(), &seen, start);
        let deliveries = sample.open.as_ref().map_or(0, |tally| tally.done);
        if deliveries > 0 {
            // On the same machine it delays the deliveries as much as the server does.
            sample.figures.insert("µs of the generator for a delivery", own_ns as f64 / 1000.0 / deliveries as f64);
        }
        sample.cost = (!world.target.pids.is_empty() && deliveries > 0).then_some((deliveries, usage));
        sample.generator = generator;
        Ok(sample)
    }
}

/// One member that waits, again and again, until it has seen every event or the end has come.
struct Waiter {
    session: Session,
    since: String,
    ledger: Arc<Ledger>,
    room_id: String,
    events: u64,
    end: Instant,
}

/// What came, in its order, and when.
type Deliveries = Vec<(u64, Instant)>;

impl Waiter {
    async fn wait(mut self, server: Arc<Homeserver>) -> Result<Deliveries> {
        let mut seen = Vec::new();
        while (seen.len() as u64) < self.events && Instant::now() < self.end {
            let wait = HOLD.min(self.end.saturating_duration_since(Instant::now()));
            let ask = Ask::get(sync_path(Some(&self.since), wait, None), &self.session.token);
            let answer = match server.client.send_within(ask, wait + HOLD).await {
                Ok(answer) if answer.status == 200 => answer,
                Ok(answer) => anyhow::bail!("{}: a waiting sync was refused with {}", server.name, answer.status),
                Err(Failure::TimedOut) => break,
                Err(failure) => return Err(failure).context("a waiting sync"),
            };
            let at = Instant::now();
            let answer: serde_json::Value = serde_json::from_slice(&answer.body)?;
            answer["next_batch"].as_str().context("a sync has no next_batch")?.clone_into(&mut self.since);
            let timeline = answer["rooms"]["join"][&self.room_id]["timeline"]["events"].as_array();
            let numbers = timeline.into_iter().flatten().filter_map(|event| self.ledger.number(event));
            seen.extend(numbers.map(|number| (number, at)));
        }
        Ok(seen)
    }
}

fn sum_up(sent: &BTreeMap<u64, Sent>, seen: &[Deliveries], start: Instant) -> Sample {
    let mut tally = Tally::default();
    let mut findings = Findings { events: sent.len() as u64, members: seen.len() as u64, ..Findings::default() };
    let mut last: BTreeMap<u64, Duration> = BTreeMap::new();
    for deliveries in seen {
        findings.deliveries += deliveries.len() as u64;
        let mut numbers: Vec<u64> = deliveries.iter().map(|(number, _)| *number).collect();
        findings.reordered += numbers.windows(2).filter(|pair| pair[0] > pair[1]).count() as u64;
        numbers.sort_unstable();
        findings.repeated += numbers.windows(2).filter(|pair| pair[0] == pair[1]).count() as u64;
        numbers.dedup();
        let expected = sent.iter().filter(|(_, event)| event.acknowledged.is_some());
        findings.lost += expected.filter(|(number, _)| numbers.binary_search(number).is_err()).count() as u64;
        for (number, at) in deliveries {
            let Some(event) = sent.get(number) else { continue };
            let latency = at.saturating_duration_since(event.began);
            tally.count(Outcome::Done, latency, at.saturating_duration_since(start));
            let slowest = last.entry(*number).or_default();
            *slowest = latency.max(*slowest);
        }
    }
    let slowest: Vec<f64> = last.values().map(|latency| latency.as_secs_f64() * 1000.0).collect();
    let slowest = crate::fit::median(&slowest).map(|ms| ("ms until the last waiter has it", ms));
    let figures = slowest.into_iter().collect();
    Sample { open: Some(tally), findings: Some(findings), figures, ..Sample::default() }
}
