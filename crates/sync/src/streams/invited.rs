//! Rooms that the user is invited to or has knocked on: their stripped state.

use cofactor_wire::user::RoomEntry;
use serde_json::value::RawValue;

use crate::json::Json;

pub(crate) fn write(entry: &RoomEntry, name: &str) -> Vec<u8> {
    // What cannot be read would break the whole answer for ever; the room is shown without it.
    let stripped: Vec<&RawValue> = serde_json::from_slice(&entry.stripped_state).unwrap_or_default();
    let mut events = Json::array();
    stripped.iter().for_each(|event| events.element(event.get().as_bytes()));
    let mut room = Json::object();
    room.member(name, &crate::json::wrap_events(events));
    room.end_object()
}
