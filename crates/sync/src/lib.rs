//! `/sync`: who waits for what, and what is new for whom.
//!
//! A [`SyncService`] hears the bus, keeps for each user that syncs here what changed last where (its *slot*), and answers
//! from the rows that actors keep. Nothing about a token is stored; any service answers any token. An answer that says
//! nothing new costs the same whatever the number of the user's rooms.
//!
//! Invariants: a record is delivered only up to where this service has heard everything; a token never says that something
//! was delivered that was not; an error fails the request, it never leaves something out.
//!
//! To add a stream, add a file to `streams` and an entry to the answer in `answer.rs`.

mod answer;
mod ear;
mod feed;
mod json;
mod request;
mod service;
mod slot;
mod streams;
mod syncs;
mod unread;

pub use self::{
    request::SyncRequest,
    service::{EVENT_CACHE_BYTES, SyncLoad, SyncOptions, SyncService},
    syncs::Syncs,
    unread::{Counts, Notifications},
};
