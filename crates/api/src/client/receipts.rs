//! Receipts, read markers, typing. <https://spec.matrix.org/v1.19/client-server-api/#receipts>

use bytes::Bytes;
use cofactor_http::{Access, ApiError, Body, Caller, Exchange, LimitClass, Reply, Routes, Session, check_json};
use cofactor_wire::{
    room::RoomCommand,
    user_command::{Expected, UserCommand},
};
use http::Method;
use ruma::{
    EventId, OwnedEventId, RoomId, UserId,
    api::client::{
        read_marker::set_read_marker,
        receipt::create_receipt::{self, v3::ReceiptType},
    },
    events::receipt::ReceiptThread,
};
use serde::Deserialize;
use serde_json::json;

use crate::{Api, client::account_data::check_own};

pub(crate) fn mount(routes: &mut Routes<Api>) {
    routes.mount::<create_receipt::v3::Request, _, _>(receipt);
    routes.mount::<set_read_marker::v3::Request, _, _>(read_markers);
    for path in
        ["/_matrix/client/v3/rooms/{room_id}/typing/{user_id}", "/_matrix/client/r0/rooms/{room_id}/typing/{user_id}"]
    {
        routes.mount_raw(Method::PUT, path, Access::Required, Some(1_024), typing);
    }
}

impl Api {
    async fn read(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        receipt_type: &str,
        thread_id: String,
        event_id: OwnedEventId,
    ) -> Result<(), ApiError> {
        let (user_id, receipt_type) = (user_id.to_owned(), receipt_type.to_owned());
        let command = RoomCommand::Receipt { user_id, receipt_type, thread_id, event_id };
        self.room(room_id, command).await.map(drop)
    }

    async fn fully_read(&self, user_id: &UserId, room_id: &RoomId, event_id: &EventId) -> Result<(), ApiError> {
        let command = UserCommand::SetAccountData {
            room_id: Some(room_id.to_owned()),
            event_type: "m.fully_read".to_owned(),
            content: Bytes::from(json!({ "event_id": event_id }).to_string()),
            expected: Expected::Anything,
        };
        self.user(user_id, command).await.map(drop)
    }
}

async fn receipt(api: Api, caller: Caller<Session>, request: create_receipt::v3::Request) -> Result<Reply, ApiError> {
    let user_id = &caller.session.user_id;
    api.limit(LimitClass::Other, user_id).await?;
    let thread_id = match &request.thread {
        ReceiptThread::Unthreaded => String::new(),
        ReceiptThread::Main => "main".to_owned(),
        ReceiptThread::Thread(root) => root.to_string(),
        _ => return Err(ApiError::invalid_param("not a thread")),
    };
    match request.receipt_type {
        ReceiptType::FullyRead => api.fully_read(user_id, &request.room_id, &request.event_id).await?,
        ReceiptType::Read => api.read(user_id, &request.room_id, "m.read", thread_id, request.event_id).await?,
        ReceiptType::ReadPrivate => {
            api.read(user_id, &request.room_id, "m.read.private", thread_id, request.event_id).await?;
        }
        _ => return Err(ApiError::invalid_param("unknown receipt type")),
    }
    Ok(Reply::empty())
}

/// <https://spec.matrix.org/v1.19/client-server-api/#fully-read-markers>
async fn read_markers(
    api: Api,
    caller: Caller<Session>,
    request: set_read_marker::v3::Request,
) -> Result<Reply, ApiError> {
    let (user_id, room_id) = (&caller.session.user_id, &request.room_id);
    api.limit(LimitClass::Other, user_id).await?;
    if let Some(event_id) = request.fully_read {
        api.fully_read(user_id, room_id, &event_id).await?;
    }
    if let Some(event_id) = request.read_receipt {
        api.read(user_id, room_id, "m.read", String::new(), event_id).await?;
    }
    if let Some(event_id) = request.private_read_receipt {
        api.read(user_id, room_id, "m.read.private", String::new(), event_id).await?;
    }
    Ok(Reply::empty())
}

/// <https://spec.matrix.org/v1.19/client-server-api/#typing-notifications>
async fn typing(api: Api, exchange: Exchange) -> Result<Reply, ApiError> {
    #[derive(Deserialize)]
    struct Typing {
        typing: bool,
        /// Clients may leave it out, which the typed request does not allow.
        #[serde(default = "default_timeout_ms")]
        timeout: u64,
    }
    fn default_timeout_ms() -> u64 {
        30_000
    }
    let session = exchange.session.as_ref().ok_or_else(ApiError::missing_token)?;
    let [room_id, user_id] = &exchange.args[..] else { return Err(ApiError::unrecognized()) };
    let room_id = RoomId::parse(room_id.as_str()).map_err(|_| ApiError::invalid_param("not a room id"))?;
    let user_id = UserId::parse(user_id.as_str()).map_err(|_| ApiError::invalid_param("not a user id"))?;
    check_own(session, &user_id)?;
    api.limit(LimitClass::Other, &user_id).await?;
    let Body::Whole(body) = &exchange.body else { return Err(ApiError::not_json()) };
    check_json(body)?;
    let state: Typing = serde_json::from_slice(body).map_err(|error| ApiError::bad_json(error.to_string()))?;
    let timeout_ms = if state.typing { state.timeout } else { 0 };
    api.room(&room_id, RoomCommand::Typing { user_id, timeout_ms }).await?;
    Ok(Reply::empty())
}
