//! How owners tell the rest of the cluster about new positions, and what the cluster shares for a short while.
//!
//! The bus is a doorbell: a position is real only when it can be read from the store. A subscriber that hears
//! [`Delivery::Gap`], or sees a hole in a shard's sequence numbers, knows that it must look there itself.
//!
//! The crate holds the two ports ([`Bus`], [`Shared`]), their in-process implementation ([`local`]) and the
//! [`conformance`] suite.

pub mod conformance;
pub mod local;
mod port;
mod rate;

pub use self::{
    port::{Bus, BusError, Delivery, Heartbeat, Listener, Record, Shared, Subscription},
    rate::{Decision, RETRY_AFTER_MAX, Rate},
};
