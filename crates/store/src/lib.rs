//! The persistence port: partitioned, ordered tables, plain writes, and the fenced append that every log is made of.
//!
//! The crate holds the contract ([`Store`]), the declaration of every [`Table`], the reader of bucketed logs
//! ([`LogReader`]), a [`model`] store in memory whose faults a test chooses, and the [`conformance`] suite that every
//! backend must pass. It holds no backend: those are crates of their own, chosen in one place of the node.
//!
//! To add a table, add one declaration to [`tables`]; every backend derives its schema from it.

pub mod conformance;
mod key;
mod log;
pub mod model;
mod port;
pub mod record;
pub mod tables;

pub use self::{
    key::{Column, ColumnKind, Key, KeyPart, Table, TableKind},
    log::{LogKey, LogReader, LogRow, RangeRead, bucket_of},
    port::{
        Append, CasOutcome, Direction, Durability, Fence, Mutation, Row, Scan, Store, StoreError, StoreResult, Swap,
    },
};
