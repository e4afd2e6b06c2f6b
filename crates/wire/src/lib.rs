//! What nodes say to one another, and what they find in the store: commands and replies of the entities, the records of
//! their logs, and the service traits behind which an entity may be in this process or in another.
//!
//! Everything here is MessagePack with named fields. To add a node message, add a variant; to add a fact to a record, add
//! a field with a default. Either needs golden bytes, without which `tests/golden` fails; `docs/records.md` says what else.

mod event;
pub mod node;
pub mod relation;
pub mod room;
pub mod status;
pub mod user;
pub mod user_command;

#[cfg(doc)]
use cofactor_types::ErrorClass;
use cofactor_types::Fault;

/// Stored and sent bytes of a record; see [`cofactor_types`] for what they mean.
///
/// # Errors
/// A sentence, if `record` has a form that MessagePack cannot carry.
pub fn encode<T: serde::Serialize>(record: &T) -> Result<bytes::Bytes, Fault> {
    rmp_serde::to_vec_named(record)
        .map(bytes::Bytes::from)
        .map_err(|error| Fault::internal(format!("a record cannot be encoded: {error}")))
}

/// What a call asks.
///
/// # Errors
/// [`ErrorClass::Unavailable`] if this release does not know it: nothing happened, and a node of a later release may.
pub fn asked<T: serde::de::DeserializeOwned>(frame: &[u8]) -> Result<T, Fault> {
    rmp_serde::from_slice(frame).map_err(|error| {
        Fault::unavailable(format!(
            "the node called does not know what it is asked: it is older than the caller: {error}"
        ))
    })
}

/// What a call answers.
///
/// # Errors
/// [`ErrorClass::Unknown`] if this release does not know it: what was asked was done.
pub fn answered<T: serde::de::DeserializeOwned>(frame: &[u8]) -> Result<T, Fault> {
    rmp_serde::from_slice(frame).map_err(|error| {
        Fault::unknown(format!("the node called answered in a form that this one does not know: {error}"))
    })
}

/// The record in `bytes`.
///
/// # Errors
/// A sentence, if it is none.
pub fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, Fault> {
    rmp_serde::from_slice(bytes).map_err(|error| Fault::internal(format!("a stored record is damaged: {error}")))
}
