//! Some simulated minutes of a cluster: people talk through any of its nodes while these crash, stand still, leave and join,
//! while clocks are set, and while the store, the network and the bus fail.
//!
//! Every node is the real thing: entities, keeper of shards, routes, `/sync`. What is simulated is what lies between nodes
//! and below them: time, the store, calls, the bus. A node that stands still is one through whose doors nothing passes;
//! what it had sent before may still arrive.

mod bus;
mod clock;
mod network;
mod node;
mod people;
#[cfg(test)]
mod scenes;
mod seen;
mod trouble;
mod witness;
mod world;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use cofactor_entity::Planted;
use cofactor_store::{Direction, RangeRead, model::ModelStore};
use cofactor_types::{Fault, Position};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use ruma::{OwnedRoomId, OwnedUserId};
use serde_json::Value;
use tokio::{sync::watch, time::Instant};

use self::{
    bus::Hub,
    clock::MachineClock,
    network::Network,
    node::{ClusterNode, Ground, SHARDS},
    witness::Witness,
    world::{Machine, World},
};
use crate::{
    lab::user,
    node::SimEntropy,
    simulation::{Outcome, system},
};

/// Machines, of which the last is empty at first.
const MACHINES: usize = 4;

/// Rooms in which all are.
const ROOMS: usize = 2;

/// Every room can be written to so soon after the last trouble.
const WRITABLE_MAX: Duration = Duration::from_secs(10);

/// After this what people still do is stuck.
const STUCK: Duration = Duration::from_secs(60);

/// Everything has arrived so soon after it was said.
const ARRIVED_MAX: Duration = Duration::from_secs(5);

/// Runs the simulation of `seed` with a planted bug.
///
/// # Panics
/// If the runtime cannot be made.
pub fn run(seed: u64, planted: Planted) -> Outcome {
    system(seed).block_on(simulate(seed, planted))
}

/// A cluster without trouble so far, that of the first `kept` machines.
async fn found(seed: u64, planted: Planted, kept: usize) -> (Rc<World>, Arc<Witness>) {
    let mut rng = StdRng::seed_from_u64(seed);
    let witness = Arc::new(Witness::new(SHARDS));
    let store = ModelStore::new(seed, false);
    let sees = Arc::clone(&witness);
    store.observe(move |append| sees.append(append));
    let ground = Arc::new(Ground {
        store,
        network: Network::new(seed),
        hub: Hub::new(seed, Arc::clone(&witness)),
        entropy: SimEntropy::new(seed),
        planted,
    });
    let start = Instant::now();
    let machine = |number: usize| {
        // Skewed a little, and up for different times.
        let clock = MachineClock::new(start, rng.random_range(0..1_000_000_000), rng.random_range(-20_000..20_000));
        let address = format!("node-{number}:1");
        Machine { address, clock, is_kept: Cell::new(number < kept), node: RefCell::default() }
    };
    let machines = (0..MACHINES).map(machine).collect();
    let world = World {
        ground,
        machines,
        start,
        rng: RefCell::new(rng),
        seen: RefCell::default(),
        trace: RefCell::default(),
        lost_permille: Cell::new(0),
        over: watch::Sender::new(false),
    };
    for machine in world.machines.iter().filter(|machine| machine.is_kept.get()) {
        let node = ClusterNode::start(&world.ground, &machine.address, &machine.clock).await;
        *machine.node.borrow_mut() = node.map(Rc::new);
    }
    let world = Rc::new(world);
    for index in 0..MACHINES {
        actix_rt::spawn(trouble::supervise(Rc::clone(&world), index));
    }
    (world, witness)
}

async fn simulate(seed: u64, planted: Planted) -> Outcome {
    let (world, witness) = found(seed, planted, MACHINES - 1).await;
    let people = ["alice", "bob", "carol"].map(user);
    let rooms = people::prepare(&world, &people, ROOMS).await;
    let chains: Vec<_> =
        people.iter().map(|one| actix_rt::spawn(people::follow(Rc::clone(&world), one.clone()))).collect();
    trouble::begin(&world);
    let mut tasks = Vec::new();
    for person in &people {
        tasks.push(actix_rt::spawn(people::speak(Rc::clone(&world), person.clone(), rooms.clone())));
    }
    let [alice, bob, carol] = people;
    tasks.push(actix_rt::spawn(people::whisper(Rc::clone(&world), alice.clone(), vec![bob, carol])));
    tasks.push(actix_rt::spawn(people::upload(Rc::clone(&world), alice.clone())));
    tasks.push(actix_rt::spawn(people::claim(Rc::clone(&world), alice.clone())));
    tasks.push(actix_rt::spawn(people::look(Rc::clone(&world), rooms.clone())));
    let troubles = [(); 2].map(|()| actix_rt::spawn(trouble::happen(Rc::clone(&world))));
    for trouble in troubles {
        trouble.await.unwrap_or_else(|error| panic!("{error}"));
    }
    trouble::end(&world);
    world.note("the trouble is over");
    let over = Instant::now();
    world.over.send_replace(true);
    let mut violation = ends(&world, tasks, &alice, &rooms, over).await;
    if violation.is_none() {
        people::claim_rest(&world, &alice).await;
        read_histories(&world, &rooms).await;
        arrive(&world).await;
    }
    chains.iter().for_each(actix_rt::task::JoinHandle::abort);
    violation = witness.violation().or(violation).or_else(|| world.seen.borrow().violation());
    Outcome { trace: world.trace.take(), violation }
}

/// Every room can be written to again soon, and everybody finishes.
async fn ends(
    world: &Rc<World>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    person: &OwnedUserId,
    rooms: &[OwnedRoomId],
    over: Instant,
) -> Option<String> {
    for (number, room_id) in rooms.iter().enumerate() {
        let body = format!("afterwards {number}");
        let write = people::say(world, person, room_id, &body);
        if tokio::time::timeout_at(over + WRITABLE_MAX, write).await.is_err() {
            return Some(format!("{room_id} cannot be written to {WRITABLE_MAX:?} after the last trouble"));
        }
    }
    for task in tasks {
        match tokio::time::timeout_at(over + STUCK, task).await {
            Ok(ended) => ended.unwrap_or_else(|error| panic!("{error}")),
            Err(_) => return Some("somebody is stuck".to_owned()),
        }
    }
    None
}

/// Waits until the chains have brought everything, as long as that may take.
async fn arrive(world: &World) {
    let until = Instant::now() + ARRIVED_MAX;
    while Instant::now() < until {
        let history = world.seen.borrow().histories.first().cloned().unwrap_or_default();
        if world.seen.borrow().have_all_arrived(&history) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // What comes twice comes soon.
    tokio::time::sleep(Duration::from_secs(1)).await;
}

/// Every node reads the whole history of every room.
async fn read_histories(world: &World, rooms: &[OwnedRoomId]) {
    for node in world.nodes() {
        let mut history = BTreeMap::new();
        for room_id in rooms {
            match read_history(&node, room_id).await {
                Ok(bodies) => drop(history.insert(room_id.clone(), bodies)),
                Err(fault) => world.seen.borrow_mut().violate(format!("{room_id} cannot be read: {fault}")),
            }
        }
        world.seen.borrow_mut().histories.push(history);
    }
}

async fn read_history(node: &ClusterNode, room_id: &OwnedRoomId) -> Result<Vec<String>, Fault> {
    let all =
        RangeRead { after: Position::ZERO, up_to: Position::MAX, direction: Direction::Forward, limit: usize::MAX };
    let events = node.core.history.events(room_id, all).await?;
    let events = events.iter().map(|placed| serde_json::from_slice(&placed.event.json).unwrap_or_default());
    Ok(people::bodies(&Value::Array(events.collect())))
}
