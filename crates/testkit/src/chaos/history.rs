//! What the clients of one run asked for and saw: all that the checker knows.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

/// A name, an identifier or a body.
pub type Text = Arc<str>;

/// Microseconds since the run began, by the one clock of the machine that runs the clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub u64);

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03} s", self.0 / 1_000_000, self.0 / 1_000 % 1_000)
    }
}

/// How one request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended<T> {
    /// It was done.
    Acknowledged(T),
    /// It was certainly not done.
    Refused,
    /// It may have been done, or may yet be.
    Unknown,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Try<T> {
    /// When it left.
    pub invoked: Moment,
    /// When its answer, or the end of the wait for one, came.
    pub ended: Moment,
    /// How it ended.
    pub outcome: Ended<T>,
}

impl<T> Try<T> {
    /// The same with another answer.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Try<U> {
        let outcome = match self.outcome {
            Ended::Acknowledged(answer) => Ended::Acknowledged(change(answer)),
            Ended::Refused => Ended::Refused,
            Ended::Unknown => Ended::Unknown,
        };
        Try { invoked: self.invoked, ended: self.ended, outcome }
    }
}

/// One thing that a client wanted, and every request for it, the first one first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation<T> {
    /// The requests.
    pub tries: Vec<Try<T>>,
}

impl<T> Default for Operation<T> {
    fn default() -> Self {
        Self { tries: Vec::new() }
    }
}

impl<T> Operation<T> {
    /// When it was asked for first.
    pub fn invoked(&self) -> Moment {
        self.tries.first().map_or(Moment::default(), |first| first.invoked)
    }

    /// When it was acknowledged first.
    pub fn acknowledged(&self) -> Option<Moment> {
        let acknowledged = self.tries.iter().filter(|one| matches!(one.outcome, Ended::Acknowledged(_)));
        acknowledged.map(|one| one.ended).min()
    }

    /// What the acknowledgements said.
    pub fn answers(&self) -> impl Iterator<Item = &T> {
        self.tries.iter().filter_map(|one| match &one.outcome {
            Ended::Acknowledged(answer) => Some(answer),
            Ended::Refused | Ended::Unknown => None,
        })
    }

    /// Whether it certainly never happened.
    pub fn is_refused(&self) -> bool {
        self.tries.iter().all(|one| matches!(one.outcome, Ended::Refused))
    }

    /// Whether a request of unknown outcome may take effect after the acknowledgement.
    pub fn is_in_doubt(&self) -> bool {
        self.tries.iter().any(|one| matches!(one.outcome, Ended::Unknown))
    }
}

/// An event that somebody sent, known by its body, which no other event has.
#[derive(Clone, Debug)]
pub struct Sent {
    /// The room.
    pub room: Text,
    /// The unique body.
    pub body: Text,
    /// The device and the transaction id, where the endpoint has one.
    pub transaction: Option<(Text, Text)>,
    /// The requests and the event ids that they were answered with.
    pub operation: Operation<Text>,
}

/// A value put into a register: something of which only the last value counts.
#[derive(Clone, Debug)]
pub struct Write {
    /// The register.
    pub register: Text,
    /// The value, which no other write of this register has.
    pub value: Text,
    /// The requests.
    pub operation: Operation<()>,
}

/// A value read from a register.
#[derive(Clone, Debug)]
pub struct Read {
    /// The register.
    pub register: Text,
    /// The room, if the register is a part of the room's state: its values are events of the room then.
    pub room: Option<Text>,
    /// The value; `None` if there was none.
    pub value: Option<Text>,
    /// When the request left.
    pub invoked: Moment,
}

/// A to-device message.
#[derive(Clone, Debug)]
pub struct Whisper {
    /// The sending device.
    pub sender: Text,
    /// The devices that it is for.
    pub receivers: Vec<Text>,
    /// The unique body.
    pub body: Text,
    /// The requests.
    pub operation: Operation<()>,
}

/// One-time keys uploaded together.
#[derive(Clone, Debug)]
pub struct KeyUpload {
    /// The device whose keys they are.
    pub device: Text,
    /// Each key with its id and its value.
    pub keys: Vec<Text>,
    /// The requests.
    pub operation: Operation<()>,
}

/// A claim for one key of a device.
#[derive(Clone, Debug)]
pub struct KeyClaim {
    /// The device whose key was claimed.
    pub device: Text,
    /// The requests, and the key that came, if one did.
    pub operation: Operation<Option<Text>>,
}

/// What was left of a device's one-time keys at the end.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    /// How many the server said there were.
    pub counted: u64,
    /// The keys that were handed out after that until there were no more.
    pub keys: Vec<Text>,
}

/// An event as a reader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The event id.
    pub event: Text,
    /// The body, of events that have one.
    pub body: Option<Text>,
    /// Whose membership it is, and whether it says that the user is joined.
    pub member: Option<(Text, bool)>,
}

impl Entry {
    /// The event, as a person would name it.
    pub fn what(&self) -> String {
        match (&self.body, &self.member) {
            (Some(body), _) => format!("\"{body}\" ({})", self.event),
            (None, Some((user, true))) => format!("the join of {user} ({})", self.event),
            (None, Some((user, false))) => format!("the leave of {user} ({})", self.event),
            (None, None) => self.event.to_string(),
        }
    }
}

/// The whole history of a room as one reader saw it at the end, oldest first.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Who read, and how.
    pub reader: Text,
    /// The room.
    pub room: Text,
    /// The events.
    pub entries: Vec<Entry>,
}

/// The end of a room's timeline as an initial `/sync` gave it.
#[derive(Clone, Debug)]
pub struct Tail {
    /// Who synced.
    pub reader: Text,
    /// The room.
    pub room: Text,
    /// The events.
    pub events: Vec<Text>,
}

/// What one chain of `/sync` tokens delivered of one room, its gaps filled.
#[derive(Clone, Debug)]
pub struct Chain {
    /// The user whose chain it is.
    pub user: Text,
    /// Event ids in the order of their delivery; one list for each stay of the user in the room.
    pub visits: Vec<Vec<Text>>,
}

/// Everything that the clients of one run asked for and saw.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Events.
    pub sent: Vec<Sent>,
    /// Values put into registers.
    pub writes: Vec<Write>,
    /// Values read from registers.
    pub reads: Vec<Read>,
    /// To-device messages sent.
    pub whispers: Vec<Whisper>,
    /// Bodies of to-device messages in the order of their delivery, by receiving device.
    pub heard: BTreeMap<Text, Vec<Text>>,
    /// One-time keys uploaded.
    pub key_uploads: Vec<KeyUpload>,
    /// One-time keys claimed.
    pub key_claims: Vec<KeyClaim>,
    /// One-time keys left at the end, by device.
    pub drains: BTreeMap<Text, Drain>,
    /// Changes of the device keys of a user.
    pub device_changes: Vec<(Text, Operation<()>)>,
    /// When a chain last said that a user's devices changed, by device of the chain and user.
    pub device_news: BTreeMap<(Text, Text), Moment>,
    /// Pairs of a device and a user that must hear of each other's devices.
    pub device_watchers: BTreeSet<(Text, Text)>,
    /// What the chains delivered, by device and room.
    pub chains: BTreeMap<(Text, Text), Chain>,
    /// Whole histories, read at the end.
    pub readings: Vec<Reading>,
    /// Ends of histories, read at the end.
    pub tails: Vec<Tail>,
    /// What a client itself found to be wrong.
    pub complaints: Vec<String>,
}
