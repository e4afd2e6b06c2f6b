//! Account data, tags and filters. <https://spec.matrix.org/v1.19/client-server-api/#client-config>

use bytes::Bytes;
use cofactor_http::{ApiError, Caller, Reply, Routes, Session};
use cofactor_wire::user_command::{Expected, UserCommand, UserReply};
use http::StatusCode;
use ruma::{
    OwnedRoomId, RoomId, UserId,
    api::client::{
        config::{get_global_account_data, get_room_account_data, set_global_account_data, set_room_account_data},
        filter::{create_filter, get_filter},
        tag::{create_tag, delete_tag, get_tags},
    },
};
use serde_json::{Map, Value, json};

use crate::{Api, service::unexpected};

const TAGS: &str = "m.tag";

/// How often a change in parts is tried against others at the same time.
const TRIES_MAX: usize = 5;

pub(crate) fn mount(routes: &mut Routes<Api>) {
    routes.mount::<set_global_account_data::v3::Request, _, _>(set_global);
    routes.mount::<get_global_account_data::v3::Request, _, _>(get_global);
    routes.mount::<set_room_account_data::v3::Request, _, _>(set_room);
    routes.mount::<get_room_account_data::v3::Request, _, _>(get_room);
    routes.mount::<get_tags::v3::Request, _, _>(tags);
    routes.mount::<create_tag::v3::Request, _, _>(put_tag);
    routes.mount::<delete_tag::v3::Request, _, _>(drop_tag);
    routes.mount::<create_filter::v3::Request, _, _>(put_filter);
    routes.mount::<get_filter::v3::Request, _, _>(filter);
}

pub(crate) fn check_own(session: &Session, user_id: &UserId) -> Result<(), ApiError> {
    if session.user_id == user_id { Ok(()) } else { Err(ApiError::forbidden("this is somebody else's")) }
}

/// What the server itself keeps under these types is changed by other endpoints.
fn check_type(event_type: &str) -> Result<(), ApiError> {
    if matches!(event_type, "m.push_rules" | "m.fully_read") {
        let message = format!("{event_type} is changed by its own endpoint");
        return Err(ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "M_BAD_JSON", message));
    }
    Ok(())
}

async fn set(
    api: &Api,
    session: &Session,
    room_id: Option<OwnedRoomId>,
    event_type: String,
    json: &str,
) -> Result<Reply, ApiError> {
    check_type(&event_type)?;
    if !json.trim_start().starts_with('{') {
        return Err(ApiError::bad_json("account data is an object"));
    }
    let content = Bytes::copy_from_slice(json.as_bytes());
    let command = UserCommand::SetAccountData { room_id, event_type, content, expected: Expected::Anything };
    api.user(&session.user_id, command).await?;
    Ok(Reply::empty())
}

async fn get(api: &Api, session: &Session, room_id: Option<&RoomId>, event_type: &str) -> Result<Reply, ApiError> {
    let content = match api.users.account_data(&session.user_id, room_id, event_type).await? {
        Some(content) => content,
        None if event_type == cofactor_push::Rules::EVENT_TYPE && room_id.is_none() => {
            cofactor_push::Rules::server_default(&session.user_id).store()?
        }
        None => return Err(ApiError::not_found("there is no such account data")),
    };
    Ok(Reply::json(content))
}

async fn set_global(
    api: Api,
    caller: Caller<Session>,
    request: set_global_account_data::v3::Request,
) -> Result<Reply, ApiError> {
    check_own(&caller.session, &request.user_id)?;
    set(&api, &caller.session, None, request.event_type.to_string(), request.data.json().get()).await
}

async fn get_global(
    api: Api,
    caller: Caller<Session>,
    request: get_global_account_data::v3::Request,
) -> Result<Reply, ApiError> {
    check_own(&caller.session, &request.user_id)?;
    get(&api, &caller.session, None, &request.event_type.to_string()).await
}

async fn set_room(
    api: Api,
    caller: Caller<Session>,
    request: set_room_account_data::v3::Request,
) -> Result<Reply, ApiError> {
    check_own(&caller.session, &request.user_id)?;
    let room_id = Some(request.room_id);
    set(&api, &caller.session, room_id, request.event_type.to_string(), request.data.json().get()).await
}

async fn get_room(
    api: Api,
    caller: Caller<Session>,
    request: get_room_account_data::v3::Request,
) -> Result<Reply, ApiError> {
    check_own(&caller.session, &request.user_id)?;
    get(&api, &caller.session, Some(&request.room_id), &request.event_type.to_string()).await
}

impl Api {
    /// Changes account data in parts; others who do so at the same time are not overwritten.
    pub(crate) async fn change_account_data(
        &self,
        user_id: &UserId,
        room_id: Option<&RoomId>,
        event_type: &str,
        mut change: impl FnMut(Option<&Bytes>) -> Result<Bytes, ApiError>,
    ) -> Result<(), ApiError> {
        for _ in 0..TRIES_MAX {
            let before = self.users.account_data(user_id, room_id, event_type).await?;
            let command = UserCommand::SetAccountData {
                room_id: room_id.map(ToOwned::to_owned),
                event_type: event_type.to_owned(),
                content: change(before.as_ref())?,
                expected: Expected::found(before),
            };
            match self.users.ask(user_id, command).await {
                Err(fault) if fault.class == cofactor_types::ErrorClass::Unavailable => {}
                outcome => return Ok(outcome.map(drop)?),
            }
        }
        Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "M_UNKNOWN", "the data keeps changing; try again"))
    }

    async fn change_tags(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        mut change: impl FnMut(&mut Map<String, Value>),
    ) -> Result<Reply, ApiError> {
        self.change_account_data(user_id, Some(room_id), TAGS, |before| {
            let mut content: Value = before.and_then(|before| serde_json::from_slice(before).ok()).unwrap_or_default();
            let mut tags = match content["tags"].take() {
                Value::Object(tags) => tags,
                _ => Map::new(),
            };
            change(&mut tags);
            Ok(json!({ "tags": tags }).to_string().into())
        })
        .await?;
        Ok(Reply::empty())
    }
}

/// <https://spec.matrix.org/v1.19/client-server-api/#room-tagging>
async fn tags(api: Api, caller: Caller<Session>, request: get_tags::v3::Request) -> Result<Reply, ApiError> {
    check_own(&caller.session, &request.user_id)?;
    let content = api.users.account_data(&request.user_id, Some(&request.room_id), TAGS).await?;
    Ok(content.map_or_else(|| Reply::json(Bytes::from_static(b"{\"tags\":{}}")), Reply::json))
}

async fn put_tag(api: Api, caller: Caller<Session>, request: create_tag::v3::Request) -> Result<Reply, ApiError> {
    check_own(&caller.session, &request.user_id)?;
    if request.tag.len() > 255 {
        return Err(ApiError::invalid_param("a tag has at most 255 bytes"));
    }
    let info = serde_json::to_value(&request.tag_info).unwrap_or_default();
    let change = |tags: &mut Map<String, Value>| drop(tags.insert(request.tag.clone(), info.clone()));
    api.change_tags(&request.user_id, &request.room_id, change).await
}

async fn drop_tag(api: Api, caller: Caller<Session>, request: delete_tag::v3::Request) -> Result<Reply, ApiError> {
    check_own(&caller.session, &request.user_id)?;
    let change = |tags: &mut Map<String, Value>| drop(tags.remove(&request.tag));
    api.change_tags(&request.user_id, &request.room_id, change).await
}

/// <https://spec.matrix.org/v1.19/client-server-api/#filtering>
async fn put_filter(api: Api, caller: Caller<Session>, request: create_filter::v3::Request) -> Result<Reply, ApiError> {
    check_own(&caller.session, &request.user_id)?;
    let filter = serde_json::to_vec(&request.filter).map_err(|error| ApiError::bad_json(error.to_string()))?;
    match api.user(&request.user_id, UserCommand::PutFilter { filter: filter.into() }).await? {
        UserReply::Filter(filter_id) => Reply::value(&json!({ "filter_id": filter_id })),
        _ => Err(unexpected()),
    }
}

async fn filter(api: Api, caller: Caller<Session>, request: get_filter::v3::Request) -> Result<Reply, ApiError> {
    check_own(&caller.session, &request.user_id)?;
    let found = api.users.filter(&request.user_id, &request.filter_id).await?;
    found.map(Reply::json).ok_or_else(|| ApiError::not_found("there is no such filter"))
}
