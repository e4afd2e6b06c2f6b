//! Small numbers with a meaning.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// Orders the records of one entity. Allocated only by the owner of the entity's shard, as
    /// `max(now in µs, last position + 1)`, so it is also, roughly, a time.
    Position(u64)
}

number! {
    /// Counts the owners of a shard. Every change of owner raises it, and the store refuses writes of a lower one.
    Epoch(u64)
}

number! {
    /// A bucket of entities, the unit in which ownership moves between nodes.
    ShardId(u32)
}

number! {
    /// One running process. A restart is another node.
    NodeId(u64)
}

impl Position {
    /// Before every record.
    pub const ZERO: Self = Self(0);
    /// After every record.
    pub const MAX: Self = Self(u64::MAX);

    /// The next position.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The position before this one.
    pub fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}
