//! One event of a room, parsed once and never changed.

mod client;
mod fields;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId,
    OwnedUserId, RoomId, UserId,
    events::{StateEventType, TimelineEventType},
    signatures::reference_hash,
};
use serde_json::value::RawValue;

use crate::{canonical::parse_pdu_object, versions::RoomVersion};

/// Why bytes are not an event of the room version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PduError {
    /// A required field is absent.
    #[error("the event has no `{0}`")]
    Missing(&'static str),
    /// A field has the wrong type or does not parse.
    #[error("the event has an invalid `{0}`")]
    Invalid(&'static str),
    /// The reference hash could not be calculated.
    #[error("the event cannot be hashed: {0}")]
    Hash(String),
    /// The event could not be encoded as JSON.
    #[error("the event cannot be encoded: {0}")]
    Encode(String),
}

/// An event (persistent data unit), immutable; share it as `Arc<Pdu>`.
///
/// It keeps its federation form as canonical JSON text, ready to be sent and hashed, next to the parsed fields.
/// The event id belongs to the bytes: it is the reference hash from room version 3 on. The id of the room is
/// always known: from version 12 on a create event has none of its own, and gives it by its event id.
///
/// See <https://spec.matrix.org/v1.19/server-server-api/#pdus>.
#[derive(Debug, Clone)]
pub struct Pdu {
    version: &'static RoomVersion,
    event_id: OwnedEventId,
    room_id: OwnedRoomId,
    room_id_in_event: bool,
    sender: OwnedUserId,
    origin_server_ts: MilliSecondsSinceUnixEpoch,
    event_type: TimelineEventType,
    state_key: Option<Box<str>>,
    content: Box<RawValue>,
    prev_events: Box<[OwnedEventId]>,
    auth_events: Box<[OwnedEventId]>,
    depth: u64,
    redacts: Option<OwnedEventId>,
    unsigned: Option<Box<RawValue>>,
    json: Box<str>,
    rejected: bool,
}

impl Pdu {
    /// Parses an event and calculates its id.
    ///
    /// `unsigned` is kept, without the `age` fields, which are true only for one moment.
    ///
    /// # Errors
    ///
    /// [`PduError`] if a field is absent or malformed for the room version.
    pub fn from_canonical(object: CanonicalJsonObject, version: &'static RoomVersion) -> Result<Self, PduError> {
        let event_id = event_id_of(&object, version)?;
        Self::from_parts(object, event_id, version)
    }

    /// Parses an event that this server stored itself, without calculating its id again.
    ///
    /// # Errors
    ///
    /// [`PduError`] if a field is absent or malformed for the room version.
    pub fn from_stored(
        json: &str,
        event_id: OwnedEventId,
        rejected: bool,
        version: &'static RoomVersion,
    ) -> Result<Self, PduError> {
        // serde_json's own values give some member names a meaning, so that what was written might be read as another event.
        let object = parse_pdu_object(json.as_bytes()).map_err(|error| PduError::Encode(error.to_string()))?;
        Ok(Self { rejected, ..Self::from_parts(object, event_id, version)? })
    }

    fn from_parts(
        mut object: CanonicalJsonObject,
        event_id: OwnedEventId,
        version: &'static RoomVersion,
    ) -> Result<Self, PduError> {
        let event_type = TimelineEventType::from(fields::string(&object, "type")?);
        let (room_id, room_id_in_event) = fields::room_id(&object, &event_type, &event_id, version)?;
        let unsigned = fields::take_unsigned(&mut object)?;
        let content = match object.get("content") {
            Some(content @ CanonicalJsonValue::Object(_)) => fields::raw(content)?,
            Some(_) => return Err(PduError::Invalid("content")),
            None => return Err(PduError::Missing("content")),
        };
        Ok(Self {
            version,
            sender: fields::string(&object, "sender")?.try_into().map_err(|_| PduError::Invalid("sender"))?,
            origin_server_ts: fields::timestamp(&object)?,
            state_key: fields::optional_string(&object, "state_key")?.map(Into::into),
            content,
            prev_events: fields::references(&object, "prev_events", version)?,
            auth_events: fields::references(&object, "auth_events", version)?,
            depth: fields::depth(&object)?,
            redacts: fields::redacts(&object, &event_type, version),
            unsigned,
            json: serde_json::to_string(&object).map_err(|error| PduError::Encode(error.to_string()))?.into(),
            rejected: false,
            event_id,
            room_id,
            room_id_in_event,
            event_type,
        })
    }

    /// The same event, marked as rejected or not.
    pub fn with_rejected(mut self, rejected: bool) -> Self {
        self.rejected = rejected;
        self
    }

    /// The version of the event's room.
    pub fn version(&self) -> &'static RoomVersion {
        self.version
    }

    /// The id of the event.
    pub fn event_id(&self) -> &EventId {
        &self.event_id
    }

    /// The id of the room, also for a create event that carries none.
    pub fn room_id(&self) -> &RoomId {
        &self.room_id
    }

    /// Who sent the event.
    pub fn sender(&self) -> &UserId {
        &self.sender
    }

    /// When the sender's server says that it made the event; a claim, never a source of order.
    pub fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        self.origin_server_ts
    }

    /// The type of the event.
    pub fn event_type(&self) -> &TimelineEventType {
        &self.event_type
    }

    /// The state key; present exactly on state events.
    pub fn state_key(&self) -> Option<&str> {
        self.state_key.as_deref()
    }

    /// Where the event stands in the state, if it is a state event.
    pub fn state_slot(&self) -> Option<(StateEventType, &str)> {
        self.state_key().map(|key| (StateEventType::from(self.event_type.to_string()), key))
    }

    /// The content, as canonical JSON text.
    pub fn content(&self) -> &RawValue {
        &self.content
    }

    /// A string property of the content, if it is there and a string.
    pub fn content_string(&self, name: &str) -> Option<String> {
        fields::string_of(&self.content, name)
    }

    /// The events that the sender's server saw last.
    pub fn prev_events(&self) -> &[OwnedEventId] {
        &self.prev_events
    }

    /// The events that allow this one.
    pub fn auth_events(&self) -> &[OwnedEventId] {
        &self.auth_events
    }

    /// The claimed depth, from 0 to 2^53 − 1; a claim, never a source of order.
    pub fn depth(&self) -> u64 {
        self.depth
    }

    /// The event that this redaction names, wherever the room version keeps it.
    pub fn redacts(&self) -> Option<&EventId> {
        self.redacts.as_deref()
    }

    /// The `unsigned` object without `age`, if anything is left in it.
    pub fn unsigned(&self) -> Option<&RawValue> {
        self.unsigned.as_deref()
    }

    /// Whether the event failed the checks on receipt; it may then never be in a state.
    pub fn is_rejected(&self) -> bool {
        self.rejected
    }

    /// The federation form as canonical JSON text, without `unsigned`.
    pub fn federation_json(&self) -> &str {
        &self.json
    }

    /// The federation form as an object, without `unsigned`.
    pub fn to_canonical_object(&self) -> CanonicalJsonObject {
        // The text was written by this type from such an object, so it parses.
        parse_pdu_object(self.json.as_bytes()).unwrap_or_default()
    }

    /// The federation form without some of its members, as canonical JSON text; the values are copied as they stand.
    ///
    /// # Errors
    ///
    /// [`PduError::Encode`] if the text cannot be taken apart: a defect.
    pub fn federation_json_without(&self, names: &[&str]) -> Result<Vec<u8>, PduError> {
        let encode = |error: serde_json::Error| PduError::Encode(error.to_string());
        let mut kept = vec![b'{'];
        let mut written = Ok(());
        let keep = |name: &str, value: &RawValue| {
            if names.contains(&name) || written.is_err() {
                return;
            }
            if kept.len() > 1 {
                kept.push(b',');
            }
            written = serde_json::to_writer(&mut kept, name);
            kept.push(b':');
            kept.extend_from_slice(value.get().as_bytes());
        };
        fields::each_member(&self.json, keep).map_err(encode)?;
        written.map_err(encode)?;
        kept.push(b'}');
        Ok(kept)
    }

    /// The reference hash in the alphabet of the room version, unpadded base64.
    ///
    /// # Errors
    ///
    /// [`PduError::Hash`] if the event cannot be redacted or encoded.
    pub fn reference_hash(&self) -> Result<String, PduError> {
        if !self.version.event_id_in_event() {
            return Ok(self.event_id.localpart().to_owned());
        }
        reference_hash(&self.to_canonical_object(), self.version.rules())
            .map_err(|error| PduError::Hash(error.to_string()))
    }
}

/// The id of an event: its own in versions 1 and 2, its reference hash from version 3 on.
///
/// See <https://spec.matrix.org/v1.19/rooms/v4/#event-ids>.
///
/// # Errors
///
/// [`PduError`] if the id is absent or malformed, or the event cannot be hashed.
pub fn event_id_of(object: &CanonicalJsonObject, version: &RoomVersion) -> Result<OwnedEventId, PduError> {
    if version.event_id_in_event() {
        let event_id = fields::string(object, "event_id")?;
        return fields::event_id(event_id, "event_id", version);
    }
    let hash = reference_hash(object, version.rules()).map_err(|error| PduError::Hash(error.to_string()))?;
    EventId::new_v2_or_v3(&hash).map_err(|error| PduError::Hash(error.to_string()))
}

impl ruma::state_res::Event for Pdu {
    type Id = OwnedEventId;

    fn event_id(&self) -> &Self::Id {
        &self.event_id
    }

    // The authorisation rules ask whether the event carries the field, not which room it is in.
    fn room_id(&self) -> Option<&RoomId> {
        self.room_id_in_event.then_some(&*self.room_id)
    }

    fn sender(&self) -> &UserId {
        &self.sender
    }

    fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        self.origin_server_ts
    }

    fn event_type(&self) -> &TimelineEventType {
        &self.event_type
    }

    fn content(&self) -> &RawValue {
        &self.content
    }

    fn state_key(&self) -> Option<&str> {
        self.state_key.as_deref()
    }

    fn prev_events(&self) -> Box<dyn DoubleEndedIterator<Item = &Self::Id> + '_> {
        Box::new(self.prev_events.iter())
    }

    fn auth_events(&self) -> Box<dyn DoubleEndedIterator<Item = &Self::Id> + '_> {
        Box::new(self.auth_events.iter())
    }

    fn redacts(&self) -> Option<&Self::Id> {
        self.redacts.as_ref()
    }

    fn rejected(&self) -> bool {
        self.rejected
    }
}
