//! The auth graph of a room, cut into chains, so that questions about auth chains are not walks over events.
//!
//! Every event has a place `(chain, number)`; within a chain each event cites the one before it, so it reaches all
//! that are before it. What it cites outside its chain is kept as a link, and only if the chain does not lead as far
//! already. "Everything that these events reach" is then one number per chain, found by following links, not events;
//! memory is linear in the auth edges, and nothing recurses.
//!
//! The graph has an event for each state event of the room that can be cited, rejected ones included.
//!
//! See <https://spec.matrix.org/v1.19/rooms/v12/#definitions> for auth chain, auth difference and conflicted state
//! subgraph.

mod query;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use ruma::{EventId, OwnedEventId};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

pub use self::query::CommonState;
use crate::pdu::Pdu;

/// The number of an event in the order of insertion.
type EventIndex = u32;

/// A type and a state key, shared by the events that have them.
type Slot = Arc<(Box<str>, Box<str>)>;

/// Where an event is: its chain, and its number in it, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    chain: u32,
    number: u32,
}

/// Why an event cannot be put into the index, or asked about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// The event, or one that it cites, is not in the index.
    #[error("the event {0} is not in the auth graph")]
    Unknown(OwnedEventId),
    /// The index is full: 2^32 − 1 events.
    #[error("the auth graph is full")]
    Full,
}

#[derive(Debug, Clone)]
struct Event {
    id: OwnedEventId,
    slot: Slot,
    place: Place,
    auth_events: SmallVec<[EventIndex; 4]>,
}

/// From the event `number` of the chain that has the link to another chain's event.
#[derive(Debug, Clone, Copy)]
struct OutLink {
    number: u32,
    target: Place,
}

#[derive(Debug, Clone, Default)]
struct Chain {
    events: SmallVec<[EventIndex; 2]>,
    /// In the order of `number`.
    links: SmallVec<[OutLink; 3]>,
}

/// The index; see the module.
#[derive(Debug, Clone, Default)]
pub struct ChainCover {
    events: Vec<Event>,
    // Peers choose these keys: the hashes are keyed with a secret of the process, the order needs none.
    by_id: HashMap<OwnedEventId, EventIndex>,
    slots: BTreeSet<Slot>,
    chains: Vec<Chain>,
    /// How far a chain leads in another one, by its links alone.
    reach: FxHashMap<(u32, u32), u32>,
    /// The links by their target: target chain, target number, origin chain, origin number.
    incoming: BTreeSet<(u32, u32, u32, u32)>,
}

impl ChainCover {
    /// The graph without events.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many events the graph has.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether the graph has no event.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Whether the event is in the graph.
    pub fn contains(&self, event_id: &EventId) -> bool {
        self.by_id.contains_key(event_id)
    }

    /// How many chains and links there are, to watch the size.
    pub fn size(&self) -> (usize, usize) {
        (self.chains.len(), self.incoming.len())
    }

    /// Puts an event into the graph, after all the events it cites; one that is there already is left alone.
    ///
    /// From room version 12 on the create event is not among `auth_events`; every event rests on it, so it makes no
    /// difference to any question asked here.
    ///
    /// # Errors
    ///
    /// [`ChainError::Unknown`] if a cited event is not in the graph; nothing is changed then.
    pub fn insert<'a>(
        &mut self,
        event_id: &EventId,
        event_type: &str,
        state_key: &str,
        auth_events: impl IntoIterator<Item = &'a EventId>,
    ) -> Result<(), ChainError> {
        if self.contains(event_id) {
            return Ok(());
        }
        let mut cited: SmallVec<[EventIndex; 4]> = SmallVec::new();
        for id in auth_events {
            let index = self.index_of(id)?;
            if !cited.contains(&index) {
                cited.push(index);
            }
        }
        let index = u32::try_from(self.events.len()).map_err(|_| ChainError::Full)?;
        let slot = self.intern_slot(event_type, state_key);
        let place = self.assign_place(index, &slot, &cited);
        for cited in &cited {
            self.link(place, self.events[*cited as usize].place);
        }
        self.by_id.insert(event_id.to_owned(), index);
        self.events.push(Event { id: event_id.to_owned(), slot, place, auth_events: cited });
        Ok(())
    }

    /// Puts a state event into the graph, as [`Self::insert`]; an event without state key is never cited.
    ///
    /// # Errors
    ///
    /// [`ChainError::Unknown`] if a cited event is not in the graph; nothing is changed then.
    pub fn insert_pdu(&mut self, pdu: &Pdu) -> Result<(), ChainError> {
        let Some(state_key) = pdu.state_key() else { return Ok(()) };
        let cited = pdu.auth_events().iter().map(|id| &**id);
        self.insert(pdu.event_id(), &pdu.event_type().to_string(), state_key, cited)
    }

    fn intern_slot(&mut self, event_type: &str, state_key: &str) -> Slot {
        let slot = (Box::from(event_type), Box::from(state_key));
        if let Some(known) = self.slots.get(&slot) {
            return Arc::clone(known);
        }
        let slot = Arc::new(slot);
        self.slots.insert(Arc::clone(&slot));
        slot
    }

    /// Appends the event to the chain of a cited event that is the last of its chain, or opens a chain.
    ///
    /// The chain of the same type and state key comes first, so that power levels or the memberships of a user form
    /// one chain. Those that everything cites are not continued by anything else: the first join after them would
    /// cut them off from their successors.
    fn assign_place(&mut self, index: EventIndex, slot: &(Box<str>, Box<str>), cited: &[EventIndex]) -> Place {
        let is_last = |cited: &&EventIndex| {
            let place = self.events[**cited as usize].place;
            self.chains[place.chain as usize].events.len() == place.number as usize
        };
        let continued = cited
            .iter()
            .filter(is_last)
            .find(|cited| *self.events[**cited as usize].slot == *slot)
            .or_else(|| cited.iter().filter(is_last).find(|cited| !self.is_cited_by_all(**cited)));
        let chain = match continued {
            Some(cited) => self.events[*cited as usize].place.chain,
            None => {
                self.chains.push(Chain::default());
                // There are never more chains than events, whose number fits.
                (self.chains.len() - 1) as u32
            }
        };
        let events = &mut self.chains[chain as usize].events;
        events.push(index);
        Place { chain, number: events.len() as u32 }
    }

    fn is_cited_by_all(&self, index: EventIndex) -> bool {
        let (event_type, state_key) = &*self.events[index as usize].slot;
        state_key.is_empty() && matches!(&**event_type, "m.room.create" | "m.room.power_levels" | "m.room.join_rules")
    }

    /// Keeps the link if the chain of `from` does not lead as far already.
    fn link(&mut self, from: Place, target: Place) {
        if from.chain == target.chain {
            return;
        }
        let reach = self.reach.entry((from.chain, target.chain)).or_default();
        if *reach >= target.number {
            return;
        }
        *reach = target.number;
        self.chains[from.chain as usize].links.push(OutLink { number: from.number, target });
        self.incoming.insert((target.chain, target.number, from.chain, from.number));
    }

    fn index_of(&self, event_id: &EventId) -> Result<EventIndex, ChainError> {
        self.by_id.get(event_id).copied().ok_or_else(|| ChainError::Unknown(event_id.to_owned()))
    }

    fn event(&self, event_id: &EventId) -> Result<&Event, ChainError> {
        self.index_of(event_id).map(|index| &self.events[index as usize])
    }

    fn event_at(&self, place: Place) -> &Event {
        let index = self.chains[place.chain as usize].events[place.number as usize - 1];
        &self.events[index as usize]
    }

    /// The events that an event cites, each with its type and state key.
    ///
    /// # Errors
    ///
    /// [`ChainError::Unknown`] if the event is not in the graph.
    pub fn cited(&self, event_id: &EventId) -> Result<impl Iterator<Item = (&EventId, (&str, &str))>, ChainError> {
        let event = self.event(event_id)?;
        Ok(event.auth_events.iter().map(|index| {
            let cited = &self.events[*index as usize];
            (&*cited.id, (&*cited.slot.0, &*cited.slot.1))
        }))
    }
}
