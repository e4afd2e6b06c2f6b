//! What anybody may read of a user, from the rows that the actor keeps.

use bytes::Bytes;
use cofactor_store::{Key, Scan, key, record, tables};
use cofactor_types::Fault;
use cofactor_wire::{
    user::{AccountData, RoomEntry, state},
    user_command::{Account, Backup, Device},
};
use ruma::{DeviceId, OwnedDeviceId, OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde_json::{Map, Value, json};

use crate::{
    UsersHandle,
    account::ACCOUNT_SLICES,
    data::account_data_key,
    keys::{merge, parse},
};

/// Accounts that one search looks at.
const SEARCHED_MAX: usize = 5_000;

/// The identity keys of a user, as another user sees them.
#[derive(Clone, Debug, Default)]
pub struct SignedKeys {
    /// Device keys by device.
    pub devices: Map<String, Value>,
    /// The master key.
    pub master: Option<Value>,
    /// The self-signing key.
    pub self_signing: Option<Value>,
    /// The user-signing key, for the user alone.
    pub user_signing: Option<Value>,
}

impl UsersHandle {
    async fn row(&self, user_id: &UserId, kind: &str, name: &str) -> Result<Option<Bytes>, Fault> {
        Ok(self.env.store().get(&tables::USER_STATE, &key![user_id.as_str()], &key![kind, name]).await?)
    }

    async fn rows(&self, user_id: &UserId, kind: &str) -> Result<Vec<(String, Bytes)>, Fault> {
        let scan = Scan::new(&tables::USER_STATE, key![user_id.as_str()], key![kind], usize::MAX);
        let rows = self.env.store().scan(scan).await?;
        Ok(rows.into_iter().map(|row| (row.clustering.text(1).to_owned(), row.value)).collect())
    }

    /// The account, if there is one.
    ///
    /// # Errors
    /// If the store fails, as in all reads here.
    pub async fn account(&self, user_id: &UserId) -> Result<Option<Account>, Fault> {
        let row = self.row(user_id, state::ACCOUNT, "").await?;
        Ok(row.map(|value| record::decode(&value)).transpose()?)
    }

    /// All devices.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn devices(&self, user_id: &UserId) -> Result<Vec<(OwnedDeviceId, Device)>, Fault> {
        let rows = self.rows(user_id, state::DEVICE).await?;
        rows.into_iter().map(|(name, value)| Ok((name.into(), record::decode(&value)?))).collect()
    }

    /// One device.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn device(&self, user_id: &UserId, device_id: &DeviceId) -> Result<Option<Device>, Fault> {
        let row = self.row(user_id, state::DEVICE, device_id.as_str()).await?;
        Ok(row.map(|value| record::decode(&value)).transpose()?)
    }

    /// The profile: fields and their JSON.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn profile(&self, user_id: &UserId) -> Result<Map<String, Value>, Fault> {
        let rows = self.rows(user_id, state::PROFILE).await?;
        rows.into_iter().map(|(name, value)| Ok((name, parse(&value)?))).collect()
    }

    /// What member events show of the profile: `displayname` and `avatar_url`.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn member_profile(&self, user_id: &UserId) -> Result<Map<String, Value>, Fault> {
        let mut profile = self.profile(user_id).await?;
        profile.retain(|name, value| matches!(name.as_str(), "displayname" | "avatar_url") && value.is_string());
        Ok(profile)
    }

    /// One piece of account data: its content, a JSON object.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn account_data(
        &self,
        user_id: &UserId,
        room_id: Option<&RoomId>,
        event_type: &str,
    ) -> Result<Option<Bytes>, Fault> {
        let (kind, name) = account_data_key(room_id.map(RoomId::as_str), event_type);
        let row = self.row(user_id, kind, &name).await?;
        let row = row.map(|value| record::decode::<AccountData>(&value)).transpose()?;
        Ok(row.map(|row| row.content))
    }

    /// A filter, JSON.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn filter(&self, user_id: &UserId, filter_id: &str) -> Result<Option<Bytes>, Fault> {
        self.row(user_id, state::FILTER, filter_id).await
    }

    /// Users of this server whose name or id contains `term`, which is in lower case, at most `limit`; and whether there may
    /// be more.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn search(
        &self,
        term: &str,
        limit: usize,
    ) -> Result<(Vec<(OwnedUserId, Map<String, Value>)>, bool), Fault> {
        let mut found = Vec::new();
        let mut read = 0;
        for slice in 0..ACCOUNT_SLICES {
            let scan = Scan::new(&tables::ACCOUNTS, key![slice], Key::EMPTY, SEARCHED_MAX - read);
            for row in self.env.store().scan(scan).await? {
                read += 1;
                let Ok(user_id) = UserId::parse(row.clustering.text(0)) else { continue };
                if self.account(&user_id).await?.is_none_or(|account| account.deactivated) {
                    continue;
                }
                let profile = self.member_profile(&user_id).await?;
                let name = profile.get("displayname").and_then(Value::as_str).unwrap_or_default();
                if !name.to_lowercase().contains(term) && !user_id.as_str().to_lowercase().contains(term) {
                    continue;
                }
                if found.len() == limit {
                    return Ok((found, true));
                }
                found.push((user_id, profile));
            }
            if read >= SEARCHED_MAX {
                return Ok((found, true));
            }
        }
        Ok((found, false))
    }

    /// A room in the user's list.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn room(&self, user_id: &UserId, room_id: &RoomId) -> Result<Option<RoomEntry>, Fault> {
        let row = self.row(user_id, state::ROOM, room_id.as_str()).await?;
        Ok(row.map(|value| record::decode(&value)).transpose()?)
    }

    /// Rooms that the user is joined to.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn joined_rooms(&self, user_id: &UserId) -> Result<Vec<OwnedRoomId>, Fault> {
        let rows = self.rows(user_id, state::ROOM).await?;
        let entries = rows.into_iter().map(|(_, value)| record::decode::<RoomEntry>(&value));
        let joined = |entry: &RoomEntry| entry.membership == ruma::events::room::member::MembershipState::Join;
        let entries = entries.collect::<Result<Vec<_>, _>>()?;
        Ok(entries.into_iter().filter(joined).map(|entry| entry.room_id).collect())
    }

    /// The key backup of `version`, or the newest.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn backup(&self, user_id: &UserId, version: Option<u64>) -> Result<Option<(u64, Backup)>, Fault> {
        let mut found = None;
        for (name, value) in self.rows(user_id, state::BACKUP).await? {
            let number: u64 = name.parse().unwrap_or(0);
            let wanted = version.is_none_or(|wanted| wanted == number);
            if wanted && !value.is_empty() && found.as_ref().is_none_or(|(best, _)| *best < number) {
                found = Some((number, record::decode(&value)?));
            }
        }
        Ok(found)
    }

    /// Keys of a backup: room, session, key. All, a room's, or one.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn backup_keys(
        &self,
        user_id: &UserId,
        version: u64,
        room_id: Option<&RoomId>,
        session_id: Option<&str>,
    ) -> Result<Vec<(String, String, Bytes)>, Fault> {
        let mut prefix = Key::EMPTY;
        if let Some(room_id) = room_id {
            prefix = prefix.with(room_id.as_str());
            if let Some(session_id) = session_id {
                prefix = prefix.with(session_id);
            }
        }
        let partition = key![user_id.as_str(), version.to_string()];
        let rows = self.env.store().scan(Scan::new(&tables::KEY_BACKUP, partition, prefix, usize::MAX)).await?;
        let split = |row: cofactor_store::Row| {
            (row.clustering.text(0).to_owned(), row.clustering.text(1).to_owned(), row.value)
        };
        Ok(rows.into_iter().map(split).collect())
    }

    /// A cross-signing key (`master`, `self_signing`, `user_signing`), JSON.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn cross_signing_key(&self, user_id: &UserId, kind: &str) -> Result<Option<Value>, Fault> {
        self.row(user_id, state::CROSS_SIGNING, kind).await?.map(|value| parse(&value)).transpose()
    }

    /// The keys of one device, JSON.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn device_keys(&self, user_id: &UserId, device_id: &DeviceId) -> Result<Option<Value>, Fault> {
        self.row(user_id, state::DEVICE_KEYS, device_id.as_str()).await?.map(|value| parse(&value)).transpose()
    }

    /// The keys of `user_id` as `viewer` sees them; of these devices, or of all if there are none.
    ///
    /// Signatures of third users are nobody's business; the viewer's own signature on another's master key is kept with the
    /// viewer and added here. <https://spec.matrix.org/v1.19/client-server-api/#cross-signing>
    ///
    /// # Errors
    /// If the store fails.
    pub async fn query_keys(
        &self,
        viewer: &UserId,
        user_id: &UserId,
        devices: &[OwnedDeviceId],
    ) -> Result<SignedKeys, Fault> {
        let mut found = SignedKeys::default();
        let names: std::collections::BTreeMap<_, _> = self.devices(user_id).await?.into_iter().collect();
        for (device_id, value) in self.rows(user_id, state::DEVICE_KEYS).await? {
            let device: OwnedDeviceId = device_id.as_str().into();
            if !devices.is_empty() && !devices.contains(&device) {
                continue;
            }
            let mut keys: Value = parse(&value)?;
            if let Some(name) = names.get(&device).and_then(|device| device.display_name.as_ref()) {
                keys["unsigned"] = json!({ "device_display_name": name });
            }
            found.devices.insert(device_id, keys);
        }
        found.master = self.cross_signing_key(user_id, "master").await?;
        found.self_signing = self.cross_signing_key(user_id, "self_signing").await?;
        if viewer == user_id {
            found.user_signing = self.cross_signing_key(user_id, "user_signing").await?;
        } else if let Some(master) = &mut found.master
            && let Some(signed) = self.row(viewer, state::USER_SIGNATURE, user_id.as_str()).await?
        {
            let mut signatures = master["signatures"].clone();
            merge(&mut signatures, &json!({ viewer.as_str(): parse(&signed)? }));
            master["signatures"] = signatures;
        }
        Ok(found)
    }
}
