//! The accounts and rooms that scenarios use: made once, in parallel, and kept in a state file for the next run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::stream::{self, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};

use crate::matrix::{Homeserver, Session};
use crate::progress::Progress;
use crate::target::Target;

/// Registrations at a time: each costs the server a password hash, which is meant to be slow.
const REGISTRATIONS_AT_ONCE: usize = 4;
/// Joins and creations of rooms at a time.
const CALLS_AT_ONCE: usize = 16;
/// The version of the state file; another one is not read.
const STATE_VERSION: u32 = 1;

/// A room and who is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// The room id.
    pub id: String,
    /// The first of its members among the users of the world, who made it.
    #[serde(default)]
    pub first: usize,
    /// How many users from there on are members.
    pub members: usize,
}

/// What is kept between runs. It holds access tokens of accounts that are worth nothing.
#[derive(Debug, Default, Serialize, Deserialize)]
struct State {
    version: u32,
    /// Distinguishes the names of this world from those of earlier ones on the same server.
    prefix: String,
    users: Vec<Session>,
    rooms: BTreeMap<String, Room>,
    accounts: BTreeMap<String, Account>,
    /// How far something was prepared that takes long, such as the events of a room.
    #[serde(default)]
    marks: BTreeMap<String, u64>,
}

/// An account of its own, beside the numbered users, and the rooms that only it is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The account.
    pub session: Session,
    /// Its rooms.
    pub rooms: Vec<String>,
}

/// Bounds on what a world may hold.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Accounts.
    pub users_max: usize,
    /// Rooms.
    pub rooms_max: usize,
}

/// One homeserver with the accounts and rooms on it.
pub struct World {
    /// What is measured.
    pub target: Target,
    /// Its client-server API.
    pub server: Arc<Homeserver>,
    state: State,
    file: Option<PathBuf>,
    bounds: Bounds,
}

impl World {
    /// An empty world, or the one that the state file holds, when its tokens are still good.
    ///
    /// # Errors
    /// When the target cannot be reached or the file cannot be read.
    pub async fn open(
        target: Target,
        server: Arc<Homeserver>,
        file: Option<PathBuf>,
        prefix: String,
        bounds: Bounds,
    ) -> Result<Self> {
        server.versions().await?;
        let fresh = State { version: STATE_VERSION, prefix, ..State::default() };
        let state = match &file {
            Some(path) if path.exists() => read(path)?,
            _ => fresh,
        };
        let world = Self { target, server, state, file, bounds };
        if let Some(user) = world.state.users.first() {
            let check = world.server.position(user, Some(&serde_json::json!({ "room": { "rooms": [] } }))).await;
            check.context("the accounts of the state file are not good any more: delete the file")?;
        }
        Ok(world)
    }

    /// The first `count` users, all made if they were not there.
    ///
    /// # Errors
    /// When the server refuses a registration or there would be too many.
    pub async fn users(&mut self, count: usize, progress: &Progress) -> Result<&[Session]> {
        if count > self.bounds.users_max {
            bail!("{count} accounts are needed; --users-max allows {}", self.bounds.users_max);
        }
        let have = self.state.users.len();
        if count > have {
            let step = progress.step(&format!("{}: registering accounts", self.target.name), count - have);
            let names = (have..count).map(|number| format!("{}-{number}", self.state.prefix));
            let (server, step) = (&self.server, &step);
            let made: Vec<Session> = stream::iter(names)
                .map(|name| async move {
                    let session = server.register(&name).await;
                    step.tick();
                    session
                })
                .buffered(REGISTRATIONS_AT_ONCE)
                .try_collect()
                .await?;
            self.state.users.extend(made);
            self.save()?;
        }
        Ok(&self.state.users[..count])
    }

    /// A room that the first `members` users are in, called `key` among the rooms of this world.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn room(&mut self, key: &str, members: usize, progress: &Progress) -> Result<Room> {
        self.room_from(key, 0, members, progress).await
    }

    /// As [`Self::room`], with members from the user numbered `first` on.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn room_from(&mut self, key: &str, first: usize, members: usize, progress: &Progress) -> Result<Room> {
        let members = members.max(1);
        let users = self.users(first + members, progress).await?[first..].to_vec();
        let known = self.state.rooms.get(key).cloned();
        let mut room = match known {
            Some(room) => room,
            None => {
                self.room_for_one_more(1)?;
                Room { id: self.server.create_room(&users[0], key).await?, first, members: 1 }
            }
        };
        if room.members < members {
            let step = progress.step(&format!("{}: filling {key}", self.target.name), members - room.members);
            let (server, id, step) = (&self.server, &room.id, &step);
            stream::iter(&users[room.members..])
                .map(|user| async move {
                    let joined = server.join(user, id).await;
                    step.tick();
                    joined
                })
                .buffered(CALLS_AT_ONCE)
                .try_collect::<Vec<()>>()
                .await?;
            room.members = members;
        }
        self.state.rooms.insert(key.to_owned(), room.clone());
        self.save()?;
        Ok(room)
    }

    /// An account of its own that is alone in `rooms` rooms.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn account(&mut self, key: &str, rooms: usize, progress: &Progress) -> Result<Account> {
        let known = self.state.accounts.get(key).cloned();
        let mut account = match known {
            Some(account) => account,
            None => {
                let name = format!("{}-{key}", self.state.prefix);
                Account { session: self.server.register(&name).await?, rooms: Vec::new() }
            }
        };
        let missing = rooms.saturating_sub(account.rooms.len());
        if missing > 0 {
            self.room_for_one_more(missing)?;
            let step = progress.step(&format!("{}: making the rooms of {key}", self.target.name), missing);
            let (server, creator, step) = (&self.server, &account.session, &step);
            let first = account.rooms.len();
            let made: Vec<String> = stream::iter(first..first + missing)
                .map(|number| async move {
                    let room = server.create_room(creator, &number.to_string()).await;
                    step.tick();
                    room
                })
                .buffered(CALLS_AT_ONCE)
                .try_collect()
                .await?;
            account.rooms.extend(made);
        }
        self.state.accounts.insert(key.to_owned(), account.clone());
        self.save()?;
        Ok(account)
    }

    /// How far something was prepared; zero at first.
    #[must_use]
    pub fn mark(&self, key: &str) -> u64 {
        self.state.marks.get(key).copied().unwrap_or_default()
    }

    /// Keeps how far something was prepared.
    ///
    /// # Errors
    /// When the state file cannot be written.
    pub fn set_mark(&mut self, key: &str, far: u64) -> Result<()> {
        self.state.marks.insert(key.to_owned(), far);
        self.save()
    }

    fn room_for_one_more(&self, more: usize) -> Result<()> {
        let alone: usize = self.state.accounts.values().map(|account| account.rooms.len()).sum();
        let rooms = self.state.rooms.len() + alone + more;
        if rooms > self.bounds.rooms_max {
            bail!("{rooms} rooms are needed; --rooms-max allows {}", self.bounds.rooms_max);
        }
        Ok(())
    }

    fn save(&self) -> Result<()> {
        let Some(path) = &self.file else { return Ok(()) };
        let text = serde_json::to_vec(&self.state)?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

fn read(path: &Path) -> Result<State> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let state: State = serde_json::from_slice(&text).with_context(|| format!("{} is no state file", path.display()))?;
    if state.version != STATE_VERSION {
        bail!("{} was written by another version: delete it", path.display());
    }
    Ok(state)
}

/// How many connections and how much time the client of a world may use.
#[derive(Debug, Clone, Copy)]
pub struct ClientBounds {
    /// Connections at a time.
    pub connections_max: usize,
    /// The time limit of one request.
    pub time_limit: Duration,
    /// Whether a public address may be used.
    pub i_own_this_server: bool,
}

/// Connects to a target and opens its world.
///
/// # Errors
/// When the target may not be measured or does not answer.
pub async fn connect(
    target: Target,
    client: ClientBounds,
    file: Option<PathBuf>,
    prefix: String,
    bounds: Bounds,
) -> Result<World> {
    target.check_pids()?;
    let server = Homeserver {
        name: target.name.clone(),
        client: target.client(client.i_own_this_server, client.connections_max, client.time_limit)?,
        registration_token: target.registration_token.clone(),
    };
    World::open(target, Arc::new(server), file, prefix, bounds).await
}
