//! The schema in CQL, derived from the declared tables.

use std::collections::BTreeSet;

use cofactor_store::{Column, ColumnKind, Table, TableKind, tables};

use crate::options::Options;

/// The table that says which migrations a keyspace has had.
pub(crate) const VERSIONS: &str = "schema_versions";

/// The static columns of a log: its fence. `fence_batch` has the sixteen bytes of the batch's id, most significant first.
const FENCE: [(&str, &str); 4] =
    [("fence_epoch", "bigint"), ("fence_last", "bigint"), ("fence_batch", "blob"), ("fence_sealed", "boolean")];

/// How long the servers keep what says that a row was deleted, in seconds: the ten days that both servers default to. A
/// replica that was away for longer than this and is not repaired brings deleted rows back: a revoked token would work
/// again. So it is not to be lowered for speed.
const DELETES_KEPT_S: u32 = 864_000;

/// The same for the outbox, a queue whose scans pass over everything deleted lately. A message that comes back is sent
/// again, and its receiver recognises it. Three hours is as long as the servers keep hints for a replica that is away.
const OUTBOX_DELETES_KEPT_S: u32 = 10_800;

/// A column as `system_schema.columns` describes it: table, name, kind, type, place in its key.
pub(crate) type ColumnFact = (String, String, String, String, i32);

fn cql_type(kind: ColumnKind) -> &'static str {
    match kind {
        ColumnKind::Text => "text",
        ColumnKind::U64 => "bigint",
        ColumnKind::Bytes => "blob",
    }
}

fn quoted(columns: &[Column]) -> String {
    columns.iter().map(|column| format!("\"{}\"", column.name)).collect::<Vec<_>>().join(", ")
}

/// How the files of a table are merged. Both strategies are on both servers.
fn compaction(table: &Table) -> &'static str {
    match table.kind {
        // Written once, in order, and read in runs of recent rows: merging by size writes least.
        TableKind::Log => "SizeTieredCompactionStrategy",
        // Rows are replaced in place and read one by one: a read should meet few files.
        TableKind::Plain | TableKind::Conditional => "LeveledCompactionStrategy",
    }
}

fn deletes_kept_s(table: &Table) -> u32 {
    if table.id == tables::OUTBOX.id { OUTBOX_DELETES_KEPT_S } else { DELETES_KEPT_S }
}

/// The statement that makes `table`, if it is not there.
pub(crate) fn create_table(keyspace: &str, table: &Table) -> String {
    let mut columns: Vec<String> = table
        .partition
        .iter()
        .chain(table.clustering)
        .map(|column| format!("\"{}\" {}", column.name, cql_type(column.kind)))
        .collect();
    match table.kind {
        TableKind::Log => columns.extend(FENCE.iter().map(|(name, kind)| format!("{name} {kind} static"))),
        TableKind::Plain | TableKind::Conditional => {}
    }
    columns.push("value blob".into());
    let mut key = format!("({})", quoted(table.partition));
    if !table.clustering.is_empty() {
        key = format!("{key}, {}", quoted(table.clustering));
    }
    format!(
        "CREATE TABLE IF NOT EXISTS \"{keyspace}\".\"{}\" ({}, PRIMARY KEY ({key})) WITH comment = '{}' \
         AND compaction = {{'class': '{}'}} AND gc_grace_seconds = {}",
        table.name,
        columns.join(", "),
        table.about.trim().replace('\'', "''"),
        compaction(table),
        deletes_kept_s(table),
    )
}

/// The statement that makes the table of migrations.
pub(crate) fn create_versions(keyspace: &str) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS \"{keyspace}\".{VERSIONS} (scope text, number bigint, name text, \
         started_at timestamp, finished_at timestamp, holder text static, beat bigint static, datacenter text static, \
         PRIMARY KEY (scope, number)) WITH comment = 'Migrations of this keyspace, and who is migrating it.'"
    )
}

/// The statements that make the keyspace, the first that the server takes. Lightweight transactions need vnodes on
/// ScyllaDB before 2025.4; other servers do not know the word.
pub(crate) fn create_keyspace(options: &Options) -> [String; 2] {
    let mut replication = vec!["'class': 'NetworkTopologyStrategy'".to_owned()];
    if options.datacenters.is_empty() {
        replication.push(format!("'replication_factor': {}", options.replication_factor));
    }
    replication.extend(options.datacenters.iter().map(|(name, copies)| format!("'{name}': {copies}")));
    let plain = format!(
        "CREATE KEYSPACE IF NOT EXISTS \"{}\" WITH replication = {{{}}} AND durable_writes = true",
        options.keyspace,
        replication.join(", ")
    );
    [format!("{plain} AND tablets = {{'enabled': false}}"), plain]
}

/// The columns that `table` must have.
pub(crate) fn facts(table: &Table) -> BTreeSet<ColumnFact> {
    let fact = |name: &str, kind: &str, cql: &str, place: i32| -> ColumnFact {
        (table.name.into(), name.into(), kind.into(), cql.into(), place)
    };
    let keyed = |columns: &[Column], kind: &'static str| -> Vec<ColumnFact> {
        columns.iter().zip(0..).map(|(column, place)| fact(column.name, kind, cql_type(column.kind), place)).collect()
    };
    let mut facts = BTreeSet::from([fact("value", "regular", "blob", -1)]);
    facts.extend(keyed(table.partition, "partition_key"));
    facts.extend(keyed(table.clustering, "clustering"));
    if table.kind == TableKind::Log {
        facts.extend(FENCE.iter().map(|(name, cql)| fact(name, "static", cql, -1)));
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_has_typed_keys_and_a_static_fence() {
        assert_eq!(
            create_table("k", &tables::ROOM_LOG),
            "CREATE TABLE IF NOT EXISTS \"k\".\"room_log\" (\"room_id\" text, \"bucket\" bigint, \"class\" bigint, \
             \"sub\" text, \"position\" bigint, fence_epoch bigint static, fence_last bigint static, \
             fence_batch blob static, fence_sealed boolean static, value blob, \
             PRIMARY KEY ((\"room_id\", \"bucket\"), \"class\", \"sub\", \"position\")) \
             WITH comment = 'What happened in a room, in order. Class and sub say which of its side by side sequences \
             a record belongs to.' AND compaction = {'class': 'SizeTieredCompactionStrategy'} AND gc_grace_seconds = 864000"
        );
    }

    #[test]
    fn a_table_without_clustering_has_one_row_a_partition() {
        let cql = create_table("k", &tables::ALIASES);
        assert!(cql.contains("PRIMARY KEY ((\"alias\"))"), "{cql}");
    }

    #[test]
    fn deletes_survive_everywhere_but_in_the_outbox() {
        for table in tables::ALL {
            assert_eq!(deletes_kept_s(table) < DELETES_KEPT_S, table.name == "outbox", "{}", table.name);
        }
    }

    #[test]
    fn copies_go_by_datacenter_where_these_are_named() {
        let datacenters = [("a".to_owned(), 3), ("b".to_owned(), 2)].into();
        let [_, cql] = create_keyspace(&Options { datacenters, ..Options::default() });
        assert!(cql.contains("{'class': 'NetworkTopologyStrategy', 'a': 3, 'b': 2}"), "{cql}");
    }
}
