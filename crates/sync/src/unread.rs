//! Unread counts from running totals. <https://spec.matrix.org/v1.19/client-server-api/#receiving-notifications>

use async_trait::async_trait;
use cofactor_history::{History, Placed};
use cofactor_store::{Direction, RangeRead, Scan, key, record, tables};
use cofactor_types::{Fault, Position};
use cofactor_wire::{
    room::{Mention, OWN_EVENT, ReceiptRecord, Totals},
    user::RoomEntry,
};
use ruma::{RoomId, UserId};

/// Events judged one by one for a user with rules of its own; a count stops there.
const JUDGED_MAX: usize = 500;

/// Mentions counted.
const MENTIONS_MAX: usize = 1_000;

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

    /// Counts these events by the user's rules; none of them is its own.
    ///
    /// # Errors
    /// If the rules cannot be read.
    async fn count(&self, user_id: &UserId, room_id: &RoomId, events: &[Placed]) -> Result<Counts, Fault>;
}

/// Counts what `user_id` has not read in a room, up to `up_to`, where the totals are `head`.
pub(crate) async fn count(
    history: &History,
    notifications: &dyn Notifications,
    user_id: &UserId,
    entry: &RoomEntry,
    up_to: Position,
) -> Result<Counts, Fault> {
    let room_id = &entry.room_id;
    let (mark, read) = mark(history, user_id, entry).await?;
    if mark >= up_to {
        return Ok(Counts::default());
    }
    if !notifications.is_default(user_id, room_id).await? {
        let range = RangeRead { after: mark, up_to, direction: Direction::Backward, limit: JUDGED_MAX };
        let mut events = history.events(room_id, range).await?;
        events.retain(|placed| placed.event.sender != user_id && !placed.event.hidden);
        events.reverse();
        return notifications.count(user_id, room_id, &events).await;
    }
    let Some(head) = history.last_at(room_id, up_to).await? else { return Ok(Counts::default()) };
    if head.position <= mark {
        return Ok(Counts::default());
    }
    let head = head.event.totals;
    let mut counts = Counts {
        notify: head.notify.saturating_sub(read.notify),
        highlight: head.highlight.saturating_sub(read.highlight),
    };
    let scan = Scan::new(&tables::MENTIONS, key![room_id.as_str()], key![user_id.as_str()], MENTIONS_MAX)
        .after(key![user_id.as_str(), mark])
        .up_to(key![user_id.as_str(), up_to]);
    for row in history.reader().store().scan(scan).await? {
        let mention: Mention = record::decode(&row.value)?;
        counts.highlight += u64::from(mention.highlight);
        counts.notify += u64::from(!mention.counted);
    }
    Ok(counts)
}

/// Up to where the user has read, and the totals there: the furthest of its receipts, its own last event and its join.
async fn mark(history: &History, user_id: &UserId, entry: &RoomEntry) -> Result<(Position, Totals), Fault> {
    let scan = Scan::new(&tables::RECEIPTS, key![entry.room_id.as_str()], key![user_id.as_str()], 1_000);
    let mut best = (Position::ZERO, Totals::default());
    for row in history.reader().store().scan(scan).await? {
        let receipt: ReceiptRecord = record::decode(&row.value)?;
        let counts = matches!(receipt.receipt_type.as_str(), "m.read" | "m.read.private" | OWN_EVENT);
        if counts && receipt.event_position > best.0 {
            best = (receipt.event_position, receipt.totals);
        }
    }
    if entry.since_room > best.0 {
        let join = history.at(&entry.room_id, entry.since_room).await?;
        best = (entry.since_room, join.map(|placed| placed.event.totals).unwrap_or_default());
    }
    Ok(best)
}
