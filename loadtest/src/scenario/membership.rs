//! Joins of local users into rooms of growing size.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use async_trait::async_trait;

use super::{Case, Context, FloorOf, Plan, Sample, Scenario, asking, share};
use crate::client::Ask;
use crate::load::{Tally, closed};
use crate::matrix::{Session, encode, join_ask};
use crate::proc::{Snapshot, Usage};
use crate::world::{Room, World};

/// How many join, and leave again before the next do.
const JOINING: usize = 50;
/// Joins at a time.
const IN_FLIGHT: usize = 8;

/// A fresh scenario.
#[must_use]
pub fn make() -> Box<dyn Scenario> {
    Box::new(Membership::default())
}

#[derive(Default)]
struct Membership {
    rooms: BTreeMap<u64, (Room, Arc<Vec<Session>>)>,
}

#[async_trait(?Send)]
impl Scenario for Membership {
    fn cases(&self, plan: &Plan) -> Vec<Case> {
        let case = |size: &u64| Case {
            series: "join".to_owned(),
            variable: "members",
            size: *size,
            in_flight: IN_FLIGHT,
            floor: FloorOf::Send,
        };
        plan.members.iter().map(case).collect()
    }

    async fn prepare(&mut self, world: &mut World, case: &Case, context: &Context) -> Result<()> {
        let members = usize::try_from(case.size)?;
        let room = world.room(&format!("room-{members}"), members, &context.progress).await?;
        let joining = world.users(members + JOINING, &context.progress).await?[members..].to_vec();
        self.rooms.insert(case.size, (room, Arc::new(joining)));
        Ok(())
    }

    async fn measure(&mut self, world: &mut World, case: &Case, context: &Context, _round: u32) -> Result<Sample> {
        let plan = &context.plan;
        let (room, joining) = self.rooms.get(&case.size).context("the case was not prepared")?;
        let leave_path = format!("/_matrix/client/v3/rooms/{}/leave", encode(&room.id));
        let (room_id, users) = (room.id.clone(), Arc::clone(joining));
        let join = asking(&world.server, move |number| join_ask(&users[at(number)], &room_id));
        let users = Arc::clone(joining);
        let leave = asking(&world.server, move |number| Ask::post(leave_path.clone(), &users[at(number)].token, "{}"));
        let (mut tally, mut usage) = (Tally::default(), Usage::default());
        let (me, start) = (Snapshot::of_myself(), Instant::now());
        while start.elapsed() < plan.time {
            let before = Snapshot::of(&world.target.pids);
            tally.append(&closed(IN_FLIGHT, JOINING as u64, Duration::MAX, &join).await);
            usage.add(&before.until(&Snapshot::of(&world.target.pids)));
            let left = closed(IN_FLIGHT, JOINING as u64, Duration::MAX, &leave).await;
            ensure!(left.done == JOINING as u64, "members could not leave again: {:?}", left.failed);
        }
        let cost = (!world.target.pids.is_empty() && tally.done > 0).then_some((tally.done, usage));
        Ok(Sample { capacity: Some(tally), cost, generator: share(&me, start), ..Sample::default() })
    }
}

/// The place of an operation's user; there are never more operations than users.
fn at(number: u64) -> usize {
    usize::try_from(number).unwrap_or(0) % JOINING
}
