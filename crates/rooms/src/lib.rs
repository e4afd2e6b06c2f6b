//! The room actor: the single writer of a room.
//!
//! It keeps the current state in memory, builds and authorises events with the rules of `cofactor-room`, and stages for
//! each event the rows that readers need (`cofactor_wire::room`). It answers nothing that a reader can find in the store:
//! history, state and members are read by `cofactor-history`.
//!
//! Invariants: what an event says about the room is staged together with the event; a transaction id gives one event
//! however often it comes; a member event of a local user is known in that user's own list before it is answered.
//!
//! To add a command, add a variant to `cofactor_wire::room::RoomCommand` and an arm in [`RoomEntity`]'s `decide`.

mod create;
mod directory;
mod entity;
mod handle;
mod membership;
mod presets;
mod receipts;
mod recent;
mod record;
mod redact;
mod relate;
mod send;
mod state;
mod stripped;
mod transactions;
mod typing;

pub use self::{
    entity::{RoomEntity, RoomsConfig},
    handle::RoomsHandle,
    presets::{CreateRoomOptions, Preset},
};
