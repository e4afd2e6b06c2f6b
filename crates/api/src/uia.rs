//! User-interactive authentication.
//! <https://spec.matrix.org/v1.19/client-server-api/#user-interactive-authentication-api>
//!
//! A session is bound to the endpoint and the user that began it; what is kept of it is how far it is, and nothing of what
//! was given. No password reaches the shared facts.

use std::time::Duration;

use bytes::Bytes;
use cofactor_http::{ApiError, LimitClass, RequestContext, Session};
use http::StatusCode;
use ruma::{
    UserId,
    api::client::uiaa::{AuthData, UserIdentifier},
};
use serde_json::{Map, Value, json};

use crate::Api;

/// How long a session lives.
const LIFE: Duration = Duration::from_secs(15 * 60);

const PASSWORD: &str = "m.login.password";
const DUMMY: &str = "m.login.dummy";
const TOKEN: &str = "m.login.registration_token";

impl Api {
    /// Asks the user for the password again, for what `purpose` names.
    ///
    /// # Errors
    /// 401 with what is needed, until it is given.
    pub(crate) async fn ask_password(
        &self,
        session: &Session,
        context: &RequestContext,
        purpose: &str,
        auth: Option<&AuthData>,
    ) -> Result<(), ApiError> {
        let purpose = format!("{purpose} {} {}", session.user_id, session.device_id);
        let Some(auth) = auth else { return Err(self.begin(&purpose, PASSWORD, None).await?) };
        let AuthData::Password(given) = auth else {
            self.check(&purpose, auth.session()).await?;
            return Err(self.begin(&purpose, PASSWORD, Some("this stage is not offered")).await?);
        };
        // Some clients send the password at once, without having begun; that proves as much.
        if given.session.is_some() {
            self.check(&purpose, auth.session()).await?;
        }
        if let UserIdentifier::Matrix(named) = &given.identifier
            && self.local_user(&named.user)? != session.user_id
        {
            return Err(ApiError::forbidden("the authentication is somebody else's"));
        }
        self.limit_address(LimitClass::Login, context.ip).await?;
        match self.is_password(&session.user_id, given.password.clone()).await? {
            true => self.end(auth.session()).await,
            false => Err(self.begin(&purpose, PASSWORD, Some("the password is wrong")).await?),
        }
    }

    /// Asks for what registration takes: the token, if there is one, and then nothing more, which clients say by the dummy
    /// stage.
    ///
    /// # Errors
    /// 401 with what is needed, until it is given; 403 if registration is closed.
    pub(crate) async fn ask_registration(&self, auth: Option<&AuthData>) -> Result<(), ApiError> {
        const STAGES: &str = "m.login.registration_token m.login.dummy";
        let stages = match (&self.registration.token, self.registration.open) {
            (_, true) => DUMMY,
            (Some(_), false) => STAGES,
            (None, false) => return Err(ApiError::forbidden("registration is closed on this server")),
        };
        let Some(auth) = auth else { return Err(self.begin("register", stages, None).await?) };
        let token_given = self.check("register token", auth.session()).await.is_ok();
        if !token_given {
            self.check("register", auth.session()).await?;
        }
        match auth {
            AuthData::Dummy(_) if stages == DUMMY || token_given => self.end(auth.session()).await,
            AuthData::RegistrationToken(given) if stages == STAGES => {
                if self.registration.token.as_deref().is_some_and(|known| same(known, &given.token)) {
                    Err(self.go_on("register token", stages, auth.session(), &[TOKEN]).await?)
                } else {
                    Err(self.begin("register", stages, Some("the registration token is wrong")).await?)
                }
            }
            _ => Err(self.begin("register", stages, Some("this stage comes later, or is not offered")).await?),
        }
    }

    /// Whether the password is the user's; an account that is gone has none.
    pub(crate) async fn is_password(&self, user_id: &UserId, password: String) -> Result<bool, ApiError> {
        let account = self.users.account(user_id).await?;
        let hash = account.filter(|account| !account.deactivated).and_then(|account| account.password_hash);
        self.passwords.verify(password, hash).await
    }

    /// The answer that begins a session.
    async fn begin(&self, purpose: &str, stages: &str, error: Option<&str>) -> Result<ApiError, ApiError> {
        let session = self.entropy.alphanumeric(24);
        let mut answer = self.go_on(purpose, stages, Some(&session), &[]).await?;
        if let Some(error) = error {
            answer.extra.insert("errcode".into(), "M_FORBIDDEN".into());
            answer.extra.insert("error".into(), error.into());
        }
        Ok(answer)
    }

    /// The answer that says what is still needed.
    async fn go_on(
        &self,
        purpose: &str,
        stages: &str,
        session: Option<&str>,
        completed: &[&str],
    ) -> Result<ApiError, ApiError> {
        let session = session.ok_or_else(|| ApiError::missing_param("the authentication has no session"))?;
        let kept = self.shared.put(&key(session), Bytes::copy_from_slice(purpose.as_bytes()), LIFE).await;
        kept.map_err(|error| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "M_UNKNOWN", error.to_string()))?;
        let stages: Vec<&str> = stages.split(' ').collect();
        let mut body = Map::new();
        body.insert("flows".into(), json!([{ "stages": stages }]));
        body.insert("params".into(), json!({}));
        body.insert("session".into(), Value::String(session.to_owned()));
        body.insert("completed".into(), json!(completed));
        Ok(ApiError::uiaa(body))
    }

    /// A session serves only what it was begun for.
    async fn check(&self, purpose: &str, session: Option<&str>) -> Result<(), ApiError> {
        let session = session.ok_or_else(|| ApiError::missing_param("the authentication has no session"))?;
        let known = self.shared.get(&key(session)).await.unwrap_or(None);
        if known.is_some_and(|known| known == purpose.as_bytes()) {
            Ok(())
        } else {
            Err(ApiError::forbidden("the authentication session is unknown or was begun for something else"))
        }
    }

    async fn end(&self, session: Option<&str>) -> Result<(), ApiError> {
        if let Some(session) = session {
            // A session that is lost already is as good as ended.
            let _ = self.shared.take(&key(session)).await;
        }
        Ok(())
    }
}

fn key(session: &str) -> String {
    format!("uia/{session}")
}

/// Compares in a time that does not tell how much is right.
pub(crate) fn same(a: &str, b: &str) -> bool {
    let differences = a.bytes().zip(b.bytes()).fold(0, |found, (a, b)| found | (a ^ b));
    a.len() == b.len() && differences == 0
}
