//! The first sync of a device: everything about every room of its account.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_trait::async_trait;
use serde_json::json;

use super::{Case, Context, FloorOf, Plan, Sample, Scenario, asking, cost_of};
use crate::client::Ask;
use crate::matrix::sync_path;
use crate::world::{Account, World};

/// Events of each room, as Element Web asks for.
const TIMELINE: usize = 20;

/// A fresh scenario.
#[must_use]
pub fn make() -> Box<dyn Scenario> {
    Box::new(Initial::default())
}

#[derive(Default)]
struct Initial {
    accounts: BTreeMap<u64, Account>,
}

#[async_trait(?Send)]
impl Scenario for Initial {
    fn cases(&self, plan: &Plan) -> Vec<Case> {
        let case = |size: &u64| Case {
            series: "initial sync".to_owned(),
            variable: "rooms",
            size: *size,
            in_flight: 1,
            floor: FloorOf::Nothing,
        };
        plan.rooms.iter().map(case).collect()
    }

    async fn prepare(&mut self, world: &mut World, case: &Case, context: &Context) -> Result<()> {
        let rooms = usize::try_from(case.size)?;
        let account = world.account(&format!("in-{rooms}-rooms"), rooms, &context.progress).await?;
        self.accounts.insert(case.size, account);
        Ok(())
    }

    async fn measure(&mut self, world: &mut World, case: &Case, context: &Context, _round: u32) -> Result<Sample> {
        let account = self.accounts.get(&case.size).context("the case was not prepared")?;
        let filter = json!({ "room": { "timeline": { "limit": TIMELINE }, "state": { "lazy_load_members": true } } });
        let (path, token) = (sync_path(None, Duration::ZERO, Some(&filter)), account.session.token.clone());
        let answer = world.server.expect("sync", Ask::get(path.clone(), &token)).await?;
        let rooms = answer["rooms"]["join"].as_object().map_or(0, serde_json::Map::len);
        ensure!(rooms == account.rooms.len(), "an initial sync holds {rooms} of {} rooms", account.rooms.len());
        let received = world.server.client.received_bytes();
        let work = asking(&world.server, move |_| Ask::get(path.clone(), &token));
        // An initial sync is rare: one at a time, its latency is that of a device that has the server to itself.
        let plan = Plan { warm_up: Duration::ZERO, ..context.plan.clone() };
        let mut sample = cost_of(&world.target, 1, &plan, &work).await?;
        let tally = sample.capacity.as_ref();
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
        if let Some(tally) = tally.filter(|tally| tally.done > 0) {
            let bytes = world.server.client.received_bytes() - received;
            let ms = tally.latency.value_at_quantile(0.5) as f64 / 1000.0;
            sample.figures.insert("bytes of an initial sync", bytes as f64 / tally.done as f64);
            sample.figures.insert("ms of an initial sync, alone, median", ms);
        }
        Ok(sample)
    }
}
