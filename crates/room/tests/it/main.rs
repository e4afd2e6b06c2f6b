//! Tests of the room core through its public functions, in one binary.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod auth_rules;
mod author;
mod chain_cover;
mod properties;
mod receive;
mod redact;
mod resolve;
mod state_tree;
mod support;
mod vectors;
