//! Versions 2 and 2.1 of the algorithm, through the library, on the difference alone.
//!
//! The library reads the state maps for two things: which keys are in conflict, and the unconflicted events that its
//! authorisation checks and its mainline start from. The maps built here have the conflicted keys and exactly those
//! unconflicted ones, so the result at the conflicted keys is that of the full maps. It reads the auth chains only
//! to subtract them, so it gets the ready difference and an empty chain.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{
    EventId, OwnedEventId,
    events::StateEventType,
    room_version_rules::StateResolutionV2Rules,
    state_res::{StateMap, utils::event_id_set::EventIdSet},
};

use super::{Key, ResolveError, ResolvePlan, needed::id_of};
use crate::{authorize::EventSource, pdu::Pdu};

pub(super) fn resolve(
    plan: &ResolvePlan<'_>,
    rules: StateResolutionV2Rules,
    auth: &BTreeMap<Key, OwnedEventId>,
    events: &impl EventSource,
) -> Result<Vec<(Key, OwnedEventId)>, ResolveError> {
    let maps = state_maps(plan, auth, events);
    let accepted = |ids: &BTreeSet<OwnedEventId>| -> EventIdSet<OwnedEventId> {
        ids.iter().filter(|id| events.event(id).is_some_and(|event| !event.is_rejected())).cloned().collect()
    };
    let difference = accepted(&plan.difference);
    let resolved = ruma::state_res::resolve(
        &plan.version.rules().authorization,
        &rules,
        maps.iter(),
        vec![difference, EventIdSet::new()],
        |id: &EventId| -> Option<Arc<Pdu>> { events.event(id) },
        |_| Some(accepted(&plan.subgraph)),
    )
    .map_err(|error| ResolveError::Algorithm(error.to_string()))?;
    Ok(resolved.into_iter().map(|((event_type, key), id)| ((event_type.to_string(), key), id)).collect())
}

/// One map per state: its conflicted entries, and the unconflicted ones that will be asked for.
fn state_maps(
    plan: &ResolvePlan<'_>,
    auth: &BTreeMap<Key, OwnedEventId>,
    events: &impl EventSource,
) -> Vec<StateMap<OwnedEventId>> {
    let key = |(event_type, state_key): &Key| (StateEventType::from(event_type.as_str()), state_key.clone());
    let shared: StateMap<OwnedEventId> = auth.iter().map(|(slot, id)| (key(slot), id.clone())).collect();
    let mut maps = vec![shared; plan.states.len()];
    for (slot, conflict) in &plan.conflicts {
        for (map, value) in maps.iter_mut().zip(&conflict.values) {
            // A rejected event has no say, even if it got into a state.
            let is_accepted = |id: &EventId| events.event(id).is_some_and(|event| !event.is_rejected());
            if let Some(entry) = value.as_ref().filter(|entry| is_accepted(entry.event_id())) {
                map.insert(key(slot), id_of(entry));
            }
        }
    }
    maps
}
