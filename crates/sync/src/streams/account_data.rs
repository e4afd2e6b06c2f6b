//! Account data, the user's own and that of each room.

use std::collections::{BTreeMap, BTreeSet};

use cofactor_store::{Scan, key, record, tables};
use cofactor_types::Fault;
use cofactor_wire::user::{AccountData, state};
use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId, api::client::filter::RoomEventFilter};

use crate::{answer::Look, json::Json, service::Inner};

const PUSH_RULES: &str = "m.push_rules";

/// Global account data.
pub(crate) async fn write(inner: &Inner, look: &Look<'_>, body: &mut Json) -> Result<bool, Fault> {
    let filter = &look.request.filter.account_data;
    let mut as_room = RoomEventFilter::default();
    as_room.types.clone_from(&filter.types);
    as_room.not_types.clone_from(&filter.not_types);
    let takes = |event_type: &str| takes(&as_room, event_type);
    let prefix = key![state::ACCOUNT_DATA];
    let mut events = changed(inner, look, prefix, takes).await?;
    if look.user_after.is_none() && takes(PUSH_RULES) {
        let (partition, clustering) = (key![look.slot.user_id.as_str()], key![state::ACCOUNT_DATA, PUSH_RULES]);
        // A user that never changed its rules has them all the same.
        if inner.history.reader().store().get(&tables::USER_STATE, &partition, &clustering).await?.is_none() {
            push(&mut events, PUSH_RULES, &inner.notifications.default_rules(&look.slot.user_id)?);
        }
    }
    let has_news = !events.is_empty();
    body.events("account_data", events);
    Ok(has_news)
}

/// Account data by room, each with its type.
pub(crate) type RoomData = BTreeMap<String, Vec<(String, AccountData)>>;

/// The account data of all rooms.
pub(crate) async fn rooms(inner: &Inner, user_id: &UserId) -> Result<RoomData, Fault> {
    let prefix = key![state::ROOM_ACCOUNT_DATA];
    let scan = Scan::new(&tables::USER_STATE, key![user_id.as_str()], prefix, usize::MAX);
    let mut rooms = RoomData::new();
    for row in inner.history.reader().store().scan(scan).await? {
        if let Some((room_id, event_type)) = row.clustering.text(1).split_once('\0') {
            let data = (event_type.to_owned(), record::decode(&row.value)?);
            rooms.entry(room_id.to_owned()).or_default().push(data);
        }
    }
    Ok(rooms)
}

/// A room's account data; `all`: whatever changed.
pub(crate) async fn room(inner: &Inner, look: &Look<'_>, room_id: &RoomId, all: bool) -> Result<Json, Fault> {
    let filter = &look.request.filter.room.account_data;
    let mut events = Json::array();
    let mut add = |event_type: &str, data: &AccountData| {
        let is_due = if all { data.position <= look.user_up_to } else { look.is_due(data.position) };
        if is_due && takes(filter, event_type) {
            push(&mut events, event_type, &data.content);
        }
    };
    if let Some(rooms) = &look.room_data {
        rooms.get(room_id.as_str()).into_iter().flatten().for_each(|(event_type, data)| add(event_type, data));
        return Ok(events);
    }
    let before = format!("{room_id}\0");
    let store = inner.history.reader().store();
    let scan =
        Scan::new(&tables::USER_STATE, key![look.slot.user_id.as_str()], key![state::ROOM_ACCOUNT_DATA], usize::MAX)
            .after(key![state::ROOM_ACCOUNT_DATA, before.as_str()])
            .up_to(key![state::ROOM_ACCOUNT_DATA, format!("{room_id}\u{1}")]);
    for row in store.scan(scan).await? {
        if let Some(event_type) = row.clustering.text(1).strip_prefix(&before) {
            add(event_type, &record::decode(&row.value)?);
        }
    }
    Ok(events)
}

/// Rooms whose account data changed.
pub(crate) async fn changed_rooms(inner: &Inner, look: &Look<'_>) -> Result<BTreeSet<OwnedRoomId>, Fault> {
    let prefix = key![state::ROOM_ACCOUNT_DATA];
    let scan = Scan::new(&tables::USER_STATE, key![look.slot.user_id.as_str()], prefix, usize::MAX);
    let mut rooms = BTreeSet::new();
    for row in inner.history.reader().store().scan(scan).await? {
        let data: AccountData = record::decode(&row.value)?;
        if look.is_due(data.position)
            && let Some((room_id, _)) = row.clustering.text(1).split_once('\0')
            && let Ok(room_id) = RoomId::parse(room_id)
        {
            rooms.insert(room_id);
        }
    }
    Ok(rooms)
}

async fn changed(
    inner: &Inner,
    look: &Look<'_>,
    prefix: cofactor_store::Key,
    takes: impl Fn(&str) -> bool,
) -> Result<Json, Fault> {
    let scan = Scan::new(&tables::USER_STATE, key![look.slot.user_id.as_str()], prefix, usize::MAX);
    let mut events = Json::array();
    for row in inner.history.reader().store().scan(scan).await? {
        let data: AccountData = record::decode(&row.value)?;
        let event_type = row.clustering.text(1);
        if look.is_due(data.position) && takes(event_type) {
            push(&mut events, event_type, &data.content);
        }
    }
    Ok(events)
}

fn push(events: &mut Json, event_type: &str, content: &[u8]) {
    let mut event = Json::object();
    event.text("type", event_type);
    event.member("content", content);
    events.element(&event.end_object());
}

fn takes(filter: &RoomEventFilter, event_type: &str) -> bool {
    // The room of account data is chosen elsewhere, so any id serves here.
    let any = ruma::room_id!("!any:room");
    cofactor_history::EventFilter::of(filter, any).takes_type(event_type)
}

/// <https://spec.matrix.org/v1.19/client-server-api/#ignoring-users>
pub(crate) async fn ignored(inner: &Inner, user_id: &UserId) -> Result<BTreeSet<OwnedUserId>, Fault> {
    #[derive(serde::Deserialize)]
    struct List {
        #[serde(default)]
        ignored_users: BTreeMap<OwnedUserId, serde::de::IgnoredAny>,
    }
    let (partition, clustering) = (key![user_id.as_str()], key![state::ACCOUNT_DATA, "m.ignored_user_list"]);
    let found = inner.history.reader().store().get(&tables::USER_STATE, &partition, &clustering).await?;
    let Some(found) = found else { return Ok(BTreeSet::new()) };
    let data: AccountData = record::decode(&found)?;
    // A list that is none ignores nobody.
    let list = serde_json::from_slice::<List>(&data.content);
    Ok(list.map(|list| list.ignored_users.into_keys().collect()).unwrap_or_default())
}
