//! The room entity: its state in memory, how it is built, and where its commands go.

use std::sync::Arc;

use cofactor_entity::{Cx, Decision, Entity, Env, Planted};
use cofactor_room::{EventRef, Pdu, room_version};
use cofactor_store::{Direction, Key, LogKey, RangeRead, Scan, key, record, tables};
use cofactor_types::{EntityId, EntityKind, Fault, Position, limits::TRANSACTION_ID_LIFE_US};
use cofactor_wire::room::{CurrentState, EventRecord, Overview, RoomCommand, RoomReply, Totals, class};
use futures::future::LocalBoxFuture;
use ruma::{OwnedServerName, RoomVersionId, UserId, events::StateEventType, signatures::Ed25519KeyPair};

use crate::{
    directory::PUBLIC_LIST,
    recent::Recent,
    record::to_pdu,
    state::State,
    transactions::{TRANSACTIONS_MAX, Transactions},
    typing::TypingUsers,
};

/// What rooms need of their node.
#[derive(Clone)]
pub struct RoomsConfig {
    inner: Arc<Config>,
}

struct Config {
    server_name: OwnedServerName,
    key_pair: Ed25519KeyPair,
}

impl std::fmt::Debug for RoomsConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RoomsConfig").field("server_name", &self.inner.server_name).finish_non_exhaustive()
    }
}

impl RoomsConfig {
    /// Rooms of the server `server_name`, which signs with `key_pair`.
    pub fn new(server_name: OwnedServerName, key_pair: Ed25519KeyPair) -> Self {
        Self { inner: Arc::new(Config { server_name, key_pair }) }
    }

    /// The name of this server.
    pub fn server_name(&self) -> &OwnedServerName {
        &self.inner.server_name
    }

    pub(crate) fn key_pair(&self) -> &Ed25519KeyPair {
        &self.inner.key_pair
    }

    pub(crate) fn is_local(&self, user_id: &UserId) -> bool {
        user_id.server_name() == self.inner.server_name
    }
}

/// A room, live.
#[derive(Debug)]
pub struct RoomEntity {
    pub(crate) config: RoomsConfig,
    pub(crate) id: EntityId,
    /// `None` until the room is created.
    pub(crate) room: Option<Room>,
}

/// A room that exists.
#[derive(Debug)]
pub(crate) struct Room {
    pub(crate) state: State,
    /// The forward extremities: what the next event refers to.
    pub(crate) extremities: Vec<EventRef>,
    pub(crate) depth: u64,
    pub(crate) head: Position,
    pub(crate) totals: Totals,
    /// Totals of what is in no thread.
    pub(crate) main: Totals,
    /// It is in the public directory.
    pub(crate) public: bool,
    pub(crate) transactions: Transactions,
    pub(crate) recent: Recent,
    pub(crate) typing: TypingUsers,
}

impl RoomEntity {
    pub(crate) fn room(&mut self) -> Result<&mut Room, Fault> {
        self.room.as_mut().ok_or_else(|| Fault::not_found("there is no such room"))
    }

    fn overview(&mut self) -> Result<RoomReply, Fault> {
        let room = self.room()?;
        Ok(RoomReply::Overview(Box::new(Overview {
            room_version: room.state.version.id(),
            joined: room.state.joined(),
            invited: room.state.invited(),
            head: room.head,
            totals: room.totals,
        })))
    }
}

impl Entity for RoomEntity {
    const KIND: EntityKind = EntityKind::Room;
    type Command = RoomCommand;
    type Reply = RoomReply;
    type Config = RoomsConfig;

    fn load(
        env: Env,
        config: RoomsConfig,
        id: EntityId,
        _last: Position,
    ) -> LocalBoxFuture<'static, Result<Self, Fault>> {
        Box::pin(async move {
            let room = load_room(&env, &id).await?;
            Ok(Self { config, id, room })
        })
    }

    fn decide(&mut self, command: RoomCommand, cx: &mut Cx) -> Decision<Self> {
        match command {
            RoomCommand::Create(create) => self.create(*create, cx),
            RoomCommand::Send { sender, transaction, event } => self.send(sender, transaction, event, cx),
            RoomCommand::Membership { sender, target, action, reason, content } => {
                self.membership(sender, target, action, reason, content, cx)
            }
            RoomCommand::Profile { user_id, content } => self.profile(&user_id, &content, cx),
            RoomCommand::Receipt { user_id, receipt_type, thread_id, event_id } => {
                self.receipt(user_id, receipt_type, thread_id, event_id, cx)
            }
            RoomCommand::Typing { user_id, timeout_ms } => self.typing(user_id, timeout_ms, cx),
            RoomCommand::DeviceChanged { user_id } => self.device_changed(user_id, cx),
            RoomCommand::SetDirectory { user_id, public } => self.set_directory(&user_id, public, cx),
            RoomCommand::MayAlias { user_id } => Decision::Reply(self.may_alias(&user_id)),
            RoomCommand::MaySet { user_id, event_type } => Decision::Reply(self.may_set(&user_id, &event_type)),
            RoomCommand::Locate { event_id } => self.locate(event_id, cx),
            RoomCommand::Overview => Decision::Reply(self.overview()),
        }
    }

    fn tick(&mut self, cx: &mut Cx) {
        self.typing_tick(cx);
    }

    fn delivered(payload: &[u8]) -> Result<RoomCommand, Fault> {
        cofactor_wire::asked(payload)
    }
}

async fn load_room(env: &Env, id: &EntityId) -> Result<Option<Room>, Fault> {
    let rows = env.store().scan(Scan::new(&tables::ROOM_STATE, key![id], Key::EMPTY, usize::MAX)).await?;
    let current = rows.iter().map(|row| record::decode::<CurrentState>(&row.value)).collect::<Result<Vec<_>, _>>()?;
    let Some(state) = load_state(&current)? else { return Ok(None) };

    let now_us = env.clock().now_us();
    let log = LogKey { entity: id.clone(), class: class::TIMELINE, sub: Arc::from("") };
    let tail = |after: Position, limit: usize| RangeRead {
        after,
        up_to: Position::MAX,
        direction: Direction::Backward,
        limit,
    };
    let newest = env.reader().read(&log, tail(Position::ZERO, 1)).await?;
    let Some(newest) = newest.into_iter().next() else {
        return Err(Fault::internal("the room has a state, but no event"));
    };
    let head = newest.position;
    let newest: EventRecord = record::decode(&newest.value)?;
    let last_pdu = to_pdu(&newest, state.version)?;
    let public = env.store().get(&tables::DIRECTORY, &key![PUBLIC_LIST], &key![id]).await?.is_some();
    let reference = |pdu: &Pdu| EventRef::to(pdu).map_err(|error| Fault::internal(error.to_string()));
    let mut room = Room {
        extremities: vec![reference(&last_pdu)?],
        depth: last_pdu.depth(),
        head,
        totals: newest.totals,
        main: newest.main,
        public,
        transactions: Transactions::default(),
        recent: Recent::default(),
        typing: TypingUsers::default(),
        state,
    };
    let yesterday = Position(now_us.saturating_sub(TRANSACTION_ID_LIFE_US));
    let recent = env.reader().read(&log, tail(yesterday, TRANSACTIONS_MAX)).await?;
    for row in recent.into_iter().rev() {
        let event: EventRecord = record::decode(&row.value)?;
        room.recent.note(&event, row.position);
        if let Some(transaction) = event.transaction.as_ref().filter(|_| env.planted() != Planted::ForgetTransactions) {
            room.transactions.note(&event.sender, &event.event_type, transaction, event.event_id, row.position);
        }
    }
    Ok(Some(room))
}

fn load_state(current: &[CurrentState]) -> Result<Option<State>, Fault> {
    let is_create = |row: &&CurrentState| row.event.event_type == StateEventType::RoomCreate.to_string();
    let Some(create) = current.iter().find(is_create) else { return Ok(None) };
    let mut state = State::new(version_of_create(&create.event.json)?);
    for row in current {
        state.set(&Arc::new(to_pdu(&row.event, state.version)?), row.position);
    }
    Ok(Some(state))
}

/// The version always comes from the stored create event, never from what somebody says.
fn version_of_create(json: &[u8]) -> Result<&'static cofactor_room::RoomVersion, Fault> {
    #[derive(serde::Deserialize)]
    struct Create {
        content: Content,
    }
    #[derive(serde::Deserialize)]
    struct Content {
        #[serde(default = "first_version")]
        room_version: RoomVersionId,
    }
    fn first_version() -> RoomVersionId {
        RoomVersionId::V1
    }
    let create: Create = serde_json::from_slice(json).map_err(|error| Fault::internal(error.to_string()))?;
    let version = create.content.room_version;
    room_version(version.as_str())
        .ok_or_else(|| Fault::internal(format!("the room has version {version}, which this release does not know")))
}
