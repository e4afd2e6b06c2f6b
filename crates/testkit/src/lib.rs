//! What tests of the whole need: a simulation of nodes on a model store, under one seed and a clock that only the
//! simulation moves; and [`chaos`], which hits real processes.
//!
//! The simulation runs the real entity runtime, the real room and user actors and the real `/sync`; only the store, the
//! clock and the randomness are models. A crash cuts a node off its store between any two of its steps; what was on its
//! way to the store may still arrive. The same seed gives the same trace.

pub mod chaos;
mod checker;
pub mod cluster;
mod connection;
pub mod lab;
mod life;
mod node;
pub mod simulation;
