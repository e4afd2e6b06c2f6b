//! What endpoints run on.

use std::{net::IpAddr, sync::Arc};

use cofactor_bus::Shared;
use cofactor_history::History;
use cofactor_http::{ApiError, LimitClass, RequestContext, Service, Session};
use cofactor_media::Media;
use cofactor_rooms::RoomsHandle;
use cofactor_sync::Syncs;
use cofactor_types::{Clock, Entropy, Fault};
use cofactor_users::{UsersHandle, token_hash};
use cofactor_wire::{
    room::{RoomCommand, RoomReply, Rooms},
    user_command::{UserCommand, UserReply},
};
use futures::future::BoxFuture;
use ruma::{OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, RoomOrAliasId, UserId};
use serde::{Deserialize, Serialize};

use crate::{limits::RateLimits, passwords::Passwords};

/// Who may register.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistrationOptions {
    /// Anybody may. Only for servers that strangers cannot reach: open registration is what spammers look for.
    pub open: bool,
    /// Whoever knows this token may.
    pub token: Option<String>,
}

/// What an [`Api`] is made of.
#[derive(Debug)]
pub struct ApiParts {
    /// The name of this server.
    pub server_name: OwnedServerName,
    /// The address that clients are told, if it is not where they ask already.
    pub public_url: Option<String>,
    /// Who may register.
    pub registration: RegistrationOptions,
    /// Rooms.
    pub rooms: RoomsHandle,
    /// Users.
    pub users: UsersHandle,
    /// History.
    pub history: History,
    /// `/sync`.
    pub sync: Syncs,
    /// Media.
    pub media: Media,
    /// Facts shared for a short while.
    pub shared: Arc<dyn Shared>,
    /// Password hashing.
    pub passwords: Passwords,
    /// Rate limits.
    pub limits: RateLimits,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
    /// Whether the node is ready for requests.
    pub ready: fn() -> bool,
    /// The metrics page, if it is shown where clients ask.
    pub metrics: Option<fn() -> String>,
}

/// What endpoints run on. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Api {
    parts: Arc<ApiParts>,
}

impl std::ops::Deref for Api {
    type Target = ApiParts;

    fn deref(&self) -> &ApiParts {
        &self.parts
    }
}

impl Service for Api {
    fn authenticate<'a>(
        &'a self,
        token: &'a str,
        context: &'a RequestContext,
    ) -> BoxFuture<'a, Result<Session, ApiError>> {
        Box::pin(async move {
            let row = self.users.token(&token_hash(token)).await?;
            let row = row.filter(|row| !row.refresh).ok_or_else(|| ApiError::unknown_token(false))?;
            if row.expires_at_ms.is_some_and(|end_ms| end_ms <= self.clock.now_ms()) {
                return Err(ApiError::unknown_token(true));
            }
            let _ = context;
            Ok(Session { user_id: row.user_id, device_id: row.device_id })
        })
    }
}

impl Api {
    /// Endpoints on `parts`.
    pub fn new(parts: ApiParts) -> Self {
        Self { parts: Arc::new(parts) }
    }

    pub(crate) async fn limit(&self, class: LimitClass, user_id: &UserId) -> Result<(), ApiError> {
        self.limits.take(class, user_id.as_str()).await
    }

    pub(crate) async fn limit_address(&self, class: LimitClass, ip: IpAddr) -> Result<(), ApiError> {
        self.limits.take(class, &ip.to_string()).await
    }

    pub(crate) async fn user(&self, user_id: &UserId, command: UserCommand) -> Result<UserReply, ApiError> {
        Ok(self.users.ask(user_id, command).await?)
    }

    pub(crate) async fn room(&self, room_id: &RoomId, command: RoomCommand) -> Result<RoomReply, ApiError> {
        Ok(self.rooms.ask(room_id, command).await?)
    }

    pub(crate) fn is_local(&self, user_id: &UserId) -> bool {
        user_id.server_name() == self.server_name
    }

    /// The user that a client names: a localpart or a whole id of this server.
    pub(crate) fn local_user(&self, name: &str) -> Result<OwnedUserId, ApiError> {
        let user_id = if name.starts_with('@') {
            UserId::parse(name)
        } else {
            UserId::parse_with_server_name(name, &self.server_name)
        };
        let user_id = user_id
            .map_err(|_| ApiError::new(http::StatusCode::BAD_REQUEST, "M_INVALID_USERNAME", "not a user name"))?;
        if self.is_local(&user_id) { Ok(user_id) } else { Err(ApiError::forbidden("the user is of another server")) }
    }

    /// The room that an id or alias means.
    pub(crate) async fn resolve(&self, room: &RoomOrAliasId) -> Result<OwnedRoomId, ApiError> {
        match <&ruma::RoomAliasId>::try_from(room) {
            Ok(alias) => {
                let found = self.rooms.resolve_alias(alias).await?;
                found.map(|row| row.room_id).ok_or_else(|| ApiError::not_found("there is no such alias"))
            }
            Err(_) => RoomId::parse(room.as_str()).map_err(|_| ApiError::invalid_param("not a room")),
        }
    }
}

/// A reply of the wrong kind: a defect.
pub(crate) fn unexpected() -> ApiError {
    Fault::internal("a service answered something else than it was asked").into()
}
