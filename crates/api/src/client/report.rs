//! Reports about events, kept for the operator. <https://spec.matrix.org/v1.19/client-server-api/#reporting-content>

use cofactor_http::{ApiError, Caller, LimitClass, Reply, Routes, Session};
use cofactor_wire::room::Report;
use ruma::api::client::room::report_content;

use crate::Api;

/// The longest reason, in bytes.
const REASON_BYTES_MAX: usize = 2_048;

pub(crate) fn mount(routes: &mut Routes<Api>) {
    routes.mount::<report_content::v3::Request, _, _>(event);
}

/// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3roomsroomidreporteventid>
async fn event(api: Api, caller: Caller<Session>, request: report_content::v3::Request) -> Result<Reply, ApiError> {
    let user_id = &caller.session.user_id;
    api.limit(LimitClass::Other, user_id).await?;
    let missing = || ApiError::not_found("the room has no such event, or you are not in it");
    let view = api.history.viewpoint(&request.room_id, user_id).await?;
    let found = api.history.find(&request.room_id, &request.event_id).await?;
    let found = found.filter(|placed| view.is_joined() && view.sees(placed.position, &placed.event));
    let reported = found.ok_or_else(missing)?.event;
    if request.reason.as_ref().is_some_and(|reason| reason.len() > REASON_BYTES_MAX) {
        return Err(ApiError::invalid_param(format!("a reason has at most {REASON_BYTES_MAX} bytes")));
    }
    let (room_id, reporter, sender) = (request.room_id, user_id.clone(), reported.sender.clone());
    let reported_ms = api.clock.now_ms();
    tracing::info!(%room_id, event_id = %request.event_id, %reporter, %sender, "an event was reported");
    let report = Report { event_id: request.event_id, sender, reporter, reason: request.reason, reported_ms };
    api.rooms.report(&room_id, &report).await?;
    Ok(Reply::empty())
}
