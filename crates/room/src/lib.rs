//! The rules of a Matrix room, as pure functions.
//!
//! # What it is for
//!
//! Everything that two honest servers must agree about lives here: what an event looks like in each room
//! version ([`pdu`]), how one is written ([`mod@author`]), how one that arrives is checked ([`receive`]), who may do
//! what ([`authorize`], [`power`]), what a redaction removes ([`redact`]), who may see an event
//! ([`visibility`]), what the state of a room is ([`state`]) and how two views of it become one ([`resolve`],
//! [`chain_cover`]).
//!
//! # What it is not
//!
//! It reads no clock, draws no random number, opens no file and awaits nothing: time, keys and identifiers are
//! parameters, and events that a rule needs are handed in through [`EventSource`] and [`StateView`]. Which
//! events to load, where to store them and whom to tell is the caller's.
//!
//! # Invariants
//!
//! - A [`Pdu`] is immutable, and its event id belongs to its bytes: it comes from the reference hash from room
//!   version 3 on.
//! - An event from outside reaches [`receive::Outcome::Accepted`] only through every step of [`receive`], in
//!   order; the types leave no other way.
//! - A rejected event never enters a [`StateTree`] through [`resolve`].
//! - The content of a [`StateTree`] decides its shape: equal maps have equal root hashes, whatever the order of
//!   the insertions was.
//! - The result of [`resolve`] does not depend on the order of its inputs, and its cost depends on what differs.
//! - No function recurses over data of a peer without a bound.
//!
//! # Known limits
//!
//! Room versions 1 to 5 allowed JSON that is not canonical: floats, and integers beyond ±(2^53 − 1). Such events are
//! dropped here in every version, as they cannot be represented.
//!
//! # How to add a room version
//!
//! Add one row to the table in [`versions`]. `/capabilities` and the tests iterate that table.

pub mod author;
pub mod authorize;
pub mod canonical;
pub mod chain_cover;
pub mod notify;
pub mod pdu;
pub mod power;
pub mod receive;
pub mod redact;
pub mod relation;
pub mod resolve;
pub mod state;
pub mod versions;
pub mod visibility;

pub use author::{AuthorError, Draft, EventRef, author, next_depth, select_auth_events};
pub use authorize::{
    AuthError, EventSource, StateView, TreeState, authorize_event, check_auth_events, is_surely_allowed,
};
pub use canonical::{CanonicalError, parse_client_content, parse_pdu_object};
pub use chain_cover::{ChainCover, ChainError};
pub use notify::{Class, classify};
pub use pdu::{Pdu, PduError};
pub use power::PowerLevels;
pub use receive::{Checked, Dropped, Outcome, Verified};
pub use redact::{may_request_redaction, redact_pdu, redaction_applies};
pub use relation::Relation;
pub use resolve::{ResolveError, ResolvePlan};
pub use state::{NodeId, SnapshotPolicy, StateChange, StateEntry, StateTree};
pub use versions::{RoomVersion, default_room_version, room_version, supported_room_versions};
pub use visibility::{EventView, HistoryVisibility, Membership, is_visible};
