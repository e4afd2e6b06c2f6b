//! The end of one room's timeline.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use cofactor_store::{RangeRead, record};
use cofactor_types::Position;
use cofactor_wire::room::class;

use super::facts::{Fact, Facts, Few};
use crate::Placed;

/// Events of one room at most: what one `/sync` may ask for, and some.
const ROWS_MAX: usize = 256;

/// What an event takes beside its texts, in bytes.
const ROW_BYTES: usize = 512;

/// What a tail takes beside its events, in bytes.
const TAIL_BYTES: u64 = 256;

/// All events of a room above `low`, as far as the room was heard.
#[derive(Clone, Debug)]
pub(crate) struct Tail {
    low: Position,
    high: Position,
    /// The first record that was heard: from there on everything was, not only events. What an owner that died had not said before
    /// is below it.
    born: Option<Position>,
    /// The last receipt and the last change of devices since then; those before, where they were read.
    receipt: Position,
    devices: Position,
    earlier: BTreeMap<u64, Position>,
    rows: VecDeque<Placed>,
    bytes: usize,
    facts: Facts,
    /// Changes with everything that may change `facts`; no two tails have the same.
    version: u64,
}

impl Tail {
    /// What was read of a range that ends with the log, newest first and [`bare`]. The log could be read up to `readable` before.
    pub(crate) fn new(range: RangeRead, readable: Position, found: &[Placed], version: u64) -> Self {
        let high = found.first().map_or(readable, |newest| newest.position.max(readable));
        let mut tail = Self {
            low: high,
            high,
            born: None,
            receipt: Position::ZERO,
            devices: Position::ZERO,
            earlier: BTreeMap::new(),
            rows: VecDeque::with_capacity(found.len() + 1),
            bytes: 0,
            facts: Facts::default(),
            version,
        };
        tail.reach_back(range, found);
        tail
    }

    pub(crate) fn low(&self) -> Position {
        self.low
    }

    pub(crate) fn high(&self) -> Position {
        self.high
    }

    pub(crate) fn bytes(&self) -> u64 {
        TAIL_BYTES + (self.bytes + self.facts.bytes()) as u64
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Keeps rows that were read when this had `version`, unless they take more than `bytes_max`.
    pub(crate) fn learn<T: Fact>(&mut self, version: u64, few: Few<T>, bytes_max: u64) {
        if version == self.version {
            *T::of_mut(&mut self.facts) = Some(few);
            if self.facts.bytes() as u64 > bytes_max {
                self.facts = Facts::default();
            }
        }
    }

    /// Whether it is known where the last record of a class stood before anything was heard.
    pub(crate) fn knows_last(&self, class: u64) -> bool {
        self.earlier.contains_key(&class)
    }

    /// Keeps where the last record of a class stands, which was read when this had `version`.
    pub(crate) fn learn_last(&mut self, version: u64, class: u64, last: Position) {
        if version == self.version {
            self.earlier.insert(class, last);
        }
    }

    /// Takes what was read of a range, newest first and [`bare`], as far as it goes on where this begins.
    pub(crate) fn reach_back(&mut self, range: RangeRead, found: &[Placed]) {
        if range.up_to < self.low {
            return;
        }
        let end = match found.last() {
            Some(oldest) if found.len() >= range.limit => oldest.position.previous(),
            _ => range.after,
        };
        for placed in found.iter().filter(|placed| placed.position <= self.low) {
            self.bytes += bytes_of(placed);
            self.rows.push_front(placed.clone());
        }
        self.low = self.low.min(end);
    }

    /// Takes what the room says; whether it fits to what is here. `version` is a new one.
    pub(crate) fn hear(&mut self, position: Position, class: u64, payload: &Bytes, version: u64) -> bool {
        self.born = self.born.or(Some(position));
        self.version = version;
        match class {
            class::TIMELINE => {
                let Ok(placed) = Placed::read(position, payload) else { return false };
                // Its rows may have become readable after those that are here were read.
                self.facts.hear_event(position, &placed.event);
                if position <= self.high {
                    return self.at(position).is_some();
                }
                let placed = bare(placed);
                self.bytes += bytes_of(&placed);
                self.rows.push_back(placed);
            }
            class::RECEIPT => {
                self.receipt = position.max(self.receipt);
                match record::decode(payload) {
                    Ok(receipt) => self.facts.hear_receipt(receipt),
                    Err(_) => self.facts.forget_receipts(),
                }
            }
            class::DEVICE_LIST => self.devices = position.max(self.devices),
            class::TYPING => {}
            // Of a later release.
            _ => return false,
        }
        self.high = position.max(self.high);
        true
    }

    /// Lets the oldest events go that are too many.
    pub(crate) fn trim(&mut self, bytes_max: u64) {
        while self.rows.len() > ROWS_MAX || self.bytes() > bytes_max {
            let Some(oldest) = self.rows.pop_front() else { return };
            self.bytes -= bytes_of(&oldest);
            self.low = oldest.position;
        }
    }

    /// The newest events in a range, newest first; `None` if there may be more of them than are here.
    pub(crate) fn newest(&self, range: RangeRead) -> Option<Vec<Placed>> {
        let end = self.rows.partition_point(|placed| placed.position <= range.up_to);
        let wanted = self.rows.range(..end).rev().take_while(|placed| placed.position > range.after);
        let found: Vec<Placed> = wanted.take(range.limit).cloned().collect();
        (found.len() >= range.limit || range.after >= self.low).then_some(found)
    }

    pub(crate) fn at(&self, position: Position) -> Option<&Placed> {
        let index = self.rows.binary_search_by_key(&position, |placed| placed.position).ok()?;
        self.rows.get(index)
    }

    /// Whether nothing of `class` was said in `(after, up_to]`. The state changes only where a state event stands.
    pub(crate) fn is_quiet(&self, class: u64, after: Position, up_to: Position) -> bool {
        let earlier = self.earlier.get(&class);
        let is_known = earlier.is_some_and(|last| after >= *last) || self.born.is_some_and(|born| after >= born);
        match class {
            class::RECEIPT => is_known && after >= self.receipt,
            class::DEVICE_LIST => is_known && after >= self.devices,
            class::STATE if after >= self.low => {
                let begin = self.rows.partition_point(|placed| placed.position <= after);
                let said = self.rows.range(begin..).take_while(|placed| placed.position <= up_to);
                said.into_iter().all(|placed| placed.event.state_key.is_none())
            }
            _ => false,
        }
    }
}

/// Without what only other servers and the room itself need, and in bytes of its own: those that it came in may be many more.
pub(crate) fn bare(placed: Placed) -> Placed {
    let own = |text: &Bytes| if text.is_empty() { Bytes::new() } else { Bytes::copy_from_slice(text) };
    let mut event = Arc::unwrap_or_clone(placed.event);
    (event.json, event.unsigned, event.federation) = (own(&event.json), own(&event.unsigned), Bytes::new());
    Placed { event: Arc::new(event), ..placed }
}

fn bytes_of(placed: &Placed) -> usize {
    let event = &placed.event;
    ROW_BYTES + event.json.len() + event.unsigned.len()
}
