//! A node: configuration, backends, and the order in which everything starts and stops.
//!
//! This is the only crate that sees everything. [`Config`] is what an operator writes; [`backends`] is the only place that
//! knows their names; [`Node`] starts in numbered stages and stops in the reverse order.
//!
//! To add an option, add a field to the options of the crate that needs it. To add a backend, add a crate and an arm in
//! `backends.rs`.

pub mod admin;
pub mod backends;
mod calls;
mod config;
mod glance;
mod identity;
mod lifecycle;
mod measured;
mod operator;
mod system;
mod vitals;

pub use self::{
    config::{
        Admin, BusBackend, BusConfig, Cluster, Config, ConfigError, EXAMPLE, Limits, StoreBackend, StoreConfig, Sync,
        Tls,
    },
    glance::{Finding, Glance, NodeGlance},
    identity::{Identity, IdentityError},
    lifecycle::{Node, StartError},
    system::{BuildError, Core, CoreParts, NodeServer},
};
