//! From node to node: a call of an entity or a service that lives elsewhere, and how it is carried.

use std::{fmt::Debug, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use cofactor_types::{EntityId, Epoch, Fault, ShardId};
use serde::{Deserialize, Serialize};

/// Whom a call is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// An entity; the frame is one of its commands, the answer one of its replies.
    Entity(EntityId),
    /// `/sync`; the frame is the request, the answer an encoded JSON object.
    Sync,
    /// The keeper of shards; the frame is a [`ShardCall`].
    Shards,
    /// The node itself; the frame is empty, the answer a [`crate::status::NodeStatus`].
    Status,
}

/// A call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Whom it is for.
    pub target: Target,
    /// What is asked: a MessagePack frame of this crate.
    pub frame: Bytes,
    /// How long the caller waits for the answer.
    pub timeout: Duration,
    /// The caller's trace, as a `traceparent` header. <https://www.w3.org/TR/trace-context/>
    pub trace: Option<String>,
}

/// What the keeper of shards is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShardCall {
    /// The sender has given these shards away, and they are the receiver's by assignment: it need not wait to notice.
    Released {
        /// Which.
        shards: Vec<ShardId>,
    },
    /// The sender is about to make these shards the receiver's, in these epochs. A receiver that answers without a fault looks
    /// after them from then on, whether or not the sender comes to it: nobody else can take what the row says is its.
    Coming {
        /// Which, and in which epoch.
        shards: Vec<(ShardId, Epoch)>,
    },
}

/// Answers calls.
#[async_trait]
pub trait Serve: Debug + Send + Sync + 'static {
    /// Answers one call.
    ///
    /// # Errors
    /// Those of whoever is called; [`cofactor_types::ErrorClass::NotOwner`] if the entity is not this node's.
    async fn serve(&self, call: Call) -> Result<Bytes, Fault>;
}

/// Carries calls to other nodes.
#[async_trait]
pub trait Transport: Debug + Send + Sync + 'static {
    /// Calls the node that listens at `address`, a host and port.
    ///
    /// # Errors
    /// The answerer's own faults; [`cofactor_types::ErrorClass::Unavailable`] if the call did not reach it, so that
    /// nothing happened; [`cofactor_types::ErrorClass::Unknown`] if it may have.
    async fn call(&self, address: &str, call: Call) -> Result<Bytes, Fault>;
}
