//! The way in to rooms.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use cofactor_entity::{Entities, Env, Placement};
use cofactor_room::{Draft, author};
use cofactor_store::{
    CasOutcome, Durability, Key, Mutation, Scan, StoreError, key,
    record::{self, Seen},
    tables,
};
use cofactor_types::{EntityId, ErrorClass, Fault};
use cofactor_wire::room::{Alias, CreateRoom, PublicRoom, Report, RoomCommand, RoomReply, Rooms};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedRoomAliasId, OwnedRoomId, RoomAliasId, RoomId, UInt, UserId,
    events::TimelineEventType,
};
use serde_json::Value;

use crate::{
    directory::PUBLIC_LIST,
    entity::{RoomEntity, RoomsConfig},
    presets::CreateRoomOptions,
    send::author_fault,
};

/// Aliases of one room that are listed.
const ALIASES_MAX: usize = 1_000;

/// Published rooms that are looked at.
const PUBLIC_ROOMS_MAX: usize = 10_000;

/// Rooms of the same creator and content that can be made within one millisecond.
const SAME_MOMENT_MAX: u64 = 50;

/// The rooms of this node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RoomsHandle {
    env: Env,
    config: RoomsConfig,
    entities: Entities<RoomEntity>,
}

#[async_trait]
impl Rooms for RoomsHandle {
    async fn ask(&self, room_id: &RoomId, command: RoomCommand) -> Result<RoomReply, Fault> {
        self.entities.ask(&EntityId::room(room_id), command).await
    }
}

impl RoomsHandle {
    /// Rooms that run in `placement`.
    pub fn new(env: Env, config: RoomsConfig, placement: Placement) -> Self {
        let entities = Entities::new(env.clone(), config.clone(), placement);
        Self { env, config, entities }
    }

    /// The runtime below, for the node.
    pub fn entities(&self) -> &Entities<RoomEntity> {
        &self.entities
    }

    /// Creates a room and returns its id.
    ///
    /// # Errors
    /// If an option is wrong, or the store fails.
    pub async fn create(&self, options: &CreateRoomOptions) -> Result<OwnedRoomId, Fault> {
        let now_ms = self.env.clock().now_ms();
        let mut outcome = Err(Fault::limited("too many rooms are made at once", 1_000));
        for later_ms in 0..SAME_MOMENT_MAX {
            outcome = self.create_at(options, now_ms + later_ms).await;
            // The id is a hash of who creates what and when: of two rooms that are alike, one is made a moment later.
            let taken = |fault: &Fault| fault.errcode == "M_ROOM_IN_USE" && options.version.room_id_is_create_hash();
            if !outcome.as_ref().is_err_and(taken) {
                break;
            }
        }
        outcome
    }

    async fn create_at(&self, options: &CreateRoomOptions, at_ms: u64) -> Result<OwnedRoomId, Fault> {
        let content = Value::Object(options.create_content()?);
        let content = serde_json::to_vec(&content).map_err(|error| Fault::internal(error.to_string()))?;
        let content =
            cofactor_room::parse_client_content(&content).map_err(|error| Fault::bad_json(error.to_string()))?;
        let version = options.version;
        let server_name = self.config.server_name();
        // From version 12 on the id is the hash of the create event.
        let room_id = if version.room_id_is_create_hash() {
            None
        } else {
            let localpart = self.env.entropy().alphanumeric(18);
            let room_id = RoomId::parse(format!("!{localpart}:{server_name}"));
            Some(room_id.map_err(|error| Fault::internal(error.to_string()))?)
        };
        let localpart = self.env.entropy().alphanumeric(18);
        let draft = Draft {
            room_id: room_id.as_deref(),
            sender: &options.creator,
            event_type: &TimelineEventType::RoomCreate,
            state_key: Some(""),
            content,
            redacts: None,
            origin_server_ts: MilliSecondsSinceUnixEpoch(UInt::new_saturating(at_ms)),
            prev_events: &[],
            auth_events: &[],
            depth: 1,
            unsigned: None,
            event_id_localpart: &localpart,
        };
        let pdu = author(version, draft, self.config.key_pair()).map_err(author_fault)?;
        let create = CreateRoom {
            room_version: version.id(),
            creator: options.creator.clone(),
            create_event: pdu.federation_json().to_owned().into(),
            events: options.events()?,
            invites: options.invites()?,
            public: options.public,
        };
        let room_id = pdu.room_id().to_owned();
        self.ask(&room_id, RoomCommand::Create(Box::new(create))).await?;
        Ok(room_id)
    }

    /// The room that an alias stands for.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn resolve_alias(&self, alias: &RoomAliasId) -> Result<Option<Alias>, Fault> {
        Ok(self.seen_alias(alias).await?.map(|seen| seen.row))
    }

    async fn seen_alias(&self, alias: &RoomAliasId) -> Result<Option<Seen<Alias>>, Fault> {
        let found = self.env.store().get(&tables::ALIASES, &key![alias.as_str()], &Key::EMPTY).await?;
        Ok(found.map(Seen::read).transpose()?)
    }

    /// Gives an alias to a room. It is free, or the answer is `M_ROOM_IN_USE`... unless it stands for this room already by
    /// the same creator.
    ///
    /// # Errors
    /// If it is taken, or the store fails.
    pub async fn set_alias(&self, alias: &RoomAliasId, room_id: &RoomId, creator: &UserId) -> Result<(), Fault> {
        let row = Alias { alias: alias.to_owned(), room_id: room_id.to_owned(), creator: creator.to_owned() };
        match self.cas_alias(alias, None, Some(&row)).await? {
            CasOutcome::Applied => self.list_alias(alias, room_id, Some(Bytes::new())).await,
            CasOutcome::Found(_) => {
                Err(Fault::new(ErrorClass::Conflict, "M_ROOM_IN_USE", format!("the alias {alias} is taken")))
            }
        }
    }

    /// Takes an alias away. Its creator may, and whoever may name the room.
    ///
    /// # Errors
    /// If there is none, or the user may not.
    pub async fn delete_alias(&self, alias: &RoomAliasId, user_id: &UserId) -> Result<Alias, Fault> {
        let missing = || Fault::not_found("there is no such alias");
        let seen = self.seen_alias(alias).await?.ok_or_else(missing)?;
        let expected = Some(seen.bytes().clone());
        let row = seen.row;
        if row.creator != user_id {
            self.ask(&row.room_id, RoomCommand::MayAlias { user_id: user_id.to_owned() }).await?;
        }
        match self.cas_alias(alias, expected, None).await? {
            CasOutcome::Applied => {
                self.list_alias(alias, &row.room_id, None).await?;
                Ok(row)
            }
            CasOutcome::Found(_) => Err(missing()),
        }
    }

    /// Whether a room is in the public directory.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn is_public(&self, room_id: &RoomId) -> Result<bool, Fault> {
        let (partition, clustering) = (key![PUBLIC_LIST], key![room_id.as_str()]);
        Ok(self.env.store().get(&tables::DIRECTORY, &partition, &clustering).await?.is_some())
    }

    /// The published rooms, in the order of their ids.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn public_rooms(&self) -> Result<Vec<(OwnedRoomId, PublicRoom)>, Fault> {
        let scan = Scan::new(&tables::DIRECTORY, key![PUBLIC_LIST], Key::EMPTY, PUBLIC_ROOMS_MAX);
        let rows = self.env.store().scan(scan).await?;
        let shown = rows.iter().filter(|row| !row.value.is_empty());
        let room = |row: &cofactor_store::Row| {
            let room_id = RoomId::parse(row.clustering.text(0)).map_err(|error| Fault::internal(error.to_string()))?;
            Ok((room_id, record::decode(&row.value)?))
        };
        shown.map(room).collect()
    }

    /// Keeps a report; a second one of the same user about the same event replaces it.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn report(&self, room_id: &RoomId, report: &Report) -> Result<(), Fault> {
        let mutation = Mutation {
            table: &tables::REPORTS,
            partition: key![room_id.as_str()],
            clustering: key![report.event_id.as_str(), report.reporter.as_str()],
            value: Some(record::encode(report)?),
        };
        Ok(self.env.store().write(vec![mutation], Durability::Synced).await?)
    }

    /// The local aliases of a room.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn aliases_of(&self, room_id: &RoomId) -> Result<Vec<OwnedRoomAliasId>, Fault> {
        let scan = Scan::new(&tables::ROOM_ALIASES, key![room_id.as_str()], Key::EMPTY, ALIASES_MAX);
        let rows = self.env.store().scan(scan).await?;
        Ok(rows.iter().filter_map(|row| RoomAliasId::parse(row.clustering.text(0)).ok()).collect())
    }

    /// The list of a room's aliases follows the aliases themselves; it is for people to read, and what it says is looked up
    /// again wherever it matters.
    async fn list_alias(&self, alias: &RoomAliasId, room_id: &RoomId, value: Option<Bytes>) -> Result<(), Fault> {
        let mutation = Mutation {
            table: &tables::ROOM_ALIASES,
            partition: key![room_id.as_str()],
            clustering: key![alias.as_str()],
            value,
        };
        Ok(self.env.store().write(vec![mutation], Durability::Synced).await?)
    }

    /// A compare-and-set whose unknown outcome is read back.
    async fn cas_alias(
        &self,
        alias: &RoomAliasId,
        expected: Option<Bytes>,
        new: Option<&Alias>,
    ) -> Result<CasOutcome, Fault> {
        let store = Arc::clone(self.env.store());
        let partition = key![alias.as_str()];
        let new = new.map(record::encode).transpose()?;
        match store.compare_and_set(&tables::ALIASES, &partition, &Key::EMPTY, expected, new.clone()).await {
            Err(StoreError::Unknown(why)) => {
                let found = store.get(&tables::ALIASES, &partition, &Key::EMPTY).await?;
                if found == new { Ok(CasOutcome::Applied) } else { Err(StoreError::Unknown(why).into()) }
            }
            outcome => Ok(outcome?),
        }
    }
}
