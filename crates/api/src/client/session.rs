//! Logging in and out. <https://spec.matrix.org/v1.19/client-server-api/#login>

use cofactor_http::{ApiError, Caller, LimitClass, Reply, Routes, Session};
use cofactor_users::token_hash;
use cofactor_wire::user_command::{NewTokens, UserCommand};
use http::StatusCode;
use ruma::{
    OwnedDeviceId, UserId,
    api::client::{
        session::{
            get_login_types,
            login::{self, v3::LoginInfo},
            logout, logout_all, refresh_token,
        },
        uiaa::UserIdentifier,
    },
};
use serde_json::json;

use crate::Api;

/// How long an access token with a refresh token lives, in milliseconds.
const ACCESS_LIFE_MS: u64 = 60 * 60 * 1_000;

/// Characters of a token: 32 of 62 letters are 190 bits.
const TOKEN_CHARS: usize = 32;

/// The longest device id, in bytes.
const DEVICE_ID_BYTES_MAX: usize = 255;

pub(crate) fn mount(routes: &mut Routes<Api>) {
    routes.mount::<get_login_types::v3::Request, _, _>(login_types);
    routes.mount::<login::v3::Request, _, _>(login);
    routes.mount::<refresh_token::v3::Request, _, _>(refresh);
    routes.mount::<logout::v3::Request, _, _>(logout);
    routes.mount::<logout_all::v3::Request, _, _>(logout_all);
}

/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3login>
async fn login_types(
    _api: Api,
    _caller: Caller<()>,
    _request: get_login_types::v3::Request,
) -> Result<Reply, ApiError> {
    Reply::value(&json!({ "flows": [{ "type": "m.login.password" }] }))
}

/// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3login>
async fn login(api: Api, caller: Caller<()>, request: login::v3::Request) -> Result<Reply, ApiError> {
    api.limit_address(LimitClass::Login, caller.context.ip).await?;
    let LoginInfo::Password(password) = request.login_info else {
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "M_UNKNOWN", "only logins by password are taken"));
    };
    #[expect(deprecated, reason = "old clients still name the user so")]
    let name = match (password.identifier, password.user) {
        (Some(UserIdentifier::Matrix(identifier)), _) => identifier.user,
        (Some(_), _) => return Err(ApiError::forbidden("logins by e-mail or phone are not taken")),
        (None, Some(user)) => user,
        (None, None) => return Err(ApiError::missing_param("an identifier is needed")),
    };
    let wrong = || ApiError::forbidden("the user name or password is wrong");
    let user_id = api.local_user(&name)?;
    api.limit(LimitClass::Login, &user_id).await?;
    let account = api.users.account(&user_id).await?;
    let deactivated = account.as_ref().is_some_and(|account| account.deactivated);
    if !api.is_password(&user_id, password.password).await? {
        return Err(match deactivated {
            true => ApiError::new(StatusCode::FORBIDDEN, "M_USER_DEACTIVATED", "the account is deactivated"),
            false => wrong(),
        });
    }
    api.log_in(&user_id, request.device_id, request.initial_device_display_name, request.refresh_token).await
}

/// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3refresh>
async fn refresh(api: Api, caller: Caller<()>, request: refresh_token::v3::Request) -> Result<Reply, ApiError> {
    api.limit_address(LimitClass::Other, caller.context.ip).await?;
    let refresh_hash = token_hash(&request.refresh_token);
    let row = api.users.token(&refresh_hash).await?.filter(|row| row.refresh);
    let row = row.ok_or_else(|| ApiError::unknown_token(false))?;
    let given = Given::new(&api, true);
    let command = UserCommand::Refresh { device_id: row.device_id, refresh_hash, tokens: given.hashes(&api) };
    api.user(&row.user_id, command).await?;
    Reply::value(&json!({
        "access_token": given.access,
        "refresh_token": given.refresh,
        "expires_in_ms": ACCESS_LIFE_MS,
    }))
}

/// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3logout>
async fn logout(api: Api, caller: Caller<Session>, _request: logout::v3::Request) -> Result<Reply, ApiError> {
    let device_ids = Some(vec![caller.session.device_id]);
    api.user(&caller.session.user_id, UserCommand::DeleteDevices { device_ids }).await?;
    Ok(Reply::empty())
}

/// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3logoutall>
async fn logout_all(api: Api, caller: Caller<Session>, _request: logout_all::v3::Request) -> Result<Reply, ApiError> {
    api.user(&caller.session.user_id, UserCommand::DeleteDevices { device_ids: None }).await?;
    Ok(Reply::empty())
}

/// Tokens as they are given to the client.
struct Given {
    access: String,
    refresh: Option<String>,
}

impl Given {
    fn new(api: &Api, with_refresh: bool) -> Self {
        let token = |prefix: &str| format!("{prefix}_{}", api.entropy.alphanumeric(TOKEN_CHARS));
        Self { access: token("cfa"), refresh: with_refresh.then(|| token("cfr")) }
    }

    fn hashes(&self, api: &Api) -> NewTokens {
        NewTokens {
            access_hash: token_hash(&self.access),
            expires_at_ms: self.refresh.is_some().then(|| api.clock.now_ms() + ACCESS_LIFE_MS),
            refresh_hash: self.refresh.as_deref().map(token_hash),
        }
    }
}

impl Api {
    /// Logs a device in and answers with its tokens.
    pub(crate) async fn log_in(
        &self,
        user_id: &UserId,
        device_id: Option<OwnedDeviceId>,
        display_name: Option<String>,
        with_refresh: bool,
    ) -> Result<Reply, ApiError> {
        let device_id = device_id.filter(|device_id| !device_id.as_str().is_empty());
        let device_id = device_id.unwrap_or_else(|| self.entropy.upper_case(10).into());
        if device_id.as_str().len() > DEVICE_ID_BYTES_MAX || device_id.as_str().contains('\0') {
            return Err(ApiError::invalid_param("the device id is too long or has a NUL"));
        }
        let given = Given::new(self, with_refresh);
        let tokens = given.hashes(self);
        let command = UserCommand::Login { device_id: device_id.clone(), display_name, tokens };
        self.user(user_id, command).await?;
        let mut body = json!({
            "user_id": user_id,
            "device_id": device_id,
            "access_token": given.access,
            "home_server": self.server_name,
        });
        if let Some(refresh) = given.refresh {
            body["refresh_token"] = refresh.into();
            body["expires_in_ms"] = ACCESS_LIFE_MS.into();
        }
        if let Some(url) = &self.public_url {
            body["well_known"] = json!({ "m.homeserver": { "base_url": url } });
        }
        Reply::value(&body)
    }
}
