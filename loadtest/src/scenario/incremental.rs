//! Syncs of accounts in a growing number of rooms, in which nothing or little happened since the last one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use async_trait::async_trait;
use futures::stream::{self, StreamExt, TryStreamExt};
use serde_json::{Value, json};

use super::{Case, Context, FloorOf, Plan, Sample, Scenario, add_open, asking, cost_of};
use crate::client::Ask;
use crate::matrix::{encode, send_path, sync_path};
use crate::world::{Account, World};

/// Syncs at a time.
const IN_FLIGHT: usize = 4;
/// Events sent at a time while a case is set up.
const SENDS_AT_ONCE: usize = 16;
/// Between two looks whether the events of a case have all arrived.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const NOTHING_NEW: &str = "sync, nothing new";
const ONE_CHANGED: &str = "sync, one room changed";

/// A fresh scenario.
#[must_use]
pub fn make() -> Box<dyn Scenario> {
    Box::new(Incremental::default())
}

#[derive(Default)]
struct Incremental {
    accounts: BTreeMap<usize, Account>,
}

/// The account of a case: in as many rooms as it says, or in the most there are when it counts changed rooms.
fn rooms_of(case: &Case, plan: &Plan) -> Result<usize> {
    let most = plan.rooms.iter().copied().max().unwrap_or(1);
    Ok(usize::try_from(if case.variable == "rooms" { case.size } else { most })?)
}

#[async_trait(?Send)]
impl Scenario for Incremental {
    fn cases(&self, plan: &Plan) -> Vec<Case> {
        let case = |series: String, variable, floor, size: &u64| Case {
            series,
            variable,
            size: *size,
            in_flight: IN_FLIGHT,
            floor,
        };
        let most = plan.rooms.iter().copied().max().unwrap_or(1);
        let nothing = plan.rooms.iter().map(|size| case(NOTHING_NEW.to_owned(), "rooms", FloorOf::Sync, size));
        let one = plan.rooms.iter().map(|size| case(ONE_CHANGED.to_owned(), "rooms", FloorOf::Nothing, size));
        let changed = plan.changed.iter().filter(|changed| **changed <= most);
        let series = format!("sync, changes in some of {most} rooms");
        let changed = changed.map(|size| case(series.clone(), "changed rooms", FloorOf::Nothing, size));
        nothing.chain(one).chain(changed).collect()
    }

    async fn prepare(&mut self, world: &mut World, case: &Case, context: &Context) -> Result<()> {
        let rooms = rooms_of(case, &context.plan)?;
        let account = world.account(&format!("in-{rooms}-rooms"), rooms, &context.progress).await?;
        self.accounts.insert(rooms, account);
        Ok(())
    }

    async fn measure(&mut self, world: &mut World, case: &Case, context: &Context, round: u32) -> Result<Sample> {
        let plan = &context.plan;
        let account = self.accounts.get(&rooms_of(case, plan)?).context("the case was not prepared")?.clone();
        let token = account.session.token.clone();
        let since = world.server.position(&account.session, Some(&no_rooms())).await?;
        let path = sync_path(Some(&since), Duration::ZERO, None);
        let changed = match case.series.as_str() {
            NOTHING_NEW => 0,
            ONE_CHANGED => 1,
            _ => usize::try_from(case.size)?,
        };
        let mark = encode(&format!("{} {} {} {round}", plan.run, case.series, case.size));
        stream::iter(account.rooms.iter().take(changed))
            .map(|room| {
                let path = send_path(room, &mark);
                let ask = Ask::put(path, &token, r#"{"msgtype":"m.text","body":"something happened here"}"#);
                world.server.expect("send", ask)
            })
            .buffer_unordered(SENDS_AT_ONCE)
            .try_collect::<Vec<Value>>()
            .await?;
        let begun = Instant::now();
        loop {
            let answer = world.server.expect("sync", Ask::get(path.clone(), &token)).await?;
            let rooms = answer["rooms"]["join"].as_object().map_or(0, serde_json::Map::len);
            if rooms == changed {
                break;
            }
            let patient = rooms < changed && begun.elapsed() < plan.patience.lost;
            ensure!(patient, "a sync after events in {changed} rooms holds {rooms}: it cannot be measured");
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let work = asking(&world.server, move |_| Ask::get(path.clone(), &token));
        let mut sample = cost_of(&world.target, case.in_flight, plan, &work).await?;
        add_open(&mut sample, plan, round, &work).await?;
        Ok(sample)
    }
}

/// A filter that leaves everything out: the quickest way to a token.
fn no_rooms() -> Value {
    let nothing = json!({ "not_types": ["*"] });
    json!({ "presence": nothing, "account_data": nothing, "room": { "rooms": [] } })
}
