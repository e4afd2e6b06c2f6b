//! Every table, declared once.

use crate::{Column, ColumnKind, Table, TableKind};

const fn text(name: &'static str) -> Column {
    Column { name, kind: ColumnKind::Text }
}

const fn number(name: &'static str) -> Column {
    Column { name, kind: ColumnKind::U64 }
}

macro_rules! tables {
    ($($(#[doc = $about:literal])+ $id:literal $const:ident $name:literal $kind:ident [$($p:expr),+] [$($c:expr),*];)+) => {
        $($(#[doc = $about])+
        pub static $const: Table = Table {
            id: $id,
            name: $name,
            about: concat!($($about),+),
            kind: TableKind::$kind,
            partition: &[$($p),+],
            clustering: &[$($c),*],
        };)+

        /// All of them.
        pub static ALL: &[&Table] = &[$(&$const),+];
    };
}

tables! {
    /// What happened in a room, in order. Class and sub say which of its side by side sequences a record belongs to.
    1 ROOM_LOG "room_log" Log [text("room_id"), number("bucket")] [number("class"), text("sub"), number("position")];
    /// What happened to a user, in order.
    2 USER_LOG "user_log" Log [text("user_id"), number("bucket")] [number("class"), text("sub"), number("position")];
    /// Where the buckets of a log begin: one row for each bucket after the first, with its first position.
    3 LOG_BUCKETS "log_buckets" Plain [text("kind"), text("entity_id")] [number("bucket")];
    /// How far the effects of an entity's log are applied.
    4 CHECKPOINTS "checkpoints" Plain [text("kind"), text("entity_id")] [];
    /// Messages from one entity to another that are not yet known to have arrived.
    5 OUTBOX "outbox" Plain [number("shard")] [text("kind"), text("entity_id"), number("position"), number("number")];
    /// How long each process may act, and whether it still lives: the leases.
    6 LEASES "leases" Conditional [number("node")] [];
    /// Facts of the whole deployment: server name, shard count, signing keys.
    7 DEPLOYMENT "deployment" Conditional [text("name")] [];
    /// The processes of the cluster, as they describe themselves.
    8 MEMBERS "members" Plain [text("cluster")] [number("node")];
    /// Who owns a shard, in which epoch, and above which position its successor begins. Grouped in slices, which are read whole.
    9 SHARDS "shards" Conditional [number("slice")] [number("shard")];
    /// Logs that an owner of a shard may be appending to. Its successor fences them before it promises anything.
    40 OPEN_LOGS "open_logs" Plain [number("shard")] [text("kind"), text("entity_id"), number("activation")];
    /// The current state of a room.
    10 ROOM_STATE "room_state" Plain [text("room_id")] [text("type"), text("state_key")];
    /// Where an event stands in its room's log.
    11 EVENT_POSITIONS "event_positions" Plain [text("room_id")] [text("event_id")];
    /// Read receipts and the totals at them, the latest of each kind.
    13 RECEIPTS "receipts" Plain [text("room_id")] [text("user_id"), text("type"), text("thread_id")];
    /// Member counts and heroes of a room.
    12 ROOM_SUMMARIES "room_summaries" Plain [text("room_id")] [];
    /// Who was mentioned, for unread counts.
    14 MENTIONS "mentions" Plain [text("room_id")] [text("user_id"), number("position")];
    /// Rooms in the public directory.
    15 DIRECTORY "directory" Plain [text("list")] [text("room_id")];
    /// Room aliases; set conditionally, for an alias has no owner but the table.
    16 ALIASES "aliases" Conditional [text("alias")] [];
    /// The aliases of a room, to list them.
    17 ROOM_ALIASES "room_aliases" Plain [text("room_id")] [text("alias")];
    /// What the children of an event say about it, where it stands: its latest edit, its thread, its references.
    18 AGGREGATES "aggregates" Plain [text("room_id")] [number("position")];
    /// Annotations that stand, by parent, sender, type and key: none is made twice.
    19 ANNOTATIONS "annotations" Plain [text("room_id")] [text("parent"), text("annotation")];
    /// Events that users reported, for the operator.
    25 REPORTS "reports" Plain [text("room_id")] [text("event_id"), text("reporter")];
    /// Who takes part in which threads, by where the root stands.
    24 THREAD_USERS "thread_users" Plain [text("room_id")] [text("user_id"), number("root_position")];
    /// A user's own data by kind and key: devices, keys, account data, room list, filters, profile.
    20 USER_STATE "user_state" Plain [text("user_id")] [text("kind"), text("key")];
    /// Backed-up room keys.
    21 KEY_BACKUP "key_backup" Plain [text("user_id"), text("version")] [text("room_id"), text("session_id")];
    /// Access and refresh tokens by their hash.
    22 TOKENS "tokens" Plain [text("hash")] [];
    /// Local users by name, for the operator and the user directory.
    23 ACCOUNTS "accounts" Plain [number("slice")] [text("user_id")];
    /// Uploaded media.
    30 MEDIA "media" Plain [text("server_name"), text("media_id")] [text("variant")];
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::ALL;

    #[test]
    fn ids_and_names_are_unique() {
        let ids: BTreeSet<_> = ALL.iter().map(|table| table.id).collect();
        let names: BTreeSet<_> = ALL.iter().map(|table| table.name).collect();
        assert_eq!((ids.len(), names.len()), (ALL.len(), ALL.len()));
    }
}
