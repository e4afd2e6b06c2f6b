//! What the server is and can do, and whether it is well.

use cofactor_http::{Access, ApiError, Caller, Exchange, Reply, Routes, Session};
use cofactor_room::{default_room_version, supported_room_versions};
use http::{Method, StatusCode};
use ruma::api::client::discovery::{discover_homeserver, get_capabilities, get_supported_versions};
use serde_json::{Map, json};

use crate::Api;

/// Versions of the specification whose endpoints, as far as they are served, behave as that version says.
const VERSIONS: [&str; 16] = [
    "r0.6.1", "v1.1", "v1.2", "v1.3", "v1.4", "v1.5", "v1.6", "v1.7", "v1.8", "v1.9", "v1.10", "v1.11", "v1.12",
    "v1.13", "v1.14", "v1.15",
];

pub(crate) fn mount(routes: &mut Routes<Api>) {
    routes.mount::<get_supported_versions::Request, _, _>(versions);
    routes.mount::<discover_homeserver::Request, _, _>(well_known);
    routes.mount::<get_capabilities::v3::Request, _, _>(capabilities);
    mount_operator(routes);
}

/// What an operator asks of every process, whatever it does.
pub(crate) fn mount_operator(routes: &mut Routes<Api>) {
    routes.mount_raw(Method::GET, "/health/live", Access::Open, Some(0), live);
    routes.mount_raw(Method::GET, "/health/ready", Access::Open, Some(0), ready);
    routes.mount_raw(Method::GET, "/metrics", Access::Open, Some(0), metrics);
}

/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientversions>
async fn versions(
    _api: Api,
    _caller: Caller<Option<Session>>,
    _request: get_supported_versions::Request,
) -> Result<Reply, ApiError> {
    Reply::value(&json!({
        "versions": VERSIONS,
        "unstable_features": { "org.matrix.msc4222": true, "org.matrix.e2e_cross_signing": true },
    }))
}

/// <https://spec.matrix.org/v1.19/client-server-api/#getwell-knownmatrixclient>
async fn well_known(api: Api, _caller: Caller<()>, _request: discover_homeserver::Request) -> Result<Reply, ApiError> {
    match &api.public_url {
        Some(url) => Reply::value(&json!({ "m.homeserver": { "base_url": url } })),
        None => Err(ApiError::not_found("this server has no public address (option `public_url`)")),
    }
}

/// <https://spec.matrix.org/v1.19/client-server-api/#capabilities-negotiation>
async fn capabilities(
    _api: Api,
    _caller: Caller<Session>,
    _request: get_capabilities::v3::Request,
) -> Result<Reply, ApiError> {
    let available: Map<_, _> = supported_room_versions()
        .iter()
        .map(|version| (version.name().to_owned(), version.stability().as_str().into()))
        .collect();
    Reply::value(&json!({ "capabilities": {
        "m.change_password": { "enabled": true },
        "m.room_versions": { "default": default_room_version().name(), "available": available },
        "m.set_displayname": { "enabled": true },
        "m.set_avatar_url": { "enabled": true },
        "m.profile_fields": { "enabled": true },
        "m.3pid_changes": { "enabled": false },
        "m.get_login_token": { "enabled": false },
        "m.forget_forced_upon_leave": { "enabled": false },
    } }))
}

async fn live(_api: Api, _exchange: Exchange) -> Result<Reply, ApiError> {
    Ok(Reply::text("live\n".into()))
}

async fn ready(api: Api, _exchange: Exchange) -> Result<Reply, ApiError> {
    match (api.ready)() {
        true => Ok(Reply::text("ready\n".into())),
        false => Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "M_UNKNOWN", "the server is starting or stopping")),
    }
}

async fn metrics(api: Api, _exchange: Exchange) -> Result<Reply, ApiError> {
    match api.metrics {
        Some(metrics) => Ok(Reply::text(metrics())),
        None => Err(ApiError::unrecognized()),
    }
}
