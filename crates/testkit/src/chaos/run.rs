//! One run, from the first account to the judgement.

use std::{cell::RefCell, rc::Rc, time::Duration};

use serde_json::{Value, json};
use tokio::{
    task::{JoinHandle, LocalSet},
    time::{Instant, timeout},
};

use crate::chaos::{
    checker::{self, Violation},
    client::Client,
    deployment::{Deployment, DeploymentError},
    ending,
    faults::{self, Choice, Kind},
    history::Ended,
    load::{self, Follower},
    outage::{self, Outages},
    world::{Phase, Size, World},
};

/// How long the writers may take to come to their end.
const WRITERS_MAX: Duration = Duration::from_secs(120);

/// How long the chains may take to come to their end.
const CHAINS_MAX: Duration = Duration::from_secs(120);

/// What must have happened for a run to prove anything: names in [`counts`].
const HABITS: &[&str] = &[
    "events acknowledged",
    "events delivered by chains",
    "events read at the end",
    "register reads",
    "to-device messages delivered",
    "one-time keys claimed",
    "device changes",
];

/// What a run shall be.
#[derive(Clone, Debug)]
pub struct Options {
    /// What is chosen.
    pub seed: u64,
    /// How long there are load and faults.
    pub lasts: Duration,
    /// People; at least three.
    pub users: usize,
    /// Rooms; at least three.
    pub rooms: usize,
    /// Kinds of fault.
    pub faults: Vec<Kind>,
    /// The beginning of the names of the nodes that faults may hit; empty for all.
    pub hits: String,
    /// How soon the rooms of a node that was killed must be writable: its lease, and what it takes the others to notice.
    pub outage_max: Duration,
    /// What sets the names of this run apart from those of others on the same server.
    pub run: String,
}

/// Why a run came to no judgement.
#[derive(Debug, thiserror::Error)]
pub enum ChaosError {
    /// A process did what it was not told, or did not do what it was told.
    #[error(transparent)]
    Deployment(#[from] DeploymentError),
    /// The accounts and rooms could not be made.
    #[error("cannot prepare the run: {0}")]
    Setup(String),
    /// A task of the clients did not end, or panicked.
    #[error("the clients did not come to their end: {0}")]
    Clients(String),
}

/// What came of a run.
#[derive(Debug)]
pub struct Report {
    /// What was violated.
    pub violations: Vec<Violation>,
    /// The faults, each with when it came.
    pub faults: Vec<String>,
    /// How long rooms could not be written to, by kind of fault.
    pub outages: Value,
    /// How much happened.
    pub counts: Value,
}

/// Runs `options` against a deployment that is not started yet. Must be polled by a runtime of one thread.
///
/// # Errors
/// If the run comes to no judgement.
pub async fn run(deployment: Rc<dyn Deployment>, options: Options) -> Result<Report, ChaosError> {
    LocalSet::new().run_until(run_here(deployment, options)).await
}

async fn run_here(deployment: Rc<dyn Deployment>, options: Options) -> Result<Report, ChaosError> {
    deployment.start().await?;
    let client = Client::new(&deployment.base_urls(), options.seed).map_err(ChaosError::Setup)?;
    let size = Size { users: options.users.max(3), rooms: options.rooms.max(3) };
    let token = deployment.registration_token();
    let world = World::create(client, options.seed, &options.run, size, &token).await.map_err(ChaosError::Setup)?;
    let world = Rc::new(world);

    let mut chains = Vec::new();
    for device in world.devices() {
        let mut follower = Follower::new(&world, device);
        // The chain begins before anything is written, so that it must see all of it.
        while follower.step(0).await.is_none() {}
        chains.push(tokio::task::spawn_local(follower.follow()));
    }
    let writers = load::start(&world);
    let happened = RefCell::new(Vec::new());
    let outages = disturb(&*deployment, &world, &options, &happened).await?;

    world.phase.send_replace(Phase::Probe);
    finish("writers", writers, WRITERS_MAX).await?;
    ending::probe(&world).await;
    world.phase.send_replace(Phase::Finish);
    finish("chains", chains, CHAINS_MAX).await?;
    if options.faults.contains(&Kind::Kill) {
        // What is read now is what the disk has.
        let all = 0..deployment.names().len();
        for node in all.clone() {
            deployment.kill(node).await?;
        }
        futures::future::try_join_all(all.map(|node| deployment.restart(node))).await?;
    }
    ending::read_everything(&world).await;
    for panic in deployment.panics() {
        world.complain(format!("the server panicked: {panic}"));
    }
    let counts = counts(&world);
    for habit in HABITS.iter().filter(|habit| counts[**habit].as_u64() == Some(0)) {
        world.complain(format!("nothing is proved: {habit}: 0"));
    }
    let violations = checker::check(&world.history.borrow());
    Ok(Report { violations, faults: happened.take(), outages: outages.told(), counts })
}

/// Injects faults one after the other until the time is over.
async fn disturb(
    deployment: &dyn Deployment,
    world: &World,
    options: &Options,
    happened: &RefCell<Vec<String>>,
) -> Result<Outages, DeploymentError> {
    let end = Instant::now() + options.lasts;
    let names = deployment.names();
    let hit = (0..names.len()).filter(|node| names[*node].starts_with(&options.hits)).collect();
    let mut outages = Outages::default();
    for (number, fault) in Choice::new(options.seed, hit, &options.faults).enumerate() {
        if Instant::now() + fault.after > end {
            break;
        }
        tokio::time::sleep(fault.after).await;
        let from = world.client.now().0 / 1_000;
        let inject = async {
            faults::inject(deployment, &fault).await?;
            deployment.settle().await
        };
        let (revived, wait) = outage::during(world, number, inject).await?;
        let until = world.client.now().0 / 1_000;
        let what = fault.told(&names);
        let ended = if revived.is_empty() { String::new() } else { format!(", {} ended", revived.join(", ")) };
        happened.borrow_mut().push(format!("{from} ms to {until} ms: {what}{ended}; a room waited {wait}"));
        if fault.kind.is_timed() && wait.time > options.outage_max {
            world.complain(format!("at {from} ms, after {what}, a room could not be written to for {wait}"));
        }
        outages.add(fault.kind, wait.time);
    }
    tokio::time::sleep_until(end).await;
    Ok(outages)
}

async fn finish(what: &str, tasks: Vec<JoinHandle<()>>, within: Duration) -> Result<(), ChaosError> {
    let all = futures::future::try_join_all(tasks);
    match timeout(within, all).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(ChaosError::Clients(format!("{what}: {error}"))),
        Err(_) => Err(ChaosError::Clients(format!("{what}: not within {} s", within.as_secs()))),
    }
}

fn counts(world: &World) -> Value {
    let history = world.history.borrow();
    let acknowledged = history.sent.iter().filter(|sent| sent.operation.acknowledged().is_some());
    let in_doubt = history.sent.iter().filter(|sent| sent.operation.is_in_doubt());
    let refused = history.sent.iter().filter(|sent| sent.operation.is_refused());
    let delivered: usize = history.chains.values().flat_map(|chain| &chain.visits).map(Vec::len).sum();
    let claims = history.key_claims.iter().flat_map(|claim| &claim.operation.tries);
    let claimed = claims.filter(|one| matches!(&one.outcome, Ended::Acknowledged(Some(_)))).count();
    let counts = &world.counts;
    json!({
        "requests": counts.requests.get(),
        "requests of unknown outcome": counts.unknown.get(),
        "requests not taken": counts.not_taken.get(),
        "events acknowledged": acknowledged.count(),
        "events once in doubt": in_doubt.count(),
        "events refused": refused.count(),
        "events delivered by chains": delivered,
        "gaps filled": counts.gaps.get(),
        "stays in rooms": history.chains.values().map(|chain| chain.visits.len()).sum::<usize>(),
        "register writes": history.writes.len(),
        "register reads": history.reads.len(),
        "to-device messages sent": history.whispers.len(),
        "to-device messages delivered": history.heard.values().map(Vec::len).sum::<usize>(),
        "one-time keys uploaded": history.key_uploads.iter().map(|upload| upload.keys.len()).sum::<usize>(),
        "one-time keys claimed": claimed,
        "device changes": history.device_changes.len(),
        "events read at the end": history.readings.iter().map(|reading| reading.entries.len()).sum::<usize>(),
        "failures": &*counts.failures.borrow(),
    })
}
