//! Things of which the last value counts: state, account data, receipts.

use std::rc::Rc;

use rand::RngExt;
use serde_json::json;

use super::keys;
use crate::chaos::{
    client::{self, Request},
    history::{Operation, Read, Sent, Text, Write},
    world::{Device, REGISTER, Refusal, World, made, nothing},
};

/// The pause between two writes of one task, in milliseconds at most.
const PAUSE_MS_MAX: u64 = 400;

/// The pause between two receipts of one person, in milliseconds at most.
const RECEIPT_MS_MAX: u64 = 600;

/// The state keys of the registers of each room.
const STATE_KEYS: [&str; 2] = ["", "other"];

/// The type of the account data that is written.
pub(super) const DATA: &str = "org.cofactor.chaos.data";

/// A register in the state of a room.
#[derive(Clone, Debug)]
pub(crate) struct StateRegister {
    room: Text,
    key: &'static str,
}

impl StateRegister {
    fn name(&self) -> Text {
        format!("the state \"{}\" of {}", self.key, self.room).into()
    }
}

/// All registers in state.
pub(crate) fn state_registers(world: &World) -> Vec<StateRegister> {
    let of_room = |room: &Text| STATE_KEYS.map(|key| StateRegister { room: room.clone(), key });
    world.rooms.iter().flat_map(|room| of_room(&room.id)).collect()
}

/// Sets state that another sets at the same time, and reads it.
pub(super) async fn govern(world: Rc<World>, governor: usize) {
    let mut rng = world.choices(&format!("govern {governor}"));
    let device = &world.people[governor].devices[0];
    let registers = state_registers(&world);
    let mut number = 0;
    while world.is_loading() {
        world.pause(&mut rng, PAUSE_MS_MAX).await;
        let register = &registers[rng.random_range(0..registers.len())];
        let value = Text::from(format!("{} sets {number}", device.label));
        number += 1;
        let path = ["rooms", &register.room, "state", REGISTER, register.key];
        let request = Request::put(&path, json!({ "body": value })).by(&device.token);
        // State has no transaction id: what may have been done is not done again.
        let (one, _) = world.attempt(&request, Refusal::Wrong, made).await;
        let operation = Operation { tries: vec![one] };
        note_state(&world, register, value, operation);
        let reader = &world.people[rng.random_range(0..2.min(world.people.len()))].devices[0];
        read_state(&world, reader, register, None).await;
    }
}

fn note_state(world: &World, register: &StateRegister, value: Text, operation: Operation<Text>) {
    let tries = operation.tries.iter().map(|one| one.clone().map(drop)).collect();
    let mut history = world.history.borrow_mut();
    history.writes.push(Write { register: register.name(), value: value.clone(), operation: Operation { tries } });
    history.sent.push(Sent { room: register.room.clone(), body: value, transaction: None, operation });
}

/// Reads state, once.
pub(crate) async fn read_state(world: &World, reader: &Device, register: &StateRegister, node: Option<usize>) {
    let path = ["rooms", &register.room, "state", REGISTER, register.key];
    let (one, found) = world.look(&Request::get(&path).by(&reader.token).to_node(node)).await;
    if let Some(found) = found {
        let value = found.and_then(|content| content["body"].as_str().map(Text::from));
        let room = Some(register.room.clone());
        world.history.borrow_mut().reads.push(Read { register: register.name(), room, value, invoked: one.invoked });
    }
}

/// The places where a user keeps account data: everywhere, and in the rooms that nobody leaves.
pub(crate) fn account_data_registers(world: &World) -> Vec<Option<Text>> {
    let rooms = world.rooms.iter().filter(|room| !room.churned);
    std::iter::once(None).chain(rooms.map(|room| Some(room.id.clone()))).collect()
}

/// The register of a user's account data.
pub(super) fn data_register(user: &Text, room: Option<&Text>) -> Text {
    match room {
        Some(room) => format!("the data of {user} in {room}").into(),
        None => format!("the data of {user}").into(),
    }
}

fn data_path<'a>(user: &'a Text, room: Option<&'a Text>) -> Vec<&'a str> {
    match room {
        Some(room) => vec!["user", user, "rooms", room, "account_data", DATA],
        None => vec!["user", user, "account_data", DATA],
    }
}

/// Writes and reads one's own account data.
pub(super) async fn keep_account_data(world: Rc<World>, person: usize) {
    let mut rng = world.choices(&format!("data {person}"));
    let devices = &world.people[person].devices;
    let user = &world.people[person].user;
    let places = account_data_registers(&world);
    let mut number = 0;
    while world.is_loading() {
        world.pause(&mut rng, PAUSE_MS_MAX).await;
        let place = places[rng.random_range(0..places.len())].as_ref();
        let value = Text::from(format!("{user} keeps {number}"));
        number += 1;
        let request = Request::put(&data_path(user, place), json!({ "value": value })).by(&devices[0].token);
        let operation = world.insist(&request, nothing).await;
        world.history.borrow_mut().writes.push(Write { register: data_register(user, place), value, operation });
        let reader = &devices[rng.random_range(0..devices.len())];
        read_account_data(&world, reader, place, None).await;
    }
}

/// Reads account data, once.
pub(crate) async fn read_account_data(world: &World, reader: &Device, place: Option<&Text>, node: Option<usize>) {
    let path = data_path(&reader.user, place);
    let (one, found) = world.look(&Request::get(&path).by(&reader.token).to_node(node)).await;
    if let Some(found) = found {
        let value = found.and_then(|content| content["value"].as_str().map(Text::from));
        let register = data_register(&reader.user, place);
        world.history.borrow_mut().reads.push(Read { register, room: None, value, invoked: one.invoked });
    }
}

/// Reads the device keys of another device, once.
pub(crate) async fn read_device_keys(world: &World, reader: &Device, device: &Device) {
    let query = json!({ "device_keys": { &*device.user: [&*device.id] } });
    let request = Request::post(&["keys", "query"], query).by(&reader.token);
    let (one, _) = world.attempt(&request, Refusal::Wrong, client::read).await;
    if let Some(answer) = keys::answer(one.outcome) {
        let (register, value) = (keys::register(device), keys::identity(&answer, device));
        world.history.borrow_mut().reads.push(Read { register, room: None, value, invoked: one.invoked });
    }
}

/// The register of a user's receipt in a room.
pub(super) fn receipt_register(user: &str, room: &Text) -> Text {
    format!("the receipt of {user} in {room}").into()
}

/// Says of the newest event seen that it was read.
pub(super) async fn confirm_reading(world: Rc<World>, person: usize) {
    let mut rng = world.choices(&format!("receipts {person}"));
    let device = &world.people[person].devices[0];
    let rooms: Vec<_> = world.rooms.iter().filter(|room| !room.churned).collect();
    let mut last = vec![None; rooms.len()];
    while world.is_loading() {
        world.pause(&mut rng, RECEIPT_MS_MAX).await;
        let chosen = rng.random_range(0..rooms.len());
        let room = &rooms[chosen].id;
        let latest = world.latest.borrow().get(&(device.label.clone(), room.clone())).cloned();
        let Some(event) = latest.filter(|event| last[chosen].as_ref() != Some(event)) else { continue };
        last[chosen] = Some(event.clone());
        let request = Request::post(&["rooms", room, "receipt", "m.read", &event], json!({})).by(&device.token);
        let operation = world.insist(&request, nothing).await;
        let register = receipt_register(&device.user, room);
        world.history.borrow_mut().writes.push(Write { register, value: event, operation });
    }
}
