//! The stored form of records: MessagePack with named fields, so that a record may gain fields and old ones decode for
//! ever.

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use crate::StoreError;

/// The stored form of `record`.
///
/// # Errors
/// [`StoreError::Misuse`] if the type cannot be written, which a round-trip test of the type shows.
pub fn encode<T: Serialize>(record: &T) -> Result<Bytes, StoreError> {
    rmp_serde::to_vec_named(record).map(Bytes::from).map_err(|error| StoreError::Misuse(error.to_string()))
}

/// The record in `bytes`.
///
/// # Errors
/// [`StoreError::Corrupt`] if it is not one.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StoreError> {
    rmp_serde::from_slice(bytes).map_err(|error| StoreError::Corrupt(error.to_string()))
}
