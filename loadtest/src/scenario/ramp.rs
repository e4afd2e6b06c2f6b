//! Sends at doubling rates until they take too long: the rate that a server sustains.

use std::time::Instant;

use anyhow::{Context as _, Result};
use async_trait::async_trait;

use super::send::sending;
use super::{Case, Context, Plan, Sample, Scenario, arrivals, share, single};
use crate::check::{Ledger, Reader, verify};
use crate::load::{Tally, open};
use crate::proc::Snapshot;
use crate::run::Latency;
use crate::world::{Room, World};

/// The first rate, in sends each second.
const FIRST: f64 = 50.0;
/// From one rate to the next.
const FACTOR: f64 = std::f64::consts::SQRT_2;
/// A rate is sustained while the 99th percentile is below this, in ms.
const P99_MS_MAX: f64 = 250.0;
/// The members of the room.
const MEMBERS: usize = 10;

/// A fresh scenario.
#[must_use]
pub fn make() -> Box<dyn Scenario> {
    Box::new(Ramp { room: None })
}

struct Ramp {
    room: Option<(Room, Vec<Reader>)>,
}

#[async_trait(?Send)]
impl Scenario for Ramp {
    fn cases(&self, _plan: &Plan) -> Vec<Case> {
        vec![single("ramp of sends", "members", MEMBERS as u64)]
    }

    async fn prepare(&mut self, world: &mut World, _case: &Case, context: &Context) -> Result<()> {
        let room = world.room(&format!("room-{MEMBERS}"), MEMBERS, &context.progress).await?;
        let users = world.users(MEMBERS, &context.progress).await?.to_vec();
        let readers = Reader::start(&world.server, &users, &room.id).await?;
        self.room = Some((room, readers));
        Ok(())
    }

    async fn measure(&mut self, world: &mut World, _case: &Case, context: &Context, round: u32) -> Result<Sample> {
        let plan = &context.plan;
        let (room, readers) = self.room.as_mut().context("the case was not prepared")?;
        let sender = world.users(1, &context.progress).await?[0].clone();
        let ledger = Ledger::new(&format!("{}-ramp-{round}", plan.run));
        let work = sending(&world.server, &ledger, &sender, &room.id);
        let (me, start) = (Snapshot::of_myself(), Instant::now());
        let (mut rate, mut sustained): (f64, Option<(f64, Tally)>) = (FIRST, None);
        // Above the generator's own limit nothing is said about the server.
        while rate <= plan.open_rate_max {
            let tally = open(arrivals(rate, plan, round), &work).await?;
            let bearable = tally.tried() == tally.done && Latency::of(&tally).is_some_and(|it| it.p99 <= P99_MS_MAX);
            if !bearable {
                sustained.get_or_insert((0.0, tally));
                break;
            }
            sustained = Some((rate, tally));
            rate *= FACTOR;
        }
        let (sustained, tally) = sustained.context("--rate-max is below the first rate of the ramp")?;
        let mut sample =
            Sample { offered: sustained, open: Some(tally), generator: share(&me, start), ..Sample::default() };
        sample.figures.insert("sends/s sustained with p99 below 250 ms", sustained);
        sample.findings =
            Some(verify(&world.server, &room.id, &ledger, readers, plan.patience, plan.check_deliveries_max).await?);
        Ok(sample)
    }
}
