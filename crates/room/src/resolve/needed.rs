//! Which events the algorithm will look at.

use std::collections::BTreeSet;

use ruma::{
    EventId, OwnedEventId, events::TimelineEventType, room_version_rules::StateResolutionVersion,
    state_res::auth_types_for_event,
};

use super::{Key, ResolveError, ResolvePlan, StateEntry};
use crate::{authorize::EventSource, chain_cover::ChainError, pdu::Pdu};

const POWER_LEVELS: &str = "m.room.power_levels";

pub(super) fn missing(plan: &ResolvePlan<'_>, events: &impl EventSource) -> Result<Vec<OwnedEventId>, ResolveError> {
    if plan.is_trivial() {
        return Ok(Vec::new());
    }
    let without =
        |ids: BTreeSet<OwnedEventId>| -> Vec<_> { ids.into_iter().filter(|id| events.event(id).is_none()).collect() };
    let missing = without(known_from_graph(plan)?);
    if !missing.is_empty() {
        return Ok(missing);
    }
    let slots = unconflicted_auth_slots(plan, events);
    let entries = slots.iter().filter_map(|(event_type, key)| plan.unconflicted(event_type, key));
    Ok(without(entries.map(|entry| entry.event_id().to_owned()).collect()))
}

/// The full conflicted set, what it cites, the create event, and the line of power levels for the mainline ordering.
fn known_from_graph(plan: &ResolvePlan<'_>) -> Result<BTreeSet<OwnedEventId>, ChainError> {
    let mut needed: BTreeSet<OwnedEventId> = plan.full_conflicted_set().into_iter().map(ToOwned::to_owned).collect();
    for (event_type, key) in [("m.room.create", ""), (POWER_LEVELS, "")] {
        needed.extend(plan.unconflicted(event_type, key).map(|entry| entry.event_id().to_owned()));
    }
    if plan.version.rules().state_res == StateResolutionVersion::V1 {
        return Ok(needed);
    }
    let mut pending: Vec<OwnedEventId> = needed.iter().cloned().collect();
    let mut walked_lines = BTreeSet::new();
    while let Some(id) = pending.pop() {
        for cited in plan.chains.auth_events(&id)? {
            needed.insert(cited.to_owned());
            let is_power_levels = plan.chains.slot(cited)? == (POWER_LEVELS, "");
            if is_power_levels && walked_lines.insert(cited.to_owned()) {
                pending.push(cited.to_owned());
            }
        }
    }
    Ok(needed)
}

/// The places of the state that the authorisation of the conflicted events asks for.
pub(super) fn unconflicted_auth_slots(plan: &ResolvePlan<'_>, events: &impl EventSource) -> BTreeSet<Key> {
    let conflicted = plan.full_conflicted_set();
    let mut slots: BTreeSet<Key> =
        conflicted.into_iter().filter_map(|id| events.event(id)).flat_map(|event| auth_slots(&event)).collect();
    for event_type in ["m.room.create", POWER_LEVELS] {
        slots.insert((event_type.to_owned(), String::new()));
    }
    slots.retain(|(event_type, key)| plan.unconflicted(event_type, key).is_some());
    slots
}

/// The places that authorise one event; none for a malformed one, which no state allows.
pub(super) fn auth_slots(event: &Pdu) -> Vec<Key> {
    let rules = &event.version().rules().authorization;
    let slots = auth_types_for_event(event.event_type(), event.sender(), event.state_key(), event.content(), rules);
    slots.unwrap_or_default().into_iter().map(|(event_type, key)| (event_type.to_string(), key)).collect()
}

/// The place of a state event.
pub(super) fn key_of(event: &Pdu) -> Option<Key> {
    event.state_key().map(|key| (TimelineEventType::to_string(event.event_type()), key.to_owned()))
}

/// The id of an entry, for maps of the algorithm.
pub(super) fn id_of(entry: &StateEntry) -> OwnedEventId {
    EventId::to_owned(entry.event_id())
}
