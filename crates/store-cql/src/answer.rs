//! Reading answers.

use std::fmt;

use bytes::Bytes;
use cofactor_store::{Fence, Row, StoreError, StoreResult, Table};
use cofactor_types::{Epoch, Position};
use scylla::{
    response::query_result::QueryResult,
    value::{CqlValue, Row as CqlRow},
};

use crate::value::{self, Value};

/// The fence of a partition in an answer.
pub(crate) enum Told {
    /// The answer says what stands.
    Fence(Option<Fence>),
    /// It does not say.
    Nothing,
}

/// The answer to a conditional statement or batch. Cassandra tells only whether it was applied, and what stands if not;
/// ScyllaDB tells always, with one row for each statement.
pub(crate) struct Answer {
    names: Vec<String>,
    rows: Vec<Vec<Option<CqlValue>>>,
}

impl Answer {
    pub(crate) fn read(result: QueryResult) -> StoreResult<Self> {
        // An answer that cannot be read says nothing about what happened.
        let unreadable = |error: &dyn fmt::Display| StoreError::Unknown(format!("an unexpected answer: {error}"));
        let result = result.into_rows_result().map_err(|error| unreadable(&error))?;
        let names = result.column_specs().iter().map(|column| column.name().to_owned()).collect();
        let rows = result.rows::<CqlRow>().map_err(|error| unreadable(&error))?;
        let rows = rows.map(|row| row.map(|row| row.columns).map_err(|error| unreadable(&error)));
        Ok(Self { names, rows: rows.collect::<StoreResult<_>>()? })
    }

    /// The first value of a column that is not null; the outer option says whether there is such a column.
    pub(crate) fn value(&self, name: &str) -> Option<Option<&CqlValue>> {
        let index = self.names.iter().position(|column| column == name)?;
        Some(self.rows.iter().find_map(|row| row.get(index).and_then(Option::as_ref)))
    }

    pub(crate) fn applied(&self) -> StoreResult<bool> {
        let applied = self.value("[applied]").flatten().and_then(CqlValue::as_boolean);
        applied.ok_or_else(|| StoreError::Unknown("the answer does not say whether it was applied".into()))
    }

    pub(crate) fn fence(&self) -> StoreResult<Told> {
        let Some(epoch) = self.value("fence_epoch") else { return Ok(Told::Nothing) };
        let Some(epoch) = epoch else { return Ok(Told::Fence(None)) };
        let (Some(last), Some(batch), Some(sealed)) = (
            self.value("fence_last").flatten(),
            self.value("fence_batch").flatten(),
            self.value("fence_sealed").flatten(),
        ) else {
            return Ok(Told::Nothing);
        };
        fence_of(epoch, last, batch, sealed).map(|fence| Told::Fence(Some(fence)))
    }
}

fn fence_of(epoch: &CqlValue, last: &CqlValue, batch: &CqlValue, sealed: &CqlValue) -> StoreResult<Fence> {
    let number = |value: &CqlValue| value.as_bigint().and_then(|number| u64::try_from(number).ok());
    let bytes = |value: &CqlValue| value.as_blob().and_then(|bytes| <[u8; 16]>::try_from(bytes.as_slice()).ok());
    match (number(epoch), number(last), bytes(batch), sealed.as_boolean()) {
        (Some(epoch), Some(last), Some(batch), Some(sealed)) => {
            Ok(Fence { epoch: Epoch(epoch), last: Position(last), batch: u128::from_be_bytes(batch), sealed })
        }
        _ => Err(StoreError::Corrupt(format!("a fence of {epoch:?}, {last:?}, {batch:?}, {sealed:?}"))),
    }
}

/// The columns of a fence but the last.
pub(crate) fn fence_values(fence: &Fence) -> StoreResult<Vec<Value>> {
    Ok(vec![
        Value::number(fence.epoch.0)?,
        Value::number(fence.last.0)?,
        Value::Blob(Bytes::copy_from_slice(&fence.batch.to_be_bytes())),
    ])
}

/// The bytes of a value.
pub(crate) fn blob(value: &CqlValue) -> Option<Bytes> {
    value.as_blob().map(|bytes| Bytes::copy_from_slice(bytes))
}

/// The rows of a page of a scan.
pub(crate) fn rows_of(table: &'static Table, page: QueryResult) -> StoreResult<Vec<Row>> {
    let unreadable = |error: &dyn fmt::Display| StoreError::Corrupt(format!("{}: {error}", table.name));
    let page = page.into_rows_result().map_err(|error| unreadable(&error))?;
    let mut rows = Vec::with_capacity(page.rows_num());
    for row in page.rows::<CqlRow>().map_err(|error| unreadable(&error))? {
        let mut columns = row.map_err(|error| unreadable(&error))?.columns;
        let value = columns.pop().flatten();
        // A partition with nothing but a fence answers one row of nulls.
        let (Some(CqlValue::Blob(value)), Some(clustering)) =
            (value, value::key(table.clustering, columns.into_iter())?)
        else {
            continue;
        };
        rows.push(Row { clustering, value: value.into() });
    }
    Ok(rows)
}
