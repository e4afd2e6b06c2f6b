//! Children of events, and threads.
//! <https://spec.matrix.org/v1.19/client-server-api/#relationships-api>

use std::collections::BTreeMap;

use cofactor_history::{History, PageToken, Placed, PlacedChild, Viewpoint};
use cofactor_http::{ApiError, Caller, Reply, Routes, Session};
use cofactor_store::{Direction, RangeRead};
use cofactor_types::{Fault, Position};
use ruma::{
    EventId, OwnedEventId, RoomId, UInt,
    api::client::{
        relations::{
            get_relating_events, get_relating_events_with_rel_type, get_relating_events_with_rel_type_and_event_type,
        },
        threads::get_threads::{self, v1::IncludeThreads},
    },
};

use crate::{
    Api,
    client::chunk::{Chunk, Rest},
};

/// Events in one page, unless asked otherwise, and at most.
const LIMIT_DEFAULT: usize = 50;

const LIMIT_MAX: usize = 500;

/// Children or threads looked at for one page, whatever is left of them.
const READ_MAX: usize = 1_000;

/// How far children of children are followed.
const DEPTH_MAX: usize = 3;

pub(crate) fn mount(routes: &mut Routes<Api>) {
    routes.mount::<get_relating_events::v1::Request, _, _>(all);
    routes.mount::<get_relating_events_with_rel_type::v1::Request, _, _>(of_type);
    routes.mount::<get_relating_events_with_rel_type_and_event_type::v1::Request, _, _>(of_types);
    routes.mount::<get_threads::v1::Request, _, _>(threads);
}

/// Which children are wanted, and where to read.
struct Query {
    parent: OwnedEventId,
    rel_type: Option<String>,
    event_type: Option<String>,
    after: Position,
    up_to: Position,
    direction: Direction,
    limit: usize,
    recurse: bool,
}

impl Query {
    fn wants(&self, child: &PlacedChild) -> bool {
        let is = |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
        is(&self.rel_type, &child.child.rel_type) && is(&self.event_type, &child.child.event_type)
    }

    fn range(&self, limit: usize) -> RangeRead {
        RangeRead { after: self.after, up_to: self.up_to, direction: self.direction, limit }
    }
}

macro_rules! query {
    ($request:ident, $rel_type:expr, $event_type:expr) => {{
        let read = |token: &String| PageToken::read(token, &$request.room_id).map(|token| token.0);
        let (from, to) = ($request.from.as_ref().map(read).transpose()?, $request.to.as_ref().map(read).transpose()?);
        let backward = $request.dir == ruma::api::Direction::Backward;
        let (after, up_to) = if backward { (to, from) } else { (from, to) };
        Query {
            parent: $request.event_id,
            rel_type: $rel_type,
            event_type: $event_type,
            after: after.unwrap_or(Position::ZERO),
            up_to: up_to.unwrap_or(Position::MAX),
            direction: if backward { Direction::Backward } else { Direction::Forward },
            limit: limit($request.limit),
            recurse: $request.recurse,
        }
    }};
}

fn limit(limit: Option<UInt>) -> usize {
    limit.map_or(LIMIT_DEFAULT, |limit| usize::try_from(u64::from(limit)).unwrap_or(LIMIT_MAX)).clamp(1, LIMIT_MAX)
}

async fn all(api: Api, caller: Caller<Session>, request: get_relating_events::v1::Request) -> Result<Reply, ApiError> {
    let query = query!(request, None, None);
    page(&api, &caller.session, &request.room_id, request.from, query).await
}

async fn of_type(
    api: Api,
    caller: Caller<Session>,
    request: get_relating_events_with_rel_type::v1::Request,
) -> Result<Reply, ApiError> {
    let query = query!(request, Some(request.rel_type.to_string()), None);
    page(&api, &caller.session, &request.room_id, request.from, query).await
}

async fn of_types(
    api: Api,
    caller: Caller<Session>,
    request: get_relating_events_with_rel_type_and_event_type::v1::Request,
) -> Result<Reply, ApiError> {
    let query = query!(request, Some(request.rel_type.to_string()), Some(request.event_type.to_string()));
    page(&api, &caller.session, &request.room_id, request.from, query).await
}

/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1roomsroomidrelationseventid>
async fn page(
    api: &Api,
    session: &Session,
    room_id: &RoomId,
    from: Option<String>,
    query: Query,
) -> Result<Reply, ApiError> {
    let (view, _) = api.view(session, room_id).await?;
    let parent = api.history.find(room_id, &query.parent).await?;
    if parent.is_none_or(|placed| !view.sees(placed.position, &placed.event)) {
        return Err(ApiError::not_found("the room has no such event, or you may not see it"));
    }
    let children = match query.recurse {
        true => descendants(&api.history, room_id, &query).await?,
        false => api.history.children(room_id, &query.parent, query.range(READ_MAX)).await?,
    };
    let exhausted = children.len() < READ_MAX;
    let mut events = Vec::new();
    let mut end = None;
    let mut children = children.into_iter().peekable();
    while let Some(child) = children.next() {
        if query.wants(&child) {
            events.extend(visible(&api.history, room_id, &view, child.position).await?);
        }
        if events.len() >= query.limit || children.peek().is_none() {
            let more = children.peek().is_some() || !exhausted;
            end = more.then_some(match query.direction {
                Direction::Backward => child.position.previous(),
                Direction::Forward => child.position,
            });
            break;
        }
    }
    let rest = Rest {
        next_batch: end.map(|end| PageToken(end).to_string()),
        prev_batch: from,
        recursion_depth: query.recurse.then_some(DEPTH_MAX),
        ..Rest::default()
    };
    Chunk { chunk: api.bundled(session, room_id, &view, &events).await?, rest, ..Chunk::default() }.reply()
}

async fn visible(
    history: &History,
    room_id: &RoomId,
    view: &Viewpoint,
    position: Position,
) -> Result<Option<Placed>, Fault> {
    let found = history.at(room_id, position).await?;
    Ok(found.filter(|placed| view.sees(placed.position, &placed.event)))
}

/// Children, their children, and so on, in the order asked for.
async fn descendants(history: &History, room_id: &RoomId, query: &Query) -> Result<Vec<PlacedChild>, Fault> {
    let mut found: BTreeMap<Position, PlacedChild> = BTreeMap::new();
    let mut parents = vec![query.parent.clone()];
    for _ in 0..DEPTH_MAX {
        let mut next = Vec::new();
        for parent in parents {
            // Children stand after their parents, so the whole of what is asked for may be below any of them.
            let range = RangeRead { limit: READ_MAX - found.len(), ..query.range(READ_MAX) };
            if range.limit == 0 {
                break;
            }
            for child in history.children(room_id, AsRef::<EventId>::as_ref(&parent), range).await? {
                next.push(child.child.event_id.clone());
                found.insert(child.position, child);
            }
        }
        parents = next;
    }
    let mut found: Vec<_> = found.into_values().collect();
    if query.direction == Direction::Backward {
        found.reverse();
    }
    Ok(found)
}

/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1roomsroomidthreads>
async fn threads(api: Api, caller: Caller<Session>, request: get_threads::v1::Request) -> Result<Reply, ApiError> {
    let (session, room_id) = (&caller.session, &request.room_id);
    let (view, _) = api.view(session, room_id).await?;
    let from = request.from.as_ref().map(|token| PageToken::read(token, room_id)).transpose()?;
    let up_to = from.map_or(Position::MAX, |token| token.0);
    let limit = limit(request.limit);
    let range = RangeRead { after: Position::ZERO, up_to, direction: Direction::Backward, limit: READ_MAX };
    let found = api.history.threads(room_id, range).await?;
    let exhausted = found.len() < READ_MAX;
    let mut roots = Vec::new();
    let mut end = None;
    let mut found = found.into_iter().peekable();
    while let Some(active) = found.next() {
        let root_position = active.thread.root_position;
        let root = visible(&api.history, room_id, &view, root_position).await?;
        if let Some(root) = root {
            let own = request.include != IncludeThreads::Participated
                || root.event.sender == session.user_id
                || api.history.took_part(room_id, &session.user_id, root_position).await?;
            roots.extend(own.then_some(root));
        }
        if roots.len() >= limit || found.peek().is_none() {
            let more = found.peek().is_some() || !exhausted;
            end = more.then_some(active.position.previous());
            break;
        }
    }
    let rest = Rest { next_batch: end.map(|end| PageToken(end).to_string()), ..Rest::default() };
    Chunk { chunk: api.bundled(session, room_id, &view, &roots).await?, rest, ..Chunk::default() }.reply()
}
