//! To-device messages and key counts.
//! <https://spec.matrix.org/v1.19/client-server-api/#extensions-to-sync>

use std::sync::Arc;

use cofactor_store::{Direction, LogKey, RangeRead, key, record, tables};
use cofactor_types::{EntityId, Fault, Position, SyncToken};
use cofactor_wire::user::{ToDevice, class, state};
use ruma::OwnedDeviceId;

use crate::{answer::Look, json::Json, service::Inner};

/// Messages in one answer; more follow with the next.
const MESSAGES_MAX: usize = 100;

/// Forgets what the token says was delivered, and writes what comes next.
pub(crate) async fn write(
    inner: &Inner,
    look: &Look<'_>,
    token: &mut SyncToken,
    closed: Position,
    body: &mut Json,
) -> Result<bool, Fault> {
    let device_id = &look.request.device_id;
    let since = look.request.since.as_ref().map(SyncToken::to_device);
    let (newest, acknowledged) = {
        let view = look.slot.view();
        (view.feed.to_device(), view.acknowledged.get(device_id).copied().unwrap_or_default())
    };
    if let Some(after) = since
        && after > acknowledged
        && newest > acknowledged
    {
        inner.users.acknowledge_to_device(&look.request.user_id, device_id, after).await?;
        look.slot.view().acknowledged.insert(device_id.clone(), after);
    }
    if let Some(after) = since.filter(|after| newest <= *after) {
        token.set_to_device(after.max(closed));
        return Ok(false);
    }
    let after = match since {
        Some(since) => since,
        None => taken(inner, look).await?,
    };
    let log = LogKey {
        entity: EntityId::user(&look.slot.user_id),
        class: class::TO_DEVICE,
        sub: Arc::from(look.request.device_id.as_str()),
    };
    // A queue is written in order: whatever can be read of it, all before it can be read too.
    let range = RangeRead { after, up_to: Position::MAX, direction: Direction::Forward, limit: MESSAGES_MAX };
    let rows = inner.history.reader().read(&log, range).await?;
    let delivered = match rows.last() {
        Some(last) if rows.len() == MESSAGES_MAX => last.position,
        last => last.map_or(Position::ZERO, |last| last.position).max(look.user_up_to).max(after),
    };
    token.set_to_device(delivered);
    let mut events = Json::array();
    for row in rows {
        let message: ToDevice = record::decode(&row.value)?;
        let mut event = Json::object();
        event.text("type", &message.event_type);
        event.text("sender", message.sender.as_str());
        event.member("content", &message.content);
        events.element(&event.end_object());
    }
    let has_news = !events.is_empty();
    body.events("to_device", events);
    Ok(has_news)
}

/// Up to where messages were taken from the device's queue.
async fn taken(inner: &Inner, look: &Look<'_>) -> Result<Position, Fault> {
    let (partition, clustering) =
        (key![look.request.user_id.as_str()], key![state::TO_DEVICE_TAKEN, look.request.device_id.as_str()]);
    let row = inner.history.reader().store().get(&tables::USER_STATE, &partition, &clustering).await?;
    Ok(row.map(|row| record::decode(&row)).transpose()?.unwrap_or_default())
}

/// Key counts go into every answer: clients take their absence for zero. They are news when they changed.
pub(crate) fn write_key_counts(look: &Look<'_>, body: &mut Json) -> bool {
    let view = look.slot.view();
    let device_id: &OwnedDeviceId = &look.request.device_id;
    let counts = view.key_counts.get(device_id).cloned().unwrap_or_default();
    let mut one_time = Json::object();
    if counts.one_time.is_empty() {
        one_time.number("signed_curve25519", 0);
    }
    counts.one_time.iter().for_each(|(algorithm, count)| one_time.number(algorithm, *count));
    body.member("device_one_time_keys_count", &one_time.end_object());
    let mut unused = Json::array();
    counts.unused_fallback.iter().for_each(|algorithm| unused.text_element(algorithm));
    body.member("device_unused_fallback_key_types", &unused.end_array());
    look.user_after.is_none_or(|after| counts.position > after)
}
