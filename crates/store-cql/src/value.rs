//! Key columns and values as CQL has them.

use std::sync::Arc;

use bytes::Bytes;
use cofactor_store::{Column, ColumnKind, Key, KeyPart, StoreError, StoreResult};
use scylla::{
    cluster::metadata::ColumnType,
    serialize::{
        SerializationError,
        value::SerializeValue,
        writers::{CellWriter, WrittenCellProof},
    },
    value::CqlValue,
};

/// A bound value. It shares what it holds with the caller; nothing is copied before the frame is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Text(Arc<str>),
    Bigint(i64),
    Int(i32),
    Blob(Bytes),
    Bool(bool),
}

impl Value {
    /// About what it adds to a request, in bytes.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Bigint(_) => 8,
            Self::Int(_) => 4,
            Self::Blob(bytes) => bytes.len(),
            Self::Bool(_) => 1,
        }
    }

    /// A number of the port. CQL's `bigint` is signed, so that an operator reads the same number in `cqlsh`; numbers
    /// above its range do not occur (positions are microseconds since 1970, and end there in the year 294247).
    pub(crate) fn number(number: u64) -> StoreResult<Self> {
        let too_large = |_| StoreError::Misuse(format!("{number} does not fit into a bigint"));
        i64::try_from(number).map(Self::Bigint).map_err(too_large)
    }
}

impl SerializeValue for Value {
    fn serialize<'b>(
        &self,
        typ: &ColumnType,
        writer: CellWriter<'b>,
    ) -> Result<WrittenCellProof<'b>, SerializationError> {
        match self {
            Self::Text(text) => (**text).serialize(typ, writer),
            Self::Bigint(number) => number.serialize(typ, writer),
            Self::Int(number) => number.serialize(typ, writer),
            Self::Blob(bytes) => bytes.serialize(typ, writer),
            Self::Bool(flag) => flag.serialize(typ, writer),
        }
    }
}

/// One column of a key.
pub(crate) fn column(part: &KeyPart) -> StoreResult<Value> {
    Ok(match part {
        KeyPart::Text(text) => Value::Text(Arc::clone(text)),
        KeyPart::U64(number) => Value::number(*number)?,
        KeyPart::Bytes(bytes) => Value::Blob(bytes.clone()),
    })
}

/// The columns of a key.
pub(crate) fn columns(key: &Key) -> StoreResult<Vec<Value>> {
    key.parts().iter().map(column).collect()
}

/// The longest column of a partition or clustering key, in bytes: both servers keep the length in 16 bits.
const KEY_COLUMN_BYTES_MAX: usize = 65_535;

/// Refuses keys that the servers cannot take.
///
/// # Errors
/// [`StoreError::TooLarge`], and nothing was asked.
pub(crate) fn check_length(values: &[Value]) -> StoreResult<()> {
    if values.iter().map(Value::size).sum::<usize>() > KEY_COLUMN_BYTES_MAX {
        return Err(StoreError::TooLarge(format!("a key of more than {KEY_COLUMN_BYTES_MAX} bytes")));
    }
    Ok(())
}

/// A key read back, or `None` where its columns are null, as in the row that stands for a partition of static columns
/// alone.
///
/// # Errors
/// [`StoreError::Corrupt`] if a column has another type than declared.
pub(crate) fn key(declared: &[Column], found: impl Iterator<Item = Option<CqlValue>>) -> StoreResult<Option<Key>> {
    let mut key = Key::EMPTY;
    for (column, value) in declared.iter().zip(found) {
        let Some(value) = value else { return Ok(None) };
        let part = match (column.kind, value) {
            (ColumnKind::Text, CqlValue::Text(text)) => KeyPart::from(text),
            (ColumnKind::U64, CqlValue::BigInt(number)) => {
                let below_zero = |_| StoreError::Corrupt(format!("{}: {number} is below zero", column.name));
                KeyPart::U64(u64::try_from(number).map_err(below_zero)?)
            }
            (ColumnKind::Bytes, CqlValue::Blob(bytes)) => KeyPart::Bytes(bytes.into()),
            (_, other) => return Err(StoreError::Corrupt(format!("{}: unexpected {other:?}", column.name))),
        };
        key = key.with(part);
    }
    Ok(Some(key))
}
