//! The end of a run: nothing is broken any more, nobody writes, and everything is read once more.

use std::{collections::BTreeSet, rc::Rc, time::Duration};

use serde_json::json;
use tokio::time::Instant;

use crate::chaos::{
    client::{Page, Request, SyncAnswer},
    history::{Drain, Entry, Operation, Reading, Sent, Tail, Text, Whisper},
    load::{
        account_data_registers, claim, key_count, read_account_data, read_device_keys, read_state, state_registers,
    },
    world::{Device, Room, WHISPER, World, made, nothing},
};

/// How long news may take to reach who waits for it when nothing is broken.
const PROBE_MAX: Duration = Duration::from_secs(5);

/// Events of one page.
const PAGE_LIMIT: &str = "500";

/// Pages of one room at most.
const PAGES_MAX: usize = 10_000;

/// One-time keys of one device at most.
const KEYS_MAX: usize = 1_000;

/// Sends one message to every room and every device: all that went before must have arrived when these have.
pub(super) async fn probe(world: &World) {
    let mut expected = BTreeSet::new();
    let device = &world.people[0].devices[0];
    for (number, room) in world.rooms.iter().enumerate() {
        let body = Text::from(format!("probe of room {number}"));
        let transaction = Text::from(format!("probe-{number}"));
        let path = ["rooms", &room.id, "send", "m.room.message", &transaction];
        let request = Request::put(&path, json!({ "msgtype": "m.text", "body": body })).by(&device.token);
        let operation = world.insist(&request, made).await;
        let transaction = Some((device.label.clone(), transaction));
        world.history.borrow_mut().sent.push(Sent {
            room: room.id.clone(),
            body: body.clone(),
            transaction,
            operation,
        });
        expected.extend(world.devices().map(|device| (device.label.clone(), body.clone())));
    }
    let body = Text::from("probe of devices");
    let mut messages = json!({});
    for person in &world.people {
        messages[&*person.user]["*"] = json!({ "body": body });
    }
    let request = Request::put(&["sendToDevice", WHISPER, "probe"], json!({ "messages": messages })).by(&device.token);
    let operation = world.insist(&request, nothing).await;
    let receivers: Vec<_> = world.devices().map(|device| device.label.clone()).collect();
    expected.extend(receivers.iter().map(|receiver| (receiver.clone(), body.clone())));
    let sender = device.label.clone();
    world.history.borrow_mut().whispers.push(Whisper { sender, receivers, body, operation });
    wait_for(world, &expected).await;
}

async fn wait_for(world: &World, expected: &BTreeSet<(Text, Text)>) {
    let end = Instant::now() + PROBE_MAX;
    while !expected.is_subset(&world.probes.borrow()) {
        if Instant::now() > end {
            for (reader, body) in expected.difference(&world.probes.borrow()) {
                world.complain(format!("{reader} did not hear the {body} within {} s", PROBE_MAX.as_secs()));
            }
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Reads everything as everybody.
pub(super) async fn read_everything(world: &Rc<World>) {
    let readers = world.people.iter().map(|person| read_as(world, &person.devices[0], None));
    futures::future::join_all(readers).await;
    for node in 0..world.client.nodes() {
        let reader = &world.people[0].devices[0];
        if world.client.nodes() > 1 {
            read_as(world, reader, Some(node)).await;
        }
        for register in state_registers(world) {
            read_state(world, reader, &register, Some(node)).await;
        }
        for device in world.devices() {
            for place in account_data_registers(world) {
                read_account_data(world, device, place.as_ref(), Some(node)).await;
            }
        }
    }
    for device in world.devices() {
        read_device_keys(world, &world.people[0].devices[0], device).await;
        drain_keys(world, device).await;
    }
}

async fn read_as(world: &World, device: &Device, node: Option<usize>) {
    for room in &world.rooms {
        for direction in ["f", "b"] {
            read_room(world, device, room, direction, node).await;
        }
    }
    read_tails(world, device, node).await;
}

async fn read_room(world: &World, device: &Device, room: &Room, direction: &str, node: Option<usize>) {
    let mut entries: Vec<Entry> = Vec::new();
    let mut from: Option<String> = None;
    for _ in 0..PAGES_MAX {
        let mut request = Request::get(&["rooms", &room.id, "messages"])
            .with("dir", direction)
            .with("limit", PAGE_LIMIT)
            .by(&device.token)
            .to_node(node);
        if let Some(from) = from {
            request = request.with("from", from);
        }
        let Some(page) = world.fetch::<Page>(&request).await else { return };
        entries.extend(page.chunk.into_iter().map(Entry::from));
        from = page.end;
        if from.is_none() {
            break;
        }
    }
    if direction == "b" {
        entries.reverse();
    }
    let where_ = node.map_or_else(String::new, |node| format!(" of node {node}"));
    let reader = format!("{}{where_} ({direction})", device.label).into();
    world.history.borrow_mut().readings.push(Reading { reader, room: room.id.clone(), entries });
}

/// An initial sync, as by a new client.
async fn read_tails(world: &World, device: &Device, node: Option<usize>) {
    let request = Request::get(&["sync"]).by(&device.token).to_node(node);
    let Some(answer) = world.fetch::<SyncAnswer>(&request).await else { return };
    let mut rooms = answer.rooms.join;
    for room in &world.rooms {
        let Some(part) = rooms.remove(&room.id) else {
            world.complain(format!("an initial sync of {} lacks {}", device.label, room.id));
            continue;
        };
        let events = part.timeline.events.into_iter().map(|event| event.event_id).collect();
        let reader = device.label.clone();
        world.history.borrow_mut().tails.push(Tail { reader, room: room.id.clone(), events });
    }
}

/// Takes all that is left of a device's one-time keys.
async fn drain_keys(world: &World, device: &Device) {
    let Some(counted) = key_count(world, device).await else { return };
    let mut drain = Drain { counted, keys: Vec::new() };
    for _ in 0..KEYS_MAX {
        let operation: Operation<Option<Text>> = claim(world, device, device).await;
        match operation.answers().next() {
            Some(Some(key)) => drain.keys.push(key.clone()),
            Some(None) => break,
            None => {
                world.complain(format!("a key of {} could not be claimed although nothing is broken", device.label));
                return;
            }
        }
    }
    if key_count(world, device).await != Some(0) {
        world.complain(format!("{} is said to have keys after the last one was handed out", device.label));
    }
    world.history.borrow_mut().drains.insert(device.label.clone(), drain);
}
