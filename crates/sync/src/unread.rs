//! Unread counts from running totals. <https://spec.matrix.org/v1.19/client-server-api/#receiving-notifications>

use std::{collections::BTreeMap, ops::AddAssign, sync::Arc};

use async_trait::async_trait;
use cofactor_history::{History, Placed};
use cofactor_store::{Direction, RangeRead, Scan, key, record, tables};
use cofactor_types::{Fault, Position};
use cofactor_wire::{
    room::{Mention, OWN_EVENT, ReceiptRecord, Totals},
    user::RoomEntry,
};
use ruma::{OwnedEventId, RoomId, UserId};

use crate::slot::Slot;

/// Events judged one by one for a user with rules of its own; a count stops there.
const JUDGED_MAX: usize = 500;

/// Mentions counted.
const MENTIONS_MAX: usize = 1_000;

/// Threads counted, the latest first.
const THREADS_MAX: usize = 100;

/// Receipts of one user in one room that are looked at.
const RECEIPTS_MAX: usize = 1_000;

/// What is in no thread, as receipts call it.
const MAIN: &str = "main";

/// Unread counts of one room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events that notify.
    pub notify: u64,
    /// Events that highlight.
    pub highlight: u64,
}

/// How a user with push rules of its own counts.
#[async_trait]
pub trait Notifications: Send + Sync + std::fmt::Debug {
    /// Whether the user never changed its push rules, so that running totals say what they say of every room.
    ///
    /// # Errors
    /// If the rules cannot be read.
    async fn are_untouched(&self, user_id: &UserId) -> Result<bool, Fault>;

    /// Whether running totals say what this user's rules say of the room.
    ///
    /// # Errors
    /// If the rules cannot be read.
    async fn is_default(&self, user_id: &UserId, room_id: &RoomId) -> Result<bool, Fault>;

    /// The content of `m.push_rules` for a user that never changed its rules.
    ///
    /// # Errors
    /// If it cannot be encoded: a defect.
    fn default_rules(&self, user_id: &UserId) -> Result<bytes::Bytes, Fault>;

    /// Judges these events by the user's rules, one after the other; none of them is its own. Fewer outcomes than events say
    /// that judging the others would cost too much.
    ///
    /// # Errors
    /// If the rules cannot be read.
    async fn judge(&self, user_id: &UserId, room_id: &RoomId, events: &[Placed]) -> Result<Vec<Counts>, Fault>;
}

/// Unread counts of one room, taken apart by thread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unread {
    /// What is in no thread.
    pub(crate) main: Counts,
    /// Threads with anything unread, by their roots.
    pub(crate) threads: BTreeMap<OwnedEventId, Counts>,
}

impl Unread {
    /// All of it.
    pub(crate) fn total(&self) -> Counts {
        self.threads.values().fold(self.main, |mut total, counts| {
            total += *counts;
            total
        })
    }

    fn scope(&mut self, thread: Option<&OwnedEventId>) -> &mut Counts {
        match thread {
            Some(root) => self.threads.entry(root.clone()).or_default(),
            None => &mut self.main,
        }
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.notify += other.notify;
        self.highlight += other.highlight;
    }
}

/// The last event of what is counted, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    pub(crate) position: Position,
    totals: Totals,
    main: Totals,
}

impl From<&Placed> for Head {
    fn from(placed: &Placed) -> Self {
        Self { position: placed.position, totals: placed.event.totals, main: placed.event.main }
    }
}

/// What was read already for other parts of the answer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Known<'a> {
    /// The last event at or before the end of what is counted.
    pub(crate) head: Option<Head>,
    /// The event by which the user joined.
    pub(crate) join: Option<Head>,
    /// All receipts of the room.
    pub(crate) receipts: Option<&'a [ReceiptRecord]>,
}

/// What one count works on.
struct Count<'a> {
    history: &'a History,
    user_id: &'a UserId,
    room_id: &'a RoomId,
    up_to: Position,
    marks: Marks,
}

/// Counts what the user has not read in a room, up to `up_to`. A client that tells threads apart has read with its own
/// events no more than the thread they are in; for others everything before them. `notifications`: of a user whose push rules
/// may be its own.
pub(crate) async fn count(
    history: &History,
    notifications: Option<&dyn Notifications>,
    slot: &Slot,
    entry: &RoomEntry,
    up_to: Position,
    by_thread: bool,
    known: Known<'_>,
) -> Result<Unread, Fault> {
    let (room_id, user_id) = (&entry.room_id, &*slot.user_id);
    let marks = marks(history, slot, entry, up_to, by_thread, known).await?;
    if marks.all.position >= up_to {
        return Ok(Unread::default());
    }
    let count = Count { history, user_id, room_id, up_to, marks };
    if let Some(notifications) = notifications
        && !notifications.is_default(user_id, room_id).await?
    {
        return count.judged(notifications).await;
    }
    let head = match known.head {
        Some(head) => Some(head),
        None => history.last_at(room_id, up_to).await?.as_ref().map(Head::from),
    };
    let Some(head) = head else { return Ok(Unread::default()) };
    if head.position <= count.marks.all.position {
        return Ok(Unread::default());
    }
    let mut unread = Unread::default();
    if !by_thread && count.marks.threads.is_empty() {
        unread.main = difference(head.totals, count.marks.all.totals);
        for (_, mention) in count.mentions().await? {
            unread.main += mention_counts(&mention);
        }
        return Ok(unread);
    }
    unread.main = difference(head.main, count.marks.of(None).1);
    count.threads(&mut unread).await?;
    for (position, mention) in count.mentions().await? {
        if position > count.marks.of(mention.thread.as_ref()).0 {
            *unread.scope(mention.thread.as_ref()) += mention_counts(&mention);
        }
    }
    unread.threads.retain(|_, counts| *counts != Counts::default());
    Ok(unread)
}

impl Count<'_> {
    async fn judged(&self, notifications: &dyn Notifications) -> Result<Unread, Fault> {
        let (after, up_to) = (self.marks.all.position, self.up_to);
        let range = RangeRead { after, up_to, direction: Direction::Backward, limit: JUDGED_MAX };
        let mut events = self.history.events(self.room_id, range).await?;
        let root = |placed: &Placed| placed.event.thread.as_ref().map(|thread| thread.root.clone());
        events.retain(|placed| {
            let is_read = placed.position <= self.marks.of(root(placed).as_ref()).0;
            placed.event.sender != self.user_id && !placed.event.hidden && !is_read
        });
        events.reverse();
        let outcomes = notifications.judge(self.user_id, self.room_id, &events).await?;
        let mut unread = Unread::default();
        for (placed, counts) in events.iter().zip(outcomes) {
            if counts != Counts::default() {
                *unread.scope(root(placed).as_ref()) += counts;
            }
        }
        Ok(unread)
    }

    /// Threads with something after the mark of all: the others cost nothing.
    async fn threads(&self, unread: &mut Unread) -> Result<(), Fault> {
        let (after, up_to) = (self.marks.all.position, self.up_to);
        let range = RangeRead { after, up_to, direction: Direction::Backward, limit: THREADS_MAX };
        for active in self.history.threads(self.room_id, range).await? {
            let root = &active.thread.root;
            let read = match self.marks.threads.get(root.as_str()) {
                Some((position, _)) if *position >= active.position => continue,
                Some((_, totals)) => *totals,
                None => self.history.thread_totals(self.room_id, root, after).await?,
            };
            *unread.scope(Some(root)) += difference(active.thread.totals, read);
        }
        Ok(())
    }

    async fn mentions(&self) -> Result<Vec<(Position, Mention)>, Fault> {
        let after = self.marks.all.position;
        self.history.mentions(self.room_id, self.user_id, after, self.up_to, MENTIONS_MAX).await
    }
}

fn difference(head: Totals, read: Totals) -> Counts {
    Counts { notify: head.notify.saturating_sub(read.notify), highlight: head.highlight.saturating_sub(read.highlight) }
}

fn mention_counts(mention: &Mention) -> Counts {
    Counts { notify: u64::from(!mention.counted), highlight: u64::from(mention.highlight) }
}

/// Up to where the user has read.
#[derive(Debug, Default)]
struct Marks {
    /// Whatever the thread.
    all: Mark,
    /// In single threads and in what is in none (`main`), where that is further.
    threads: BTreeMap<String, (Position, Totals)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    position: Position,
    totals: Totals,
    main: Totals,
}

impl Marks {
    /// The mark in a thread, or in what is in none, whose totals there are known.
    fn of(&self, thread: Option<&OwnedEventId>) -> (Position, Totals) {
        let scope = thread.map_or(MAIN, |root| root.as_str());
        self.threads.get(scope).copied().unwrap_or((self.all.position, self.all.main))
    }
}

async fn receipts_of(history: &History, user_id: &UserId, room_id: &RoomId) -> Result<Vec<ReceiptRecord>, Fault> {
    let scan = Scan::new(&tables::RECEIPTS, key![room_id.as_str()], key![user_id.as_str()], RECEIPTS_MAX);
    let rows = history.reader().store().scan(scan).await?;
    Ok(rows.iter().map(|row| record::decode(&row.value)).collect::<Result<_, _>>()?)
}

/// The furthest of the user's receipts, its own last events and its join.
async fn marks(
    history: &History,
    slot: &Slot,
    entry: &RoomEntry,
    up_to: Position,
    by_thread: bool,
    known: Known<'_>,
) -> Result<Marks, Fault> {
    let user_id = &slot.user_id;
    let read;
    let receipts = match known.receipts {
        Some(receipts) => receipts,
        None => {
            read = match history.receipts(&entry.room_id, up_to).await? {
                Some(all) => all,
                None => Arc::new(receipts_of(history, user_id, &entry.room_id).await?),
            };
            &read
        }
    };
    let mut marks = Marks::default();
    for receipt in receipts.iter().filter(|receipt| receipt.user_id == *user_id) {
        let (position, scope) = (receipt.event_position, receipt.thread_id.as_str());
        match (receipt.receipt_type.as_str(), scope.is_empty()) {
            // With its own events a client has read as much as it tells apart.
            (OWN_EVENT, whole) if whole == by_thread => {}
            (OWN_EVENT | "m.read" | "m.read.private", true) if position > marks.all.position => {
                marks.all = Mark { position, totals: receipt.totals, main: receipt.scoped };
            }
            (OWN_EVENT | "m.read" | "m.read.private", false) => {
                let mark = marks.threads.entry(receipt.thread_id.clone()).or_default();
                if position > mark.0 {
                    *mark = (position, receipt.scoped);
                }
            }
            _ => {}
        }
    }
    if entry.since_room > marks.all.position {
        let (totals, main) = match known.join {
            Some(join) => (join.totals, join.main),
            None => totals_at_join(history, slot, entry).await?,
        };
        marks.all = Mark { position: entry.since_room, totals, main };
    }
    let all = marks.all.position;
    marks.threads.retain(|_, (position, _)| *position > all);
    Ok(marks)
}

/// The room's totals at the user's join, which never change: read once for as long as the slot lives.
async fn totals_at_join(history: &History, slot: &Slot, entry: &RoomEntry) -> Result<(Totals, Totals), Fault> {
    let known = slot.view().at_join.get(&entry.room_id).copied();
    if let Some((_, totals, main)) = known.filter(|(position, ..)| *position == entry.since_room) {
        return Ok((totals, main));
    }
    let join = history.at(&entry.room_id, entry.since_room).await?;
    let (totals, main) = join.map(|placed| (placed.event.totals, placed.event.main)).unwrap_or_default();
    slot.view().at_join.insert(entry.room_id.clone(), (entry.since_room, totals, main));
    Ok((totals, main))
}
