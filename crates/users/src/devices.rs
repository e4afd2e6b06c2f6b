//! Devices and their tokens.

use std::sync::Arc;

use cofactor_entity::Cx;
use cofactor_store::{Key, key, record, tables};
use cofactor_types::{ErrorClass, Fault, limits::DEVICES_MAX};
use cofactor_wire::{
    user::{SessionsEnded, class, state},
    user_command::{Device, NewTokens, TokenRow},
};
use ruma::{DeviceId, OwnedDeviceId};

use crate::entity::UserEntity;

/// The name of a device, in characters.
const DISPLAY_NAME_CHARS_MAX: usize = 255;

/// A device is noted as seen at most this often, in milliseconds.
const SEEN_EVERY_MS: u64 = 300_000;

impl UserEntity {
    pub(crate) fn login(
        &mut self,
        device_id: OwnedDeviceId,
        display_name: Option<String>,
        tokens: &NewTokens,
        cx: &mut Cx,
    ) -> Result<(), Fault> {
        self.account()?;
        let known = self.devices.get(&device_id).cloned();
        if known.is_none() && self.devices.len() >= DEVICES_MAX {
            return Err(Fault::new(
                ErrorClass::Limited,
                "M_LIMIT_EXCEEDED",
                "the account has too many devices; delete some",
            ));
        }
        let is_new = known.is_none();
        let mut device = known.unwrap_or_default();
        self.end_sessions(&mut device, cx)?;
        if is_new {
            device.display_name = display_name.map(|name| name.chars().take(DISPLAY_NAME_CHARS_MAX).collect());
        }
        self.give_tokens(&device_id, &mut device, tokens, cx)?;
        self.put_device(device_id.clone(), device, cx)?;
        if is_new {
            self.devices_changed(cx, vec![device_id])?;
        }
        Ok(())
    }

    pub(crate) fn refresh(
        &mut self,
        device_id: &DeviceId,
        refresh_hash: &str,
        tokens: &NewTokens,
        cx: &mut Cx,
    ) -> Result<(), Fault> {
        self.account()?;
        let device = self.devices.get(device_id).cloned();
        let device = device.filter(|device| device.refresh_hashes.iter().any(|known| known == refresh_hash));
        let mut device = device.ok_or_else(unknown_refresh_token)?;
        self.end_sessions(&mut device, cx)?;
        self.give_tokens(device_id, &mut device, tokens, cx)?;
        self.put_device(device_id.to_owned(), device, cx)
    }

    pub(crate) fn delete_devices(&mut self, device_ids: Option<Vec<OwnedDeviceId>>, cx: &mut Cx) -> Result<(), Fault> {
        let device_ids = device_ids.unwrap_or_else(|| self.devices.keys().cloned().collect());
        let mut gone = Vec::new();
        for device_id in device_ids {
            let Some(mut device) = self.devices.remove(&device_id) else { continue };
            self.end_sessions(&mut device, cx)?;
            self.remove(cx, state::DEVICE, device_id.as_str());
            self.remove(cx, state::KEY_COUNTS, device_id.as_str());
            self.remove(cx, state::TO_DEVICE_TAKEN, device_id.as_str());
            self.drop_keys(&device_id, cx);
            let sub: Arc<str> = device_id.as_str().into();
            for position in self.queues.remove(&device_id).unwrap_or_default() {
                cx.remove(class::TO_DEVICE, &sub, position);
            }
            gone.push(device_id);
        }
        if gone.is_empty() { Ok(()) } else { self.devices_changed(cx, gone) }
    }

    pub(crate) fn update_device(
        &mut self,
        device_id: OwnedDeviceId,
        display_name: Option<String>,
        cx: &mut Cx,
    ) -> Result<(), Fault> {
        let missing = || Fault::not_found("there is no such device");
        let mut device = self.devices.get(&device_id).cloned().ok_or_else(missing)?;
        if display_name.as_ref().is_some_and(|name| name.chars().count() > DISPLAY_NAME_CHARS_MAX) {
            return Err(Fault::new(
                ErrorClass::Invalid,
                "M_TOO_LARGE",
                "the name of a device has at most 255 characters",
            ));
        }
        device.display_name = display_name;
        self.put_device(device_id.clone(), device, cx)?;
        self.devices_changed(cx, vec![device_id])
    }

    pub(crate) fn seen(&mut self, device_id: &DeviceId, ip: String, cx: &mut Cx) -> Result<(), Fault> {
        let now_ms = cx.now_ms();
        let Some(device) = self.devices.get(device_id) else { return Ok(()) };
        if device.last_seen_ms.is_some_and(|seen_ms| now_ms < seen_ms + SEEN_EVERY_MS) {
            return Ok(());
        }
        let device = Device { last_seen_ip: Some(ip), last_seen_ms: Some(now_ms), ..device.clone() };
        self.put_device(device_id.to_owned(), device, cx)
    }

    pub(crate) fn put_device(&mut self, device_id: OwnedDeviceId, device: Device, cx: &mut Cx) -> Result<(), Fault> {
        self.put(cx, state::DEVICE, device_id.as_str(), &device)?;
        self.devices.insert(device_id, device);
        Ok(())
    }

    fn give_tokens(
        &self,
        device_id: &DeviceId,
        device: &mut Device,
        tokens: &NewTokens,
        cx: &mut Cx,
    ) -> Result<(), Fault> {
        let row = |refresh: bool, expires_at_ms: Option<u64>| TokenRow {
            user_id: self.user_id.clone(),
            device_id: device_id.to_owned(),
            refresh,
            expires_at_ms,
        };
        let access = record::encode(&row(false, tokens.expires_at_ms))?;
        cx.put(&tables::TOKENS, key![tokens.access_hash.as_str()], Key::EMPTY, access);
        device.access_hashes.push(tokens.access_hash.clone());
        if let Some(refresh_hash) = &tokens.refresh_hash {
            let refresh = record::encode(&row(true, None))?;
            cx.put(&tables::TOKENS, key![refresh_hash.as_str()], Key::EMPTY, refresh);
            device.refresh_hashes.push(refresh_hash.clone());
        }
        Ok(())
    }

    /// Kills the tokens of a device, everywhere.
    fn end_sessions(&self, device: &mut Device, cx: &mut Cx) -> Result<(), Fault> {
        let mut token_hashes = std::mem::take(&mut device.access_hashes);
        token_hashes.append(&mut device.refresh_hashes);
        if token_hashes.is_empty() {
            return Ok(());
        }
        for hash in &token_hashes {
            cx.delete(&tables::TOKENS, key![hash.as_str()], Key::EMPTY);
        }
        let position = cx.allocate()?;
        cx.publish(class::SESSIONS, position, record::encode(&SessionsEnded { token_hashes })?);
        Ok(())
    }
}

fn unknown_refresh_token() -> Fault {
    Fault::new(ErrorClass::Forbidden, "M_UNKNOWN_TOKEN", "the refresh token is not valid")
}
