//! Redactions: who may, and what remains.
//!
//! A redaction takes effect in one place, on one event: a redaction of a redaction, a cycle of them or one of
//! itself just redacts the events it names. Nothing follows them.

use bytes::Bytes;
use ruma::{CanonicalJsonValue, UserId, canonical_json::redact_in_place, events::TimelineEventType};
use serde_json::value::RawValue;

use crate::{
    canonical::parse_pdu_object,
    pdu::{Pdu, PduError},
    power::PowerLevels,
};

/// Whether a user of this server may ask for the redaction: their own event, or the power to redact others'.
///
/// See <https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3roomsroomidredacteventidtxnid>.
pub fn may_request_redaction(user_id: &UserId, target: &Pdu, power_levels: &PowerLevels) -> bool {
    user_id == target.sender() || power_levels.may_redact_others(user_id)
}

/// Whether an accepted redaction takes effect on its target.
///
/// `power_levels` are those of the state before the redaction. In room versions 1 and 2 the authorisation rules
/// have asked already, with the domains of the event ids; from version 3 on the power or the domain of the senders
/// counts. A create event is never redacted: the room's version and creators stand in it.
///
/// See <https://spec.matrix.org/v1.19/rooms/v3/#handling-redactions> and rule 11 of
/// <https://spec.matrix.org/v1.19/rooms/v1/#authorisation-rules>.
pub fn redaction_applies(redaction: &Pdu, target: &Pdu, power_levels: &PowerLevels) -> bool {
    if redaction.redacts() != Some(target.event_id())
        || redaction.room_id() != target.room_id()
        || redaction.is_rejected()
        || redaction.event_id() == target.event_id()
        || *target.event_type() == TimelineEventType::RoomCreate
    {
        return false;
    }
    if power_levels.may_redact_others(redaction.sender()) {
        return true;
    }
    if redaction.version().rules().authorization.special_case_room_redaction {
        redaction.event_id().server_name() == target.event_id().server_name()
    } else {
        redaction.sender().server_name() == target.sender().server_name()
    }
}

/// An event after its redaction.
#[derive(Debug, Clone)]
pub struct Redacted {
    /// What other servers get from now on; the id is unchanged.
    pub pdu: Pdu,
    /// What clients get from now on, with the redaction in `unsigned.redacted_because`.
    pub client_json: Bytes,
}

/// Removes what the room version's redaction removes.
///
/// See <https://spec.matrix.org/v1.19/client-server-api/#redactions>.
///
/// # Errors
///
/// [`PduError`] if the event cannot be encoded again.
pub fn redact_pdu(target: &Pdu, redaction: &Pdu) -> Result<Redacted, PduError> {
    let mut object = target.to_canonical_object();
    redact_in_place(&mut object, &target.version().rules().redaction, None)
        .map_err(|error| PduError::Hash(error.to_string()))?;
    let pdu = Pdu::from_canonical(object, target.version())?.with_rejected(target.is_rejected());
    let unsigned = redacted_because(redaction)?;
    let client_json = pdu.client_json_with_unsigned(Some(&unsigned))?;
    Ok(Redacted { pdu, client_json })
}

fn redacted_because(redaction: &Pdu) -> Result<Box<RawValue>, PduError> {
    let encode = |error: serde_json::Error| PduError::Encode(error.to_string());
    let because = parse_pdu_object(&redaction.client_json()?);
    let mut because = because.map_err(|error| PduError::Encode(error.to_string()))?;
    because.insert("room_id".to_owned(), CanonicalJsonValue::String(redaction.room_id().to_string()));
    let because = serde_json::json!({ "redacted_because": because });
    serde_json::value::to_raw_value(&because).map_err(encode)
}
