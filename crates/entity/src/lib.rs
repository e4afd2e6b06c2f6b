//! One runtime for every kind of actor.
//!
//! An entity is a state machine that decides synchronously ([`Entity::decide`]); the runtime does everything around it:
//! one live actor per entity, activation from the log, groups of changes committed in one fenced append with one write in
//! flight, answers only when durable, effects on other tables, messages to other entities that survive a crash, records
//! on the bus in order, passivation when idle. On any failed write the actor is dropped and built again from the log.
//!
//! Invariants: state changes only inside `decide`; what `decide` changed is answered after it is durable or not at all; a
//! position is published or given up before a closed position passes it.
//!
//! To add a kind of entity, implement [`Entity`] in a service crate and mount it in the node.

mod actor;
mod change;
mod entities;
mod env;
mod envelope;
mod handover;
mod keeper;
mod lease;
mod log;
mod measure;
mod outbox;
mod ownership;
mod positions;
mod publisher;
mod route;
mod shards;
mod survey;
mod takeover;
mod watch;

pub use self::{
    change::{Cx, Decision, Read},
    entities::{Entities, Placement},
    env::{Deliver, Env, EnvParts, Planted},
    keeper::{Keeper, KeeperOptions, ShardHost},
    lease::{Lease, LeaseError},
    measure::Load,
    ownership::Ownership,
    positions::{OpenPosition, Positions},
    survey::{MemberSeen, Survey},
};

use cofactor_types::{EntityId, EntityKind, Fault, Position};
use futures::future::LocalBoxFuture;
use serde::{Serialize, de::DeserializeOwned};

/// A kind of entity: a state machine over a log.
pub trait Entity: Sized + 'static {
    /// The kind; it picks the log table.
    const KIND: EntityKind;
    /// What it can be asked.
    type Command: Serialize + DeserializeOwned + Send + Sync + Unpin + 'static;
    /// What it answers.
    type Reply: Serialize + DeserializeOwned + Send + Unpin + 'static;
    /// What it needs from its node: keys, options.
    type Config: Clone + Send + Sync + Unpin + 'static;

    /// Builds the state from the store. `last` is the end of the log.
    ///
    /// # Errors
    /// If the store cannot be read; the commands that wait for the activation get the fault.
    fn load(
        env: Env,
        config: Self::Config,
        id: EntityId,
        last: Position,
    ) -> LocalBoxFuture<'static, Result<Self, Fault>>;

    /// Decides a command on the state in memory and stages what is to be written in `cx`. It must not change the state
    /// before it is sure to commit.
    fn decide(&mut self, command: Self::Command, cx: &mut Cx) -> Decision<Self>;

    /// A timer set with [`Cx::tick_in`] came due.
    fn tick(&mut self, _cx: &mut Cx) {}

    /// The command that another entity's message means.
    ///
    /// # Errors
    /// If the message cannot be read.
    fn delivered(payload: &[u8]) -> Result<Self::Command, Fault>;
}
