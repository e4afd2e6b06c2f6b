//! A small Matrix client that knows of each request whether it was done, was not done, or may have been done.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use bytes::Bytes;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use reqwest::Method;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use url::Url;

use crate::chaos::history::{Entry, Moment, Text};

/// How long a client waits for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// How long a connection may take.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    method: Method,
    path: Vec<String>,
    query: Vec<(&'static str, String)>,
    body: Option<Value>,
    token: Option<Text>,
    timeout: Duration,
    /// The node to ask; any of them if it is not set.
    node: Option<usize>,
}

impl Request {
    /// A request for a path below `/_matrix/client/v3`, given by its segments.
    pub fn new(method: Method, path: &[&str]) -> Self {
        let path = path.iter().map(|segment| (*segment).to_owned()).collect();
        Self { method, path, query: Vec::new(), body: None, token: None, timeout: ANSWER_MAX, node: None }
    }

    /// A GET request.
    pub fn get(path: &[&str]) -> Self {
        Self::new(Method::GET, path)
    }

    /// A POST request.
    pub fn post(path: &[&str], body: Value) -> Self {
        Self { body: Some(body), ..Self::new(Method::POST, path) }
    }

    /// A PUT request.
    pub fn put(path: &[&str], body: Value) -> Self {
        Self { body: Some(body), ..Self::new(Method::PUT, path) }
    }

    /// With one more argument.
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    /// By the owner of an access token.
    pub fn by(mut self, token: &Text) -> Self {
        self.token = Some(token.clone());
        self
    }

    /// With `more` time than a request has that the server answers at once.
    pub fn waiting(mut self, more: Duration) -> Self {
        self.timeout = ANSWER_MAX + more;
        self
    }

    /// What kind of request it is, whatever it is about.
    pub(crate) fn kind(&self) -> String {
        let words = self.path.iter().filter(|part| part.chars().all(|letter| letter.is_ascii_alphabetic()));
        words.fold(self.method.to_string(), |kind, word| format!("{kind} {word}"))
    }

    /// To one node.
    pub fn to_node(mut self, node: Option<usize>) -> Self {
        self.node = node;
        self
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path.join("/"))
    }
}

/// What became of a request.
#[derive(Clone, Debug)]
pub enum Answer {
    /// It was done, and this is the answer.
    Done(Bytes),
    /// The server refused it; it was certainly not done.
    Refused {
        /// The HTTP status.
        status: u16,
        /// What the server said.
        body: String,
    },
    /// It never reached a server that took it; it was certainly not done, and may be tried again.
    NotTaken(String),
    /// It may have been done.
    Unknown(String),
}

/// Sends requests to the nodes of a server, each to any one of them.
#[derive(Debug)]
pub struct Client {
    wire: reqwest::Client,
    urls: Vec<Url>,
    rng: RefCell<StdRng>,
    started: Instant,
}

impl Client {
    /// A client of the nodes at `urls`.
    ///
    /// # Errors
    /// If there is no URL, or one of them is none.
    pub fn new(urls: &[String], seed: u64) -> Result<Self, String> {
        let urls: Vec<Url> = urls
            .iter()
            .map(|url| Url::parse(url).map_err(|error| format!("{url}: {error}")))
            .collect::<Result<_, _>>()?;
        if urls.is_empty() {
            return Err("a client needs at least one base URL".to_owned());
        }
        let builder = reqwest::Client::builder().connect_timeout(CONNECT_MAX).no_proxy();
        let wire = builder.build().map_err(|error| error.to_string())?;
        Ok(Self { wire, urls, rng: RefCell::new(StdRng::seed_from_u64(seed)), started: Instant::now() })
    }

    /// The time since the run began.
    pub fn now(&self) -> Moment {
        Moment(u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    /// The number of nodes.
    pub fn nodes(&self) -> usize {
        self.urls.len()
    }

    /// Sends one request, once.
    pub async fn ask(&self, request: &Request) -> Answer {
        let node = request.node.unwrap_or_else(|| self.rng.borrow_mut().random_range(0..self.urls.len()));
        let mut url = self.urls[node].clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.clear().extend(["_matrix", "client", "v3"]).extend(&request.path);
        }
        if !request.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&request.query);
        }
        let mut builder = self.wire.request(request.method.clone(), url).timeout(request.timeout);
        if let Some(token) = &request.token {
            builder = builder.bearer_auth(token);
        }
        if let Some(body) = &request.body {
            builder = builder.json(body);
        }
        let answer = match builder.send().await {
            Ok(answer) => answer,
            Err(error) if error.is_connect() => return Answer::NotTaken(full(error)),
            Err(error) => return Answer::Unknown(full(error)),
        };
        let status = answer.status();
        let body = match answer.bytes().await {
            Ok(body) => body,
            Err(error) => return Answer::Unknown(full(error)),
        };
        let text = || String::from_utf8_lossy(&body).into_owned();
        match status.as_u16() {
            200..=299 => Answer::Done(body),
            // 408: its head did not come in time, as a server sees it that stood still meanwhile; nothing was done, and the
            // request may be repeated. <https://www.rfc-editor.org/rfc/rfc9110#status.408>
            408 | 429 => Answer::NotTaken(text()),
            400..=499 => Answer::Refused { status: status.as_u16(), body: text() },
            // What a server says that fails does not tell how far it came.
            status => Answer::Unknown(format!("{status} {}", text())),
        }
    }
}

/// An error with all its causes.
fn full(error: reqwest::Error) -> String {
    let error = error.without_url();
    let causes = std::iter::successors(std::error::Error::source(&error), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Reads an answer.
///
/// # Errors
/// If it is not what was asked for.
pub fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    let shown = || String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned();
    serde_json::from_slice(body).map_err(|error| format!("{error} in {}", shown()))
}

/// A list under the name `events`.
#[derive(Debug, Deserialize)]
pub struct Events<T> {
    /// The list.
    #[serde(default = "Vec::new")]
    pub events: Vec<T>,
}

impl<T> Default for Events<T> {
    fn default() -> Self {
        Self { events: Vec::new() }
    }
}

/// An event of a room.
#[derive(Clone, Debug, Deserialize)]
pub struct Event {
    /// Its id.
    pub event_id: Text,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its state key.
    pub state_key: Option<Text>,
    /// What is read of its content.
    pub content: Content,
}

/// What is read of the content of an event.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Content {
    /// What tells the event from all others.
    pub body: Option<Text>,
    /// A membership.
    pub membership: Option<String>,
}

impl Event {
    /// Whose membership it is, and whether the user is joined.
    pub fn member(&self) -> Option<(&Text, bool)> {
        let is_member = self.kind == "m.room.member";
        let user = self.state_key.as_ref().filter(|_| is_member)?;
        Some((user, self.content.membership.as_deref() == Some("join")))
    }
}

impl From<Event> for Entry {
    fn from(event: Event) -> Self {
        let member = event.member().map(|(user, joined)| (user.clone(), joined));
        Self { event: event.event_id, body: event.content.body, member }
    }
}

/// An event without an id: account data, ephemeral events, to-device messages.
#[derive(Clone, Debug, Deserialize)]
pub struct Data {
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its content.
    pub content: Value,
}

/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3sync>
#[derive(Debug, Deserialize)]
pub struct SyncAnswer {
    /// Where the next request begins.
    pub next_batch: String,
    /// Rooms.
    #[serde(default)]
    pub rooms: SyncRooms,
    /// Account data.
    #[serde(default)]
    pub account_data: Events<Data>,
    /// To-device messages.
    #[serde(default)]
    pub to_device: Events<Data>,
    /// Changes of devices.
    #[serde(default)]
    pub device_lists: DeviceLists,
}

/// The rooms of an answer.
#[derive(Debug, Default, Deserialize)]
pub struct SyncRooms {
    /// Those that the user is in.
    #[serde(default)]
    pub join: BTreeMap<Text, SyncRoom>,
    /// Those that the user has left.
    #[serde(default)]
    pub leave: BTreeMap<Text, SyncRoom>,
}

/// A room of an answer.
#[derive(Debug, Default, Deserialize)]
pub struct SyncRoom {
    /// What is new.
    #[serde(default)]
    pub timeline: Timeline,
    /// Receipts and typing.
    #[serde(default)]
    pub ephemeral: Events<Data>,
    /// The user's data of this room.
    #[serde(default)]
    pub account_data: Events<Data>,
}

/// A piece of a room's history.
#[derive(Debug, Default, Deserialize)]
pub struct Timeline {
    /// Its events, oldest first.
    #[serde(default)]
    pub events: Vec<Event>,
    /// Whether events are missing before it.
    #[serde(default)]
    pub limited: bool,
    /// Where what is missing ends.
    pub prev_batch: Option<String>,
}

/// Users whose devices changed.
#[derive(Debug, Default, Deserialize)]
pub struct DeviceLists {
    /// Those.
    #[serde(default)]
    pub changed: Vec<Text>,
}

/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidmessages>
#[derive(Debug, Deserialize)]
pub struct Page {
    /// The events.
    pub chunk: Vec<Event>,
    /// Where the next page begins.
    pub end: Option<String>,
}
