//! Questions to the index.

use std::collections::btree_set;

use ruma::{EventId, OwnedEventId};
use rustc_hash::FxHashMap;

use super::{ChainCover, ChainError, Place};

/// How many events are looked at to find one of the common state above an event, before the whole common state is
/// asked instead. Nearly always the first or second one is it.
const COMMON_PROBES_MAX: usize = 2_048;

/// For each chain, the number up to which it is covered.
type Cover = FxHashMap<u32, u32>;

/// The state events that all the states in question share.
pub trait CommonState {
    /// Whether the event is in its place in every one of the states.
    fn contains(&self, event_type: &str, state_key: &str, event_id: &EventId) -> bool;

    /// All of them. Asked only if the graph is shaped so that the few probes before found nothing.
    fn all(&self) -> Vec<OwnedEventId>;
}

impl ChainCover {
    /// Whether `target` is in the auth chain of `event`; an event is not in its own.
    ///
    /// # Errors
    ///
    /// [`ChainError::Unknown`] if one of the events is not in the graph.
    pub fn reaches(&self, event: &EventId, target: &EventId) -> Result<bool, ChainError> {
        let target = self.event(target)?.place;
        let cover = self.cover(self.cited_places([event])?);
        Ok(cover.get(&target.chain).is_some_and(|number| *number >= target.number))
    }

    /// The union of the auth chains of the events, without the events themselves unless another one reaches them.
    ///
    /// # Errors
    ///
    /// [`ChainError::Unknown`] if one of the events is not in the graph.
    pub fn auth_chain<'a>(
        &self,
        events: impl IntoIterator<Item = &'a EventId>,
    ) -> Result<Vec<OwnedEventId>, ChainError> {
        let cover = self.cover(self.cited_places(events)?);
        Ok(cover.into_iter().flat_map(|(chain, number)| self.ids(chain, 0, number)).collect())
    }

    /// The auth difference of several states: what is in some of their full auth chains, but not in all.
    ///
    /// Each set has the events of one state that the others do not share; `common` is the rest, which all share. The
    /// cost depends on the sets.
    ///
    /// # Errors
    ///
    /// [`ChainError::Unknown`] if one of the events is not in the graph.
    pub fn auth_chain_difference(
        &self,
        sets: &[Vec<&EventId>],
        common: &impl CommonState,
    ) -> Result<Vec<OwnedEventId>, ChainError> {
        let mut covers = Vec::with_capacity(sets.len());
        for set in sets {
            covers.push(self.cover(self.cited_places(set.iter().copied())?));
        }
        let mut highest = Cover::default();
        for (chain, number) in covers.iter().flatten() {
            let entry = highest.entry(*chain).or_default();
            *entry = (*entry).max(*number);
        }
        let mut common_reach = CommonReach { cover: None, probes_left: COMMON_PROBES_MAX };
        let mut difference = Vec::new();
        for (chain, number) in highest {
            let lowest = covers.iter().map(|cover| cover.get(&chain).copied().unwrap_or(0)).min().unwrap_or(0);
            let shared = common_reach.highest_reached(self, common, chain, lowest, number)?;
            difference.extend(self.ids(chain, shared, number));
        }
        Ok(difference)
    }

    /// The conflicted state subgraph: every event on a path of the auth graph between two of the events, with the
    /// events themselves.
    ///
    /// # Errors
    ///
    /// [`ChainError::Unknown`] if one of the events is not in the graph.
    pub fn subgraph<'a>(&self, events: impl IntoIterator<Item = &'a EventId>) -> Result<Vec<OwnedEventId>, ChainError> {
        let places = events.into_iter().map(|id| Ok(self.event(id)?.place)).collect::<Result<Vec<_>, _>>()?;
        let upper = self.cover(places.iter().copied());
        let lower = self.lowest_reaching(&places, &upper);
        let in_range = |(chain, first): (u32, u32)| self.ids(chain, first - 1, upper.get(&chain).copied().unwrap_or(0));
        Ok(lower.into_iter().flat_map(in_range).collect())
    }

    /// For each covered chain, the first number that reaches one of the places or is one.
    fn lowest_reaching(&self, places: &[Place], upper: &Cover) -> Cover {
        // The links inside the cover by their target chain, the highest target last.
        let mut incoming: FxHashMap<u32, Vec<(u32, Place)>> = FxHashMap::default();
        for (&chain, &number) in upper {
            let links = &self.chains[chain as usize].links;
            for link in links.iter().take_while(|link| link.number <= number) {
                let origin = Place { chain, number: link.number };
                incoming.entry(link.target.chain).or_default().push((link.target.number, origin));
            }
        }
        for links in incoming.values_mut() {
            links.sort_unstable_by_key(|(target, _)| *target);
        }
        let mut lower = Cover::default();
        let mut pending = places.to_vec();
        while let Some(place) = pending.pop() {
            let known = lower.entry(place.chain).or_insert(u32::MAX);
            if *known <= place.number {
                continue;
            }
            *known = place.number;
            // A link that has been followed once leads nowhere new later, so each is taken out.
            if let Some(links) = incoming.get_mut(&place.chain) {
                let first = links.partition_point(|(target, _)| *target < place.number);
                pending.extend(links.drain(first..).map(|(_, origin)| origin));
            }
        }
        lower
    }

    /// What the places reach, with the places themselves. Follows each link at most once.
    fn cover(&self, places: impl IntoIterator<Item = Place>) -> Cover {
        let mut cover = Cover::default();
        let mut pending: Vec<Place> = places.into_iter().collect();
        while let Some(place) = pending.pop() {
            let covered = cover.entry(place.chain).or_default();
            if *covered >= place.number {
                continue;
            }
            let before = std::mem::replace(covered, place.number);
            let links = &self.chains[place.chain as usize].links;
            let first = links.partition_point(|link| link.number <= before);
            let new = links[first..].iter().take_while(|link| link.number <= place.number);
            pending.extend(new.map(|link| link.target));
        }
        cover
    }

    /// The places of what the events cite.
    fn cited_places<'a>(&self, events: impl IntoIterator<Item = &'a EventId>) -> Result<Vec<Place>, ChainError> {
        let mut places = Vec::new();
        for id in events {
            let cited = &self.event(id)?.auth_events;
            places.extend(cited.iter().map(|index| self.events[*index as usize].place));
        }
        Ok(places)
    }

    /// The events of a chain after one number up to another.
    fn ids(&self, chain: u32, after: u32, up_to: u32) -> impl Iterator<Item = OwnedEventId> {
        (after + 1..=up_to).map(move |number| self.event_at(Place { chain, number }).id.clone())
    }
}

/// Tells how far the common state reaches into a chain.
struct CommonReach {
    /// What the whole common state covers, once it had to be asked.
    cover: Option<Cover>,
    probes_left: usize,
}

impl CommonReach {
    /// The highest number after `lowest`, up to `highest`, that the common state reaches; `lowest` if none.
    fn highest_reached(
        &mut self,
        chains: &ChainCover,
        common: &impl CommonState,
        chain: u32,
        lowest: u32,
        highest: u32,
    ) -> Result<u32, ChainError> {
        let (mut reached, mut unreached) = (lowest, highest + 1);
        while self.cover.is_none() && unreached - reached > 1 {
            let middle = reached + (unreached - reached) / 2;
            match self.probe(chains, common, Place { chain, number: middle }) {
                Some(true) => reached = middle,
                Some(false) => unreached = middle,
                None => {
                    let all = common.all();
                    let places = chains.cited_places(all.iter().map(|id| &**id))?;
                    self.cover = Some(chains.cover(places));
                }
            }
        }
        match &self.cover {
            Some(cover) => Ok(cover.get(&chain).copied().unwrap_or(0).clamp(reached, unreached - 1)),
            None => Ok(reached),
        }
    }

    /// Whether an event of the common state reaches the place; `None` if too many had to be looked at.
    ///
    /// Every member of a room may link to the place, so links are taken one by one, the newest first.
    fn probe(&mut self, chains: &ChainCover, common: &impl CommonState, target: Place) -> Option<bool> {
        // For each chain, the first number known to reach the target.
        let mut first_reaching = Cover::default();
        let mut pending = vec![incoming(chains, target.chain, target.number..=u32::MAX)];
        while let Some(links) = pending.last_mut() {
            let Some((_, _, chain, number)) = links.next_back() else {
                pending.pop();
                continue;
            };
            let origin = Place { chain: *chain, number: *number };
            match self.look_from(chains, common, origin, &mut first_reaching)? {
                Look::Common => return Some(true),
                Look::Reached(links) => pending.push(links),
            }
        }
        let after = Place { number: target.number + 1, ..target };
        Some(matches!(self.look_from(chains, common, after, &mut first_reaching)?, Look::Common))
    }

    /// Looks for an event of the common state in a chain, from a place on, as far as that was not done before.
    fn look_from<'a>(
        &mut self,
        chains: &'a ChainCover,
        common: &impl CommonState,
        place: Place,
        first_reaching: &mut Cover,
    ) -> Option<Look<'a>> {
        self.probes_left = self.probes_left.checked_sub(1)?;
        let length = chains.chains[place.chain as usize].events.len() as u32;
        let known = first_reaching.entry(place.chain).or_insert(length + 1);
        if *known <= place.number {
            return Some(Look::Reached(Incoming::default()));
        }
        let looked_at = std::mem::replace(known, place.number);
        for number in (place.number..looked_at).rev() {
            self.probes_left = self.probes_left.checked_sub(1)?;
            let event = chains.event_at(Place { chain: place.chain, number });
            if common.contains(&event.slot.0, &event.slot.1, &event.id) {
                return Some(Look::Common);
            }
        }
        Some(Look::Reached(incoming(chains, place.chain, place.number..=looked_at - 1)))
    }
}

/// What a look at a chain found.
enum Look<'a> {
    /// An event of the common state.
    Common,
    /// None; these link to what was looked at.
    Reached(Incoming<'a>),
}

/// Links by their target; see [`ChainCover`].
type Incoming<'a> = btree_set::Range<'a, (u32, u32, u32, u32)>;

/// The links to the numbers of a chain, those to the highest number last.
fn incoming(chains: &ChainCover, chain: u32, numbers: std::ops::RangeInclusive<u32>) -> Incoming<'_> {
    chains.incoming.range((chain, *numbers.start(), 0, 0)..=(chain, *numbers.end(), u32::MAX, u32::MAX))
}
