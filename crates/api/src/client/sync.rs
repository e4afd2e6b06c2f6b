//! `/sync`. <https://spec.matrix.org/v1.19/client-server-api/#syncing>

use std::{sync::Arc, time::Duration};

use cofactor_http::{Access, ApiError, Exchange, Reply, Routes};
use cofactor_sync::SyncRequest;
use cofactor_types::SyncToken;
use http::Method;
use ruma::{UserId, api::client::filter::FilterDefinition};

use crate::Api;

/// A filter in the query, in bytes.
const FILTER_BYTES_MAX: usize = 64 << 10;

pub(crate) fn mount(routes: &mut Routes<Api>) {
    for path in ["/_matrix/client/v3/sync", "/_matrix/client/r0/sync"] {
        routes.mount_raw(Method::GET, path, Access::Required, Some(0), sync);
    }
}

async fn sync(api: Api, exchange: Exchange) -> Result<Reply, ApiError> {
    let session = exchange.session.clone().ok_or_else(ApiError::missing_token)?;
    let since = exchange.query("since").filter(|since| !since.is_empty());
    let since = since.map(|since| since.parse::<SyncToken>());
    let since = since.transpose().map_err(|error| ApiError::invalid_param(error.to_string()))?;
    let flag = |name: &str| exchange.query(name).is_some_and(|value| value == "true");
    let timeout_ms = exchange.query("timeout").map_or(Ok(0), |timeout| timeout.parse::<u64>());
    let timeout_ms = timeout_ms.map_err(|_| ApiError::invalid_param("`timeout` is a number of milliseconds"))?;
    let state_after = if flag("use_state_after") {
        Some("state_after")
    } else if flag("org.matrix.msc4222.use_state_after") {
        Some("org.matrix.msc4222.state_after")
    } else {
        None
    };
    let request = SyncRequest {
        filter: Arc::new(filter(&api, &session.user_id, exchange.query("filter")).await?),
        user_id: session.user_id,
        device_id: session.device_id,
        since,
        full_state: flag("full_state"),
        timeout: Duration::from_millis(timeout_ms),
        state_after: state_after.map(Into::into),
    };
    // Not kept while the request waits.
    drop(exchange);
    Ok(Reply::json(api.sync.sync(request).await?))
}

/// A filter is given whole, or by its id.
async fn filter(api: &Api, user_id: &UserId, given: Option<String>) -> Result<FilterDefinition, ApiError> {
    let Some(given) = given.filter(|given| !given.is_empty()) else { return Ok(FilterDefinition::default()) };
    if given.len() > FILTER_BYTES_MAX {
        return Err(ApiError::invalid_param("the filter is too large"));
    }
    let bad = |error: serde_json::Error| ApiError::invalid_param(format!("the filter cannot be read: {error}"));
    if given.starts_with('{') {
        return serde_json::from_str(&given).map_err(bad);
    }
    let stored = api.users.filter(user_id, &given).await?;
    let stored = stored.ok_or_else(|| ApiError::invalid_param("there is no such filter"))?;
    serde_json::from_slice(&stored).map_err(bad)
}
