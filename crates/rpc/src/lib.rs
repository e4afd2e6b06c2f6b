//! Carries the messages of `wire` from node to node over gRPC (`proto/cofactor.proto`).
//!
//! What it promises: a call that failed with [`Unavailable`](cofactor_types::ErrorClass::Unavailable) was not begun by
//! the other node; where that is not certain, the class is [`Unknown`](cofactor_types::ErrorClass::Unknown). A call takes
//! no longer than its timeout, whatever the other node does, and the other node stops its work when the caller has
//! stopped waiting.
//!
//! What it is not: it neither finds out who owns an entity nor tries again; both are the router's. It reads no frame.
//!
//! A node answers only callers that prove to belong to the cluster, see [`Security`]. Every queue and map has a bound
//! in [`ServerOptions`] or [`ClientOptions`].
//!
//! To let the envelope carry more, add a field to the `.proto` file and to `envelope.rs`, and add a golden file; the old
//! ones decode for ever. To let nodes say more, add a message to `wire`: nothing changes here.

mod client;
mod envelope;
mod gate;
mod incoming;
mod latch;
mod options;
mod pool;
mod server;

pub use client::RpcTransport;
pub use options::{ClientOptions, MutualTls, Security, SecurityError, ServerOptions};
pub use server::{BindError, RpcServer, Running};
