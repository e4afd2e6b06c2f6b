//! Which events the algorithm will look at.

use std::collections::{BTreeMap, BTreeSet};

use ruma::{
    EventId, OwnedEventId, events::TimelineEventType, room_version_rules::StateResolutionVersion,
    state_res::auth_types_for_event,
};

use super::{Key, ResolvePlan, StateEntry};
use crate::{authorize::EventSource, chain_cover::ChainError, pdu::Pdu};

const POWER_LEVELS: &str = "m.room.power_levels";

/// The events that the algorithm will look at and that `events` does not have.
pub(super) fn missing(plan: &ResolvePlan<'_>, events: &impl EventSource) -> Vec<OwnedEventId> {
    let missing = missing_of(&plan.needed, events);
    // What authorises the events is only known from them.
    if missing.is_empty() { missing_of(auth(plan, events).values(), events) } else { missing }
}

/// Those that `events` does not have.
fn missing_of<'a>(ids: impl IntoIterator<Item = &'a OwnedEventId>, events: &impl EventSource) -> Vec<OwnedEventId> {
    ids.into_iter().filter(|id| events.event(id).is_none()).cloned().collect()
}

/// The full conflicted set, what it cites, the create event, and the line of power levels for the mainline ordering.
pub(super) fn known_from_graph(plan: &ResolvePlan<'_>) -> Result<BTreeSet<OwnedEventId>, ChainError> {
    let mut needed: BTreeSet<OwnedEventId> = plan.full_conflicted_set().into_iter().map(ToOwned::to_owned).collect();
    for (event_type, key) in [("m.room.create", ""), (POWER_LEVELS, "")] {
        needed.extend(plan.unconflicted(event_type, key).map(id_of));
    }
    if plan.version.rules().state_res == StateResolutionVersion::V1 {
        return Ok(needed);
    }
    let mut pending: Vec<OwnedEventId> = needed.iter().cloned().collect();
    let mut walked_lines = BTreeSet::new();
    while let Some(id) = pending.pop() {
        for (cited, slot) in plan.chains.cited(&id)? {
            if slot == (POWER_LEVELS, "") && walked_lines.insert(cited.to_owned()) {
                pending.push(cited.to_owned());
            }
            if !needed.contains(cited) {
                needed.insert(cited.to_owned());
            }
        }
    }
    Ok(needed)
}

/// The unconflicted events that the authorisation of the conflicted ones asks for. All of the plan's `needed` are at hand.
pub(super) fn auth<'a>(plan: &'a ResolvePlan<'_>, events: &impl EventSource) -> &'a BTreeMap<Key, OwnedEventId> {
    plan.auth.get_or_init(|| unconflicted_auth(plan, events))
}

fn unconflicted_auth(plan: &ResolvePlan<'_>, events: &impl EventSource) -> BTreeMap<Key, OwnedEventId> {
    let conflicted = plan.full_conflicted_set();
    let mut slots: BTreeSet<Key> =
        conflicted.into_iter().filter_map(|id| events.event(id)).flat_map(|event| auth_slots(&event)).collect();
    for event_type in ["m.room.create", POWER_LEVELS] {
        slots.insert((event_type.to_owned(), String::new()));
    }
    let with_event = |slot: Key| plan.unconflicted(&slot.0, &slot.1).map(id_of).map(|id| (slot, id));
    slots.into_iter().filter_map(with_event).collect()
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
