//! What online devices do all day, in its proportions, for each 1,000 of them: 1,000 held syncs; each second 4 sends,
//! 8 typing notices, 12 receipts, 1.5 pages of history, 0.5 profiles, 1 key query. The soak is the same for long.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Deserialize;
use tokio::task::JoinSet;

use super::e2ee::{keys_query, profile};
use super::send::spread;
use super::{Case, Context, Plan, Sample, Scenario, arrivals, share, single};
use crate::check::{Findings, Ledger, Reader, verify};
use crate::client::{Ask, Failure};
use crate::load::{Operation, Outcome, open, operation};
use crate::matrix::{Homeserver, Session, encode, sync_path};
use crate::proc::Snapshot;
use crate::progress::Progress;
use crate::run::Latency;
use crate::world::{Room, World};

/// Sends each second and device.
const SENDS: f64 = 4.0 / 1000.0;
/// Everything else each second and device, but held syncs.
const OTHERS: [(f64, Kind); 5] = [
    (8.0 / 1000.0, Kind::Typing),
    (12.0 / 1000.0, Kind::Receipt),
    (1.5 / 1000.0, Kind::History),
    (0.5 / 1000.0, Kind::Profile),
    (1.0 / 1000.0, Kind::Keys),
];
/// How long a sync is held.
const HOLD: Duration = Duration::from_secs(30);
/// Members of a room of a group.
const GROUP: usize = 10;
/// Rooms at which arrivals are checked, and members of each.
const CHECKED: usize = 20;
/// The parts of a soak, each of which is a day's mix of its own.
const SOAK_PARTS: u32 = 10;

#[derive(Debug, Clone, Copy)]
enum Kind {
    Typing,
    Receipt,
    History,
    Profile,
    Keys,
}

/// A fresh scenario of some seconds.
#[must_use]
pub fn make() -> Box<dyn Scenario> {
    Box::new(Mixed { town: None, soak: false })
}

/// A fresh scenario that takes long.
#[must_use]
pub fn make_soak() -> Box<dyn Scenario> {
    Box::new(Mixed { town: None, soak: true })
}

struct Mixed {
    town: Option<(u64, Arc<Town>)>,
    soak: bool,
}

/// The devices and the rooms that they share.
struct Town {
    users: Vec<Session>,
    /// Pairs first, then groups, then everybody.
    rooms: Vec<Room>,
    /// The last event that is known in each room, by its place.
    last: Mutex<HashMap<usize, String>>,
}

impl Town {
    async fn prepare(world: &mut World, devices: usize, context: &Context) -> Result<Self> {
        let users = world.users(devices, &context.progress).await?.to_vec();
        let pairs = (0..devices.saturating_sub(1)).step_by(2).map(|first| ("pair", first, 2));
        let groups = (0..devices.saturating_sub(GROUP - 1)).step_by(GROUP).map(|first| ("group", first, GROUP));
        let plan: Vec<_> = pairs.chain(groups).collect();
        let step = context.progress.step(&format!("{}: making pairs and groups", world.target.name), plan.len());
        let (silent, mut rooms) = (Progress::silent(), Vec::with_capacity(plan.len() + 1));
        for (kind, first, members) in plan {
            rooms.push(world.room_from(&format!("{kind}-{first}"), first, members, &silent).await?);
            step.tick();
        }
        drop(step);
        rooms.push(world.room(&format!("room-{devices}"), devices, &context.progress).await?);
        Ok(Self { users, rooms, last: Mutex::default() })
    }

    /// A room and one of its members: of a hundred, 65 in pairs, 30 in groups, 5 with everybody.
    fn pick(&self, random: &mut StdRng) -> (usize, &Session) {
        let (groups, all) = (self.users.len() / GROUP, self.rooms.len() - 1);
        let pairs = all - groups;
        let place = match random.random_range(0..100_u32) {
            0..5 => all,
            5..35 if groups > 0 => pairs + random.random_range(0..groups),
            _ if pairs > 0 => random.random_range(0..pairs),
            _ => all,
        };
        let room = &self.rooms[place];
        (place, &self.users[room.first + random.random_range(0..room.members)])
    }

    fn last(&self) -> std::sync::MutexGuard<'_, HashMap<usize, String>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The request of a kind; a receipt where nothing was sent yet is a typing notice instead.
    fn ask(&self, kind: Kind, random: &mut StdRng) -> Ask {
        let (place, user) = self.pick(random);
        let room = format!("/_matrix/client/v3/rooms/{}", encode(&self.rooms[place].id));
        let other = &self.users[random.random_range(0..self.users.len())].user_id;
        match (kind, self.last().get(&place)) {
            (Kind::History, _) => Ask::get(format!("{room}/messages?dir=b&limit=30"), &user.token),
            (Kind::Profile, _) => profile(user, other),
            (Kind::Keys, _) => keys_query(user, other),
            (Kind::Receipt, Some(event)) => {
                Ask::post(format!("{room}/receipt/m.read/{}", encode(event)), &user.token, "{}")
            }
            (Kind::Typing | Kind::Receipt, _) => {
                let path = format!("{room}/typing/{}", encode(&user.user_id));
                Ask::put(path, &user.token, r#"{"typing":true,"timeout":5000}"#)
            }
        }
    }
}

#[async_trait(?Send)]
impl Scenario for Mixed {
    fn cases(&self, plan: &Plan) -> Vec<Case> {
        let most = plan.devices.iter().copied().max().unwrap_or(100);
        match self.soak {
            true => vec![single("soak", "devices", most)],
            false => plan.devices.iter().map(|size| single("mixed day", "devices", *size)).collect(),
        }
    }

    async fn prepare(&mut self, world: &mut World, case: &Case, context: &Context) -> Result<()> {
        // Only the last case stays: the rooms of a smaller one are found again by their names.
        let town = Town::prepare(world, usize::try_from(case.size)?.max(2), context).await?;
        self.town = Some((case.size, Arc::new(town)));
        Ok(())
    }

    async fn measure(&mut self, world: &mut World, case: &Case, context: &Context, round: u32) -> Result<Sample> {
        if self.town.as_ref().is_none_or(|(size, _)| *size != case.size) {
            self.prepare(world, case, context).await?;
        }
        let (_, town) = self.town.as_ref().context("the case was not prepared")?;
        if !self.soak {
            return day(world, town, &context.plan, &format!("{}-{}-{round}", context.plan.run, case.size), round)
                .await;
        }
        let plan = Plan { time: context.plan.soak / SOAK_PARTS, ..context.plan.clone() };
        let step = context.progress.step("soak", SOAK_PARTS as usize);
        let (mut whole, mut p99, mut resident) = (Sample::default(), Vec::new(), Vec::new());
        for part in 0..SOAK_PARTS {
            let mark = format!("{}-soak-{round}-{part}", context.plan.run);
            let sample = day(world, town, &plan, &mark, round * SOAK_PARTS + part).await?;
            p99.extend(sample.open.as_ref().and_then(Latency::of).map(|latency| latency.p99));
            resident.push(Snapshot::of(&world.target.pids).resident_bytes);
            add(&mut whole, sample);
            step.tick();
        }
        whole.figures.extend(drift(&p99, &resident, plan.time * (SOAK_PARTS - 2)));
        Ok(whole)
    }
}

/// How latency and memory changed over a soak; the first part is left out, in which caches fill.
#[expect(clippy::cast_precision_loss, reason = "bytes far below 2^52")]
fn drift(p99: &[f64], resident: &[u64], time: Duration) -> Vec<(&'static str, f64)> {
    let mut figures = Vec::new();
    if let [_, first, .., last] = p99 {
        figures.extend([("send p99 in ms, second part", *first), ("send p99 in ms, last part", *last)]);
    }
    if let [_, first, .., last] = resident
        && *last > 0
    {
        let hours = time.as_secs_f64() / 3600.0;
        figures.push(("resident growth in bytes per hour", (*last as f64 - *first as f64) / hours));
    }
    figures
}

fn add(whole: &mut Sample, part: Sample) {
    if let Some(tally) = part.open {
        whole.open.get_or_insert_default().append(&tally);
    }
    if let (Some((requests, usage)), cost) = (part.cost, &mut whole.cost) {
        let sum = cost.get_or_insert_default();
        sum.0 += requests;
        sum.1.add(&usage);
    }
    if let Some(tally) = part.other {
        whole.other.get_or_insert_default().append(&tally);
    }
    if let Some(findings) = part.findings {
        whole.findings.get_or_insert_default().add(&findings);
    }
    whole.offered = part.offered;
    whole.generator = whole.generator.max(part.generator);
    whole.figures = part.figures;
}

/// Rooms with what was sent to each, and the members that are checked in some of them.
struct Books {
    ledgers: Vec<Arc<Ledger>>,
    readers: Vec<(usize, Vec<Reader>)>,
}

impl Books {
    async fn open(server: &Homeserver, town: &Town, mark: &str) -> Result<Self> {
        let places: Vec<usize> = (0..town.rooms.len()).collect();
        let mut readers = Vec::new();
        for place in spread(&places, CHECKED) {
            let room = &town.rooms[place];
            let members = spread(&town.users[room.first..room.first + room.members], CHECKED);
            readers.push((place, Reader::start(server, &members, &room.id).await?));
        }
        Ok(Self { ledgers: places.iter().map(|_| Ledger::new(mark)).collect(), readers })
    }

    async fn close(mut self, server: &Homeserver, town: &Town, plan: &Plan) -> Result<Findings> {
        let mut findings = Findings::default();
        for (place, readers) in &mut self.readers {
            let (room, ledger) = (&town.rooms[*place].id, &self.ledgers[*place]);
            findings.add(&verify(server, room, ledger, readers, plan.patience, plan.check_deliveries_max).await?);
        }
        Ok(findings)
    }
}

async fn day(world: &World, town: &Arc<Town>, plan: &Plan, mark: &str, round: u32) -> Result<Sample> {
    let books = Books::open(&world.server, town, mark).await?;
    #[expect(clippy::cast_precision_loss, reason = "a count of devices")]
    let devices = town.users.len() as f64;
    let ends = Instant::now() + plan.warm_up + plan.time;
    let mut held = JoinSet::new();
    for user in &town.users {
        let since = world.server.position(user, None).await?;
        held.spawn(listen(Arc::clone(&world.server), user.token.clone(), since, ends));
    }
    let (before, me, start) = (Snapshot::of(&world.target.pids), Snapshot::of_myself(), Instant::now());
    let rate = OTHERS.iter().map(|(rate, _)| rate).sum::<f64>() * devices;
    let sends = sends(&world.server, town, &books.ledgers, plan.seed);
    let others = others(&world.server, town, plan.seed);
    let (sent, other) = tokio::join!(
        open(arrivals(SENDS * devices, plan, round), &sends),
        open(arrivals(rate, plan, round.wrapping_add(1000)), &others)
    );
    let (sent, other) = (sent?, other?);
    let usage = before.until(&Snapshot::of(&world.target.pids));
    let (generator, elapsed) = (share(&me, start), start.elapsed());
    let mut returns = 0;
    while let Some(one) = held.join_next().await {
        returns += one.context("a held sync")??;
    }
    let requests = sent.done + other.done + returns;
    let mut sample = Sample { offered: SENDS * devices, generator, ..Sample::default() };
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    {
        sample.figures.insert("returned syncs/s", returns as f64 / elapsed.as_secs_f64());
        sample.figures.insert("failed requests other than sends", (other.tried() - other.done) as f64);
        if !world.target.pids.is_empty() {
            let cores = usage.cpu_ns as f64 / elapsed.as_nanos() as f64;
            sample.figures.insert("devices for each busy core", devices / cores.max(1e-9));
            sample.cost = (requests > 0).then_some((requests, usage));
        }
    }
    if let Some(latency) = Latency::of(&other) {
        sample.figures.insert("p99 in ms of requests other than sends", latency.p99);
    }
    sample.findings = Some(books.close(&world.server, town, plan).await?);
    sample.open = Some(sent);
    sample.other = Some(other);
    Ok(sample)
}

#[derive(Deserialize)]
struct NextBatch {
    next_batch: String,
}

/// A device that listens until a time; returns how many of its syncs came back.
async fn listen(server: Arc<Homeserver>, token: String, since: String, ends: Instant) -> Result<u64> {
    let (mut since, mut returns) = (since, 0);
    while Instant::now() < ends {
        let wait = HOLD.min(ends.saturating_duration_since(Instant::now()));
        let answer =
            server.client.send_within(Ask::get(sync_path(Some(&since), wait, None), &token), wait + HOLD).await;
        match answer {
            Ok(answer) if answer.status == 200 => {
                since = serde_json::from_slice::<NextBatch>(&answer.body)?.next_batch;
                returns += 1;
            }
            Ok(answer) => anyhow::bail!("{}: a held sync was refused with {}", server.name, answer.status),
            Err(Failure::TimedOut) => {}
            Err(failure) => return Err(failure).context("a held sync"),
        }
    }
    Ok(returns)
}

fn sends(server: &Arc<Homeserver>, town: &Arc<Town>, ledgers: &[Arc<Ledger>], seed: u64) -> Operation {
    let (server, town, ledgers) = (Arc::clone(server), Arc::clone(town), ledgers.to_vec());
    operation(move |number| {
        let (place, user) = {
            let (place, user) = town.pick(&mut StdRng::seed_from_u64(seed ^ number.wrapping_mul(2)));
            (place, user.clone())
        };
        let (server, town, ledger) = (Arc::clone(&server), Arc::clone(&town), Arc::clone(&ledgers[place]));
        async move {
            let outcome = ledger.send(&server, &user, &town.rooms[place].id, number).await;
            if let Some(event_id) = ledger.event_id(number) {
                town.last().insert(place, event_id);
            }
            outcome
        }
    })
}

fn others(server: &Arc<Homeserver>, town: &Arc<Town>, seed: u64) -> Operation {
    let (server, town) = (Arc::clone(server), Arc::clone(town));
    let all: f64 = OTHERS.iter().map(|(rate, _)| rate).sum();
    operation(move |number| {
        let mut random = StdRng::seed_from_u64(seed ^ number.wrapping_mul(2).wrapping_add(1));
        let mut left = random.random::<f64>() * all;
        let kind = OTHERS.iter().find(|(rate, _)| {
            left -= rate;
            left < 0.0
        });
        let ask = town.ask(kind.map_or(Kind::Typing, |(_, kind)| *kind), &mut random);
        let server = Arc::clone(&server);
        async move { Outcome::from(server.client.send(ask).await) }
    })
}
