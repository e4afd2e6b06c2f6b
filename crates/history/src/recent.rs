//! The recent events of rooms in memory, for those who hear what the rooms say.
//!
//! A [`Tail`] holds all events of a room from some position on. It is read from the store once, however many ask at the same
//! time, and grows by the events that are heard: whoever is woken by an event finds it here, and the store is not asked.
//! What is held is what stands in the log, below every rule of who may see what, but for `federation`, which no client sees.
//!
//! What makes a tail true is that everything the room says is heard in order:
//!
//! - [`Recent::hear`] is told of every record before anybody is woken by it, and [`Recent::miss`] of every hole, before anything
//!   after the hole is told. A tail lives only as long as nothing of its shard is missed.
//! - A tail begins with a read to the end of the log, so that it has what was never said because its owner died; a read that was
//!   overtaken by a record is not kept.
//! - A redaction rewrites an event in the log. The room says so before it says the redaction itself, and the tail goes: no answer
//!   that reaches to the redaction shows what it took away.
//! - When no owner's promise has moved for [`SILENCE_US_MAX`], the bus may be away, and nothing here is believed.
//!
//! - Other rows of a room are held beside its events ([`Facts`]) if they were read while nothing was heard of the room, and
//!   change with what is heard: a record is said when everything that was written with it can be read.
//!
//! The bytes of all tails together have a bound; the tails that were asked for least go first.

mod facts;
mod tail;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use cofactor_store::RangeRead;
use cofactor_types::{Clock, EntityId, Fault, Position, ShardId};
use cofactor_wire::room::class;
use quick_cache::{Weighter, unsync};
use ruma::{OwnedRoomId, RoomId};
use rustc_hash::FxBuildHasher;

#[cfg(doc)]
use self::facts::Facts;
pub(crate) use self::facts::{Aggregated, Fact, Few, Mentioned, ROWS_MAX, Visibility};
use self::tail::{Tail, bare};
use crate::Placed;

/// How long the promises of the owners may stand still before tails are not believed any more, in microseconds.
const SILENCE_US_MAX: u64 = 2_000_000;

/// A read of no more events than this goes back as far as it can.
const WIDENED_ROWS_MAX: usize = 32;

/// Events beyond the end of what is asked for that a read may find without having to be repeated.
const AHEAD_ROWS: usize = 8;

/// What a tail is guessed to weigh, in bytes, to size the tables.
const TAIL_BYTES_GUESS: usize = 8 << 10;

/// No tail takes more than this part of the bytes.
const TAILS_MIN: u64 = 8;

/// The recent events of the rooms that are asked for.
#[derive(Debug)]
pub struct Recent {
    clock: Arc<dyn Clock>,
    tail_bytes_max: u64,
    /// What anybody knows to be written was heard before.
    hears_at_once: bool,
    state: Mutex<State>,
}

#[derive(Clone, Debug)]
struct ByBytes;

impl Weighter<OwnedRoomId, Tail> for ByBytes {
    fn weight(&self, room_id: &OwnedRoomId, tail: &Tail) -> u64 {
        tail.bytes() + room_id.as_str().len() as u64
    }
}

type Tails = unsync::Cache<OwnedRoomId, Tail, ByBytes, FxBuildHasher>;

struct State {
    tails: Tails,
    /// Reads under way.
    flights: HashMap<OwnedRoomId, Arc<Flight>, FxBuildHasher>,
    /// Everything at or below it was heard, or is in the store.
    closed: Position,
    /// When that last moved.
    moved_us: u64,
    /// Versions of tails that were given out.
    versions: u64,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("tails", &self.tails.len()).finish_non_exhaustive()
    }
}

/// A read of the store, and those who wait for what it finds.
#[derive(Debug, Default)]
struct Flight {
    gate: tokio::sync::Mutex<()>,
    /// Something was missed or rewritten since it began.
    stale: AtomicBool,
    /// The last record heard since it began.
    overtaken: AtomicU64,
}

/// A place on a flight; the last to leave closes it.
struct Seat<'a> {
    recent: &'a Recent,
    room_id: &'a RoomId,
    flight: Arc<Flight>,
    /// Up to there the log can be read.
    readable: Position,
}

/// What is known of some rows of a room.
pub(crate) enum Lookup<T> {
    /// These they are.
    Known(Few<T>),
    /// Nothing; what is read now may be kept under this version.
    Unknown(u64),
    /// Nothing, and what is read cannot be kept.
    Nowhere,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut state = self.recent.state();
        let is_listed = state.flights.get(self.room_id).is_some_and(|listed| Arc::ptr_eq(listed, &self.flight));
        // The list holds one, this seat the other.
        if is_listed && Arc::strong_count(&self.flight) == 2 {
            state.flights.remove(self.room_id);
        }
    }
}

impl Recent {
    /// Holds no more than `bytes_max` of events; with 0, none. `hears_at_once`: whatever was acknowledged to anybody was heard here
    /// before, so that the end of a log need not be looked for.
    pub fn new(bytes_max: u64, hears_at_once: bool, clock: Arc<dyn Clock>) -> Self {
        let guess = usize::try_from(bytes_max).unwrap_or(usize::MAX) / TAIL_BYTES_GUESS;
        let tails = Tails::with(guess.max(1), bytes_max, ByBytes, FxBuildHasher, unsync::DefaultLifecycle::default());
        let (flights, closed) = (HashMap::default(), Position::ZERO);
        let state = State { tails, flights, closed, moved_us: 0, versions: 0 };
        Self { clock, tail_bytes_max: bytes_max / TAILS_MIN, hears_at_once, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hears a record of a room that follows on what was heard before. To be told before anybody is woken by it.
    pub fn hear(&self, room: &EntityId, position: Position, class: u64, payload: &Bytes) {
        let Some(room_id) = room.room_id() else { return };
        let mut state = self.state();
        if let Some(flight) = state.flights.get(&room_id) {
            flight.overtaken.fetch_max(position.0, Ordering::AcqRel);
        }
        if class == class::REWRITTEN {
            return state.forget(&room_id);
        }
        let version = state.new_version();
        let Some(mut tail) = state.tails.peek_mut(&room_id) else { return };
        let fits = tail.hear(position, class, payload, version);
        tail.trim(self.tail_bytes_max);
        drop(tail);
        match fits {
            true => state.grown(),
            false => state.forget(&room_id),
        }
    }

    /// Something of these shards was missed.
    pub fn miss(&self, is_missed: impl Fn(ShardId) -> bool, shard_count: u32) {
        let stays = |room_id: &RoomId| !is_missed(EntityId::room(room_id).shard(shard_count));
        let mut state = self.state();
        state.tails.retain(|room_id, _| stays(room_id));
        state.flights.retain(|room_id, flight| stays(room_id) || flight.spoil());
        state.gauge();
    }

    /// Something was missed, nobody knows of whom.
    pub fn miss_all(&self) {
        self.miss(|_| true, 1);
    }

    /// Everything at or below `closed` was heard, or told to be missed. To be told before anybody believes it.
    pub fn close(&self, closed: Position) {
        let mut state = self.state();
        if closed > state.closed {
            state.closed = closed;
            state.moved_us = self.clock.steady_us();
        }
    }

    /// The bytes that are held.
    pub fn bytes(&self) -> u64 {
        self.state().tails.weight()
    }

    /// Whether it is known that nothing of a class was said in `(after, up_to]`.
    pub(crate) fn is_quiet(&self, room_id: &RoomId, class: u64, after: Position, up_to: Position) -> bool {
        let now_us = self.clock.steady_us();
        let state = self.state();
        let tail = state.believed(room_id, up_to, now_us);
        tail.is_some_and(|tail| tail.is_quiet(class, after, up_to))
    }

    /// The event at a position, if it is here.
    pub(crate) fn at(&self, room_id: &RoomId, position: Position) -> Option<Placed> {
        let now_us = self.clock.steady_us();
        let state = self.state();
        let found = state.believed(room_id, position, now_us)?.at(position).cloned();
        count(found.is_some());
        found
    }

    /// The newest events in a range, newest first: those that are here, or those that `stored` reads. Of many who ask for the same
    /// room at once, one reads. The range ends where the log can be read, or at [`Position::MAX`].
    pub(crate) async fn newest<F: Future<Output = Result<Vec<Placed>, Fault>>>(
        &self,
        room_id: &RoomId,
        range: RangeRead,
        stored: impl Fn(RangeRead) -> F,
    ) -> Result<Vec<Placed>, Fault> {
        if let Some((mut found, heard)) = self.find(room_id, range) {
            count(true);
            if range.up_to < Position::MAX || self.hears_at_once {
                return Ok(found);
            }
            // The log may go on after what was heard; with a redaction, what is here may be what it took away.
            let mut end = stored(RangeRead { after: heard.max(range.after), ..range }).await?;
            if end.len() < range.limit && end.iter().any(|placed| placed.event.is_redaction()) {
                return stored(range).await;
            }
            end.append(&mut found);
            end.truncate(range.limit);
            return Ok(end);
        }
        let Some(seat) = self.board(room_id, range.up_to) else {
            count(false);
            return stored(range).await;
        };
        let _gate = seat.flight.gate.lock().await;
        if let Some((found, _)) =
            self.find(room_id, range).filter(|_| range.up_to < Position::MAX || self.hears_at_once)
        {
            count(true);
            return Ok(found);
        }
        count(false);
        // Those who wait were last here at other times: what is enough for one of them is to be enough for all.
        let after = if range.limit <= WIDENED_ROWS_MAX { Position::ZERO } else { range.after };
        let ahead = if range.up_to < Position::MAX { AHEAD_ROWS } else { 0 };
        let wide = RangeRead { after, up_to: Position::MAX, limit: range.limit + ahead, ..range };
        let mut found: Vec<Placed> = stored(wide).await?.into_iter().map(bare).collect();
        self.keep(room_id, wide, &found, &seat);
        let is_all = found.len() < wide.limit;
        found.retain(|placed| placed.position > range.after && placed.position <= range.up_to);
        if found.len() < range.limit && !is_all {
            return stored(range).await;
        }
        found.truncate(range.limit);
        Ok(found)
    }

    /// The newest events in a range, and up to where all that there are were heard. Where the range has no end, what was not heard
    /// is missing.
    fn find(&self, room_id: &RoomId, range: RangeRead) -> Option<(Vec<Placed>, Position)> {
        let now_us = self.clock.steady_us();
        let state = self.state();
        let up_to = if range.up_to == Position::MAX { Position::ZERO } else { range.up_to };
        let tail = state.believed(room_id, up_to, now_us)?;
        Some((tail.newest(range)?, tail.high()))
    }

    /// Rows above `from` that are true of a room up to `up_to`.
    pub(crate) fn fact<T: Fact>(&self, room_id: &RoomId, from: Position, up_to: Position) -> Lookup<T> {
        let now_us = self.clock.steady_us();
        let state = self.state();
        let Some(tail) = state.believed(room_id, up_to, now_us) else { return Lookup::Nowhere };
        match T::of(tail.facts()).as_ref().filter(|few| few.from <= from) {
            Some(few) => Lookup::Known(few.clone()),
            None => Lookup::Unknown(tail.version()),
        }
    }

    /// The version of a room's tail, if it is true up to `up_to`.
    pub(crate) fn version(&self, room_id: &RoomId, up_to: Position) -> Option<u64> {
        let now_us = self.clock.steady_us();
        self.state().believed(room_id, up_to, now_us).map(Tail::version)
    }

    /// Keeps rows that were read since the tail had `version`, if nothing was heard since.
    pub(crate) fn learn<T: Fact>(&self, room_id: &RoomId, version: u64, few: Few<T>) {
        let mut state = self.state();
        let Some(mut tail) = state.tails.peek_mut(room_id) else { return };
        tail.learn(version, few, self.tail_bytes_max / 2);
        drop(tail);
        state.grown();
    }

    /// Whether it would be of use to know where the last record of a class stands.
    pub(crate) fn asks_for_last(&self, room_id: &RoomId, class: u64) -> bool {
        matches!(class, class::RECEIPT | class::DEVICE_LIST)
            && self.state().tails.peek(room_id).is_some_and(|tail| !tail.knows_last(class))
    }

    /// Keeps where the last record of a class stands, in the same way.
    pub(crate) fn learn_last(&self, room_id: &RoomId, version: u64, class: u64, last: Position) {
        if let Some(mut tail) = self.state().tails.peek_mut(room_id) {
            tail.learn_last(version, class, last);
        }
    }

    /// A place on the flight to a room; `None` if what it finds could not be kept.
    fn board<'a>(&'a self, room_id: &'a RoomId, up_to: Position) -> Option<Seat<'a>> {
        let now_us = self.clock.steady_us();
        let mut state = self.state();
        if self.tail_bytes_max == 0 || !state.hears(now_us) {
            return None;
        }
        // What is older than a tail is not what is asked for again and again.
        if state.tails.peek(room_id).is_some_and(|tail| up_to < tail.low()) {
            return None;
        }
        let readable = if up_to == Position::MAX { state.closed } else { up_to };
        let flight = Arc::clone(state.flights.entry(room_id.to_owned()).or_default());
        Some(Seat { recent: self, room_id, flight, readable })
    }

    /// Keeps what a flight found, if nothing that was heard meanwhile is missing in it.
    fn keep(&self, room_id: &RoomId, range: RangeRead, found: &[Placed], seat: &Seat<'_>) {
        let flight = &seat.flight;
        let mut state = self.state();
        if flight.stale.load(Ordering::Acquire) {
            return;
        }
        if let Some(mut tail) = state.tails.peek_mut(room_id) {
            tail.reach_back(range, found);
            tail.trim(self.tail_bytes_max);
        } else {
            let version = state.new_version();
            let mut tail = Tail::new(range, seat.readable, found, version);
            if flight.overtaken.load(Ordering::Acquire) > tail.high().0 {
                return;
            }
            tail.trim(self.tail_bytes_max);
            state.tails.insert(room_id.to_owned(), tail);
        }
        state.grown();
    }
}

impl Flight {
    /// Nothing that it finds is kept, and nobody boards it any more.
    fn spoil(&self) -> bool {
        self.stale.store(true, Ordering::Release);
        false
    }
}

impl State {
    fn new_version(&mut self) -> u64 {
        self.versions += 1;
        self.versions
    }

    fn hears(&self, now_us: u64) -> bool {
        now_us.saturating_sub(self.moved_us) <= SILENCE_US_MAX && self.closed > Position::ZERO
    }

    /// The tail of a room, if it is true up to `up_to`.
    fn believed(&self, room_id: &RoomId, up_to: Position, now_us: u64) -> Option<&Tail> {
        let tail = self.tails.get(room_id).filter(|_| self.hears(now_us))?;
        (up_to <= tail.high().max(self.closed)).then_some(tail)
    }

    fn forget(&mut self, room_id: &RoomId) {
        self.tails.remove(room_id);
        if let Some(flight) = self.flights.remove(room_id) {
            flight.spoil();
        }
        self.gauge();
    }

    /// A tail that grew in its place drives out others only now.
    fn grown(&mut self) {
        if self.tails.weight() > self.tails.capacity() {
            self.tails.set_capacity(self.tails.capacity());
        }
        self.gauge();
    }

    fn gauge(&self) {
        metrics::gauge!("cofactor_sync_event_cache_bytes").set(self.tails.weight() as f64);
    }
}

fn count(hit: bool) {
    let outcome = if hit { "hit" } else { "miss" };
    metrics::counter!("cofactor_sync_event_cache_reads_total", "outcome" => outcome).increment(1);
}
