//! Creating rooms and naming them. <https://spec.matrix.org/v1.19/client-server-api/#rooms>

use cofactor_http::{ApiError, Caller, LimitClass, Reply, Routes, Session};
use cofactor_room::{default_room_version, room_version};
use cofactor_rooms::{CreateRoomOptions, Preset};
use cofactor_wire::room::RoomCommand;
use http::StatusCode;
use ruma::{
    OwnedRoomAliasId, RoomAliasId,
    api::client::room::create_room::v3::RoomPreset,
    api::client::{
        directory::{get_room_visibility, set_room_visibility},
        membership::joined_rooms,
        room::{Visibility, create_room},
    },
};
use serde_json::{Map, Value, json};

use crate::Api;

pub(crate) fn mount(routes: &mut Routes<Api>) {
    routes.mount::<create_room::v3::Request, _, _>(create);
    routes.mount::<joined_rooms::v3::Request, _, _>(joined);
    routes.mount::<set_room_visibility::v3::Request, _, _>(set_visibility);
    routes.mount::<get_room_visibility::v3::Request, _, _>(visibility);
}

/// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3createroom>
async fn create(api: Api, caller: Caller<Session>, request: create_room::v3::Request) -> Result<Reply, ApiError> {
    let user_id = &caller.session.user_id;
    api.limit(LimitClass::CreateRoom, user_id).await?;
    if !request.invite_3pid.is_empty() {
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "M_THREEPID_DENIED", "there is no identity server here"));
    }
    let version = match &request.room_version {
        Some(wanted) => room_version(wanted.as_str()).ok_or_else(|| {
            ApiError::new(StatusCode::BAD_REQUEST, "M_UNSUPPORTED_ROOM_VERSION", "this room version is not supported")
        })?,
        None => default_room_version(),
    };
    let public = request.visibility == Visibility::Public;
    let preset = match &request.preset {
        Some(RoomPreset::PublicChat) => Preset::PublicChat,
        Some(RoomPreset::TrustedPrivateChat) => Preset::TrustedPrivateChat,
        Some(RoomPreset::PrivateChat) => Preset::PrivateChat,
        Some(_) => return Err(ApiError::invalid_param("unknown preset")),
        None if public => Preset::PublicChat,
        None => Preset::PrivateChat,
    };
    let alias = request.room_alias_name.as_deref().map(|name| local_alias(&api, name)).transpose()?;
    let mut invite = Vec::with_capacity(request.invite.len());
    for invited in &request.invite {
        invite.push((invited.clone(), api.invited_profile(invited).await?));
    }
    let options = CreateRoomOptions {
        creator: user_id.clone(),
        creator_profile: api.users.member_profile(user_id).await?,
        version,
        preset,
        creation_content: request.creation_content.as_ref().map(object).transpose()?.unwrap_or_default(),
        power_level_content_override: request
            .power_level_content_override
            .as_ref()
            .map(object)
            .transpose()?
            .unwrap_or_default(),
        initial_state: request.initial_state.iter().map(initial_state).collect::<Result<_, _>>()?,
        name: request.name.clone().filter(|name| !name.is_empty()),
        topic: request.topic.clone(),
        alias: alias.clone(),
        invite,
        is_direct: request.is_direct,
        public,
    };
    if let Some(alias) = &alias
        && api.rooms.resolve_alias(alias).await?.is_some()
    {
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "M_ROOM_IN_USE", "the alias is taken"));
    }
    let room_id = api.rooms.create(&options).await.map_err(impossible)?;
    if let Some(alias) = &alias {
        api.rooms.set_alias(alias, &room_id, user_id).await?;
    }
    Reply::value(&json!({ "room_id": room_id }))
}

/// The creator may do everything in its room, so what is forbidden there makes no sense.
fn impossible(fault: cofactor_types::Fault) -> ApiError {
    match fault.class {
        cofactor_types::ErrorClass::Forbidden => {
            ApiError::new(StatusCode::BAD_REQUEST, "M_INVALID_ROOM_STATE", fault.message)
        }
        _ => fault.into(),
    }
}

fn local_alias(api: &Api, name: &str) -> Result<OwnedRoomAliasId, ApiError> {
    let alias = RoomAliasId::parse(format!("#{name}:{}", api.server_name));
    alias.map_err(|_| ApiError::invalid_param("not a room alias"))
}

fn object<T>(raw: &ruma::serde::Raw<T>) -> Result<Map<String, Value>, ApiError> {
    serde_json::from_str(raw.json().get()).map_err(|_| ApiError::bad_json("an object is needed here"))
}

fn initial_state<T>(raw: &ruma::serde::Raw<T>) -> Result<(String, String, Map<String, Value>), ApiError> {
    #[derive(serde::Deserialize)]
    struct Initial {
        r#type: String,
        #[serde(default)]
        state_key: String,
        content: Map<String, Value>,
    }
    let initial: Initial = serde_json::from_str(raw.json().get())
        .map_err(|error| ApiError::bad_json(format!("initial_state: {error}")))?;
    Ok((initial.r#type, initial.state_key, initial.content))
}

async fn joined(api: Api, caller: Caller<Session>, _request: joined_rooms::v3::Request) -> Result<Reply, ApiError> {
    let rooms = api.users.joined_rooms(&caller.session.user_id).await?;
    Reply::value(&json!({ "joined_rooms": rooms }))
}

async fn set_visibility(
    api: Api,
    caller: Caller<Session>,
    request: set_room_visibility::v3::Request,
) -> Result<Reply, ApiError> {
    let public = request.visibility == Visibility::Public;
    let command = RoomCommand::SetDirectory { user_id: caller.session.user_id, public };
    api.room(&request.room_id, command).await?;
    Ok(Reply::empty())
}

async fn visibility(
    api: Api,
    _caller: Caller<()>,
    request: get_room_visibility::v3::Request,
) -> Result<Reply, ApiError> {
    let public = api.rooms.is_public(&request.room_id).await?;
    let exists = api.history.current(&request.room_id, "m.room.create", "").await?.is_some();
    match exists {
        true => Reply::value(&json!({ "visibility": if public { "public" } else { "private" } })),
        false => Err(ApiError::not_found("there is no such room")),
    }
}
