//! Events as clients get them: stored bytes, copied, with the few members that depend on the reader.

use cofactor_wire::room::EventRecord;
use ruma::{DeviceId, RoomId, UserId};

/// For whom an event is rendered.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    /// The user.
    pub user_id: &'a UserId,
    /// The device, which alone gets its own transaction ids back.
    pub device_id: &'a DeviceId,
    /// The present time, for `age`, in milliseconds.
    pub now_ms: u64,
}

/// Appends the event's JSON to `out`; with `room_id` where the endpoint wants it.
pub fn render(out: &mut Vec<u8>, event: &EventRecord, room_id: Option<&RoomId>, reader: &Reader) {
    // The stored object ends with its brace; what is added goes before it.
    let body = event.json.strip_suffix(b"}").unwrap_or(&event.json);
    out.extend_from_slice(body);
    if let Some(room_id) = room_id {
        out.extend_from_slice(b",\"room_id\":");
        string(out, room_id.as_str());
    }
    let age = reader.now_ms.saturating_sub(event.ts.get().into());
    out.extend_from_slice(b",\"unsigned\":{\"age\":");
    out.extend_from_slice(age.to_string().as_bytes());
    if let Some(transaction) = &event.transaction
        && event.sender == reader.user_id
        && transaction.device_id == reader.device_id
    {
        out.extend_from_slice(b",\"transaction_id\":");
        string(out, transaction.txn_id.as_str());
    }
    if !event.unsigned.is_empty() {
        out.push(b',');
        out.extend_from_slice(&event.unsigned);
    }
    out.extend_from_slice(b"}}");
}

/// Appends a JSON string.
fn string(out: &mut Vec<u8>, text: &str) {
    // Writing into a vector cannot fail.
    let _ = serde_json::to_writer(out, text);
}
