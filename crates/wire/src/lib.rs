//! What nodes say to one another, and what they find in the store: commands and replies of the entities, the records of
//! their logs, and the service traits behind which an entity may be in this process or in another.
//!
//! Everything here is MessagePack with named fields. To add a node message, add a variant; to add a fact to a record, add
//! a field with a default, and a golden file in `proto/golden` for the release that first wrote it.

pub mod node;
pub mod relation;
pub mod room;
pub mod status;
pub mod user;
pub mod user_command;

/// Stored and sent bytes of a record; see [`cofactor_types`] for what they mean.
///
/// # Errors
/// A sentence, if `record` has a form that MessagePack cannot carry.
pub fn encode<T: serde::Serialize>(record: &T) -> Result<bytes::Bytes, cofactor_types::Fault> {
    rmp_serde::to_vec_named(record)
        .map(bytes::Bytes::from)
        .map_err(|error| cofactor_types::Fault::internal(format!("a record cannot be encoded: {error}")))
}

/// The record in `bytes`.
///
/// # Errors
/// A sentence, if it is none.
pub fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, cofactor_types::Fault> {
    rmp_serde::from_slice(bytes)
        .map_err(|error| cofactor_types::Fault::internal(format!("a stored record is damaged: {error}")))
}
