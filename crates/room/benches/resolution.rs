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

/// What the server uses: the system's allocator takes longer the more there is.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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

/// A room with two states that differ.
struct Fork {
    world: World,
    trees: [StateTree; 2],
}

/// A room of so many members. In one state some of them were sent away, in the other they changed their names, and each has
/// a topic of its own.
fn both_changed(members: u32) -> Fork {
    fork(members, |room, branch, is_first| {
        let topic = json!({ "topic": if is_first { "one" } else { "other" } });
        branch.set(room.world.state_event(ALICE, "m.room.topic", "", &topic, &room.state));
        for name in room.names.iter().take(CONFLICTS as usize - 1) {
            branch.set(if is_first {
                room.world.member(ALICE, name, "leave", &room.state)
            } else {
                let content = json!({ "membership": "join", "displayname": "somebody else" });
                room.world.state_event(name, "m.room.member", name, &content, &room.state)
            });
        }
    })
}

/// A room of so many members, and the same after some more have joined: nothing of the first state is in conflict.
fn others_joined(members: u32) -> Fork {
    fork(members, |room, branch, is_first| {
        for number in (0..CONFLICTS).filter(|_| !is_first) {
            let name = format!("@new{number}:c.test");
            branch.set(room.world.member(&name, &name, "join", &room.state));
        }
    })
}

/// A room before it forks.
struct Room {
    world: World,
    names: Vec<String>,
    state: State,
}

/// One of the two states.
struct Branch<'a> {
    world: &'a World,
    tree: StateTree,
}

impl Branch<'_> {
    fn set(&mut self, pdu: std::sync::Arc<cofactor_room::Pdu>) {
        self.tree.insert(StateEntry::of(&pdu, self.world.positions.borrow()[pdu.event_id()]).unwrap());
    }
}

fn fork(members: u32, change: impl Fn(&Room, &mut Branch<'_>, bool)) -> Fork {
    let world = World::named("12");
    let mut state = world.furnish("public", &[]);
    let names: Vec<String> = (0..members).map(|number| format!("@user{number}:b.test")).collect();
    for name in &names {
        let pdu = world.member(name, name, "join", &state);
        state.set(&pdu);
    }
    let tip = world.tip.borrow().clone();
    let base = world.tree(&state);
    let room = Room { world, names, state };
    let trees = [true, false].map(|is_first| {
        *room.world.tip.borrow_mut() = tip.clone();
        let mut branch = Branch { world: &room.world, tree: base.clone() };
        change(&room, &mut branch, is_first);
        branch.tree
    });
    Fork { world: room.world, trees }
}

fn cost_us(Fork { world, trees }: &Fork) -> f64 {
    let chains = world.chains.borrow();
    let run = || {
        let before = cpu_us();
        let plan = ResolvePlan::new(world.version, trees, &chains).unwrap();
        assert_eq!(plan.conflict_count(), CONFLICTS as usize);
        assert!(plan.missing(world).is_empty());
        let resolved = plan.resolve(world, |id| world.positions.borrow().get(id).copied()).unwrap();
        let took = cpu_us() - before;
        assert!(resolved.len() >= trees[0].len());
        black_box(resolved);
        took
    };
    (0..RUNS).map(|_| run()).fold(f64::INFINITY, f64::min)
}

/// Prints what ten conflicts cost, and how that grows.
fn growth(name: &str, make: impl Fn(u32) -> Fork) -> f64 {
    let costs = SIZES.map(|members| {
        let cost = cost_us(&make(members));
        println!("{CONFLICTS} conflicts, {name}, in a room of {members:>6} members: {cost:>6.0} µs");
        cost
    });
    let ratio = costs[SIZES.len() - 1] / costs[0];
    let growth = ratio.ln() / f64::from(SIZES[SIZES.len() - 1] / SIZES[0]).ln();
    println!("{ratio:.2} times, cost ~ members^{growth:.3}; {EXPONENT_MAX} is allowed");
    growth
}

fn main() -> ExitCode {
    // Who asks which tests there are finds none here.
    if std::env::args().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    let grows = [growth("both sides changed", both_changed), growth("others joined on one side", others_joined)];
    if grows.iter().any(|growth| *growth > EXPONENT_MAX) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
