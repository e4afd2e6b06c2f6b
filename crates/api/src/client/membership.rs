//! Joining, inviting, leaving. <https://spec.matrix.org/v1.19/client-server-api/#room-membership>

use bytes::Bytes;
use cofactor_http::{ApiError, Caller, LimitClass, Reply, Routes, Session};
use cofactor_wire::{
    room::{MembershipAction, RoomCommand},
    user_command::UserCommand,
};
use http::StatusCode;
use ruma::{
    OwnedUserId, RoomId, UserId,
    api::client::{
        knock::knock_room,
        membership::{
            ban_user, forget_room,
            invite_user::{self, v3::InvitationRecipient},
            join_room_by_id, join_room_by_id_or_alias, kick_user, leave_room, unban_user,
        },
    },
};
use serde_json::{Map, Value, json};

use crate::Api;

pub(crate) fn mount(routes: &mut Routes<Api>) {
    routes.mount::<join_room_by_id::v3::Request, _, _>(join);
    routes.mount::<join_room_by_id_or_alias::v3::Request, _, _>(join_alias);
    routes.mount::<knock_room::v3::Request, _, _>(knock);
    routes.mount::<leave_room::v3::Request, _, _>(leave);
    routes.mount::<forget_room::v3::Request, _, _>(forget);
    routes.mount::<invite_user::v3::Request, _, _>(invite);
    routes.mount::<kick_user::v3::Request, _, _>(kick);
    routes.mount::<ban_user::v3::Request, _, _>(ban);
    routes.mount::<unban_user::v3::Request, _, _>(unban);
}

/// The longest reason, in bytes.
const REASON_BYTES_MAX: usize = 512;

impl Api {
    async fn change(
        &self,
        room_id: &RoomId,
        sender: &UserId,
        target: OwnedUserId,
        action: MembershipAction,
        reason: Option<String>,
        content: &Map<String, Value>,
    ) -> Result<(), ApiError> {
        if reason.as_ref().is_some_and(|reason| reason.len() > REASON_BYTES_MAX) {
            return Err(ApiError::invalid_param(format!("a reason has at most {REASON_BYTES_MAX} bytes")));
        }
        let content = serde_json::to_vec(content).map_or_else(|_| Bytes::from_static(b"{}"), Bytes::from);
        let sender = sender.to_owned();
        self.room(room_id, RoomCommand::Membership { sender, target, action, reason, content }).await.map(drop)
    }

    /// What an invitation shows of a user; one of this server must exist.
    pub(crate) async fn invited_profile(&self, user_id: &UserId) -> Result<Map<String, Value>, ApiError> {
        if !self.is_local(user_id) {
            return Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                "M_UNKNOWN",
                "this server does not federate yet: only its own users can be invited",
            ));
        }
        match self.users.account(user_id).await? {
            Some(_) => Ok(self.users.member_profile(user_id).await?),
            None => Err(ApiError::not_found("there is no such user")),
        }
    }

    async fn join(&self, session: &Session, room_id: &RoomId, reason: Option<String>) -> Result<Reply, ApiError> {
        let user_id = &session.user_id;
        self.limit(LimitClass::Join, user_id).await?;
        let profile = self.users.member_profile(user_id).await?;
        self.change(room_id, user_id, user_id.clone(), MembershipAction::Join, reason, &profile).await?;
        Reply::value(&json!({ "room_id": room_id }))
    }

    /// Leaves every room, for an account that is going away.
    pub(crate) async fn leave_all(&self, user_id: &UserId) -> Result<(), ApiError> {
        for room_id in self.users.joined_rooms(user_id).await? {
            self.change(&room_id, user_id, user_id.to_owned(), MembershipAction::Leave, None, &Map::new()).await?;
        }
        Ok(())
    }
}

async fn join(api: Api, caller: Caller<Session>, request: join_room_by_id::v3::Request) -> Result<Reply, ApiError> {
    api.join(&caller.session, &request.room_id, request.reason).await
}

async fn join_alias(
    api: Api,
    caller: Caller<Session>,
    request: join_room_by_id_or_alias::v3::Request,
) -> Result<Reply, ApiError> {
    let room_id = api.resolve(&request.room_id_or_alias).await?;
    api.join(&caller.session, &room_id, request.reason).await
}

async fn knock(api: Api, caller: Caller<Session>, request: knock_room::v3::Request) -> Result<Reply, ApiError> {
    let user_id = &caller.session.user_id;
    api.limit(LimitClass::Join, user_id).await?;
    let room_id = api.resolve(&request.room_id_or_alias).await?;
    let profile = api.users.member_profile(user_id).await?;
    api.change(&room_id, user_id, user_id.clone(), MembershipAction::Knock, request.reason, &profile).await?;
    Reply::value(&json!({ "room_id": room_id }))
}

async fn leave(api: Api, caller: Caller<Session>, request: leave_room::v3::Request) -> Result<Reply, ApiError> {
    let user_id = &caller.session.user_id;
    let none = Map::new();
    api.change(&request.room_id, user_id, user_id.clone(), MembershipAction::Leave, request.reason, &none).await?;
    Ok(Reply::empty())
}

async fn forget(api: Api, caller: Caller<Session>, request: forget_room::v3::Request) -> Result<Reply, ApiError> {
    let room_id = request.room_id;
    api.user(&caller.session.user_id, UserCommand::Forget { room_id }).await?;
    Ok(Reply::empty())
}

async fn invite(api: Api, caller: Caller<Session>, request: invite_user::v3::Request) -> Result<Reply, ApiError> {
    let sender = &caller.session.user_id;
    api.limit(LimitClass::Invite, sender).await?;
    let InvitationRecipient::UserId(invited) = request.recipient else {
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "M_THREEPID_DENIED", "there is no identity server here"));
    };
    let profile = api.invited_profile(&invited.user_id).await?;
    let action = MembershipAction::Invite;
    api.change(&request.room_id, sender, invited.user_id, action, invited.reason, &profile).await?;
    Ok(Reply::empty())
}

async fn kick(api: Api, caller: Caller<Session>, request: kick_user::v3::Request) -> Result<Reply, ApiError> {
    let (sender, none) = (&caller.session.user_id, Map::new());
    api.change(&request.room_id, sender, request.user_id, MembershipAction::Kick, request.reason, &none).await?;
    Ok(Reply::empty())
}

async fn ban(api: Api, caller: Caller<Session>, request: ban_user::v3::Request) -> Result<Reply, ApiError> {
    let (sender, none) = (&caller.session.user_id, Map::new());
    api.change(&request.room_id, sender, request.user_id, MembershipAction::Ban, request.reason, &none).await?;
    Ok(Reply::empty())
}

async fn unban(api: Api, caller: Caller<Session>, request: unban_user::v3::Request) -> Result<Reply, ApiError> {
    let (sender, none) = (&caller.session.user_id, Map::new());
    api.change(&request.room_id, sender, request.user_id, MembershipAction::Unban, request.reason, &none).await?;
    Ok(Reply::empty())
}
