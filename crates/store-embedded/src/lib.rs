//! The store port on fjall: one data folder, one committer for the whole node.
//!
//! Whatever appends, synced writes and compare-and-sets wait at the same time go into one atomic batch with one
//! `fdatasync`, without a timer: under load the batches grow by themselves. A failed write or sync ends the process,
//! because nobody can know what the disk then holds; the next start reads what is really there.
//!
//! To change how keys are stored, raise the format number in `folder.rs`; old folders must stay readable.

mod committer;
mod folder;
mod keys;
mod store;

pub use self::{
    folder::OpenError,
    store::{EmbeddedStore, Options},
};
