//! Judges what clients saw.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    hash::Hash,
};

/// What the clients of one simulation saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Bodies that were acknowledged, each with its event id, in the order of the acknowledgements of each sender.
    pub(crate) acknowledged: BTreeMap<String, Vec<(String, String)>>,
    /// Bodies in the order of the room's history, read at the end.
    pub(crate) history: Vec<String>,
    /// Bodies in the order in which a chain of `/sync` tokens delivered them.
    pub(crate) synced: Vec<String>,
    /// To-device messages that were acknowledged to their sender.
    pub(crate) to_device_acknowledged: BTreeSet<String>,
    /// To-device messages in the order in which the token chain delivered them.
    pub(crate) to_device_synced: Vec<String>,
    /// One-time keys.
    pub(crate) keys: Keys,
    /// The events of the receipts that were acknowledged, in order.
    pub(crate) receipts_acknowledged: Vec<String>,
    /// The event of the receipt that stands at the end.
    pub(crate) receipt: Option<String>,
}

/// The one-time keys of one device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Keys {
    /// Keys that were sent, whether or not that was acknowledged.
    pub(crate) tried: BTreeSet<String>,
    /// Keys whose upload was acknowledged.
    pub(crate) acknowledged: BTreeSet<String>,
    /// Keys that were handed out, in order, until there was none.
    pub(crate) claimed: Vec<String>,
    /// Claims whose answer was lost; each may have taken a key with it.
    pub(crate) unanswered: usize,
}

impl Keys {
    /// What is wrong, if anything is.
    pub(crate) fn violation(&self) -> Option<String> {
        if let Some(key) = places(self.claimed.iter().map(String::as_str)).1.first() {
            return Some(format!("the one-time key {key} was handed out twice"));
        }
        let claimed: BTreeSet<_> = self.claimed.iter().cloned().collect();
        if let Some(key) = claimed.difference(&self.tried).next() {
            return Some(format!("the one-time key {key} was never uploaded"));
        }
        let gone = self.acknowledged.difference(&claimed).count();
        let unanswered = self.unanswered;
        (gone > unanswered)
            .then(|| format!("{gone} one-time keys are gone, but only {unanswered} claims went unanswered"))
    }
}

/// The place of each of `all`, and those that come again.
pub(crate) fn places<T: Hash + Eq + Copy>(all: impl IntoIterator<Item = T>) -> (HashMap<T, usize>, Vec<T>) {
    let (mut places, mut repeated) = (HashMap::new(), Vec::new());
    for (place, one) in all.into_iter().enumerate() {
        match places.entry(one) {
            Entry::Occupied(_) => repeated.push(one),
            Entry::Vacant(entry) => {
                entry.insert(place);
            }
        }
    }
    (places, repeated)
}

impl Seen {
    /// What is wrong, if anything is.
    pub(crate) fn violation(&self) -> Option<String> {
        let (places_in_history, repeated) = places(self.history.iter().map(String::as_str));
        if let Some(body) = repeated.first() {
            return Some(format!("{body} is in the history twice"));
        }
        for (sender, acknowledged) in &self.acknowledged {
            let found: Vec<_> =
                acknowledged.iter().map(|(body, _)| places_in_history.get(body.as_str()).copied()).collect();
            if let Some(lost) = found.iter().position(Option::is_none) {
                return Some(format!("{} of {sender} was acknowledged and is lost", acknowledged[lost].0));
            }
            if !found.is_sorted() {
                return Some(format!("the events of {sender} are not in the order of their acknowledgements"));
            }
        }
        if self.synced != self.history {
            return Some(format!("the token chain saw {:?}, the history is {:?}", self.synced, self.history));
        }
        if let Some(message) = places(self.to_device_synced.iter().map(String::as_str)).1.first() {
            return Some(format!("the to-device message {message} came twice"));
        }
        let came: BTreeSet<_> = self.to_device_synced.iter().cloned().collect();
        if let Some(message) = self.to_device_acknowledged.difference(&came).next() {
            return Some(format!("the to-device message {message} was acknowledged and is lost"));
        }
        self.keys.violation().or_else(|| self.receipts_violation())
    }

    fn receipts_violation(&self) -> Option<String> {
        let bodies: BTreeMap<_, _> =
            self.acknowledged.values().flatten().map(|(body, event_id)| (event_id, body)).collect();
        let place = |event_id: &String| {
            let body = bodies.get(event_id)?;
            self.history.iter().position(|known| known == *body)
        };
        let wanted = self.receipts_acknowledged.iter().filter_map(place).max();
        let stands = self.receipt.as_ref().and_then(place);
        (wanted != stands).then(|| format!("the receipt stands at {stands:?}, but {wanted:?} was acknowledged"))
    }
}
