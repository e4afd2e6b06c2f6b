//! Rooms and users through the entity runtime, on a store in memory: what they promise must survive that they leave the
//! memory and that their node dies.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod aliases;
mod buckets;
mod one_time_keys;
mod receipts;
mod restricted;
mod stays;
mod to_device;
mod transactions;
mod wake;
