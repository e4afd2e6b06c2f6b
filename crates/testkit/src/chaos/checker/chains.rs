//! Rules about what chains of `/sync` tokens deliver.

use std::ops::RangeInclusive;

use super::{
    Found, Property,
    order::{Order, Orders},
};
use crate::chaos::history::{Chain, History, Text};

pub(super) fn check(history: &History, orders: &Orders<'_>, found: &mut Found) {
    for ((reader, room), chain) in &history.chains {
        if let Some(order) = orders.rooms.get(&**room) {
            Walk { reader, room, chain, order, orders }.check(found);
        }
    }
    for (user, change) in &history.device_changes {
        if change.acknowledged().is_none() {
            continue;
        }
        for (reader, _) in history.device_watchers.iter().filter(|(_, watched)| watched == user) {
            let news = history.device_news.get(&(reader.clone(), user.clone()));
            if news.is_none_or(|news| *news < change.invoked()) {
                found.add(Property::DeviceList, || {
                    format!("{reader} was not told of the change of {user}'s devices at {}", change.invoked())
                });
            }
        }
    }
}

/// One chain in one room.
struct Walk<'h> {
    reader: &'h str,
    room: &'h str,
    chain: &'h Chain,
    order: &'h Order<'h>,
    orders: &'h Orders<'h>,
}

impl Walk<'_> {
    fn check(&self, found: &mut Found) {
        let Self { reader, room, .. } = self;
        let mut covered = vec![false; self.order.entries.len()];
        let mut first = None;
        for (number, visit) in self.chain.visits.iter().enumerate() {
            let mut last = None;
            for event in visit {
                let Some(place) = self.order.by_event.get(&**event).copied() else {
                    found.add(Property::Chain, || format!("{reader} got {event}, which is not in {room}"));
                    continue;
                };
                if let Some(last) = last.filter(|last| place <= *last) {
                    let how = if covered[place] { "again" } else { "late" };
                    found.add(Property::Chain, || {
                        let what = self.order.entries[place].what();
                        format!("{reader} got {what} {how}, number {place} of {room}, after {last} in stay {number}")
                    });
                }
                covered[place] = true;
                first.get_or_insert(place);
                last = last.max(Some(place));
            }
            self.after_parting(visit, found);
        }
        for stay in self.stays() {
            // What was before the chain began is not its business.
            let from = first.map_or(*stay.start(), |first| first.max(*stay.start()));
            for hole in (from..=*stay.end()).collect::<Vec<_>>().chunk_by(|a, b| covered[*a] == covered[*b]) {
                if let [first, ..] = hole
                    && !covered[*first]
                {
                    found.add(Property::Chain, || self.hole(*first, hole.len()));
                }
            }
        }
    }

    /// Names a run of events that never came.
    fn hole(&self, first: usize, length: usize) -> String {
        let Self { reader, room, order, orders, .. } = self;
        let entry = &order.entries[first];
        let sent = entry.body.as_deref().and_then(|body| orders.sent.get(body));
        let when = match sent.and_then(|sent| sent.operation.acknowledged()) {
            Some(moment) => format!(", acknowledged at {moment}"),
            None => String::new(),
        };
        format!("{reader} never got {length} in a row, number {first} of {room} and on: {}{when}", entry.what())
    }

    /// Who has left sees nothing of what comes after. Who came back may see it; that begins another list.
    fn after_parting(&self, visit: &[Text], found: &mut Found) {
        let Self { reader, room, chain, order, .. } = self;
        let places = || visit.iter().filter_map(|event| order.by_event.get(&**event).copied());
        let own = |place: &usize| order.entries[*place].member.as_ref().filter(|(user, _)| *user == chain.user);
        let Some(parting) = places().filter(|place| own(place).is_some()).max() else { return };
        if own(&parting).is_some_and(|(_, is_joined)| *is_joined) {
            return;
        }
        for place in places().filter(|place| *place > parting) {
            found.add(Property::Visible, || {
                let what = order.entries[place].what();
                format!("{reader} got {what}, number {place} of {room}, after having left at {parting}")
            });
        }
    }

    /// From each join of the user to its leave, both included.
    fn stays(&self) -> Vec<RangeInclusive<usize>> {
        let mut stays = Vec::new();
        let mut since = None;
        for (place, entry) in self.order.entries.iter().enumerate() {
            match &entry.member {
                Some((user, true)) if *user == self.chain.user => {
                    since.get_or_insert(place);
                }
                Some((user, false)) if *user == self.chain.user => {
                    stays.extend(since.take().map(|since| since..=place));
                }
                _ => {}
            }
        }
        stays.extend(since.map(|since| since..=self.order.entries.len() - 1));
        stays
    }
}
