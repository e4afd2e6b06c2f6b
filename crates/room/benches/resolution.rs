//! What it costs to resolve ten conflicts in rooms of growing size: it must not depend on the size. Prints the CPU time of each
//! and ends with 1 if it grows: `cargo bench --package cofactor-room --bench resolution`.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measurement that breaks has nobody to tell but its reader"
)]

#[path = "../tests/it/support.rs"]
#[expect(dead_code, reason = "the tests need more of it")]
mod support;

use std::{hint::black_box, process::ExitCode};

use cofactor_room::{ResolvePlan, StateEntry, StateTree};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use support::{ALICE, State, World};

const SIZES: [u32; 4] = [100, 1_000, 10_000, 100_000];
const CONFLICTS: u32 = 10;
/// The least of so many runs counts: what disturbs a run only ever makes it longer.
const RUNS: u32 = 60;
/// Cost ~ members^exponent.
const EXPONENT_MAX: f64 = 0.1;

fn cpu_us() -> f64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as f64 * 1e6 + now.tv_nsec as f64 / 1e3
}

/// A room of so many members, and two states of it: in one, some members were sent away, in the other they changed their
/// names, and each has a topic of its own.
fn room(members: u32) -> (World, [StateTree; 2]) {
    let world = World::named("12");
    let mut state = world.furnish("public", &[]);
    let names: Vec<String> = (0..members).map(|number| format!("@user{number}:b.test")).collect();
    for name in &names {
        let pdu = world.member(name, name, "join", &state);
        state.set(&pdu);
    }
    let fork = world.tip.borrow().clone();
    let base = world.tree(&state);
    let trees = [true, false].map(|is_first| {
        *world.tip.borrow_mut() = fork.clone();
        let mut tree = base.clone();
        let mut branch = State(state.0.clone());
        let mut set = |pdu: std::sync::Arc<cofactor_room::Pdu>| {
            tree.insert(StateEntry::of(&pdu, world.positions.borrow()[pdu.event_id()]).unwrap());
            branch.set(&pdu);
        };
        let topic = json!({ "topic": if is_first { "one" } else { "other" } });
        set(world.state_event(ALICE, "m.room.topic", "", &topic, &state));
        for name in names.iter().take(CONFLICTS as usize - 1) {
            set(if is_first {
                world.member(ALICE, name, "leave", &state)
            } else {
                let content = json!({ "membership": "join", "displayname": "somebody else" });
                world.state_event(name, "m.room.member", name, &content, &state)
            });
        }
        tree
    });
    (world, trees)
}

fn cost_us(members: u32) -> f64 {
    let (world, trees) = room(members);
    let chains = world.chains.borrow();
    let run = || {
        let before = cpu_us();
        let plan = ResolvePlan::new(world.version, &trees, &chains).unwrap();
        assert_eq!(plan.conflict_count(), CONFLICTS as usize);
        assert!(plan.missing(&world).unwrap().is_empty());
        let resolved = plan.resolve(&world, |id| world.positions.borrow().get(id).copied()).unwrap();
        let took = cpu_us() - before;
        assert_eq!(resolved.len(), trees[0].len());
        black_box(resolved);
        took
    };
    (0..RUNS).map(|_| run()).fold(f64::INFINITY, f64::min)
}

fn main() -> ExitCode {
    let costs = SIZES.map(|members| {
        let cost = cost_us(members);
        println!("{CONFLICTS} conflicts in a room of {members:>6} members: {cost:>6.0} µs");
        cost
    });
    let growth = (costs[SIZES.len() - 1] / costs[0]).ln() / f64::from(SIZES[SIZES.len() - 1] / SIZES[0]).ln();
    println!("cost ~ members^{growth:.3}; {EXPONENT_MAX} is allowed");
    if growth > EXPONENT_MAX { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
