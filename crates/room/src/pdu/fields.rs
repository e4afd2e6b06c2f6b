//! Reading the fields of an event out of its canonical JSON object.

use std::{borrow::Cow, fmt};

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, RoomId,
    UInt, events::TimelineEventType,
};
use serde::{
    Deserialize, Deserializer as _,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::PduError;
use crate::versions::RoomVersion;

pub(super) fn string<'a>(object: &'a CanonicalJsonObject, name: &'static str) -> Result<&'a str, PduError> {
    optional_string(object, name)?.ok_or(PduError::Missing(name))
}

pub(super) fn optional_string<'a>(
    object: &'a CanonicalJsonObject,
    name: &'static str,
) -> Result<Option<&'a str>, PduError> {
    object.get(name).map(|value| value.as_str().ok_or(PduError::Invalid(name))).transpose()
}

fn unsigned_integer(object: &CanonicalJsonObject, name: &'static str) -> Result<UInt, PduError> {
    let value = object.get(name).ok_or(PduError::Missing(name))?;
    let value = value.as_integer().ok_or(PduError::Invalid(name))?;
    u64::try_from(i64::from(value)).ok().and_then(UInt::new).ok_or(PduError::Invalid(name))
}

pub(super) fn timestamp(object: &CanonicalJsonObject) -> Result<MilliSecondsSinceUnixEpoch, PduError> {
    unsigned_integer(object, "origin_server_ts").map(MilliSecondsSinceUnixEpoch)
}

pub(super) fn depth(object: &CanonicalJsonObject) -> Result<u64, PduError> {
    unsigned_integer(object, "depth").map(u64::from)
}

pub(super) fn raw(value: &CanonicalJsonValue) -> Result<Box<RawValue>, PduError> {
    serde_json::value::to_raw_value(value).map_err(|error| PduError::Encode(error.to_string()))
}

/// Goes over the members of an object that was written as canonical JSON; their values stay as they stand there.
pub(super) fn each_member(object: &str, take: impl FnMut(&str, &RawValue)) -> serde_json::Result<()> {
    struct Members<F>(F);

    impl<'de, F: FnMut(&str, &RawValue)> Visitor<'de> for Members<F> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<(), A::Error> {
            while let Some((MemberName(name), value)) = members.next_entry()? {
                (self.0)(&name, value);
            }
            Ok(())
        }
    }

    serde_json::Deserializer::from_str(object).deserialize_map(Members(take))
}

/// A string member of such an object; what is no string counts as absent.
pub(super) fn string_of(object: &RawValue, name: &str) -> Option<String> {
    let mut found = None;
    let take = |member: &str, value: &RawValue| {
        if member == name {
            found = serde_json::from_str(value.get()).ok();
        }
    };
    each_member(object.get(), take).ok()?;
    found
}

/// The name of a member, copied only where it has escapes.
#[derive(Deserialize)]
struct MemberName<'a>(#[serde(borrow)] Cow<'a, str>);

/// Parses an event id; in versions 1 and 2 it names a server, on which the redaction rule depends.
pub(super) fn event_id(id: &str, name: &'static str, version: &RoomVersion) -> Result<OwnedEventId, PduError> {
    let id = EventId::parse(id).map_err(|_| PduError::Invalid(name))?;
    if version.event_id_in_event() && id.server_name().is_none() {
        return Err(PduError::Invalid(name));
    }
    Ok(id)
}

/// The room id, and whether the event carries it itself.
///
/// See <https://spec.matrix.org/v1.19/rooms/v12/#event-format-1>.
pub(super) fn room_id(
    object: &CanonicalJsonObject,
    event_type: &TimelineEventType,
    event_id: &EventId,
    version: &RoomVersion,
) -> Result<(OwnedRoomId, bool), PduError> {
    let invalid = |_| PduError::Invalid("room_id");
    if version.room_id_is_create_hash() && *event_type == TimelineEventType::RoomCreate {
        let derived = RoomId::new_v2(event_id.localpart()).map_err(invalid)?;
        return Ok((derived, object.contains_key("room_id")));
    }
    let room_id = string(object, "room_id")?;
    Ok((RoomId::parse(room_id).map_err(invalid)?, true))
}

/// The ids in `prev_events` or `auth_events`: pairs of id and hash in versions 1 and 2, plain ids later.
///
/// See <https://spec.matrix.org/v1.19/rooms/v1/#event-format-1>.
pub(super) fn references(
    object: &CanonicalJsonObject,
    name: &'static str,
    version: &RoomVersion,
) -> Result<Box<[OwnedEventId]>, PduError> {
    let list = object.get(name).ok_or(PduError::Missing(name))?.as_array().ok_or(PduError::Invalid(name))?;
    let id_of = |item: &CanonicalJsonValue| {
        let id = if version.event_id_in_event() {
            item.as_array().and_then(|pair| pair.first()).and_then(CanonicalJsonValue::as_str)
        } else {
            item.as_str()
        };
        event_id(id.ok_or(PduError::Invalid(name))?, name, version)
    };
    list.iter().map(id_of).collect()
}

/// The target of a redaction; a malformed one counts as absent, since any event may carry such a field.
pub(super) fn redacts(
    object: &CanonicalJsonObject,
    event_type: &TimelineEventType,
    version: &RoomVersion,
) -> Option<OwnedEventId> {
    if *event_type != TimelineEventType::RoomRedaction {
        return None;
    }
    let holder = if version.redacts_in_content() { object.get("content")?.as_object()? } else { object };
    event_id(holder.get("redacts")?.as_str()?, "redacts", version).ok()
}

/// Takes `unsigned` out of the event, without the ages.
pub(super) fn take_unsigned(object: &mut CanonicalJsonObject) -> Result<Option<Box<RawValue>>, PduError> {
    object.remove("age_ts");
    match object.remove("unsigned") {
        None => Ok(None),
        Some(CanonicalJsonValue::Object(mut unsigned)) => {
            unsigned.remove("age");
            unsigned.remove("age_ts");
            if unsigned.is_empty() { Ok(None) } else { raw(&CanonicalJsonValue::Object(unsigned)).map(Some) }
        }
        Some(_) => Err(PduError::Invalid("unsigned")),
    }
}
