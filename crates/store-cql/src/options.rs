//! What an operator may choose.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

/// How to reach the cluster and what to keep there. Consistency is not among it: see the crate's page.
///
/// Connections are not encrypted: run them over a network of their own.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Some nodes of the cluster, `host` or `host:port` (port 9042 where none is given). The others are found through
    /// them. Default: `127.0.0.1:9042`.
    pub nodes: Vec<String>,
    /// The keyspace, made at the first start if it is not there: letters, digits and `_`, at most 48, in lower case.
    /// Default: `cofactor`.
    pub keyspace: String,
    /// Copies of everything in each datacenter, when the keyspace is made and `datacenters` is empty. Fewer than 3 lose
    /// availability with the first node. Default: 3.
    pub replication_factor: u32,
    /// Copies by datacenter, when the keyspace is made, for clusters in which some datacenters keep none or another
    /// number. Default: empty.
    pub datacenters: BTreeMap<String, u32>,
    /// The datacenter whose nodes are asked, the same for all nodes of a deployment. Needed only where the cluster has
    /// more than one. Default: none.
    pub local_datacenter: Option<String>,
    /// The role to log in as; empty for a cluster without authentication. Default: empty.
    pub user: String,
    /// The password of `user`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub password: String,
    /// How long a node may take to accept a connection, in milliseconds. Default: 5000.
    pub connect_timeout_ms: u64,
    /// How long a request may take before its outcome counts as unknown, in milliseconds. More than the cluster's own
    /// timeouts, which say more. Default: 10000.
    pub request_timeout_ms: u64,
    /// Requests that may be under way at once; the store is unavailable beyond it. Default: 4096.
    pub requests_max: usize,
    /// The largest batch, in bytes of keys and values, at most 4 MiB. Both servers take 16 MiB in one request; the
    /// batch sizes that they warn of and refuse (`batch_size_fail_threshold`) are of batches over several partitions,
    /// which there are none of. Default: 1000000.
    pub batch_bytes_max: usize,
    /// Whether a starting node may make and change the schema. Where it may not, somebody else must have done so before.
    /// Default: true.
    pub migrate: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: vec!["127.0.0.1:9042".into()],
            keyspace: "cofactor".into(),
            replication_factor: 3,
            datacenters: BTreeMap::new(),
            local_datacenter: None,
            user: String::new(),
            password: String::new(),
            connect_timeout_ms: 5_000,
            request_timeout_ms: 10_000,
            requests_max: 4_096,
            batch_bytes_max: 1_000_000,
            migrate: true,
        }
    }
}

impl fmt::Debug for Options {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("nodes", &self.nodes)
            .field("keyspace", &self.keyspace)
            .field("local_datacenter", &self.local_datacenter)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// The longest name of a keyspace that both servers take, in bytes.
const KEYSPACE_BYTES_MAX: usize = 48;

/// The smallest useful batch: one event, its keys and what is written beside it, in bytes.
const BATCH_BYTES_MIN: usize = 128 * 1024;

/// A quarter of what the servers take by default: conditional writes keep a copy with some bytes around it.
const BATCH_BYTES_MAX: usize = 4 << 20;

impl Options {
    /// What is wrong with them, in a sentence.
    pub(crate) fn complaint(&self) -> Option<String> {
        let plain = |text: &str| text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        let starts_well = self.keyspace.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
        if !starts_well || !plain(&self.keyspace) || self.keyspace.len() > KEYSPACE_BYTES_MAX {
            return Some(format!(
                "`keyspace` is `{}`: use a letter, then letters, digits and `_`, in lower case, at most {KEYSPACE_BYTES_MAX}",
                self.keyspace
            ));
        }
        let named_well =
            |name: &String| !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && b != b'\'' && b != b'"');
        if !self.datacenters.keys().chain(&self.local_datacenter).all(named_well) {
            return Some("a name in `datacenters` or `local_datacenter` is empty or has a quote or space in it".into());
        }
        if self.nodes.is_empty() {
            return Some("`nodes` is empty: name at least one node of the cluster".into());
        }
        if self.replication_factor == 0 || self.datacenters.values().any(|copies| *copies == 0) {
            return Some("`replication_factor` and every number in `datacenters` must be at least 1".into());
        }
        if !(BATCH_BYTES_MIN..=BATCH_BYTES_MAX).contains(&self.batch_bytes_max) {
            return Some(format!("`batch_bytes_max` must be from {BATCH_BYTES_MIN} to {BATCH_BYTES_MAX}"));
        }
        if self.requests_max == 0 || self.request_timeout_ms == 0 || self.connect_timeout_ms == 0 {
            return Some("`requests_max` and the timeouts must be more than 0".into());
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_fine_and_what_could_break_out_of_a_statement_is_not() {
        assert_eq!(Options::default().complaint(), None);
        for keyspace in ["", "1a", "a-b", "a\"; drop", "Cofactor", &"a".repeat(49)] {
            assert!(Options { keyspace: keyspace.into(), ..Options::default() }.complaint().is_some(), "{keyspace}");
        }
        let datacenters = BTreeMap::from([("dc1', 'x".to_owned(), 3)]);
        assert!(Options { datacenters, ..Options::default() }.complaint().is_some());
    }

    #[test]
    fn the_password_is_not_in_the_debug_form() {
        let options = Options { password: "hunter2".into(), ..Options::default() };
        assert!(!format!("{options:?}").contains("hunter2"));
    }
}
