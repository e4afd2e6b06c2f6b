//! Rules about registers: state, account data, receipts, device keys.

use std::collections::{BTreeMap, HashMap};

use super::{
    Found, Property,
    order::{Order, Orders},
};
use crate::chaos::history::{History, Moment, Read, Write};

/// The writes of one register.
#[derive(Default)]
struct Register<'h> {
    writes: HashMap<&'h str, &'h Write>,
    /// Acknowledgements, each with the write that was asked for last among those acknowledged by then.
    latest: Vec<(Moment, &'h Write)>,
}

pub(super) fn check(history: &History, orders: &Orders<'_>, found: &mut Found) {
    let mut registers: BTreeMap<&str, Register<'_>> = BTreeMap::new();
    for write in &history.writes {
        let register = registers.entry(&write.register).or_default();
        register.writes.insert(&write.value, write);
        register.latest.extend(write.operation.acknowledged().map(|moment| (moment, write)));
    }
    for register in registers.values_mut() {
        register.latest.sort_by_key(|(moment, _)| *moment);
        let mut latest: Option<&Write> = None;
        for (_, write) in &mut register.latest {
            let later = latest.filter(|latest| latest.operation.invoked() > write.operation.invoked());
            *write = later.unwrap_or(*write);
            latest = Some(*write);
        }
    }
    let overwritten = overwritten_at(orders, &registers);
    let none = Register::default();
    for read in &history.reads {
        let register = registers.get(&*read.register).unwrap_or(&none);
        register.check(read, history, found);
        let Some(order) = read.room.as_ref().and_then(|room| orders.rooms.get(&**room)) else { continue };
        in_the_order(read, order, &overwritten, found);
    }
}

impl Register<'_> {
    /// The rule that holds without knowing in which order concurrent writes took effect.
    fn check(&self, read: &Read, history: &History, found: &mut Found) {
        let before = self.latest.partition_point(|(moment, _)| *moment < read.invoked);
        let latest = before.checked_sub(1).map(|last| self.latest[last].1);
        let register = &read.register;
        let Some(value) = &read.value else {
            if let Some(latest) = latest {
                found.add(Property::Fresh, || {
                    format!("{register} was read as empty after {} was acknowledged", latest.value)
                });
            }
            return;
        };
        let Some(write) = self.writes.get(&**value) else {
            found.add(Property::Fresh, || format!("{value} was read from {register}, where nobody put it"));
            return;
        };
        if write.operation.is_refused() {
            found.add(Property::Fresh, || format!("{value} was read from {register}, which had refused it"));
        }
        // A request of unknown outcome may take effect late, and would then be the newest.
        let acknowledged = write.operation.acknowledged().filter(|_| !write.operation.is_in_doubt());
        if let (Some(acknowledged), Some(latest)) = (acknowledged, latest)
            && latest.operation.invoked() > acknowledged
        {
            found.add(Property::Fresh, || {
                let (newer, at) = (&latest.value, read.invoked);
                let after = latest.operation.acknowledged().unwrap_or_default();
                let others = history.reads.iter().filter(|other| other.register == *register && other.invoked > after);
                let others: Vec<_> = others.map(|other| format!("{:?} at {}", other.value, other.invoked)).collect();
                let others = others.join(", ");
                format!("{value} was read from {register} at {at}, after {newer} had been acknowledged at {after}; since: {others}")
            });
        }
    }
}

/// For each value of a register of state, when the first of the values after it in the room's order was acknowledged.
fn overwritten_at<'h>(
    orders: &Orders<'h>,
    registers: &BTreeMap<&str, Register<'h>>,
) -> HashMap<(&'h str, &'h str), Moment> {
    let register_of: HashMap<&str, &Write> =
        registers.values().flat_map(|register| register.writes.iter().map(|(value, write)| (*value, *write))).collect();
    let mut overwritten = HashMap::new();
    for order in orders.rooms.values() {
        let mut acknowledged: HashMap<&str, Moment> = HashMap::new();
        for entry in order.entries.iter().rev() {
            let Some(write) = entry.body.as_deref().and_then(|body| register_of.get(body)) else { continue };
            if let Some(moment) = acknowledged.get(&*write.register) {
                overwritten.insert((&*write.register, &*write.value), *moment);
            }
            if let Some(moment) = write.operation.acknowledged() {
                let first = acknowledged.entry(&*write.register).or_insert(moment);
                *first = moment.min(*first);
            }
        }
    }
    overwritten
}

/// The rule for state, whose writes have an order that everybody sees.
fn in_the_order(read: &Read, order: &Order<'_>, overwritten: &HashMap<(&str, &str), Moment>, found: &mut Found) {
    let Some(value) = read.value.as_deref() else { return };
    let register = &*read.register;
    if !order.by_body.contains_key(value) {
        found.add(Property::Fresh, || format!("{value} was read from {register} and is not in the room's history"));
    }
    if let Some(moment) = overwritten.get(&(register, value))
        && *moment < read.invoked
    {
        found.add(Property::Fresh, || {
            let at = read.invoked;
            format!("{value} was read from {register} at {at}; what follows it was acknowledged at {moment}")
        });
    }
}
