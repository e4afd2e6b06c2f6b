//! Version 1 of the algorithm, for rooms of version 1.
//!
//! See <https://spec.matrix.org/v1.19/rooms/v1/#state-resolution>.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use ruma::{OwnedEventId, events::StateEventType};

use super::{Key, ResolveError, ResolvePlan, needed::key_of, sha1::sha1};
use crate::{
    authorize::{EventSource, StateView, authorize_event},
    pdu::Pdu,
};

/// The types that decide about others, in the order in which they are resolved.
const PASSES: [&str; 3] = ["m.room.power_levels", "m.room.join_rules", "m.room.member"];

/// *R*: the results so far, for the places that authorisation asks for and for those in conflict.
#[derive(Default)]
struct Results(BTreeMap<Key, Arc<Pdu>>);

impl StateView for Results {
    fn get(&self, event_type: &StateEventType, state_key: &str) -> Option<Arc<Pdu>> {
        self.0.get(&(event_type.to_string(), state_key.to_owned())).cloned()
    }
}

pub(super) fn resolve(
    plan: &ResolvePlan<'_>,
    auth: &BTreeMap<Key, OwnedEventId>,
    events: &impl EventSource,
) -> Result<Vec<(Key, OwnedEventId)>, ResolveError> {
    let mut candidates = BTreeMap::new();
    for (key, conflict) in &plan.conflicts {
        candidates.insert(key, distinct_events(conflict.entries().map(super::StateEntry::event_id), events)?);
    }
    let loaded = auth.values().filter_map(|id| events.event(id));
    let mut results = Results(loaded.filter_map(|event| Some((key_of(&event)?, event))).collect());
    // States that lack a key do not contradict one that has it: the union is taken.
    for (key, single) in candidates.iter().filter(|(_, list)| list.len() == 1) {
        results.0.insert((*key).clone(), Arc::clone(&single[0]));
    }
    candidates.retain(|_, list| list.len() > 1);
    for pass in PASSES {
        for (key, list) in candidates.iter().filter(|(key, _)| key.0 == pass) {
            resolve_auth_key(key, list, &mut results);
        }
    }
    let mut picked = Vec::new();
    for (key, list) in candidates.iter().filter(|(key, _)| !PASSES.contains(&key.0.as_str())) {
        picked.extend(pick_other(list, &results).map(|event| ((*key).clone(), event)));
    }
    results.0.extend(picked);
    let resolved = results.0.into_iter().filter(|(key, _)| plan.conflicts.contains_key(key));
    Ok(resolved.map(|(key, event)| (key, event.event_id().to_owned())).collect())
}

/// The accepted events of a place, each once, by ascending depth and descending hash of the id.
fn distinct_events<'a>(
    ids: impl Iterator<Item = &'a ruma::EventId>,
    events: &impl EventSource,
) -> Result<Vec<Arc<Pdu>>, ResolveError> {
    let mut list = Vec::new();
    for id in ids.collect::<std::collections::BTreeSet<_>>() {
        let event = events.event(id).ok_or_else(|| ResolveError::MissingEvent(id.to_owned()))?;
        if !event.is_rejected() {
            list.push(event);
        }
    }
    list.sort_by_cached_key(|event| (event.depth(), Reverse(sha1(event.event_id().as_bytes()))));
    Ok(list)
}

/// Takes the first event, then each that the one before allows, until one is not allowed.
fn resolve_auth_key(key: &Key, list: &[Arc<Pdu>], results: &mut Results) {
    let mut list = list.iter();
    if let Some(first) = list.next() {
        results.0.insert(key.clone(), Arc::clone(first));
    }
    for event in list {
        if authorize_event(event, results).is_err() {
            break;
        }
        results.0.insert(key.clone(), Arc::clone(event));
    }
}

/// The event with the highest depth and lowest hash that is allowed.
fn pick_other(list: &[Arc<Pdu>], results: &Results) -> Option<Arc<Pdu>> {
    list.iter().rev().find(|event| authorize_event(event, results).is_ok()).cloned()
}
