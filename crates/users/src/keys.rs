//! End-to-end keys: device keys, one-time and fallback keys, cross-signing, signatures.
//! <https://spec.matrix.org/v1.19/client-server-api/#end-to-end-encryption>

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use cofactor_entity::{Cx, Decision};
use cofactor_store::{key, record, tables};
use cofactor_types::{ErrorClass, Fault, limits::ONE_TIME_KEYS_MAX};
use cofactor_wire::{
    user::{KeyCounts, class, state},
    user_command::{FallbackKey, UserReply},
};
use ruma::{DeviceId, OwnedDeviceId, OwnedUserId};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::{entity::UserEntity, issued::Issued};

/// The algorithm whose count clients expect even when it is zero.
const SIGNED_CURVE25519: &str = "signed_curve25519";

/// Other users whose keys one user has signed.
const SIGNED_USERS_MAX: usize = 10_000;

impl UserEntity {
    pub(crate) fn upload_keys(
        &mut self,
        device_id: OwnedDeviceId,
        device_keys: Option<Bytes>,
        one_time: BTreeMap<String, Bytes>,
        fallback: BTreeMap<String, Bytes>,
        cx: &mut Cx,
    ) -> Result<Decision<Self>, Fault> {
        self.account()?;
        let device = self.devices.get(&device_id).ok_or_else(|| Fault::not_found("there is no such device"))?;
        let mut issued: BTreeSet<u64> = device.issued_keys.iter().copied().collect();
        issued.extend(self.issued_keys.get(&device_id).into_iter().flat_map(Issued::hashes));
        self.check_one_time(&device_id, &one_time)?;
        if let Some(keys) = device_keys.filter(|keys| self.device_keys.get(&device_id) != Some(keys)) {
            let keys = self.keep_signatures(&device_id, &keys)?;
            self.put_json(cx, state::DEVICE_KEYS, device_id.as_str(), keys.clone());
            self.device_keys.insert(device_id.clone(), keys);
            self.devices_changed(cx, vec![device_id.clone()])?;
        }
        let mut changed = false;
        for (key_id, key) in one_time {
            // A key that was handed out is never handed out again, even to a client that lost track of it.
            if issued.contains(&short_hash(&key_id, &key)) {
                continue;
            }
            let name = (device_id.clone(), key_id);
            if self.one_time_keys.get(&name) != Some(&key) {
                self.put_json(cx, state::ONE_TIME_KEY, &format!("{}\0{}", name.0, name.1), key.clone());
                self.one_time_keys.insert(name, key);
                changed = true;
            }
        }
        for (key_id, key) in fallback {
            let algorithm = algorithm_of(&key_id).to_owned();
            let name = (device_id.clone(), algorithm);
            if self.fallback_keys.get(&name).is_some_and(|known| known.key_id == key_id && known.key == key) {
                continue;
            }
            let row = FallbackKey { key_id, key, used: false };
            self.put(cx, state::FALLBACK_KEY, &format!("{}\0{}", name.0, name.1), &row)?;
            self.fallback_keys.insert(name, row);
            changed = true;
        }
        let counts = if changed { self.say_counts(&device_id, cx)? } else { self.counts(&device_id) };
        Ok(Decision::Commit(UserReply::Counts(counts)))
    }

    /// A key id stands for one key for ever.
    fn check_one_time(&self, device_id: &DeviceId, one_time: &BTreeMap<String, Bytes>) -> Result<(), Fault> {
        let mut by_algorithm: BTreeMap<&str, usize> = BTreeMap::new();
        for ((device, key_id), _) in self.one_time_keys.range((device_id.to_owned(), String::new())..) {
            if device != device_id {
                break;
            }
            *by_algorithm.entry(algorithm_of(key_id)).or_default() += 1;
        }
        for (key_id, key) in one_time {
            match self.one_time_keys.get(&(device_id.to_owned(), key_id.clone())) {
                Some(known) if known != key => {
                    let message = format!("the one-time key {key_id} exists already with another value");
                    return Err(Fault::new(ErrorClass::Invalid, "M_INVALID_PARAM", message));
                }
                Some(_) => {}
                None => *by_algorithm.entry(algorithm_of(key_id)).or_default() += 1,
            }
        }
        // Clients aim at half of the bound; a few more than it are taken, many are a mistake.
        if by_algorithm.values().any(|count| *count > 2 * ONE_TIME_KEYS_MAX) {
            return Err(Fault::new(ErrorClass::Invalid, "M_TOO_LARGE", "the device has too many one-time keys"));
        }
        Ok(())
    }

    /// New device keys keep the cross-signatures that others added to the same keys.
    fn keep_signatures(&self, device_id: &DeviceId, keys: &Bytes) -> Result<Bytes, Fault> {
        let mut new: Value = parse(keys)?;
        if let Some(before) = self.device_keys.get(device_id) {
            let before: Value = parse(before)?;
            if before["keys"] == new["keys"] {
                let mut signatures = before["signatures"].clone();
                merge(&mut signatures, &new["signatures"]);
                new["signatures"] = signatures;
            }
        }
        unparse(&new)
    }

    pub(crate) fn claim_keys(
        &mut self,
        keys: Vec<(OwnedDeviceId, String)>,
        cx: &mut Cx,
    ) -> Result<Decision<Self>, Fault> {
        let mut claimed = Vec::new();
        for (device_id, algorithm) in keys {
            let first = (device_id.clone(), format!("{algorithm}:"));
            let found = self
                .one_time_keys
                .range(first..)
                .next()
                .filter(|((device, key_id), _)| *device == device_id && algorithm_of(key_id) == algorithm);
            if let Some((name, key)) = found.map(|(name, key)| (name.clone(), key.clone())) {
                self.one_time_keys.remove(&name);
                self.remove(cx, state::ONE_TIME_KEY, &format!("{}\0{}", name.0, name.1));
                self.note_issued(&device_id, short_hash(&name.1, &key), cx)?;
                self.say_counts(&device_id, cx)?;
                claimed.push((device_id, name.1, key));
            } else if let Some(fallback) = self.fallback_keys.get(&(device_id.clone(), algorithm.clone())).cloned() {
                if !fallback.used {
                    let row = FallbackKey { used: true, ..fallback.clone() };
                    self.put(cx, state::FALLBACK_KEY, &format!("{device_id}\0{algorithm}"), &row)?;
                    self.fallback_keys.insert((device_id.clone(), algorithm), row);
                    self.say_counts(&device_id, cx)?;
                }
                claimed.push((device_id, fallback.key_id, fallback.key));
            }
        }
        Ok(Decision::Commit(UserReply::Claimed(claimed)))
    }

    fn note_issued(&mut self, device_id: &DeviceId, hash: u64, cx: &mut Cx) -> Result<(), Fault> {
        let noted = self.issued_keys.entry(device_id.to_owned()).or_default().note(hash);
        let (number, page, forgotten) = (noted.number, record::encode(&noted.page)?, noted.forgotten);
        cx.put(&tables::USER_STATE, key![cx.id()], key![state::ISSUED_KEYS, page_name(device_id, number)], page);
        if let Some(forgotten) = forgotten {
            self.remove(cx, state::ISSUED_KEYS, &page_name(device_id, forgotten));
        }
        Ok(())
    }

    fn counts(&self, device_id: &DeviceId) -> KeyCounts {
        let mut one_time = BTreeMap::from([(SIGNED_CURVE25519.to_owned(), 0)]);
        for ((device, key_id), _) in self.one_time_keys.range((device_id.to_owned(), String::new())..) {
            if device != device_id {
                break;
            }
            *one_time.entry(algorithm_of(key_id).to_owned()).or_default() += 1;
        }
        let unused = self.fallback_keys.iter().filter(|((device, _), key)| device == device_id && !key.used);
        let unused_fallback = unused.map(|((_, algorithm), _)| algorithm.clone()).collect();
        KeyCounts { device_id: Some(device_id.to_owned()), one_time, unused_fallback, position: Default::default() }
    }

    fn say_counts(&self, device_id: &DeviceId, cx: &mut Cx) -> Result<KeyCounts, Fault> {
        let position = cx.allocate()?;
        let counts = KeyCounts { position, ..self.counts(device_id) };
        self.put(cx, state::KEY_COUNTS, device_id.as_str(), &counts)?;
        cx.publish(class::KEY_COUNTS, position, record::encode(&counts)?);
        Ok(counts)
    }

    /// The keys of a device that is going away.
    pub(crate) fn drop_keys(&mut self, device_id: &DeviceId, cx: &mut Cx) {
        if self.device_keys.remove(device_id).is_some() {
            self.remove(cx, state::DEVICE_KEYS, device_id.as_str());
        }
        let mine = |device: &OwnedDeviceId| device == device_id;
        let one_time: Vec<_> = self.one_time_keys.keys().filter(|(device, _)| mine(device)).cloned().collect();
        for name in one_time {
            self.remove(cx, state::ONE_TIME_KEY, &format!("{}\0{}", name.0, name.1));
            self.one_time_keys.remove(&name);
        }
        for number in self.issued_keys.remove(device_id).iter().flat_map(Issued::numbers) {
            self.remove(cx, state::ISSUED_KEYS, &page_name(device_id, number));
        }
        let fallback: Vec<_> = self.fallback_keys.keys().filter(|(device, _)| mine(device)).cloned().collect();
        for name in fallback {
            self.remove(cx, state::FALLBACK_KEY, &format!("{}\0{}", name.0, name.1));
            self.fallback_keys.remove(&name);
        }
    }

    pub(crate) fn set_cross_signing(&mut self, keys: BTreeMap<String, Bytes>, cx: &mut Cx) -> Result<(), Fault> {
        self.account()?;
        let new_master = keys.get("master").is_some_and(|key| !self.same_key("master", key));
        if new_master {
            // What the old master key vouched for is nobody's word any more.
            for name in std::mem::take(&mut self.cross_signing).into_keys() {
                self.remove(cx, state::CROSS_SIGNING, &name);
            }
        }
        for (kind, key) in keys {
            let key = match self.cross_signing.get(&kind).filter(|_| self.same_key(&kind, &key)) {
                Some(before) => {
                    let (mut merged, new): (Value, Value) = (parse(before)?, parse(&key)?);
                    let mut signatures = merged["signatures"].clone();
                    merge(&mut signatures, &new["signatures"]);
                    merged["signatures"] = signatures;
                    unparse(&merged)?
                }
                None => key,
            };
            self.put_json(cx, state::CROSS_SIGNING, &kind, key.clone());
            self.cross_signing.insert(kind, key);
        }
        self.devices_changed(cx, Vec::new())
    }

    fn same_key(&self, kind: &str, key: &Bytes) -> bool {
        let keys = |bytes: &Bytes| parse(bytes).map(|value: Value| value["keys"].clone()).ok();
        self.cross_signing.get(kind).is_some_and(|known| keys(known) == keys(key))
    }

    pub(crate) fn add_signatures(
        &mut self,
        own: BTreeMap<String, BTreeMap<String, String>>,
        others: BTreeMap<OwnedUserId, BTreeMap<String, String>>,
        cx: &mut Cx,
    ) -> Result<(), Fault> {
        self.account()?;
        let mut device_ids = Vec::new();
        for (target, signatures) in own {
            let added = json!({ self.user_id.as_str(): signatures });
            let device_id: OwnedDeviceId = target.as_str().into();
            if let Some(keys) = self.device_keys.get(&device_id) {
                let keys = with_signatures(keys, &added)?;
                self.put_json(cx, state::DEVICE_KEYS, &target, keys.clone());
                self.device_keys.insert(device_id.clone(), keys);
                device_ids.push(device_id);
            } else if let Some(master) = self.cross_signing.get("master") {
                let master = with_signatures(master, &added)?;
                self.put_json(cx, state::CROSS_SIGNING, "master", master.clone());
                self.cross_signing.insert("master".to_owned(), master);
            }
        }
        for (user_id, signatures) in others {
            if self.user_signatures.len() >= SIGNED_USERS_MAX && !self.user_signatures.contains_key(user_id.as_str()) {
                return Err(Fault::new(ErrorClass::Limited, "M_LIMIT_EXCEEDED", "you have signed too many users"));
            }
            let row = unparse(&json!(signatures))?;
            self.put_json(cx, state::USER_SIGNATURE, user_id.as_str(), row.clone());
            self.user_signatures.insert(user_id.to_string(), row);
        }
        self.devices_changed(cx, device_ids)
    }

    fn put_json(&self, cx: &mut Cx, kind: &str, name: &str, json: Bytes) {
        cx.put(&tables::USER_STATE, key![cx.id()], key![kind, name], json);
    }
}

fn algorithm_of(key_id: &str) -> &str {
    key_id.split_once(':').map_or(key_id, |(algorithm, _)| algorithm)
}

/// The row of a page of handed-out keys.
fn page_name(device_id: &DeviceId, number: u64) -> String {
    format!("{device_id}\0{number:010}")
}

fn short_hash(key_id: &str, key: &[u8]) -> u64 {
    let digest = Sha256::new().chain_update(key_id).chain_update([0]).chain_update(key).finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(first)
}

fn with_signatures(key: &Bytes, added: &Value) -> Result<Bytes, Fault> {
    let mut key: Value = parse(key)?;
    let mut signatures = key["signatures"].clone();
    merge(&mut signatures, added);
    key["signatures"] = signatures;
    unparse(&key)
}

/// Adds users' signatures to users' signatures.
pub(crate) fn merge(into: &mut Value, from: &Value) {
    if !into.is_object() {
        *into = Value::Object(Map::new());
    }
    let (Some(into), Some(from)) = (into.as_object_mut(), from.as_object()) else { return };
    for (user_id, signatures) in from {
        let known = into.entry(user_id.clone()).or_insert_with(|| json!({}));
        if let (Some(known), Some(signatures)) = (known.as_object_mut(), signatures.as_object()) {
            known.extend(signatures.clone());
        }
    }
}

pub(crate) fn parse(bytes: &[u8]) -> Result<Value, Fault> {
    serde_json::from_slice(bytes).map_err(|error| Fault::internal(format!("a stored key is damaged: {error}")))
}

pub(crate) fn unparse(value: &Value) -> Result<Bytes, Fault> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|error| Fault::internal(error.to_string()))
}
