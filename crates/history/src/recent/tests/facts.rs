//! What is held of a room beside its events is never older than what was heard.

use cofactor_wire::{
    relation::Aggregate,
    room::{Mention, ReceiptRecord, Summary},
};
use ruma::owned_room_id;

use super::*;

/// A room of which an event was read, at 10.
async fn known_room() -> (Log, OwnedRoomId) {
    let (log, room) = (Log::new(BYTES_MAX), owned_room_id!("!1:example.org"));
    log.say(&room, 10, "first");
    log.read(&room, 5, 10).await;
    (log, room)
}

impl Log {
    fn held<T: Fact>(&self, room_id: &RoomId, up_to: u64) -> Option<Few<T>> {
        match self.recent.fact::<T>(room_id, Position::ZERO, Position(up_to)) {
            Lookup::Known(few) => Some(few),
            Lookup::Unknown(_) | Lookup::Nowhere => None,
        }
    }

    /// Learns rows that are read now.
    fn learn<T: Fact>(&self, room_id: &RoomId, rows: Vec<T>) {
        let version = self.recent.version(room_id, Position(10)).unwrap();
        self.recent.learn(room_id, version, Few::new(rows, 100));
    }

    fn learn_all(&self, room_id: &RoomId) {
        self.learn(room_id, vec![receipt("@bob:example.org", "m.read", 3)]);
        let mention = Mention { highlight: true, counted: true, thread: None };
        self.learn(
            room_id,
            vec![Mentioned { user_id: owned_user_id!("@bob:example.org"), position: Position(3), mention }],
        );
        self.learn(room_id, vec![Aggregated { position: Position(3), aggregate: Aggregate::default() }]);
        self.learn(
            room_id,
            vec![Visibility { position: Position(3), visibility: cofactor_room::HistoryVisibility::Joined }],
        );
        self.learn(room_id, vec![Summary::default()]);
    }

    /// Which are held: receipts, mentions, aggregates, visibilities, the summary.
    fn which(&self, room_id: &RoomId, up_to: u64) -> [bool; 5] {
        [
            self.held::<ReceiptRecord>(room_id, up_to).is_some(),
            self.held::<Mentioned>(room_id, up_to).is_some(),
            self.held::<Aggregated>(room_id, up_to).is_some(),
            self.held::<Visibility>(room_id, up_to).is_some(),
            self.held::<Summary>(room_id, up_to).is_some(),
        ]
    }

    fn hear(&self, room_id: &RoomId, position: u64, event: &EventRecord) {
        let payload = record::encode(event).unwrap();
        self.recent.hear(&EntityId::room(room_id), Position(position), class::TIMELINE, &payload);
    }

    fn hear_receipt(&self, room_id: &RoomId, receipt: &ReceiptRecord) {
        let payload = record::encode(receipt).unwrap();
        self.recent.hear(&EntityId::room(room_id), receipt.position, class::RECEIPT, &payload);
    }

    /// Type and position of the receipts that are held.
    fn receipts(&self, room_id: &RoomId, up_to: u64) -> Vec<(String, String, u64)> {
        let few = self.held::<ReceiptRecord>(room_id, up_to).unwrap();
        let receipt = |one: &ReceiptRecord| (one.receipt_type.clone(), one.thread_id.clone(), one.position.0);
        few.rows.unwrap().iter().map(receipt).collect()
    }
}

fn receipt(user_id: &str, receipt_type: &str, position: u64) -> ReceiptRecord {
    ReceiptRecord {
        user_id: user_id.try_into().unwrap(),
        receipt_type: receipt_type.to_owned(),
        thread_id: String::new(),
        event_id: owned_event_id!("$event"),
        event_position: Position(position),
        totals: Totals::default(),
        scoped: Totals::default(),
        ts: MilliSecondsSinceUnixEpoch(UInt::from(1_u32)),
        position: Position(position),
    }
}

fn state(event_type: &str) -> EventRecord {
    EventRecord { event_type: event_type.to_owned(), state_key: Some(String::new()), ..event("{}") }
}

#[tokio::test]
async fn what_is_held_of_a_room_goes_with_the_events_that_change_it() {
    for (heard, left) in [
        (event(r#"{"content":{"body":"hello"}}"#), [true, true, true, true, true]),
        (state("m.room.topic"), [true, true, true, true, true]),
        (state("m.room.member"), [true, true, true, true, false]),
        (state("m.room.history_visibility"), [true, true, true, false, true]),
        (event(r#"{"content":{"m.relates_to":{}}}"#), [true, false, false, true, true]),
        (event(r#"{"content":{"m.mentions":{"user_ids":[]}}}"#), [true, false, false, true, true]),
        (event(r#"{"content":{"m.mentions":{"\u0075ser_ids":[]}}}"#), [true, false, false, true, true]),
        (EventRecord { redacts: Some(owned_event_id!("$event")), ..event("{}") }, [true, false, false, true, true]),
        (EventRecord { event_type: "m.room.redaction".to_owned(), ..event("{}") }, [true, false, false, true, true]),
    ] {
        let (log, room) = known_room().await;
        log.learn_all(&room);
        assert_eq!(log.which(&room, 10), [true; 5]);
        log.hear(&room, 20, &heard);
        assert_eq!(log.which(&room, 20), left, "{heard:?}");
    }
}

#[tokio::test]
async fn nothing_is_held_after_a_hole_a_rewritten_event_a_record_of_a_later_release_or_in_silence() {
    let entity = EntityId::room(&owned_room_id!("!1:example.org"));
    let breaks: [fn(&Log, &EntityId); 4] = [
        |log, _| log.recent.miss_all(),
        |log, entity| log.recent.hear(entity, Position(20), class::REWRITTEN, &Bytes::new()),
        |log, entity| log.recent.hear(entity, Position(20), 99, &Bytes::new()),
        |log, _| log.clock.0.store(SILENCE_US_MAX + 1, Ordering::Relaxed),
    ];
    for apart in breaks {
        let (log, room) = known_room().await;
        log.learn_all(&room);
        apart(&log, &entity);
        assert_eq!(log.which(&room, 10), [false; 5]);
    }
    let (log, room) = known_room().await;
    log.learn_all(&room);
    assert_eq!(log.which(&room, 11), [false; 5], "beyond what was heard nothing is known");
}

#[tokio::test]
async fn rows_that_were_read_before_a_record_was_heard_are_not_kept() {
    let (log, room) = known_room().await;
    let version = log.recent.version(&room, Position(10)).unwrap();
    log.hear(&room, 20, &event("{}"));
    log.recent.learn(&room, version, Few::new(vec![Summary::default()], 0));
    log.recent.learn_last(&room, version, class::RECEIPT, Position(5));
    assert_eq!(log.which(&room, 20), [false; 5]);
    assert!(!log.recent.is_quiet(&room, class::RECEIPT, Position(6), Position(20)));
    // A tail that was lost and read again is another one.
    let version = log.recent.version(&room, Position(20)).unwrap();
    log.recent.miss_all();
    log.read(&room, 5, 1).await;
    log.recent.close(Position(20));
    log.read(&room, 5, 20).await;
    log.recent.learn(&room, version, Few::new(vec![Summary::default()], 0));
    assert_eq!(log.which(&room, 20), [false; 5]);
}

#[tokio::test]
async fn an_event_whose_rows_were_not_readable_yet_when_rows_were_read_changes_them_when_it_is_heard() {
    let (log, room) = (Log::new(BYTES_MAX), owned_room_id!("!1:example.org"));
    let event = EventRecord { notify: true, ..event("{}") };
    log.write(10, "first");
    log.recent.close(Position(10));
    // The event is in the log, its effects are not: so does a store that does not span partitions.
    log.read(&room, 5, 10).await;
    log.learn::<ReceiptRecord>(&room, Vec::new());
    log.hear(&room, 10, &event);
    assert_eq!(log.receipts(&room, 10).len(), 2);
}

#[tokio::test]
async fn receipts_are_held_as_the_room_writes_them() {
    let (log, room) = known_room().await;
    log.learn(&room, vec![receipt("@bob:example.org", "m.read", 3)]);
    log.hear_receipt(&room, &receipt("@bob:example.org", "m.read", 20));
    log.hear(&room, 30, &EventRecord { notify: true, ..event("{}") });
    log.hear(&room, 40, &EventRecord { notify: false, ..event("{}") });
    let own = |thread: &str, at| ("own_event".to_owned(), thread.to_owned(), at);
    let read = ("m.read".to_owned(), String::new(), 20);
    assert_eq!(log.receipts(&room, 40), [own("", 30), own("main", 30), read.clone()]);
    // What was read from the store may be ahead of what is heard.
    log.hear_receipt(&room, &ReceiptRecord { position: Position(19), ..receipt("@bob:example.org", "m.read", 50) });
    assert_eq!(log.receipts(&room, 40).last(), Some(&read));
    log.recent.hear(&EntityId::room(&room), Position(60), class::RECEIPT, &Bytes::from_static(b"of a later release"));
    assert!(log.held::<ReceiptRecord>(&room, 60).is_none());
}

#[tokio::test]
async fn rows_that_are_too_many_are_not_held_and_those_that_are_have_a_bound() {
    let (log, room) = known_room().await;
    let of = |number: usize| receipt(&format!("@user{number}:example.org"), "m.read", 3);
    log.learn(&room, (0..ROWS_MAX).map(of).collect());
    let bytes = log.recent.bytes();
    log.hear_receipt(&room, &of(0));
    assert!(log.held::<ReceiptRecord>(&room, 10).unwrap().rows.is_some());
    log.hear_receipt(&room, &ReceiptRecord { position: Position(20), ..of(ROWS_MAX) });
    assert!(log.held::<ReceiptRecord>(&room, 20).unwrap().rows.is_none(), "one too many");
    assert!(log.recent.bytes() < bytes);
    let version = log.recent.version(&room, Position(20)).unwrap();
    let heavy = Few::new(vec![Summary::default()], usize::try_from(BYTES_MAX).unwrap());
    log.recent.learn(&room, version, heavy);
    assert!(log.held::<Summary>(&room, 20).is_none() && log.recent.bytes() < BYTES_MAX / TAILS_MIN);
}

#[tokio::test]
async fn where_the_last_receipt_stood_is_learned_once() {
    let (log, room) = known_room().await;
    let quiet = |after, up_to| log.recent.is_quiet(&room, class::RECEIPT, Position(after), Position(up_to));
    assert!(!quiet(8, 10) && log.recent.asks_for_last(&room, class::RECEIPT));
    let version = log.recent.version(&room, Position(10)).unwrap();
    log.recent.learn_last(&room, version, class::RECEIPT, Position(7));
    assert!(quiet(8, 10) && quiet(7, 10) && !quiet(6, 10) && !log.recent.asks_for_last(&room, class::RECEIPT));
    log.hear_receipt(&room, &receipt("@bob:example.org", "m.read", 20));
    assert!(!quiet(8, 20) && quiet(20, 20));
}

#[tokio::test]
async fn the_end_of_a_log_with_a_redaction_that_was_not_heard_shows_nothing_that_it_took_away() {
    let (log, room) = (Log::new(BYTES_MAX), room(1));
    log.say(&room, 10, "secret");
    log.read(&room, 0, 10).await;
    let redaction = EventRecord { redacts: Some(owned_event_id!("$event")), ..event("redaction") };
    log.events.lock().unwrap()[0].event = Arc::new(event("redacted"));
    log.events.lock().unwrap().push(Placed { position: Position(20), event: Arc::new(redaction) });
    // What is read is compared with what is stored.
    assert_eq!(log.read(&room, 0, u64::MAX).await, [20, 10]);
}

#[tokio::test]
async fn who_hears_at_once_need_not_look_for_the_end_of_a_log() {
    for (at_once, reads) in [(true, 0), (false, 1)] {
        let mut log = Log::new(BYTES_MAX);
        log.recent = Recent::new(BYTES_MAX, at_once, Arc::clone(&log.clock) as Arc<dyn Clock>);
        log.recent.close(Position(1));
        let room = room(1);
        log.say(&room, 10, "first");
        assert_eq!(log.read(&room, 0, u64::MAX).await, [10]);
        log.say(&room, 20, "second");
        log.reads();
        assert_eq!(log.read(&room, 0, u64::MAX).await, [20, 10]);
        assert_eq!(log.reads(), reads);
        log.recent.miss_all();
        log.write(30, "never said");
        assert_eq!(log.read(&room, 0, u64::MAX).await, [30, 20, 10]);
    }
}
