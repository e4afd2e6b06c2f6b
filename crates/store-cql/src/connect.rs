//! The connection to the cluster.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use scylla::{
    client::{execution_profile::ExecutionProfile, session::Session, session_builder::SessionBuilder},
    policies::{load_balancing::DefaultPolicy, retry::FallthroughRetryPolicy},
    statement::{Consistency, SerialConsistency},
};

use crate::options::Options;

/// Why the store could not be opened. Each is a sentence that says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// An option cannot be right.
    #[error("the options of the CQL store: {0}")]
    Options(String),
    /// No node of the cluster could be reached, or none lets us in.
    #[error("cannot reach the CQL cluster at {nodes}: {message}. Check that it runs and that the options name it")]
    Connect {
        /// The nodes tried.
        nodes: String,
        /// What the driver says.
        message: String,
    },
    /// The cluster has several datacenters and none was chosen, or the chosen one is not there.
    #[error("the cluster has the datacenters {found}: set `local_datacenter` to the one whose nodes are asked")]
    Datacenter {
        /// Their names.
        found: String,
    },
    /// Conditional writes of one deployment must meet in one datacenter.
    #[error(
        "the keyspace {keyspace} is used through the datacenter {stored}, and this node would use {chosen}: two \
         datacenters would not see each other's conditional writes. Set `local_datacenter` to {stored}"
    )]
    OtherDatacenter {
        /// The keyspace.
        keyspace: String,
        /// The datacenter that the schema remembers.
        stored: String,
        /// The one of this node.
        chosen: String,
    },
    /// The schema was made by a newer version.
    #[error(
        "the keyspace {keyspace} has schema {found}, and this version knows up to {known}: run the newer version that \
         migrated it"
    )]
    SchemaTooNew {
        /// The keyspace.
        keyspace: String,
        /// The number found.
        found: i64,
        /// The highest number known here.
        known: i64,
    },
    /// The schema is not there, or a migration has not ended, and this node may not migrate.
    #[error("the schema of the keyspace {keyspace} is not ready: {what}. Let one node migrate it (`migrate = true`)")]
    SchemaNotReady {
        /// The keyspace.
        keyspace: String,
        /// What is missing.
        what: String,
    },
    /// A table is there, and is not what this version declares.
    #[error(
        "the keyspace {keyspace} is not Cofactor's or was changed by hand: {what}. Choose another keyspace, or restore it"
    )]
    SchemaForeign {
        /// The keyspace.
        keyspace: String,
        /// The first difference.
        what: String,
    },
    /// Another process has been migrating for too long, or took over from this one.
    #[error("another process is migrating the keyspace {keyspace}: start again when it is done")]
    MigrationHeld {
        /// The keyspace.
        keyspace: String,
    },
    /// A statement failed.
    #[error("the CQL cluster refused or did not answer while {what}: {message}")]
    Statement {
        /// What was under way.
        what: String,
        /// What the driver says.
        message: String,
    },
}

/// How often a silent connection is asked whether it lives, and how long it may take to say so. A node that vanished
/// without a word is noticed after their sum.
const KEEPALIVE: Duration = Duration::from_secs(4);

/// A session, and the datacenter whose nodes it asks.
pub(crate) struct Connected {
    pub(crate) session: Session,
    pub(crate) datacenter: String,
}

/// Connects. Every request is at `LOCAL_QUORUM` and `LOCAL_SERIAL`, is sent once (statements that may be repeated say
/// so), and never to two nodes at a time; and no timestamp is set but by us.
pub(crate) async fn connect(options: &Options) -> Result<Connected, OpenError> {
    if let Some(complaint) = options.complaint() {
        return Err(OpenError::Options(complaint));
    }
    let mut builder = SessionBuilder::new()
        .known_nodes(&options.nodes)
        .connection_timeout(Duration::from_millis(options.connect_timeout_ms))
        .keepalive_interval(KEEPALIVE)
        .keepalive_timeout(KEEPALIVE)
        .keyspaces_to_fetch([&options.keyspace])
        .default_execution_profile_handle(profile(options, options.local_datacenter.as_deref()).into_handle());
    if !options.user.is_empty() {
        builder = builder.user(&options.user, &options.password);
    }
    let session = builder
        .build()
        .await
        .map_err(|error| OpenError::Connect { nodes: options.nodes.join(", "), message: error.to_string() })?;
    let datacenter = choose_datacenter(&session, options)?;
    // A datacenter that joins later is not asked either.
    let mut handle = session.get_default_execution_profile_handle().clone();
    handle.map_to_another_profile(profile(options, Some(&datacenter)));
    Ok(Connected { session, datacenter })
}

fn profile(options: &Options, datacenter: Option<&str>) -> ExecutionProfile {
    let mut nodes = DefaultPolicy::builder().token_aware(true).permit_dc_failover(false);
    if let Some(datacenter) = datacenter {
        nodes = nodes.prefer_datacenter(datacenter.to_owned());
    }
    ExecutionProfile::builder()
        .consistency(Consistency::LocalQuorum)
        .serial_consistency(Some(SerialConsistency::LocalSerial))
        .request_timeout(Some(Duration::from_millis(options.request_timeout_ms)))
        .retry_policy(Arc::new(FallthroughRetryPolicy::new()))
        .speculative_execution_policy(None)
        .load_balancing_policy(nodes.build())
        .build()
}

fn choose_datacenter(session: &Session, options: &Options) -> Result<String, OpenError> {
    let state = session.get_cluster_state();
    let names: BTreeSet<&str> = state.get_nodes_info().iter().filter_map(|node| node.datacenter.as_deref()).collect();
    let only = (names.len() == 1).then(|| names.first().copied()).flatten();
    match (&options.local_datacenter, only) {
        (Some(chosen), _) if names.contains(chosen.as_str()) => Ok(chosen.clone()),
        (None, Some(only)) => Ok(only.to_owned()),
        _ => Err(OpenError::Datacenter { found: names.into_iter().collect::<Vec<_>>().join(", ") }),
    }
}
