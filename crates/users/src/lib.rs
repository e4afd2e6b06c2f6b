//! The user actor.
