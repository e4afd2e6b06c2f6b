//! Receipts and typing of one room.

use std::{collections::BTreeMap, sync::Arc};

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

/// The receipts of a room as they stand, and whether these are all.
pub(crate) async fn standing(inner: &Inner, room: &RoomLook) -> Result<(Arc<Vec<ReceiptRecord>>, bool), Fault> {
    let room_id = &room.entry.room_id;
    if let Some(all) = inner.history.receipts(room_id, room.up_to).await? {
        return Ok((all, true));
    }
    let scan = Scan::new(&tables::RECEIPTS, key![room_id.as_str()], Key::EMPTY, RECEIPTS_MAX);
    let rows = inner.history.reader().store().scan(scan).await?;
    let receipts: Vec<_> = rows.iter().map(|row| record::decode(&row.value)).collect::<Result<_, _>>()?;
    Ok((Arc::new(receipts), rows.len() < RECEIPTS_MAX))
}

/// `standing`: the receipts of a room of which nothing was delivered yet.
pub(crate) async fn write(
    inner: &Inner,
    look: &Look<'_>,
    room: &RoomLook,
    standing: Option<&[ReceiptRecord]>,
) -> Result<Json, Fault> {
    let filter = EventFilter::of(&look.request.filter.room.ephemeral, &room.entry.room_id);
    let mut events = Json::array();
    if filter.takes_type("m.receipt") {
        let moved;
        let records = match standing {
            Some(standing) => standing,
            None => {
                moved = self::moved(inner, room).await?;
                &moved
            }
        };
        let receipts = content(records, &look.slot.user_id);
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

/// Receipts that moved since the room was delivered.
async fn moved(inner: &Inner, room: &RoomLook) -> Result<Vec<ReceiptRecord>, Fault> {
    let (after, up_to) = (room.after, room.up_to);
    let range = RangeRead { after, up_to, direction: Direction::Forward, limit: RECEIPTS_MAX };
    let rows = inner.history.rows(&room.entry.room_id, class::RECEIPT, range).await?;
    Ok(rows.iter().map(|row| record::decode(&row.value)).collect::<Result<_, _>>()?)
}

/// The content of `m.receipt`: event, type, user. <https://spec.matrix.org/v1.19/client-server-api/#mreceipt>
fn content(records: &[ReceiptRecord], viewer: &UserId) -> Map<String, Value> {
    // The last of each user, type and thread counts.
    let mut latest: BTreeMap<(&UserId, &str, &str), &ReceiptRecord> = BTreeMap::new();
    for receipt in records {
        let private = receipt.receipt_type == "m.read.private" && receipt.user_id != viewer;
        if receipt.receipt_type != OWN_EVENT && !private {
            latest.insert((&receipt.user_id, &receipt.receipt_type, &receipt.thread_id), receipt);
        }
    }
    let mut content = Map::new();
    for receipt in latest.into_values() {
        let mut data = json!({ "ts": receipt.ts });
        if !receipt.thread_id.is_empty() {
            data["thread_id"] = receipt.thread_id.as_str().into();
        }
        let event = content.entry(receipt.event_id.to_string()).or_insert_with(|| json!({}));
        event[&receipt.receipt_type][receipt.user_id.as_str()] = data;
    }
    content
}
