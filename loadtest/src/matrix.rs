//! The calls of the client-server API that scenarios and their preparation make, and what their refusals mean.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::client::{Answer, Ask, Client, Failure};
use hyper::Method;

/// The password of every account that is made here; the accounts are worth nothing.
const PASSWORD: &str = "a load test's password 7";
/// How many steps of interactive authentication a registration may take.
const AUTH_STAGES_MAX: usize = 6;

/// A logged-in account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The full user id.
    pub user_id: String,
    /// The device of the token.
    pub device_id: String,
    /// The access token.
    pub token: String,
}

/// One homeserver as its clients see it.
pub struct Homeserver {
    /// What reports call it.
    pub name: String,
    /// The connections to it.
    pub client: Client,
    /// The token that registration asks for.
    pub registration_token: Option<String>,
}

/// Percent-encodes one segment of a path or one value of a query.
#[must_use]
pub fn encode(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// The path of a `PUT …/send/m.room.message/{txn}`.
/// <https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3roomsroomidsendeventtypetxnid>
#[must_use]
pub fn send_path(room_id: &str, transaction: &str) -> String {
    format!("/_matrix/client/v3/rooms/{}/send/m.room.message/{transaction}", encode(room_id))
}

/// The path of a `GET /sync` that waits at most `wait` for something new.
/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3sync>
#[must_use]
pub fn sync_path(since: Option<&str>, wait: Duration, filter: Option<&Value>) -> String {
    let mut path = format!("/_matrix/client/v3/sync?timeout={}", wait.as_millis());
    if let Some(since) = since {
        path.push_str("&since=");
        path.push_str(&encode(since));
    }
    if let Some(filter) = filter {
        path.push_str("&filter=");
        path.push_str(&encode(&filter.to_string()));
    }
    path
}

impl Homeserver {
    /// Asks for something that must succeed, and reads the JSON of the answer.
    ///
    /// # Errors
    /// A sentence that says what was refused and, where that is known, what to change on the target.
    pub async fn expect(&self, what: &str, ask: Ask) -> Result<Value> {
        let answer = self.client.send(ask).await.map_err(|failure| self.unreachable(what, &failure))?;
        self.read(what, &answer)
    }

    fn read(&self, what: &str, answer: &Answer) -> Result<Value> {
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
        if answer.status == 200 {
            return Ok(body);
        }
        let code = body["errcode"].as_str().unwrap_or("no errcode");
        let text = body["error"].as_str().unwrap_or_default();
        let name = &self.name;
        if answer.status == 429 {
            bail!(
                "{name}: a rate limit refused to {what}. Turn the limits off for the measurement (Cofactor: \
                 [rate_limits] enabled = false; Synapse: raise every rc_*.per_second) and run again"
            );
        }
        bail!("{name}: could not {what}: {} {code} {text}", answer.status)
    }

    fn unreachable(&self, what: &str, failure: &Failure) -> anyhow::Error {
        anyhow!("{}: could not {what}: {failure}. Is the server up, and the URL right?", self.name)
    }

    /// Checks that a homeserver answers, and returns what it says of its versions.
    ///
    /// # Errors
    /// When nothing answers, or something that is no homeserver.
    pub async fn versions(&self) -> Result<Value> {
        let ask = Ask { method: Method::GET, path: "/_matrix/client/versions".to_owned(), token: None, body: None };
        let answer = self.expect("ask for its versions", ask).await?;
        if !answer["versions"].is_array() {
            bail!("{}: what answers there is not a Matrix homeserver", self.name);
        }
        Ok(answer)
    }

    /// Registers an account, by whichever stages of interactive authentication can be passed without a person.
    /// <https://spec.matrix.org/v1.19/client-server-api/#account-registration>
    ///
    /// # Errors
    /// When registration is closed, wants a token that was not given, or wants more than a program can give.
    pub async fn register(&self, username: &str) -> Result<Session> {
        let mut body = json!({ "username": username, "password": PASSWORD, "initial_device_display_name": "load" });
        for _ in 0..AUTH_STAGES_MAX {
            let ask = Ask {
                method: Method::POST,
                path: "/_matrix/client/v3/register".to_owned(),
                token: None,
                body: Some((serde_json::to_vec(&body)?.into(), "application/json")),
            };
            let answer = self.client.send(ask).await.map_err(|failure| self.unreachable("register", &failure))?;
            match answer.status {
                401 => {
                    let challenge = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
                    body["auth"] = self.next_stage(&challenge)?;
                }
                403 => bail!(
                    "{}: registration is closed. Open it for the measurement (Cofactor: serve --registration-token \
                     TOKEN, or --open-registration; Synapse: enable_registration and \
                     enable_registration_without_verification)",
                    self.name
                ),
                _ => return session(&self.read("register an account", &answer)?),
            }
        }
        bail!("{}: registration asks for more than {AUTH_STAGES_MAX} stages", self.name)
    }

    fn next_stage(&self, challenge: &Value) -> Result<Value> {
        if let Some(error) = challenge["errcode"].as_str() {
            bail!("{}: registration was refused: {error}. Is --registration-token right?", self.name);
        }
        let done = strings(&challenge["completed"]);
        let flows: Vec<Vec<&str>> =
            challenge["flows"].as_array().into_iter().flatten().map(|flow| strings(&flow["stages"])).collect();
        let can = |stage: &str| match stage {
            "m.login.dummy" => true,
            "m.login.registration_token" => self.registration_token.is_some(),
            _ => false,
        };
        let Some(flow) = flows.iter().find(|flow| flow.iter().all(|stage| can(stage))) else {
            let wants_token = flows.iter().flatten().any(|stage| *stage == "m.login.registration_token");
            if wants_token && self.registration_token.is_none() {
                bail!("{}: registration asks for a token: add --registration-token TOKEN", self.name);
            }
            bail!("{}: registration asks for {flows:?}, which needs a person: allow m.login.dummy", self.name);
        };
        let stage = flow.iter().find(|stage| !done.contains(stage)).context("registration never ends")?;
        let mut auth = json!({ "type": stage, "session": challenge["session"] });
        if *stage == "m.login.registration_token" {
            auth["token"] = json!(self.registration_token);
        }
        Ok(auth)
    }

    /// Logs an account of ours in once more.
    ///
    /// # Errors
    /// When the login is refused.
    pub async fn login(&self, user_id: &str) -> Result<Session> {
        session(&self.expect("log in", login_ask(user_id)?).await?)
    }

    /// Makes a room that anybody may join, and returns its id. `nonce` tells its create event from those that the
    /// same user makes in the same millisecond: since version 12 the id of a room is the hash of that event.
    ///
    /// # Errors
    /// When the room is refused.
    pub async fn create_room(&self, creator: &Session, nonce: &str) -> Result<String> {
        let body = json!({ "preset": "public_chat", "creation_content": { "org.cofactor.load": nonce } }).to_string();
        let ask = Ask::post("/_matrix/client/v3/createRoom", &creator.token, body);
        let room = self.expect("create a room", ask).await?;
        Ok(room["room_id"].as_str().context("a created room has no id")?.to_owned())
    }

    /// Joins a room.
    ///
    /// # Errors
    /// When the join is refused.
    pub async fn join(&self, user: &Session, room_id: &str) -> Result<()> {
        self.expect("join a room", join_ask(user, room_id)).await.map(drop)
    }

    /// The token of a sync that has seen everything up to now, asked for as cheaply as the API allows.
    ///
    /// # Errors
    /// When the sync is refused.
    pub async fn position(&self, user: &Session, filter: Option<&Value>) -> Result<String> {
        let path = sync_path(None, Duration::ZERO, filter);
        let answer = self.expect("sync", Ask::get(path, &user.token)).await?;
        Ok(answer["next_batch"].as_str().context("a sync has no next_batch")?.to_owned())
    }
}

/// The request that joins a room.
#[must_use]
pub fn join_ask(user: &Session, room_id: &str) -> Ask {
    Ask::post(format!("/_matrix/client/v3/rooms/{}/join", encode(room_id)), &user.token, "{}")
}

/// The request that logs an account of ours in.
///
/// # Errors
/// Never in practice: the body is always JSON.
pub fn login_ask(user_id: &str) -> Result<Ask> {
    let body = json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": user_id },
        "password": PASSWORD,
    });
    let body = Some((serde_json::to_vec(&body)?.into(), "application/json"));
    Ok(Ask { method: Method::POST, path: "/_matrix/client/v3/login".to_owned(), token: None, body })
}

fn session(body: &Value) -> Result<Session> {
    let field = |name: &str| body[name].as_str().map(str::to_owned).with_context(|| format!("a session has no {name}"));
    Ok(Session { user_id: field("user_id")?, device_id: field("device_id")?, token: field("access_token")? })
}

fn strings(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}
