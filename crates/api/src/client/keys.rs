//! End-to-end keys. <https://spec.matrix.org/v1.19/client-server-api/#key-management-api>

use std::collections::BTreeMap;

use bytes::Bytes;
use cofactor_http::{ApiError, Caller, LimitClass, Reply, Routes, Session};
use cofactor_types::SyncToken;
use cofactor_wire::user_command::{UserCommand, UserReply};
use ruma::{
    OwnedUserId, UserId,
    api::client::keys::{claim_keys, get_key_changes, get_keys, upload_keys, upload_signatures, upload_signing_keys},
    serde::Base64,
    signatures::{PublicKeyMap, PublicKeySet, verify_json},
};
use serde_json::{Map, Value, json};

use crate::{Api, service::unexpected};

/// Keys in one upload.
const UPLOAD_MAX: usize = 500;

/// Users or devices in one request.
const QUERY_MAX: usize = 2_000;

/// One key object, in bytes.
const KEY_BYTES_MAX: usize = 16 << 10;

pub(crate) fn mount(routes: &mut Routes<Api>) {
    routes.mount::<upload_keys::v3::Request, _, _>(upload);
    routes.mount::<get_keys::v3::Request, _, _>(query);
    routes.mount::<claim_keys::v3::Request, _, _>(claim);
    routes.mount::<get_key_changes::v3::Request, _, _>(changes);
    routes.mount::<upload_signing_keys::v3::Request, _, _>(upload_signing);
    routes.mount::<upload_signatures::v3::Request, _, _>(sign);
}

fn bytes(json: &str) -> Result<Bytes, ApiError> {
    if json.len() > KEY_BYTES_MAX {
        return Err(ApiError::invalid_param(format!("a key has at most {KEY_BYTES_MAX} bytes")));
    }
    Ok(Bytes::copy_from_slice(json.as_bytes()))
}

async fn upload(api: Api, caller: Caller<Session>, request: upload_keys::v3::Request) -> Result<Reply, ApiError> {
    let Session { user_id, device_id } = caller.session;
    api.limit(LimitClass::Other, &user_id).await?;
    if request.one_time_keys.len() + request.fallback_keys.len() > UPLOAD_MAX {
        return Err(ApiError::invalid_param(format!("at most {UPLOAD_MAX} keys in one upload")));
    }
    let device_keys = match &request.device_keys {
        Some(keys) => {
            let keys = keys.json().get();
            check_device_keys(keys, &user_id, device_id.as_str())?;
            Some(bytes(keys)?)
        }
        None => None,
    };
    let mut one_time = BTreeMap::new();
    for (key_id, key) in &request.one_time_keys {
        one_time.insert(key_id.to_string(), bytes(key.json().get())?);
    }
    let mut fallback = BTreeMap::new();
    for (key_id, key) in &request.fallback_keys {
        fallback.insert(key_id.to_string(), bytes(key.json().get())?);
    }
    let command = UserCommand::UploadKeys { device_id, device_keys, one_time, fallback };
    match api.user(&user_id, command).await? {
        UserReply::Counts(counts) => Reply::value(&json!({ "one_time_key_counts": counts.one_time })),
        _ => Err(unexpected()),
    }
}

/// Device keys speak for the device that uploads them, and are signed by it.
fn check_device_keys(keys: &str, user_id: &UserId, device_id: &str) -> Result<(), ApiError> {
    let keys: Value = serde_json::from_str(keys).map_err(|_| ApiError::not_json())?;
    let bad = |message: &'static str| ApiError::invalid_param(message);
    if keys["user_id"] != user_id.as_str() || keys["device_id"] != device_id {
        return Err(bad("the device keys are of another device"));
    }
    let strings = |value: &Value| value.as_object().is_some_and(|map| map.values().all(Value::is_string));
    if !keys["algorithms"].as_array().is_some_and(|list| list.iter().all(Value::is_string)) || !strings(&keys["keys"]) {
        return Err(bad("the device keys have not the form that they must have"));
    }
    let signatures = &keys["signatures"];
    if !signatures.as_object().is_some_and(|users| users.values().all(strings)) {
        return Err(bad("the device keys are not signed"));
    }
    Ok(())
}

async fn query(api: Api, caller: Caller<Session>, request: get_keys::v3::Request) -> Result<Reply, ApiError> {
    let viewer = &caller.session.user_id;
    api.limit(LimitClass::Other, viewer).await?;
    if request.device_keys.len() > QUERY_MAX {
        return Err(ApiError::invalid_param(format!("at most {QUERY_MAX} users in one query")));
    }
    let (mut devices, mut master, mut self_signing, mut user_signing) =
        (Map::new(), Map::new(), Map::new(), Map::new());
    let mut failures = Map::new();
    for (user_id, wanted) in &request.device_keys {
        if !api.is_local(user_id) {
            failures.insert(user_id.server_name().to_string(), json!({ "status": 503 }));
            continue;
        }
        let keys = api.users.query_keys(viewer, user_id, wanted).await?;
        devices.insert(user_id.to_string(), keys.devices.into());
        let put = |map: &mut Map<String, Value>, key: Option<Value>| {
            if let Some(key) = key {
                map.insert(user_id.to_string(), key);
            }
        };
        put(&mut master, keys.master);
        put(&mut self_signing, keys.self_signing);
        put(&mut user_signing, keys.user_signing);
    }
    Reply::value(&json!({
        "device_keys": devices,
        "master_keys": master,
        "self_signing_keys": self_signing,
        "user_signing_keys": user_signing,
        "failures": failures,
    }))
}

async fn claim(api: Api, caller: Caller<Session>, request: claim_keys::v3::Request) -> Result<Reply, ApiError> {
    api.limit(LimitClass::Other, &caller.session.user_id).await?;
    let mut claimed = Map::new();
    let mut failures = Map::new();
    for (user_id, devices) in request.one_time_keys {
        if !api.is_local(&user_id) {
            failures.insert(user_id.server_name().to_string(), json!({ "status": 503 }));
            continue;
        }
        if api.users.account(&user_id).await?.is_none() {
            continue;
        }
        let keys = devices.into_iter().map(|(device_id, algorithm)| (device_id, algorithm.to_string())).collect();
        let UserReply::Claimed(keys) = api.user(&user_id, UserCommand::ClaimKeys { keys }).await? else {
            return Err(unexpected());
        };
        let of_user = claimed.entry(user_id.to_string()).or_insert_with(|| json!({}));
        for (device_id, key_id, key) in keys {
            of_user[device_id.as_str()] = json!({ key_id: serde_json::from_slice::<Value>(&key).unwrap_or_default() });
        }
    }
    Reply::value(&json!({ "one_time_keys": claimed, "failures": failures }))
}

async fn changes(api: Api, caller: Caller<Session>, request: get_key_changes::v3::Request) -> Result<Reply, ApiError> {
    let token = |text: &str| text.parse::<SyncToken>().map_err(|error| ApiError::invalid_param(error.to_string()));
    let (from, to) = (token(&request.from)?, token(&request.to)?);
    let (changed, left) = api.sync.key_changes(&caller.session.user_id, &from, &to).await?;
    Reply::value(&json!({ "changed": changed, "left": left }))
}

/// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keysdevice_signingupload>
async fn upload_signing(
    api: Api,
    caller: Caller<Session>,
    request: upload_signing_keys::v3::Request,
) -> Result<Reply, ApiError> {
    let user_id = &caller.session.user_id;
    let given = [
        ("master", &request.master_key),
        ("self_signing", &request.self_signing_key),
        ("user_signing", &request.user_signing_key),
    ];
    let mut keys = BTreeMap::new();
    for (kind, key) in given {
        let Some(key) = key else { continue };
        let value: Value = serde_json::from_str(key.json().get()).map_err(|_| ApiError::not_json())?;
        if value["user_id"] != user_id.as_str() || value["usage"] != json!([kind]) {
            return Err(ApiError::invalid_param(format!("the {kind} key is of another user or for another use")));
        }
        keys.insert(kind, (value, bytes(key.json().get())?));
    }
    let stored = api.users.cross_signing_key(user_id, "master").await?;
    let master = match (keys.get("master"), &stored) {
        (Some((new, _)), _) => new.clone(),
        (None, Some(stored)) => stored.clone(),
        (None, None) => return Err(ApiError::missing_param("a master key is needed")),
    };
    for kind in ["self_signing", "user_signing"] {
        if let Some((key, _)) = keys.get(kind)
            && !is_signed(key, user_id, &master)
        {
            let message = format!("the {kind} key is not signed by the master key");
            return Err(ApiError::new(http::StatusCode::BAD_REQUEST, "M_INVALID_SIGNATURE", message));
        }
    }
    if needs_password(&api, user_id, &keys).await? {
        api.ask_password(&caller.session, &caller.context, "cross-signing", request.auth.as_ref()).await?;
    }
    let keys = keys.into_iter().map(|(kind, (_, key))| (kind.to_owned(), key)).collect();
    api.user(user_id, UserCommand::SetCrossSigning { keys }).await?;
    Ok(Reply::empty())
}

/// The first keys, and the same keys again, need no password.
async fn needs_password(api: &Api, user_id: &UserId, keys: &BTreeMap<&str, (Value, Bytes)>) -> Result<bool, ApiError> {
    if api.users.cross_signing_key(user_id, "master").await?.is_none() {
        return Ok(false);
    }
    for (kind, (key, _)) in keys {
        let known = api.users.cross_signing_key(user_id, kind).await?;
        if known.is_none_or(|known| known["keys"] != key["keys"]) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a key object is signed by another's key.
fn is_signed(object: &Value, signer: &UserId, key: &Value) -> bool {
    let Some((key_id, public)) = key["keys"].as_object().and_then(|keys| keys.iter().next()) else { return false };
    let Some(public) = public.as_str().and_then(|text| Base64::parse(text).ok()) else { return false };
    let mut object = object.clone();
    let signature = object["signatures"][signer.as_str()][key_id.as_str()].clone();
    // Only the one signature that is asked about is looked at.
    object["signatures"] = json!({ signer.as_str(): { key_id.as_str(): signature } });
    let Ok(ruma::CanonicalJsonValue::Object(object)) = object.try_into() else { return false };
    let keys = PublicKeyMap::from([(signer.to_string(), PublicKeySet::from([(key_id.clone(), public)]))]);
    verify_json(&keys, &object).is_ok()
}

/// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3keyssignaturesupload>
async fn sign(api: Api, caller: Caller<Session>, request: upload_signatures::v3::Request) -> Result<Reply, ApiError> {
    let me = &caller.session.user_id;
    let mut own = BTreeMap::new();
    let mut others: BTreeMap<OwnedUserId, BTreeMap<String, String>> = BTreeMap::new();
    let mut failures = Map::new();
    for (user_id, objects) in &request.signed_keys {
        for (target, object) in objects.iter() {
            let object: Value = serde_json::from_str(object.get()).map_err(|_| ApiError::not_json())?;
            match signatures_of(&api, me, user_id, target, &object).await? {
                Ok(signatures) if user_id == me => drop(own.insert(target.to_owned(), signatures)),
                Ok(signatures) => others.entry(user_id.clone()).or_default().extend(signatures),
                Err(message) => {
                    let failed = failures.entry(user_id.to_string()).or_insert_with(|| json!({}));
                    failed[target] = json!({ "errcode": "M_INVALID_SIGNATURE", "error": message });
                }
            }
        }
    }
    if !own.is_empty() || !others.is_empty() {
        api.user(me, UserCommand::AddSignatures { own, others }).await?;
    }
    Reply::value(&json!({ "failures": failures }))
}

/// The caller's good signatures on a key of `user_id`, or why there are none.
async fn signatures_of(
    api: &Api,
    me: &UserId,
    user_id: &UserId,
    target: &str,
    object: &Value,
) -> Result<Result<BTreeMap<String, String>, &'static str>, ApiError> {
    let stored_master = api.users.cross_signing_key(user_id, "master").await?;
    let is_master = stored_master
        .as_ref()
        .is_some_and(|master| master["keys"].as_object().is_some_and(|keys| keys.values().any(|key| *key == target)));
    let device = if user_id == me { api.users.device_keys(me, target.into()).await? } else { None };
    let stored = match (&device, &stored_master) {
        (Some(device), _) => device,
        (None, Some(master)) if is_master => master,
        _ => return Ok(Err("there is no such key")),
    };
    if stored["keys"] != object["keys"] {
        return Ok(Err("the key is not the one that is known"));
    }
    let Some(given) = object["signatures"][me.as_str()].as_object() else { return Ok(Err("there is no signature")) };
    let mut good = BTreeMap::new();
    for (key_id, signature) in given {
        let signer = signing_key(api, me, key_id).await?;
        if signer.is_some_and(|signer| is_signed(object, me, &signer)) {
            good.insert(key_id.clone(), signature.as_str().unwrap_or_default().to_owned());
        }
    }
    Ok(if good.is_empty() { Err("no signature is good") } else { Ok(good) })
}

/// The caller's key of that id: a cross-signing key or a device's, as an object with that one key.
async fn signing_key(api: &Api, me: &UserId, key_id: &str) -> Result<Option<Value>, ApiError> {
    for kind in ["master", "self_signing", "user_signing"] {
        if let Some(key) = api.users.cross_signing_key(me, kind).await?
            && !key["keys"][key_id].is_null()
        {
            return Ok(Some(key));
        }
    }
    let Some((_, device_id)) = key_id.split_once(':') else { return Ok(None) };
    let keys = api.users.device_keys(me, device_id.into()).await?;
    Ok(keys
        .filter(|keys| !keys["keys"][key_id].is_null())
        .map(|keys| json!({ "keys": { key_id: keys["keys"][key_id] } })))
}
