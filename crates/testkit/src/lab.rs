//! One simulated node for tests of a single behaviour: it crashes, idles and restarts when the test says so.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use cofactor_entity::Planted;
use cofactor_node::Core;
use cofactor_rooms::{CreateRoomOptions, Preset};
use cofactor_store::model::ModelStore;
use cofactor_sync::SyncRequest;
use cofactor_types::{Fault, SyncToken};
use cofactor_wire::{
    room::{MembershipAction, NewEvent, RoomCommand, RoomReply, Rooms, Transaction},
    user_command::{NewTokens, UserCommand},
};
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId, device_id};
use serde_json::{Map, Value};
use tokio::time::Instant;

use crate::node::{IDLE, LEASE, SimClock, SimEntropy, SimNode};

/// The name of the simulated server.
pub const SERVER: &str = "sim.example";

/// A node on a store that survives it. Time passes only when the test waits.
#[derive(Debug)]
pub struct Lab {
    store: ModelStore,
    clock: SimClock,
    entropy: Arc<SimEntropy>,
    node: SimNode,
}

/// Runs `test` on a node of its own, on a store of each kind: one that spans partitions in an append, and one that does
/// not.
///
/// # Panics
/// If the runtime cannot be made, or the test panics.
pub fn on_both_stores(test: impl AsyncFn(Lab)) {
    for spans_partitions in [true, false] {
        crate::simulation::system(1).block_on(async {
            let store = ModelStore::new(1, spans_partitions);
            let clock = SimClock::new(Instant::now());
            let entropy = SimEntropy::new(1);
            let node = SimNode::start(&store, &clock, &entropy, Planted::Nothing).await;
            test(Lab { store, clock, entropy, node }).await;
        });
    }
}

/// A user of the simulated server.
///
/// # Panics
/// If it is no user name.
pub fn user(name: &str) -> OwnedUserId {
    UserId::parse(format!("@{name}:{SERVER}")).unwrap_or_else(|error| panic!("{error}"))
}

/// The options of a room without anything special.
pub fn room_options(creator: &UserId, preset: Preset) -> CreateRoomOptions {
    CreateRoomOptions {
        creator: creator.to_owned(),
        creator_profile: Map::new(),
        version: cofactor_room::default_room_version(),
        preset,
        creation_content: Map::new(),
        power_level_content_override: Map::new(),
        initial_state: Vec::new(),
        name: None,
        topic: None,
        alias: None,
        invite: Vec::new(),
        is_direct: false,
        public: false,
    }
}

impl Lab {
    /// The answer to a `/sync` of a user's phone without a filter.
    ///
    /// # Errors
    /// The node's own.
    pub async fn sync(&self, user_id: &UserId, since: Option<SyncToken>, timeout: Duration) -> Result<Bytes, Fault> {
        let request = SyncRequest {
            user_id: user_id.to_owned(),
            device_id: device_id!("PHONE").to_owned(),
            since,
            filter: Default::default(),
            full_state: false,
            timeout,
            state_after: None,
        };
        self.core().sync.sync(request).await
    }

    /// The node.
    pub fn core(&self) -> &Core {
        &self.node.core
    }

    /// The store below.
    pub fn store(&self) -> &ModelStore {
        &self.store
    }

    /// Ends the node between two of its steps and starts another one.
    pub async fn crash(&mut self) {
        self.node.crash();
        self.node = SimNode::start(&self.store, &self.clock, &self.entropy, Planted::Nothing).await;
    }

    /// Lets so much time pass that every room and user leaves the memory.
    pub async fn idle(&self) {
        tokio::time::sleep(3 * IDLE).await;
    }

    /// Goes on at a later time, at which the node has its lease.
    pub async fn skip(&mut self, time: Duration) {
        self.clock.skip(time);
        tokio::time::sleep(LEASE).await;
    }

    /// A new account with a device `PHONE`.
    ///
    /// # Panics
    /// If it cannot be made.
    pub async fn account(&self, name: &str) -> OwnedUserId {
        let user_id = user(name);
        self.user(&user_id, UserCommand::Create { password_hash: None, admin: false }).await;
        let tokens = NewTokens { access_hash: user_id.to_string(), expires_at_ms: None, refresh_hash: None };
        let device_id = device_id!("PHONE").to_owned();
        self.user(&user_id, UserCommand::Login { device_id, display_name: None, tokens }).await;
        user_id
    }

    /// What a user answers.
    ///
    /// # Panics
    /// If it refuses.
    pub async fn user(&self, user_id: &UserId, command: UserCommand) -> cofactor_wire::user_command::UserReply {
        self.core().users.ask(user_id, command).await.unwrap_or_else(|fault| panic!("{fault}"))
    }

    /// A new room.
    ///
    /// # Panics
    /// If it cannot be made.
    pub async fn room(&self, options: &CreateRoomOptions) -> OwnedRoomId {
        self.core().rooms.create(options).await.unwrap_or_else(|fault| panic!("{fault}"))
    }

    /// Changes a membership.
    ///
    /// # Errors
    /// The room's refusal.
    pub async fn member(
        &self,
        room_id: &RoomId,
        sender: &UserId,
        target: &UserId,
        action: MembershipAction,
    ) -> Result<RoomReply, Fault> {
        let (sender, target) = (sender.to_owned(), target.to_owned());
        let command = RoomCommand::Membership { sender, target, action, reason: None, content: "{}".into() };
        self.core().rooms.ask(room_id, command).await
    }

    /// Sends a message with a transaction id.
    ///
    /// # Errors
    /// The room's refusal.
    pub async fn say(
        &self,
        room_id: &RoomId,
        sender: &UserId,
        device: &str,
        txn: &str,
        body: &str,
    ) -> Result<OwnedEventId, Fault> {
        let transaction = Some(Transaction { device_id: device.into(), txn_id: txn.into() });
        let content = serde_json::json!({ "msgtype": "m.text", "body": body });
        self.send(room_id, sender, transaction, "m.room.message", None, &content).await
    }

    /// Sends an event.
    ///
    /// # Errors
    /// The room's refusal.
    ///
    /// # Panics
    /// If the room answers something else than an event.
    pub async fn send(
        &self,
        room_id: &RoomId,
        sender: &UserId,
        transaction: Option<Transaction>,
        event_type: &str,
        state_key: Option<&str>,
        content: &Value,
    ) -> Result<OwnedEventId, Fault> {
        let event = NewEvent {
            event_type: event_type.to_owned(),
            state_key: state_key.map(ToOwned::to_owned),
            content: content.to_string().into(),
            redacts: None,
        };
        let command = RoomCommand::Send { sender: sender.to_owned(), transaction, event };
        match self.core().rooms.ask(room_id, command).await? {
            RoomReply::Sent { event_id, .. } => Ok(event_id),
            other => panic!("{other:?}"),
        }
    }
}
