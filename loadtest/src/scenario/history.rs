//! Pages of a long room, from the newest backwards: the last page must cost what the first does.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_trait::async_trait;

use super::send::sending;
use super::{Case, Context, FloorOf, Plan, Sample, Scenario, add_open, asking, cost_of};
use crate::check::Ledger;
use crate::client::Ask;
use crate::load::closed;
use crate::matrix::{Session, encode};
use crate::world::World;

/// Events of one page.
const PAGE: u64 = 50;
/// Readers at a time.
const IN_FLIGHT: usize = 4;
/// Sends at a time while the room is filled.
const FILLING: usize = 32;
/// Sends between two words about progress.
const FILL_STEP: u64 = 1000;
const ROOM: &str = "history";

/// A fresh scenario.
#[must_use]
pub fn make() -> Box<dyn Scenario> {
    Box::new(History::default())
}

#[derive(Default)]
struct History {
    /// The path of each page and its reader.
    pages: BTreeMap<u64, (String, Session)>,
}

#[async_trait(?Send)]
impl Scenario for History {
    fn cases(&self, plan: &Plan) -> Vec<Case> {
        let case = |size: &u64| Case {
            series: format!("history, {PAGE} events"),
            variable: "page",
            size: *size,
            in_flight: IN_FLIGHT,
            floor: FloorOf::Sync,
        };
        plan.pages.iter().map(case).collect()
    }

    async fn prepare(&mut self, world: &mut World, case: &Case, context: &Context) -> Result<()> {
        let furthest = context.plan.pages.iter().copied().max().unwrap_or(1);
        let room = world.room(ROOM, 1, &context.progress).await?;
        let reader = world.users(1, &context.progress).await?[0].clone();
        let wanted = furthest * PAGE;
        let have = world.mark(ROOM);
        if have < wanted {
            fill(world, context, &reader, &room.id, have, wanted).await?;
        }
        let mut from = None;
        for _ in 1..case.size {
            let ask = Ask::get(path(&room.id, from.as_deref()), &reader.token);
            let page = world.server.expect("read history", ask).await?;
            let end = page["end"].as_str().with_context(|| format!("history ends before page {}", case.size))?;
            from = Some(end.to_owned());
        }
        self.pages.insert(case.size, (path(&room.id, from.as_deref()), reader));
        Ok(())
    }

    async fn measure(&mut self, world: &mut World, case: &Case, context: &Context, round: u32) -> Result<Sample> {
        let (path, reader) = self.pages.get(&case.size).context("the case was not prepared")?.clone();
        let page = world.server.expect("read history", Ask::get(path.clone(), &reader.token)).await?;
        let events = page["chunk"].as_array().map_or(0, Vec::len) as u64;
        ensure!(events == PAGE, "page {} holds {events} events instead of {PAGE}", case.size);
        let work = asking(&world.server, move |_| Ask::get(path.clone(), &reader.token));
        let mut sample = cost_of(&world.target, IN_FLIGHT, &context.plan, &work).await?;
        add_open(&mut sample, &context.plan, round, &work).await?;
        Ok(sample)
    }
}

async fn fill(
    world: &mut World,
    context: &Context,
    sender: &Session,
    room: &str,
    have: u64,
    wanted: u64,
) -> Result<()> {
    let parts = (wanted - have).div_ceil(FILL_STEP);
    let step = context.progress.step(&format!("{}: filling a long room", world.target.name), usize::try_from(parts)?);
    let ledger = Ledger::new(&format!("{}-fill-{have}", context.plan.run));
    let work = sending(&world.server, &ledger, sender, room);
    for part in 0..parts {
        let tally = closed(FILLING, FILL_STEP, Duration::MAX, &work).await;
        ensure!(tally.done == FILL_STEP, "the long room could not be filled: {:?}", tally.failed);
        world.set_mark(ROOM, have + (part + 1) * FILL_STEP)?;
        step.tick();
    }
    Ok(())
}

/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidmessages>
fn path(room: &str, from: Option<&str>) -> String {
    let from = from.map_or_else(String::new, |from| format!("&from={}", encode(from)));
    format!("/_matrix/client/v3/rooms/{}/messages?dir=b&limit={PAGE}{from}", encode(room))
}
