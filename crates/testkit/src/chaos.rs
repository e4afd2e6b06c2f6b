//! Real processes under load while faults hit them, and a judgement of what their clients saw.
//!
//! [`run`] is the whole of it: it starts a [`Deployment`], lets people write, sync, whisper and exchange keys
//! ([`load`]) while [`faults`] chosen by a seed hit the processes, heals everything, reads everything once more and
//! gives the [`history`] to the [`checker`]. It speaks the client-server API and sends signals to processes; it knows
//! nothing of how the server works. The seed fixes what is chosen, not when the machine does it: a run cannot be repeated
//! step by step, which is what the [`simulation`](crate::simulation) is for.

pub mod checker;
pub mod client;
mod cluster;
pub mod deployment;
mod ending;
pub mod faults;
pub mod history;
pub mod load;
mod outage;
mod run;
mod world;

pub use cluster::Cluster;
pub use deployment::{Deployment, Processes};
pub use run::{ChaosError, Options, Report, run};
