//! Writing an event of this server: fields, checks, content hash, signature, id.

use std::sync::Arc;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, Int, MilliSecondsSinceUnixEpoch, OwnedEventId, RoomId, UserId,
    events::TimelineEventType,
    signatures::{KeyPair, hash_and_sign_event},
    state_res::auth_types_for_event,
};
use serde_json::value::RawValue;

use crate::{
    authorize::StateView,
    canonical::{CLIENT_DEPTH_MAX, INTEGER_MAX},
    pdu::{Pdu, PduError},
    versions::RoomVersion,
};

/// The largest event written here, in bytes of canonical JSON with signatures.
///
/// The specification allows 65,536; implementations that count 65,535 exist, and an event must reach them too.
/// See <https://spec.matrix.org/v1.19/client-server-api/#size-limits>.
pub const PDU_BYTES_MAX: usize = 65_535;

/// The longest `sender`, `room_id`, `type`, `state_key` and `event_id`, in bytes.
pub const KEY_BYTES_MAX: usize = 255;

/// The most `prev_events` of an event.
pub const PREV_EVENTS_MAX: usize = 20;

/// The most `auth_events` of an event.
pub const AUTH_EVENTS_MAX: usize = 10;

/// Why an event cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum AuthorError {
    /// The event is larger than [`PDU_BYTES_MAX`].
    #[error("the event is too large: {bytes} bytes, at most {PDU_BYTES_MAX} are allowed")]
    TooLarge {
        /// The size with hash and signature.
        bytes: usize,
    },
    /// A field is longer than [`KEY_BYTES_MAX`].
    #[error("`{field}` is too long: {bytes} bytes, at most {KEY_BYTES_MAX} are allowed")]
    FieldTooLong {
        /// The name of the field.
        field: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// The content is nested deeper than [`CLIENT_DEPTH_MAX`].
    #[error("the content is nested too deeply")]
    TooDeep,
    /// There are more references to earlier events than allowed, or one lacks its hash.
    #[error("invalid `{0}`")]
    InvalidReferences(&'static str),
    /// A field does not fit the room version.
    #[error("invalid event: {0}")]
    Invalid(String),
    /// The event could not be hashed or signed.
    #[error("the event cannot be signed: {0}")]
    Sign(String),
    /// The signed event does not parse.
    #[error(transparent)]
    Pdu(#[from] PduError),
}

/// A reference to an earlier event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRef {
    /// The event.
    pub event_id: OwnedEventId,
    /// Its reference hash, needed in room versions 1 and 2 only.
    pub sha256: Option<String>,
}

impl EventRef {
    /// The reference to an event.
    ///
    /// # Errors
    ///
    /// [`PduError::Hash`] if the event cannot be hashed.
    pub fn to(pdu: &Pdu) -> Result<Self, PduError> {
        let sha256 = pdu.version().event_id_in_event().then(|| pdu.reference_hash()).transpose()?;
        Ok(Self { event_id: pdu.event_id().to_owned(), sha256 })
    }
}

/// Everything that makes a new event, except hash and signature.
#[derive(Debug, Clone)]
pub struct Draft<'a> {
    /// The room; `None` for the create event of a room whose id is the hash of it (version 12).
    pub room_id: Option<&'a RoomId>,
    /// The sender, a user of this server.
    pub sender: &'a UserId,
    /// The type of the event.
    pub event_type: &'a TimelineEventType,
    /// The state key, for a state event.
    pub state_key: Option<&'a str>,
    /// The content; from a client, read with [`crate::canonical::parse_client_content`].
    pub content: CanonicalJsonObject,
    /// The event to redact, for an `m.room.redaction`; written where the room version wants it.
    pub redacts: Option<&'a EventId>,
    /// The present time.
    pub origin_server_ts: MilliSecondsSinceUnixEpoch,
    /// The forward extremities, at most [`PREV_EVENTS_MAX`].
    pub prev_events: &'a [EventRef],
    /// What [`select_auth_events`] chose.
    pub auth_events: &'a [EventRef],
    /// What [`next_depth`] says.
    pub depth: u64,
    /// What stands in `unsigned`, if anything; not signed, not hashed.
    pub unsigned: Option<CanonicalJsonObject>,
    /// A unique, random local part for the event id; used in room versions 1 and 2 only.
    pub event_id_localpart: &'a str,
}

/// The depth of an event after the given ones: one more than the deepest, at most 2^53 − 1.
///
/// A peer that claims the largest depth thus does not stop the room.
/// See <https://spec.matrix.org/v1.19/server-server-api/#pdus>.
pub fn next_depth(prev_depths: impl IntoIterator<Item = u64>) -> u64 {
    prev_depths.into_iter().max().unwrap_or(0).saturating_add(1).min(INTEGER_MAX.unsigned_abs())
}

/// Chooses the auth events of an event out of the state before it.
///
/// See <https://spec.matrix.org/v1.19/server-server-api/#auth-events-selection>.
///
/// # Errors
///
/// [`AuthorError::Invalid`] if the content is malformed for the type, so that nothing can be chosen.
pub fn select_auth_events(
    version: &RoomVersion,
    event_type: &TimelineEventType,
    sender: &UserId,
    state_key: Option<&str>,
    content: &RawValue,
    state: &impl StateView,
) -> Result<Vec<Arc<Pdu>>, AuthorError> {
    let slots = auth_types_for_event(event_type, sender, state_key, content, &version.rules().authorization)
        .map_err(AuthorError::Invalid)?;
    Ok(slots.into_iter().filter_map(|(event_type, key)| state.get(&event_type, &key)).collect())
}

/// Writes, hashes and signs an event.
///
/// Whether the event is allowed is not asked here; that is [`crate::authorize`].
///
/// # Errors
///
/// [`AuthorError`] if a limit is exceeded or the event does not fit the room version.
pub fn author<K: KeyPair>(version: &'static RoomVersion, draft: Draft<'_>, key_pair: &K) -> Result<Pdu, AuthorError> {
    let sender = draft.sender;
    let unsigned = draft.unsigned.clone();
    let mut object = build(version, draft)?;
    hash_and_sign_event(sender.server_name().as_str(), key_pair, &mut object, &version.rules().redaction)
        .map_err(|error| AuthorError::Sign(error.to_string()))?;
    if let Some(unsigned) = unsigned {
        object.insert("unsigned".to_owned(), CanonicalJsonValue::Object(unsigned));
    }
    let pdu = Pdu::from_canonical(object, version)?;
    match pdu.federation_json().len() {
        bytes if bytes > PDU_BYTES_MAX => Err(AuthorError::TooLarge { bytes }),
        _ => Ok(pdu),
    }
}

/// The unsigned, unhashed event.
fn build(version: &RoomVersion, draft: Draft<'_>) -> Result<CanonicalJsonObject, AuthorError> {
    check_depth(&draft.content)?;
    let event_type = draft.event_type.to_string();
    let mut object = CanonicalJsonObject::new();
    let mut put_string = |field: &'static str, value: &str| {
        if value.len() > KEY_BYTES_MAX {
            return Err(AuthorError::FieldTooLong { field, bytes: value.len() });
        }
        object.insert(field.to_owned(), CanonicalJsonValue::String(value.to_owned()));
        Ok(())
    };
    put_string("type", &event_type)?;
    put_string("sender", draft.sender.as_str())?;
    let is_hash_named_create = version.room_id_is_create_hash() && *draft.event_type == TimelineEventType::RoomCreate;
    match draft.room_id {
        Some(room_id) if !is_hash_named_create => put_string("room_id", room_id.as_str())?,
        None if is_hash_named_create => {}
        _ => return Err(AuthorError::Invalid("the room id is missing, or too much".to_owned())),
    }
    if let Some(state_key) = draft.state_key {
        put_string("state_key", state_key)?;
    }
    if version.event_id_in_event() {
        put_string("event_id", &format!("${}:{}", draft.event_id_localpart, draft.sender.server_name()))?;
    }
    let mut content = draft.content;
    if let Some(redacts) = draft.redacts {
        if version.redacts_in_content() {
            content.insert("redacts".to_owned(), CanonicalJsonValue::String(redacts.to_string()));
        } else {
            put_string("redacts", redacts.as_str())?;
        }
    }
    object.insert("content".to_owned(), CanonicalJsonValue::Object(content));
    object.insert("prev_events".to_owned(), references("prev_events", draft.prev_events, PREV_EVENTS_MAX, version)?);
    object.insert("auth_events".to_owned(), references("auth_events", draft.auth_events, AUTH_EVENTS_MAX, version)?);
    object.insert("origin_server_ts".to_owned(), CanonicalJsonValue::Integer(draft.origin_server_ts.0.into()));
    let depth = Int::new(i64::try_from(draft.depth).unwrap_or(i64::MAX));
    let depth = depth.ok_or_else(|| AuthorError::Invalid("the depth is too large".to_owned()))?;
    object.insert("depth".to_owned(), CanonicalJsonValue::Integer(depth));
    Ok(object)
}

fn references(
    field: &'static str,
    refs: &[EventRef],
    count_max: usize,
    version: &RoomVersion,
) -> Result<CanonicalJsonValue, AuthorError> {
    if refs.len() > count_max {
        return Err(AuthorError::InvalidReferences(field));
    }
    let encode = |reference: &EventRef| {
        let id = CanonicalJsonValue::String(reference.event_id.to_string());
        if !version.event_id_in_event() {
            return Ok(id);
        }
        let hash = reference.sha256.clone().ok_or(AuthorError::InvalidReferences(field))?;
        let hashes = CanonicalJsonObject::from([("sha256".to_owned(), CanonicalJsonValue::String(hash))]);
        Ok(CanonicalJsonValue::Array(vec![id, CanonicalJsonValue::Object(hashes)]))
    };
    refs.iter().map(encode).collect::<Result<_, _>>().map(CanonicalJsonValue::Array)
}

/// Content may also be built by this server out of parts that clients sent, so the bound is checked again here.
fn check_depth(content: &CanonicalJsonObject) -> Result<(), AuthorError> {
    let mut level: Vec<&CanonicalJsonValue> = content.values().collect();
    for _ in 0..CLIENT_DEPTH_MAX {
        if level.is_empty() {
            return Ok(());
        }
        level = level.into_iter().flat_map(children).collect();
    }
    if level.is_empty() { Ok(()) } else { Err(AuthorError::TooDeep) }
}

fn children(value: &CanonicalJsonValue) -> Vec<&CanonicalJsonValue> {
    match value {
        CanonicalJsonValue::Array(items) => items.iter().collect(),
        CanonicalJsonValue::Object(object) => object.values().collect(),
        _ => Vec::new(),
    }
}
