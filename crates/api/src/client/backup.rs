//! Key backups. <https://spec.matrix.org/v1.19/client-server-api/#server-side-key-backups>
//!
//! The bodies are open-ended JSON that the server keeps as it is, so these endpoints read them themselves.

use std::collections::BTreeMap;

use bytes::Bytes;
use cofactor_http::{Access, ApiError, Body, Exchange, Reply, Routes, Session, check_json};
use cofactor_wire::user_command::{Backup, UserCommand, UserReply};
use http::Method;
use ruma::{OwnedRoomId, RoomId};
use serde::Deserialize;
use serde_json::{Map, Value, json, value::RawValue};

use crate::{Api, service::unexpected};

/// A request's body, in bytes: clients send many keys at once.
const BODY_BYTES_MAX: Option<usize> = Some(16 << 20);

pub(crate) fn mount(routes: &mut Routes<Api>) {
    let mut mount = |method: Method, path: &'static str, handler: Handler| {
        routes.mount_raw(method, path, Access::Required, BODY_BYTES_MAX, handler);
    };
    mount(Method::POST, "/_matrix/client/v3/room_keys/version", |api, exchange| Box::pin(create(api, exchange)));
    mount(Method::GET, "/_matrix/client/v3/room_keys/version", |api, exchange| Box::pin(get(api, exchange)));
    let version = "/_matrix/client/v3/room_keys/version/{version}";
    mount(Method::GET, version, |api, exchange| Box::pin(get(api, exchange)));
    mount(Method::PUT, version, |api, exchange| Box::pin(update(api, exchange)));
    mount(Method::DELETE, version, |api, exchange| Box::pin(delete(api, exchange)));
    for path in [
        "/_matrix/client/v3/room_keys/keys",
        "/_matrix/client/v3/room_keys/keys/{room_id}",
        "/_matrix/client/v3/room_keys/keys/{room_id}/{session_id}",
    ] {
        mount(Method::GET, path, |api, exchange| Box::pin(get_keys(api, exchange)));
        mount(Method::PUT, path, |api, exchange| Box::pin(put_keys(api, exchange)));
        mount(Method::DELETE, path, |api, exchange| Box::pin(delete_keys(api, exchange)));
    }
}

type Handler = fn(Api, Exchange) -> std::pin::Pin<Box<dyn Future<Output = Result<Reply, ApiError>>>>;

fn session(exchange: &Exchange) -> Result<&Session, ApiError> {
    exchange.session.as_ref().ok_or_else(ApiError::missing_token)
}

fn body<'a, T: Deserialize<'a>>(exchange: &'a Exchange) -> Result<T, ApiError> {
    let Body::Whole(bytes) = &exchange.body else { return Err(ApiError::not_json()) };
    check_json(bytes)?;
    serde_json::from_slice(bytes).map_err(|error| ApiError::bad_json(error.to_string()))
}

fn no_backup() -> ApiError {
    ApiError::not_found("there is no such key backup")
}

fn number(version: &str) -> Result<u64, ApiError> {
    version.parse().map_err(|_| no_backup())
}

#[derive(Deserialize)]
struct Version<'a> {
    algorithm: String,
    #[serde(borrow)]
    auth_data: &'a RawValue,
}

async fn create(api: Api, exchange: Exchange) -> Result<Reply, ApiError> {
    let version: Version = body(&exchange)?;
    let auth_data = Bytes::copy_from_slice(version.auth_data.get().as_bytes());
    let command = UserCommand::CreateBackup { algorithm: version.algorithm, auth_data };
    match api.user(&session(&exchange)?.user_id, command).await? {
        UserReply::Backup(version) => Reply::value(&json!({ "version": version.to_string() })),
        _ => Err(unexpected()),
    }
}

async fn get(api: Api, exchange: Exchange) -> Result<Reply, ApiError> {
    let wanted = exchange.args.first().map(|version| number(version)).transpose()?;
    let (version, backup) = api.users.backup(&session(&exchange)?.user_id, wanted).await?.ok_or_else(no_backup)?;
    let Backup { algorithm, auth_data, count, etag } = backup;
    let auth_data: Value = serde_json::from_slice(&auth_data).unwrap_or_default();
    Reply::value(&json!({
        "version": version.to_string(),
        "algorithm": algorithm,
        "auth_data": auth_data,
        "count": count,
        "etag": etag.to_string(),
    }))
}

async fn update(api: Api, exchange: Exchange) -> Result<Reply, ApiError> {
    let version = number(exchange.args.first().map(String::as_str).unwrap_or_default())?;
    let new: Version = body(&exchange)?;
    let auth_data = Bytes::copy_from_slice(new.auth_data.get().as_bytes());
    let command = UserCommand::UpdateBackup { version, algorithm: new.algorithm, auth_data };
    api.user(&session(&exchange)?.user_id, command).await?;
    Ok(Reply::empty())
}

async fn delete(api: Api, exchange: Exchange) -> Result<Reply, ApiError> {
    let version = number(exchange.args.first().map(String::as_str).unwrap_or_default())?;
    api.users.delete_backup(&session(&exchange)?.user_id, version).await?;
    Ok(Reply::empty())
}

/// The version, room and session that a request names.
fn place(exchange: &Exchange) -> Result<(u64, Option<OwnedRoomId>, Option<String>), ApiError> {
    let version = exchange.query("version").ok_or_else(|| ApiError::missing_param("`version` is needed"))?;
    let room_id = exchange.args.first().map(|id| RoomId::parse(id.as_str()));
    let room_id = room_id.transpose().map_err(|_| ApiError::invalid_param("not a room id"))?;
    Ok((number(&version)?, room_id, exchange.args.get(1).cloned()))
}

#[derive(Deserialize)]
struct Sessions<'a> {
    #[serde(borrow)]
    sessions: BTreeMap<String, &'a RawValue>,
}

#[derive(Deserialize)]
struct Rooms<'a> {
    #[serde(borrow)]
    rooms: BTreeMap<String, Sessions<'a>>,
}

async fn put_keys(api: Api, exchange: Exchange) -> Result<Reply, ApiError> {
    let (version, room_id, session_id) = place(&exchange)?;
    let key = |json: &RawValue| Bytes::copy_from_slice(json.get().as_bytes());
    let mut keys = Vec::new();
    match (room_id, session_id) {
        (Some(room_id), Some(session_id)) => keys.push((room_id.to_string(), session_id, key(body(&exchange)?))),
        (Some(room_id), None) => {
            let of_room: Sessions = body(&exchange)?;
            keys.extend(of_room.sessions.into_iter().map(|(id, json)| (room_id.to_string(), id, key(json))));
        }
        _ => {
            let all: Rooms = body(&exchange)?;
            for (room_id, of_room) in all.rooms {
                keys.extend(of_room.sessions.into_iter().map(|(id, json)| (room_id.clone(), id, key(json))));
            }
        }
    }
    let user_id = &session(&exchange)?.user_id;
    let outcome = api.user(user_id, UserCommand::PutBackupKeys { version, keys }).await;
    match outcome {
        Ok(reply) => changed(reply),
        Err(error) if error.errcode == "M_WRONG_ROOM_KEYS_VERSION" => {
            let newest = api.users.backup(user_id, None).await?;
            Err(error.with("current_version", newest.map(|(version, _)| version.to_string())))
        }
        Err(error) => Err(error),
    }
}

fn changed(reply: UserReply) -> Result<Reply, ApiError> {
    match reply {
        UserReply::BackupChanged { count, etag } => Reply::value(&json!({ "count": count, "etag": etag.to_string() })),
        _ => Err(unexpected()),
    }
}

async fn get_keys(api: Api, exchange: Exchange) -> Result<Reply, ApiError> {
    let (version, room_id, session_id) = place(&exchange)?;
    let user_id = &session(&exchange)?.user_id;
    api.users.backup(user_id, Some(version)).await?.ok_or_else(no_backup)?;
    let found = api.users.backup_keys(user_id, version, room_id.as_deref(), session_id.as_deref()).await?;
    let parse = |key: &Bytes| serde_json::from_slice::<Value>(key).unwrap_or_default();
    if session_id.is_some() {
        let (_, _, key) = found.first().ok_or_else(|| ApiError::not_found("the backup has no such key"))?;
        return Ok(Reply::json(key.clone()));
    }
    if room_id.is_some() {
        let sessions: Map<_, _> = found.iter().map(|(_, id, key)| (id.clone(), parse(key))).collect();
        return Reply::value(&json!({ "sessions": sessions }));
    }
    let mut rooms = Map::new();
    for (room_id, id, key) in &found {
        let room = rooms.entry(room_id.clone()).or_insert_with(|| json!({ "sessions": {} }));
        room["sessions"][id] = parse(key);
    }
    Reply::value(&json!({ "rooms": rooms }))
}

async fn delete_keys(api: Api, exchange: Exchange) -> Result<Reply, ApiError> {
    let (version, room_id, session_id) = place(&exchange)?;
    let user_id = &session(&exchange)?.user_id;
    let found = api.users.backup_keys(user_id, version, room_id.as_deref(), session_id.as_deref()).await?;
    let keys = found.into_iter().map(|(room_id, session_id, _)| (room_id, session_id)).collect();
    changed(api.user(user_id, UserCommand::DeleteBackupKeys { version, keys }).await?)
}
