//! To-device messages.

use std::{collections::BTreeMap, rc::Rc};

use rand::{RngExt, rngs::StdRng};
use serde_json::{Value, json};

use crate::chaos::{
    client::Request,
    history::{Operation, Text, Whisper},
    world::{Device, Refusal, WHISPER, World, nothing},
};

/// The pause between two messages of one device, in milliseconds at most.
const PAUSE_MS_MAX: u64 = 300;

/// Receivers of one message at most.
const RECEIVERS_MAX: usize = 3;

/// Sends to-device messages to some devices, or to all of somebody's.
pub(super) async fn whisper(world: Rc<World>, device: Rc<Device>) {
    let mut rng = world.choices(&format!("whisper {}", device.label));
    let mut number = 0;
    while world.is_loading() {
        world.pause(&mut rng, PAUSE_MS_MAX).await;
        let body = Text::from(format!("{} whispers {number}", device.label));
        number += 1;
        let (receivers, messages) = address(&world, &body, &mut rng);
        let transaction = body.replace(['@', '/', ' ', ':'], "-");
        let path = ["sendToDevice", WHISPER, &transaction];
        let request = Request::put(&path, json!({ "messages": messages })).by(&device.token);
        let operation = match rng.random_range(0..10) {
            0 => {
                let (one, _) = world.attempt(&request, Refusal::Wrong, nothing).await;
                Operation { tries: vec![one] }
            }
            // The same once more: nobody may hear it twice.
            1 => {
                let mut operation = world.insist(&request, nothing).await;
                operation.tries.extend(world.insist(&request, nothing).await.tries);
                operation
            }
            _ => world.insist(&request, nothing).await,
        };
        let sender = device.label.clone();
        world.history.borrow_mut().whispers.push(Whisper { sender, receivers, body, operation });
    }
}

/// Who gets a message, and how a request says so.
fn address(world: &World, body: &Text, rng: &mut StdRng) -> (Vec<Text>, Value) {
    let content = json!({ "body": body });
    if rng.random_ratio(1, 5) {
        let person = &world.people[rng.random_range(0..world.people.len())];
        let receivers = person.devices.iter().map(|device| device.label.clone()).collect();
        return (receivers, json!({ &*person.user: { "*": content } }));
    }
    let devices: Vec<_> = world.devices().collect();
    let mut chosen: BTreeMap<&Text, &Rc<Device>> = BTreeMap::new();
    for _ in 0..rng.random_range(1..=RECEIVERS_MAX) {
        let device = devices[rng.random_range(0..devices.len())];
        chosen.insert(&device.label, device);
    }
    let mut messages = json!({});
    for device in chosen.values() {
        messages[&*device.user][&*device.id] = content.clone();
    }
    (chosen.into_keys().cloned().collect(), messages)
}
