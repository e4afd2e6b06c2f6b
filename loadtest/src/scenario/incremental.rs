//! Syncs of accounts in a growing number of rooms, in which nothing or little happened since the last one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use serde_json::{Value, json};

use super::send::{arrivals, offered};
use super::{Case, Context, FloorOf, Plan, Sample, Scenario, cost_of};
use crate::client::Ask;
use crate::load::{Outcome, open, operation};
use crate::matrix::sync_path;
use crate::world::{Account, World};

/// Syncs at a time.
const IN_FLIGHT: usize = 4;

/// A fresh scenario.
#[must_use]
pub fn make() -> Box<dyn Scenario> {
    Box::new(Incremental::default())
}

#[derive(Default)]
struct Incremental {
    accounts: BTreeMap<u64, Account>,
}

#[async_trait(?Send)]
impl Scenario for Incremental {
    fn cases(&self, plan: &Plan) -> Vec<Case> {
        let case = |size: &u64| Case {
            series: "sync, nothing new".to_owned(),
            variable: "rooms",
            size: *size,
            in_flight: IN_FLIGHT,
            floor: FloorOf::Sync,
        };
        plan.rooms.iter().map(case).collect()
    }

    async fn prepare(&mut self, world: &mut World, case: &Case, context: &Context) -> Result<()> {
        let rooms = usize::try_from(case.size)?;
        let account = world.account(&format!("in-{rooms}-rooms"), rooms, &context.progress).await?;
        self.accounts.insert(case.size, account);
        Ok(())
    }

    async fn measure(&mut self, world: &mut World, case: &Case, context: &Context, round: u32) -> Result<Sample> {
        let plan = &context.plan;
        let account = self.accounts.get(&case.size).context("the case was not prepared")?.clone();
        let since = world.server.position(&account.session, Some(&no_rooms())).await?;
        let path = sync_path(Some(&since), Duration::ZERO, None);
        let (server, token) = (Arc::clone(&world.server), account.session.token);
        let work = operation(move |_| {
            let (server, ask) = (Arc::clone(&server), Ask::get(path.clone(), &token));
            async move { Outcome::from(server.client.send(ask).await) }
        });
        let mut sample = cost_of(&world.target.pids, case.in_flight, plan, &work).await;
        if let (true, Some(capacity)) = (plan.open, &sample.capacity) {
            sample.offered = offered(capacity.rate(), plan);
            let seed = plan.seed.wrapping_add(u64::from(round));
            sample.open = Some(open(arrivals(sample.offered, plan, seed), &work).await?);
        }
        Ok(sample)
    }
}

/// A filter that leaves everything out: the quickest way to a token.
fn no_rooms() -> Value {
    let nothing = json!({ "not_types": ["*"] });
    json!({ "presence": nothing, "account_data": nothing, "room": { "rooms": [] } })
}
