//! What the clients do.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use cofactor_rooms::Preset;
use cofactor_sync::SyncRequest;
use cofactor_types::{Fault, Position, SyncToken};
use cofactor_wire::{
    room::{MembershipAction, NewEvent, RoomCommand, RoomReply, Rooms, Transaction},
    user::ToDevice,
    user_command::{NewTokens, UserCommand, UserReply},
};
use ruma::{DeviceId, OwnedRoomId, OwnedUserId, api::client::filter::FilterDefinition, device_id};
use serde_json::Value;

use super::{
    node::ClusterNode,
    seen::{Chain, Said},
    world::{World, happened_not},
};
use crate::lab::room_options;

/// The longest pause of somebody who speaks, in milliseconds.
const SPEAK_MS: u64 = 1_600;

/// One-time keys of one upload.
const KEYS: usize = 3;

const ALGORITHM: &str = "signed_curve25519";

/// How long a `/sync` waits for news, in milliseconds at most.
const POLL_MS: u64 = 3_000;

fn phone() -> &'static DeviceId {
    device_id!("PHONE")
}

/// Makes accounts and rooms in which all are joined.
pub(super) async fn prepare(world: &World, people: &[OwnedUserId], rooms: usize) -> Vec<OwnedRoomId> {
    for person in people {
        let tokens = NewTokens { access_hash: person.to_string(), expires_at_ms: None, refresh_hash: None };
        for command in [
            UserCommand::Create { password_hash: None, admin: false },
            UserCommand::Login { device_id: phone().to_owned(), display_name: None, tokens },
        ] {
            let person = person.clone();
            world
                .insist("setup", async move |node: Rc<ClusterNode>| node.core.users.ask(&person, command.clone()).await)
                .await;
        }
    }
    let mut made = Vec::new();
    for _ in 0..rooms {
        let options = room_options(&people[0], Preset::PublicChat);
        let room_id =
            world.insist("setup", async move |node: Rc<ClusterNode>| node.core.rooms.create(&options).await).await;
        for person in &people[1..] {
            let join = RoomCommand::Membership {
                sender: person.clone(),
                target: person.clone(),
                action: MembershipAction::Join,
                reason: None,
                content: "{}".into(),
            };
            room(world, "setup", &room_id, join).await;
        }
        made.push(room_id);
    }
    made
}

async fn room(world: &World, who: &str, room_id: &OwnedRoomId, command: RoomCommand) -> RoomReply {
    let room_id = room_id.clone();
    world.insist(who, move |node| ask_room(node, room_id.clone(), command.clone())).await
}

async fn ask_room(node: Rc<ClusterNode>, room_id: OwnedRoomId, command: RoomCommand) -> Result<RoomReply, Fault> {
    node.core.rooms.ask(&room_id, command).await
}

pub(super) fn message(person: &OwnedUserId, body: &str) -> RoomCommand {
    let content = serde_json::json!({ "msgtype": "m.text", "body": body }).to_string().into();
    RoomCommand::Send {
        sender: person.clone(),
        transaction: Some(Transaction { device_id: phone().to_owned(), txn_id: body.into() }),
        event: NewEvent { event_type: "m.room.message".to_owned(), state_key: None, content, redacts: None },
    }
}

/// Sends messages one after the other. Each is tried until it is acknowledged, or given up as long as it is certain that it
/// never was taken. Sometimes one that was acknowledged is sent once more.
pub(super) async fn speak(world: Rc<World>, person: OwnedUserId, rooms: Vec<OwnedRoomId>) {
    let mut number = 0;
    while !world.is_over() {
        world.pause(SPEAK_MS).await;
        let room_id = &rooms[usize::try_from(world.up_to(rooms.len() as u64 - 1)).unwrap_or(0)];
        let body = format!("{} {number}", person.localpart());
        number += 1;
        say(&world, &person, room_id, &body).await;
        let is_acked = world.seen.borrow().said[room_id].last().is_some_and(|said| said.acked_ms.is_some());
        if is_acked && world.up_to(9) == 0 {
            say(&world, &person, room_id, &body).await;
        }
    }
}

/// Says something, and notes what becomes of it.
pub(super) async fn say(world: &World, person: &OwnedUserId, room_id: &OwnedRoomId, body: &str) {
    let command = message(person, body);
    let index = {
        let mut seen = world.seen.borrow_mut();
        let said = seen.said.entry(room_id.clone()).or_default();
        let known = said.iter().position(|one| one.body == body);
        known.unwrap_or_else(|| {
            said.push(Said { body: body.to_owned(), invoked_ms: world.now_ms(), ..Said::default() });
            said.len() - 1
        })
    };
    let is_again = world.seen.borrow().said[room_id][index].acked_ms.is_some();
    let mut in_doubt = is_again;
    loop {
        let (asked, to) = (command.clone(), room_id.clone());
        let outcome = world.ask(move |node| ask_room(node, to, asked)).await;
        let gives_up = !in_doubt && world.up_to(2) == 0;
        let now_ms = world.now_ms();
        match outcome {
            Ok(RoomReply::Sent { event_id, position }) => {
                world.note((body, position));
                let mut seen = world.seen.borrow_mut();
                let Some(said) = seen.said.get_mut(room_id).and_then(|said| said.get_mut(index)) else { return };
                said.acked_ms.get_or_insert(now_ms);
                said.event_ids.insert(event_id.to_string());
                return;
            }
            Ok(other) => return world.seen.borrow_mut().violate(format!("{body} was answered with {other:?}")),
            Err(fault) if happened_not(&fault) && gives_up => {
                world.note((body, "given up", &fault.message));
                let mut seen = world.seen.borrow_mut();
                if let Some(said) = seen.said.get_mut(room_id).and_then(|said| said.get_mut(index)) {
                    said.is_refused = true;
                }
                return;
            }
            Err(fault) => {
                in_doubt |= !happened_not(&fault);
                world.bear(body, &fault).await;
            }
        }
    }
}

/// Looks at a room; what was acknowledged before must be in what is seen.
pub(super) async fn look(world: Rc<World>, rooms: Vec<OwnedRoomId>) {
    while !world.is_over() {
        world.pause(SPEAK_MS).await;
        let room_id = rooms[usize::try_from(world.up_to(rooms.len() as u64 - 1)).unwrap_or(0)].clone();
        let acked = {
            let seen = world.seen.borrow();
            let said = seen.said.get(&room_id).map(Vec::as_slice).unwrap_or_default();
            said.iter().filter(|one| one.acked_ms.is_some()).count() as u64
        };
        let to = room_id.clone();
        let outcome = world.ask(move |node| ask_room(node, to, RoomCommand::Overview)).await;
        match outcome {
            Ok(RoomReply::Overview(overview)) if overview.totals.notify < acked => {
                let totals = overview.totals;
                let violation = format!("{room_id} says {totals:?}, but {acked} messages were acknowledged before");
                world.seen.borrow_mut().violate(violation);
            }
            Ok(_) => {}
            Err(fault) => world.bear("who looks", &fault).await,
        }
    }
}

/// Sends to-device messages, each until it is acknowledged.
pub(super) async fn whisper(world: Rc<World>, from: OwnedUserId, to: Vec<OwnedUserId>) {
    let mut number = 0;
    while !world.is_over() {
        world.pause(SPEAK_MS).await;
        let body = format!("whisper {number}");
        number += 1;
        let message = ToDevice {
            sender: from.clone(),
            event_type: "m.test".to_owned(),
            content: serde_json::json!({ "body": body }).to_string().into(),
        };
        let all: Vec<_> = to.iter().map(|user| (user.clone(), vec![(None, message.clone())])).collect();
        let (sender, transaction) = (from.clone(), body.clone());
        let ask = async move |node: Rc<ClusterNode>| {
            node.core.users.send_to_device(&sender, phone(), &transaction, all.clone()).await
        };
        world.insist(&body, ask).await;
        world.note(&body);
        let mut seen = world.seen.borrow_mut();
        for user in &to {
            seen.whispered.entry(user.clone()).or_default().push(body.clone());
        }
    }
}

/// Uploads one-time keys of `person`, each upload until it is acknowledged.
pub(super) async fn upload(world: Rc<World>, person: OwnedUserId) {
    let mut number = 0;
    while !world.is_over() {
        world.pause(3 * SPEAK_MS).await;
        let one_time: BTreeMap<String, Bytes> =
            (0..KEYS).map(|key| (format!("{ALGORITHM}:{number}.{key}"), Bytes::from_static(b"{}"))).collect();
        number += 1;
        let names: Vec<_> = one_time.keys().cloned().collect();
        world.seen.borrow_mut().keys.tried.extend(names.iter().cloned());
        let device_id = phone().to_owned();
        let command = UserCommand::UploadKeys { device_id, device_keys: None, one_time, fallback: BTreeMap::new() };
        let user = person.clone();
        world.insist("upload", move |node| ask_user(node, user.clone(), command.clone())).await;
        world.note(&names);
        world.seen.borrow_mut().keys.acknowledged.extend(names);
    }
}

async fn ask_user(node: Rc<ClusterNode>, user: OwnedUserId, command: UserCommand) -> Result<UserReply, Fault> {
    node.core.users.ask(&user, command).await
}

/// Claims keys of `person`.
pub(super) async fn claim(world: Rc<World>, person: OwnedUserId) {
    while !world.is_over() {
        world.pause(SPEAK_MS).await;
        claim_one(&world, &person).await;
    }
}

/// Claims keys of `person` until there is none.
pub(super) async fn claim_rest(world: &World, person: &OwnedUserId) {
    while claim_one(world, person).await {}
}

/// Claims one key; whether there was one. A claim whose answer is lost may have taken one with it.
async fn claim_one(world: &World, person: &OwnedUserId) -> bool {
    let command = UserCommand::ClaimKeys { keys: vec![(phone().to_owned(), ALGORITHM.to_owned())] };
    loop {
        let (user, asked) = (person.clone(), command.clone());
        match world.ask(move |node| ask_user(node, user, asked)).await {
            Ok(UserReply::Claimed(claimed)) => {
                let names: BTreeSet<_> = claimed.iter().map(|(_, key_id, _)| key_id.clone()).collect();
                world.note(&names);
                world.seen.borrow_mut().keys.claimed.extend(names);
                return !claimed.is_empty();
            }
            Ok(_) => return false,
            Err(fault) => {
                if !happened_not(&fault) {
                    world.seen.borrow_mut().keys.unanswered += 1;
                }
                world.bear("claim", &fault).await;
            }
        }
    }
}

/// Follows a chain of `/sync` tokens over all nodes. Half of the requests go the way that the cluster chooses, half to
/// whatever node they meet, as if views of the cluster differed.
pub(super) async fn follow(world: Rc<World>, person: OwnedUserId) {
    let mut since: Option<SyncToken> = None;
    let who = format!("the chain of {}", person.localpart());
    loop {
        let timeout = Duration::from_millis(world.up_to(POLL_MS));
        let request = sync_request(&person, since.clone(), timeout);
        let routed = world.up_to(1) == 0;
        let answer = world.ask(move |node| ask_sync(node, request, routed)).await;
        let body = match answer {
            Ok(body) => body,
            Err(fault) => {
                world.bear(&who, &fault).await;
                continue;
            }
        };
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        let is_first = since.is_none();
        since = answer["next_batch"].as_str().and_then(|token| token.parse().ok());
        let mut seen = world.seen.borrow_mut();
        let chain = seen.chains.entry(person.clone()).or_default();
        if let Some(what) = take(chain, &answer, is_first) {
            drop(seen);
            world.note((&who, what, since.as_ref().map_or(Position::ZERO, SyncToken::base)));
        }
    }
}

/// From the phone of `person`, with long timelines.
pub(super) fn sync_request(person: &OwnedUserId, since: Option<SyncToken>, timeout: Duration) -> SyncRequest {
    let mut filter = FilterDefinition::default();
    filter.room.timeline.limit = Some(100_u8.into());
    SyncRequest {
        user_id: person.clone(),
        device_id: phone().to_owned(),
        since,
        filter: Arc::new(filter),
        full_state: false,
        timeout,
        state_after: None,
    }
}

async fn ask_sync(node: Rc<ClusterNode>, request: SyncRequest, routed: bool) -> Result<Bytes, Fault> {
    match node.core.service.as_ref().filter(|_| !routed) {
        Some(service) => service.sync(request).await,
        None => node.core.sync.sync(request).await,
    }
}

/// Adds an answer to a chain; says what was in it.
fn take(chain: &mut Chain, answer: &Value, is_first: bool) -> Option<Vec<String>> {
    let mut news = Vec::new();
    let joined = answer["rooms"]["join"].as_object();
    for (room_id, room) in joined.into_iter().flatten() {
        let Ok(room_id) = OwnedRoomId::try_from(room_id.as_str()) else { continue };
        let synced = chain.synced.entry(room_id).or_default();
        let mut came = bodies(&room["timeline"]["events"]);
        if room["timeline"]["limited"] == true && !is_first {
            came.insert(0, "a gap".to_owned());
        }
        news.extend(came.iter().cloned());
        synced.extend(came);
    }
    let whispers = bodies(&answer["to_device"]["events"]);
    news.extend(whispers.iter().cloned());
    chain.whispers.extend(whispers);
    (!news.is_empty()).then_some(news)
}

pub(super) fn bodies(events: &Value) -> Vec<String> {
    let events = events.as_array().map(Vec::as_slice).unwrap_or_default();
    events.iter().filter_map(|event| event["content"]["body"].as_str().map(ToOwned::to_owned)).collect()
}
