//! Measures Matrix homeservers from outside, through the client-server API alone.
//!
//! What this crate is: the generator of load behind every figure that is published about a homeserver, the probes of
//! what the machine itself allows, and the gate that refuses a server whose cost grows with the size of its rooms.
//! What it is not: part of a server, or a benchmark of one. It knows nothing of how a server is built, uses no
//! private endpoint, and depends on no other crate of the workspace.
//!
//! Invariants: latency counts from when an operation should have started; warm-up is never counted; errors and
//! timeouts are counted apart and never averaged away; a run whose events did not arrive everywhere, once and in
//! order is invalid whatever its speed; everything is bounded by a named limit.
//!
//! To add a scenario, write a module in [`scenario`] that implements [`scenario::Scenario`] and give it a line in
//! [`scenario::ALL`].

pub mod check;
pub mod client;
pub mod fit;
pub mod gate;
pub mod launch;
pub mod load;
pub mod matrix;
pub mod metrics;
pub mod probes;
pub mod proc;
pub mod progress;
pub mod report;
pub mod run;
pub mod scenario;
pub mod target;
pub mod world;
