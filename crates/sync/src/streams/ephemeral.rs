//! Receipts and typing of one room.

use std::collections::BTreeMap;

use cofactor_history::EventFilter;
use cofactor_store::{Direction, Key, RangeRead, Scan, key, record, tables};
use cofactor_types::Fault;
use cofactor_wire::room::{OWN_EVENT, ReceiptRecord, class};
use ruma::UserId;
use serde_json::{Map, Value, json};

use crate::{
    answer::{Look, RoomLook},
    json::Json,
    service::Inner,
};

/// Receipts in one answer.
const RECEIPTS_MAX: usize = 5_000;

pub(crate) async fn write(inner: &Inner, look: &Look<'_>, room: &RoomLook) -> Result<Json, Fault> {
    let filter = EventFilter::of(&look.request.filter.room.ephemeral, &room.entry.room_id);
    let mut events = Json::array();
    if filter.takes_type("m.receipt") {
        let receipts = receipts(inner, room, &look.slot.user_id).await?;
        if !receipts.is_empty() {
            let event = json!({ "type": "m.receipt", "content": receipts });
            events.element(event.to_string().as_bytes());
        }
    }
    if filter.takes_type("m.typing")
        && let Some((position, typing)) = inner.typing(&room.entry.room_id)
        && position > room.after
        && !(room.is_new && typing.user_ids.is_empty())
    {
        let event = json!({ "type": "m.typing", "content": { "user_ids": typing.user_ids } });
        events.element(event.to_string().as_bytes());
    }
    Ok(events)
}

/// The content of `m.receipt`: event, type, user. <https://spec.matrix.org/v1.19/client-server-api/#mreceipt>
async fn receipts(inner: &Inner, room: &RoomLook, viewer: &UserId) -> Result<Map<String, Value>, Fault> {
    let history = &inner.history;
    let records: Vec<ReceiptRecord> = if room.is_new {
        let scan = Scan::new(&tables::RECEIPTS, key![room.entry.room_id.as_str()], Key::EMPTY, RECEIPTS_MAX);
        let rows = history.reader().store().scan(scan).await?;
        rows.iter().map(|row| record::decode(&row.value)).collect::<Result<_, _>>()?
    } else {
        let range =
            RangeRead { after: room.after, up_to: room.up_to, direction: Direction::Forward, limit: RECEIPTS_MAX };
        let rows = history.rows(&room.entry.room_id, class::RECEIPT, range).await?;
        rows.iter().map(|row| record::decode(&row.value)).collect::<Result<_, _>>()?
    };
    // The last of each user, type and thread counts.
    let mut latest: BTreeMap<(String, String, String), ReceiptRecord> = BTreeMap::new();
    for receipt in records {
        let private = receipt.receipt_type == "m.read.private" && receipt.user_id != viewer;
        if receipt.receipt_type != OWN_EVENT && !private {
            let key = (receipt.user_id.to_string(), receipt.receipt_type.clone(), receipt.thread_id.clone());
            latest.insert(key, receipt);
        }
    }
    let mut content = Map::new();
    for receipt in latest.into_values() {
        let mut data = json!({ "ts": receipt.ts });
        if !receipt.thread_id.is_empty() {
            data["thread_id"] = receipt.thread_id.into();
        }
        let event = content.entry(receipt.event_id.to_string()).or_insert_with(|| json!({}));
        event[receipt.receipt_type][receipt.user_id.as_str()] = data;
    }
    Ok(content)
}
