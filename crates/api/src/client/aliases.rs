//! Room aliases. <https://spec.matrix.org/v1.19/client-server-api/#room-aliases>

use cofactor_http::{ApiError, Caller, Reply, Routes, Session};
use http::StatusCode;
use ruma::api::client::{
    alias::{create_alias, delete_alias, get_alias},
    room::aliases,
};
use serde_json::json;

use crate::Api;

pub(crate) fn mount(routes: &mut Routes<Api>) {
    routes.mount::<create_alias::v3::Request, _, _>(create);
    routes.mount::<get_alias::v3::Request, _, _>(get);
    routes.mount::<delete_alias::v3::Request, _, _>(delete);
    routes.mount::<aliases::v3::Request, _, _>(of_room);
}

async fn create(api: Api, caller: Caller<Session>, request: create_alias::v3::Request) -> Result<Reply, ApiError> {
    if request.room_alias.server_name() != api.server_name {
        return Err(ApiError::invalid_param("the alias is of another server"));
    }
    // Only those who can see a room may point at it.
    let view = api.history.viewpoint(&request.room_id, &caller.session.user_id).await?;
    if !view.is_joined() {
        return Err(ApiError::forbidden("you are not joined to the room"));
    }
    api.rooms.set_alias(&request.room_alias, &request.room_id, &caller.session.user_id).await?;
    Ok(Reply::empty())
}

async fn get(api: Api, _caller: Caller<()>, request: get_alias::v3::Request) -> Result<Reply, ApiError> {
    let found = api.rooms.resolve_alias(&request.room_alias).await?;
    let found = found.ok_or_else(|| ApiError::not_found("there is no such alias"))?;
    Reply::value(&json!({ "room_id": found.room_id, "servers": [api.server_name] }))
}

async fn delete(api: Api, caller: Caller<Session>, request: delete_alias::v3::Request) -> Result<Reply, ApiError> {
    api.rooms.delete_alias(&request.room_alias, &caller.session.user_id).await?;
    Ok(Reply::empty())
}

async fn of_room(api: Api, caller: Caller<Session>, request: aliases::v3::Request) -> Result<Reply, ApiError> {
    let view = api.history.viewpoint(&request.room_id, &caller.session.user_id).await?;
    if !view.is_joined() && !view.is_world_readable() {
        return Err(ApiError::new(StatusCode::FORBIDDEN, "M_FORBIDDEN", "you are not joined to the room"));
    }
    let aliases = api.rooms.aliases_of(&request.room_id).await?;
    Reply::value(&json!({ "aliases": aliases }))
}
