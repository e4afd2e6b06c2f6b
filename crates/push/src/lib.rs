//! Push rules: a user's ruleset as account data, its changes, and what it says about an event.
//!
//! Pure. Sending notifications to push gateways is not here yet. Users whose rules are the default are counted from running
//! totals (`cofactor_room::notify`); this crate judges events for the others.

mod evaluate;
mod rules;

pub use self::{
    evaluate::{Context, Outcome, evaluate},
    rules::Rules,
};
