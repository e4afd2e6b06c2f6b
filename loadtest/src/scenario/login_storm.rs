//! Sends while many log in: passwords are expensive on purpose, and must not be so for everybody else.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use async_trait::async_trait;

use super::send::sending;
use super::{Case, Context, Plan, Sample, Scenario, arrivals, share, single};
use crate::check::{Ledger, Reader, verify};
use crate::load::{Arrivals, Outcome, open, operation};
use crate::matrix::login_ask;
use crate::proc::Snapshot;
use crate::world::{Room, World};

/// Sends each second, with and without the storm.
const SENDS: f64 = 100.0;
/// The members of the room.
const MEMBERS: usize = 10;

/// A fresh scenario.
#[must_use]
pub fn make() -> Box<dyn Scenario> {
    Box::new(LoginStorm { room: None })
}

struct LoginStorm {
    room: Option<(Room, Vec<Reader>)>,
}

#[async_trait(?Send)]
impl Scenario for LoginStorm {
    fn cases(&self, plan: &Plan) -> Vec<Case> {
        plan.logins.iter().map(|size| single("sends beside logins", "logins/s", *size)).collect()
    }

    async fn prepare(&mut self, world: &mut World, _case: &Case, context: &Context) -> Result<()> {
        if self.room.is_none() {
            let room = world.room(&format!("room-{MEMBERS}"), MEMBERS, &context.progress).await?;
            let users = world.users(MEMBERS, &context.progress).await?.to_vec();
            let readers = Reader::start(&world.server, &users, &room.id).await?;
            self.room = Some((room, readers));
        }
        Ok(())
    }

    async fn measure(&mut self, world: &mut World, case: &Case, context: &Context, round: u32) -> Result<Sample> {
        let plan = &context.plan;
        let (room, readers) = self.room.as_mut().context("the case was not prepared")?;
        let sender = world.users(1, &context.progress).await?[0].clone();
        let ledger = Ledger::new(&format!("{}-storm-{}-{round}", plan.run, case.size));
        let sends = sending(&world.server, &ledger, &sender, &room.id);
        let (server, user_id) = (Arc::clone(&world.server), sender.user_id.clone());
        let logins = operation(move |_| {
            let (server, ask) = (Arc::clone(&server), login_ask(&user_id));
            async move {
                match ask {
                    Ok(ask) => Outcome::from(server.client.send(ask).await),
                    Err(error) => Outcome::Failed(error.to_string()),
                }
            }
        });
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let storm = Arrivals { rate: case.size as f64, ..arrivals(1.0, plan, round.wrapping_add(1000)) };
        let (me, start) = (Snapshot::of_myself(), Instant::now());
        let quiet = case.size == 0;
        let storming = async { if quiet { Ok(None) } else { open(storm, &logins).await.map(Some) } };
        let (sent, logged_in) = tokio::join!(open(arrivals(SENDS, plan, round), &sends), storming);
        let mut sample = Sample { offered: SENDS, generator: share(&me, start), ..Sample::default() };
        if let Some(tally) = logged_in? {
            #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
            let (refused, p99) =
                ((tally.tried() - tally.done) as f64, tally.latency.value_at_quantile(0.99) as f64 / 1000.0);
            sample.figures.insert("logins/s that succeeded", tally.rate());
            sample.figures.insert("logins/s that were refused or failed", refused / plan.time.as_secs_f64());
            sample.figures.insert("ms of a successful login, p99", p99);
        }
        sample.open = Some(sent?);
        let patience = plan.patience;
        sample.findings =
            Some(verify(&world.server, &room.id, &ledger, readers, patience, plan.check_deliveries_max).await?);
        Ok(sample)
    }
}
