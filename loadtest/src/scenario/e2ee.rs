//! What end-to-end encryption asks of a server: one-time keys uploaded and claimed, messages to devices. The keys and
//! messages are of the right form and size; nothing is encrypted, as no server could tell.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Case, Context, FloorOf, Plan, Sample, Scenario, add_open, asking, cost_of, share};
use crate::check::Findings;
use crate::client::Ask;
use crate::load::{Operation, Outcome, Tally, closed, operation};
use crate::matrix::{Homeserver, Session, encode, sync_path};
use crate::proc::{Snapshot, Usage};
use crate::world::World;

const UPLOAD: &str = "one-time keys: upload of 10";
const CLAIM: &str = "one-time keys: claim";
const TO_DEVICE: &str = "message to a device";
/// Keys of one upload.
const KEYS: u64 = 10;
/// Uploads until they are claimed: devices keep some fifty keys on the server, and servers refuse many more.
const UPLOADS: u64 = 5;
/// Messages to a device in one phase, of which there are three before it reads: servers bound what may wait for it.
const MESSAGES_MAX: u64 = 1500;
/// Operations at a time.
const IN_FLIGHT: usize = 8;
/// What is counted of a claim that brought nothing.
const NO_KEY: &str = "no key";
/// Claims until a device must have no key left.
const CLAIMS_MAX: u64 = 1000;
/// Syncs that may be needed to read what was sent to a device.
const DRAINS_MAX: usize = 10_000;

/// A fresh scenario.
#[must_use]
pub fn make() -> Box<dyn Scenario> {
    Box::new(E2ee { next_key: Arc::new(AtomicU64::new(0)) })
}

struct E2ee {
    next_key: Arc<AtomicU64>,
}

#[async_trait(?Send)]
impl Scenario for E2ee {
    fn cases(&self, _plan: &Plan) -> Vec<Case> {
        let case = |series: &str| Case {
            series: series.to_owned(),
            variable: "devices",
            size: 1,
            in_flight: IN_FLIGHT,
            floor: FloorOf::Nothing,
        };
        [UPLOAD, CLAIM, TO_DEVICE].map(case).to_vec()
    }

    async fn prepare(&mut self, world: &mut World, _case: &Case, context: &Context) -> Result<()> {
        let user = world.users(2, &context.progress).await?[1].clone();
        let body = json!({ "device_keys": device_keys(&user) }).to_string();
        let ask = Ask::post("/_matrix/client/v3/keys/upload", &user.token, body);
        world.server.expect("upload device keys", ask).await.map(drop)
    }

    async fn measure(&mut self, world: &mut World, case: &Case, context: &Context, round: u32) -> Result<Sample> {
        let plan = &context.plan;
        let users = world.users(2, &context.progress).await?.to_vec();
        let (sender, receiver) = (users[0].clone(), users[1].clone());
        let pids = world.target.pids.clone();
        match case.series.as_str() {
            UPLOAD | CLAIM => {
                let upload = self.uploads(&world.server, &receiver, &plan.run);
                let claim = claims(&world.server, &sender, &receiver);
                in_turns(&pids, plan, &upload, &claim, case.series == UPLOAD).await
            }
            _ => {
                let plan = Plan { requests_max: plan.requests_max.min(MESSAGES_MAX), ..plan.clone() };
                self.to_device(world, &sender, &receiver, &plan, round).await
            }
        }
    }
}

impl E2ee {
    fn uploads(&self, server: &Arc<Homeserver>, user: &Session, run: &str) -> Operation {
        let (next, run, user) = (Arc::clone(&self.next_key), run.to_owned(), user.clone());
        asking(server, move |_| {
            let first = next.fetch_add(KEYS, Ordering::Relaxed);
            let keys: serde_json::Map<String, Value> = (first..first + KEYS)
                .map(|number| (format!("signed_curve25519:{run}{number}"), one_time_key(&user, number)))
                .collect();
            let body = json!({ "one_time_keys": keys }).to_string();
            Ask::post("/_matrix/client/v3/keys/upload", &user.token, body)
        })
    }

    async fn to_device(
        &self,
        world: &World,
        sender: &Session,
        receiver: &Session,
        plan: &Plan,
        round: u32,
    ) -> Result<Sample> {
        let since = world.server.position(receiver, None).await?;
        let (next, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (server, token) = (Arc::clone(&world.server), sender.token.clone());
        let (user_id, device_id) = (receiver.user_id.clone(), receiver.device_id.clone());
        let (mark, counted) = (format!("{}-{round}", plan.run), Arc::clone(&done));
        let work = operation(move |_| {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let (server, counted) = (Arc::clone(&server), Arc::clone(&counted));
            let content = json!({ "number": number, "mark": mark, "ciphertext": "c".repeat(400) });
            let body = json!({ "messages": { &user_id: { &device_id: content } } }).to_string();
            let path = format!("/_matrix/client/v3/sendToDevice/m.room.encrypted/{mark}-{number}");
            let ask = Ask::put(path, &token, body);
            async move {
                let outcome = Outcome::from(server.client.send(ask).await);
                counted.fetch_add(u64::from(outcome == Outcome::Done), Ordering::Relaxed);
                outcome
            }
        });
        let mut sample = cost_of(&world.target, IN_FLIGHT, plan, &work).await?;
        add_open(&mut sample, plan, round, &work).await?;
        let arrived = drain(&world.server, receiver, since, &format!("{}-{round}", plan.run), plan).await?;
        sample.findings = Some(judge(done.load(Ordering::Relaxed), &arrived));
        Ok(sample)
    }
}

/// Uploads keys and claims all of them, again and again, and measures one of the two.
async fn in_turns(pids: &[u32], plan: &Plan, upload: &Operation, claim: &Operation, uploads: bool) -> Result<Sample> {
    let left = closed(1, CLAIMS_MAX, plan.patience.lost, claim).await;
    ensure!(left.done < CLAIMS_MAX, "a device had {CLAIMS_MAX} one-time keys and more");
    let (mut tally, mut usage) = (Tally::default(), Usage::default());
    let (me, start) = (Snapshot::of_myself(), Instant::now());
    while start.elapsed() < plan.time {
        let empty = Snapshot::of(pids);
        let uploaded = closed(IN_FLIGHT, UPLOADS, Duration::MAX, upload).await;
        let full = Snapshot::of(pids);
        let claimed = closed(IN_FLIGHT, UPLOADS * KEYS, Duration::MAX, claim).await;
        let of_it = if uploads { empty.until(&full) } else { full.until(&Snapshot::of(pids)) };
        usage.add(&of_it);
        tally.append(if uploads { &uploaded } else { &claimed });
        let mut other = if uploads { claimed } else { uploaded };
        // Some servers find no key for claims of the same moment. That is for the claims to count.
        other.failed.remove(NO_KEY);
        ensure!(other.failed.is_empty(), "one-time keys could not be exchanged: {:?}", other.failed);
    }
    let cost = (!pids.is_empty() && tally.done > 0).then_some((tally.done, usage));
    Ok(Sample { capacity: Some(tally), cost, generator: share(&me, start), ..Sample::default() })
}

/// Reads everything that was sent to a device, in its order.
/// <https://spec.matrix.org/v1.19/client-server-api/#send-to-device-messaging>
async fn drain(server: &Homeserver, user: &Session, since: String, mark: &str, plan: &Plan) -> Result<Vec<u64>> {
    let (mut since, mut arrived, begun) = (since, Vec::new(), Instant::now());
    for _ in 0..DRAINS_MAX {
        let ask = Ask::get(sync_path(Some(&since), Duration::ZERO, None), &user.token);
        let answer = server.expect("sync", ask).await?;
        answer["next_batch"].as_str().context("a sync has no next_batch")?.clone_into(&mut since);
        let events = answer["to_device"]["events"].as_array();
        let ours = events.into_iter().flatten().filter(|event| event["content"]["mark"] == mark);
        let before = arrived.len();
        arrived.extend(ours.filter_map(|event| event["content"]["number"].as_u64()));
        if arrived.len() == before || begun.elapsed() > plan.patience.lost {
            break;
        }
    }
    Ok(arrived)
}

fn judge(acknowledged: u64, arrived: &[u64]) -> Findings {
    let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
    for number in arrived {
        *counts.entry(*number).or_default() += 1;
    }
    let distinct = counts.len() as u64;
    Findings {
        events: acknowledged,
        members: 1,
        deliveries: arrived.len() as u64,
        lost: acknowledged.saturating_sub(distinct),
        repeated: arrived.len() as u64 - distinct,
        ..Findings::default()
    }
}

fn claims(server: &Arc<Homeserver>, claimer: &Session, owner: &Session) -> Operation {
    let (server, token) = (Arc::clone(server), claimer.token.clone());
    let keys = json!({ &owner.user_id: { &owner.device_id: "signed_curve25519" } });
    let body = json!({ "one_time_keys": keys }).to_string();
    operation(move |_| {
        let (server, ask) = (Arc::clone(&server), Ask::post("/_matrix/client/v3/keys/claim", &token, body.clone()));
        async move {
            match server.client.send(ask).await {
                // An empty answer is cheap, and none at all.
                Ok(answer) if answer.status == 200 && !has_key(&answer.body) => Outcome::Failed(NO_KEY.to_owned()),
                other => Outcome::from(other),
            }
        }
    })
}

fn has_key(body: &[u8]) -> bool {
    let needle = b"signed_curve25519:";
    body.windows(needle.len()).any(|window| window == needle)
}

fn device_keys(user: &Session) -> Value {
    let device = &user.device_id;
    json!({
        "user_id": user.user_id, "device_id": device,
        "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
        "keys": { format!("curve25519:{device}"): "A".repeat(43), format!("ed25519:{device}"): "A".repeat(43) },
        "signatures": { &user.user_id: { format!("ed25519:{device}"): "A".repeat(86) } },
    })
}

fn one_time_key(user: &Session, number: u64) -> Value {
    let device = &user.device_id;
    json!({
        "key": format!("{number:0>42}A"),
        "signatures": { &user.user_id: { format!("ed25519:{device}"): "A".repeat(86) } },
    })
}

/// The path of the query for the devices of a user is shared with other scenarios.
#[must_use]
pub(super) fn keys_query(asker: &Session, user_id: &str) -> Ask {
    let body = json!({ "device_keys": { user_id: [] } }).to_string();
    Ask::post("/_matrix/client/v3/keys/query", &asker.token, body)
}

/// The profile of a user.
#[must_use]
pub(super) fn profile(asker: &Session, user_id: &str) -> Ask {
    Ask::get(format!("/_matrix/client/v3/profile/{}", encode(user_id)), &asker.token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_to_devices_are_counted_lost_and_repeated() {
        assert!(judge(3, &[0, 1, 2]).clean());
        let bad = judge(4, &[0, 1, 1]);
        assert_eq!((bad.lost, bad.repeated), (2, 1));
        assert!(has_key(br#"{"one_time_keys":{"@a:b":{"D":{"signed_curve25519:1":{}}}}}"#));
        assert!(!has_key(br#"{"one_time_keys":{"@a:b":{}}}"#));
    }
}
