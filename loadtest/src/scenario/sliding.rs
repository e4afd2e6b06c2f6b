//! The first window of a simplified sliding sync (MSC4186): what a new device shows first must not depend on how many
//! rooms its account is in. Measured only where the server says that it has it.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use async_trait::async_trait;
use serde_json::json;

use super::{Case, Context, FloorOf, Plan, Sample, Scenario, add_open, asking, cost_of};
use crate::client::Ask;
use crate::world::{Account, World};

/// What a server says that has it.
const FEATURE: &str = "org.matrix.simplified_msc3575";
const PATH: &str = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?timeout=0";
/// Rooms of the window.
const WINDOW: u64 = 20;
/// Devices at a time.
const IN_FLIGHT: usize = 2;

/// A fresh scenario.
#[must_use]
pub fn make() -> Box<dyn Scenario> {
    Box::new(Sliding::default())
}

#[derive(Default)]
struct Sliding {
    accounts: BTreeMap<u64, Account>,
}

#[async_trait(?Send)]
impl Scenario for Sliding {
    fn cases(&self, plan: &Plan) -> Vec<Case> {
        let case = |size: &u64| Case {
            series: format!("sliding sync, first {WINDOW} rooms"),
            variable: "rooms",
            size: *size,
            in_flight: IN_FLIGHT,
            floor: FloorOf::Nothing,
        };
        plan.rooms.iter().map(case).collect()
    }

    async fn lacks(&self, world: &World) -> Result<Option<String>> {
        let versions = world.server.versions().await?;
        let has = versions["unstable_features"][FEATURE].as_bool() == Some(true);
        Ok((!has).then(|| format!("the server does not offer {FEATURE}")))
    }

    async fn prepare(&mut self, world: &mut World, case: &Case, context: &Context) -> Result<()> {
        let rooms = usize::try_from(case.size)?;
        let account = world.account(&format!("in-{rooms}-rooms"), rooms, &context.progress).await?;
        self.accounts.insert(case.size, account);
        Ok(())
    }

    async fn measure(&mut self, world: &mut World, case: &Case, context: &Context, round: u32) -> Result<Sample> {
        let account = self.accounts.get(&case.size).context("the case was not prepared")?;
        let token = account.session.token.clone();
        let state = json!([["m.room.create", ""], ["m.room.name", ""], ["m.room.member", "$LAZY"]]);
        let list = json!({ "ranges": [[0, WINDOW - 1]], "timeline_limit": 20, "required_state": state });
        let body = json!({ "lists": { "all": list } }).to_string();
        let ask = Ask::post(PATH, &token, body);
        let answer = world.server.expect("sync", ask.clone()).await?;
        let rooms = answer["rooms"].as_object().map_or(0, serde_json::Map::len) as u64;
        ensure!(rooms == WINDOW.min(case.size), "a window of {WINDOW} of {} rooms holds {rooms}", case.size);
        let work = asking(&world.server, move |_| ask.clone());
        let mut sample = cost_of(&world.target, IN_FLIGHT, &context.plan, &work).await?;
        add_open(&mut sample, &context.plan, round, &work).await?;
        Ok(sample)
    }
}
