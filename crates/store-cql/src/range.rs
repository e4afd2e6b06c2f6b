//! The bounds of a scan as tuples of clustering columns.
//!
//! The port orders keys column by column, a shorter key before every longer one that starts with it. CQL compares tuples
//! of the first columns only, so a shorter bound turns into the comparison that says the same of whole keys.

use cofactor_store::{Key, KeyPart, Scan, StoreResult};

use crate::value::{self, Value};

/// One side of a range: the first columns, and whether keys that start with them are inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Edge {
    pub(crate) columns: Vec<Value>,
    pub(crate) inclusive: bool,
}

/// A range of clustering keys; a side that is not there does not bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) lower: Option<Edge>,
    pub(crate) upper: Option<Edge>,
}

/// The range of `scan`, or `None` where no key can be in it.
///
/// # Errors
/// [`cofactor_store::StoreError::Misuse`] if the prefix has a number that cannot be stored.
pub(crate) fn of(scan: &Scan) -> StoreResult<Option<Range>> {
    let columns = scan.table.clustering.len();
    let prefix = if scan.prefix.parts().is_empty() {
        None
    } else {
        Some(Edge { columns: value::columns(&scan.prefix)?, inclusive: true })
    };
    if columns == 0 && scan.after.is_some() {
        // The one key there can be is the shortest; nothing is above it.
        return Ok(None);
    }
    let lower = match &scan.after {
        Some(after) if after.starts_with(&scan.prefix) => after_edge(after, columns)?,
        // Above every key that starts with the prefix.
        Some(after) if *after > scan.prefix => return Ok(None),
        _ => prefix.clone(),
    };
    let upper = match &scan.up_to {
        Some(up_to) if up_to.starts_with(&scan.prefix) => {
            if scan.after.as_ref().is_some_and(|after| after >= up_to) || (up_to.parts().is_empty() && columns > 0) {
                return Ok(None);
            }
            up_to_edge(up_to, columns)?
        }
        // Below every key that starts with the prefix.
        Some(up_to) if *up_to < scan.prefix => return Ok(None),
        _ => prefix,
    };
    Ok(Some(Range { lower, upper }))
}

/// Keys above `after`. Those that go on where a shorter bound ends are above it.
fn after_edge(after: &Key, columns: usize) -> StoreResult<Option<Edge>> {
    let whole = after.parts().len() == columns;
    edge(after, !whole && clamp(after).is_none())
}

/// Keys at or below `up_to`. Those that go on where a shorter bound ends are above it.
fn up_to_edge(up_to: &Key, columns: usize) -> StoreResult<Option<Edge>> {
    let whole = up_to.parts().len() == columns;
    edge(up_to, whole || clamp(up_to).is_some())
}

/// The columns of `key`, up to a number that no stored key reaches, which then ends the comparison: a stored key equal so
/// far is below `key`, whatever follows.
fn edge(key: &Key, inclusive: bool) -> StoreResult<Option<Edge>> {
    let reachable = clamp(key).unwrap_or(key.parts().len());
    let mut columns = key.parts().iter().take(reachable).map(value::column).collect::<StoreResult<Vec<_>>>()?;
    if reachable < key.parts().len() {
        columns.push(Value::Bigint(i64::MAX));
    }
    Ok((!columns.is_empty()).then_some(Edge { columns, inclusive }))
}

/// The first column with a number above everything that can be stored.
fn clamp(key: &Key) -> Option<usize> {
    key.parts().iter().position(|part| matches!(part, KeyPart::U64(number) if i64::try_from(*number).is_err()))
}

#[cfg(test)]
mod tests {
    use cofactor_store::{key, tables};

    use super::*;

    fn scan(prefix: Key) -> Scan {
        Scan::new(&tables::ROOM_LOG, key!["!a", 0_u64], prefix, 10)
    }

    /// How many columns bound a side, and whether inclusively.
    type Side = Option<(usize, bool)>;

    fn columns(edge: Option<Edge>) -> Side {
        edge.map(|edge| (edge.columns.len(), edge.inclusive))
    }

    fn shape(scan: &Scan) -> Option<(Side, Side)> {
        of(scan).expect("a range").map(|range| (columns(range.lower), columns(range.upper)))
    }

    #[test]
    fn a_prefix_bounds_both_sides_and_a_whole_key_its_own() {
        assert_eq!(shape(&scan(Key::EMPTY)), Some((None, None)));
        assert_eq!(shape(&scan(key![1_u64, ""])), Some((Some((2, true)), Some((2, true)))));
        let after = scan(key![1_u64, ""]).after(key![1_u64, "", 5_u64]);
        assert_eq!(shape(&after), Some((Some((3, false)), Some((2, true)))));
        let between = after.up_to(key![1_u64, "", 9_u64]);
        assert_eq!(shape(&between), Some((Some((3, false)), Some((3, true)))));
    }

    #[test]
    fn a_shorter_bound_is_below_every_key_that_starts_with_it() {
        assert_eq!(shape(&scan(Key::EMPTY).after(key![1_u64])), Some((Some((1, true)), None)));
        assert_eq!(shape(&scan(Key::EMPTY).up_to(key![1_u64])), Some((None, Some((1, false)))));
    }

    #[test]
    fn a_number_beyond_every_stored_one_ends_the_comparison() {
        let last = scan(key![1_u64, ""]).up_to(key![1_u64, "", u64::MAX]);
        let range = of(&last).expect("a range").expect("keys");
        assert_eq!(range.upper.expect("a bound").columns.last(), Some(&Value::Bigint(i64::MAX)));
        assert_eq!(shape(&scan(Key::EMPTY).up_to(key![u64::MAX, "x"])), Some((None, Some((1, true)))));
        assert_eq!(shape(&scan(Key::EMPTY).after(key![u64::MAX])), Some((Some((1, false)), None)));
    }

    #[test]
    fn bounds_that_cross_are_not_asked_for() {
        let prefix = || scan(key![2_u64]);
        assert_eq!(shape(&prefix().after(key![3_u64])), None);
        assert_eq!(shape(&prefix().up_to(key![1_u64, "x"])), None);
        assert_eq!(shape(&prefix().after(key![2_u64, "b"]).up_to(key![2_u64, "a"])), None);
        assert_eq!(shape(&prefix().after(key![1_u64])), shape(&prefix()), "a bound below the prefix bounds nothing");
    }
}
