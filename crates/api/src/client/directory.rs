//! The public room directory. <https://spec.matrix.org/v1.19/client-server-api/#published-room-directory>

use std::{cmp::Reverse, fmt, str::FromStr};

use cofactor_http::{ApiError, Caller, LimitClass, Reply, Routes, Session};
use cofactor_wire::room::PublicRoom;
use http::StatusCode;
use ruma::{
    OwnedRoomId, RoomId, ServerName, UInt,
    api::client::directory::{get_public_rooms, get_public_rooms_filtered},
    directory::{Filter, RoomNetwork},
};
use serde_json::{Map, Value, json};

use crate::Api;

/// Rooms in one page, unless asked otherwise, and at most.
const LIMIT_DEFAULT: usize = 100;

const LIMIT_MAX: usize = 500;

pub(crate) fn mount(routes: &mut Routes<Api>) {
    routes.mount::<get_public_rooms::v3::Request, _, _>(all);
    routes.mount::<get_public_rooms_filtered::v3::Request, _, _>(filtered);
}

/// The place of a room in the list: the largest rooms come first.
type Place = (Reverse<u64>, OwnedRoomId);

/// A place in the list, and which way to read from it.
struct Since {
    forward: bool,
    place: Place,
}

impl fmt::Display for Since {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}_{}", if self.forward { 'n' } else { 'p' }, self.place.0.0, self.place.1)
    }
}

impl FromStr for Since {
    type Err = ApiError;

    fn from_str(text: &str) -> Result<Self, ApiError> {
        let read = || {
            let forward = text.starts_with('n');
            let (joined, room_id) = text.strip_prefix(['n', 'p'])?.split_once('_')?;
            Some(Self { forward, place: (Reverse(joined.parse().ok()?), RoomId::parse(room_id).ok()?) })
        };
        read().ok_or_else(|| ApiError::invalid_param("the token was not made by this server"))
    }
}

async fn all(api: Api, _caller: Caller<()>, request: get_public_rooms::v3::Request) -> Result<Reply, ApiError> {
    check_server(&api, request.server.as_deref())?;
    page(&api, &Filter::new(), request.limit, request.since.as_deref()).await
}

async fn filtered(
    api: Api,
    caller: Caller<Session>,
    request: get_public_rooms_filtered::v3::Request,
) -> Result<Reply, ApiError> {
    api.limit(LimitClass::Other, &caller.session.user_id).await?;
    check_server(&api, request.server.as_deref())?;
    if matches!(request.room_network, RoomNetwork::ThirdParty(_)) {
        return Reply::value(&json!({ "chunk": [], "total_room_count_estimate": 0 }));
    }
    page(&api, &request.filter, request.limit, request.since.as_deref()).await
}

fn check_server(api: &Api, server: Option<&ServerName>) -> Result<(), ApiError> {
    if server.is_none_or(|server| server == api.server_name) {
        return Ok(());
    }
    Err(ApiError::new(StatusCode::BAD_GATEWAY, "M_UNKNOWN", "this server does not ask other servers yet"))
}

async fn page(api: &Api, filter: &Filter, limit: Option<UInt>, since: Option<&str>) -> Result<Reply, ApiError> {
    let since = since.filter(|since| !since.is_empty()).map(str::parse::<Since>).transpose()?;
    let limit = limit.map_or(LIMIT_DEFAULT, |limit| usize::try_from(u64::from(limit)).unwrap_or(LIMIT_MAX));
    let limit = limit.clamp(1, LIMIT_MAX);
    let term = filter.generic_search_term.as_deref().map(str::to_lowercase);
    let rooms = api.rooms.public_rooms().await?.into_iter();
    let rooms = rooms.filter(|(_, room)| has_type(filter, room) && term.as_ref().is_none_or(|term| says(room, term)));
    let mut rooms: Vec<(Place, PublicRoom)> =
        rooms.map(|(room_id, room)| ((Reverse(room.joined), room_id), room)).collect();
    rooms.sort_by(|(a, _), (b, _)| a.cmp(b));
    let (start, end) = match &since {
        None => (0, limit),
        Some(Since { forward: true, place }) => {
            let start = rooms.partition_point(|(at, _)| at <= place);
            (start, start + limit)
        }
        Some(Since { forward: false, place }) => {
            let end = rooms.partition_point(|(at, _)| at < place);
            (end.saturating_sub(limit), end)
        }
    };
    let shown = &rooms[start.min(rooms.len())..end.min(rooms.len())];
    let chunk: Vec<Value> = shown.iter().map(|((_, room_id), room)| card(room_id, room)).collect();
    let mut body = json!({ "chunk": chunk, "total_room_count_estimate": rooms.len() });
    let token = |forward: bool, place: &Place| Since { forward, place: place.clone() }.to_string();
    if let Some((place, _)) = shown.first().filter(|_| start > 0) {
        body["prev_batch"] = token(false, place).into();
    }
    if let Some((place, _)) = shown.last().filter(|_| end < rooms.len()) {
        body["next_batch"] = token(true, place).into();
    }
    Reply::value(&body)
}

fn has_type(filter: &Filter, room: &PublicRoom) -> bool {
    filter.room_types.is_empty() || filter.room_types.iter().any(|wanted| wanted.as_str() == room.room_type.as_deref())
}

fn says(room: &PublicRoom, term: &str) -> bool {
    [&room.name, &room.topic, &room.canonical_alias]
        .into_iter()
        .flatten()
        .any(|text| text.to_lowercase().contains(term))
}

/// A room as the directory shows it.
pub(crate) fn card(room_id: &RoomId, room: &PublicRoom) -> Value {
    let mut card = Map::new();
    card.insert("room_id".to_owned(), room_id.as_str().into());
    card.insert("num_joined_members".to_owned(), room.joined.into());
    card.insert("world_readable".to_owned(), room.world_readable.into());
    card.insert("guest_can_join".to_owned(), room.guest_can_join.into());
    for (name, value) in [
        ("name", &room.name),
        ("topic", &room.topic),
        ("canonical_alias", &room.canonical_alias),
        ("avatar_url", &room.avatar_url),
        ("join_rule", &room.join_rule),
        ("room_type", &room.room_type),
    ] {
        if let Some(value) = value {
            card.insert(name.to_owned(), value.as_str().into());
        }
    }
    Value::Object(card)
}
