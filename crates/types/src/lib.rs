//! The words that every other crate shares: entities and shards, positions and epochs, `/sync` tokens, error classes,
//! limits, and time and randomness as parameters.
//!
//! This crate holds no behaviour of its own beyond parsing and printing these words. A type moves here only when two
//! crates need it.

mod clock;
mod entity;
mod fault;
pub mod limits;
mod path;
mod position;
mod token;

pub use self::{
    clock::{Clock, Entropy, ManualClock, SystemClock, SystemEntropy},
    entity::{EntityHash, EntityId, EntityKind},
    fault::{ErrorClass, Fault},
    path::split_property_path,
    position::{Epoch, NodeId, Position, ShardId},
    token::{SyncToken, TokenError},
};
