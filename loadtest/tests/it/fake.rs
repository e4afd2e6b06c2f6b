//! A homeserver that keeps everything in memory and can be told to do one thing wrong.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cofactor_loadtest::target::Target;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;

/// What the server does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// The second user never sees every tenth event.
    Drop,
    /// The second user sees every tenth event twice.
    Repeat,
    /// The second user sees every tenth event after the one behind it.
    Reorder,
    /// The second user sees events only so long after they were sent.
    Delay(Duration),
    /// Every tenth send is acknowledged under an id that nobody sees.
    WrongId,
    /// Every tenth send is refused.
    Refuse,
    /// Every tenth send is never answered.
    Hang,
    /// A send works for so long for each member of the room.
    WorkForEachMember(Duration),
    RegistrationClosed,
    RateLimited,
    /// Something else listens there.
    NoHomeserver,
}

/// Events that one sync holds at most; the rest must be read from the history.
const TIMELINE_MAX: usize = 20;
pub(crate) const TOKEN: &str = "secret";

#[derive(Default)]
struct Model {
    users: Vec<String>,
    rooms: BTreeMap<String, BTreeSet<String>>,
    /// (room, event, when), in order; a position is an index.
    log: Vec<(String, Value, Instant)>,
    transactions: HashMap<String, String>,
    sends: u64,
}

pub(crate) struct Fake {
    fault: Fault,
    model: Mutex<Model>,
    news: Notify,
}

impl Fake {
    /// Starts a server with a fault, and says how to reach it.
    pub(crate) async fn start(fault: Fault) -> Target {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut target = Target::parse(&format!("fake=http://{}", listener.local_addr().unwrap())).unwrap();
        target.registration_token = Some(TOKEN.to_owned());
        let fake = Arc::new(Self { fault, model: Mutex::default(), news: Notify::new() });
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let fake = Arc::clone(&fake);
                let service = service_fn(move |request| answer(Arc::clone(&fake), request));
                let serving =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::spawn(async move { drop(serving.await) });
            }
        });
        target
    }

    async fn route(&self, request: Request<Incoming>) -> (u16, Value) {
        let path = request.uri().path().to_owned();
        let query: HashMap<String, String> =
            url::form_urlencoded::parse(request.uri().query().unwrap_or("").as_bytes())
                .map(|(name, value)| (name.into_owned(), value.into_owned()))
                .collect();
        let user = request.headers().get("authorization").and_then(|value| value.to_str().ok());
        let user = user.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default().to_owned();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let decoded = percent_encoding::percent_decode_str(&path).decode_utf8().unwrap().into_owned();
        let parts: Vec<&str> = decoded.trim_start_matches("/_matrix/client/").split('/').collect();
        match parts.as_slice() {
            ["versions"] if self.fault == Fault::NoHomeserver => (200, json!({ "hello": "world" })),
            ["versions"] => (200, json!({ "versions": ["v1.11"] })),
            ["v3", "register"] => self.register(&body),
            ["v3", "createRoom"] => self.create(&user),
            ["v3", "rooms", room, "join"] => self.join(room, &user),
            ["v3", "rooms", room, "send", _, transaction] => self.send(room, &user, transaction, body).await,
            ["v3", "rooms", room, "messages"] => self.messages(room, &user, &query),
            ["v3", "sync"] => self.sync(&user, &query).await,
            other => (404, json!({ "errcode": "M_UNRECOGNIZED", "error": format!("{other:?}") })),
        }
    }

    fn register(&self, body: &Value) -> (u16, Value) {
        match self.fault {
            Fault::RegistrationClosed => return (403, json!({ "errcode": "M_FORBIDDEN", "error": "closed" })),
            Fault::RateLimited => return (429, json!({ "errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": 100 })),
            _ => {}
        }
        if body["auth"]["token"] != TOKEN {
            return (401, json!({ "session": "s", "flows": [{ "stages": ["m.login.registration_token"] }] }));
        }
        let user_id = format!("@{}:fake", body["username"].as_str().unwrap());
        self.model.lock().unwrap().users.push(user_id.clone());
        (200, json!({ "user_id": user_id, "device_id": "D", "access_token": user_id }))
    }

    fn create(&self, user: &str) -> (u16, Value) {
        let mut model = self.model.lock().unwrap();
        let id = format!("!{}:fake", model.rooms.len());
        model.rooms.insert(id.clone(), BTreeSet::from([user.to_owned()]));
        (200, json!({ "room_id": id }))
    }

    fn join(&self, room: &str, user: &str) -> (u16, Value) {
        self.model.lock().unwrap().rooms.get_mut(room).unwrap().insert(user.to_owned());
        (200, json!({ "room_id": room }))
    }

    async fn send(&self, room: &str, user: &str, transaction: &str, content: Value) -> (u16, Value) {
        let (event_id, number) = {
            let mut model = self.model.lock().unwrap();
            model.sends += 1;
            let number = model.sends;
            if self.fault == Fault::Refuse && number.is_multiple_of(10) {
                return (500, json!({ "errcode": "M_UNKNOWN" }));
            }
            let event_id = format!("${number}");
            let event_id = model.transactions.entry(transaction.to_owned()).or_insert(event_id).clone();
            let event = json!({ "event_id": event_id, "sender": user, "type": "m.room.message", "content": content });
            model.log.push((room.to_owned(), event, Instant::now()));
            if let Fault::WorkForEachMember(work) = self.fault {
                let until = Instant::now() + work * u32::try_from(model.rooms[room].len()).unwrap();
                while Instant::now() < until {
                    std::hint::spin_loop();
                }
            }
            (event_id, number)
        };
        self.news.notify_waiters();
        match self.fault {
            Fault::Hang if number.is_multiple_of(10) => std::future::pending().await,
            Fault::WrongId if number.is_multiple_of(10) => (200, json!({ "event_id": "$other" })),
            _ => (200, json!({ "event_id": event_id })),
        }
    }

    /// The events of a room in (from, to] as a user sees them, faults and all.
    fn view(&self, model: &Model, room: &str, user: &str, from: usize, to: usize) -> Vec<Value> {
        let in_room = model.log[from..to].iter().filter(|(place, _, _)| place == room);
        let mut seen: Vec<Value> = in_room.map(|(_, event, _)| event.clone()).collect();
        if model.users.get(1).is_none_or(|second| second != user) {
            return seen;
        }
        let tenth = |event: &Value| event["event_id"].as_str().unwrap().ends_with('0');
        match self.fault {
            Fault::Drop => seen.retain(|event| !tenth(event)),
            Fault::Repeat => {
                seen = seen.into_iter().flat_map(|e| vec![e.clone(); 1 + usize::from(tenth(&e))]).collect()
            }
            Fault::Reorder => {
                let places: Vec<usize> = (1..seen.len()).filter(|at| tenth(&seen[at - 1])).collect();
                places.into_iter().for_each(|at| seen.swap(at - 1, at));
            }
            _ => {}
        }
        seen
    }

    /// Up to where a user may see: everything, unless it is shown late.
    fn horizon(&self, model: &Model, user: &str) -> usize {
        let second = model.users.get(1).is_some_and(|second| second == user);
        match self.fault {
            Fault::Delay(delay) if second => model.log.partition_point(|(_, _, at)| at.elapsed() >= delay),
            _ => model.log.len(),
        }
    }

    async fn sync(&self, user: &str, query: &HashMap<String, String>) -> (u16, Value) {
        let wait = Duration::from_millis(query["timeout"].parse().unwrap());
        let start = Instant::now();
        loop {
            let heard = self.news.notified();
            let answer = self.look(user, query.get("since").map(|since| since.parse().unwrap()));
            let left = wait.saturating_sub(start.elapsed());
            if answer["rooms"]["join"].as_object().is_none_or(|rooms| !rooms.is_empty()) || left.is_zero() {
                return (200, answer);
            }
            // What is shown late comes without news, so a held sync looks again and again.
            let _ = tokio::time::timeout(left.min(Duration::from_millis(20)), heard).await;
        }
    }

    fn look(&self, user: &str, since: Option<usize>) -> Value {
        let model = self.model.lock().unwrap();
        let to = self.horizon(&model, user);
        let mut rooms = serde_json::Map::new();
        for (room, _) in model.rooms.iter().filter(|(_, members)| members.contains(user)) {
            let Some(since) = since else { continue };
            let seen = self.view(&model, room, user, since.min(to), to);
            if !seen.is_empty() {
                let cut = seen.len().saturating_sub(TIMELINE_MAX);
                let end = format!("{to}-{cut}-{since}");
                let timeline = json!({ "events": seen[cut..], "limited": cut > 0, "prev_batch": end });
                rooms.insert(room.clone(), json!({ "timeline": timeline }));
            }
        }
        json!({ "next_batch": to.max(since.unwrap_or(0)).to_string(), "rooms": { "join": rooms } })
    }

    /// Everything before a cut, in one page; tokens are `to-cut-since`.
    fn messages(&self, room: &str, user: &str, query: &HashMap<String, String>) -> (u16, Value) {
        let parts: Vec<usize> = query["from"].split('-').map(|part| part.parse().unwrap()).collect();
        let model = self.model.lock().unwrap();
        let mut seen = self.view(&model, room, user, parts[2], parts[0]);
        seen.truncate(parts[1]);
        seen.reverse();
        (200, json!({ "chunk": seen }))
    }
}

async fn answer(fake: Arc<Fake>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, body) = fake.route(request).await;
    Ok(Response::builder().status(status).body(Full::new(body.to_string().into())).unwrap())
}
