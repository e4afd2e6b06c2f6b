//! One simulated day of a small server: people talk while the store fails and the node crashes.

mod keys;
mod receipts;
#[cfg(test)]
mod scenes;

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, sync::Arc, time::Duration};

use cofactor_entity::Planted;
use cofactor_rooms::{CreateRoomOptions, Preset};
use cofactor_store::model::{Faults, ModelStore};
use cofactor_sync::SyncRequest;
use cofactor_types::{Fault, SyncToken};
use cofactor_wire::{
    room::{MembershipAction, NewEvent, RoomCommand, RoomReply, Rooms, Transaction},
    user::ToDevice,
    user_command::{NewTokens, UserCommand},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use ruma::{OwnedRoomId, OwnedUserId, UserId, api::client::filter::FilterDefinition, device_id};
use serde_json::{Map, Value};
use tokio::{runtime::RngSeed, sync::watch, time::Instant};

use crate::{
    checker::Seen,
    node::{IDLE, SimClock, SimEntropy, SimNode},
};

/// Messages of each speaker.
const MESSAGES: usize = 12;

/// Crashes of one run.
const CRASHES: usize = 3;

/// A run takes less time than this, by the simulated clock.
const RUN_MAX: Duration = Duration::from_secs(300);

/// Faults of one run.
const FAULTS: Faults = Faults {
    unavailable_permille: 10,
    unknown_applied_permille: 30,
    unknown_lost_permille: 30,
    unknown_late_permille: 20,
    late_ms_max: 300,
    latency_us_max: 3_000,
};

/// The outcome of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Everything that clients saw, as text: the same for the same seed.
    pub trace: String,
    /// What was violated, if anything.
    pub violation: Option<String>,
}

/// Runs the simulation of `seed` with a planted bug, on a store that spans partitions or not by the seed.
///
/// # Panics
/// If the runtime cannot be made.
pub fn run(seed: u64, planted: Planted) -> Outcome {
    system(seed).block_on(async move {
        // Who insists on what is lost insists for ever.
        let ended = tokio::time::timeout(RUN_MAX, simulate(seed, planted)).await;
        let stuck = || Outcome { trace: String::new(), violation: Some("the run comes to no end".to_owned()) };
        ended.unwrap_or_else(|_| stuck())
    })
}

/// A runtime whose clock stands still while anything can be done, and whose choices come from the seed.
pub(crate) fn system(seed: u64) -> actix_rt::SystemRunner {
    actix_rt::System::with_tokio_rt(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .rng_seed(RngSeed::from_bytes(&seed.to_le_bytes()))
            .build()
            .unwrap_or_else(|error| panic!("no runtime: {error}"))
    })
}

/// What all parts of a run share.
struct World {
    node: watch::Sender<Option<Rc<SimNode>>>,
    /// Nobody begins anything new.
    quiet: watch::Sender<bool>,
    rng: RefCell<StdRng>,
    seen: RefCell<Seen>,
}

impl World {
    /// The node, when there is one.
    async fn node(&self) -> Rc<SimNode> {
        let mut nodes = self.node.subscribe();
        loop {
            if let Some(node) = nodes.borrow_and_update().clone() {
                return node;
            }
            if nodes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Asks whatever node lives, as a client does: again and again until there is an answer.
    async fn insist<T>(&self, ask: impl AsyncFn(Rc<SimNode>) -> Result<T, Fault>) -> T {
        loop {
            let node = self.node().await;
            let mut nodes = self.node.subscribe();
            nodes.borrow_and_update();
            let outcome = tokio::select! {
                outcome = ask(node) => outcome,
                _ = nodes.changed() => continue,
            };
            match outcome {
                Ok(value) => return value,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    fn time(&self, max_ms: u64) -> Duration {
        Duration::from_millis(self.rng.borrow_mut().random_range(0..=max_ms))
    }

    fn up_to(&self, max: usize) -> usize {
        self.rng.borrow_mut().random_range(0..=max)
    }

    /// What people do between two things.
    async fn pause(&self, max_ms: u64) {
        tokio::time::sleep(self.time(max_ms)).await;
        let mut quiet = self.quiet.subscribe();
        // The sender lives as long as the world.
        let _ = quiet.wait_for(|quiet| !*quiet).await;
    }
}

fn user(name: &str) -> OwnedUserId {
    UserId::parse(format!("@{name}:sim.example")).unwrap_or_else(|error| panic!("{error}"))
}

async fn simulate(seed: u64, planted: Planted) -> Outcome {
    let clock = SimClock::new(Instant::now());
    let entropy = SimEntropy::new(seed);
    let store = ModelStore::new(seed, seed.is_multiple_of(2));
    let world = Rc::new(World {
        node: watch::Sender::new(Some(Rc::new(SimNode::start(&store, &clock, &entropy, planted).await))),
        quiet: watch::Sender::new(false),
        rng: RefCell::new(StdRng::seed_from_u64(seed)),
        seen: RefCell::default(),
    });
    let people = ["alice", "bob"].map(user);
    let room_id = prepare(&world, &people).await;
    store.set_faults(FAULTS);

    let chain = actix_rt::spawn(follow(Rc::clone(&world), people[1].clone(), room_id.clone()));
    let mut tasks = Vec::new();
    for person in &people {
        tasks.push(actix_rt::spawn(speak(Rc::clone(&world), person.clone(), room_id.clone())));
    }
    let [alice, bob] = people.clone();
    tasks.push(actix_rt::spawn(whisper(Rc::clone(&world), people.clone())));
    tasks.push(actix_rt::spawn(keys::upload(Rc::clone(&world), alice.clone())));
    tasks.push(actix_rt::spawn(keys::claim(Rc::clone(&world), alice.clone())));
    tasks.push(actix_rt::spawn(receipts::read(Rc::clone(&world), bob.clone(), alice.clone(), room_id.clone())));
    trouble(&world, &store, &clock, &entropy, planted).await;
    for task in tasks {
        // A task that panics is a defect of the simulation.
        task.await.unwrap_or_else(|error| panic!("{error}"));
    }
    store.set_faults(Faults::default());
    keys::claim_rest(&world, &alice).await;
    // What a store could not apply with its log is applied by now.
    tokio::time::sleep(Duration::from_secs(2)).await;
    receipts::read_last(&world, &bob, &room_id).await;
    read_history(&world, &room_id).await;
    let wanted = world.seen.borrow().history.len();
    for _ in 0..200 {
        let arrived = world.seen.borrow().synced.len();
        if arrived >= wanted {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    chain.abort();
    let seen = world.seen.borrow().clone();
    Outcome { trace: format!("{seen:?}"), violation: seen.violation() }
}

/// Crashes, one of them after everybody has been quiet for so long that nothing is in memory.
async fn trouble(world: &World, store: &ModelStore, clock: &SimClock, entropy: &Arc<SimEntropy>, planted: Planted) {
    let quiet_before = world.up_to(CRASHES - 1);
    for number in 0..CRASHES {
        tokio::time::sleep(world.time(600)).await;
        if number == quiet_before {
            world.quiet.send_replace(true);
            tokio::time::sleep(2 * IDLE + world.time(1_000)).await;
            world.quiet.send_replace(false);
            tokio::time::sleep(world.time(100)).await;
        }
        if let Some(node) = world.node.send_replace(None) {
            node.crash();
        }
        tokio::time::sleep(world.time(100)).await;
        let node = SimNode::start(store, clock, entropy, planted).await;
        world.node.send_replace(Some(Rc::new(node)));
    }
}

/// Two people in one room.
async fn prepare(world: &World, people: &[OwnedUserId; 2]) -> OwnedRoomId {
    for person in people {
        let create = UserCommand::Create { password_hash: None, admin: false };
        world.insist(async |node| node.core.users.ask(person, create.clone()).await).await;
        let tokens = NewTokens { access_hash: person.to_string(), expires_at_ms: None, refresh_hash: None };
        let login = UserCommand::Login { device_id: device_id!("PHONE").to_owned(), display_name: None, tokens };
        world.insist(async |node| node.core.users.ask(person, login.clone()).await).await;
    }
    let options = CreateRoomOptions {
        creator: people[0].clone(),
        creator_profile: Map::new(),
        version: cofactor_room::default_room_version(),
        preset: Preset::PublicChat,
        creation_content: Map::new(),
        power_level_content_override: Map::new(),
        initial_state: Vec::new(),
        name: None,
        topic: None,
        alias: None,
        invite: Vec::new(),
        is_direct: false,
        public: false,
    };
    let room_id = world.insist(async |node| node.core.rooms.create(&options).await).await;
    let join = RoomCommand::Membership {
        sender: people[1].clone(),
        target: people[1].clone(),
        action: MembershipAction::Join,
        reason: None,
        content: "{}".into(),
    };
    world.insist(async |node| node.core.rooms.ask(&room_id, join.clone()).await).await;
    room_id
}

/// Sends messages one after the other, each until it is acknowledged.
async fn speak(world: Rc<World>, person: OwnedUserId, room_id: OwnedRoomId) {
    for number in 0..MESSAGES {
        world.pause(150).await;
        let body = format!("{} {number}", person.localpart());
        let command = RoomCommand::Send {
            sender: person.clone(),
            transaction: Some(Transaction { device_id: device_id!("PHONE").to_owned(), txn_id: body.as_str().into() }),
            event: NewEvent {
                event_type: "m.room.message".to_owned(),
                state_key: None,
                content: serde_json::json!({ "msgtype": "m.text", "body": body }).to_string().into(),
                redacts: None,
            },
        };
        let reply = world.insist(async |node| node.core.rooms.ask(&room_id, command.clone()).await).await;
        if let RoomReply::Sent { event_id, .. } = reply {
            let mut seen = world.seen.borrow_mut();
            seen.acknowledged.entry(person.to_string()).or_default().push((body, event_id.to_string()));
        }
    }
}

/// Sends to-device messages, each until it is acknowledged.
async fn whisper(world: Rc<World>, people: [OwnedUserId; 2]) {
    for number in 0..MESSAGES {
        world.pause(150).await;
        let body = format!("whisper {number}");
        let message = ToDevice {
            sender: people[0].clone(),
            event_type: "m.test".to_owned(),
            content: serde_json::json!({ "body": body }).to_string().into(),
        };
        let to = vec![(people[1].clone(), vec![(None, message)])];
        let phone = device_id!("PHONE");
        world.insist(async |node| node.core.users.send_to_device(&people[0], phone, &body, to.clone()).await).await;
        world.seen.borrow_mut().to_device_acknowledged.insert(body);
    }
}

/// Follows a chain of `/sync` tokens over every crash.
async fn follow(world: Rc<World>, person: OwnedUserId, room_id: OwnedRoomId) {
    let mut since: Option<SyncToken> = None;
    // Nothing is left out, however long the node was away.
    let mut filter = FilterDefinition::default();
    filter.room.timeline.limit = Some(100_u8.into());
    let filter = Arc::new(filter);
    loop {
        let request = SyncRequest {
            user_id: person.clone(),
            device_id: device_id!("PHONE").to_owned(),
            since: since.clone(),
            filter: Arc::clone(&filter),
            full_state: false,
            timeout: Duration::from_millis(500),
            state_after: None,
        };
        let body = world.insist(async |node| node.core.sync.sync(request.clone()).await).await;
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        since = answer["next_batch"].as_str().and_then(|token| token.parse().ok());
        let room = &answer["rooms"]["join"][room_id.as_str()]["timeline"];
        let mut seen = world.seen.borrow_mut();
        if room["limited"] == true && !seen.synced.is_empty() {
            seen.synced.push("a gap".to_owned());
        }
        seen.synced.extend(bodies(&room["events"]));
        seen.to_device_synced.extend(bodies(&answer["to_device"]["events"]));
    }
}

fn bodies(events: &Value) -> Vec<String> {
    let events = events.as_array().map(Vec::as_slice).unwrap_or_default();
    events.iter().filter_map(|event| event["content"]["body"].as_str().map(ToOwned::to_owned)).collect()
}

/// Reads the whole history of the room.
async fn read_history(world: &World, room_id: &OwnedRoomId) {
    use cofactor_store::{Direction, RangeRead};
    use cofactor_types::Position;

    let all =
        RangeRead { after: Position::ZERO, up_to: Position::MAX, direction: Direction::Forward, limit: usize::MAX };
    let events = world.insist(async |node| node.core.history.events(room_id, all).await).await;
    let parsed: BTreeMap<usize, Value> = events
        .iter()
        .enumerate()
        .map(|(index, placed)| (index, serde_json::from_slice(&placed.event.json).unwrap_or_default()))
        .collect();
    world.seen.borrow_mut().history = bodies(&Value::Array(parsed.into_values().collect()));
}
