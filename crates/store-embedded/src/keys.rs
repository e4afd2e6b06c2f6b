//! Keys as bytes whose order is the order of the keys.
//!
//! `table id · partition columns · marker · clustering columns`. The marker keeps the fence of a log partition before its
//! rows, where no scan sees it.

use std::sync::Arc;

use bytes::Bytes;
use cofactor_store::{Column, ColumnKind, Key, KeyPart, StoreError, StoreResult, Table};

const FENCE: u8 = 0;
const ROW: u8 = 1;

/// The bytes of a row's key, or of the beginning of one.
pub(crate) fn row(table: &Table, partition: &Key, clustering: &Key) -> Vec<u8> {
    let mut out = base(table, partition);
    out.push(ROW);
    put(&mut out, clustering);
    out
}

/// The bytes of a fence's key.
pub(crate) fn fence(table: &Table, partition: &Key) -> Vec<u8> {
    let mut out = base(table, partition);
    out.push(FENCE);
    out
}

/// The clustering key in the bytes of a row's key, of which the first `skip` are the partition's and those of `prefix`, its
/// first columns.
pub(crate) fn clustering(columns: &[Column], prefix: &Key, bytes: &[u8], skip: usize) -> StoreResult<Key> {
    let damaged = || StoreError::Corrupt("a key does not have the form of its table".into());
    let mut rest = bytes.get(skip..).ok_or_else(damaged)?;
    let mut parts = Vec::with_capacity(columns.len());
    parts.extend_from_slice(prefix.parts());
    for column in columns.iter().skip(prefix.parts().len()) {
        let part = match column.kind {
            ColumnKind::U64 => {
                let (number, tail) = rest.split_first_chunk::<8>().ok_or_else(damaged)?;
                rest = tail;
                KeyPart::U64(u64::from_be_bytes(*number))
            }
            ColumnKind::Text => {
                let text = String::from_utf8(take_escaped(&mut rest).ok_or_else(damaged)?).map_err(|_| damaged())?;
                KeyPart::Text(Arc::from(text))
            }
            ColumnKind::Bytes => KeyPart::Bytes(Bytes::from(take_escaped(&mut rest).ok_or_else(damaged)?)),
        };
        parts.push(part);
    }
    if rest.is_empty() { Ok(parts.into()) } else { Err(damaged()) }
}

/// The first key after all that begin with `prefix`.
pub(crate) fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return Some(end);
        }
    }
    None
}

fn base(table: &Table, partition: &Key) -> Vec<u8> {
    let mut out = Vec::with_capacity(96);
    out.push(table.id);
    put(&mut out, partition);
    out
}

fn put(out: &mut Vec<u8>, key: &Key) {
    for part in key.parts() {
        match part {
            KeyPart::U64(number) => out.extend_from_slice(&number.to_be_bytes()),
            KeyPart::Text(text) => put_escaped(out, text.as_bytes()),
            KeyPart::Bytes(bytes) => put_escaped(out, bytes),
        }
    }
}

/// `00` becomes `00 ff`, and `00 00` ends the column, so that a column that begins like another sorts before it.
fn put_escaped(out: &mut Vec<u8>, bytes: &[u8]) {
    for byte in bytes {
        out.push(*byte);
        if *byte == 0 {
            out.push(u8::MAX);
        }
    }
    out.extend_from_slice(&[0, 0]);
}

fn take_escaped(rest: &mut &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    loop {
        let (byte, tail) = rest.split_first()?;
        if *byte != 0 {
            out.push(*byte);
            *rest = tail;
            continue;
        }
        let (mark, tail) = tail.split_first()?;
        *rest = tail;
        match *mark {
            0 => return Some(out),
            u8::MAX => out.push(0),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use cofactor_store::{key, tables};

    use super::*;

    #[test]
    fn bytes_sort_as_keys_do_and_come_back() {
        let texts = ["", "\0", "\0\0", "\0a", "a", "a\0", "a\0b", "aa", "b", "é", "\u{10ffff}"];
        let numbers = [0_u64, 1, 255, 256, u64::MAX];
        let mut all: Vec<Key> = Vec::new();
        for text in texts {
            for number in numbers {
                all.push(key![7_u64, text, number]);
            }
        }
        all.sort();
        let partition = key!["!room:example.org", 0_u64];
        let encoded: Vec<_> = all.iter().map(|one| row(&tables::ROOM_LOG, &partition, one)).collect();
        assert!(encoded.is_sorted());
        for (one, bytes) in all.iter().zip(&encoded) {
            for columns in 0..=one.parts().len() {
                let prefix = Key::from(one.parts()[..columns].to_vec());
                let skip = row(&tables::ROOM_LOG, &partition, &prefix).len();
                assert_eq!(&clustering(tables::ROOM_LOG.clustering, &prefix, bytes, skip).unwrap(), one);
            }
        }
    }

    #[test]
    fn a_fence_sorts_before_the_rows_of_its_partition_and_after_those_of_the_one_before() {
        let fence_bytes = fence(&tables::ROOM_LOG, &key!["!b:x", 0_u64]);
        assert!(fence_bytes < row(&tables::ROOM_LOG, &key!["!b:x", 0_u64], &Key::EMPTY));
        assert!(fence_bytes > row(&tables::ROOM_LOG, &key!["!a:x", u64::MAX], &key![u64::MAX, "z", u64::MAX]));
    }
}
