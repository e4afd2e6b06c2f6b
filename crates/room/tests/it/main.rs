//! Tests of the room core through its public functions, in one binary.

mod auth_rules;
mod author;
mod chain_cover;
mod receive;
mod redact;
mod resolve;
mod state_tree;
mod support;
mod vectors;
