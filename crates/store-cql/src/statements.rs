//! The statements, each prepared once.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use cofactor_store::{Column, Direction, StoreError, StoreResult, Table, TableKind, tables};
use futures::{StreamExt, stream};
use scylla::{
    client::session::Session,
    policies::retry::DefaultRetryPolicy,
    statement::{Consistency, prepared::PreparedStatement},
};

use crate::{
    failure::{Call, of_prepare},
    range::{Edge, Range},
};

/// Rows of one page of a scan. A row may be 64 KiB.
const PAGE_ROWS: i32 = 256;

/// Statements that are prepared at once when the store is opened.
const PREPARED_AT_ONCE: usize = 16;

/// How one side of a scan is bounded: by how many columns, and whether inclusively.
type Side = Option<(usize, bool)>;

/// What a statement does. With its table it says the whole text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Shape {
    /// Values: partition, clustering.
    Get,
    /// Values: partition, lower, upper, limit.
    Scan { lower: Side, upper: Side, backward: bool },
    /// Values: partition, clustering, value.
    Put,
    /// Values: partition, clustering.
    Delete,
    /// Values: partition.
    Fence,
    /// Values: the new fence, partition.
    FirstFence,
    /// Values: the new fence, partition, the expected fence without `sealed`.
    NextFence,
    /// Values: partition.
    StillSealed,
    /// Values: partition, clustering, value.
    PutIfAbsent,
    /// Values: value, partition, clustering, expected value.
    PutIfEqual,
    /// Values: partition, clustering, expected value.
    DeleteIfEqual,
}

impl Shape {
    /// The shape of a scan.
    pub(crate) fn scan(range: &Range, direction: Direction) -> Self {
        let side = |edge: &Option<Edge>| edge.as_ref().map(|edge| (edge.columns.len(), edge.inclusive));
        Self::Scan { lower: side(&range.lower), upper: side(&range.upper), backward: direction == Direction::Backward }
    }

    fn is_read(self) -> bool {
        matches!(self, Self::Get | Self::Scan { .. } | Self::Fence)
    }

    /// Whether it must see every conditional write, those included whose writers do not know their outcome.
    fn is_serial_read(self, table: &Table) -> bool {
        match table.kind {
            // Who scans gets what was answered; who must know what became of a write in doubt asks for its row.
            TableKind::Conditional => self == Self::Get,
            // A row of a log is read when its writer knows that it stands; only the fence decides anything.
            TableKind::Log => self == Self::Fence,
            TableKind::Plain => false,
        }
    }

    fn text(self, keyspace: &str, table: &Table) -> String {
        let name = format!("\"{keyspace}\".\"{}\"", table.name);
        let partition = equal(table.partition);
        let row = equal(&[table.partition, table.clustering].concat());
        let put = || {
            let columns: Vec<_> = table.partition.iter().chain(table.clustering).map(quoted).collect();
            let marks = vec!["?"; columns.len() + 1].join(", ");
            format!("INSERT INTO {name} ({}, value) VALUES ({marks})", columns.join(", "))
        };
        const SET_FENCE: &str = "SET fence_epoch = ?, fence_last = ?, fence_batch = ?, fence_sealed = ?";
        match self {
            Self::Get => format!("SELECT value FROM {name} WHERE {row}"),
            Self::Scan { lower, upper, backward } => scan_text(&name, table, [lower, upper], backward),
            Self::Put => put(),
            Self::Delete => format!("DELETE FROM {name} WHERE {row}"),
            Self::Fence => format!(
                "SELECT fence_epoch, fence_last, fence_batch, fence_sealed FROM {name} WHERE {partition} LIMIT 1"
            ),
            Self::FirstFence => format!("UPDATE {name} {SET_FENCE} WHERE {partition} IF fence_epoch = NULL"),
            Self::NextFence => format!(
                "UPDATE {name} {SET_FENCE} WHERE {partition} \
                 IF fence_epoch = ? AND fence_last = ? AND fence_batch = ? AND fence_sealed = false"
            ),
            Self::StillSealed => {
                format!("UPDATE {name} SET fence_sealed = true WHERE {partition} IF fence_sealed = true")
            }
            Self::PutIfAbsent => format!("{} IF NOT EXISTS", put()),
            Self::PutIfEqual => format!("UPDATE {name} SET value = ? WHERE {row} IF value = ?"),
            Self::DeleteIfEqual => format!("DELETE FROM {name} WHERE {row} IF value = ?"),
        }
    }
}

fn quoted(column: &Column) -> String {
    format!("\"{}\"", column.name)
}

fn equal(columns: &[Column]) -> String {
    columns.iter().map(|column| format!("\"{}\" = ?", column.name)).collect::<Vec<_>>().join(" AND ")
}

fn scan_text(name: &str, table: &Table, [lower, upper]: [Side; 2], backward: bool) -> String {
    let columns: Vec<String> = table.clustering.iter().map(quoted).collect();
    let mut selected = columns.clone();
    selected.push("value".into());
    let mut text = format!("SELECT {} FROM {name} WHERE {}", selected.join(", "), equal(table.partition));
    for (side, strict, inclusive) in [(lower, ">", ">="), (upper, "<", "<=")] {
        if let Some((count, includes)) = side {
            let first: Vec<&str> = columns.iter().take(count).map(String::as_str).collect();
            let operator = if includes { inclusive } else { strict };
            let marks = vec!["?"; count].join(", ");
            text += &format!(" AND ({}) {operator} ({marks})", first.join(", "));
        }
    }
    if backward && !columns.is_empty() {
        let order: Vec<String> = columns.iter().map(|column| format!("{column} DESC")).collect();
        text += &format!(" ORDER BY {}", order.join(", "));
    }
    text + " LIMIT ?"
}

/// What is asked of a table whatever the caller wants; scans have a shape for each kind of bound, and come by and by.
fn usual(table: &Table) -> &'static [Shape] {
    match table.kind {
        TableKind::Log => &[
            Shape::Get,
            Shape::Put,
            Shape::Delete,
            Shape::Fence,
            Shape::FirstFence,
            Shape::NextFence,
            Shape::StillSealed,
        ],
        TableKind::Plain => &[Shape::Get, Shape::Put, Shape::Delete],
        TableKind::Conditional => &[Shape::Get, Shape::PutIfAbsent, Shape::PutIfEqual, Shape::DeleteIfEqual],
    }
}

/// What is prepared, by table and shape. Bounded by the tables times the shapes.
pub(crate) struct Statements {
    keyspace: String,
    timeout: Duration,
    prepared: RwLock<HashMap<(u8, Shape), PreparedStatement>>,
}

impl fmt::Debug for Statements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Statements").field("keyspace", &self.keyspace).finish_non_exhaustive()
    }
}

impl Statements {
    /// Statements of `keyspace`, each of which may take `timeout` to prepare.
    pub(crate) fn new(keyspace: &str, timeout: Duration) -> Self {
        Self { keyspace: keyspace.to_owned(), timeout, prepared: RwLock::default() }
    }

    /// Prepares what every store needs, so that a server that falls silent later finds nothing left to prepare.
    pub(crate) async fn prepare_usual(&self, session: &Session) -> StoreResult<()> {
        let all =
            tables::ALL.iter().flat_map(|table| usual(table).iter().map(|shape| self.get(session, table, *shape)));
        let outcomes: Vec<_> = stream::iter(all).buffer_unordered(PREPARED_AT_ONCE).collect().await;
        outcomes.into_iter().try_for_each(|outcome| outcome.map(drop))
    }

    /// The statement, prepared now if it was not before. Clones of it share all that is large.
    pub(crate) async fn get(&self, session: &Session, table: &Table, shape: Shape) -> StoreResult<PreparedStatement> {
        let key = (table.id, shape);
        if let Some(known) = self.prepared.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(known.clone());
        }
        let text = shape.text(&self.keyspace, table);
        // The driver bounds the time of a request, and not that of preparing it.
        let prepared = tokio::time::timeout(self.timeout, session.prepare(text)).await;
        let prepared = prepared.map_err(|_| StoreError::Unavailable("no answer to a statement to prepare".into()))?;
        let mut prepared = prepared.map_err(|error| of_prepare(Call::Read, &error))?;
        if shape.is_read() {
            prepared.set_is_idempotent(true);
            prepared.set_retry_policy(Some(Arc::new(DefaultRetryPolicy::new())));
            prepared.set_page_size(PAGE_ROWS);
        }
        if shape.is_serial_read(table) {
            prepared.set_consistency(Consistency::LocalSerial);
        }
        self.prepared.write().unwrap_or_else(PoisonError::into_inner).insert(key, prepared.clone());
        Ok(prepared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_bounds_with_tuples() {
        let shape = Shape::Scan { lower: Some((3, false)), upper: Some((2, true)), backward: true };
        assert_eq!(
            shape.text("k", &tables::ROOM_LOG),
            "SELECT \"class\", \"sub\", \"position\", value FROM \"k\".\"room_log\" WHERE \"room_id\" = ? AND \
             \"bucket\" = ? AND (\"class\", \"sub\", \"position\") > (?, ?, ?) AND (\"class\", \"sub\") <= (?, ?) \
             ORDER BY \"class\" DESC, \"sub\" DESC, \"position\" DESC LIMIT ?"
        );
    }

    #[test]
    fn what_decides_is_read_serially() {
        assert!(Shape::Fence.is_serial_read(&tables::ROOM_LOG));
        assert!(Shape::Get.is_serial_read(&tables::LEASES));
        assert!(!Shape::Get.is_serial_read(&tables::ROOM_STATE));
        let scan = Shape::Scan { lower: None, upper: None, backward: false };
        assert!(!scan.is_serial_read(&tables::SHARDS), "a serial read would get in the way of those who write there");
    }
}
