//! The stored form of records: MessagePack with named fields, so that a record may gain fields and old ones decode for
//! ever.

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use crate::StoreError;

/// A row as it was read, with its bytes: a later release may have written more than this one reads, so only these bytes can
/// stand in a compare-and-set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen<T> {
    /// What this release reads in it.
    pub row: T,
    bytes: Bytes,
}

impl<T: DeserializeOwned> Seen<T> {
    /// The record in `bytes`.
    ///
    /// # Errors
    /// As [`decode`].
    pub fn read(bytes: Bytes) -> Result<Self, StoreError> {
        Ok(Self { row: decode(&bytes)?, bytes })
    }

    /// As they stand in the store.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

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

#[cfg(test)]
mod tests {
    use cofactor_golden::Golden;
    use cofactor_types::{Epoch, Position};

    use super::*;
    use crate::Fence;

    #[test]
    fn fences_are_read_for_ever() {
        let fence = Fence { epoch: Epoch(7), last: Position(1_780_000_000_000_000), batch: 1 << 100, sealed: true };
        assert_eq!(
            encode(&fence).unwrap(),
            rmp_serde::to_vec_named(&fence).unwrap(),
            "the form that golden bytes have"
        );
        Golden::new("store/fence").record(&[fence]);
    }
}
