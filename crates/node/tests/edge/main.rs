//! A whole node behind its sockets, and clients that do not keep to the rules.
//!
//! Requests are written byte by byte, since no decent HTTP client would send most of them. One node serves all tests that
//! need no options of their own.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

mod access;
mod bodies;
mod framing;
mod identifiers;
mod operator;
mod pipeline;
mod secrets;
mod slow;
mod support;
