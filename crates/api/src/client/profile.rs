//! Profiles. <https://spec.matrix.org/v1.19/client-server-api/#profiles>

use bytes::Bytes;
use cofactor_http::{Access, ApiError, Body, Exchange, Reply, Routes, check_json};
use cofactor_wire::user_command::UserCommand;
use http::Method;
use ruma::{OwnedUserId, UserId};
use serde_json::{Map, Value, json};

use crate::Api;

/// The fields are open-ended, so these endpoints look at the path themselves.
pub(crate) fn mount(routes: &mut Routes<Api>) {
    const BYTES: Option<usize> = Some(128 << 10);
    for path in ["/_matrix/client/v3/profile/{user_id}", "/_matrix/client/r0/profile/{user_id}"] {
        routes.mount_raw(Method::GET, path, Access::Open, Some(0), get_all);
    }
    for path in [
        "/_matrix/client/v3/profile/{user_id}/{field}",
        "/_matrix/client/r0/profile/{user_id}/{field}",
        "/_matrix/client/unstable/uk.tcpip.msc4133/profile/{user_id}/{field}",
    ] {
        routes.mount_raw(Method::GET, path, Access::Open, Some(0), get);
        routes.mount_raw(Method::PUT, path, Access::Required, BYTES, put);
        routes.mount_raw(Method::DELETE, path, Access::Required, BYTES, delete);
    }
}

fn user_id(exchange: &Exchange) -> Result<OwnedUserId, ApiError> {
    let text = exchange.args.first().map(String::as_str).unwrap_or_default();
    UserId::parse(text).map_err(|_| ApiError::invalid_param("not a user id"))
}

async fn profile(api: &Api, user_id: &UserId) -> Result<Map<String, Value>, ApiError> {
    match api.users.account(user_id).await? {
        Some(_) => Ok(api.users.profile(user_id).await?),
        None => Err(ApiError::not_found("there is no such user")),
    }
}

async fn get_all(api: Api, exchange: Exchange) -> Result<Reply, ApiError> {
    Reply::value(&profile(&api, &user_id(&exchange)?).await?)
}

async fn get(api: Api, exchange: Exchange) -> Result<Reply, ApiError> {
    let mut profile = profile(&api, &user_id(&exchange)?).await?;
    let field = exchange.args.get(1).cloned().unwrap_or_default();
    let value = profile.remove(&field).ok_or_else(|| ApiError::not_found("the profile has no such field"))?;
    Reply::value(&json!({ field: value }))
}

async fn put(api: Api, exchange: Exchange) -> Result<Reply, ApiError> {
    let field = exchange.args.get(1).cloned().unwrap_or_default();
    let Body::Whole(body) = &exchange.body else { return Err(ApiError::not_json()) };
    check_json(body)?;
    let mut body: Map<String, Value> = match serde_json::from_slice(body) {
        Ok(Value::Object(body)) => body,
        Ok(_) => return Err(ApiError::bad_json("the body is not an object")),
        Err(_) => return Err(ApiError::not_json()),
    };
    let value = body.remove(&field).ok_or_else(|| ApiError::missing_param(format!("the body has no `{field}`")))?;
    let standard = matches!(field.as_str(), "displayname" | "avatar_url");
    if standard && !value.is_string() && !value.is_null() {
        return Err(ApiError::invalid_param(format!("`{field}` is a string")));
    }
    let empty = standard && (value.is_null() || value.as_str() == Some(""));
    let value = (!empty).then(|| Bytes::from(value.to_string()));
    set(&api, &exchange, field, value).await
}

async fn delete(api: Api, exchange: Exchange) -> Result<Reply, ApiError> {
    let field = exchange.args.get(1).cloned().unwrap_or_default();
    set(&api, &exchange, field, None).await
}

async fn set(api: &Api, exchange: &Exchange, field: String, value: Option<Bytes>) -> Result<Reply, ApiError> {
    let session = exchange.session.as_ref().ok_or_else(ApiError::missing_token)?;
    if user_id(exchange)? != session.user_id {
        return Err(ApiError::forbidden("the profile is somebody else's"));
    }
    api.user(&session.user_id, UserCommand::SetProfile { field, value }).await?;
    Ok(Reply::empty())
}
