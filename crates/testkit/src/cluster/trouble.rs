//! What goes wrong, as the seed chooses.

use std::{rc::Rc, time::Duration};

use cofactor_store::model::Faults;

use super::{
    bus::BusFaults,
    network::NetworkFaults,
    node::{ClusterNode, Ground, LEASE},
    world::{Machine, World},
};
use crate::connection::Cut;

/// How often each kind of trouble comes one after the other.
const TROUBLES: usize = 4;

/// What is always a little wrong with the store while there is trouble at all.
const STORE: Faults = Faults {
    unavailable_permille: 5,
    unknown_applied_permille: 10,
    unknown_lost_permille: 10,
    unknown_late_permille: 10,
    late_ms_max: 4_000,
    latency_us_max: 3_000,
};

/// A store that has a bad time.
const SICK_STORE: Faults = Faults {
    unavailable_permille: 60,
    unknown_applied_permille: 60,
    unknown_lost_permille: 60,
    unknown_late_permille: 60,
    late_ms_max: 6_000,
    latency_us_max: 60_000,
};

const NETWORK: NetworkFaults = NetworkFaults { lost_permille: 10, delay_us_max: 2_000 };

const SICK_NETWORK: NetworkFaults = NetworkFaults { lost_permille: 250, delay_us_max: 400_000 };

const BUS: BusFaults = BusFaults { is_down: false, lost_permille: 10, twice_permille: 10, delay_us_max: 20_000 };

const SICK_BUS: BusFaults =
    BusFaults { is_down: false, lost_permille: 300, twice_permille: 100, delay_us_max: 600_000 };

/// Answers to clients that are lost while there is trouble at all, in parts of a thousand.
const LOST_PERMILLE: u16 = 20;

/// The longest time that a trouble lasts, in milliseconds: a lease may end meanwhile, or two.
const LASTS_MS: u64 = 5_000;

/// The furthest that a clock is set, in milliseconds.
const JUMP_MS: u64 = 3_600_000;

/// Everything that may happen at once.
pub(super) fn begin(world: &World) {
    world.ground.store.set_faults(STORE);
    world.ground.network.set_faults(NETWORK);
    world.ground.hub.set_faults(BUS);
    world.lost_permille.set(LOST_PERMILLE);
}

/// Nothing is wrong any more.
pub(super) fn end(world: &World) {
    let Ground { store, network, hub, .. } = &*world.ground;
    store.set_faults(Faults { latency_us_max: 1_000, ..Faults::default() });
    network.set_faults(NetworkFaults { lost_permille: 0, delay_us_max: 1_000 });
    hub.set_faults(BusFaults { delay_us_max: 1_000, ..BusFaults::default() });
    world.lost_permille.set(0);
    for machine in &world.machines {
        hub.cut(&machine.address, false);
        for other in &world.machines {
            network.mend(&machine.address, &other.address);
        }
        if let Some(node) = &*machine.node.borrow() {
            node.life.resume();
            node.connection.cut(Cut::Whole);
        }
    }
}

/// Starts what is to run on a machine and does not, for as long as the future is polled.
pub(super) async fn supervise(world: Rc<World>, index: usize) {
    let machine = &world.machines[index];
    loop {
        let is_dead = machine.node.borrow().as_ref().is_none_or(|node| node.life.is_dead());
        if is_dead {
            let dead = machine.node.borrow_mut().take();
            if let Some(node) = dead {
                world.note((&machine.address, "is dead"));
                node.crash();
            }
            if machine.is_kept.get() {
                // Some processes come back at once, some only after their lease is over.
                world.pause(3_000).await;
                let node = ClusterNode::start(&world.ground, &machine.address, &machine.clock).await;
                world.note((&machine.address, "starts", node.is_some()));
                *machine.node.borrow_mut() = node.map(Rc::new);
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// One trouble after the other.
pub(super) async fn happen(world: Rc<World>) {
    for _ in 0..TROUBLES {
        world.pause(1_500).await;
        one(&world).await;
    }
}

async fn one(world: &World) {
    let machines = world.machines.len() as u64;
    let first = usize::try_from(world.up_to(machines - 1)).unwrap_or(0);
    let second = (first + 1 + usize::try_from(world.up_to(machines - 2)).unwrap_or(0)) % world.machines.len();
    let (machine, other) = (&world.machines[first], &world.machines[second]);
    let lasts = Duration::from_millis(100 + world.up_to(LASTS_MS));
    let kind = world.up_to(11);
    world.note(("trouble", kind, &machine.address, &other.address, lasts));
    let node = machine.node.borrow().clone();
    let Ground { store, network, hub, .. } = &*world.ground;
    match (kind, node) {
        (0 | 1, Some(node)) => node.crash(),
        (2 | 3, Some(node)) => {
            node.life.pause();
            tokio::time::sleep(lasts.max(LEASE / 2)).await;
            node.life.resume();
        }
        (4, _) => {
            network.cut(&machine.address, &other.address);
            tokio::time::sleep(lasts).await;
            network.mend(&machine.address, &other.address);
        }
        (5, _) => isolate(world, machine, lasts).await,
        (6, _) => {
            hub.set_faults(if world.up_to(1) == 0 { BusFaults { is_down: true, ..BUS } } else { SICK_BUS });
            tokio::time::sleep(lasts).await;
            hub.set_faults(BUS);
        }
        (7, _) => {
            store.set_faults(SICK_STORE);
            network.set_faults(SICK_NETWORK);
            tokio::time::sleep(lasts).await;
            store.set_faults(STORE);
            network.set_faults(NETWORK);
        }
        (8, _) => {
            let ahead_ms = i64::try_from(world.up_to(2 * JUMP_MS)).unwrap_or(0) - JUMP_MS as i64;
            machine.clock.set(ahead_ms * 1_000 / [1, 100, 10_000][usize::try_from(world.up_to(2)).unwrap_or(0)]);
        }
        (9, Some(node)) => {
            machine.is_kept.set(false);
            node.leave().await;
            tokio::time::sleep(lasts).await;
            machine.is_kept.set(true);
        }
        (10, Some(node)) => {
            node.connection
                .cut([Cut::Refused, Cut::Requests, Cut::Answers][usize::try_from(world.up_to(2)).unwrap_or(0)]);
            tokio::time::sleep(lasts).await;
            node.connection.cut(Cut::Whole);
        }
        (11, _) => {
            hub.cut(&machine.address, true);
            tokio::time::sleep(lasts).await;
            hub.cut(&machine.address, false);
        }
        // Where nobody is, somebody may join; where it should not be, it goes.
        _ => machine.is_kept.set(true),
    }
}

/// Nobody reaches a machine and it reaches nobody, or only one of the two.
async fn isolate(world: &World, machine: &Machine, lasts: Duration) {
    let Ground { network, .. } = &*world.ground;
    let ways = world.up_to(2);
    for other in &world.machines {
        if ways != 0 {
            network.cut(&machine.address, &other.address);
        }
        if ways != 1 {
            network.cut(&other.address, &machine.address);
        }
    }
    tokio::time::sleep(lasts).await;
    for other in &world.machines {
        network.mend(&machine.address, &other.address);
        network.mend(&other.address, &machine.address);
    }
}
