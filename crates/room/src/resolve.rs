//! State resolution: several states of a room become one.
//!
//! Only what differs is touched. The difference of the trees gives the conflicted keys, the chain index gives the
//! auth difference and the conflicted state subgraph, and the algorithm runs on these and on the few unconflicted
//! events that its authorisation checks ask for. The result is a tree that shares everything else with the inputs.
//!
//! Because events may have to be loaded first, resolving has two steps: make a [`ResolvePlan`], load what
//! [`ResolvePlan::missing`] names until it names nothing, then call [`ResolvePlan::resolve`].
//!
//! See <https://spec.matrix.org/v1.19/rooms/v12/#state-resolution>, `rooms/v2` and `rooms/v1`.

mod needed;
mod sha1;
mod v1;
mod v2;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::OnceLock,
};

use ruma::{EventId, OwnedEventId, room_version_rules::StateResolutionVersion};

use crate::{
    authorize::EventSource,
    chain_cover::{ChainCover, ChainError, CommonState},
    state::{StateEntry, StateTree},
    versions::RoomVersion,
};

/// The most states that are resolved at once: an event has at most twenty predecessors.
pub const STATES_MAX: usize = 20;

/// The type and state key of a place in the state.
type Key = (String, String);

/// Why states could not be resolved. Nothing is wrong with the room; something was not at hand.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// There is no state, or more than [`STATES_MAX`].
    #[error("between 1 and {STATES_MAX} states can be resolved, not {0}")]
    StateCount(usize),
    /// An event of a state is not in the auth graph.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// An event, or its position, was not provided.
    #[error("the event {0} is needed to resolve the state")]
    MissingEvent(OwnedEventId),
    /// The algorithm stopped.
    #[error("the state cannot be resolved: {0}")]
    Algorithm(String),
}

/// A place of the state at which the states differ.
#[derive(Debug, Clone)]
struct Conflict {
    /// The entry of each distinct state, if it has one.
    values: Vec<Option<StateEntry>>,
}

impl Conflict {
    fn entries(&self) -> impl Iterator<Item = &StateEntry> {
        self.values.iter().flatten()
    }
}

/// What must be done to resolve some states.
#[derive(Debug)]
pub struct ResolvePlan<'a> {
    version: &'static RoomVersion,
    chains: &'a ChainCover,
    /// The distinct states; the first one is the base of the result.
    states: Vec<&'a StateTree>,
    conflicts: BTreeMap<Key, Conflict>,
    /// Auth difference and conflicted state subgraph, empty for version 1 of the algorithm.
    difference: BTreeSet<OwnedEventId>,
    subgraph: BTreeSet<OwnedEventId>,
    /// What the algorithm will look at, as far as the graph tells it.
    needed: BTreeSet<OwnedEventId>,
    /// The unconflicted events that authorise what is weighed, once all of `needed` was at hand.
    auth: OnceLock<BTreeMap<Key, OwnedEventId>>,
}

impl<'a> ResolvePlan<'a> {
    /// Compares the states and finds what is in conflict.
    ///
    /// # Errors
    ///
    /// [`ResolveError`] if there are too many states, or an event of them is not in the auth graph.
    pub fn new(
        version: &'static RoomVersion,
        states: impl IntoIterator<Item = &'a StateTree>,
        chains: &'a ChainCover,
    ) -> Result<Self, ResolveError> {
        let states: Vec<_> = states.into_iter().collect();
        if states.is_empty() || states.len() > STATES_MAX {
            return Err(ResolveError::StateCount(states.len()));
        }
        let (states, conflicts) = find_conflicts(&states);
        let none = BTreeSet::new;
        let mut plan = Self {
            version,
            chains,
            states,
            conflicts,
            difference: none(),
            subgraph: none(),
            needed: none(),
            auth: OnceLock::new(),
        };
        if plan.is_trivial() {
            return Ok(plan);
        }
        if let StateResolutionVersion::V2(rules) = version.rules().state_res {
            let sets: Vec<Vec<&EventId>> = (0..plan.states.len()).map(|state| plan.conflicted_events(state)).collect();
            let difference = chains.auth_chain_difference(&sets, &plan)?;
            let mut subgraph = Vec::new();
            if rules.consider_conflicted_state_subgraph {
                subgraph = chains.subgraph(sets.into_iter().flatten())?;
            }
            plan.difference = difference.into_iter().collect();
            plan.subgraph = subgraph.into_iter().collect();
        }
        plan.needed = needed::known_from_graph(&plan)?;
        Ok(plan)
    }

    /// Whether the states are all the same, so that nothing needs to be resolved.
    pub fn is_trivial(&self) -> bool {
        self.conflicts.is_empty()
    }

    /// How many places of the state are in conflict.
    pub fn conflict_count(&self) -> usize {
        self.conflicts.len()
    }

    /// The events that are needed and that `events` does not have.
    ///
    /// Load them and ask again until nothing is missing: the answer may grow with what is known, at most twice.
    pub fn missing(&self, events: &impl EventSource) -> Vec<OwnedEventId> {
        if self.is_trivial() { Vec::new() } else { needed::missing(self, events) }
    }

    /// Resolves the states.
    ///
    /// `position` tells where an event stands in the room's log, for the rare event that comes into the state from
    /// the auth chains and stood in none of the states.
    ///
    /// # Errors
    ///
    /// [`ResolveError`] if an event is missing or the algorithm fails.
    pub fn resolve(
        &self,
        events: &impl EventSource,
        position: impl Fn(&EventId) -> Option<u64>,
    ) -> Result<StateTree, ResolveError> {
        let mut result = self.states[0].clone();
        if self.is_trivial() {
            return Ok(result);
        }
        if let Some(missing) = self.missing(events).into_iter().next() {
            return Err(ResolveError::MissingEvent(missing));
        }
        let auth = needed::auth(self, events);
        let resolved: Vec<(Key, OwnedEventId)> = match self.version.rules().state_res {
            StateResolutionVersion::V1 => v1::resolve(self, auth, events)?,
            StateResolutionVersion::V2(rules) => v2::resolve(self, rules, auth, events)?,
            _ => return Err(ResolveError::Algorithm("unknown state resolution algorithm".to_owned())),
        };
        let resolved: BTreeMap<Key, OwnedEventId> = resolved.into_iter().collect();
        for (event_type, state_key) in self.conflicts.keys().filter(|key| !resolved.contains_key(*key)) {
            result.remove(event_type, state_key);
        }
        for ((event_type, state_key), event_id) in resolved {
            // What all the states agree about stays, whatever the algorithm brought up for the same place.
            if self.unconflicted(&event_type, &state_key).is_some() {
                continue;
            }
            // So does what is the base's already.
            if result.get_str(&event_type, &state_key).is_some_and(|entry| entry.event_id() == event_id) {
                continue;
            }
            let position = match self.known_position(&event_type, &state_key, &event_id) {
                Some(position) => position,
                None => position(&event_id).ok_or_else(|| ResolveError::MissingEvent(event_id.clone()))?,
            };
            result.insert(StateEntry::new(&event_type, &state_key, event_id, position));
        }
        Ok(result)
    }

    fn known_position(&self, event_type: &str, state_key: &str, event_id: &EventId) -> Option<u64> {
        let conflict = self.conflicts.get(&(event_type.to_owned(), state_key.to_owned()))?;
        conflict.entries().find(|entry| entry.event_id() == event_id).map(StateEntry::position)
    }

    /// The events in conflict of one state.
    fn conflicted_events(&self, state: usize) -> Vec<&EventId> {
        self.conflicts
            .values()
            .filter_map(|conflict| conflict.values[state].as_ref())
            .map(StateEntry::event_id)
            .collect()
    }

    /// The event that all states have at a place.
    fn unconflicted(&self, event_type: &str, state_key: &str) -> Option<&StateEntry> {
        let entry = self.states[0].get_str(event_type, state_key)?;
        let is_conflicted = self.conflicts.contains_key(&(event_type.to_owned(), state_key.to_owned()));
        (!is_conflicted).then_some(entry)
    }

    /// Every event that the algorithm weighs: the full conflicted set.
    fn full_conflicted_set(&self) -> BTreeSet<&EventId> {
        let conflicted = self.conflicts.values().flat_map(Conflict::entries).map(StateEntry::event_id);
        conflicted.chain(self.difference.iter().chain(&self.subgraph).map(|id| &**id)).collect()
    }
}

impl CommonState for ResolvePlan<'_> {
    fn contains(&self, event_type: &str, state_key: &str, event_id: &EventId) -> bool {
        self.unconflicted(event_type, state_key).is_some_and(|entry| entry.event_id() == event_id)
    }

    fn all(&self) -> Vec<OwnedEventId> {
        let is_common = |entry: &&StateEntry| self.contains(entry.event_type(), entry.state_key(), entry.event_id());
        self.states[0].iter().filter(is_common).map(|entry| entry.event_id().to_owned()).collect()
    }
}

/// The distinct states, and the places at which they do not all have the same event.
fn find_conflicts<'a>(states: &[&'a StateTree]) -> (Vec<&'a StateTree>, BTreeMap<Key, Conflict>) {
    let base = states[0];
    let mut distinct = vec![base];
    let mut keys = BTreeSet::new();
    for state in &states[1..] {
        if distinct.iter().any(|known| known.is_same(state)) {
            continue;
        }
        let changes = base.diff(state);
        let differs = |change: &&crate::state::StateChange| {
            change.before().map(StateEntry::event_id) != change.after().map(StateEntry::event_id)
        };
        keys.extend(
            changes
                .iter()
                .filter(differs)
                .map(|change| (change.event_type().to_owned(), change.state_key().to_owned())),
        );
        distinct.push(state);
    }
    let conflict_at = |key: Key| {
        let values = distinct.iter().map(|state| state.get_str(&key.0, &key.1).cloned()).collect();
        (key, Conflict { values })
    };
    let conflicts = keys.into_iter().map(conflict_at).collect();
    (distinct, conflicts)
}
