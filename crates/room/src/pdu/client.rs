//! The form of an event that clients get.

use bytes::Bytes;
use ruma::{CanonicalJsonValue, EventId, MilliSecondsSinceUnixEpoch, UserId, events::TimelineEventType};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{Pdu, PduError, fields};
use crate::canonical::parse_pdu_object;

/// The fields of a client event without `room_id`, in alphabetical order.
#[derive(Serialize)]
struct ClientEvent<'a> {
    content: &'a RawValue,
    event_id: &'a EventId,
    origin_server_ts: MilliSecondsSinceUnixEpoch,
    #[serde(skip_serializing_if = "Option::is_none")]
    redacts: Option<&'a EventId>,
    sender: &'a UserId,
    #[serde(skip_serializing_if = "Option::is_none")]
    state_key: Option<&'a str>,
    r#type: &'a TimelineEventType,
    #[serde(skip_serializing_if = "Option::is_none")]
    unsigned: Option<&'a RawValue>,
}

impl Pdu {
    /// The event as clients get it, without `room_id`, ready to be copied into a response.
    ///
    /// A redaction names its target both at the top level and in `content`, whatever the room version, so that old
    /// and new clients find it: <https://spec.matrix.org/v1.19/client-server-api/#mroomredaction>.
    ///
    /// # Errors
    ///
    /// [`PduError::Encode`] if the event cannot be encoded.
    pub fn client_json(&self) -> Result<Bytes, PduError> {
        self.client_json_with_unsigned(self.unsigned())
    }

    /// As [`Self::client_json`], with another `unsigned` object.
    ///
    /// # Errors
    ///
    /// [`PduError::Encode`] if the event cannot be encoded.
    pub fn client_json_with_unsigned(&self, unsigned: Option<&RawValue>) -> Result<Bytes, PduError> {
        let content = self.content_with_redacts()?;
        let event = ClientEvent {
            content: content.as_deref().unwrap_or(&self.content),
            event_id: &self.event_id,
            origin_server_ts: self.origin_server_ts,
            redacts: self.redacts(),
            sender: &self.sender,
            state_key: self.state_key(),
            r#type: &self.event_type,
            unsigned,
        };
        serde_json::to_vec(&event).map(Bytes::from).map_err(|error| PduError::Encode(error.to_string()))
    }

    /// The content with `redacts` added, if this is a redaction that keeps it elsewhere.
    fn content_with_redacts(&self) -> Result<Option<Box<RawValue>>, PduError> {
        let Some(redacts) = self.redacts().filter(|_| !self.version.redacts_in_content()) else {
            return Ok(None);
        };
        let content = parse_pdu_object(self.content.get().as_bytes());
        let mut content = content.map_err(|error| PduError::Encode(error.to_string()))?;
        content.insert("redacts".to_owned(), CanonicalJsonValue::String(redacts.to_string()));
        fields::raw(&CanonicalJsonValue::Object(content)).map(Some)
    }
}
