//! Judges what the clients of a cluster saw.

use std::collections::{BTreeMap, BTreeSet};

use ruma::{OwnedRoomId, OwnedUserId};

use crate::checker::{Keys, places};

/// A message that somebody tried to send.
#[derive(Clone, Debug, Default)]
pub(super) struct Said {
    pub(super) body: String,
    /// When it was first tried, in milliseconds.
    pub(super) invoked_ms: u64,
    /// When it was acknowledged.
    pub(super) acked_ms: Option<u64>,
    /// The ids that it was acknowledged with.
    pub(super) event_ids: BTreeSet<String>,
    /// Every try was refused with the promise that nothing happened, and it was given up.
    pub(super) is_refused: bool,
}

/// A chain of `/sync` tokens.
#[derive(Clone, Debug, Default)]
pub(super) struct Chain {
    /// Bodies by room, in the order in which they came.
    pub(super) synced: BTreeMap<OwnedRoomId, Vec<String>>,
    /// Bodies of to-device messages, in the order in which they came.
    pub(super) whispers: Vec<String>,
}

/// What clients saw.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) said: BTreeMap<OwnedRoomId, Vec<Said>>,
    /// The bodies of each room's history, as each reader found it at the end.
    pub(super) histories: Vec<BTreeMap<OwnedRoomId, Vec<String>>>,
    pub(super) chains: BTreeMap<OwnedUserId, Chain>,
    /// To-device messages that were acknowledged, by receiver, in order.
    pub(super) whispered: BTreeMap<OwnedUserId, Vec<String>>,
    pub(super) keys: Keys,
    /// What was wrong at once.
    violations: Vec<String>,
}

impl Seen {
    /// Notes something that was wrong at once.
    pub(super) fn violate(&mut self, violation: String) {
        self.violations.push(violation);
    }

    /// Whether a chain of everybody has brought what the history holds, and everything that was whispered.
    pub(super) fn have_all_arrived(&self, history: &BTreeMap<OwnedRoomId, Vec<String>>) -> bool {
        let rooms = |chain: &Chain| {
            history.iter().all(|(room, bodies)| chain.synced.get(room).map_or(0, Vec::len) >= bodies.len())
        };
        let whispers = |user: &OwnedUserId, chain: &Chain| {
            self.whispered.get(user).is_none_or(|all| all.iter().all(|one| chain.whispers.contains(one)))
        };
        self.chains.iter().all(|(user, chain)| rooms(chain) && whispers(user, chain))
    }

    /// What is wrong, if anything is.
    pub(super) fn violation(&self) -> Option<String> {
        if let Some(violation) = self.violations.first() {
            return Some(violation.clone());
        }
        let mut histories = self.histories.iter();
        let history = histories.next()?;
        if let Some(other) = histories.find(|other| *other != history) {
            return Some(format!("two readers do not find the same history: {history:?}, {other:?}"));
        }
        let rooms = self.said.iter().find_map(|(room, said)| room_violation(said, history.get(room)?));
        rooms
            .or_else(|| self.chains.iter().find_map(|(user, chain)| self.chain_violation(user, chain, history)))
            .or_else(|| self.keys.violation())
    }

    fn chain_violation(
        &self,
        user: &OwnedUserId,
        chain: &Chain,
        history: &BTreeMap<OwnedRoomId, Vec<String>>,
    ) -> Option<String> {
        for (room, bodies) in history {
            let synced = chain.synced.get(room).map(Vec::as_slice).unwrap_or_default();
            if synced != bodies {
                return Some(format!("{user} saw {synced:?} in {room}, the history is {bodies:?}"));
            }
        }
        if let Some(message) = places(chain.whispers.iter().map(String::as_str)).1.first() {
            return Some(format!("the to-device message {message} came to {user} twice"));
        }
        let (place, _) = places(chain.whispers.iter().map(String::as_str));
        let whispered = self.whispered.get(user).map(Vec::as_slice).unwrap_or_default();
        let found: Vec<_> = whispered.iter().map(|body| place.get(body.as_str())).collect();
        if let Some(lost) = found.iter().position(Option::is_none) {
            return Some(format!("the to-device message {} was acknowledged and is lost", whispered[lost]));
        }
        (!found.is_sorted()).then(|| format!("the to-device messages to {user} came in another order"))
    }
}

fn room_violation(said: &[Said], history: &[String]) -> Option<String> {
    let (place, repeated) = places(history.iter().map(String::as_str));
    if let Some(body) = repeated.first() {
        return Some(format!("{body} is in the history twice"));
    }
    for one in said {
        let found = place.get(one.body.as_str());
        if one.acked_ms.is_some() && found.is_none() {
            return Some(format!("{} was acknowledged and is lost", one.body));
        }
        if one.is_refused && found.is_some() {
            return Some(format!("{} was refused and is there", one.body));
        }
        if one.event_ids.len() > 1 {
            return Some(format!("{} was acknowledged as {:?}", one.body, one.event_ids));
        }
    }
    // What was acknowledged before something else was begun comes before it.
    let mut in_order: Vec<(usize, &Said)> =
        said.iter().filter_map(|one| Some((*place.get(one.body.as_str())?, one))).collect();
    in_order.sort_by_key(|(place, _)| *place);
    let mut begun_ms = 0;
    for (_, one) in in_order {
        if one.acked_ms.is_some_and(|acked_ms| acked_ms < begun_ms) {
            return Some(format!("{} was acknowledged before something that stands before it was begun", one.body));
        }
        begun_ms = begun_ms.max(one.invoked_ms);
    }
    None
}
