//! Scenes that chance rarely brings: what chains of `/sync` see of them.

use ruma::DeviceId;

use super::*;

/// Seeds; each gives the store other delays.
const SEEDS: u64 = 30;

/// After this a chain has seen what was there and waits for more.
const CAUGHT_UP: Duration = Duration::from_secs(1);

/// A store that is slow and does not fail.
const SLOW: Faults = Faults {
    unavailable_permille: 0,
    unknown_applied_permille: 0,
    unknown_lost_permille: 0,
    unknown_late_permille: 0,
    late_ms_max: 0,
    latency_us_max: 3_000,
};

/// A chain of one device.
struct Chain<'w> {
    world: &'w World,
    person: OwnedUserId,
    device: &'static str,
    since: Option<SyncToken>,
}

impl<'w> Chain<'w> {
    fn new(world: &'w World, person: &OwnedUserId, device: &'static str) -> Self {
        Self { world, person: person.clone(), device, since: None }
    }

    /// The next answer: members by their membership, messages by their body; and whether the room was left.
    async fn next(&mut self, room_id: &OwnedRoomId) -> (Vec<String>, bool) {
        let request = SyncRequest {
            user_id: self.person.clone(),
            device_id: <&DeviceId>::from(self.device).to_owned(),
            since: self.since.clone(),
            filter: Arc::default(),
            full_state: false,
            timeout: Duration::from_secs(5),
            state_after: None,
        };
        let body = self.world.insist(async |node| node.core.sync.sync(request.clone()).await).await;
        let answer: Value = serde_json::from_slice(&body).unwrap();
        self.since = answer["next_batch"].as_str().and_then(|token| token.parse().ok());
        let mut seen = Vec::new();
        for section in ["join", "leave"] {
            let events = &answer["rooms"][section][room_id.as_str()]["timeline"]["events"];
            for event in events.as_array().into_iter().flatten() {
                let content = &event["content"];
                let text = content["membership"].as_str().or(content["body"].as_str());
                seen.extend(text.map(ToOwned::to_owned));
            }
        }
        (seen, !answer["rooms"]["leave"].is_null())
    }
}

/// A node on an empty store, and how to start another one in its place.
struct Stage {
    world: World,
    store: ModelStore,
    clock: SimClock,
    entropy: Arc<SimEntropy>,
}

impl Stage {
    async fn new(seed: u64) -> Self {
        let clock = SimClock::new(Instant::now());
        let entropy = SimEntropy::new(seed);
        let store = ModelStore::new(seed, seed.is_multiple_of(2));
        let node = SimNode::start(&store, &clock, &entropy, Planted::Nothing).await;
        let rng = RefCell::new(StdRng::seed_from_u64(seed));
        let quiet = watch::Sender::new(false);
        let world = World { node: watch::Sender::new(Some(Rc::new(node))), quiet, rng, seen: RefCell::default() };
        Self { world, store, clock, entropy }
    }

    async fn restart(&self) {
        if let Some(node) = self.world.node.send_replace(None) {
            node.crash();
        }
        let node = SimNode::start(&self.store, &self.clock, &self.entropy, Planted::Nothing).await;
        self.world.node.send_replace(Some(Rc::new(node)));
    }
}

async fn send(world: &World, person: &OwnedUserId, room_id: &OwnedRoomId, body: &str) {
    let event = NewEvent {
        event_type: "m.room.message".to_owned(),
        state_key: None,
        content: serde_json::json!({ "msgtype": "m.text", "body": body }).to_string().into(),
        redacts: None,
    };
    let command = RoomCommand::Send { sender: person.clone(), transaction: None, event };
    world.insist(async |node| node.core.rooms.ask(room_id, command.clone()).await).await;
}

/// What bob's chain sees while he leaves and alice goes on writing `messages` messages.
async fn leave_while_somebody_writes(seed: u64, messages: usize) -> Vec<String> {
    let stage = Stage::new(seed).await;
    let world = &stage.world;
    let people = ["alice", "bob"].map(user);
    let room_id = prepare(world, &people).await;
    let mut chain = Chain::new(world, &people[1], "PHONE");
    chain.next(&room_id).await;
    send(world, &people[0], &room_id, "before").await;
    stage.store.set_faults(SLOW);
    let leave = RoomCommand::Membership {
        sender: people[1].clone(),
        target: people[1].clone(),
        action: MembershipAction::Leave,
        reason: None,
        content: "{}".into(),
    };
    let leave = async {
        tokio::time::sleep(CAUGHT_UP).await;
        world.insist(async |node| node.core.rooms.ask(&room_id, leave.clone()).await).await
    };
    let write = async {
        tokio::time::sleep(CAUGHT_UP + world.time(3)).await;
        let all = (0..messages).map(|number| {
            let (people, room_id) = (&people, &room_id);
            async move { send(world, &people[0], room_id, &format!("during {number}")).await }
        });
        futures::future::join_all(all).await;
    };
    let follow = async {
        let mut all = Vec::new();
        loop {
            let (seen, has_left) = chain.next(&room_id).await;
            all.extend(seen);
            if has_left {
                return all;
            }
        }
    };
    tokio::join!(leave, write, follow).2
}

#[test]
fn who_leaves_hears_of_it_once_and_of_nothing_that_comes_after() {
    // Fewer than a timeline holds, and more.
    for messages in [4, 40] {
        for seed in 0..SEEDS {
            let seen = system(seed).block_on(leave_while_somebody_writes(seed, messages));
            let leaves = seen.iter().filter(|what| *what == "leave").count();
            assert_eq!((leaves, seen.last().map(String::as_str)), (1, Some("leave")), "seed {seed}: {seen:?}");
        }
    }
}

/// What two devices of bob's hear that both come at once, after a crash, before alice writes.
async fn come_at_once(seed: u64) -> [Vec<String>; 2] {
    let stage = Stage::new(seed).await;
    let world = &stage.world;
    let people = ["alice", "bob"].map(user);
    let room_id = prepare(world, &people).await;
    let mut chains = ["PHONE", "TABLET"].map(|device| Chain::new(world, &people[1], device));
    for chain in &mut chains {
        chain.next(&room_id).await;
    }
    stage.restart().await;
    stage.store.set_faults(SLOW);
    let follow = chains.map(async |mut chain| {
        tokio::time::sleep(world.time(5)).await;
        let mut all = Vec::new();
        // More answers than the message needs.
        for _ in 0..3 {
            all.extend(chain.next(&room_id).await.0);
        }
        all
    });
    let write = async {
        tokio::time::sleep(CAUGHT_UP).await;
        send(world, &people[0], &room_id, "after").await;
    };
    let [one, other] = follow;
    let (one, other, ()) = tokio::join!(one, other, write);
    [one, other]
}

#[test]
fn two_devices_of_a_user_that_come_at_once_both_hear_what_follows() {
    for seed in 0..SEEDS {
        let heard = system(seed).block_on(come_at_once(seed));
        assert_eq!(heard, [["after"], ["after"]], "seed {seed}");
    }
}
