//! The end of one room's timeline.

use std::collections::VecDeque;

use bytes::Bytes;
use cofactor_store::{RangeRead, record};
use cofactor_types::Position;
use cofactor_wire::room::class;

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
    /// The last receipt and the last change of devices since then.
    receipt: Position,
    devices: Position,
    rows: VecDeque<Placed>,
    bytes: usize,
}

impl Tail {
    /// What was read of a range that ends with the log, newest first. The log could be read up to `readable` before.
    pub(crate) fn new(range: RangeRead, readable: Position, found: &[Placed]) -> Self {
        let (rows, bytes, born) = (VecDeque::with_capacity(found.len() + 1), 0, None);
        let high = found.first().map_or(readable, |newest| newest.position.max(readable));
        let mut tail = Self { low: high, high, born, receipt: Position::ZERO, devices: Position::ZERO, rows, bytes };
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
        TAIL_BYTES + self.bytes as u64
    }

    /// Takes what was read of a range, newest first, as far as it goes on where this begins.
    pub(crate) fn reach_back(&mut self, range: RangeRead, found: &[Placed]) {
        if range.up_to < self.low {
            return;
        }
        let end = match found.last() {
            Some(oldest) if found.len() >= range.limit => oldest.position.previous(),
            _ => range.after,
        };
        for placed in found.iter().filter(|placed| placed.position <= self.low) {
            let placed = without_federation(placed.clone());
            self.bytes += bytes_of(&placed);
            self.rows.push_front(placed);
        }
        self.low = self.low.min(end);
    }

    /// Takes what the room says; whether it fits to what is here.
    pub(crate) fn hear(&mut self, position: Position, class: u64, payload: &Bytes) -> bool {
        self.born = self.born.or(Some(position));
        match class {
            class::TIMELINE if position <= self.high => return self.at(position).is_some(),
            class::TIMELINE => {
                let Ok(event) = record::decode(payload) else { return false };
                let placed = without_federation(Placed { position, event });
                self.bytes += bytes_of(&placed);
                self.rows.push_back(placed);
            }
            class::RECEIPT => self.receipt = position.max(self.receipt),
            class::DEVICE_LIST => self.devices = position.max(self.devices),
            _ => {}
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
        let heard_since = self.born.is_some_and(|born| after >= born);
        match class {
            class::RECEIPT => heard_since && after >= self.receipt,
            class::DEVICE_LIST => heard_since && after >= self.devices,
            class::STATE if after >= self.low => {
                let begin = self.rows.partition_point(|placed| placed.position <= after);
                let said = self.rows.range(begin..).take_while(|placed| placed.position <= up_to);
                said.into_iter().all(|placed| placed.event.state_key.is_none())
            }
            _ => false,
        }
    }
}

/// What only other servers and the room itself need.
fn without_federation(mut placed: Placed) -> Placed {
    placed.event.federation = Bytes::new();
    placed
}

fn bytes_of(placed: &Placed) -> usize {
    let event = &placed.event;
    ROW_BYTES + event.json.len() + event.unsigned.len()
}
