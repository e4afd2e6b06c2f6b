//! Whether an event is allowed.
//!
//! The rules of a room version are in two parts. [`check_auth_events`] looks only at the event and at the events it
//! cites; it holds for ever. [`authorize_event`] looks at a state, and is asked for each state that matters: what
//! the auth events say, the state before the event, the current state.
//!
//! See <https://spec.matrix.org/v1.19/rooms/v12/#authorisation-rules> and the same section of each version.

use std::sync::Arc;

use ruma::{
    EventId, OwnedEventId,
    events::{StateEventType, TimelineEventType},
    state_res::{check_state_dependent_auth_rules, check_state_independent_auth_rules, events::RoomCreateEvent},
};

use crate::{pdu::Pdu, power::PowerLevels, state::StateTree, versions::room_version};

/// Finds events of a room by their id, whether they are part of the state or not.
///
/// An implementation returns rejected events too, marked as such: the rules ask for the mark.
pub trait EventSource {
    /// The event, if it is known.
    fn event(&self, event_id: &EventId) -> Option<Arc<Pdu>>;
}

impl<F: Fn(&EventId) -> Option<Arc<Pdu>>> EventSource for F {
    fn event(&self, event_id: &EventId) -> Option<Arc<Pdu>> {
        self(event_id)
    }
}

/// One state of a room.
pub trait StateView {
    /// The state event of that type and state key, if there is one.
    fn get(&self, event_type: &StateEventType, state_key: &str) -> Option<Arc<Pdu>>;
}

impl<F: Fn(&StateEventType, &str) -> Option<Arc<Pdu>>> StateView for F {
    fn get(&self, event_type: &StateEventType, state_key: &str) -> Option<Arc<Pdu>> {
        self(event_type, state_key)
    }
}

/// A state tree together with the events that it names.
#[derive(Debug)]
pub struct TreeState<'a, S> {
    /// The state.
    pub tree: &'a StateTree,
    /// Where its events are; one that is not there counts as absent from the state.
    pub events: &'a S,
}

impl<S: EventSource> StateView for TreeState<'_, S> {
    fn get(&self, event_type: &StateEventType, state_key: &str) -> Option<Arc<Pdu>> {
        self.events.event(self.tree.get(event_type, state_key)?.event_id())
    }
}

/// Why an event is not allowed. The sentence is for people; no code decides by it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// The event cites an event that is not known, so nothing can be said yet.
    #[error("the auth event {0} is not known")]
    UnknownAuthEvent(OwnedEventId),
    /// The event, or an event it cites, breaks a rule whatever the state.
    #[error("the event is not valid: {0}")]
    Invalid(String),
    /// A rule forbids the event in this state.
    #[error("the event is not allowed: {0}")]
    Forbidden(String),
}

/// Checks the rules that do not depend on a state: the create event, and which events are cited.
///
/// # Errors
///
/// [`AuthError::UnknownAuthEvent`] if a cited event is not in `events`; [`AuthError::Invalid`] if a rule is broken.
pub fn check_auth_events(pdu: &Pdu, events: &impl EventSource) -> Result<(), AuthError> {
    if let Some(missing) = pdu.auth_events().iter().find(|id| events.event(id).is_none()) {
        return Err(AuthError::UnknownAuthEvent(missing.clone()));
    }
    if *pdu.event_type() == TimelineEventType::RoomCreate {
        check_create(pdu)?;
    } else if pdu.version().room_id_is_create_hash() {
        check_room_is_create_event(pdu, events)?;
    }
    let rules = &pdu.version().rules().authorization;
    check_state_independent_auth_rules(rules, pdu, |id| events.event(id)).map_err(AuthError::Invalid)
}

/// Rule 1 of every version: the version that a create event names must be the one it was read with, and a create
/// event cites nothing. Everything else about it is checked with the other rules.
fn check_create(pdu: &Pdu) -> Result<(), AuthError> {
    let named = RoomCreateEvent::new(pdu).room_version().map_err(AuthError::Invalid)?;
    if room_version(named.as_str()) != Some(pdu.version()) {
        return Err(AuthError::Invalid(format!(
            "the room version {named} is not recognised or is not version {}",
            pdu.version().name()
        )));
    }
    if !pdu.auth_events().is_empty() {
        return Err(AuthError::Invalid("a create event cannot have auth events".to_owned()));
    }
    if pdu.state_key() != Some("") {
        return Err(AuthError::Invalid("a create event must have an empty state key".to_owned()));
    }
    Ok(())
}

/// Rule 2 of version 12: the room id must be the id of an accepted *create* event.
fn check_room_is_create_event(pdu: &Pdu, events: &impl EventSource) -> Result<(), AuthError> {
    let create_id = create_event_id(pdu)?;
    let Some(create) = events.event(&create_id) else {
        return Err(AuthError::UnknownAuthEvent(create_id));
    };
    if *create.event_type() != TimelineEventType::RoomCreate {
        return Err(AuthError::Invalid(format!("the room id {} is not that of a create event", pdu.room_id())));
    }
    Ok(())
}

/// The id of the create event that a room id of version 12 stands for.
fn create_event_id(pdu: &Pdu) -> Result<OwnedEventId, AuthError> {
    EventId::new_v2_or_v3(pdu.room_id().strip_sigil()).map_err(|error| AuthError::Invalid(error.to_string()))
}

/// Checks the rules that depend on a state.
///
/// The signatures must have been checked before: rules about third-party invites and restricted joins rest on them.
///
/// # Errors
///
/// [`AuthError::Forbidden`] if a rule forbids the event in this state.
pub fn authorize_event(pdu: &Pdu, state: &impl StateView) -> Result<(), AuthError> {
    if *pdu.event_type() == TimelineEventType::RoomCreate {
        return match state.get(&StateEventType::RoomCreate, "") {
            Some(create) if create.event_id() != pdu.event_id() => {
                Err(AuthError::Forbidden("the room has a create event already".to_owned()))
            }
            _ => Ok(()),
        };
    }
    if let Some(create) = state.get(&StateEventType::RoomCreate, "")
        && create.room_id() != pdu.room_id()
    {
        return Err(AuthError::Forbidden("the event is of another room".to_owned()));
    }
    let rules = &pdu.version().rules().authorization;
    check_state_dependent_auth_rules(rules, pdu, |event_type: &StateEventType, key: &str| {
        // A rejected event is in no state, whatever the caller's view says.
        state.get(event_type, key).filter(|event| !event.is_rejected())
    })
    .map_err(AuthError::Forbidden)
}

/// Whether [`authorize_event`] surely allows an event of a joined member in a state whose power levels were read before.
///
/// The levels are the expensive part of the rules, and this is for the events that only they decide: those without a state
/// key, of a type that no rule speaks of. `false` says nothing; the rules themselves must then be asked, for the reason too.
pub fn is_surely_allowed(pdu: &Pdu, state: &impl StateView, levels: &PowerLevels) -> bool {
    let event_type = pdu.event_type();
    let is_ordinary = pdu.state_key().is_none()
        && !matches!(
            event_type,
            TimelineEventType::RoomCreate
                | TimelineEventType::RoomMember
                | TimelineEventType::RoomThirdPartyInvite
                | TimelineEventType::RoomPowerLevels
                | TimelineEventType::RoomRedaction
        )
        && *event_type != "m.room.aliases".into();
    is_ordinary
        && state.get(&StateEventType::RoomCreate, "").is_some_and(|create| is_home(pdu, &create))
        && state.get(&StateEventType::RoomMember, pdu.sender().as_str()).is_some_and(|member| is_join(&member))
        && levels.may_send(pdu.sender(), event_type, false)
}

/// Whether the room is the event's, and open to its sender's server.
fn is_home(pdu: &Pdu, create: &Pdu) -> bool {
    let federates = RoomCreateEvent::new(create).federate();
    let is_near = create.sender().server_name() == pdu.sender().server_name();
    !create.is_rejected() && create.room_id() == pdu.room_id() && federates.is_ok_and(|federates| federates || is_near)
}

fn is_join(member: &Pdu) -> bool {
    !member.is_rejected() && member.content_string("membership").as_deref() == Some("join")
}

/// The state made of the auth events of one event, and of the create event that its room id implies.
#[derive(Debug)]
pub struct AuthEventsState(Vec<Arc<Pdu>>);

impl AuthEventsState {
    /// Collects the auth events of the event.
    ///
    /// # Errors
    ///
    /// [`AuthError::UnknownAuthEvent`] if one of them is not in `events`.
    pub fn of(pdu: &Pdu, events: &impl EventSource) -> Result<Self, AuthError> {
        let mut ids = pdu.auth_events().to_vec();
        if pdu.version().room_id_is_create_hash() && *pdu.event_type() != TimelineEventType::RoomCreate {
            ids.push(create_event_id(pdu)?);
        }
        let find = |id: OwnedEventId| events.event(&id).ok_or(AuthError::UnknownAuthEvent(id));
        ids.into_iter().map(find).collect::<Result<_, _>>().map(Self)
    }
}

impl StateView for AuthEventsState {
    fn get(&self, event_type: &StateEventType, state_key: &str) -> Option<Arc<Pdu>> {
        let wanted = TimelineEventType::from(event_type.clone());
        self.0.iter().find(|event| *event.event_type() == wanted && event.state_key() == Some(state_key)).cloned()
    }
}
