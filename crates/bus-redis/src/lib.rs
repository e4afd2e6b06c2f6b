//! Implements the bus on Redis, 7 or later: [`RedisBus`] says and hears records through sharded pub/sub, [`RedisShared`]
//! keeps the facts that all processes share.
//!
//! Redis is a doorbell, not a store. It may lose, restart or be gone; then subscribers hear
//! [`cofactor_bus::Delivery::Gap`] and read the store, and nobody who speaks waits or fails.
//!
//! # Lanes and channels
//!
//! Deliveries of one publisher must come in its order. A connection keeps the order, and so does one Redis server, but
//! the servers of a Redis Cluster know nothing of one another. So each publisher has a *lane*, a hash slot of the
//! cluster: all its channels carry the lane as their hash tag, lie on one server, and are heard through one connection.
//! A single server has one lane.
//!
//! Within a lane, records of shard `S` go to the channel `PREFIX:{LANE}:r:(S mod CHANNELS)`, so that a listener may one
//! day subscribe to the shards that concern it and to no others. Today whoever listens subscribes to all, and a process in
//! which nobody does hears nothing: `docs/adr/0004-who-hears-what.md`. What everybody must hear goes to `PREFIX:{LANE}:h`.
//!
//! # Invariants
//!
//! - A publisher's own subscribers hear it directly, also while Redis is down; its echo from Redis is dropped.
//! - Whatever is not certain to have been said becomes a gap, said before what comes after it.
//! - A subscriber hears a gap when a lane is lost, when it is found again, and every
//!   [`RedisOptions::gap_every_ms`] in between; and when a publisher that had heartbeats falls silent.
//! - Every queue has a bound; over it, what waited becomes a gap.

mod backoff;
mod bus;
mod core;
mod door;
mod frame;
mod listener;
mod options;
mod peers;
mod queue;
mod shared;
mod speaker;

pub use self::{bus::RedisBus, options::RedisOptions, shared::RedisShared};
