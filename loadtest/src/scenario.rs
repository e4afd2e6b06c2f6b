//! What is measured. A scenario lists its cases, prepares the accounts and rooms of each, and measures one at a time,
//! so that cases of several targets can take turns.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use async_trait::async_trait;
use serde::Serialize;

use crate::check::{Findings, Patience};
use crate::load::{Operation, Tally, closed};
use crate::proc::{Snapshot, Usage};
use crate::progress::Progress;
use crate::world::World;

pub mod incremental;
pub mod send;

/// A scenario by its name: a sentence about it, and how to make one for a target.
pub struct Known {
    /// The name on the command line.
    pub name: &'static str,
    /// What it measures.
    pub about: &'static str,
    /// A fresh one, for one target.
    pub make: fn() -> Box<dyn Scenario>,
}

/// Every scenario there is.
pub const ALL: &[Known] = &[
    Known { name: "send", about: "messages into rooms of growing size, while nobody syncs", make: send::make },
    Known { name: "incremental", about: "syncs of accounts in a growing number of rooms", make: incremental::make },
];

/// Which floor a cost is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FloorOf {
    /// A durable send.
    Send,
    /// A sync with nothing new.
    Sync,
    /// None is known.
    Nothing,
}

/// One thing that is measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Case {
    /// Cases of one series differ in their size only: a growth is fitted through them.
    pub series: String,
    /// What the size counts.
    pub variable: &'static str,
    /// The size.
    pub size: u64,
    /// Operations at a time.
    pub in_flight: usize,
    /// What the cost is compared with.
    pub floor: FloorOf,
}

/// How much is measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Sizes of rooms, in members.
    pub members: Vec<u64>,
    /// Sizes of accounts, in rooms.
    pub rooms: Vec<u64>,
    /// Operations at a time.
    pub in_flight: Vec<usize>,
    /// How often each case is measured; the median counts.
    pub rounds: u32,
    /// How long each phase of a case is measured.
    pub time: Duration,
    /// What is done before each phase, and not counted.
    pub warm_up: Duration,
    /// Requests of one phase.
    pub requests_max: u64,
    /// Whether latency is measured, with open arrivals, beside cost and capacity.
    pub open: bool,
    /// Open arrivals come at this part of the capacity that was found.
    pub open_load: f64,
    /// The most open arrivals each second: the generator has limits of its own.
    pub open_rate_max: f64,
    /// Operations under way at a time with open arrivals.
    pub open_in_flight_max: usize,
    /// Members of each room at which arrivals are checked.
    pub check_members: usize,
    /// Events that one check may read; above it, fewer members are checked.
    pub check_deliveries_max: usize,
    /// How long arrivals may take.
    pub patience: Patience,
    /// The seed of all that is random.
    pub seed: u64,
    /// What distinguishes this run's events and names from those of any other.
    pub run: String,
}

/// What a scenario needs besides the world.
pub struct Context {
    /// How much is measured.
    pub plan: Plan,
    /// Where it says what it does.
    pub progress: Progress,
}

/// One measurement of one case.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// Operations at full speed: their number is the capacity, their latency is not published.
    pub capacity: Option<Tally>,
    /// What the server used for how many operations.
    pub cost: Option<(u64, Usage)>,
    /// Open arrivals: latency as users see it.
    pub open: Option<Tally>,
    /// Arrivals each second that were offered.
    pub offered: f64,
    /// What was wrong with what arrived.
    pub findings: Option<Findings>,
    /// Other figures, by name with unit.
    pub figures: BTreeMap<&'static str, f64>,
    /// The generator's CPU time as a part of one core, while it measured.
    pub generator: f64,
}

/// Something that can be measured on any homeserver.
#[async_trait(?Send)]
pub trait Scenario {
    /// What there is to measure.
    fn cases(&self, plan: &Plan) -> Vec<Case>;

    /// Makes the accounts and rooms of a case; not measured.
    ///
    /// # Errors
    /// When the server refuses.
    async fn prepare(&mut self, world: &mut World, case: &Case, context: &Context) -> Result<()>;

    /// Measures a case once.
    ///
    /// # Errors
    /// When the case cannot be measured at all; operations that fail are counted instead.
    async fn measure(&mut self, world: &mut World, case: &Case, context: &Context, round: u32) -> Result<Sample>;
}

/// Does an operation at full speed, first uncounted, then counted with what the server used meanwhile.
pub async fn cost_of(pids: &[u32], in_flight: usize, plan: &Plan, work: &Operation) -> Sample {
    closed(in_flight, plan.requests_max, plan.warm_up, work).await;
    let (server, me, start) = (Snapshot::of(pids), Snapshot::of_myself(), Instant::now());
    let tally = closed(in_flight, plan.requests_max, plan.time, work).await;
    let usage = server.until(&Snapshot::of(pids));
    let generator = share(&me, start);
    let cost = (!pids.is_empty() && tally.done > 0).then_some((tally.done, usage));
    Sample { capacity: Some(tally), cost, generator, ..Sample::default() }
}

/// The part of one core that this process used since a moment.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "a share")]
pub fn share(before: &Snapshot, start: Instant) -> f64 {
    let used = before.until(&Snapshot::of_myself()).cpu_ns;
    used as f64 / start.elapsed().as_nanos().max(1) as f64
}
