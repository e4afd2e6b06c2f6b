//! Errors as clients read them. <https://spec.matrix.org/v1.19/client-server-api/#standard-error-response>

use std::borrow::Cow;

use bytes::Bytes;
use cofactor_types::{ErrorClass, Fault};
use http::StatusCode;
use ruma::api::error::DeserializationError;
use serde_json::{Map, Value};

/// A refusal.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{status} {errcode}: {message}")]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// The Matrix error code.
    pub errcode: Cow<'static, str>,
    /// One sentence for people.
    pub message: Cow<'static, str>,
    /// For limits: when to try again, in milliseconds.
    pub retry_after_ms: Option<u64>,
    /// Further members of the body.
    pub extra: Map<String, Value>,
}

impl ApiError {
    /// An error of any status and code.
    pub fn new(status: StatusCode, errcode: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            errcode: Cow::Borrowed(errcode),
            message: message.into(),
            retry_after_ms: None,
            extra: Map::new(),
        }
    }

    /// 403 `M_FORBIDDEN`.
    pub fn forbidden(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "M_FORBIDDEN", message)
    }

    /// 404 `M_NOT_FOUND`.
    pub fn not_found(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "M_NOT_FOUND", message)
    }

    /// 400 `M_INVALID_PARAM`.
    pub fn invalid_param(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "M_INVALID_PARAM", message)
    }

    /// 400 `M_MISSING_PARAM`.
    pub fn missing_param(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "M_MISSING_PARAM", message)
    }

    /// 400 `M_BAD_JSON`.
    pub fn bad_json(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "M_BAD_JSON", message)
    }

    /// 400 `M_NOT_JSON`.
    pub fn not_json() -> Self {
        Self::new(StatusCode::BAD_REQUEST, "M_NOT_JSON", "the body is not JSON")
    }

    /// 404 `M_UNRECOGNIZED`: there is no such endpoint.
    pub fn unrecognized() -> Self {
        Self::new(StatusCode::NOT_FOUND, "M_UNRECOGNIZED", "this server has no such endpoint")
    }

    /// 405 `M_UNRECOGNIZED`: the endpoint does not take this method.
    pub fn wrong_method() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "M_UNRECOGNIZED", "the endpoint does not take this method")
    }

    /// 413 `M_TOO_LARGE`.
    pub fn too_large(bytes_max: u64) -> Self {
        let message = format!("the body is larger than the {bytes_max} bytes allowed here");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "M_TOO_LARGE", message)
    }

    /// 401 `M_MISSING_TOKEN`.
    pub fn missing_token() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "M_MISSING_TOKEN", "an access token is needed")
    }

    /// 401 `M_UNKNOWN_TOKEN`; with a soft logout the device is still there and a refresh or login gives a new token.
    pub fn unknown_token(soft_logout: bool) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "M_UNKNOWN_TOKEN", "the access token is not valid")
            .with("soft_logout", soft_logout)
    }

    /// 429 `M_LIMIT_EXCEEDED`.
    pub fn limit_exceeded(retry_after_ms: u64) -> Self {
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "M_LIMIT_EXCEEDED", "too many requests; try again later");
        Self { retry_after_ms: Some(retry_after_ms), ..error }
    }

    /// 401 with the stages that are still needed.
    /// <https://spec.matrix.org/v1.19/client-server-api/#user-interactive-authentication-api>
    pub fn uiaa(body: Map<String, Value>) -> Self {
        let mut error = Self::new(StatusCode::UNAUTHORIZED, "", "");
        error.extra = body;
        error
    }

    /// With one more member in the body.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.extra.insert(name.to_owned(), value.into());
        self
    }

    /// The body.
    pub(crate) fn body(&self) -> Bytes {
        let mut body = self.extra.clone();
        if !self.errcode.is_empty() {
            body.insert("errcode".into(), self.errcode.as_ref().into());
            body.insert("error".into(), self.message.as_ref().into());
        }
        if let Some(retry_after_ms) = self.retry_after_ms {
            body.insert("retry_after_ms".into(), retry_after_ms.into());
        }
        serde_json::to_vec(&body).map(Bytes::from).unwrap_or_default()
    }
}

impl From<Fault> for ApiError {
    fn from(fault: Fault) -> Self {
        let status = match fault.class {
            _ if fault.errcode == "M_TOO_LARGE" => StatusCode::PAYLOAD_TOO_LARGE,
            ErrorClass::NotFound => StatusCode::NOT_FOUND,
            ErrorClass::Forbidden => StatusCode::FORBIDDEN,
            ErrorClass::Conflict if fault.errcode == "M_ROOM_IN_USE" => StatusCode::CONFLICT,
            ErrorClass::Invalid | ErrorClass::Conflict => StatusCode::BAD_REQUEST,
            ErrorClass::Limited => StatusCode::TOO_MANY_REQUESTS,
            ErrorClass::NotOwner | ErrorClass::Unavailable | ErrorClass::Unknown => StatusCode::SERVICE_UNAVAILABLE,
            ErrorClass::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        if fault.class == ErrorClass::Internal {
            tracing::error!(error = %fault, "a request failed for a reason of ours");
        }
        let retry_after_ms = fault.retry_after_ms;
        Self { status, errcode: fault.errcode, message: fault.message, retry_after_ms, extra: Map::new() }
    }
}

/// The sentence of a deserialiser, told apart by what it says: ruma gives no more.
impl From<DeserializationError> for ApiError {
    fn from(error: DeserializationError) -> Self {
        let message = error.to_string();
        let missing = message.contains("missing field");
        match error {
            _ if missing => Self::missing_param(message),
            DeserializationError::Json(_) => Self::bad_json(message),
            _ => Self::invalid_param(message),
        }
    }
}
