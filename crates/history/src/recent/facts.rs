//! What else is known of a room beside its events: rows that every answer about it asks for.
//!
//! They were read from the store, and are true until the room says something that may change them. What an event or a receipt says
//! of the rows is what its owner wrote with it: [`EventRecord::own_receipts`] is asked by both.

use std::sync::Arc;

use cofactor_room::HistoryVisibility;
use cofactor_types::Position;
use cofactor_wire::{
    relation::Aggregate,
    room::{EventRecord, Mention, ReceiptRecord, Summary},
};
use ruma::OwnedUserId;

/// Rows of one kind that are held; where there are more, what is needed of them is read each time.
pub(crate) const ROWS_MAX: usize = 64;

/// What a row takes beside its bytes in the store.
const ROW_BYTES: usize = 128;

/// What may change rows of a room stands in an event under these names, or under names that are written with escapes.
const TELLING: [&str; 3] = ["m.relates_to", "user_ids", "\\u"];

/// All rows of one kind, or that they are too many.
#[derive(Debug)]
pub(crate) struct Few<T> {
    /// `None`: too many.
    pub(crate) rows: Option<Arc<Vec<T>>>,
    /// Rows at or below it were not asked for.
    pub(crate) from: Position,
    bytes: usize,
}

impl<T> Clone for Few<T> {
    fn clone(&self) -> Self {
        Self { rows: self.rows.clone(), from: self.from, bytes: self.bytes }
    }
}

impl<T> Few<T> {
    /// What was read, with its bytes in the store.
    pub(crate) fn new(rows: Vec<T>, bytes: usize) -> Self {
        let bytes = bytes + rows.len() * ROW_BYTES;
        let rows = (rows.len() <= ROWS_MAX).then(|| Arc::new(rows));
        Self { bytes: if rows.is_some() { bytes } else { 0 }, rows, from: Position::ZERO }
    }

    /// The same, of rows above `from` alone.
    pub(crate) fn above(self, from: Position) -> Self {
        Self { from, ..self }
    }
}

/// A mention of a user.
#[derive(Clone, Debug)]
pub(crate) struct Mentioned {
    pub(crate) user_id: OwnedUserId,
    pub(crate) position: Position,
    pub(crate) mention: Mention,
}

/// What the children of an event say about it.
#[derive(Clone, Debug)]
pub(crate) struct Aggregated {
    pub(crate) position: Position,
    pub(crate) aggregate: Aggregate,
}

/// A history visibility, and from where on it is so.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Visibility {
    pub(crate) position: Position,
    pub(crate) visibility: HistoryVisibility,
}

/// The rows of one room.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    receipts: Option<Few<ReceiptRecord>>,
    mentions: Option<Few<Mentioned>>,
    aggregates: Option<Few<Aggregated>>,
    visibilities: Option<Few<Visibility>>,
    summary: Option<Few<Summary>>,
}

/// A kind of rows.
pub(crate) trait Fact: Sized {
    fn of(facts: &Facts) -> &Option<Few<Self>>;
    fn of_mut(facts: &mut Facts) -> &mut Option<Few<Self>>;
}

macro_rules! facts {
    ($($kind:ty: $field:ident),*) => {
        $(impl Fact for $kind {
            fn of(facts: &Facts) -> &Option<Few<Self>> {
                &facts.$field
            }

            fn of_mut(facts: &mut Facts) -> &mut Option<Few<Self>> {
                &mut facts.$field
            }
        })*

        impl Facts {
            pub(crate) fn bytes(&self) -> usize {
                [$(self.$field.as_ref().map_or(0, |few| few.bytes)),*].into_iter().sum()
            }
        }
    };
}

facts!(ReceiptRecord: receipts, Mentioned: mentions, Aggregated: aggregates, Visibility: visibilities, Summary: summary);

impl Facts {
    /// Takes what an event changes.
    pub(crate) fn hear_event(&mut self, position: Position, event: &EventRecord) {
        match (event.state_key.is_some(), event.event_type.as_str()) {
            (true, "m.room.member") => self.summary = None,
            (true, "m.room.history_visibility") => self.visibilities = None,
            _ => {}
        }
        if (self.mentions.is_some() || self.aggregates.is_some()) && tells_of_others(event) {
            (self.mentions, self.aggregates) = (None, None);
        }
        if self.receipts.is_some() {
            event.own_receipts(position).into_iter().flatten().for_each(|receipt| self.hear_receipt(receipt));
        }
    }

    /// Takes a receipt: the last of each user, type and thread stands.
    pub(crate) fn hear_receipt(&mut self, receipt: ReceiptRecord) {
        let Some(few) = &mut self.receipts else { return };
        let Some(rows) = &mut few.rows else { return };
        fn key(receipt: &ReceiptRecord) -> (&str, &str, &str) {
            (receipt.user_id.as_str(), &receipt.receipt_type, &receipt.thread_id)
        }
        let rows = Arc::make_mut(rows);
        let is_full = rows.len() >= ROWS_MAX;
        match rows.iter_mut().find(|known| key(known) == key(&receipt)) {
            // What was read may be newer than what is heard.
            Some(known) if known.position > receipt.position => {}
            Some(known) => *known = receipt,
            None if !is_full => {
                let texts = receipt.user_id.as_str().len() + receipt.event_id.as_str().len() + receipt.thread_id.len();
                few.bytes += 2 * ROW_BYTES + texts;
                // In the order of the store.
                let at = rows.partition_point(|known| key(known) < key(&receipt));
                rows.insert(at, receipt);
            }
            None => *few = Few { rows: None, from: few.from, bytes: 0 },
        }
    }

    /// Forgets the receipts.
    pub(crate) fn forget_receipts(&mut self) {
        self.receipts = None;
    }
}

/// Whether an event may be the child of another, mention somebody, or take such a thing back.
fn tells_of_others(event: &EventRecord) -> bool {
    let names = |json: &str| TELLING.iter().any(|name| json.contains(name));
    event.is_redaction() || std::str::from_utf8(&event.json).map_or(true, names)
}
