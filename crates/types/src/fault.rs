//! What went wrong, in the two languages that matter: the class, which retries read, and the Matrix error code, which
//! clients read.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// How an operation failed. Retries, alerts and HTTP status codes are decided by the class alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorClass {
    /// The thing asked for does not exist.
    NotFound,
    /// The caller may not do this.
    Forbidden,
    /// The request itself is wrong.
    Invalid,
    /// The request contradicts what is stored.
    Conflict,
    /// A limit was reached; try again later.
    Limited,
    /// This node does not own the entity.
    NotOwner,
    /// A part is missing; it is promised that *nothing happened*.
    Unavailable,
    /// No answer came: the effect may or may not have happened.
    Unknown,
    /// A defect of ours.
    Internal,
}

/// An error that crosses the house: from an actor to an endpoint, in one process or between two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// The class.
    pub class: ErrorClass,
    /// The Matrix error code, such as `M_FORBIDDEN`.
    pub errcode: Cow<'static, str>,
    /// One sentence for people.
    pub message: Cow<'static, str>,
    /// For [`ErrorClass::Limited`]: when it makes sense to try again, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl Fault {
    /// A fault of any class and code.
    pub fn new(class: ErrorClass, errcode: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self { class, errcode: Cow::Borrowed(errcode), message: message.into(), retry_after_ms: None }
    }

    /// `M_NOT_FOUND`.
    pub fn not_found(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorClass::NotFound, "M_NOT_FOUND", message)
    }

    /// `M_FORBIDDEN`.
    pub fn forbidden(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorClass::Forbidden, "M_FORBIDDEN", message)
    }

    /// `M_INVALID_PARAM`.
    pub fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorClass::Invalid, "M_INVALID_PARAM", message)
    }

    /// `M_BAD_JSON`.
    pub fn bad_json(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorClass::Invalid, "M_BAD_JSON", message)
    }

    /// `M_LIMIT_EXCEEDED`.
    pub fn limited(message: impl Into<Cow<'static, str>>, retry_after_ms: u64) -> Self {
        Self { retry_after_ms: Some(retry_after_ms), ..Self::new(ErrorClass::Limited, "M_LIMIT_EXCEEDED", message) }
    }

    /// Nothing happened; the caller may try again.
    pub fn unavailable(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorClass::Unavailable, "M_UNKNOWN", message)
    }

    /// It may have happened; the caller may try again only with the same transaction id.
    pub fn unknown(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorClass::Unknown, "M_UNKNOWN", message)
    }

    /// A defect of ours.
    pub fn internal(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorClass::Internal, "M_UNKNOWN", message)
    }
}
