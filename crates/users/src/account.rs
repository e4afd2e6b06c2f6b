//! The account and the profile.

use bytes::Bytes;
use cofactor_entity::Cx;
use cofactor_store::{key, record, tables};
use cofactor_types::{ErrorClass, Fault};
use cofactor_wire::{room::RoomCommand, user::state, user_command::Account};
use ruma::OwnedDeviceId;
use serde_json::value::RawValue;

use crate::entity::UserEntity;

/// The profile of one user, in bytes. <https://spec.matrix.org/v1.19/client-server-api/#profiles>
const PROFILE_BYTES_MAX: usize = 65_536;

/// The name of a profile field, in bytes.
const FIELD_BYTES_MAX: usize = 255;

/// Slices of the list of accounts, so that no partition grows with the deployment.
pub(crate) const ACCOUNT_SLICES: u64 = 64;

impl UserEntity {
    pub(crate) fn create(&mut self, password_hash: Option<String>, admin: bool, cx: &mut Cx) -> Result<(), Fault> {
        if self.account.is_some() {
            return Err(Fault::new(ErrorClass::Conflict, "M_USER_IN_USE", "the user name is taken"));
        }
        let account = Account { password_hash, admin, deactivated: false, created_ms: cx.now_ms() };
        self.put(cx, state::ACCOUNT, "", &account)?;
        let slice = cx.id().hash64().0 % ACCOUNT_SLICES;
        cx.put(&tables::ACCOUNTS, key![slice], key![cx.id()], record::encode(&account.created_ms)?);
        let localpart =
            serde_json::to_vec(self.user_id.localpart()).map_err(|error| Fault::internal(error.to_string()))?;
        self.write_profile(cx, "displayname", Some(localpart.into()));
        self.account = Some(account);
        Ok(())
    }

    pub(crate) fn set_password(
        &mut self,
        password_hash: String,
        keep_only: Option<OwnedDeviceId>,
        cx: &mut Cx,
    ) -> Result<(), Fault> {
        let account = Account { password_hash: Some(password_hash), ..self.account()?.clone() };
        self.put(cx, state::ACCOUNT, "", &account)?;
        self.account = Some(account);
        match keep_only {
            Some(kept) => {
                let others = self.devices.keys().filter(|device_id| **device_id != kept).cloned().collect();
                self.delete_devices(Some(others), cx)
            }
            None => Ok(()),
        }
    }

    /// Everything that lets anybody act as this user goes; the name stays taken.
    pub(crate) fn deactivate(&mut self, cx: &mut Cx) -> Result<(), Fault> {
        let account = Account { password_hash: None, admin: false, deactivated: true, ..self.account()?.clone() };
        self.delete_devices(None, cx)?;
        for name in std::mem::take(&mut self.cross_signing).into_keys() {
            self.remove(cx, state::CROSS_SIGNING, &name);
        }
        for field in self.profile.keys().cloned().collect::<Vec<_>>() {
            self.write_profile(cx, &field, None);
        }
        self.put(cx, state::ACCOUNT, "", &account)?;
        self.account = Some(account);
        Ok(())
    }

    pub(crate) fn set_profile(&mut self, field: String, value: Option<Bytes>, cx: &mut Cx) -> Result<(), Fault> {
        self.account()?;
        if field.is_empty() || field.len() > FIELD_BYTES_MAX {
            return Err(Fault::new(
                ErrorClass::Invalid,
                "M_KEY_TOO_LARGE",
                "the name of a profile field has 1 to 255 bytes",
            ));
        }
        let before = self.profile.iter().filter(|(name, _)| **name != field);
        let others: usize = before.map(|(name, value)| name.len() + value.len() + 4).sum();
        if others + field.len() + value.as_ref().map_or(0, Bytes::len) > PROFILE_BYTES_MAX {
            return Err(Fault::new(
                ErrorClass::Invalid,
                "M_PROFILE_TOO_LARGE",
                "the profile would be larger than 64 KiB",
            ));
        }
        if self.profile.get(&field) == value.as_ref() {
            return Ok(());
        }
        self.write_profile(cx, &field, value);
        if field == "displayname" || field == "avatar_url" {
            let content = self.member_profile()?;
            let user_id = self.user_id.clone();
            self.tell_rooms(cx, &RoomCommand::Profile { user_id, content })?;
        }
        Ok(())
    }

    fn write_profile(&mut self, cx: &mut Cx, field: &str, value: Option<Bytes>) {
        let clustering = key![state::PROFILE, field];
        match value {
            Some(value) => {
                cx.put(&tables::USER_STATE, key![cx.id()], clustering, value.clone());
                self.profile.insert(field.to_owned(), value);
            }
            None => {
                cx.delete(&tables::USER_STATE, key![cx.id()], clustering);
                self.profile.remove(field);
            }
        }
    }

    /// What member events show of the profile.
    fn member_profile(&self) -> Result<Bytes, Fault> {
        let fields = ["displayname", "avatar_url"].into_iter().filter_map(|name| Some((name, self.profile.get(name)?)));
        let mut content = std::collections::BTreeMap::new();
        for (name, value) in fields {
            let value: &RawValue = serde_json::from_slice(value).map_err(|error| Fault::internal(error.to_string()))?;
            content.insert(name, value);
        }
        serde_json::to_vec(&content).map(Bytes::from).map_err(|error| Fault::internal(error.to_string()))
    }
}
