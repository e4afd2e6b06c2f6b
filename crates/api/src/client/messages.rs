//! Pages of history. <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidmessages>

use std::collections::BTreeSet;

use cofactor_history::{EventFilter, PageRequest, PageToken};
use cofactor_http::{ApiError, Caller, Reply, Routes, Session};
use cofactor_store::Direction;
use cofactor_types::Position;
use ruma::api::client::{filter::LazyLoadOptions, message::get_message_events};

use crate::{
    Api,
    client::chunk::{Chunk, Rest},
};

/// Events in one page at most.
const LIMIT_MAX: usize = 1_000;

pub(crate) fn mount(routes: &mut Routes<Api>) {
    routes.mount::<get_message_events::v3::Request, _, _>(messages);
}

async fn messages(
    api: Api,
    caller: Caller<Session>,
    request: get_message_events::v3::Request,
) -> Result<Reply, ApiError> {
    let (session, room_id) = (&caller.session, &request.room_id);
    let (view, up_to) = api.view(session, room_id).await?;
    let read = |token: &String| PageToken::read(token, room_id).map(|token| token.0);
    let backward = request.dir == ruma::api::Direction::Backward;
    let from = request.from.as_ref().map(read).transpose()?;
    let from = from.unwrap_or(if backward { up_to } else { Position::ZERO });
    let page = PageRequest {
        from,
        to: request.to.as_ref().map(read).transpose()?,
        direction: if backward { Direction::Backward } else { Direction::Forward },
        limit: usize::try_from(u64::from(request.limit)).unwrap_or(LIMIT_MAX).clamp(1, LIMIT_MAX),
        filter: EventFilter::of(&request.filter, room_id),
    };
    let page = api.history.page(room_id, &view, &page).await?;
    let mut state = Vec::new();
    if let LazyLoadOptions::Enabled { .. } = request.filter.lazy_load_options {
        let senders: BTreeSet<_> = page.events.iter().map(|placed| &placed.event.sender).collect();
        for sender in senders {
            state.extend(api.history.current(room_id, "m.room.member", sender.as_str()).await?);
        }
    }
    let (start, end) = (Some(PageToken(from).to_string()), page.end.map(|end| PageToken(end).to_string()));
    let chunk = api.bundled(session, room_id, &view, &page.events).await?;
    let state = Some(api.events(session, room_id, &state));
    Chunk { chunk, state, rest: Rest { start, end, ..Rest::default() } }.reply()
}
