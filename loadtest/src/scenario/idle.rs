//! Held syncs in which nothing happens: the memory of each, and the CPU time that keeping them takes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use async_trait::async_trait;
use tokio::task::JoinSet;

use super::{Case, Context, Plan, Sample, Scenario, share, single};
use crate::client::Ask;
use crate::load::{Outcome, Tally};
use crate::matrix::{Homeserver, Session, sync_path};
use crate::proc::Snapshot;
use crate::world::World;

/// What a sync may take longer than it was to be held.
const GRACE: Duration = Duration::from_secs(10);

/// A fresh scenario.
#[must_use]
pub fn make() -> Box<dyn Scenario> {
    Box::new(Idle)
}

struct Idle;

#[async_trait(?Send)]
impl Scenario for Idle {
    fn cases(&self, plan: &Plan) -> Vec<Case> {
        plan.polls.iter().map(|size| single("held syncs", "syncs", *size)).collect()
    }

    async fn prepare(&mut self, world: &mut World, case: &Case, context: &Context) -> Result<()> {
        world.users(usize::try_from(case.size)?, &context.progress).await.map(drop)
    }

    async fn measure(&mut self, world: &mut World, case: &Case, context: &Context, _round: u32) -> Result<Sample> {
        let plan = &context.plan;
        let users = world.users(usize::try_from(case.size)?, &context.progress).await?.to_vec();
        let mut since = Vec::with_capacity(users.len());
        for user in &users {
            since.push(world.server.position(user, None).await?);
        }
        let (empty, me, start) = (Snapshot::of(&world.target.pids), Snapshot::of_myself(), Instant::now());
        let hold = plan.warm_up + plan.time;
        let mut held = JoinSet::new();
        for (user, since) in users.into_iter().zip(since) {
            held.spawn(poll(Arc::clone(&world.server), user, since, hold));
        }
        // By now every sync has arrived and is parked.
        tokio::time::sleep(plan.warm_up).await;
        let parked = Snapshot::of(&world.target.pids);
        tokio::time::sleep(plan.time.mul_f64(0.9)).await;
        let quiet = parked.until(&Snapshot::of(&world.target.pids));
        let mut tally = Tally::default();
        while let Some(one) = held.join_next().await {
            let (outcome, after) = one?;
            tally.count(outcome, after, start.elapsed());
        }
        if tally.done == 0 {
            bail!("no sync of {} was held: {:?}", case.size, tally.failed);
        }
        let mut sample = Sample { generator: share(&me, start), ..Sample::default() };
        if !world.target.pids.is_empty() {
            #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
            let (polls, bytes, cpu_us) = (
                case.size as f64,
                (parked.resident_bytes as f64) - empty.resident_bytes as f64,
                quiet.cpu_ns as f64 / 1000.0,
            );
            sample.figures.insert("resident bytes of each held sync", bytes / polls);
            sample
                .figures
                .insert("CPU µs of each held sync and second", cpu_us / polls / plan.time.as_secs_f64() / 0.9);
        }
        sample.other = Some(tally);
        Ok(sample)
    }
}

/// Holds one sync; one that came back before its time with nothing is repeated by real clients, and is a failure here.
async fn poll(server: Arc<Homeserver>, user: Session, since: String, hold: Duration) -> (Outcome, Duration) {
    let start = Instant::now();
    let ask = Ask::get(sync_path(Some(&since), hold, None), &user.token);
    let answer = server.client.send_within(ask, hold + GRACE).await;
    let after = start.elapsed();
    match Outcome::from(answer) {
        Outcome::Done if after < hold.mul_f64(0.9) => (Outcome::Failed("a sync was not held".to_owned()), after),
        outcome => (outcome, after),
    }
}
