//! Messages in rooms.

use std::rc::Rc;

use rand::{RngExt, rngs::StdRng};
use serde_json::json;

use crate::chaos::{
    client::Request,
    history::{Operation, Sent, Text},
    world::{Device, Refusal, World, made},
};

/// The pause between two messages of one person, in milliseconds at most.
const PAUSE_MS_MAX: u64 = 120;

/// The pause before a transaction is sent again, in milliseconds at most.
const AGAIN_MS_MAX: u64 = 2_000;

/// More than an event may have, in bytes. <https://spec.matrix.org/v1.19/client-server-api/#size-limits>
const TOO_LARGE_BYTES: usize = 70_000;

/// Sends messages to rooms that nobody leaves, with all that clients do about answers that do not come.
pub(super) async fn speak(world: Rc<World>, person: usize) {
    let device = &world.people[person].devices[0];
    let mut rng = world.choices(&format!("speak {person}"));
    let rooms: Vec<_> = world.rooms.iter().filter(|room| !room.churned).collect();
    let mut number = 0;
    while world.is_loading() {
        world.pause(&mut rng, PAUSE_MS_MAX).await;
        let room = &rooms[rng.random_range(0..rooms.len())].id;
        let body = Text::from(format!("{} says {number}", device.label));
        number += 1;
        send(&world, device, room, body, &mut rng).await;
    }
}

async fn send(world: &World, device: &Device, room: &Text, body: Text, rng: &mut StdRng) {
    let too_large = rng.random_ratio(1, 100);
    let message = Message::new(device, room, body, too_large);
    let operation = match rng.random_range(0..100) {
        _ if too_large => message.once(world, Refusal::Expected).await,
        // Somebody who gives up.
        0..10 => message.once(world, Refusal::Wrong).await,
        // A client that sends again although the answer is only late.
        10..16 => {
            let (mut one, other) = tokio::join!(message.insist(world), message.insist(world));
            one.tries.extend(other.tries);
            one.tries.sort_by_key(|one| one.invoked);
            one
        }
        // A client that has forgotten the answer, after a while in which the server may have been killed.
        16..22 => {
            let mut operation = message.insist(world).await;
            world.pause(rng, AGAIN_MS_MAX).await;
            operation.tries.extend(message.insist(world).await.tries);
            operation
        }
        _ => message.insist(world).await,
    };
    message.note(world, operation);
}

/// A message with a transaction id of its own.
pub(crate) struct Message {
    room: Text,
    body: Text,
    transaction: (Text, Text),
    request: Request,
}

impl Message {
    pub(crate) fn new(device: &Device, room: &Text, body: Text, too_large: bool) -> Self {
        let transaction = body.replace(['@', '/', ' ', ':'], "-");
        let mut content = json!({ "msgtype": "m.text", "body": body });
        if too_large {
            content["padding"] = "x".repeat(TOO_LARGE_BYTES).into();
        }
        let request = Request::put(&["rooms", room, "send", "m.room.message", &transaction], content).by(&device.token);
        let transaction = (device.label.clone(), transaction.into());
        Self { room: room.clone(), body, transaction, request }
    }

    pub(super) async fn once(&self, world: &World, refusal: Refusal) -> Operation<Text> {
        let (one, _) = world.attempt(&self.request, refusal, made).await;
        Operation { tries: vec![one] }
    }

    pub(crate) async fn insist(&self, world: &World) -> Operation<Text> {
        world.insist(&self.request, made).await
    }

    pub(crate) fn note(self, world: &World, operation: Operation<Text>) {
        let Self { room, body, transaction, .. } = self;
        world.history.borrow_mut().sent.push(Sent { room, body, transaction: Some(transaction), operation });
    }
}
