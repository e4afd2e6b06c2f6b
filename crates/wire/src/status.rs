//! What a node says of itself to an operator.

use serde::{Deserialize, Serialize};

/// How a node is doing. Fields may be added; older nodes leave them at their defaults.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// The release.
    pub version: String,
    /// Whether it takes requests.
    pub is_ready: bool,
    /// Shards that it owns while its lease is good.
    pub shards_owned: u32,
    /// Members that it knows of.
    pub members: u32,
    /// How long its lease is still good if it is not renewed.
    pub lease_remaining_ms: u64,
    /// Rooms.
    pub rooms: KindStatus,
    /// Users.
    pub users: KindStatus,
    /// Fenced appends.
    pub append: Option<Latency>,
    /// Reads of rows and ranges.
    pub read: Option<Latency>,
    /// From the position of a record to its being heard here.
    pub bus: Option<Latency>,
    /// `/sync`, where the node serves it.
    pub sync: Option<SyncStatus>,
    /// Resident memory.
    pub memory_bytes: u64,
}

/// The live entities of one kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct KindStatus {
    /// Live entities.
    pub live: u64,
    /// Commands that wait for them.
    pub queued: u64,
    /// Those with the most commands waiting: Matrix identifier and number, the most first.
    pub busiest: Vec<(String, u64)>,
}

/// How long something took of late.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Latency {
    /// Half of all were faster.
    pub p50_ms: f64,
    /// 99 of 100 were faster.
    pub p99_ms: f64,
}

/// `/sync` of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SyncStatus {
    /// Requests that are being answered or wait.
    pub waiting: u64,
    /// Users kept in memory.
    pub slots: u64,
    /// How far the closed position is behind the clock; `None` until every shard has been heard of.
    pub lag_ms: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_of_another_release_is_read() {
        #[derive(Serialize)]
        struct Later {
            version: &'static str,
            moons: u8,
        }
        let read: NodeStatus = crate::decode(&crate::encode(&Later { version: "9", moons: 2 }).unwrap()).unwrap();
        assert_eq!(read, NodeStatus { version: "9".into(), ..NodeStatus::default() });
    }
}
