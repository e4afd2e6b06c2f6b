//! Push rules: a user's ruleset as account data, its changes, and what it says about an event.
//!
//! Pure. Sending notifications to push gateways is not here yet. Users whose rules are the default are counted from running
//! totals (`cofactor_room::notify`); this crate judges events for the others.
//!
//! Only the *types* of rules are the library's: events and patterns come from strangers, so what reads them here neither
//! recurses nor goes back, and says what it costs.

mod evaluate;
mod event;
mod glob;
mod place;
mod rules;

pub use self::{
    evaluate::{Context, Judge, NotificationPower, Outcome},
    glob::Work,
    rules::Rules,
};
