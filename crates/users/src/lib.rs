//! The user actor: the single writer of everything about one local user.
//!
//! Account, devices and tokens, profile, account data, room list, keys, key backup and to-device messages. What is small
//! stays in memory; readers find everything in the `user_state` rows and in the user's log (`cofactor_wire::user`).
//!
//! Invariants: passwords and tokens reach this crate only as hashes; a one-time key is handed out once, ever; a to-device
//! delivery that is repeated is queued once; what other users may see of devices is told to every joined room.
//!
//! To add a command, add a variant to `cofactor_wire::user_command::UserCommand` and an arm in [`UserEntity`]'s `decide`.

mod account;
mod backup;
mod data;
mod devices;
mod entity;
mod handle;
mod issued;
mod keys;
mod reads;
mod rooms;
mod to_device;

pub use self::{
    entity::UserEntity,
    handle::{Addressed, UsersHandle, token_hash},
    reads::SignedKeys,
};
