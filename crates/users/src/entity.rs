//! The user entity: its state in memory, how it is built, and where its commands go.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use cofactor_entity::{Cx, Decision, Entity, Env};
use cofactor_store::{Direction, Key, LogKey, RangeRead, Scan, key, record, tables};
use cofactor_types::{EntityId, EntityKind, Fault, Position, limits::TRANSACTION_ID_LIFE_US};
use cofactor_wire::{
    room::RoomCommand,
    user::{DevicesChange, RoomEntry, UserDelivery, class, state},
    user_command::{Account, Backup, Device, FallbackKey, UserCommand, UserReply},
};
use futures::future::LocalBoxFuture;
use ruma::{OwnedDeviceId, OwnedRoomId, OwnedUserId, UserId, events::room::member::MembershipState};
use serde::Serialize;

use crate::issued::Issued;

/// Deliveries remembered, beside their time.
const DELIVERIES_MAX: usize = 50_000;

/// A user, live.
#[derive(Debug)]
pub struct UserEntity {
    pub(crate) user_id: OwnedUserId,
    /// `None` until the account is created.
    pub(crate) account: Option<Account>,
    pub(crate) devices: BTreeMap<OwnedDeviceId, Device>,
    pub(crate) rooms: BTreeMap<OwnedRoomId, RoomEntry>,
    pub(crate) profile: BTreeMap<String, Bytes>,
    pub(crate) device_keys: BTreeMap<OwnedDeviceId, Bytes>,
    pub(crate) cross_signing: BTreeMap<String, Bytes>,
    pub(crate) user_signatures: BTreeMap<String, Bytes>,
    /// By device and `algorithm:key id`.
    pub(crate) one_time_keys: BTreeMap<(OwnedDeviceId, String), Bytes>,
    pub(crate) issued_keys: BTreeMap<OwnedDeviceId, Issued>,
    /// By device and algorithm.
    pub(crate) fallback_keys: BTreeMap<(OwnedDeviceId, String), FallbackKey>,
    pub(crate) backups: BTreeMap<u64, Backup>,
    /// The highest version ever given out.
    pub(crate) backup_last: u64,
    pub(crate) delivered: Delivered,
    /// Positions of queued to-device messages.
    pub(crate) queues: BTreeMap<OwnedDeviceId, VecDeque<Position>>,
}

/// Deliveries of the last day.
#[derive(Debug, Default)]
pub(crate) struct Delivered {
    known: HashSet<u128>,
    order: VecDeque<(u128, Position)>,
}

impl Delivered {
    pub(crate) fn contains(&self, delivery: u128) -> bool {
        self.known.contains(&delivery)
    }

    /// Notes a delivery and returns those too old to keep.
    pub(crate) fn note(&mut self, delivery: u128, position: Position) -> Vec<Position> {
        self.known.insert(delivery);
        self.order.push_back((delivery, position));
        let oldest = Position(position.0.saturating_sub(TRANSACTION_ID_LIFE_US));
        let mut old = Vec::new();
        while self.order.len() > DELIVERIES_MAX || self.order.front().is_some_and(|(_, at)| *at < oldest) {
            if let Some((delivery, at)) = self.order.pop_front() {
                self.known.remove(&delivery);
                old.push(at);
            }
        }
        old
    }
}

impl UserEntity {
    fn empty(user_id: OwnedUserId) -> Self {
        Self {
            user_id,
            account: None,
            devices: BTreeMap::new(),
            rooms: BTreeMap::new(),
            profile: BTreeMap::new(),
            device_keys: BTreeMap::new(),
            cross_signing: BTreeMap::new(),
            user_signatures: BTreeMap::new(),
            one_time_keys: BTreeMap::new(),
            issued_keys: BTreeMap::new(),
            fallback_keys: BTreeMap::new(),
            backups: BTreeMap::new(),
            backup_last: 0,
            delivered: Delivered::default(),
            queues: BTreeMap::new(),
        }
    }

    /// The account, if it exists and is in use.
    pub(crate) fn account(&mut self) -> Result<&mut Account, Fault> {
        match &mut self.account {
            Some(account) if !account.deactivated => Ok(account),
            Some(_) => Err(Fault::new(
                cofactor_types::ErrorClass::Forbidden,
                "M_USER_DEACTIVATED",
                "the account is deactivated",
            )),
            None => Err(Fault::not_found("there is no such user")),
        }
    }

    pub(crate) fn put<T: Serialize>(&self, cx: &mut Cx, kind: &str, name: &str, row: &T) -> Result<(), Fault> {
        let value = record::encode(row)?;
        cx.put(&tables::USER_STATE, key![cx.id()], key![kind, name], value);
        Ok(())
    }

    pub(crate) fn remove(&self, cx: &mut Cx, kind: &str, name: &str) {
        cx.delete(&tables::USER_STATE, key![cx.id()], key![kind, name]);
    }

    /// Tells the user's own readers, and every joined room, that devices or keys changed.
    pub(crate) fn devices_changed(&self, cx: &mut Cx, device_ids: Vec<OwnedDeviceId>) -> Result<(), Fault> {
        let position = cx.allocate()?;
        let change = record::encode(&DevicesChange { device_ids })?;
        cx.append(class::DEVICES, &Arc::from(""), position, change.clone());
        cx.publish(class::DEVICES, position, change);
        self.tell_rooms(cx, &RoomCommand::DeviceChanged { user_id: self.user_id.clone() })
    }

    pub(crate) fn tell_rooms(&self, cx: &mut Cx, command: &RoomCommand) -> Result<(), Fault> {
        let payload = cofactor_wire::encode(command)?;
        for entry in self.rooms.values().filter(|entry| entry.membership == MembershipState::Join) {
            cx.deliver(EntityId::room(&entry.room_id), payload.clone());
        }
        Ok(())
    }
}

impl Entity for UserEntity {
    const KIND: EntityKind = EntityKind::User;
    type Command = UserCommand;
    type Reply = UserReply;
    type Config = ();

    fn load(env: Env, (): (), id: EntityId, _last: Position) -> LocalBoxFuture<'static, Result<Self, Fault>> {
        Box::pin(load(env, id))
    }

    fn decide(&mut self, command: UserCommand, cx: &mut Cx) -> Decision<Self> {
        match command {
            UserCommand::PutBackupKeys { version, keys } => self.put_backup_keys(version, keys, cx),
            UserCommand::DeleteBackupKeys { version, keys } => self.delete_backup_keys(version, keys, cx),
            UserCommand::SetAccountData { room_id, event_type, content, expected } => {
                self.set_account_data(room_id, event_type, content, expected, cx)
            }
            command => Decision::from_result(self.decide_now(command, cx)),
        }
    }

    fn delivered(payload: &[u8]) -> Result<UserCommand, Fault> {
        Ok(match cofactor_wire::asked(payload)? {
            UserDelivery::Membership(entry) => UserCommand::Membership(entry),
        })
    }
}

impl UserEntity {
    fn decide_now(&mut self, command: UserCommand, cx: &mut Cx) -> Result<Decision<Self>, Fault> {
        let done = |()| Decision::Commit(UserReply::Done);
        match command {
            UserCommand::Create { password_hash, admin } => self.create(password_hash, admin, cx).map(done),
            UserCommand::Login { device_id, display_name, tokens } => {
                self.login(device_id, display_name, &tokens, cx).map(done)
            }
            UserCommand::Refresh { device_id, refresh_hash, tokens } => {
                self.refresh(&device_id, &refresh_hash, &tokens, cx).map(done)
            }
            UserCommand::DeleteDevices { device_ids } => self.delete_devices(device_ids, cx).map(done),
            UserCommand::UpdateDevice { device_id, display_name } => {
                self.update_device(device_id, display_name, cx).map(done)
            }
            UserCommand::Seen { device_id, ip } => self.seen(&device_id, ip, cx).map(done),
            UserCommand::SetPassword { password_hash, keep_only } => {
                self.set_password(password_hash, keep_only, cx).map(done)
            }
            UserCommand::Deactivate => self.deactivate(cx).map(done),
            UserCommand::SetProfile { field, value } => self.set_profile(field, value, cx).map(done),
            UserCommand::PutFilter { filter } => self.put_filter(&filter, cx),
            UserCommand::Membership(entry) => self.note_membership(*entry, cx).map(done),
            UserCommand::Forget { room_id } => self.forget(&room_id, cx).map(done),
            UserCommand::UploadKeys { device_id, device_keys, one_time, fallback } => {
                self.upload_keys(device_id, device_keys, one_time, fallback, cx)
            }
            UserCommand::ClaimKeys { keys } => self.claim_keys(keys, cx),
            UserCommand::SetCrossSigning { keys } => self.set_cross_signing(keys, cx).map(done),
            UserCommand::AddSignatures { own, others } => self.add_signatures(own, others, cx).map(done),
            UserCommand::CreateBackup { algorithm, auth_data } => self.create_backup(algorithm, auth_data, cx),
            UserCommand::UpdateBackup { version, algorithm, auth_data } => {
                self.update_backup(version, &algorithm, auth_data, cx).map(done)
            }
            UserCommand::DeleteBackup { version } => self.delete_backup(version, cx).map(done),
            UserCommand::AddToDevice { delivery, messages } => self.add_to_device(delivery, messages, cx).map(done),
            UserCommand::AckToDevice { device_id, up_to } => self.ack_to_device(&device_id, up_to, cx).map(done),
            UserCommand::PutBackupKeys { .. }
            | UserCommand::DeleteBackupKeys { .. }
            | UserCommand::SetAccountData { .. } => Err(Fault::internal("a command went the wrong way")),
        }
    }
}

async fn load(env: Env, id: EntityId) -> Result<UserEntity, Fault> {
    let user_id = UserId::parse(id.as_str()).map_err(|_| Fault::invalid("not a user id"))?;
    let mut user = UserEntity::empty(user_id);
    let rows = env.store().scan(Scan::new(&tables::USER_STATE, key![&id], Key::EMPTY, usize::MAX)).await?;
    let mut taken = BTreeMap::new();
    for row in rows {
        let (kind, name) = (row.clustering.text(0), row.clustering.text(1));
        if kind == state::TO_DEVICE_TAKEN {
            taken.insert(name.to_owned(), record::decode::<Position>(&row.value)?);
        }
        user.take_row(kind, name, &row.value)?;
    }
    let yesterday = Position(env.clock().now_us().saturating_sub(TRANSACTION_ID_LIFE_US));
    let log = |class: u64, sub: &str| LogKey { entity: id.clone(), class, sub: Arc::from(sub) };
    let all =
        |after: Position, limit: usize| RangeRead { after, up_to: Position::MAX, direction: Direction::Forward, limit };
    for row in env.reader().read(&log(class::DELIVERED, ""), all(yesterday, DELIVERIES_MAX)).await? {
        user.delivered.note(record::decode::<u128>(&row.value)?, row.position);
    }
    for device_id in user.devices.keys().cloned().collect::<Vec<_>>() {
        let queue = log(class::TO_DEVICE, device_id.as_str());
        let taken = taken.get(device_id.as_str()).copied().unwrap_or(Position::ZERO);
        let queued = env.reader().read(&queue, all(taken, usize::MAX)).await?;
        let positions = queued.into_iter().map(|row| row.position).collect();
        user.queues.insert(device_id, positions);
    }
    Ok(user)
}

impl UserEntity {
    fn take_row(&mut self, kind: &str, name: &str, value: &Bytes) -> Result<(), Fault> {
        let two = || name.split_once('\0').unwrap_or((name, ""));
        match kind {
            state::ACCOUNT => self.account = Some(record::decode(value)?),
            state::DEVICE => {
                self.devices.insert(name.into(), record::decode(value)?);
            }
            state::ROOM => {
                let entry: RoomEntry = record::decode(value)?;
                self.rooms.insert(entry.room_id.clone(), entry);
            }
            state::PROFILE => {
                self.profile.insert(name.to_owned(), value.clone());
            }
            state::DEVICE_KEYS => {
                self.device_keys.insert(name.into(), value.clone());
            }
            state::CROSS_SIGNING => {
                self.cross_signing.insert(name.to_owned(), value.clone());
            }
            state::USER_SIGNATURE => {
                self.user_signatures.insert(name.to_owned(), value.clone());
            }
            state::ONE_TIME_KEY => {
                let (device_id, key_id) = two();
                self.one_time_keys.insert((device_id.into(), key_id.to_owned()), value.clone());
            }
            state::ISSUED_KEYS => {
                let (device_id, number) = two();
                let issued = self.issued_keys.entry(device_id.into()).or_default();
                issued.put_page(number.parse().unwrap_or(0), record::decode(value)?);
            }
            state::FALLBACK_KEY => {
                let (device_id, algorithm) = two();
                self.fallback_keys.insert((device_id.into(), algorithm.to_owned()), record::decode(value)?);
            }
            state::BACKUP => {
                let version = name.parse().unwrap_or(0);
                self.backup_last = self.backup_last.max(version);
                // A deleted version leaves an empty row, so that its number is not given out again.
                if !value.is_empty() {
                    self.backups.insert(version, record::decode(value)?);
                }
            }
            _ => {}
        }
        Ok(())
    }
}
