//! Between an event and its row.

use bytes::Bytes;
use cofactor_room::{Pdu, RoomVersion, parse_pdu_object};
use cofactor_types::Fault;
use cofactor_wire::room::{EventRecord, InThread, Totals, Transaction};
use ruma::{CanonicalJsonValue, events::TimelineEventType};

/// Members of the client form that are members of the federation form too.
const SHARED: [&str; 6] = ["content", "origin_server_ts", "sender", "state_key", "type", "redacts"];

/// What a row says beside the event itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Annotations {
    pub(crate) transaction: Option<Transaction>,
    pub(crate) totals: Totals,
    pub(crate) main: Totals,
    pub(crate) thread: Option<InThread>,
    pub(crate) notify: bool,
    pub(crate) highlight: bool,
    pub(crate) unsigned: Bytes,
}

/// The row of an event.
pub(crate) fn to_record(pdu: &Pdu, annotations: Annotations) -> Result<EventRecord, Fault> {
    let json = pdu.client_json_with_unsigned(None).map_err(|error| Fault::internal(error.to_string()))?;
    // A redaction's target stands in other places in the client form, so its federation form is kept whole.
    let elsewhere: &[&str] = if *pdu.event_type() == TimelineEventType::RoomRedaction { &[] } else { &SHARED };
    let federation = pdu.federation_json_without(elsewhere).map_err(|error| Fault::internal(error.to_string()))?;
    let Annotations { transaction, totals, main, thread, notify, highlight, unsigned } = annotations;
    Ok(EventRecord {
        event_id: pdu.event_id().to_owned(),
        event_type: pdu.event_type().to_string(),
        state_key: pdu.state_key().map(ToOwned::to_owned),
        sender: pdu.sender().to_owned(),
        ts: pdu.origin_server_ts(),
        json,
        unsigned,
        federation: federation.into(),
        transaction,
        totals,
        main,
        thread,
        notify,
        highlight,
        extremities: Vec::new(),
        hidden: false,
        redacts: pdu.redacts().map(ToOwned::to_owned),
    })
}

/// The event of a row.
pub(crate) fn to_pdu(record: &EventRecord, version: &'static RoomVersion) -> Result<Pdu, Fault> {
    let damaged = |error: &dyn std::fmt::Display| Fault::internal(format!("a stored event is damaged: {error}"));
    let mut object = parse_pdu_object(&record.json).map_err(|error| damaged(&error))?;
    let federation = parse_pdu_object(&record.federation).map_err(|error| damaged(&error))?;
    object.remove("event_id");
    if record.event_type == TimelineEventType::RoomRedaction.to_string() {
        object.clear();
    }
    object.extend(federation);
    let json = serde_json::to_string(&CanonicalJsonValue::Object(object)).map_err(|error| damaged(&error))?;
    Pdu::from_stored(&json, record.event_id.clone(), record.hidden, version).map_err(|error| damaged(&error))
}
