//! State resolution on the difference, against the library on the whole states.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use cofactor_room::{EventSource, Pdu, ResolveError, ResolvePlan, StateTree, supported_room_versions};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};
use ruma::{
    EventId, OwnedEventId,
    events::StateEventType,
    room_version_rules::{StateResolutionV2Rules, StateResolutionVersion},
    state_res::{StateMap, utils::event_id_set::EventIdSet},
};
use serde_json::json;

use crate::support::{ALICE, BOB, CAROL, DAVE, State, World};

type Ids = BTreeMap<(String, String), OwnedEventId>;

fn tree_ids(tree: &StateTree) -> Ids {
    tree.iter().map(|e| ((e.event_type().to_owned(), e.state_key().to_owned()), e.event_id().to_owned())).collect()
}

/// Ours: plan, check what is missing, resolve.
fn resolve_delta(world: &World, states: &[&State]) -> StateTree {
    let trees: Vec<StateTree> = states.iter().map(|state| world.tree(state)).collect();
    let chains = world.chains.borrow();
    let plan = ResolvePlan::new(world.version, &trees, &chains).unwrap();
    assert!(plan.missing(world).is_empty());
    plan.resolve(world, |id| world.positions.borrow().get(id).copied()).unwrap()
}

fn auth_chain(world: &World, id: &EventId) -> BTreeSet<OwnedEventId> {
    let mut seen = BTreeSet::new();
    let mut pending = world.event(id).unwrap().auth_events().to_vec();
    while let Some(id) = pending.pop() {
        if seen.insert(id.clone()) {
            pending.extend(world.event(&id).unwrap().auth_events().iter().cloned());
        }
    }
    seen
}

fn walked_subgraph(world: &World, conflicted: &StateMap<Vec<OwnedEventId>>) -> BTreeSet<OwnedEventId> {
    let ends: BTreeSet<OwnedEventId> = conflicted.values().flatten().cloned().collect();
    let below: BTreeSet<OwnedEventId> =
        ends.iter().flat_map(|id| auth_chain(world, id)).chain(ends.iter().cloned()).collect();
    let is_on_path =
        |id: &OwnedEventId| ends.contains(id) || auth_chain(world, id).iter().any(|below| ends.contains(below));
    below.into_iter().filter(is_on_path).collect()
}

/// The library's: whole maps, whole auth chains, all found by walking.
fn resolve_full(world: &World, states: &[&State], rules: StateResolutionV2Rules, with_subgraph: bool) -> Ids {
    let maps: Vec<StateMap<OwnedEventId>> = states
        .iter()
        .map(|state| {
            let entry = |((kind, key), pdu): (&(String, String), &Arc<Pdu>)| {
                ((StateEventType::from(kind.as_str()), key.clone()), pdu.event_id().to_owned())
            };
            state.0.iter().map(entry).collect()
        })
        .collect();
    let chains: Vec<EventIdSet<OwnedEventId>> = states
        .iter()
        .map(|state| state.0.values().flat_map(|pdu| auth_chain(world, pdu.event_id())).collect())
        .collect();
    let resolved = ruma::state_res::resolve(
        &world.version.rules().authorization,
        &rules,
        maps.iter(),
        chains,
        |id: &EventId| world.event(id),
        |conflicted| {
            let graph = if with_subgraph { walked_subgraph(world, conflicted) } else { BTreeSet::new() };
            Some(graph.into_iter().collect())
        },
    )
    .unwrap();
    resolved.into_iter().map(|((kind, key), id)| ((kind.to_string(), key), id)).collect()
}

/// How many random rooms of each version.
const SEEDS: u64 = 20;

const USERS: [&str; 6] = [ALICE, BOB, CAROL, DAVE, "@erin:c.test", "@frank:c.test"];

/// One random, allowed state event in a branch.
fn random_event(world: &World, rng: &mut StdRng, state: &State) -> Option<Arc<Pdu>> {
    let sender = USERS[rng.random_range(0..USERS.len())];
    let target = USERS[rng.random_range(0..USERS.len())];
    // Equal times make the later tie-breakers decide.
    if rng.random_bool(0.3) {
        world.clock.set(world.clock.get().saturating_sub(rng.random_range(1..4)).max(1));
    }
    let nonce = rng.random_range(0..1_000_000);
    let (kind, key, content) = match rng.random_range(0..10) {
        0 | 1 => ("m.room.topic", "", json!({ "topic": nonce })),
        2 => ("org.example.note", ["x", "y", "z"][nonce % 3], json!({ "note": nonce })),
        3 => {
            let rule = ["public", "invite", "public"][nonce % 3];
            ("m.room.join_rules", "", json!({ "join_rule": rule, "nonce": nonce }))
        }
        4 | 5 => {
            let level = [0, 50, 60, 100][nonce % 4];
            let current = state.at("m.room.power_levels", "").unwrap();
            let mut content: serde_json::Value = serde_json::from_str(current.content().get()).unwrap();
            content["users"][target] = json!(level);
            content["nonce"] = json!(nonce);
            ("m.room.power_levels", "", content)
        }
        6 => ("m.room.member", target, json!({ "membership": "ban", "nonce": nonce })),
        7 => ("m.room.member", target, json!({ "membership": "leave", "nonce": nonce })),
        8 => ("m.room.member", target, json!({ "membership": "invite", "nonce": nonce })),
        _ => ("m.room.member", sender, json!({ "membership": "join", "nonce": nonce })),
    };
    world.attempt(sender, kind, Some(key), &content, state).ok()
}

/// A room that forks into branches, which grow and merge at random.
fn random_branches(world: &World, seed: u64) -> Vec<State> {
    let mut rng = StdRng::seed_from_u64(seed);
    let base = world.furnish("public", &[(BOB, 100), (CAROL, 50), (DAVE, 50), (USERS[4], 0), (USERS[5], 0)]);
    let mut branches = vec![base; rng.random_range(2..5)];
    for _ in 0..rng.random_range(10..60) {
        let branch = rng.random_range(0..branches.len());
        if let Some(event) = random_event(world, &mut rng, &branches[branch]) {
            world.keep(&event);
            branches[branch].set(&event);
        }
        if rng.random_bool(0.05) {
            let other = rng.random_range(0..branches.len());
            let merged = resolve_delta(world, &[&branches[branch], &branches[other]]);
            branches[branch] = world.state(&merged);
        }
    }
    branches
}

#[test]
fn resolving_the_difference_equals_resolving_the_whole_in_any_order() {
    for version in supported_room_versions() {
        let StateResolutionVersion::V2(rules) = version.rules().state_res else { continue };
        for seed in 0..SEEDS {
            let world = World::new(version);
            let branches = random_branches(&world, seed);
            let mut order: Vec<&State> = branches.iter().collect();
            let expected = resolve_full(&world, &order, rules, true);
            assert_eq!(tree_ids(&resolve_delta(&world, &order)), expected, "version {} seed {seed}", version.name());
            let mut rng = StdRng::seed_from_u64(seed);
            for _ in 0..3 {
                order.shuffle(&mut rng);
                order.push(order[0]);
                let again = tree_ids(&resolve_delta(&world, &order));
                assert_eq!(again, expected, "version {} seed {seed}, shuffled", version.name());
                order.pop();
            }
            for kind in ["m.room.create", "m.room.join_rules", "m.room.power_levels"] {
                let slot = (kind.to_owned(), String::new());
                assert!(expected.contains_key(&slot), "version {} seed {seed} lost {kind}", version.name());
            }
        }
    }
}

/// Puts older events, or none, into places of all branches or of one, as earlier mishaps of other servers would: the
/// events in conflict then rest on others than those that the states agree about.
fn damage(world: &World, rng: &mut StdRng, branches: &mut [State]) {
    let mut known: Vec<Arc<Pdu>> = world.events.borrow().values().cloned().collect();
    known.sort_by_key(|pdu| world.positions.borrow()[pdu.event_id()]);
    known.retain(|pdu| pdu.event_type().to_string() != "m.room.create");
    for _ in 0..rng.random_range(1..6) {
        let event = &known[rng.random_range(0..known.len())];
        let only = rng.random_bool(0.3).then(|| rng.random_range(0..branches.len()));
        let is_removal = rng.random_bool(0.3);
        for (number, branch) in branches.iter_mut().enumerate() {
            if only.is_some_and(|only| only != number) {
                continue;
            }
            if is_removal {
                *branch = branch.without(&event.event_type().to_string(), event.state_key().unwrap());
            } else {
                branch.set(event);
            }
        }
    }
}

#[test]
fn damaged_states_resolve_as_the_whole_ones_do() {
    for version in supported_room_versions() {
        let StateResolutionVersion::V2(rules) = version.rules().state_res else { continue };
        for seed in 0..SEEDS {
            let world = World::new(version);
            let mut branches = random_branches(&world, seed);
            let mut rng = StdRng::seed_from_u64(seed);
            for round in 0..4 {
                damage(&world, &mut rng, &mut branches);
                let order: Vec<&State> = branches.iter().collect();
                let expected = resolve_full(&world, &order, rules, true);
                let ours = tree_ids(&resolve_delta(&world, &order));
                assert_eq!(ours, expected, "version {} seed {seed} round {round}", version.name());
            }
        }
    }
}

#[test]
fn version_one_resolves_the_same_in_any_order_and_keeps_what_is_not_contested() {
    for seed in 0..SEEDS {
        let world = World::named("1");
        let branches = random_branches(&world, seed);
        let mut order: Vec<&State> = branches.iter().collect();
        let expected = tree_ids(&resolve_delta(&world, &order));
        order.reverse();
        assert_eq!(tree_ids(&resolve_delta(&world, &order)), expected, "seed {seed}");
        for (key, pdu) in &branches[0].0 {
            if branches.iter().all(|state| state.0.get(key).map(|p| p.event_id()) == Some(pdu.event_id())) {
                assert_eq!(expected.get(key).map(|id| &**id), Some(pdu.event_id()), "seed {seed}");
            }
        }
    }
}

#[test]
fn version_one_follows_the_chain_of_allowed_power_levels_and_takes_the_deepest_topic() {
    let world = World::named("1");
    let base = world.furnish("public", &[(BOB, 100), (CAROL, 50)]);
    let levels = json!({ "users": { ALICE: 100, BOB: 100, CAROL: 0 } });
    let demoted = base.with(&world.state_event(ALICE, "m.room.power_levels", "", &levels, &base));
    let topic = world.state_event(CAROL, "m.room.topic", "", &json!({ "topic": "late" }), &base);
    let left = demoted.with(&world.state_event(ALICE, "m.room.topic", "", &json!({ "topic": "early" }), &demoted));
    let right = base.with(&topic);
    let resolved = resolve_delta(&world, &[&left, &right]);
    // The demotion is allowed after the older levels, so it wins, and then Carol may not set a topic.
    let expected = left.at("m.room.power_levels", "").unwrap().event_id();
    assert_eq!(resolved.get_str("m.room.power_levels", "").unwrap().event_id(), expected);
    let expected = left.at("m.room.topic", "").unwrap().event_id();
    assert_eq!(resolved.get_str("m.room.topic", "").unwrap().event_id(), expected);
    // A key that only one state has is no conflict.
    let union = resolve_delta(&world, &[&base, &right]);
    assert_eq!(union.get_str("m.room.topic", "").unwrap().event_id(), topic.event_id());
}

/// The first graph of MSC4297: who set the join rules has left since, in the part of the state that nobody contests.
/// Checked against that part, the old join rules would be refused and disappear.
#[test]
fn join_rules_survive_the_departure_of_who_set_them() {
    for (version, survives) in [("11", false), ("12", true)] {
        let world = World::named(version);
        let before = world.furnish("public", &[(BOB, 100), (CAROL, 50)]);
        let before = before.with(&world.state_event(
            CAROL,
            "m.room.join_rules",
            "",
            &json!({ "join_rule": "public", "by": "carol" }),
            &before,
        ));
        let complete = before.with(&world.member(CAROL, CAROL, "leave", &before));
        let damaged = complete.without("m.room.join_rules", "");
        let resolved = resolve_delta(&world, &[&complete, &damaged]);
        assert_eq!(resolved.get_str("m.room.join_rules", "").is_some(), survives, "version {version}");
        let again = resolve_delta(&world, &[&damaged, &complete]);
        assert_eq!(resolved, again);
    }
}

/// The second graph of MSC4297: the levels that gave Bob his power are in no state and not in the auth difference.
/// Without the conflicted state subgraph they are not replayed, Bob's change is refused and the oldest levels return.
#[test]
fn levels_between_two_contested_ones_are_replayed() {
    let world = World::named("12");
    let base = world.furnish("public", &[(BOB, 0), (CAROL, 0)]);
    let raised = json!({ "users": { BOB: 100 }, "invite": 10 });
    let second = base.with(&world.state_event(ALICE, "m.room.power_levels", "", &raised, &base));
    let by_bob = json!({ "users": { BOB: 100, CAROL: 50 }, "invite": 10 });
    let third_levels = world.state_event(BOB, "m.room.power_levels", "", &by_bob, &second);
    // Dave's join cites the second levels, which puts them in the auth chain of both states.
    let join = world.member(DAVE, DAVE, "join", &second);
    let old = base.with(&join);
    let new = second.with(&join).with(&third_levels);
    let resolved = resolve_delta(&world, &[&old, &new]);
    assert_eq!(resolved.get_str("m.room.power_levels", "").unwrap().event_id(), third_levels.event_id());
    // The test means something: without the subgraph the library lets the oldest levels return.
    let slot = ("m.room.power_levels".to_owned(), String::new());
    let without = resolve_full(&world, &[&old, &new], StateResolutionV2Rules::V2_1, false);
    assert_eq!(&*without[&slot], base.at("m.room.power_levels", "").unwrap().event_id());
}

#[test]
fn a_rejected_event_never_gets_into_the_state() {
    for version in supported_room_versions() {
        let world = World::new(version);
        let base = world.furnish("public", &[(BOB, 100)]);
        let topic = world.build(BOB, "m.room.topic", Some(""), crate::support::object(&json!({})), None, &base);
        let topic = Arc::new(Pdu::clone(&topic).with_rejected(true));
        world.keep(&topic);
        let resolved = resolve_delta(&world, &[&base, &base.with(&topic)]);
        assert!(resolved.get_str("m.room.topic", "").is_none(), "version {}", version.name());
    }
}

#[test]
fn missing_events_are_named_until_all_are_there_and_unconflicted_members_are_not_among_them() {
    let world = World::named("12");
    let users: Vec<String> = (0..200).map(|n| format!("@user{n}:c.test")).collect();
    let mut base = world.furnish("public", &[(BOB, 100)]);
    for user in &users {
        base.set(&world.member(user, user, "join", &base));
    }
    let left = base.with(&world.state_event(ALICE, "m.room.topic", "", &json!({ "topic": 1 }), &base));
    let right = base.with(&world.state_event(BOB, "m.room.topic", "", &json!({ "topic": 2 }), &base));
    let trees = [world.tree(&left), world.tree(&right)];
    let chains = world.chains.borrow();
    let plan = ResolvePlan::new(world.version, &trees, &chains).unwrap();
    assert_eq!(plan.conflict_count(), 1);
    let loaded = std::cell::RefCell::new(BTreeMap::<OwnedEventId, Arc<Pdu>>::new());
    let source = |id: &EventId| loaded.borrow().get(id).cloned();
    assert!(matches!(plan.resolve(&source, |_| None), Err(ResolveError::MissingEvent(_))));
    let mut rounds = 0;
    loop {
        let missing = plan.missing(&source);
        if missing.is_empty() {
            break;
        }
        rounds += 1;
        for id in missing {
            let event = world.event(&id).unwrap();
            loaded.borrow_mut().insert(id, event);
        }
    }
    assert!(rounds <= 2, "{rounds} rounds");
    assert!(loaded.borrow().len() <= 12, "{} events for one conflict", loaded.borrow().len());
    let resolved = plan.resolve(&source, |_| None).unwrap();
    assert_eq!(resolved, resolve_delta(&world, &[&right, &left]));
}

#[test]
fn a_state_tree_with_its_events_serves_as_a_view_of_the_state() {
    let world = World::named("12");
    let state = world.furnish("public", &[(BOB, 50)]);
    let tree = world.tree(&state);
    let view = cofactor_room::TreeState { tree: &tree, events: &world };
    let message = world.attempt(BOB, "m.room.message", None, &json!({}), &state).unwrap();
    assert!(cofactor_room::authorize_event(&message, &view).is_ok());
    let outside = world.build(CAROL, "m.room.message", None, crate::support::object(&json!({})), None, &state);
    assert!(cofactor_room::authorize_event(&outside, &view).is_err());
}
