//! What the people of a run share.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};

use crate::chaos::{
    client::{self, Answer, Client, Request},
    history::{Ended, History, Operation, Text, Try},
};

/// How long somebody insists on one thing. It covers the longest fault and the start of a node.
const INSIST_MAX: Duration = Duration::from_secs(60);

/// The pause after a request that came to nothing, in milliseconds at most.
const RETRY_PAUSE_MS_MAX: u64 = 60;

/// The password of everybody.
const PASSWORD: &str = "correct horse battery staple";

/// The event type of the registers in room state.
pub(crate) const REGISTER: &str = "org.cofactor.chaos.register";

/// The event type of to-device messages.
pub(crate) const WHISPER: &str = "org.cofactor.chaos.whisper";

/// A session.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) user: Text,
    pub(crate) id: Text,
    pub(crate) token: Text,
    /// User and device in one.
    pub(crate) label: Text,
}

/// Somebody with an account.
#[derive(Debug)]
pub(crate) struct Person {
    pub(crate) user: Text,
    /// At least one; the first one does what is done once a person.
    pub(crate) devices: Vec<Rc<Device>>,
    /// Whether it keeps leaving and joining some rooms.
    pub(crate) churns: bool,
}

/// A room.
#[derive(Debug)]
pub(crate) struct Room {
    pub(crate) id: Text,
    /// Whether people keep leaving and joining it.
    pub(crate) churned: bool,
}

/// What everybody does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Writes and reads.
    Load,
    /// Nobody writes any more but the run itself; the chains go on.
    Probe,
    /// The chains read what is left and end.
    Finish,
}

/// How often something happened that says what the run was worth.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) requests: Cell<u64>,
    pub(crate) unknown: Cell<u64>,
    pub(crate) not_taken: Cell<u64>,
    pub(crate) gaps: Cell<u64>,
    /// Failures of the server's own, one of each text.
    pub(crate) failures: RefCell<BTreeMap<String, u64>>,
}

pub(crate) fn one_more(cell: &Cell<u64>) {
    cell.set(cell.get() + 1);
}

/// Whether a refusal is what the request was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Wrong,
    Expected,
}

/// What the people of a run share.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) client: Client,
    pub(crate) seed: u64,
    pub(crate) people: Vec<Person>,
    pub(crate) rooms: Vec<Room>,
    pub(crate) phase: watch::Sender<Phase>,
    pub(crate) history: RefCell<History>,
    pub(crate) counts: Counts,
    /// The last event that each device saw of each room, by the device's label: another device of its user may be behind.
    pub(crate) latest: RefCell<BTreeMap<(Text, Text), Text>>,
    /// Bodies of probes, with the devices that they reached.
    pub(crate) probes: RefCell<BTreeSet<(Text, Text)>>,
}

#[derive(Deserialize)]
struct Session {
    user_id: Text,
    device_id: Text,
    access_token: Text,
}

/// The answer of endpoints that make an event.
#[derive(Deserialize)]
pub(crate) struct Made {
    pub(crate) event_id: Text,
}

impl World {
    /// Waits up to `max_ms` milliseconds.
    pub(crate) async fn pause(&self, rng: &mut StdRng, max_ms: u64) {
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..=max_ms))).await;
    }

    pub(crate) fn is_loading(&self) -> bool {
        *self.phase.borrow() == Phase::Load
    }

    /// The choices of one task, which no other task's timing changes.
    pub(crate) fn choices(&self, task: &str) -> StdRng {
        let mixed = task.bytes().fold(self.seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        StdRng::seed_from_u64(mixed)
    }

    pub(crate) fn complain(&self, what: String) {
        self.history.borrow_mut().complaints.push(what);
    }

    pub(crate) fn devices(&self) -> impl Iterator<Item = &Rc<Device>> {
        self.people.iter().flat_map(|person| &person.devices)
    }

    /// Sends a request once. Also says whether it makes sense to send it again.
    pub(crate) async fn attempt<T>(
        &self,
        request: &Request,
        refusal: Refusal,
        read: impl Fn(&[u8]) -> Result<T, String>,
    ) -> (Try<T>, bool) {
        let invoked = self.client.now();
        let answer = self.client.ask(request).await;
        let ended = self.client.now();
        one_more(&self.counts.requests);
        let (outcome, again) = match answer {
            Answer::Done(body) => match read(&body) {
                Ok(answer) => (Ended::Acknowledged(answer), false),
                Err(error) => {
                    self.complain(format!("{request} was answered with what it cannot mean: {error}"));
                    (Ended::Unknown, false)
                }
            },
            Answer::Refused { status, body } => {
                if refusal == Refusal::Wrong {
                    self.complain(format!("{request} was refused at {invoked}: {status} {body}"));
                }
                (Ended::Refused, false)
            }
            Answer::NotTaken(_) => {
                one_more(&self.counts.not_taken);
                (Ended::Refused, true)
            }
            Answer::Unknown(why) => {
                one_more(&self.counts.unknown);
                let what = format!("{}: {}", request.kind(), kind_of_failure(&why));
                *self.counts.failures.borrow_mut().entry(what).or_default() += 1;
                (Ended::Unknown, true)
            }
        };
        (Try { invoked, ended, outcome }, again)
    }

    /// Sends a request until it is acknowledged.
    pub(crate) async fn insist<T>(&self, request: &Request, read: impl Fn(&[u8]) -> Result<T, String>) -> Operation<T> {
        self.repeat(request, |_| Refusal::Wrong, read).await
    }

    /// As [`Self::insist`], for what is refused when it is done already. Says whether it is done.
    pub(crate) async fn insist_on_change(&self, request: &Request) -> bool {
        let once_in_doubt = |in_doubt| if in_doubt { Refusal::Expected } else { Refusal::Wrong };
        let operation = self.repeat(request, once_in_doubt, nothing).await;
        let is_refused = operation.tries.last().is_some_and(|last| matches!(last.outcome, Ended::Refused));
        operation.acknowledged().is_some() || (is_refused && operation.is_in_doubt())
    }

    async fn repeat<T>(
        &self,
        request: &Request,
        refusal: impl Fn(bool) -> Refusal,
        read: impl Fn(&[u8]) -> Result<T, String>,
    ) -> Operation<T> {
        let mut operation = Operation::default();
        let end = Instant::now() + INSIST_MAX;
        loop {
            let (one, again) = self.attempt(request, refusal(operation.is_in_doubt()), &read).await;
            operation.tries.push(one);
            if !again {
                return operation;
            }
            if Instant::now() > end {
                self.complain(format!("{request} was not acknowledged within {} s", INSIST_MAX.as_secs()));
                return operation;
            }
            let wait = self.choices(&operation.tries.len().to_string()).random_range(1..=RETRY_PAUSE_MS_MAX);
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
    }

    /// Asks something until there is an answer; `None` after a complaint.
    pub(crate) async fn fetch<T: DeserializeOwned>(&self, request: &Request) -> Option<T> {
        let mut tries = self.insist(request, client::read).await.tries;
        match tries.pop()?.outcome {
            Ended::Acknowledged(answer) => Some(answer),
            Ended::Refused | Ended::Unknown => None,
        }
    }

    /// Asks for something that may not be there, once: `None` if there was no answer, `Some(None)` if it is not there.
    pub(crate) async fn look(&self, request: &Request) -> (Try<Value>, Option<Option<Value>>) {
        let (one, again) = self.attempt(request, Refusal::Expected, client::read::<Value>).await;
        let found = match &one.outcome {
            Ended::Acknowledged(value) => Some(Some(value.clone())),
            Ended::Refused if !again => Some(None),
            Ended::Refused | Ended::Unknown => None,
        };
        (one, found)
    }
}

/// What a failure has in common with others of its kind: its text without numbers.
fn kind_of_failure(why: &str) -> String {
    why.chars().filter(|one| !one.is_ascii_digit()).take(160).collect()
}

/// An acknowledgement that says nothing.
pub(crate) fn nothing(_: &[u8]) -> Result<(), String> {
    Ok(())
}

/// The event id of an acknowledgement.
pub(crate) fn made(body: &[u8]) -> Result<Text, String> {
    client::read::<Made>(body).map(|made| made.event_id)
}

/// How large a run is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) users: usize,
    pub(crate) rooms: usize,
}

impl World {
    /// Makes accounts and rooms on a server that nothing happens to yet. Everybody is in every room; the last two of
    /// each keep parting. The first half has two devices each.
    pub(crate) async fn create(
        client: Client,
        seed: u64,
        run: &str,
        size: Size,
        registration_token: &str,
    ) -> Result<Self, String> {
        let mut world = Self {
            client,
            seed,
            people: Vec::new(),
            rooms: Vec::new(),
            phase: watch::Sender::new(Phase::Load),
            history: RefCell::default(),
            counts: Counts::default(),
            latest: RefCell::default(),
            probes: RefCell::default(),
        };
        for number in 0..size.users {
            let name = format!("u{number}-{run}");
            let first = world.register(&name, registration_token).await?;
            let mut devices = vec![Rc::new(first)];
            if number < size.users / 2 {
                devices.push(Rc::new(world.login(&name).await?));
            }
            let churns = number + 2 >= size.users && number > 1;
            world.people.push(Person { user: devices[0].user.clone(), devices, churns });
        }
        for number in 0..size.rooms {
            let creator = &world.people[number % size.users].devices[0];
            let id = world.create_room(creator, number).await?;
            for person in world.people.iter().filter(|person| person.user != creator.user) {
                let join = Request::post(&["join", &id], json!({})).by(&person.devices[0].token);
                world.must(&join).await?;
            }
            world.rooms.push(Room { id, churned: number + 2 >= size.rooms && number > 0 });
        }
        world.history.borrow_mut().device_watchers = world.watchers();
        Ok(world)
    }

    async fn must(&self, request: &Request) -> Result<Value, String> {
        match self.client.ask(request).await {
            Answer::Done(body) => client::read(&body),
            other => Err(format!("{request}: {other:?}")),
        }
    }

    /// <https://spec.matrix.org/v1.19/client-server-api/#token-authenticated-registration>
    async fn register(&self, name: &str, registration_token: &str) -> Result<Device, String> {
        let mut body = json!({ "username": name, "password": PASSWORD });
        for stage in ["m.login.registration_token", "m.login.dummy", "done"] {
            let offer = match self.client.ask(&Request::post(&["register"], body.clone())).await {
                Answer::Refused { status: 401, body } => client::read::<Value>(body.as_bytes())?,
                Answer::Done(body) => return client::read(&body).map(Device::of),
                other => return Err(format!("the registration of {name}: {other:?}")),
            };
            body["auth"] = json!({ "type": stage, "token": registration_token, "session": offer["session"] });
        }
        Err(format!("the registration of {name} asks for more than a registration token"))
    }

    async fn login(&self, name: &str) -> Result<Device, String> {
        let identifier = json!({ "type": "m.id.user", "user": name });
        let body = json!({ "type": "m.login.password", "identifier": identifier, "password": PASSWORD });
        let session = self.must(&Request::post(&["login"], body)).await?;
        serde_json::from_value(session).map(Device::of).map_err(|error| error.to_string())
    }

    async fn create_room(&self, creator: &Device, number: usize) -> Result<Text, String> {
        let options = json!({
            "preset": "public_chat",
            "name": format!("room {number}"),
            "power_level_content_override": { "events": { REGISTER: 0 } },
        });
        let room = self.must(&Request::post(&["createRoom"], options).by(&creator.token)).await?;
        room["room_id"].as_str().map(Text::from).ok_or_else(|| format!("no room id in {room}"))
    }

    /// Everybody shares a room with everybody for the whole run, except those who are alone in a run of one.
    fn watchers(&self) -> BTreeSet<(Text, Text)> {
        let users = self.people.iter().map(|person| &person.user);
        let pairs = users.flat_map(|user| self.devices().map(move |device| (device.label.clone(), user.clone())));
        pairs.collect()
    }
}

impl Device {
    fn of(session: Session) -> Self {
        let label = Text::from(format!("{}/{}", session.user_id, session.device_id));
        Self { user: session.user_id, id: session.device_id, token: session.access_token, label }
    }
}
