//! Rules about the order of a room.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Found, Property, Span, out_of_time};
use crate::{
    chaos::history::{Entry, History, Sent},
    checker::places,
};

/// The order of one room, as the first of its readers saw it.
#[derive(Debug)]
pub(super) struct Order<'h> {
    pub(super) entries: &'h [Entry],
    /// Places by event id.
    pub(super) by_event: HashMap<&'h str, usize>,
    /// Places by body.
    pub(super) by_body: HashMap<&'h str, usize>,
    /// Event ids and bodies that are there more than once.
    repeated: Vec<&'h str>,
}

/// The orders of all rooms.
#[derive(Debug)]
pub(super) struct Orders<'h> {
    pub(super) rooms: BTreeMap<&'h str, Order<'h>>,
    /// What was sent, by body.
    pub(super) sent: HashMap<&'h str, &'h Sent>,
}

impl<'h> Orders<'h> {
    pub(super) fn of(history: &'h History) -> Self {
        let mut rooms = BTreeMap::new();
        for reading in &history.readings {
            rooms.entry(&*reading.room).or_insert_with(|| Order::of(&reading.entries));
        }
        Self { rooms, sent: history.sent.iter().map(|sent| (&*sent.body, sent)).collect() }
    }
}

impl<'h> Order<'h> {
    fn of(entries: &'h [Entry]) -> Self {
        let (by_event, mut repeated) = places(entries.iter().map(|entry| &*entry.event));
        let mut by_body = HashMap::new();
        for (place, entry) in entries.iter().enumerate() {
            if let Some(body) = &entry.body
                && by_body.insert(&**body, place).is_some()
            {
                repeated.push(body);
            }
        }
        Self { entries, by_event, by_body, repeated }
    }
}

pub(super) fn check(history: &History, orders: &Orders<'_>, found: &mut Found) {
    for (room, order) in &orders.rooms {
        for twice in &order.repeated {
            found.add(Property::Once, || format!("{twice} is in the history of {room} more than once"));
        }
        strangers(room, order, &orders.sent, found);
        real_time(room, order, &orders.sent, found);
    }
    readers_agree(history, orders, found);
    tails(history, orders, found);
    for sent in &history.sent {
        kept(sent, orders, found);
    }
    transactions(history, found);
}

/// Every reader sees what the first one sees.
fn readers_agree(history: &History, orders: &Orders<'_>, found: &mut Found) {
    for reading in &history.readings {
        let Some(order) = orders.rooms.get(&*reading.room) else { continue };
        let (own, first) = (&reading.entries, order.entries);
        if own.as_slice() == first {
            continue;
        }
        let place = own.iter().zip(first).position(|(own, first)| own != first);
        let place = place.unwrap_or(own.len().min(first.len()));
        found.add(Property::OneOrder, || {
            let (reader, room) = (&reading.reader, &reading.room);
            let (own_length, first_length) = (own.len(), first.len());
            let (own, first) = (own.get(place), first.get(place));
            format!(
                "{reader} sees {own_length} events in {room} and the first reader {first_length}; \
                 at place {place} {own:?} and {first:?}"
            )
        });
    }
}

/// An initial sync ends where the history ends.
fn tails(history: &History, orders: &Orders<'_>, found: &mut Found) {
    for tail in &history.tails {
        let Some(order) = orders.rooms.get(&*tail.room) else { continue };
        let from = order.entries.len().saturating_sub(tail.events.len());
        let end = order.entries[from..].iter().map(|entry| &entry.event);
        if !end.eq(&tail.events) {
            found.add(Property::OneOrder, || {
                format!("an initial sync of {} does not end {} as its history does", tail.reader, tail.room)
            });
        }
    }
}

/// Acknowledged events are there under their ids; refused ones are not there.
fn kept(sent: &Sent, orders: &Orders<'_>, found: &mut Found) {
    let Some(order) = orders.rooms.get(&*sent.room) else { return };
    let entry = order.by_body.get(&*sent.body).map(|place| &order.entries[*place]);
    let (body, room) = (&sent.body, &sent.room);
    match entry {
        Some(entry) if sent.operation.is_refused() => {
            found.add(Property::Once, || format!("{body} was refused and is in {room} as {}", entry.event));
        }
        Some(entry) => {
            for event in sent.operation.answers().filter(|event| **event != entry.event) {
                found.add(Property::Kept, || {
                    format!("{body} was acknowledged as {event} and is in {room} as {}", entry.event)
                });
            }
        }
        None => {
            if let Some(event) = sent.operation.answers().next() {
                found.add(Property::Kept, || format!("{body} was acknowledged as {event} and is not in {room}"));
            }
        }
    }
}

/// Nothing is there that nobody sent.
fn strangers(room: &str, order: &Order<'_>, sent: &HashMap<&str, &Sent>, found: &mut Found) {
    for body in order.entries.iter().filter_map(|entry| entry.body.as_deref()) {
        if sent.get(body).is_none_or(|sent| &*sent.room != room) {
            found.add(Property::Once, || format!("{body} is in {room}, where nobody sent it"));
        }
    }
}

fn real_time(room: &str, order: &Order<'_>, sent: &HashMap<&str, &Sent>, found: &mut Found) {
    let known: Vec<(&str, Span)> = order
        .entries
        .iter()
        .filter_map(|entry| sent.get(entry.body.as_deref()?))
        .map(|sent| (&*sent.body, (sent.operation.invoked(), sent.operation.acknowledged())))
        .collect();
    let spans: Vec<Span> = known.iter().map(|(_, span)| *span).collect();
    for (earlier, later) in out_of_time(&spans) {
        let (earlier, later) = (known[earlier].0, known[later].0);
        found.add(Property::RealTime, || {
            format!("{later} was acknowledged before {earlier} was sent and comes after it in {room}")
        });
    }
}

fn transactions(history: &History, found: &mut Found) {
    for sent in &history.sent {
        let Some((device, transaction)) = &sent.transaction else { continue };
        let events: HashSet<_> = sent.operation.answers().collect();
        if events.len() > 1 {
            found.add(Property::Transaction, || {
                format!("the transaction {transaction} of {device} was answered with {events:?}")
            });
        }
    }
}
