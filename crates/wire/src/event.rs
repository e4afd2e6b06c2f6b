//! What an event's record says beyond its fields, and reading one without copying its texts.

use bytes::Bytes;
use cofactor_types::{Fault, Position};
use ruma::{MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedUserId};
use serde::Deserialize;

use crate::room::{EventRecord, InThread, OWN_EVENT, ReceiptRecord, Totals, Transaction};

/// An [`EventRecord`] whose texts still lie in the row.
#[derive(Deserialize)]
struct Borrowed<'a> {
    event_id: OwnedEventId,
    #[serde(rename = "type")]
    event_type: String,
    #[serde(default)]
    state_key: Option<String>,
    sender: OwnedUserId,
    ts: MilliSecondsSinceUnixEpoch,
    json: &'a [u8],
    #[serde(default)]
    unsigned: &'a [u8],
    federation: &'a [u8],
    #[serde(default)]
    transaction: Option<Transaction>,
    totals: Totals,
    #[serde(default)]
    main: Totals,
    #[serde(default)]
    thread: Option<InThread>,
    #[serde(default)]
    notify: bool,
    #[serde(default)]
    highlight: bool,
    #[serde(default)]
    extremities: Vec<OwnedEventId>,
    #[serde(default)]
    hidden: bool,
    #[serde(default)]
    redacts: Option<OwnedEventId>,
}

impl EventRecord {
    /// The event in `row`. Its `json`, `unsigned` and `federation` are parts of `row`, and keep all of it in memory.
    ///
    /// # Errors
    /// A sentence, if there is none.
    pub fn read(row: &Bytes) -> Result<Self, Fault> {
        let damaged = |error| Fault::internal(format!("a stored event is damaged: {error}"));
        let event: Borrowed<'_> = rmp_serde::from_slice(row).map_err(damaged)?;
        Ok(Self {
            event_id: event.event_id,
            event_type: event.event_type,
            state_key: event.state_key,
            sender: event.sender,
            ts: event.ts,
            json: part(row, event.json),
            unsigned: part(row, event.unsigned),
            federation: part(row, event.federation),
            transaction: event.transaction,
            totals: event.totals,
            main: event.main,
            thread: event.thread,
            notify: event.notify,
            highlight: event.highlight,
            extremities: event.extremities,
            hidden: event.hidden,
            redacts: event.redacts,
        })
    }

    /// Whether it takes away what another says.
    pub fn is_redaction(&self) -> bool {
        self.redacts.is_some() || self.event_type == "m.room.redaction"
    }

    /// About as many bytes as a client gets for it.
    pub fn rendered_bytes(&self) -> usize {
        /// What is added for the reader.
        const ADDED: usize = 160;
        self.json.len() + self.unsigned.len() + ADDED
    }

    /// What stands in the `receipts` table because of this event, which stands at `position`: whoever sends has read what was
    /// before: everything, or the thread alone where threads are told apart. `None`: it does not notify.
    pub fn own_receipts(&self, position: Position) -> Option<[ReceiptRecord; 2]> {
        let own = |thread_id: &str, scoped| ReceiptRecord {
            user_id: self.sender.clone(),
            receipt_type: OWN_EVENT.to_owned(),
            thread_id: thread_id.to_owned(),
            event_id: self.event_id.clone(),
            event_position: position,
            totals: self.totals,
            scoped,
            ts: self.ts,
            position,
        };
        let of_the_thread = match &self.thread {
            Some(thread) => own(thread.root.as_str(), thread.totals),
            None => own("main", self.main),
        };
        self.notify.then(|| [own("", self.main), of_the_thread])
    }
}

fn part(row: &Bytes, text: &[u8]) -> Bytes {
    if text.is_empty() { Bytes::new() } else { row.slice_ref(text) }
}
