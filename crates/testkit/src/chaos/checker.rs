//! Judges the [`History`] of a run. Bodies, values and keys are unique, so each rule takes one pass.
//!
//! To add a rule, write it beside those of its kind, give it the name of the property that it guards, and feed it a
//! history that breaks it in `tests.rs`: a rule that was never seen to fail proves nothing.

mod chains;
mod keys;
mod order;
mod registers;
#[cfg(test)]
mod tests;
mod whispers;

use std::{collections::BTreeMap, fmt};

use crate::chaos::history::{History, Moment};

/// Violations of one kind that are told in full; the rest are counted.
const TOLD_MAX: usize = 10;

/// A property that clients rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Property {
    /// What a client itself found to be wrong.
    Client,
    /// What was acknowledged is there.
    Kept,
    /// What was refused is not there, and nothing is there twice.
    Once,
    /// All readers see one order.
    OneOrder,
    /// What was acknowledged before something else was asked for comes before it.
    RealTime,
    /// Nobody reads what was overwritten before the read began.
    Fresh,
    /// A chain of `/sync` tokens delivers each event once, in order.
    Chain,
    /// Who left a room sees nothing of what comes after.
    Visible,
    /// A transaction id stands for one event.
    Transaction,
    /// A to-device message comes once, in order.
    ToDevice,
    /// A one-time key is handed out at most once, and none gets lost.
    OneTimeKey,
    /// Whoever shares a room with a user hears of changes of its devices.
    DeviceList,
}

impl Property {
    fn sentence(self) -> &'static str {
        match self {
            Self::Client => "clients get what the specification promises",
            Self::Kept => "an acknowledged event is never lost",
            Self::Once => "a refused event never appears, and no event appears twice",
            Self::OneOrder => "a room has one order, the same for all readers",
            Self::RealTime => "an event comes after all that were acknowledged before it was sent",
            Self::Fresh => "nobody reads what was overwritten before the read began",
            Self::Chain => "a chain of sync tokens delivers each event once, in order",
            Self::Visible => "who left a room sees nothing of what comes after",
            Self::Transaction => "a transaction id stands for one event",
            Self::ToDevice => "a to-device message comes once, in order",
            Self::OneTimeKey => "a one-time key is handed out at most once, and none gets lost",
            Self::DeviceList => "changes of devices reach everybody who shares a room",
        }
    }
}

/// Something that must not have happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// What it breaks.
    pub property: Property,
    /// What happened.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} ({}): {}", self.property, self.property.sentence(), self.what)
    }
}

/// What the rules found.
#[derive(Debug, Default)]
struct Found {
    told: Vec<Violation>,
    counts: BTreeMap<Property, usize>,
}

impl Found {
    /// Notes a violation; its description is made only if it will be told.
    fn add(&mut self, property: Property, what: impl FnOnce() -> String) {
        let count = self.counts.entry(property).or_default();
        *count += 1;
        if *count <= TOLD_MAX {
            self.told.push(Violation { property, what: what() });
        }
    }

    fn finish(mut self) -> Vec<Violation> {
        for (property, count) in self.counts {
            if let Some(more @ 1..) = count.checked_sub(TOLD_MAX) {
                self.told.push(Violation { property, what: format!("… and {more} more") });
            }
        }
        self.told.sort_by_key(|violation| violation.property);
        self.told
    }
}

/// Everything that is wrong with `history`, by property; of many violations of one kind, the first ones and their number.
pub fn check(history: &History) -> Vec<Violation> {
    let mut found = Found::default();
    for complaint in &history.complaints {
        found.add(Property::Client, || complaint.clone());
    }
    let orders = order::Orders::of(history);
    order::check(history, &orders, &mut found);
    chains::check(history, &orders, &mut found);
    registers::check(history, &orders, &mut found);
    whispers::check(history, &mut found);
    keys::check(history, &mut found);
    found.finish()
}

/// When something was asked for first, and when it was acknowledged.
type Span = (Moment, Option<Moment>);

/// Pairs in `order` of which the later was acknowledged before the earlier was asked for: one for each earlier one.
fn out_of_time(order: &[Span]) -> Vec<(usize, usize)> {
    let mut broken = Vec::new();
    let mut first_acknowledged: Option<(Moment, usize)> = None;
    for (place, (invoked, acknowledged)) in order.iter().enumerate().rev() {
        if let Some((moment, later)) = first_acknowledged
            && moment < *invoked
        {
            broken.push((place, later));
        }
        if let Some(acknowledged) = acknowledged
            && first_acknowledged.is_none_or(|(first, _)| *acknowledged < first)
        {
            first_acknowledged = Some((*acknowledged, place));
        }
    }
    broken.reverse();
    broken
}
