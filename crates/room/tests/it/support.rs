//! A room to try things in: users of a few servers with fixed keys, and a clock that counts.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use cofactor_room::{
    AuthError, ChainCover, Draft, EventRef, EventSource, Pdu, PowerLevels, RoomVersion, StateEntry, StateTree,
    StateView, author, authorize_event, is_surely_allowed, next_depth, select_auth_events,
};
use ruma::{
    CanonicalJsonObject, EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, UInt, UserId,
    events::{StateEventType, TimelineEventType},
    serde::Base64,
    signatures::{Ed25519KeyPair, PublicKeyMap},
};
use serde_json::{Value, json};

pub(crate) const ALICE: &str = "@alice:a.test";
pub(crate) const BOB: &str = "@bob:b.test";
pub(crate) const CAROL: &str = "@carol:a.test";
pub(crate) const DAVE: &str = "@dave:b.test";
pub(crate) const SERVERS: [&str; 3] = ["a.test", "b.test", "c.test"];

/// The key of a server: a fixed seed made of its name.
pub(crate) fn key_pair(server: &str) -> Ed25519KeyPair {
    let mut der = vec![0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
    let mut seed = [7_u8; 32];
    for (byte, name) in seed.iter_mut().zip(server.bytes()) {
        *byte ^= name;
    }
    der.extend(seed);
    Ed25519KeyPair::from_der(&der, "1".to_owned()).unwrap()
}

pub(crate) fn public_keys() -> PublicKeyMap {
    SERVERS
        .iter()
        .map(|server| {
            let key = Base64::new(key_pair(server).public_key().to_vec());
            ((*server).to_owned(), BTreeMap::from([("ed25519:1".to_owned(), key)]))
        })
        .collect()
}

pub(crate) fn object(value: &Value) -> CanonicalJsonObject {
    cofactor_room::parse_client_content(value.to_string().as_bytes()).unwrap()
}

pub(crate) fn user(id: &str) -> &UserId {
    <&UserId>::try_from(id).unwrap()
}

/// A state as a plain map.
#[derive(Clone, Default)]
pub(crate) struct State(pub(crate) BTreeMap<(String, String), Arc<Pdu>>);

impl State {
    pub(crate) fn set(&mut self, pdu: &Arc<Pdu>) {
        let key = (pdu.event_type().to_string(), pdu.state_key().unwrap().to_owned());
        self.0.insert(key, Arc::clone(pdu));
    }

    pub(crate) fn with(&self, pdu: &Arc<Pdu>) -> Self {
        let mut state = self.clone();
        state.set(pdu);
        state
    }

    pub(crate) fn without(&self, event_type: &str, key: &str) -> Self {
        let mut state = self.clone();
        state.0.remove(&(event_type.to_owned(), key.to_owned()));
        state
    }

    pub(crate) fn at(&self, event_type: &str, key: &str) -> Option<&Arc<Pdu>> {
        self.0.get(&(event_type.to_owned(), key.to_owned()))
    }
}

impl StateView for State {
    fn get(&self, event_type: &StateEventType, state_key: &str) -> Option<Arc<Pdu>> {
        self.at(&event_type.to_string(), state_key).cloned()
    }
}

/// One room and every event ever made in it.
pub(crate) struct World {
    pub(crate) version: &'static RoomVersion,
    pub(crate) events: RefCell<HashMap<OwnedEventId, Arc<Pdu>>>,
    pub(crate) positions: RefCell<HashMap<OwnedEventId, u64>>,
    pub(crate) chains: RefCell<ChainCover>,
    pub(crate) room_id: RefCell<Option<OwnedRoomId>>,
    pub(crate) clock: Cell<u32>,
    pub(crate) serial: Cell<u32>,
    pub(crate) tip: RefCell<Vec<Arc<Pdu>>>,
}

impl EventSource for World {
    fn event(&self, event_id: &EventId) -> Option<Arc<Pdu>> {
        self.events.borrow().get(event_id).cloned()
    }
}

impl World {
    pub(crate) fn new(version: &'static RoomVersion) -> Self {
        Self {
            version,
            events: RefCell::default(),
            positions: RefCell::default(),
            chains: RefCell::default(),
            room_id: RefCell::default(),
            clock: Cell::new(1),
            serial: Cell::new(0),
            tip: RefCell::default(),
        }
    }

    pub(crate) fn named(version: &str) -> Self {
        Self::new(cofactor_room::room_version(version).unwrap())
    }

    /// The create event with more content.
    pub(crate) fn create(&self, sender: &str, content: &Value) -> Arc<Pdu> {
        let mut content = object(content);
        content.insert("room_version".to_owned(), self.version.name().into_owned_value());
        if !self.version.rules().authorization.use_room_create_sender {
            content.insert("creator".to_owned(), sender.into_owned_value());
        }
        if !self.version.room_id_is_create_hash() {
            let name = format!("!room:{}", user(sender).server_name());
            *self.room_id.borrow_mut() = Some(name.as_str().try_into().unwrap());
        }
        let pdu = self.build(sender, "m.room.create", Some(""), content, None, &State::default());
        *self.room_id.borrow_mut() = Some(pdu.room_id().to_owned());
        self.keep(&pdu);
        pdu
    }

    /// A room with Alice as its creator, a level for each of the listed users, everyone of them joined.
    pub(crate) fn furnish(&self, join_rule: &str, users: &[(&str, i64)]) -> State {
        let mut state = State::default();
        state.set(&self.create(ALICE, &json!({})));
        state.set(&self.member(ALICE, ALICE, "join", &state));
        let mut levels: BTreeMap<&str, i64> = users.iter().copied().collect();
        if !self.version.rules().authorization.explicitly_privilege_room_creators {
            levels.insert(ALICE, 100);
        }
        let content = json!({ "users": levels, "invite": 10 });
        state.set(&self.state_event(ALICE, "m.room.power_levels", "", &content, &state));
        state.set(&self.state_event(ALICE, "m.room.join_rules", "", &json!({ "join_rule": "public" }), &state));
        for (name, _) in users {
            state.set(&self.member(name, name, "join", &state));
        }
        if join_rule != "public" {
            state.set(&self.state_event(ALICE, "m.room.join_rules", "", &json!({ "join_rule": join_rule }), &state));
        }
        state
    }

    pub(crate) fn member(&self, sender: &str, target: &str, membership: &str, state: &State) -> Arc<Pdu> {
        self.state_event(sender, "m.room.member", target, &json!({ "membership": membership }), state)
    }

    /// A state event that is allowed.
    pub(crate) fn state_event(
        &self,
        sender: &str,
        event_type: &str,
        key: &str,
        content: &Value,
        state: &State,
    ) -> Arc<Pdu> {
        let pdu = self.attempt(sender, event_type, Some(key), content, state).unwrap();
        self.keep(&pdu);
        pdu
    }

    /// An event, if it is allowed in the state; it is not kept.
    pub(crate) fn attempt(
        &self,
        sender: &str,
        event_type: &str,
        key: Option<&str>,
        content: &Value,
        state: &State,
    ) -> Result<Arc<Pdu>, AuthError> {
        let pdu = self.build(sender, event_type, key, object(content), None, state);
        let verdict = authorize_event(&pdu, state);
        assert!(verdict.is_ok() || !self.is_surely_allowed(&pdu, state), "{event_type} of {sender}: {verdict:?}");
        verdict.map(|()| pdu)
    }

    /// Whether the power levels of the state, read before, allow the event.
    pub(crate) fn is_surely_allowed(&self, pdu: &Pdu, state: &State) -> bool {
        let levels = self.power_levels(state);
        levels.is_some_and(|levels| is_surely_allowed(pdu, state, &levels))
    }

    /// The power levels of a state, where they can be read.
    pub(crate) fn power_levels(&self, state: &State) -> Option<PowerLevels> {
        let create = state.get(&StateEventType::RoomCreate, "")?;
        PowerLevels::from_state(&create, state.get(&StateEventType::RoomPowerLevels, "").as_deref()).ok()
    }

    /// An event, allowed or not.
    pub(crate) fn build(
        &self,
        sender: &str,
        event_type: &str,
        key: Option<&str>,
        content: CanonicalJsonObject,
        redacts: Option<&EventId>,
        state: &State,
    ) -> Arc<Pdu> {
        let raw = serde_json::value::to_raw_value(&content).unwrap();
        let kind = TimelineEventType::from(event_type);
        let auth = select_auth_events(self.version, &kind, user(sender), key, &raw, state).unwrap_or_default();
        let tip = self.tip.borrow().clone();
        self.build_citing(sender, event_type, key, content, redacts, &auth, &tip)
    }

    /// An event with exactly these auth events and previous events.
    #[expect(clippy::too_many_arguments, reason = "a test names every part of an event")]
    pub(crate) fn build_citing(
        &self,
        sender: &str,
        event_type: &str,
        key: Option<&str>,
        content: CanonicalJsonObject,
        redacts: Option<&EventId>,
        auth: &[Arc<Pdu>],
        prev: &[Arc<Pdu>],
    ) -> Arc<Pdu> {
        let event_type = TimelineEventType::from(event_type);
        let refs = |list: &[Arc<Pdu>]| list.iter().map(|pdu| EventRef::to(pdu).unwrap()).collect::<Vec<_>>();
        let now = self.clock.get();
        self.clock.set(now + 1);
        self.serial.set(self.serial.get() + 1);
        let room_id = self.room_id.borrow();
        let hides_room = self.version.room_id_is_create_hash() && event_type == TimelineEventType::RoomCreate;
        let draft = Draft {
            room_id: if hides_room { None } else { room_id.as_deref() },
            sender: user(sender),
            event_type: &event_type,
            state_key: key,
            content,
            redacts,
            origin_server_ts: MilliSecondsSinceUnixEpoch(UInt::from(now)),
            prev_events: &refs(prev),
            auth_events: &refs(auth),
            depth: next_depth(prev.iter().map(|pdu| pdu.depth())),
            unsigned: None,
            event_id_localpart: &format!("event{}", self.serial.get()),
        };
        Arc::new(author(self.version, draft, &key_pair(user(sender).server_name().as_str())).unwrap())
    }

    /// Remembers an event, and makes it the tip.
    pub(crate) fn keep(&self, pdu: &Arc<Pdu>) {
        let id = pdu.event_id().to_owned();
        self.events.borrow_mut().insert(id.clone(), Arc::clone(pdu));
        let position = self.positions.borrow().len() as u64;
        self.positions.borrow_mut().insert(id, position);
        self.chains.borrow_mut().insert_pdu(pdu).unwrap();
        *self.tip.borrow_mut() = vec![Arc::clone(pdu)];
    }

    pub(crate) fn tree(&self, state: &State) -> StateTree {
        let entry = |pdu: &Arc<Pdu>| StateEntry::of(pdu, self.positions.borrow()[pdu.event_id()]).unwrap();
        state.0.values().map(entry).collect()
    }

    pub(crate) fn state(&self, tree: &StateTree) -> State {
        let mut state = State::default();
        for entry in tree.iter() {
            state.set(&self.event(entry.event_id()).unwrap());
        }
        state
    }
}

/// Shorthand for canonical JSON strings.
pub(crate) trait IntoOwnedValue {
    fn into_owned_value(self) -> ruma::CanonicalJsonValue;
}

impl IntoOwnedValue for &str {
    fn into_owned_value(self) -> ruma::CanonicalJsonValue {
        ruma::CanonicalJsonValue::String(self.to_owned())
    }
}
