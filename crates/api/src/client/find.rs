//! Finding events by their time and their words, and people by their names.

use cofactor_history::{EventFilter, PageRequest, Placed, Viewpoint};
use cofactor_http::{ApiError, Caller, LimitClass, Reply, Routes, Session};
use cofactor_store::{Direction, RangeRead};
use cofactor_types::Position;
use ruma::{
    RoomId,
    api::client::{
        room::get_event_by_timestamp,
        search::search_events::{
            self,
            v3::{Criteria, SearchKeys},
        },
        user_directory::search_users,
    },
};
use serde_json::{Value, json};

use crate::{Api, client::state::raw};

/// Events looked at for one moment.
const MOMENT_READ_MAX: usize = 1_000;

/// How far an event may stand behind its own time, in microseconds.
const MOMENT_LAG_US: u64 = 10_000_000;

/// Rooms that are searched, events looked at in one of them, and in all.
const ROOMS_MAX: usize = 200;

const ROOM_READ_MAX: usize = 5_000;

const READ_MAX: usize = 20_000;

/// Hits in one page, unless asked otherwise, and at most.
const HITS_DEFAULT: usize = 10;

const HITS_MAX: usize = 50;

/// Events shown on each side of a hit.
const CONTEXT_MAX: usize = 10;

/// The longest search term, in bytes.
const TERM_BYTES_MAX: usize = 512;

/// People in one answer.
const PEOPLE_MAX: usize = 50;

pub(crate) fn mount(routes: &mut Routes<Api>) {
    routes.mount::<get_event_by_timestamp::v1::Request, _, _>(moment);
    routes.mount::<search_events::v3::Request, _, _>(search);
    routes.mount::<search_users::v3::Request, _, _>(people);
}

/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1roomsroomidtimestamp_to_event>
///
/// A position is the time at which the room took an event in, so the search begins near the event.
async fn moment(
    api: Api,
    caller: Caller<Session>,
    request: get_event_by_timestamp::v1::Request,
) -> Result<Reply, ApiError> {
    let room_id = &request.room_id;
    let (view, up_to) = api.view(&caller.session, room_id).await?;
    let at_us = u64::from(request.ts.get()).saturating_mul(1_000);
    let range = match request.dir {
        ruma::api::Direction::Forward => RangeRead {
            after: Position(at_us).previous(),
            up_to,
            direction: Direction::Forward,
            limit: MOMENT_READ_MAX,
        },
        ruma::api::Direction::Backward => RangeRead {
            after: Position::ZERO,
            up_to: Position(at_us.saturating_add(MOMENT_LAG_US)).min(up_to),
            direction: Direction::Backward,
            limit: MOMENT_READ_MAX,
        },
    };
    let fits = |placed: &Placed| match request.dir {
        ruma::api::Direction::Forward => placed.event.ts >= request.ts,
        ruma::api::Direction::Backward => placed.event.ts <= request.ts,
    };
    let events = api.history.events(room_id, range).await?;
    let found = events.into_iter().find(|placed| fits(placed) && view.sees(placed.position, &placed.event));
    let event = found.ok_or_else(|| ApiError::not_found("no event of that time can be found"))?.event;
    Reply::value(&json!({ "event_id": event.event_id, "origin_server_ts": event.ts }))
}

/// What is searched for.
struct Words {
    words: Vec<String>,
    keys: Vec<&'static str>,
}

impl Words {
    fn of(criteria: &Criteria) -> Self {
        let words = criteria.search_term.to_lowercase().split_whitespace().map(ToOwned::to_owned).collect();
        let all = ["body", "name", "topic"];
        let wanted = |key: &&'static str| {
            let named = |wanted: &SearchKeys| wanted.as_str().strip_prefix("content.") == Some(*key);
            criteria.keys.as_ref().is_none_or(|keys| keys.iter().any(named))
        };
        Self { words, keys: all.into_iter().filter(wanted).collect() }
    }

    /// Every word is in one of the fields.
    fn are_in(&self, placed: &Placed) -> bool {
        let Ok(event) = serde_json::from_slice::<Value>(&placed.event.json) else { return false };
        let texts = self.keys.iter().filter_map(|key| event["content"][*key].as_str()).map(str::to_lowercase);
        let texts: Vec<String> = texts.collect();
        !self.words.is_empty() && self.words.iter().all(|word| texts.iter().any(|text| text.contains(word)))
    }
}

/// A hit, and how its room is seen.
struct Hit {
    room: usize,
    placed: Placed,
}

/// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3search>
///
/// There is no index: the latest events of the user's rooms are looked at, within bounds. Hits come latest first, whatever
/// order is asked for.
async fn search(api: Api, caller: Caller<Session>, request: search_events::v3::Request) -> Result<Reply, ApiError> {
    let session = &caller.session;
    api.limit(LimitClass::Other, &session.user_id).await?;
    let Some(criteria) = request.search_categories.room_events else {
        return Reply::value(&json!({ "search_categories": {} }));
    };
    if criteria.search_term.len() > TERM_BYTES_MAX {
        return Err(ApiError::invalid_param("the search term is too long"));
    }
    let skip = match request.next_batch.as_deref().filter(|token| !token.is_empty()) {
        Some(token) => token.strip_prefix('s').and_then(|number| number.parse::<usize>().ok()),
        None => Some(0),
    };
    let skip = skip.ok_or_else(|| ApiError::invalid_param("the token was not made by this server"))?;
    let words = Words::of(&criteria);
    let mut views = Vec::new();
    let mut hits = Vec::new();
    let mut left = READ_MAX;
    for room_id in api.users.joined_rooms(&session.user_id).await?.into_iter().take(ROOMS_MAX) {
        let view = api.history.viewpoint(&room_id, &session.user_id).await?;
        let found = hits_in(&api, &room_id, &view, &criteria, &words, &mut left).await?;
        let room = views.len();
        hits.extend(found.into_iter().map(|placed| Hit { room, placed }));
        views.push((room_id, view));
        if left == 0 {
            break;
        }
    }
    hits.sort_by_key(|hit| std::cmp::Reverse(hit.placed.position));
    let limit =
        criteria.filter.limit.map_or(HITS_DEFAULT, |limit| usize::try_from(u64::from(limit)).unwrap_or(HITS_MAX));
    let limit = limit.clamp(1, HITS_MAX);
    let mut results = Vec::new();
    for hit in hits.iter().skip(skip).take(limit) {
        let Some((room_id, view)) = views.get(hit.room) else { continue };
        let event = api.bundled_event(session, room_id, view, &hit.placed).await?;
        let context = context(&api, session, room_id, view, &criteria, hit).await?;
        results.push(json!({ "rank": 1.0, "result": event, "context": context }));
    }
    let mut found = json!({ "count": hits.len(), "highlights": words.words, "results": results });
    if hits.len() > skip.saturating_add(limit) {
        found["next_batch"] = format!("s{}", skip + limit).into();
    }
    Reply::value(&json!({ "search_categories": { "room_events": found } }))
}

async fn hits_in(
    api: &Api,
    room_id: &RoomId,
    view: &Viewpoint,
    criteria: &Criteria,
    words: &Words,
    left: &mut usize,
) -> Result<Vec<Placed>, ApiError> {
    let filter = EventFilter::of(&criteria.filter, room_id);
    if filter.is_closed() {
        return Ok(Vec::new());
    }
    let limit = ROOM_READ_MAX.min(*left);
    let range = RangeRead { after: Position::ZERO, up_to: Position::MAX, direction: Direction::Backward, limit };
    let events = api.history.events(room_id, range).await?;
    *left -= events.len().min(*left);
    let takes = |placed: &Placed| {
        filter.takes(&placed.event) && words.are_in(placed) && view.sees(placed.position, &placed.event)
    };
    Ok(events.into_iter().filter(takes).collect())
}

/// What is around a hit.
async fn context(
    api: &Api,
    session: &Session,
    room_id: &RoomId,
    view: &Viewpoint,
    criteria: &Criteria,
    hit: &Hit,
) -> Result<Value, ApiError> {
    let count = |limit: ruma::UInt| usize::try_from(u64::from(limit)).unwrap_or(CONTEXT_MAX).min(CONTEXT_MAX);
    let position = hit.placed.position;
    let page =
        |from, direction, limit| PageRequest { from, to: None, direction, limit, filter: EventFilter::default() };
    let mut sides = Vec::with_capacity(2);
    for (from, direction, limit) in [
        (position.previous(), Direction::Backward, count(criteria.event_context.before_limit)),
        (position, Direction::Forward, count(criteria.event_context.after_limit)),
    ] {
        let mut events = Vec::new();
        if limit > 0 {
            events = api.history.page(room_id, view, &page(from, direction, limit)).await?.events;
            events.truncate(limit);
        }
        sides.push(raw(api.bundled(session, room_id, view, &events).await?));
    }
    let after = sides.pop();
    Ok(json!({ "events_before": sides.pop(), "events_after": after }))
}

/// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3user_directorysearch>
async fn people(api: Api, caller: Caller<Session>, request: search_users::v3::Request) -> Result<Reply, ApiError> {
    api.limit(LimitClass::Other, &caller.session.user_id).await?;
    let limit = usize::try_from(u64::from(request.limit)).unwrap_or(PEOPLE_MAX).clamp(1, PEOPLE_MAX);
    let term = request.search_term.to_lowercase();
    if term.len() > TERM_BYTES_MAX {
        return Err(ApiError::invalid_param("the search term is too long"));
    }
    let (found, limited) = api.users.search(&term, limit).await?;
    let person = |(user_id, profile): (ruma::OwnedUserId, serde_json::Map<String, Value>)| {
        let mut person = json!({ "user_id": user_id });
        for (field, name) in [("displayname", "display_name"), ("avatar_url", "avatar_url")] {
            if let Some(value) = profile.get(field).filter(|value| value.is_string()) {
                person[name] = value.clone();
            }
        }
        person
    };
    let results: Vec<Value> = found.into_iter().map(person).collect();
    Reply::value(&json!({ "results": results, "limited": limited }))
}
