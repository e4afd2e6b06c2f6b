//! What is measured. A scenario lists its cases, prepares the accounts and rooms of each, and measures one at a time,
//! so that cases of several targets can take turns.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use async_trait::async_trait;
use serde::Serialize;

use crate::check::{Findings, Patience};
use crate::client::Ask;
use crate::load::{Arrivals, Operation, Outcome, Tally, closed, open, operation};
use crate::matrix::Homeserver;
use crate::metrics::Counters;
use crate::proc::{Snapshot, Usage};
use crate::progress::Progress;
use crate::target::Target;
use crate::world::World;

pub mod e2ee;
pub mod history;
pub mod idle;
pub mod incremental;
pub mod initial;
pub mod login_storm;
pub mod media;
pub mod membership;
pub mod mixed;
pub mod noisy_room;
pub mod ramp;
pub mod send;
pub mod sliding;
pub mod wake;

/// A scenario by its name: a sentence about it, and how to make one for a target.
pub struct Known {
    /// The name on the command line.
    pub name: &'static str,
    /// What it measures.
    pub about: &'static str,
    /// A fresh one, for one target.
    pub make: fn() -> Box<dyn Scenario>,
}

const fn known(name: &'static str, about: &'static str, make: fn() -> Box<dyn Scenario>) -> Known {
    Known { name, about, make }
}

/// Every scenario there is.
pub const ALL: &[Known] = &[
    known("send", "messages into rooms of growing size, while nobody syncs", send::make),
    known("wake", "one event wakes everybody who waits in a room", wake::make),
    known("idle", "held syncs in which nothing happens: memory and CPU of each", idle::make),
    known("cold-start", "the first sync of accounts in a growing number of rooms", initial::make),
    known("incremental", "syncs after nothing, or events in some rooms, happened", incremental::make),
    known("membership", "joins into rooms of growing size", membership::make),
    known("history", "pages of a long room, from the newest backwards", history::make),
    known("login-storm", "sends while many log in", login_storm::make),
    known("ramp", "sends at doubling rates until the 99th percentile passes 250 ms", ramp::make),
    known("e2ee", "one-time keys uploaded and claimed, messages to devices", e2ee::make),
    known("media", "uploads and downloads of growing size", media::make),
    known("noisy-room", "sends into a quiet room while another room is noisy", noisy_room::make),
    known("mixed-day", "what online devices do all day, in its proportions", mixed::make),
    known("soak", "the same for a long time: growth of memory, drift of latency", mixed::make_soak),
    known("sliding-sync-first-paint", "the first window of a sliding sync, where there is one", sliding::make),
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
    /// Members that wait for one event.
    pub waiters: Vec<u64>,
    /// Syncs that are held while nothing happens.
    pub polls: Vec<u64>,
    /// Rooms in which something happened since the last sync.
    pub changed: Vec<u64>,
    /// Pages of history, counted from the newest.
    pub pages: Vec<u64>,
    /// Logins each second that come beside sends.
    pub logins: Vec<u64>,
    /// Devices of a day's mix.
    pub devices: Vec<u64>,
    /// Sizes of uploads in bytes.
    pub media: Vec<u64>,
    /// How long the soak takes.
    pub soak: Duration,
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

impl Default for Plan {
    fn default() -> Self {
        Self {
            members: vec![1, 10, 100, 1000],
            rooms: vec![10, 100, 1000],
            in_flight: vec![1, 10, 64],
            waiters: vec![10, 100, 500],
            polls: vec![100, 1000],
            changed: vec![1, 10, 100],
            pages: vec![1, 10, 100],
            logins: vec![0, 50, 500],
            devices: vec![100, 1000],
            media: vec![1_000, 100_000, 1_000_000],
            soak: Duration::from_secs(600),
            rounds: 3,
            time: Duration::from_secs(5),
            warm_up: Duration::from_secs(1),
            requests_max: 20_000,
            open: true,
            open_load: 0.5,
            open_rate_max: 5000.0,
            open_in_flight_max: 10_000,
            check_members: 10_000,
            check_deliveries_max: 200_000,
            patience: Patience::default(),
            seed: 1,
            run: "run".to_owned(),
        }
    }
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
    /// Operations whose number and failures count, but neither their rate nor their latency.
    pub other: Option<Tally>,
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
    /// What the server counted itself, for each operation, by the names of its metrics.
    pub counters: BTreeMap<String, f64>,
    /// The generator's CPU time as a part of one core, while it measured.
    pub generator: f64,
}

/// Something that can be measured on any homeserver.
#[async_trait(?Send)]
pub trait Scenario {
    /// What there is to measure.
    fn cases(&self, plan: &Plan) -> Vec<Case>;

    /// Why a target cannot be measured, if it lacks what is measured.
    ///
    /// # Errors
    /// When the target does not answer.
    async fn lacks(&self, _world: &World) -> Result<Option<String>> {
        Ok(None)
    }

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

/// Adds open arrivals of an operation to a sample that knows the capacity.
///
/// # Errors
/// When the generator cannot start.
pub async fn add_open(sample: &mut Sample, plan: &Plan, round: u32, work: &Operation) -> Result<()> {
    let (true, Some(capacity)) = (plan.open, &sample.capacity) else { return Ok(()) };
    sample.offered = offered(capacity.rate(), plan);
    sample.open = Some(open(arrivals(sample.offered, plan, round), work).await?);
    Ok(())
}

/// The rate of open arrivals for a capacity, so that no phase has more requests than allowed.
fn offered(capacity: f64, plan: &Plan) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let most = plan.requests_max as f64 / plan.time.as_secs_f64().max(1e-3);
    (capacity * plan.open_load).min(most).min(plan.open_rate_max).max(1.0)
}

/// Open arrivals at a rate, for the time of the plan; each round has times of its own.
#[must_use]
pub fn arrivals(rate: f64, plan: &Plan, round: u32) -> Arrivals {
    Arrivals {
        rate,
        warm_up: plan.warm_up,
        counted: plan.time,
        in_flight_max: plan.open_in_flight_max,
        seed: plan.seed.wrapping_add(u64::from(round)),
    }
}

/// An operation that sends what `ask` gives for each number, and expects 200.
pub fn asking(server: &Arc<Homeserver>, ask: impl Fn(u64) -> Ask + Send + Sync + 'static) -> Operation {
    let server = Arc::clone(server);
    operation(move |number| {
        let (server, ask) = (Arc::clone(&server), ask(number));
        async move { Outcome::from(server.client.send(ask).await) }
    })
}

/// A case that is no part of a law.
#[must_use]
pub fn single(series: &str, variable: &'static str, size: u64) -> Case {
    Case { series: series.to_owned(), variable, size, in_flight: 1, floor: FloorOf::Nothing }
}

/// Does an operation at full speed, first uncounted, then counted with what the server used and counted meanwhile.
///
/// # Errors
/// When the server's metrics cannot be read.
pub async fn cost_of(target: &Target, in_flight: usize, plan: &Plan, work: &Operation) -> Result<Sample> {
    closed(in_flight, plan.requests_max, plan.warm_up, work).await;
    let counted = Counters::read(&target.metrics).await?;
    let (server, me, start) = (Snapshot::of(&target.pids), Snapshot::of_myself(), Instant::now());
    let tally = closed(in_flight, plan.requests_max, plan.time, work).await;
    let mut usage = server.until(&Snapshot::of(&target.pids));
    let generator = share(&me, start);
    let counted = counted.until(&Counters::read(&target.metrics).await?);
    let cpu_ns = counted.cpu_ns().filter(|_| target.pids.is_empty());
    usage.cpu_ns = cpu_ns.unwrap_or(usage.cpu_ns);
    let is_known = !target.pids.is_empty() || cpu_ns.is_some();
    let cost = (is_known && tally.done > 0).then_some((tally.done, usage));
    let counters = counted.for_each_of(tally.done);
    Ok(Sample { capacity: Some(tally), cost, counters, generator, ..Sample::default() })
}

/// The part of one core that this process used since a moment.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "a share")]
pub fn share(before: &Snapshot, start: Instant) -> f64 {
    let used = before.until(&Snapshot::of_myself()).cpu_ns;
    used as f64 / start.elapsed().as_nanos().max(1) as f64
}
