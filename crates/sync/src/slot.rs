//! What the service knows of one user that syncs here.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use cofactor_history::History;
use cofactor_store::{Direction, Key, LogKey, RangeRead, Scan, key, record, tables};
use cofactor_telemetry::Trace;
use cofactor_types::{EntityId, Fault, Position, SyncToken};
use cofactor_wire::{
    room::Totals,
    user::{AccountData, KeyCounts, RoomEntry, class, state},
};
use ruma::{OwnedDeviceId, OwnedRoomId, OwnedUserId, UserId};
use tokio::sync::{Notify, OnceCell};
use tracing::Span;

use crate::feed::Feed;

/// Up to where a user's log, and all that it changes, can surely be read: whatever was acknowledged can. An append may be
/// read before what it changes, so that the end of the log itself says nothing.
pub(crate) async fn applied(history: &History, user_id: &UserId) -> Result<Position, Fault> {
    let (user, store) = (EntityId::user(user_id), history.reader().store());
    if !store.spans_partitions() {
        let checkpoint = store.get(&tables::CHECKPOINTS, &key![user.kind().as_str(), &user], &Key::EMPTY).await?;
        return Ok(Position(checkpoint.map(|value| record::decode(&value)).transpose()?.unwrap_or(0)));
    }
    // A device that was new just before is no news after an initial sync.
    let devices = LogKey { entity: user, class: class::DEVICES, sub: "".into() };
    let last = RangeRead { after: Position::ZERO, up_to: Position::MAX, direction: Direction::Backward, limit: 1 };
    let mut applied = history.reader().read(&devices, last).await?.first().map_or(Position::ZERO, |row| row.position);
    for kind in [state::ACCOUNT_DATA, state::ROOM_ACCOUNT_DATA] {
        let scan = Scan::new(&tables::USER_STATE, key![user_id.as_str()], key![kind], usize::MAX);
        for row in store.scan(scan).await? {
            applied = applied.max(record::decode::<AccountData>(&row.value)?.position);
        }
    }
    Ok(applied)
}

/// A user that syncs here.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) user_id: OwnedUserId,
    pub(crate) notify: Notify,
    /// Set when everything was read from the store. Until then what it does not say means nothing. Whoever comes while
    /// another request reads waits for that, and reads itself if the other gives up.
    pub(crate) built: OnceCell<()>,
    /// Something was missed: the slot is to be built again.
    stale: AtomicBool,
    used_us: AtomicU64,
    /// The trace of what woke it last.
    woken_by: Mutex<Option<Trace>>,
    view: Mutex<View>,
}

/// The user's rooms, what changed last where, and the key counts of its devices.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) rooms: BTreeMap<OwnedRoomId, RoomEntry>,
    /// Rooms by where their membership last changed.
    pub(crate) by_since: BTreeMap<Position, OwnedRoomId>,
    pub(crate) feed: Feed,
    pub(crate) key_counts: BTreeMap<OwnedDeviceId, KeyCounts>,
    /// Up to where to-device messages were acknowledged since this slot was built.
    pub(crate) acknowledged: BTreeMap<OwnedDeviceId, Position>,
    /// The totals of rooms where the user joined them, and where that was.
    pub(crate) at_join: BTreeMap<OwnedRoomId, (Position, Totals, Totals)>,
    /// Tokens that were handed out, for a planted bug that trusts them.
    pub(crate) served: BTreeMap<OwnedDeviceId, SyncToken>,
}

impl Slot {
    pub(crate) fn new(user_id: OwnedUserId, now_us: u64) -> Self {
        Self {
            user_id,
            notify: Notify::new(),
            built: OnceCell::new(),
            stale: AtomicBool::new(false),
            used_us: AtomicU64::new(now_us),
            woken_by: Mutex::default(),
            view: Mutex::default(),
        }
    }

    pub(crate) fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes whoever waits for the user's changes, because of something in this trace.
    pub(crate) fn wake(&self, trace: Option<Trace>) {
        if cofactor_telemetry::is_tracing() {
            *self.woken_by.lock().unwrap_or_else(PoisonError::into_inner) = trace;
        }
        self.notify.notify_waiters();
    }

    /// The span of what a request does after it was woken: part of the trace that woke it, tied to the request's own.
    pub(crate) fn wake_span(&self) -> Span {
        if !cofactor_telemetry::is_tracing() {
            return Span::none();
        }
        let Some(trace) = *self.woken_by.lock().unwrap_or_else(PoisonError::into_inner) else { return Span::none() };
        let request = Span::current();
        let span = cofactor_telemetry::span!(parent: None, "wake");
        trace.lead(&span);
        if let Some(asked) = Trace::of(&request) {
            asked.link(&span);
            trace.link(&request);
        }
        span
    }

    pub(crate) fn spoil(&self) {
        self.stale.store(true, Ordering::Release);
        self.notify.notify_waiters();
    }

    /// Whether nothing was missed since it began to hear.
    pub(crate) fn is_fresh(&self) -> bool {
        !self.stale.load(Ordering::Acquire)
    }

    pub(crate) fn touch(&self, now_us: u64) {
        self.used_us.store(now_us, Ordering::Relaxed);
    }

    pub(crate) fn used_us(&self) -> u64 {
        self.used_us.load(Ordering::Relaxed)
    }
}

impl View {
    /// Takes an entry of the room list; returns the one before.
    pub(crate) fn put_room(&mut self, entry: RoomEntry) -> Option<RoomEntry> {
        if let Some(before) = self.rooms.get(&entry.room_id) {
            self.by_since.remove(&before.since);
        }
        self.by_since.insert(entry.since, entry.room_id.clone());
        self.rooms.insert(entry.room_id.clone(), entry)
    }
}
