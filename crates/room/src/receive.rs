//! The one way in for events: bytes → checked → verified → cited → judged.
//!
//! Each step is a type, and each type is made only by the step before, so no inlet can skip one. Events of this
//! server enter at [`Verified::local`], because it has just signed them, and meet the same judgement.
//!
//! See <https://spec.matrix.org/v1.19/server-server-api/#checks-performed-on-receipt-of-a-pdu>.

use std::{collections::BTreeSet, sync::Arc};

use ruma::{
    CanonicalJsonObject, EventId, OwnedServerName,
    canonical_json::redact_in_place,
    events::TimelineEventType,
    room_version_rules::{RoomVersionRules, SignaturesRules},
    signatures::{PublicKeyMap, Verified as Signed, required_server_signatures_to_verify_event, verify_event},
    state_res::check_pdu_format,
};

use crate::{
    authorize::{
        AuthError, AuthEventsState, EventSource, StateView, authorize_event, check_auth_events, is_surely_allowed,
    },
    canonical::{CanonicalError, parse_pdu_object},
    pdu::{Pdu, PduError},
    power::PowerLevels,
    versions::RoomVersion,
};

/// The largest event accepted, in bytes of canonical JSON.
///
/// See <https://spec.matrix.org/v1.19/client-server-api/#size-limits>.
pub const PDU_BYTES_MAX: usize = 65_536;

/// Why an event is dropped: it is as if it had never arrived.
#[derive(Debug, thiserror::Error)]
pub enum Dropped {
    /// The bytes are not canonical JSON.
    #[error(transparent)]
    Json(#[from] CanonicalError),
    /// The event is larger than [`PDU_BYTES_MAX`].
    #[error("the event is too large: {bytes} bytes, at most {PDU_BYTES_MAX} are allowed")]
    TooLarge {
        /// The size of the event.
        bytes: usize,
    },
    /// The event does not have the format of the room version.
    #[error("the event is malformed: {0}")]
    Format(String),
    /// The event does not parse.
    #[error(transparent)]
    Pdu(#[from] PduError),
    /// A required signature is absent or wrong.
    #[error("the signatures are not valid: {0}")]
    Signature(String),
}

/// An event of valid size and format; nothing is known about its origin yet.
#[derive(Debug, Clone)]
pub struct Checked {
    object: CanonicalJsonObject,
    pdu: Pdu,
}

impl Checked {
    /// Step 1 from bytes: canonical JSON, size and format.
    ///
    /// # Errors
    ///
    /// [`Dropped`] if the event must be dropped.
    pub fn from_bytes(bytes: &[u8], version: &'static RoomVersion) -> Result<Self, Dropped> {
        Self::from_object(parse_pdu_object(bytes)?, version)
    }

    /// Step 1 from an object: size and format.
    ///
    /// `unsigned` is removed: nobody signed it, and what stands there could pass for our own words at a client.
    ///
    /// # Errors
    ///
    /// [`Dropped`] if the event must be dropped.
    pub fn from_object(mut object: CanonicalJsonObject, version: &'static RoomVersion) -> Result<Self, Dropped> {
        let bytes = serde_json::to_string(&object).map_err(|error| Dropped::Format(error.to_string()))?.len();
        if bytes > PDU_BYTES_MAX {
            return Err(Dropped::TooLarge { bytes });
        }
        object.remove("unsigned");
        check_format(&object, version)?;
        let pdu = Pdu::from_canonical(object.clone(), version)?;
        Ok(Self { object, pdu })
    }

    /// The event as it arrived; nothing in it is proven yet, but a caller may need its sender, room and time.
    pub fn unverified(&self) -> &Pdu {
        &self.pdu
    }

    /// The servers that must have signed the event, so that the caller can get their keys.
    ///
    /// # Errors
    ///
    /// [`Dropped::Signature`] if a field that names such a server is malformed.
    pub fn required_signers(&self) -> Result<BTreeSet<OwnedServerName>, Dropped> {
        required_server_signatures_to_verify_event(&self.object, &self.rules().signatures)
            .map_err(|error| Dropped::Signature(error.to_string()))
    }

    /// Step 2: signatures and content hash.
    ///
    /// The caller passes the keys that count: from room version 5 on, those that were valid at the event's
    /// `origin_server_ts` (<https://spec.matrix.org/v1.19/rooms/v5/#signing-key-validity-period>). If only the
    /// content hash is wrong, the event goes on redacted.
    ///
    /// # Errors
    ///
    /// [`Dropped::Signature`] if a required signature is absent or wrong.
    pub fn verify(mut self, keys: &PublicKeyMap) -> Result<Verified, Dropped> {
        let rules = self.rules();
        let signed = verify_event(keys, &self.object, &rules).map_err(|error| Dropped::Signature(error.to_string()))?;
        let was_redacted = signed == Signed::Signatures;
        if was_redacted {
            redact_in_place(&mut self.object, &rules.redaction, None)
                .map_err(|error| Dropped::Format(error.to_string()))?;
            self.pdu = Pdu::from_canonical(self.object, self.pdu.version())?;
        }
        let pdu = Arc::new(self.pdu);
        Ok(Verified { pdu, was_redacted })
    }

    /// The rules of the version; only membership events need the signature of an authorising server.
    ///
    /// See rule 5.2 of <https://spec.matrix.org/v1.19/rooms/v12/#authorisation-rules>.
    fn rules(&self) -> RoomVersionRules {
        let mut rules = self.pdu.version().rules().clone();
        let is_member = *self.pdu.event_type() == TimelineEventType::RoomMember;
        if !is_member && rules.signatures.check_join_authorised_via_users_server {
            rules.signatures = SignaturesRules::V3;
        }
        rules
    }
}

/// Checks the fields whose form is fixed by the room version.
///
/// The library counts the size one byte short of the specification's, so it gets only the fields it looks at.
fn check_format(object: &CanonicalJsonObject, version: &RoomVersion) -> Result<(), Dropped> {
    const FIELDS: [&str; 8] =
        ["type", "sender", "room_id", "event_id", "state_key", "prev_events", "auth_events", "depth"];
    let skeleton: CanonicalJsonObject = object
        .iter()
        .filter(|(name, _)| FIELDS.contains(&name.as_str()))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    check_pdu_format(&skeleton, &version.rules().event_format).map_err(Dropped::Format)
}

/// An event that its senders' servers really signed.
#[derive(Debug, Clone)]
pub struct Verified {
    pdu: Arc<Pdu>,
    was_redacted: bool,
}

impl Verified {
    /// An event that this server has just written and signed with [`crate::author()`].
    pub fn local(pdu: Pdu) -> Self {
        Self { pdu: Arc::new(pdu), was_redacted: false }
    }

    /// The event.
    pub fn pdu(&self) -> &Arc<Pdu> {
        &self.pdu
    }

    /// Whether the content was removed because its hash was wrong.
    pub fn was_redacted(&self) -> bool {
        self.was_redacted
    }

    /// Step 3: the events that this one cites, and what they allow.
    ///
    /// `create` is the create event of the room, if the room is known already: no event may cite another, and no
    /// second one is accepted.
    ///
    /// # Errors
    ///
    /// [`AuthError::UnknownAuthEvent`] if an auth event must be fetched first. Every other reason not to accept
    /// the event is an outcome.
    pub fn check_auth_events(self, create: Option<&EventId>, events: &impl EventSource) -> Result<Cited, AuthError> {
        let verdict = self.auth_events_verdict(create, events);
        match verdict {
            Err(AuthError::UnknownAuthEvent(id)) => Err(AuthError::UnknownAuthEvent(id)),
            Err(reason) => Ok(Cited { pdu: self.pdu, rejection: Some(reason) }),
            Ok(()) => Ok(Cited { pdu: self.pdu, rejection: None }),
        }
    }

    /// Steps 3 to 5 for an event that this server has just written at the end of the room. What it cites was selected from the
    /// current state, which is also the state before it: one look at that state answers for all three.
    ///
    /// `levels` are the power levels of that state, if they can be read.
    pub fn judge_authored(
        self,
        events: &impl EventSource,
        current_state: &impl StateView,
        levels: Option<&PowerLevels>,
    ) -> Outcome {
        let in_state = || match levels {
            Some(levels) if is_surely_allowed(&self.pdu, current_state, levels) => Ok(()),
            _ => authorize_event(&self.pdu, current_state),
        };
        match check_auth_events(&self.pdu, events).and_then(|()| in_state()) {
            Ok(()) => Outcome::Accepted(self.pdu),
            Err(reason) => Outcome::rejected(&self.pdu, reason),
        }
    }

    fn auth_events_verdict(&self, create: Option<&EventId>, events: &impl EventSource) -> Result<(), AuthError> {
        check_auth_events(&self.pdu, events)?;
        let state = AuthEventsState::of(&self.pdu, events)?;
        if let Some(create) = create {
            check_same_create(&self.pdu, &state, create)?;
        }
        authorize_event(&self.pdu, &state)
    }
}

/// A room has one create event, and every event of it rests on that one.
fn check_same_create(pdu: &Pdu, auth_state: &AuthEventsState, create: &EventId) -> Result<(), AuthError> {
    if *pdu.event_type() == TimelineEventType::RoomCreate && pdu.event_id() != create {
        return Err(AuthError::Invalid("the room has a create event already".to_owned()));
    }
    match auth_state.get(&ruma::events::StateEventType::RoomCreate, "") {
        Some(cited) if cited.event_id() != create => {
            Err(AuthError::Invalid("the event cites another create event than the room's".to_owned()))
        }
        _ => Ok(()),
    }
}

/// An event whose auth events are known and judged.
#[derive(Debug, Clone)]
pub struct Cited {
    pdu: Arc<Pdu>,
    rejection: Option<AuthError>,
}

impl Cited {
    /// The event.
    pub fn pdu(&self) -> &Arc<Pdu> {
        &self.pdu
    }

    /// Ends here for an event whose place in the room is not known (an outlier, such as the state of a room that
    /// is being joined): accepted by its auth events, or rejected.
    pub fn into_outlier(self) -> Outcome {
        match self.rejection {
            Some(reason) => Outcome::rejected(&self.pdu, reason),
            None => Outcome::Accepted(self.pdu),
        }
    }

    /// Steps 4 and 5: the state before the event, and the current state.
    pub fn judge(self, state_before: &impl StateView, current_state: &impl StateView) -> Outcome {
        if let Some(reason) = self.rejection {
            return Outcome::rejected(&self.pdu, reason);
        }
        if let Err(reason) = authorize_event(&self.pdu, state_before) {
            return Outcome::rejected(&self.pdu, reason);
        }
        match authorize_event(&self.pdu, current_state) {
            Ok(()) => Outcome::Accepted(self.pdu),
            Err(reason) => Outcome::SoftFailed { pdu: self.pdu, reason },
        }
    }
}

/// What becomes of an event that was not dropped.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// Part of the room, for everyone to see.
    Accepted(Arc<Pdu>),
    /// Part of the room's graph and state, but shown to nobody and no forward extremity.
    ///
    /// See <https://spec.matrix.org/v1.19/server-server-api/#soft-failure>.
    SoftFailed {
        /// The event.
        pdu: Arc<Pdu>,
        /// Why the current state forbids it.
        reason: AuthError,
    },
    /// Stored so that others which cite it can be judged, marked as rejected; never in a state.
    ///
    /// See <https://spec.matrix.org/v1.19/server-server-api/#rejection>.
    Rejected {
        /// The event, with its mark.
        pdu: Arc<Pdu>,
        /// Why it is not allowed.
        reason: AuthError,
    },
}

impl Outcome {
    fn rejected(pdu: &Pdu, reason: AuthError) -> Self {
        Self::Rejected { pdu: Arc::new(pdu.clone().with_rejected(true)), reason }
    }

    /// The event, whatever became of it.
    pub fn pdu(&self) -> &Arc<Pdu> {
        match self {
            Self::Accepted(pdu) | Self::SoftFailed { pdu, .. } | Self::Rejected { pdu, .. } => pdu,
        }
    }
}
