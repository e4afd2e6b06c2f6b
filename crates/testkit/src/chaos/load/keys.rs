//! Device keys and one-time keys.

use std::{collections::BTreeMap, rc::Rc};

use rand::RngExt;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::registers::read_device_keys;
use crate::chaos::{
    client::{self, Request},
    history::{Ended, KeyClaim, KeyUpload, Operation, Text, Write},
    world::{Device, Refusal, World, nothing},
};

/// <https://spec.matrix.org/v1.19/client-server-api/#one-time-and-fallback-keys>
const ALGORITHM: &str = "signed_curve25519";

/// The pause between two looks at the stock of a device, in milliseconds at most.
const STOCK_MS_MAX: u64 = 1_000;

/// The pause between two claims of one person, in milliseconds at most.
const CLAIM_MS_MAX: u64 = 500;

/// The pause between two identities of a device, in milliseconds at most.
const IDENTITY_MS_MAX: u64 = 4_000;

/// A device with fewer keys uploads more.
const STOCK_LOW: u64 = 30;

/// Keys of one upload. With it the stock stays below what a server keeps for one device.
const UPLOAD: usize = 20;

#[derive(Deserialize)]
struct Counts {
    #[serde(default)]
    one_time_key_counts: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
struct Claimed {
    one_time_keys: BTreeMap<Text, BTreeMap<Text, BTreeMap<String, Value>>>,
}

/// A key as the history knows it: a key whose value is another's is another key.
fn text(id: &str, key: &Value) -> Text {
    format!("{id} = {}", key["key"].as_str().unwrap_or("nothing")).into()
}

/// How many keys the server says there are. Used by the device, at the end.
pub(crate) async fn key_count(world: &World, device: &Device) -> Option<u64> {
    let request = Request::post(&["keys", "upload"], json!({})).by(&device.token);
    let counts: Counts = world.fetch(&request).await?;
    Some(counts.one_time_key_counts.get(ALGORITHM).copied().unwrap_or(0))
}

/// Uploads keys when there are few. What may have arrived is never sent again: after a claim it would be a new key.
pub(super) async fn stock_keys(world: Rc<World>, device: Rc<Device>) {
    let mut rng = world.choices(&format!("stock {}", device.label));
    let mut number = 0;
    while world.is_loading() {
        if key_count(&world, &device).await.is_some_and(|count| count < STOCK_LOW) {
            let mut keys = Map::new();
            for _ in 0..UPLOAD {
                let value = format!("{:A<43}", format!("{}{number}", device.id));
                let signatures = json!({ &*device.user: { format!("ed25519:{}", device.id): "A".repeat(86) } });
                keys.insert(format!("{ALGORITHM}:K{number}"), json!({ "key": value, "signatures": signatures }));
                number += 1;
            }
            let known = keys.iter().map(|(id, key)| text(id, key)).collect();
            let request = Request::post(&["keys", "upload"], json!({ "one_time_keys": keys })).by(&device.token);
            let (one, _) = world.attempt(&request, Refusal::Wrong, nothing).await;
            let upload =
                KeyUpload { device: device.label.clone(), keys: known, operation: Operation { tries: vec![one] } };
            world.history.borrow_mut().key_uploads.push(upload);
        }
        world.pause(&mut rng, STOCK_MS_MAX).await;
    }
}

/// Claims one key of `target`, once, and gives it back, if one came.
pub(crate) async fn claim(world: &World, by: &Device, target: &Device) -> Operation<Option<Text>> {
    let wanted = json!({ "one_time_keys": { &*target.user: { &*target.id: ALGORITHM } } });
    let request = Request::post(&["keys", "claim"], wanted).by(&by.token);
    let read = |body: &[u8]| {
        let claimed: Claimed = client::read(body)?;
        let keys = claimed.one_time_keys.get(&target.user).and_then(|devices| devices.get(&target.id));
        Ok(keys.and_then(|keys| keys.first_key_value()).map(|(id, key)| text(id, key)))
    };
    let (one, _) = world.attempt(&request, Refusal::Wrong, read).await;
    Operation { tries: vec![one] }
}

/// Claims keys of others, often two at once of the same device.
pub(super) async fn take_keys(world: Rc<World>, person: usize) {
    let by = &world.people[person].devices[0];
    let mut rng = world.choices(&format!("take {person}"));
    let devices: Vec<_> = world.devices().collect();
    while world.is_loading() {
        world.pause(&mut rng, CLAIM_MS_MAX).await;
        let target = devices[rng.random_range(0..devices.len())];
        let claims = match rng.random_ratio(1, 3) {
            true => {
                let (one, other) = tokio::join!(claim(&world, by, target), claim(&world, by, target));
                vec![one, other]
            }
            false => vec![claim(&world, by, target).await],
        };
        let device = &target.label;
        let claims = claims.into_iter().map(|operation| KeyClaim { device: device.clone(), operation });
        world.history.borrow_mut().key_claims.extend(claims);
    }
}

/// Uploads device keys that are new each time, and looks at those of others.
pub(super) async fn renew_identity(world: Rc<World>, device: Rc<Device>) {
    let mut rng = world.choices(&format!("identity {}", device.label));
    let devices: Vec<_> = world.devices().collect();
    let mut number = 0;
    while world.is_loading() {
        world.pause(&mut rng, IDENTITY_MS_MAX).await;
        let value = Text::from(format!("{:A<43}", format!("{}i{number}", device.id)));
        number += 1;
        let name = |algorithm: &str| format!("{algorithm}:{}", device.id);
        let keys = json!({
            "user_id": device.user,
            "device_id": device.id,
            "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
            "keys": { name("curve25519"): value, name("ed25519"): "A".repeat(43) },
            "signatures": { &*device.user: { name("ed25519"): "A".repeat(86) } },
        });
        let request = Request::post(&["keys", "upload"], json!({ "device_keys": keys })).by(&device.token);
        let operation = world.insist(&request, nothing).await;
        {
            let mut history = world.history.borrow_mut();
            history.device_changes.push((device.user.clone(), operation.clone()));
            history.writes.push(Write { register: register(&device), value, operation });
        }
        let other = devices[rng.random_range(0..devices.len())];
        read_device_keys(&world, &device, other).await;
    }
}

/// The register that a device's identity is.
pub(super) fn register(device: &Device) -> Text {
    format!("the device keys of {}", device.label).into()
}

/// The identity in an answer to a query.
pub(super) fn identity(answer: &Value, device: &Device) -> Option<Text> {
    let keys = &answer["device_keys"][&*device.user][&*device.id]["keys"];
    keys[format!("curve25519:{}", device.id)].as_str().map(Text::from)
}

/// The answer of a request that was acknowledged.
pub(super) fn answer<T>(outcome: Ended<T>) -> Option<T> {
    match outcome {
        Ended::Acknowledged(answer) => Some(answer),
        Ended::Refused | Ended::Unknown => None,
    }
}
