//! The service: hears the bus, keeps the slots, lets requests wait.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use cofactor_bus::{Delivery, Heartbeat, Listener, Record};
use cofactor_entity::Planted;
use cofactor_history::{History, Recent};
use cofactor_store::{Scan, key, record, tables};
use cofactor_types::{Clock, EntityId, EntityKind, Fault, Position, ShardId, SyncToken, limits::SHARDS_DEFAULT};
use cofactor_wire::{
    room::{self, Typing},
    user::{self, KeyCounts, RoomEntry, Users},
};
use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId, events::room::member::MembershipState};
use tokio::sync::{Notify, watch};
use tracing::{Instrument, Span};

use crate::{
    SyncRequest,
    ear::{Ear, Heard},
    slot::{Slot, applied},
    unread::Notifications,
};

/// A slot that nobody used for this long goes when room is needed, in microseconds.
const SLOT_IDLE_US: u64 = 120_000_000;

/// How long a token that is ahead of this service is waited for.
const AHEAD_MAX: Duration = Duration::from_secs(2);

/// How far positions may be ahead of this machine's clock, in microseconds: clocks differ and jump, and successors begin above leases.
const FUTURE_MAX_US: u64 = 24 * 3_600 * 1_000_000;

/// Rooms whose typing is remembered before those are forgotten where nobody types and nobody listens.
const TYPING_ROOMS_MAX: usize = 10_000;

/// The longest that a request waits, whatever it asks for.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// Recent events in memory unless the operator says otherwise, in bytes.
pub const EVENT_CACHE_BYTES: u64 = 64 << 20;

/// What the node decides.
#[derive(Clone, Copy, Debug)]
pub struct SyncOptions {
    /// Users kept at once before idle ones go.
    pub slots_max: usize,
    /// Recent events of rooms in memory, in bytes.
    pub event_cache_bytes: u64,
    /// The bus is that of this process: what was acknowledged to anybody was heard here before.
    pub hears_at_once: bool,
    /// Shards of the cluster. Until each has been heard of, nothing can be said to be complete.
    pub shard_count: u32,
    /// For tests only.
    pub planted: Planted,
}

impl Default for SyncOptions {
    fn default() -> Self {
        Self {
            slots_max: 100_000,
            event_cache_bytes: EVENT_CACHE_BYTES,
            hears_at_once: false,
            shard_count: SHARDS_DEFAULT,
            planted: Planted::Nothing,
        }
    }
}

/// The `/sync` of one node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SyncService {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) history: History,
    /// What `history` has in memory; told of all that is heard, before anybody is woken by it.
    recent: Arc<Recent>,
    pub(crate) users: Arc<dyn Users>,
    pub(crate) notifications: Arc<dyn Notifications>,
    pub(crate) clock: Arc<dyn Clock>,
    options: SyncOptions,
    hub: Mutex<Hub>,
    /// The closed position, lowest over all shards, for reading without the lock.
    closed: AtomicU64,
    heard: Notify,
    /// Requests that are being answered or wait.
    waiting: AtomicUsize,
    shutdown: watch::Receiver<bool>,
}

/// A request that is being answered or waits, until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How a service is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyncLoad {
    /// Requests that are being answered or wait.
    pub waiting: usize,
    /// Users kept in memory.
    pub slots: usize,
    /// How far the closed position is behind the clock; `None` until every shard has been heard of.
    pub lag: Option<Duration>,
}

/// Who is to be woken by what.
#[derive(Debug, Default)]
struct Hub {
    slots: HashMap<OwnedUserId, Arc<Slot>>,
    /// Rooms whose members sync here.
    by_room: HashMap<OwnedRoomId, Watched>,
    typing: HashMap<OwnedRoomId, (Position, Typing)>,
    ear: Ear,
    /// The highest position heard of anything.
    highest: Position,
}

/// A room that is listened to.
#[derive(Debug, Default)]
struct Watched {
    /// Users that are joined to it and sync here.
    users: BTreeMap<OwnedUserId, Arc<Slot>>,
    /// Those of them who have looked since they were last told of something: the others know that they must look, and a
    /// record costs nothing for them.
    armed: Vec<Arc<Slot>>,
    /// Where the last record stands.
    last: Position,
}

impl SyncService {
    /// A service that has heard nothing yet. `shutdown` turning true sends waiting requests home.
    pub fn new(
        history: History,
        users: Arc<dyn Users>,
        notifications: Arc<dyn Notifications>,
        clock: Arc<dyn Clock>,
        options: SyncOptions,
        shutdown: watch::Receiver<bool>,
    ) -> Self {
        let recent = Arc::new(Recent::new(options.event_cache_bytes, options.hears_at_once, Arc::clone(&clock)));
        let inner = Inner {
            history: history.with_recent(Arc::clone(&recent)),
            recent,
            users,
            notifications,
            clock,
            options,
            hub: Mutex::new(Hub { ear: Ear::new(options.shard_count), ..Hub::default() }),
            closed: AtomicU64::new(0),
            heard: Notify::new(),
            waiting: AtomicUsize::new(0),
            shutdown,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Answers a request: an encoded JSON object.
    ///
    /// # Errors
    /// If the token is not ours, or the store fails.
    pub async fn sync(&self, mut request: SyncRequest) -> Result<Bytes, Fault> {
        let timeout = tokio::time::sleep(request.timeout.min(TIMEOUT_MAX));
        tokio::pin!(timeout);
        let mut shutdown = self.inner.shutdown.clone();
        self.inner.catch_up(request.since.as_ref()).await?;
        let _waiting = Waiting::begin(&self.inner.waiting);
        let mut wake = Span::none();
        loop {
            // Before the slot: one that is fresh after this has missed nothing at or below it.
            let closed = self.inner.closed();
            let slot = self.inner.slot(&request.user_id).await?;
            // Registered before anything is read, so that nothing is missed in between.
            let woken = slot.notify.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            if self.inner.options.planted == Planted::TokenFromMemory && request.since.is_some() {
                request.since = slot.view().served.get(&request.device_id).cloned().or(request.since);
            }
            // On the heap, and gone again while the request waits: it is much larger than what waiting needs.
            let look = Box::pin(self.inner.answer(&slot, &request, closed));
            let answer = look.instrument(std::mem::replace(&mut wake, Span::none())).await?;
            if self.inner.options.planted == Planted::TokenFromMemory {
                slot.view().served.insert(request.device_id.clone(), answer.token.clone());
            }
            let waits = request.since.is_some() && !request.full_state && !answer.has_news;
            if !waits || request.timeout.is_zero() || timeout.is_elapsed() || *shutdown.borrow() {
                return Ok(answer.body);
            }
            // What was looked at and found empty need not be looked at again.
            request.since = Some(answer.token);
            tokio::select! {
                () = &mut woken => {
                    metrics::counter!("cofactor_sync_wakes_total").increment(1);
                    wake = slot.wake_span();
                }
                () = &mut timeout => {}
                _ = shutdown.changed() => {}
            }
        }
    }

    /// A token that says: everything until now was delivered.
    pub fn now(&self) -> SyncToken {
        SyncToken::new(self.inner.closed())
    }

    /// How this service is doing.
    pub fn load(&self) -> SyncLoad {
        let closed = self.inner.closed();
        let behind_us = self.inner.clock.now_us().saturating_sub(closed.0);
        SyncLoad {
            waiting: self.inner.waiting.load(Ordering::Relaxed),
            slots: self.inner.hub().slots.len(),
            lag: (closed > Position::ZERO).then_some(Duration::from_micros(behind_us)),
        }
    }

    /// Users whose devices changed, and users who share no room any more, between two tokens.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn key_changes(
        &self,
        user_id: &UserId,
        from: &SyncToken,
        to: &SyncToken,
    ) -> Result<(Vec<OwnedUserId>, Vec<OwnedUserId>), Fault> {
        let slot = self.inner.slot(user_id).await?;
        self.inner.arm(&slot);
        self.inner.device_changes(&slot, from, Some(to)).await
    }
}

impl Listener for SyncService {
    fn hear(&self, delivery: &Delivery) {
        match delivery {
            Delivery::Record(record) => {
                let delay_us = self.inner.clock.now_us().saturating_sub(record.position.0);
                metrics::histogram!("cofactor_bus_delay_seconds").record(delay_us as f64 / 1e6);
                self.inner.hear(record);
            }
            Delivery::Heartbeat(heartbeat) => {
                metrics::counter!("cofactor_bus_heartbeats_total").increment(1);
                self.inner.hear_heartbeat(heartbeat);
            }
            Delivery::Gap => {
                metrics::counter!("cofactor_sync_gaps_total").increment(1);
                if self.inner.options.planted != Planted::IgnoreBusGaps {
                    self.inner.spoil();
                }
            }
        }
    }
}

impl Inner {
    fn hub(&self) -> MutexGuard<'_, Hub> {
        self.hub.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn closed(&self) -> Position {
        Position(self.closed.load(Ordering::Acquire))
    }

    /// Typing in a room, and since when it is so.
    pub(crate) fn typing(&self, room_id: &RoomId) -> Option<(Position, Typing)> {
        self.hub().typing.get(room_id).cloned()
    }

    /// Brings what the slot knows up to what was heard, and lets it be told of what comes.
    pub(crate) fn arm(&self, slot: &Arc<Slot>) {
        if !slot.view().feed.has_marked() {
            return;
        }
        let mut hub = self.hub();
        let mut view = slot.view();
        for room_id in view.feed.take_marked() {
            let Some(watched) = hub.by_room.get_mut(&room_id) else { continue };
            if watched.users.get(&slot.user_id).is_some_and(|known| Arc::ptr_eq(known, slot)) {
                view.feed.note(&room_id, watched.last);
                watched.armed.push(Arc::clone(slot));
            }
        }
    }

    /// Waits until this service has heard what the token's maker had heard; one that nobody can have made is refused.
    async fn catch_up(&self, since: Option<&SyncToken>) -> Result<(), Fault> {
        let base = since.map_or(Position::ZERO, SyncToken::base);
        // Positions are times, roughly: nobody has been where this token says that it comes from.
        if base.0 > self.clock.now_us().saturating_add(FUTURE_MAX_US) {
            return Err(Fault::invalid("the since token is ahead of this server"));
        }
        let timeout = tokio::time::sleep(AHEAD_MAX);
        tokio::pin!(timeout);
        // Until the first heartbeat nothing is known of where things are.
        while self.closed() < base.max(Position(1)) {
            let heard = self.heard.notified();
            tokio::pin!(heard);
            heard.as_mut().enable();
            if self.closed() >= base.max(Position(1)) {
                break;
            }
            tokio::select! {
                () = heard => {}
                () = &mut timeout => {
                    // Not the client's fault: a token of the cluster may be ahead of a node that hears little of it.
                    return Err(Fault::unavailable(match self.closed() {
                        Position::ZERO => "not every part of the cluster has been heard of yet; try again",
                        _ => "this node has not heard of what the since token says was delivered; try again",
                    }));
                }
            }
        }
        Ok(())
    }

    fn hear_heartbeat(&self, heartbeat: &Heartbeat) {
        let mut hub = self.hub();
        let mut missed = hub.ear.heartbeat(heartbeat);
        if self.options.planted == Planted::IgnoreBusGaps {
            missed.clear();
        }
        let closed = hub.ear.closed();
        hub.highest = hub.highest.max(closed).max(heartbeat.closed);
        let missed: BTreeSet<ShardId> = missed.into_iter().collect();
        self.miss(&missed);
        self.recent.close(closed);
        hub.spoil_shards(&missed, self.options.shard_count);
        drop(hub);
        self.closed.fetch_max(closed.0, Ordering::AcqRel);
        self.heard.notify_waiters();
    }

    /// Something was missed, nobody knows of whom: every slot is to be built again.
    fn spoil(&self) {
        self.recent.miss_all();
        let mut hub = self.hub();
        // Woken in an order of its own, so that the same seed of a simulation takes the same way.
        let slots: BTreeMap<_, _> = std::mem::take(&mut hub.slots).into_iter().collect();
        hub.by_room.clear();
        hub.typing.clear();
        drop(hub);
        slots.into_values().for_each(|slot| slot.spoil());
    }

    /// Events of these shards may be missing in memory.
    fn miss(&self, shards: &BTreeSet<ShardId>) {
        if !shards.is_empty() {
            self.recent.miss(|shard| shards.contains(&shard), self.options.shard_count);
        }
    }

    fn hear(&self, record: &Record) {
        let mut hub = self.hub();
        let heard = hub.ear.record(record.shard, record.epoch, record.seq);
        if heard == Heard::Old {
            return;
        }
        hub.highest = hub.highest.max(record.position);
        let missed = heard == Heard::AfterGap && self.options.planted != Planted::IgnoreBusGaps;
        if missed {
            self.miss(&BTreeSet::from([record.shard]));
        }
        match record.entity.kind() {
            EntityKind::Room => {
                self.recent.hear(&record.entity, record.position, record.class, &record.payload);
                hub.hear_room(record);
            }
            EntityKind::User => hub.hear_user(record),
            EntityKind::Destination => {}
        }
        if missed {
            hub.spoil_shards(&BTreeSet::from([record.shard]), self.options.shard_count);
        }
    }

    /// The user's slot, built from the store if there is none.
    pub(crate) async fn slot(&self, user_id: &UserId) -> Result<Arc<Slot>, Fault> {
        let now_us = self.clock.now_us();
        loop {
            let slot = self.known_slot(user_id, now_us);
            slot.built.get_or_try_init(|| self.build(&slot)).await?;
            if slot.is_fresh() {
                slot.touch(now_us);
                return Ok(slot);
            }
        }
    }

    /// The one slot that hears for the user. It is known to the hub before it is built, so that what happens meanwhile
    /// reaches it.
    fn known_slot(&self, user_id: &UserId, now_us: u64) -> Arc<Slot> {
        let mut hub = self.hub();
        if let Some(slot) = hub.slots.get(user_id).filter(|slot| slot.is_fresh()) {
            return Arc::clone(slot);
        }
        hub.make_room(self.options.slots_max, now_us);
        let slot = Arc::new(Slot::new(user_id.to_owned(), now_us));
        hub.slots.insert(user_id.to_owned(), Arc::clone(&slot));
        slot
    }

    async fn build(&self, slot: &Arc<Slot>) -> Result<(), Fault> {
        let store = self.history.reader().store();
        let rows = |kind: &'static str| {
            store.scan(Scan::new(&tables::USER_STATE, key![slot.user_id.as_str()], key![kind], usize::MAX))
        };
        let applied = applied(&self.history, &slot.user_id).await?;
        let counts = rows(user::state::KEY_COUNTS).await?;
        // Last: the slot says of them that they are all up to what was read, so they must not be behind anything read before.
        let rooms = rows(user::state::ROOM).await?;
        let rooms = rooms.iter().map(|row| record::decode::<RoomEntry>(&row.value)).collect::<Result<Vec<_>, _>>()?;
        let mut hub = self.hub();
        if !hub.slots.get(&slot.user_id).is_some_and(|known| Arc::ptr_eq(known, slot)) {
            // Another one hears for the user by now, and must not be driven out of the rooms.
            slot.spoil();
            return Ok(());
        }
        // Above every token: what was missed may be newer than anything heard.
        let from = hub.highest.max(self.closed()).next();
        let mut view = slot.view();
        for row in counts {
            let counts: KeyCounts = record::decode(&row.value)?;
            view.key_counts.entry(row.clustering.text(1).into()).or_insert(counts);
        }
        // Changes are applied in order: what was read tells that all before it can be read too.
        let read = rooms.iter().map(|entry| entry.position).fold(applied, Position::max);
        view.feed.see_user(read);
        for entry in rooms {
            // What the bus told meanwhile is newer than what was read before.
            let newer = view.rooms.get(&entry.room_id).is_some_and(|known| known.position > entry.position);
            if entry.membership == MembershipState::Join && !newer {
                hub.watch(&entry.room_id, slot);
                view.feed.touch(&entry.room_id, from);
            }
            if !newer {
                view.put_room(entry);
            }
        }
        view.feed.touch_user(from);
        metrics::counter!("cofactor_sync_builds_total").increment(1);
        Ok(())
    }
}

impl Hub {
    /// Something of these shards was missed: whoever has to do with them is to be built again. One pass over what is here,
    /// however many shards changed hands.
    fn spoil_shards(&mut self, shards: &BTreeSet<ShardId>, shard_count: u32) {
        if shards.is_empty() {
            return;
        }
        let is_room = |room_id: &OwnedRoomId| shards.contains(&EntityId::room(room_id).shard(shard_count));
        let is_user = |user_id: &&OwnedUserId| shards.contains(&EntityId::user(user_id).shard(shard_count));
        let mut users: BTreeSet<OwnedUserId> = self.slots.keys().filter(is_user).cloned().collect();
        for (_, watched) in self.by_room.iter().filter(|(room_id, _)| is_room(room_id)) {
            users.extend(watched.users.keys().cloned());
        }
        self.typing.retain(|room_id, _| !is_room(room_id));
        if users.is_empty() {
            return;
        }
        self.retain_watchers(|slot| !users.contains(&slot.user_id));
        for slot in users.iter().filter_map(|user_id| self.slots.remove(user_id)) {
            slot.spoil();
        }
    }

    fn watch(&mut self, room_id: &OwnedRoomId, slot: &Arc<Slot>) {
        let watched = self.by_room.entry(room_id.clone()).or_default();
        if watched.users.insert(slot.user_id.clone(), Arc::clone(slot)).is_some() {
            watched.armed.retain(|armed| armed.user_id != slot.user_id);
        }
        watched.armed.push(Arc::clone(slot));
    }

    fn unwatch(&mut self, room_id: &OwnedRoomId, user_id: &UserId) {
        if let Some(watched) = self.by_room.get_mut(room_id) {
            watched.users.remove(user_id);
            watched.armed.retain(|armed| armed.user_id != user_id);
            if watched.users.is_empty() {
                self.by_room.remove(room_id);
            }
        }
    }

    /// Lets those go of whom `stays` does not say that they stay, and rooms that then nobody listens to.
    fn retain_watchers(&mut self, stays: impl Fn(&Slot) -> bool) {
        self.by_room.retain(|_, watched| {
            watched.users.retain(|_, slot| stays(slot));
            watched.armed.retain(|slot| stays(slot));
            !watched.users.is_empty()
        });
    }

    fn hear_room(&mut self, record: &Record) {
        let Some(room_id) = record.entity.room_id() else { return };
        if record.class == room::class::TYPING
            && let Ok(typing) = cofactor_wire::decode::<Typing>(&record.payload)
        {
            if self.typing.len() >= TYPING_ROOMS_MAX {
                let by_room = &self.by_room;
                self.typing.retain(|room_id, (_, typing)| !typing.user_ids.is_empty() || by_room.contains_key(room_id));
            }
            self.typing.insert(room_id.clone(), (record.position, typing));
        }
        let Some(watched) = self.by_room.get_mut(&room_id) else { return };
        watched.last = record.position;
        for slot in watched.armed.drain(..) {
            let mut view = slot.view();
            view.feed.note(&room_id, record.position);
            view.feed.mark(&room_id);
            drop(view);
            slot.wake(record.trace);
        }
    }

    fn hear_user(&mut self, record: &Record) {
        let Some(user_id) = record.entity.user_id() else { return };
        let Some(slot) = self.slots.get(&user_id).cloned() else { return };
        let mut view = slot.view();
        let decoded = match record.class {
            user::class::MEMBERSHIP => cofactor_wire::decode::<RoomEntry>(&record.payload).map(|entry| {
                if entry.membership == MembershipState::Join {
                    self.watch(&entry.room_id, &slot);
                } else {
                    self.unwatch(&entry.room_id, &slot.user_id);
                }
                view.feed.touch(&entry.room_id, record.position);
                view.put_room(entry);
            }),
            user::class::KEY_COUNTS => cofactor_wire::decode::<KeyCounts>(&record.payload).map(|counts| {
                if let Some(device_id) = counts.device_id.clone() {
                    view.key_counts.insert(device_id, counts);
                }
            }),
            _ => Ok(()),
        };
        if decoded.is_err() {
            // A record of a later release: the store has what it says.
            slot.spoil();
            self.slots.remove(&user_id);
            return;
        }
        // In one with what it says: up to where the log is known, all of it is.
        view.feed.note_user(record.position, record.class == user::class::TO_DEVICE);
        drop(view);
        slot.wake(record.trace);
    }

    /// Lets idle slots go when there are too many.
    fn make_room(&mut self, slots_max: usize, now_us: u64) {
        if self.slots.len() < slots_max {
            return;
        }
        let stays = |slot: &Slot| now_us.saturating_sub(slot.used_us()) <= SLOT_IDLE_US;
        self.slots.retain(|_, slot| stays(slot));
        self.retain_watchers(stays);
    }
}
