//! Events as clients get them: stored bytes, copied, with the few members that depend on the reader.

use cofactor_types::split_property_path;
use ruma::{DeviceId, RoomId, UserId};
use serde_json::{Map, Value};

use crate::{Bundle, Bundles, Placed};

/// For whom an event is rendered.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    /// The user.
    pub user_id: &'a UserId,
    /// The device, which alone gets its own transaction ids back.
    pub device_id: &'a DeviceId,
    /// The present time, for `age`, in milliseconds.
    pub now_ms: u64,
    /// The fields wanted; `None`: all.
    pub fields: Option<&'a EventFields>,
    /// What goes with the events; `None`: nothing does.
    pub bundles: Option<&'a Bundles>,
}

/// Fields wanted beyond this number are all fields: a server may include more than was asked for.
const FIELDS_MAX: usize = 100;

/// Fields of events that a client wants. <https://spec.matrix.org/v1.19/client-server-api/#filtering>
#[derive(Clone, Debug)]
pub struct EventFields(Vec<Vec<String>>);

impl EventFields {
    /// The fields that a filter names; `None`: all.
    pub fn of(fields: Option<&[String]>) -> Option<Self> {
        let fields = fields.filter(|fields| fields.len() <= FIELDS_MAX)?;
        Some(Self(fields.iter().map(|field| split_property_path(field)).collect()))
    }

    /// What of an event is wanted.
    fn pick(&self, event: &Value) -> Value {
        let mut picked = Value::Object(Map::new());
        for path in &self.0 {
            let Some(value) = path.iter().try_fold(event, |value, name| value.as_object()?.get(name)) else { continue };
            let place = path.iter().try_fold(&mut picked, |place, name| {
                Some(place.as_object_mut()?.entry(name).or_insert_with(|| Value::Object(Map::new())))
            });
            if let Some(place) = place {
                *place = value.clone();
            }
        }
        picked
    }
}

/// Appends the event's JSON to `out`; with `room_id` where the endpoint wants it.
pub fn render(out: &mut Vec<u8>, placed: &Placed, room_id: Option<&RoomId>, reader: &Reader) {
    let start = out.len();
    render_whole(out, placed, room_id, reader, Depth::Served);
    if let Some(fields) = reader.fields {
        // What was just written is JSON.
        let event = serde_json::from_slice(&out[start..]).unwrap_or_default();
        out.truncate(start);
        let _ = serde_json::to_writer(out, &fields.pick(&event));
    }
}

/// How far an event is from the one that is served; the deepest brings nothing with it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// It is served itself.
    Served,
    /// It goes with one that is served.
    Bundled,
    /// It goes with one that goes with another.
    Deepest,
}

fn render_whole(out: &mut Vec<u8>, placed: &Placed, room_id: Option<&RoomId>, reader: &Reader, depth: Depth) {
    let event = &placed.event;
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
    if let Some(bundle) = reader.bundles.and_then(|bundles| bundles.get(placed.position))
        && depth != Depth::Deepest
    {
        render_bundle(out, bundle, room_id, reader, depth);
    }
    out.extend_from_slice(b"}}");
}

/// `,"m.relations":{…}`.
fn render_bundle(out: &mut Vec<u8>, bundle: &Bundle, room_id: Option<&RoomId>, reader: &Reader, depth: Depth) {
    let below = if depth == Depth::Served { Depth::Bundled } else { Depth::Deepest };
    out.extend_from_slice(b",\"m.relations\":{");
    let mut separator: &[u8] = b"";
    if let Some(edit) = &bundle.edit {
        out.extend_from_slice(b"\"m.replace\":");
        render_whole(out, edit, room_id, reader, Depth::Deepest);
        separator = b",";
    }
    if let Some(thread) = &bundle.thread {
        out.extend_from_slice(separator);
        out.extend_from_slice(b"\"m.thread\":{\"latest_event\":");
        render_whole(out, &thread.latest, room_id, reader, below);
        let rest = format!(r#","count":{},"current_user_participated":{}}}"#, thread.count, thread.participated);
        out.extend_from_slice(rest.as_bytes());
        separator = b",";
    }
    if !bundle.references.is_empty() {
        out.extend_from_slice(separator);
        out.extend_from_slice(b"\"m.reference\":{\"chunk\":[");
        for (index, event_id) in bundle.references.iter().enumerate() {
            out.extend_from_slice(if index == 0 { b"{\"event_id\":" } else { b",{\"event_id\":" });
            string(out, event_id.as_str());
            out.push(b'}');
        }
        out.extend_from_slice(b"]}");
    }
    out.push(b'}');
}

/// Appends a JSON string.
fn string(out: &mut Vec<u8>, text: &str) {
    // Writing into a vector cannot fail.
    let _ = serde_json::to_writer(out, text);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_picked_along_their_paths() {
        let event =
            json!({ "type": "t", "content": { "body": "b", "a.b": { "c": 1, "d": 2 }, "x": 3 }, "sender": "s" });
        let pick = |fields: &[&str]| {
            let fields: Vec<String> = fields.iter().map(|&field| field.to_owned()).collect();
            EventFields::of(Some(&fields)).unwrap().pick(&event)
        };
        assert_eq!(pick(&["type", "content.body"]), json!({ "type": "t", "content": { "body": "b" } }));
        assert_eq!(pick(&[r"content.a\.b.c", "content.none", "type.x"]), json!({ "content": { "a.b": { "c": 1 } } }));
        assert_eq!(pick(&["content", "content.body"]), json!({ "content": event["content"] }));
        assert_eq!(pick(&[]), json!({}));
        assert!(EventFields::of(Some(&vec![String::new(); 101])).is_none());
    }
}
