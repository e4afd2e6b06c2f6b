//! People who keep leaving and joining.

use std::rc::Rc;

use rand::RngExt;
use serde_json::json;

use super::speak::Message;
use crate::chaos::{
    client::Request,
    history::Text,
    world::{Refusal, World, nothing},
};

/// The pause between two steps, in milliseconds at most.
const PAUSE_MS_MAX: u64 = 600;

/// Messages of one stay at most.
const MESSAGES_MAX: usize = 8;

/// Leaves and joins rooms; writes while inside, and is refused outside. Ends inside all of them.
pub(super) async fn come_and_go(world: Rc<World>, person: usize) {
    let device = &world.people[person].devices[0];
    let mut rng = world.choices(&format!("churn {person}"));
    let rooms: Vec<_> = world.rooms.iter().filter(|room| room.churned).map(|room| &room.id).collect();
    let mut number = 0;
    while world.is_loading() {
        let room = rooms[rng.random_range(0..rooms.len())];
        world.pause(&mut rng, PAUSE_MS_MAX).await;
        let leave = Request::post(&["rooms", room, "leave"], json!({})).by(&device.token);
        if world.insist_on_change(&leave).await {
            let body = Text::from(format!("{} says outside {number}", device.label));
            let message = Message::new(device, room, body, false);
            let operation = message.once(&world, Refusal::Expected).await;
            if operation.acknowledged().is_some() {
                world.complain(format!("{} wrote into {room} after having left it", device.label));
            }
            message.note(&world, operation);
        }
        world.pause(&mut rng, PAUSE_MS_MAX).await;
        let join = Request::post(&["join", room], json!({})).by(&device.token);
        world.insist(&join, nothing).await;
        for _ in 0..rng.random_range(0..MESSAGES_MAX) {
            let body = Text::from(format!("{} says inside {number}", device.label));
            number += 1;
            let message = Message::new(device, room, body, false);
            let operation = message.insist(&world).await;
            message.note(&world, operation);
        }
        number += 1;
    }
}
