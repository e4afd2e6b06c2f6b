//! Leaving a room while others write there.

use super::*;

/// Seeds; each gives the store other delays.
const SEEDS: u64 = 30;

/// After this the chain has seen what was there and waits for more.
const CAUGHT_UP: Duration = Duration::from_secs(1);

/// What the timelines of one room brought somebody: members by their membership, messages by their body.
async fn look(
    world: &World,
    person: &UserId,
    room_id: &OwnedRoomId,
    since: &mut Option<SyncToken>,
) -> (Vec<String>, bool) {
    let request = SyncRequest {
        user_id: person.to_owned(),
        device_id: device_id!("PHONE").to_owned(),
        since: since.clone(),
        filter: FilterDefinition::default(),
        full_state: false,
        timeout: Duration::from_secs(5),
        state_after: None,
    };
    let body = world.insist(async |node| node.core.sync.sync(request.clone()).await).await;
    let answer: Value = serde_json::from_slice(&body).unwrap();
    *since = answer["next_batch"].as_str().and_then(|token| token.parse().ok());
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
    let clock = SimClock::new(Instant::now());
    let entropy = SimEntropy::new(seed);
    let store = ModelStore::new(seed, seed.is_multiple_of(2));
    let world = Rc::new(World {
        node: watch::Sender::new(Some(Rc::new(SimNode::start(&store, &clock, &entropy, Planted::Nothing).await))),
        quiet: watch::Sender::new(false),
        rng: RefCell::new(StdRng::seed_from_u64(seed)),
        seen: RefCell::default(),
    });
    let people = ["alice", "bob"].map(user);
    let room_id = prepare(&world, &people).await;
    let mut since = None;
    look(&world, &people[1], &room_id, &mut since).await;
    send(&world, &people[0], &room_id, "before").await;
    store.set_faults(Faults { latency_us_max: 3_000, ..Faults::default() });
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
            let (world, people, room_id) = (&world, &people, &room_id);
            async move { send(world, &people[0], room_id, &format!("during {number}")).await }
        });
        futures::future::join_all(all).await;
    };
    let follow = async {
        let mut all = Vec::new();
        loop {
            let (seen, has_left) = look(&world, &people[1], &room_id, &mut since).await;
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
