//! What people do: each of the modules is one habit, each task of it goes on until the load ends.

mod chain;
mod churn;
mod keys;
mod registers;
mod speak;
mod whisper;

use std::rc::Rc;

use tokio::task::JoinHandle;

pub(crate) use chain::Follower;
pub(crate) use keys::{claim, key_count};
pub(crate) use registers::{account_data_registers, read_account_data, read_device_keys, read_state, state_registers};
pub(crate) use speak::Message;

use crate::chaos::world::World;

/// Starts what writes. The tasks end by themselves when the load does.
pub(crate) fn start(world: &Rc<World>) -> Vec<JoinHandle<()>> {
    let mut tasks = Vec::new();
    let mut spawn = |task: std::pin::Pin<Box<dyn Future<Output = ()>>>| tasks.push(tokio::task::spawn_local(task));
    for person in 0..world.people.len() {
        spawn(Box::pin(speak::speak(Rc::clone(world), person)));
        spawn(Box::pin(registers::keep_account_data(Rc::clone(world), person)));
        spawn(Box::pin(registers::confirm_reading(Rc::clone(world), person)));
        spawn(Box::pin(keys::take_keys(Rc::clone(world), person)));
        if world.people[person].churns {
            spawn(Box::pin(churn::come_and_go(Rc::clone(world), person)));
        }
    }
    for governor in 0..2.min(world.people.len()) {
        spawn(Box::pin(registers::govern(Rc::clone(world), governor)));
    }
    for device in world.devices() {
        spawn(Box::pin(whisper::whisper(Rc::clone(world), Rc::clone(device))));
        spawn(Box::pin(keys::stock_keys(Rc::clone(world), Rc::clone(device))));
        spawn(Box::pin(keys::renew_identity(Rc::clone(world), Rc::clone(device))));
    }
    tasks
}
