//! How the plain writes of a call become batches.

use std::collections::HashMap;

use bytes::Bytes;
use cofactor_store::{Key, Mutation, StoreError, StoreResult, Table};

use crate::value::{self, Value};

/// Statements of one batch. Far below what the protocol takes; more only lengthens one replica's work.
pub(crate) const BATCH_ROWS_MAX: usize = 2_000;

/// What a row adds to a batch beside its own bytes, roughly: ids, lengths, timestamps.
const ROW_OVERHEAD_BYTES: usize = 64;

/// Rows of one partition that are sent together.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) table: &'static Table,
    pub(crate) partition: Vec<Value>,
    /// The columns of each row's clustering key, and its value, `None` to delete.
    pub(crate) rows: Vec<(Vec<Value>, Option<Bytes>)>,
}

/// A row of a partition: its clustering key and its value, `None` to delete.
type KeyedRow = (Key, Option<Bytes>);

/// Rows of a partition without those that a later one of the same key replaces: all writes of a batch have one timestamp,
/// under which CQL would not keep their order.
pub(crate) fn last_of_each(rows: impl IntoIterator<Item = KeyedRow>) -> Vec<KeyedRow> {
    let mut places: HashMap<Key, usize> = HashMap::new();
    let mut kept: Vec<KeyedRow> = Vec::new();
    for (key, value) in rows {
        match places.get(&key) {
            Some(place) => kept[*place].1 = value,
            None => {
                places.insert(key.clone(), kept.len());
                kept.push((key, value));
            }
        }
    }
    kept
}

/// What a row weighs in a batch.
pub(crate) fn weight(partition: &[Value], clustering: &[Value], value: Option<&Bytes>) -> usize {
    let keys: usize = partition.iter().chain(clustering).map(Value::size).sum();
    keys + value.map_or(0, Bytes::len) + ROW_OVERHEAD_BYTES
}

/// The writes by partition, each group no larger than a batch may be.
///
/// # Errors
/// [`StoreError::TooLarge`] if one row alone is larger, [`StoreError::Misuse`] if a key cannot be stored.
pub(crate) fn group(mutations: Vec<Mutation>, batch_bytes_max: usize) -> StoreResult<Vec<Group>> {
    let mut places: HashMap<(u8, Key), usize> = HashMap::new();
    let mut partitions: Vec<(&'static Table, Key, Vec<KeyedRow>)> = Vec::new();
    for Mutation { table, partition, clustering, value } in mutations {
        let place = *places.entry((table.id, partition.clone())).or_insert_with(|| {
            partitions.push((table, partition, Vec::new()));
            partitions.len() - 1
        });
        partitions[place].2.push((clustering, value));
    }
    let mut groups = Vec::new();
    for (table, partition, rows) in partitions {
        split(table, value::columns(&partition)?, last_of_each(rows), batch_bytes_max, &mut groups)?;
    }
    Ok(groups)
}

fn split(
    table: &'static Table,
    partition: Vec<Value>,
    rows: Vec<KeyedRow>,
    batch_bytes_max: usize,
    groups: &mut Vec<Group>,
) -> StoreResult<()> {
    value::check_length(&partition)?;
    let mut group = Group { table, partition: partition.clone(), rows: Vec::new() };
    let mut bytes = 0;
    for (clustering, value) in rows {
        let clustering = value::columns(&clustering)?;
        value::check_length(&clustering)?;
        let weight = weight(&partition, &clustering, value.as_ref());
        if weight > batch_bytes_max {
            return Err(StoreError::TooLarge(format!("a row of {weight} bytes in {}", table.name)));
        }
        if !group.rows.is_empty() && (bytes + weight > batch_bytes_max || group.rows.len() >= BATCH_ROWS_MAX) {
            let full = Group { table, partition: partition.clone(), rows: std::mem::take(&mut group.rows) };
            groups.push(full);
            bytes = 0;
        }
        bytes += weight;
        group.rows.push((clustering, value));
    }
    groups.push(group);
    Ok(())
}

#[cfg(test)]
mod tests {
    use cofactor_store::{key, tables};

    use super::*;

    fn put(room: &str, state_key: &str, value: &'static [u8]) -> Mutation {
        let clustering = key!["m.room.member", state_key];
        let value = Some(Bytes::from_static(value));
        Mutation { table: &tables::ROOM_STATE, partition: key![room], clustering, value }
    }

    #[test]
    fn rows_of_a_partition_go_together_and_the_last_of_a_key_stands() {
        let delete = Mutation { value: None, ..put("!a", "@x", b"") };
        let groups = group(vec![put("!a", "@x", b"1"), put("!b", "@x", b"2"), put("!a", "@y", b"3"), delete], 10_000);
        let groups = groups.expect("groups");
        let rows: Vec<Vec<Option<Bytes>>> =
            groups.iter().map(|group| group.rows.iter().map(|row| row.1.clone()).collect()).collect();
        let bytes = |text: &'static [u8]| Some(Bytes::from_static(text));
        assert_eq!(rows, [vec![None, bytes(b"3")], vec![bytes(b"2")]]);
    }

    #[test]
    fn a_partition_larger_than_a_batch_is_split_and_a_row_larger_than_one_is_refused() {
        let many = (0..100).map(|number| put("!a", &format!("@{number}"), &[7; 100])).collect();
        let groups = group(many, 1_000).expect("groups");
        assert!(groups.len() > 10 && groups.iter().all(|group| group.rows.len() < 6));
        assert_eq!(groups.iter().map(|group| group.rows.len()).sum::<usize>(), 100);
        assert!(matches!(group(vec![put("!a", "@x", &[7; 1_000])], 1_000), Err(StoreError::TooLarge(_))));
    }
}
