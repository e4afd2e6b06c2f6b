mod facts;

use std::sync::atomic::AtomicUsize;

use cofactor_store::{Direction, record};
use cofactor_types::ManualClock;
use cofactor_wire::room::{EventRecord, Rewritten, Totals};
use futures::future::join_all;
use ruma::{MilliSecondsSinceUnixEpoch, UInt, owned_event_id, owned_user_id};

use super::*;

const BYTES_MAX: u64 = 1 << 20;

fn room(number: u64) -> OwnedRoomId {
    RoomId::parse(format!("!{number}:example.org")).unwrap()
}

fn event(text: &str) -> EventRecord {
    EventRecord {
        event_id: owned_event_id!("$event"),
        event_type: "m.room.message".to_owned(),
        state_key: None,
        sender: owned_user_id!("@alice:example.org"),
        ts: MilliSecondsSinceUnixEpoch(UInt::from(1_u32)),
        json: Bytes::from(text.to_owned()),
        unsigned: Bytes::new(),
        federation: Bytes::new(),
        transaction: None,
        totals: Totals::default(),
        main: Totals::default(),
        thread: None,
        notify: false,
        highlight: false,
        extremities: Vec::new(),
        hidden: false,
        redacts: None,
    }
}

/// The log of every room: an event at each of these positions, newest first in what is read.
struct Log {
    recent: Recent,
    clock: Arc<ManualClock>,
    reads: AtomicUsize,
    events: Mutex<Vec<Placed>>,
}

impl Log {
    fn new(bytes_max: u64) -> Self {
        let clock = Arc::new(ManualClock::default());
        let recent = Recent::new(bytes_max, false, Arc::clone(&clock) as Arc<dyn Clock>);
        recent.close(Position(1));
        Self { recent, clock, reads: AtomicUsize::new(0), events: Mutex::default() }
    }

    /// Writes an event without saying it.
    fn write(&self, position: u64, text: &str) -> Bytes {
        let event = event(text);
        let payload = record::encode(&event).unwrap();
        self.events.lock().unwrap().push(Placed { position: Position(position), event: Arc::new(event) });
        payload
    }

    fn say(&self, room_id: &RoomId, position: u64, text: &str) {
        let payload = self.write(position, text);
        self.recent.hear(&EntityId::room(room_id), Position(position), class::TIMELINE, &payload);
    }

    /// Rewrites the first event, and says so.
    fn redact(&self, room_id: &RoomId, at: u64) {
        let first = {
            let mut events = self.events.lock().unwrap();
            events[0].event = Arc::new(event("redacted"));
            events[0].position
        };
        let payload = record::encode(&Rewritten { position: first }).unwrap();
        self.recent.hear(&EntityId::room(room_id), Position(at), class::REWRITTEN, &payload);
    }

    fn stored(&self, range: RangeRead) -> Vec<Placed> {
        let mut found = self.events.lock().unwrap().clone();
        found.retain(|placed| placed.position > range.after && placed.position <= range.up_to);
        found.sort_by_key(|placed| std::cmp::Reverse(placed.position));
        found.truncate(range.limit);
        found
    }

    async fn read(&self, room_id: &RoomId, after: u64, up_to: u64) -> Vec<u64> {
        let range = range(after, up_to, 11);
        let stored = async |range| {
            self.reads.fetch_add(1, Ordering::Relaxed);
            let found = self.stored(range);
            tokio::task::yield_now().await;
            Ok(found)
        };
        let found = self.recent.newest(room_id, range, stored).await.unwrap();
        assert_eq!(found, self.stored(range), "what is here is what is stored");
        found.iter().map(|placed| placed.position.0).collect()
    }

    fn reads(&self) -> usize {
        self.reads.swap(0, Ordering::Relaxed)
    }
}

fn range(after: u64, up_to: u64, limit: usize) -> RangeRead {
    RangeRead { after: Position(after), up_to: Position(up_to), direction: Direction::Backward, limit }
}

#[tokio::test]
async fn a_hundred_waiters_of_one_room_cause_one_read_and_then_none() {
    let (log, room) = (Log::new(BYTES_MAX), room(1));
    log.say(&room, 10, "first");
    // Their tokens differ, as those of waiters do; the first needs the least.
    let waiters = (0..100).map(|waiter| log.read(&room, 9 - waiter % 10, 10));
    for found in join_all(waiters).await {
        assert_eq!(found, [10]);
    }
    assert_eq!(log.reads(), 1);
    log.say(&room, 20, "second");
    for found in join_all((0..100).map(|waiter| log.read(&room, 10 + waiter % 10, 20))).await {
        assert_eq!(found, [20]);
    }
    assert_eq!(log.reads(), 0, "what was heard need not be read");
}

#[tokio::test]
async fn a_reader_that_gives_up_leaves_the_read_to_the_next() {
    let (log, room) = (Log::new(BYTES_MAX), room(1));
    log.say(&room, 10, "first");
    let mut first = Box::pin(log.read(&room, 5, 10));
    assert!(futures::poll!(&mut first).is_pending());
    let mut second = Box::pin(log.read(&room, 5, 10));
    assert!(futures::poll!(&mut second).is_pending());
    drop(first);
    assert_eq!(second.await, [10]);
    assert_eq!(log.reads(), 2);
    assert!(log.recent.state().flights.is_empty());
}

#[tokio::test]
async fn the_bytes_have_a_bound_however_many_rooms_grow() {
    let bytes_max = 200_000;
    let log = Log::new(bytes_max);
    let text = "x".repeat(1_000);
    for round in 1..=40_u64 {
        for number in 0..40 {
            let (room, position) = (room(number), round * 1_000 + number);
            log.events.lock().unwrap().clear();
            log.say(&room, position, &text);
            let range = range(position - 1, position, 11);
            log.recent.newest(&room, range, async |range| Ok(log.stored(range))).await.unwrap();
            assert!(log.recent.bytes() <= bytes_max, "{} bytes", log.recent.bytes());
        }
    }
    assert!(log.recent.bytes() > bytes_max / 2, "and are used");
}

#[tokio::test]
async fn one_room_takes_no_more_than_its_part() {
    let log = Log::new(200_000);
    let room = room(1);
    let text = "x".repeat(1_000);
    log.say(&room, 10, &text);
    log.read(&room, 9, 10).await;
    for position in 11..1_000 {
        log.say(&room, position, &text);
        assert!(log.recent.bytes() <= 200_000 / TAILS_MIN + 100, "{} bytes", log.recent.bytes());
    }
    // What it let go it does not deny.
    assert_eq!(log.read(&room, 900, 910).await.len(), 10);
    assert_eq!(log.reads(), 2);
    assert_eq!(log.read(&room, 995, 999).await, [999, 998, 997, 996]);
    assert_eq!(log.reads(), 0);
}

#[tokio::test]
async fn what_a_redaction_takes_away_is_not_shown_once_the_redaction_is_heard() {
    let (log, room) = (Log::new(BYTES_MAX), room(1));
    log.say(&room, 10, "secret");
    log.read(&room, 5, 10).await;
    log.redact(&room, 20);
    log.say(&room, 21, "redaction");
    log.reads();
    assert_eq!(log.read(&room, 5, 21).await, [21, 10]);
    assert_eq!(log.reads(), 1);
}

#[tokio::test]
async fn what_was_read_before_a_redaction_is_not_kept_after_it() {
    let (log, room) = (Log::new(BYTES_MAX), room(1));
    log.say(&room, 10, "secret");
    let secret = async |range| {
        let found = log.stored(range);
        log.redact(&room, 20);
        Ok(found)
    };
    log.recent.newest(&room, range(5, 10, 11), secret).await.unwrap();
    log.say(&room, 21, "redaction");
    assert_eq!(log.read(&room, 5, 21).await, [21, 10]);
    assert_eq!(log.reads(), 1);
}

#[tokio::test]
async fn a_read_that_a_record_overtook_is_not_kept() {
    let (log, room) = (Log::new(BYTES_MAX), room(1));
    log.say(&room, 10, "first");
    let first = range(5, 10, 11);
    let overtaken = async |_| {
        let found = log.stored(first);
        log.say(&room, 20, "second");
        Ok(found)
    };
    assert_eq!(log.recent.newest(&room, first, overtaken).await.unwrap().len(), 1);
    log.say(&room, 30, "third");
    assert_eq!(log.read(&room, 10, 30).await, [30, 20]);
}

#[tokio::test]
async fn nothing_is_believed_after_a_hole_or_in_silence() {
    let (log, room) = (Log::new(BYTES_MAX), room(1));
    let shard = EntityId::room(&room).shard(16);
    log.say(&room, 10, "first");
    log.read(&room, 5, 10).await;
    log.write(20, "never said");
    log.recent.miss(|missed| missed == shard, 16);
    log.say(&room, 30, "third");
    assert_eq!(log.read(&room, 5, 30).await, [30, 20, 10]);
    assert_eq!(log.reads(), 2);
    assert_eq!(log.read(&room, 5, 30).await, [30, 20, 10]);
    assert_eq!(log.reads(), 0);
    log.clock.0.fetch_add(SILENCE_US_MAX + 1, Ordering::Relaxed);
    log.read(&room, 5, 30).await;
    assert_eq!(log.reads(), 1, "the bus may be away");
    log.recent.close(Position(31));
    log.read(&room, 5, 30).await;
    assert_eq!(log.reads(), 0);
}

#[tokio::test]
async fn more_than_was_heard_is_read() {
    let (log, room) = (Log::new(BYTES_MAX), room(1));
    log.say(&room, 10, "first");
    log.read(&room, 5, 10).await;
    log.write(20, "not yet said");
    log.reads();
    assert_eq!(log.read(&room, 5, 20).await, [20, 10]);
    assert_eq!(log.read(&room, 5, u64::MAX).await, [20, 10]);
    assert_eq!(log.reads(), 2);
    log.recent.close(Position(15));
    assert_eq!(log.read(&room, 5, 15).await, [10]);
    assert_eq!(log.reads(), 0, "nothing comes at or below what is closed");
}

#[tokio::test]
async fn what_an_owner_wrote_and_never_said_is_here_after_the_take_over() {
    let (log, room) = (Log::new(BYTES_MAX), room(1));
    log.say(&room, 10, "first");
    log.read(&room, 5, 10).await;
    log.write(20, "never said");
    // The new owner is heard of, but nothing of this room.
    log.recent.miss_all();
    assert_eq!(log.read(&room, 5, 10).await, [10]);
    log.recent.close(Position(30));
    assert_eq!(log.read(&room, 5, 30).await, [20, 10]);
}

#[tokio::test]
async fn what_was_not_said_is_known_to_be_empty() {
    let (log, room) = (Log::new(BYTES_MAX), room(1));
    let quiet = |class, after, up_to| log.recent.is_quiet(&room, class, Position(after), Position(up_to));
    log.say(&room, 10, "first");
    log.read(&room, 5, 10).await;
    assert!(!quiet(class::RECEIPT, 10, 10), "what an owner that died did not say is not known");
    log.say(&room, 20, "second");
    assert!(quiet(class::RECEIPT, 20, 20) && quiet(class::DEVICE_LIST, 20, 20) && quiet(class::STATE, 5, 20));
    assert!(!quiet(class::RECEIPT, 10, 20), "receipts were not read");
    log.recent.hear(&EntityId::room(&room), Position(30), class::RECEIPT, &Bytes::new());
    assert!(!quiet(class::RECEIPT, 20, 30) && quiet(class::RECEIPT, 30, 30) && quiet(class::DEVICE_LIST, 20, 30));
    let state = EventRecord { state_key: Some(String::new()), ..event("state") };
    let payload = record::encode(&state).unwrap();
    log.recent.hear(&EntityId::room(&room), Position(40), class::TIMELINE, &payload);
    assert!(quiet(class::STATE, 20, 30) && !quiet(class::STATE, 20, 40) && quiet(class::STATE, 40, 40));
}
