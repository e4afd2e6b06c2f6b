//! The store port on CQL: ScyllaDB, or Apache Cassandra with lightweight transactions.
//!
//! An append is one conditional batch in one partition: an `UPDATE` of the partition's static fence columns
//! `IF` they are as expected, and the rows beside it. Whoever does not know the fence that stands writes nothing,
//! however late its batch arrives. What cannot be known (a timeout, a connection that broke) is
//! [`Unknown`](cofactor_store::StoreError::Unknown); nothing conditional is ever sent twice by this crate or its driver.
//!
//! - Conditional and plain writes never touch the same cells. Logs and conditional tables are written by conditional
//!   statements only, a rewritten row of a sealed bucket included, and their timestamps are the server's.
//! - Plain tables are written with timestamps of this process that only rise, so that a write that was given up and
//!   arrives late loses against the one that replaced it.
//! - Everything is read and written at `LOCAL_QUORUM`, the conditional part at `LOCAL_SERIAL`. All nodes of a deployment
//!   must therefore use the same datacenter; the schema remembers which.
//!
//! Tables are derived from [`cofactor_store::tables`]: to add one, declare it there, and the next start creates it. To
//! change one, add a migration to `migrate.rs`. How the data looks to an operator is in `docs/cql.md`.

mod answer;
mod batches;
mod connect;
mod failure;
mod migrate;
mod options;
mod range;
mod schema;
mod statements;
mod store;
mod timestamps;
mod value;

pub use self::{
    connect::OpenError,
    migrate::{Report, check, migrate},
    options::Options,
    store::CqlStore,
};
