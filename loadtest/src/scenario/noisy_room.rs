//! Sends into a quiet room while another room is noisy: a room must not pay for its neighbour.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use async_trait::async_trait;

use super::send::sending;
use super::{Case, Context, Plan, Sample, Scenario, arrivals, share, single};
use crate::check::{Ledger, Reader, verify};
use crate::load::{closed, open};
use crate::proc::Snapshot;
use crate::world::{Room, World};

/// Sends each second into the quiet room.
const QUIET: f64 = 50.0;
/// Senders at a time in the noisy room.
const NOISE: [u64; 3] = [0, 8, 64];
/// The members of the noisy room.
const NOISY_MEMBERS: usize = 100;
/// The members of the quiet room.
const QUIET_MEMBERS: usize = 10;

/// A fresh scenario.
#[must_use]
pub fn make() -> Box<dyn Scenario> {
    Box::new(NoisyRoom { rooms: None })
}

struct NoisyRoom {
    rooms: Option<(Room, Vec<Reader>, Room)>,
}

#[async_trait(?Send)]
impl Scenario for NoisyRoom {
    fn cases(&self, _plan: &Plan) -> Vec<Case> {
        NOISE.iter().map(|size| single("sends beside a noisy room", "noisy senders", *size)).collect()
    }

    async fn prepare(&mut self, world: &mut World, _case: &Case, context: &Context) -> Result<()> {
        if self.rooms.is_none() {
            let quiet = world.room(&format!("room-{QUIET_MEMBERS}"), QUIET_MEMBERS, &context.progress).await?;
            let noisy = world.room(&format!("room-{NOISY_MEMBERS}"), NOISY_MEMBERS, &context.progress).await?;
            let users = world.users(QUIET_MEMBERS, &context.progress).await?.to_vec();
            let readers = Reader::start(&world.server, &users, &quiet.id).await?;
            self.rooms = Some((quiet, readers, noisy));
        }
        Ok(())
    }

    async fn measure(&mut self, world: &mut World, case: &Case, context: &Context, round: u32) -> Result<Sample> {
        let plan = &context.plan;
        let (quiet, readers, noisy) = self.rooms.as_mut().context("the case was not prepared")?;
        let users = world.users(2, &context.progress).await?.to_vec();
        let mark = format!("{}-noise-{}-{round}", plan.run, case.size);
        let ledger = Ledger::new(&mark);
        let quiet_sends = sending(&world.server, &ledger, &users[0], &quiet.id);
        let noisy_sends = sending(&world.server, &Ledger::new(&format!("{mark}-noisy")), &users[1], &noisy.id);
        let noise: usize = usize::try_from(case.size)?;
        let both: Duration = plan.warm_up + plan.time;
        let (me, start) = (Snapshot::of_myself(), Instant::now());
        let (sent, made) =
            tokio::join!(open(arrivals(QUIET, plan, round), &quiet_sends), closed(noise, u64::MAX, both, &noisy_sends));
        let mut sample =
            Sample { offered: QUIET, open: Some(sent?), generator: share(&me, start), ..Sample::default() };
        sample.figures.insert("sends/s in the noisy room", made.rate());
        sample.findings =
            Some(verify(&world.server, &quiet.id, &ledger, readers, plan.patience, plan.check_deliveries_max).await?);
        Ok(sample)
    }
}
