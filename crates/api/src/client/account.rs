//! Accounts. <https://spec.matrix.org/v1.19/client-server-api/#account-registration-and-management>

use cofactor_http::{ApiError, Caller, LimitClass, Reply, Routes, Session};
use cofactor_wire::user_command::UserCommand;
use http::StatusCode;
use ruma::{
    OwnedUserId, UserId,
    api::client::account::{
        change_password, check_registration_token_validity, deactivate, get_username_availability,
        register::{self, RegistrationKind},
        whoami,
    },
};
use serde_json::json;

use crate::Api;

/// The longest user id, in bytes. <https://spec.matrix.org/v1.19/appendices/#user-identifiers>
const USER_ID_BYTES_MAX: usize = 255;

pub(crate) fn mount(routes: &mut Routes<Api>) {
    routes.mount::<register::v3::Request, _, _>(register);
    routes.mount::<get_username_availability::v3::Request, _, _>(available);
    routes.mount::<check_registration_token_validity::v1::Request, _, _>(token_validity);
    routes.mount::<whoami::v3::Request, _, _>(whoami);
    routes.mount::<change_password::v3::Request, _, _>(change_password);
    routes.mount::<deactivate::v3::Request, _, _>(deactivate);
}

/// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3register>
async fn register(api: Api, caller: Caller<()>, request: register::v3::Request) -> Result<Reply, ApiError> {
    if request.kind == RegistrationKind::Guest {
        return Err(ApiError::new(StatusCode::FORBIDDEN, "M_GUEST_ACCESS_FORBIDDEN", "this server has no guests"));
    }
    if let Some(username) = &request.username {
        free_user_id(&api, username).await?;
    }
    api.ask_registration(request.auth.as_ref()).await?;
    api.limit_address(LimitClass::Registration, caller.context.ip).await?;
    let password = request.password.ok_or_else(|| ApiError::missing_param("a password is needed"))?;
    let username = request.username.unwrap_or_else(|| api.entropy.alphanumeric(12).to_lowercase());
    let user_id = free_user_id(&api, &username).await?;
    let password_hash = Some(api.passwords.hash(password).await?);
    api.user(&user_id, UserCommand::Create { password_hash, admin: false }).await?;
    if request.inhibit_login {
        return Reply::value(&json!({ "user_id": user_id }));
    }
    let name = request.initial_device_display_name;
    api.log_in(&user_id, request.device_id, name, request.refresh_token).await
}

/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3registeravailable>
async fn available(
    api: Api,
    caller: Caller<()>,
    request: get_username_availability::v3::Request,
) -> Result<Reply, ApiError> {
    api.limit_address(LimitClass::Other, caller.context.ip).await?;
    free_user_id(&api, &request.username).await?;
    Reply::value(&json!({ "available": true }))
}

/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1registermloginregistration_tokenvalidity>
async fn token_validity(
    api: Api,
    caller: Caller<()>,
    request: check_registration_token_validity::v1::Request,
) -> Result<Reply, ApiError> {
    api.limit_address(LimitClass::Registration, caller.context.ip).await?;
    let valid = api.registration.token.as_deref().is_some_and(|known| crate::uia::same(known, &request.token));
    Reply::value(&json!({ "valid": valid }))
}

/// A user id that nobody has, with a localpart of the strict grammar.
async fn free_user_id(api: &Api, username: &str) -> Result<OwnedUserId, ApiError> {
    let invalid = |message: &'static str| ApiError::new(StatusCode::BAD_REQUEST, "M_INVALID_USERNAME", message);
    let localpart = match username.strip_prefix('@') {
        Some(whole) => whole.strip_suffix(&format!(":{}", api.server_name)).unwrap_or_default(),
        None => username,
    };
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._=-/+".contains(&byte);
    if localpart.is_empty() || localpart.starts_with('_') || !localpart.bytes().all(allowed) {
        return Err(invalid("a user name has lower-case letters, digits and ._=-/+ only"));
    }
    let user_id =
        UserId::parse_with_server_name(localpart, &api.server_name).map_err(|_| invalid("not a user name"))?;
    if user_id.as_str().len() > USER_ID_BYTES_MAX {
        return Err(invalid("the user name is too long"));
    }
    match api.users.account(&user_id).await? {
        Some(_) => Err(ApiError::new(StatusCode::BAD_REQUEST, "M_USER_IN_USE", "the user name is taken")),
        None => Ok(user_id),
    }
}

/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3accountwhoami>
async fn whoami(_api: Api, caller: Caller<Session>, _request: whoami::v3::Request) -> Result<Reply, ApiError> {
    let Session { user_id, device_id } = caller.session;
    Reply::value(&json!({ "user_id": user_id, "device_id": device_id, "is_guest": false }))
}

/// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3accountpassword>
async fn change_password(
    api: Api,
    caller: Caller<Option<Session>>,
    request: change_password::v3::Request,
) -> Result<Reply, ApiError> {
    // Without a token it would be a password reset by e-mail, which this server does not have.
    let session = caller.session.ok_or_else(ApiError::missing_token)?;
    api.ask_password(&session, &caller.context, "password", request.auth.as_ref()).await?;
    let password_hash = api.passwords.hash(request.new_password).await?;
    let keep_only = request.logout_devices.then(|| session.device_id.clone());
    api.user(&session.user_id, UserCommand::SetPassword { password_hash, keep_only }).await?;
    Ok(Reply::empty())
}

/// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3accountdeactivate>
async fn deactivate(
    api: Api,
    caller: Caller<Option<Session>>,
    request: deactivate::v3::Request,
) -> Result<Reply, ApiError> {
    let session = caller.session.ok_or_else(ApiError::missing_token)?;
    api.ask_password(&session, &caller.context, "deactivate", request.auth.as_ref()).await?;
    let user_id = &session.user_id;
    api.leave_all(user_id).await?;
    api.user(user_id, UserCommand::Deactivate).await?;
    Reply::value(&json!({ "id_server_unbind_result": "no-support" }))
}
