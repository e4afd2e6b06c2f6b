//! When to store a whole state instead of a change.

/// How to store the next state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreAs {
    /// As the change from the state before.
    Delta,
    /// As the new nodes of the whole tree.
    Snapshot,
}

/// Decides after each change whether a snapshot is due.
///
/// Changes are small, but reading a state means reading all of them since the last snapshot. A snapshot is due when
/// the changes since the last one are larger than it was: reading then costs at most two snapshots, and all
/// snapshots together stay below a constant multiple of all changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SnapshotPolicy {
    snapshot_bytes: u64,
    delta_bytes: u64,
}

impl SnapshotPolicy {
    /// Before the first state of a room.
    pub fn new() -> Self {
        Self::default()
    }

    /// Continues from what is stored: the size of the last snapshot and of the changes since, in bytes.
    pub fn resume(snapshot_bytes: u64, delta_bytes: u64) -> Self {
        Self { snapshot_bytes, delta_bytes }
    }

    /// Takes a change of that size into account and tells how to store the state after it.
    pub fn on_change(&mut self, delta_bytes: u64) -> StoreAs {
        self.delta_bytes = self.delta_bytes.saturating_add(delta_bytes);
        if self.delta_bytes > self.snapshot_bytes.max(Self::SNAPSHOT_BYTES_MIN) {
            StoreAs::Snapshot
        } else {
            StoreAs::Delta
        }
    }

    /// Takes a stored snapshot of that size (of the whole tree, not only of its new nodes) into account.
    pub fn on_snapshot(&mut self, snapshot_bytes: u64) {
        *self = Self { snapshot_bytes, delta_bytes: 0 };
    }

    /// Below this size of changes no snapshot is worth its overhead.
    pub const SNAPSHOT_BYTES_MIN: u64 = 4096;
}
