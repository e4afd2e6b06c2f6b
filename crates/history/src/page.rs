//! Pages of history. <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidmessages>

use std::{fmt, str::FromStr};

use cofactor_store::{Direction, RangeRead};
use cofactor_types::{EntityId, Fault, Position, SyncToken};
use ruma::RoomId;

use crate::{EventFilter, History, Placed, Viewpoint};

/// Events read for one page, whatever is filtered out of it; the end token then says where to go on.
const READ_MAX: usize = 2_000;

/// A place between events: those at or before `0` are behind it, all others ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageToken(pub Position);

impl fmt::Display for PageToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p{:x}", self.0.0)
    }
}

impl FromStr for PageToken {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        // The standard parser would take a sign too.
        let digits = text.strip_prefix('p').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let number = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        number
            .map(|number| Self(Position(number)))
            .ok_or_else(|| Fault::invalid("the token was not made by this server"))
    }
}

impl PageToken {
    /// Reads a token of history, or the `next_batch` of `/sync`, which says how far this room was delivered.
    ///
    /// # Errors
    /// `M_INVALID_PARAM` if it is neither.
    pub fn read(text: &str, room_id: &RoomId) -> Result<Self, Fault> {
        match text.parse::<SyncToken>() {
            Ok(token) => Ok(Self(token.lower_bound(&EntityId::room(room_id)))),
            Err(_) => text.parse(),
        }
    }
}

/// What to read.
#[derive(Clone, Debug)]
pub struct PageRequest {
    /// Where to begin.
    pub from: Position,
    /// Where to stop at the latest.
    pub to: Option<Position>,
    /// Which way.
    pub direction: Direction,
    /// At most this many events.
    pub limit: usize,
    /// Which events.
    pub filter: EventFilter,
}

/// A page.
#[derive(Clone, Debug)]
pub struct Page {
    /// The events, in the order asked for.
    pub events: Vec<Placed>,
    /// Where to go on; `None`: there is no more.
    pub end: Option<Position>,
}

impl History {
    /// A page of history as seen from `viewpoint`.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn page(&self, room_id: &RoomId, viewpoint: &Viewpoint, request: &PageRequest) -> Result<Page, Fault> {
        let backward = request.direction == Direction::Backward;
        let (mut after, mut up_to) = match (backward, request.to) {
            (true, to) => (to.unwrap_or(Position::ZERO), request.from),
            (false, to) => (request.from, to.unwrap_or(Position::MAX)),
        };
        let mut events = Vec::new();
        let mut read = 0;
        loop {
            let limit = (request.limit - events.len()).clamp(1, READ_MAX);
            let range = RangeRead { after, up_to, direction: request.direction, limit };
            let found = self.events(room_id, range).await?;
            let exhausted = found.len() < limit;
            read += found.len();
            if let Some(last) = found.last() {
                match backward {
                    true => up_to = last.position.previous(),
                    false => after = last.position,
                }
            }
            let visible =
                |placed: &Placed| request.filter.takes(&placed.event) && viewpoint.sees(placed.position, &placed.event);
            events.extend(found.into_iter().filter(visible));
            if exhausted || events.len() >= request.limit || read >= READ_MAX {
                let end = if backward { up_to } else { after };
                return Ok(Page { events, end: (!exhausted).then_some(end) });
            }
        }
    }
}
