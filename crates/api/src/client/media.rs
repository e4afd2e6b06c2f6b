//! Media. <https://spec.matrix.org/v1.19/client-server-api/#content-repository>
//!
//! Downloads need a token: the endpoints of old that did not are not served.

use cofactor_http::{Access, ApiError, Body, Exchange, LimitClass, Reply, ReplyBody, Routes, Session};
use cofactor_media::{MediaError, Method as Fit, Stored, ThumbnailSize, content_disposition, security_headers};
use futures::StreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use ruma::{OwnedServerName, ServerName};
use serde_json::json;

use crate::Api;

pub(crate) fn mount(routes: &mut Routes<Api>) {
    let mut raw = |method, path, bytes_max, handler: Handler| {
        routes.mount_raw(method, path, Access::Required, bytes_max, handler);
    };
    for path in ["/_matrix/media/v3/upload", "/_matrix/media/r0/upload"] {
        raw(Method::POST, path, None, |api, exchange| Box::pin(upload(api, exchange)));
    }
    raw(Method::POST, "/_matrix/media/v1/create", Some(1_024), |api, exchange| Box::pin(create(api, exchange)));
    raw(Method::PUT, "/_matrix/media/v3/upload/{server_name}/{media_id}", None, |api, exchange| {
        Box::pin(upload_to(api, exchange))
    });
    for path in ["/_matrix/client/v1/media/config", "/_matrix/media/v3/config", "/_matrix/media/r0/config"] {
        raw(Method::GET, path, Some(0), |api, exchange| Box::pin(config(api, exchange)));
    }
    for path in [
        "/_matrix/client/v1/media/download/{server_name}/{media_id}",
        "/_matrix/client/v1/media/download/{server_name}/{media_id}/{file_name}",
    ] {
        raw(Method::GET, path, Some(0), |api, exchange| Box::pin(download(api, exchange)));
    }
    raw(Method::GET, "/_matrix/client/v1/media/thumbnail/{server_name}/{media_id}", Some(0), |api, exchange| {
        Box::pin(thumbnail(api, exchange))
    });
}

type Handler = fn(Api, Exchange) -> std::pin::Pin<Box<dyn Future<Output = Result<Reply, ApiError>>>>;

fn session(exchange: &Exchange) -> Result<Session, ApiError> {
    exchange.session.clone().ok_or_else(ApiError::missing_token)
}

fn refused(error: MediaError) -> ApiError {
    let status = match error {
        // <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1mediadownloadservernamemediaid>
        MediaError::NotYet => StatusCode::GATEWAY_TIMEOUT,
        MediaError::Taken => StatusCode::CONFLICT,
        error => return cofactor_types::Fault::from(error).into(),
    };
    ApiError { status, ..cofactor_types::Fault::from(error).into() }
}

/// The server and media id of a path; media of other servers is not fetched yet.
fn place(api: &Api, exchange: &Exchange) -> Result<(OwnedServerName, String), ApiError> {
    let server = exchange.args.first().map(String::as_str).unwrap_or_default();
    let server = ServerName::parse(server).map_err(|_| ApiError::invalid_param("not a server name"))?;
    if server != api.server_name {
        return Err(ApiError::not_found("media of other servers is not fetched yet"));
    }
    Ok((server, exchange.args.get(1).cloned().unwrap_or_default()))
}

async fn store(api: &Api, session: &Session, media_id: &str, exchange: Exchange) -> Result<(), ApiError> {
    api.limit(LimitClass::Media, &session.user_id).await?;
    let header = |name| exchange.headers.get(name).and_then(|value| value.to_str().ok());
    let bytes_max = api.media.upload_bytes_max();
    let length = header(header::CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
    if length.is_some_and(|length| length > bytes_max) {
        return Err(ApiError::too_large(bytes_max));
    }
    let content_type = header(header::CONTENT_TYPE).unwrap_or("application/octet-stream").to_owned();
    let file_name = exchange.query("filename");
    let Body::Stream(body) = exchange.body else { return Err(ApiError::invalid_param("the upload has no body")) };
    let stored = api.media.upload(&api.server_name, media_id, &session.user_id, &content_type, file_name, body).await;
    stored.map_err(refused)
}

async fn upload(api: Api, exchange: Exchange) -> Result<Reply, ApiError> {
    let session = session(&exchange)?;
    let media_id = api.media.new_id();
    store(&api, &session, &media_id, exchange).await?;
    Reply::value(&json!({ "content_uri": format!("mxc://{}/{media_id}", api.server_name) }))
}

async fn create(api: Api, exchange: Exchange) -> Result<Reply, ApiError> {
    let session = session(&exchange)?;
    api.limit(LimitClass::Media, &session.user_id).await?;
    let (media_id, end_ms) = api.media.reserve(&api.server_name, &session.user_id).await.map_err(refused)?;
    Reply::value(&json!({
        "content_uri": format!("mxc://{}/{media_id}", api.server_name),
        "unused_expires_at": end_ms,
    }))
}

async fn upload_to(api: Api, exchange: Exchange) -> Result<Reply, ApiError> {
    let session = session(&exchange)?;
    let (server, media_id) = place(&api, &exchange)?;
    api.media.check_reservation(&server, &media_id, &session.user_id).await.map_err(refused)?;
    store(&api, &session, &media_id, exchange).await?;
    Ok(Reply::empty())
}

async fn config(api: Api, _exchange: Exchange) -> Result<Reply, ApiError> {
    Reply::value(&json!({ "m.upload.size": api.media.upload_bytes_max() }))
}

async fn download(api: Api, exchange: Exchange) -> Result<Reply, ApiError> {
    let (server, media_id) = place(&api, &exchange)?;
    let stored = api.media.get(&server, &media_id).await.map_err(refused)?;
    Ok(serve(stored, exchange.args.get(2).map(String::as_str)))
}

async fn thumbnail(api: Api, exchange: Exchange) -> Result<Reply, ApiError> {
    let (server, media_id) = place(&api, &exchange)?;
    let pixels = |name: &str| {
        let value = exchange.query(name).ok_or_else(|| ApiError::missing_param(format!("`{name}` is needed")))?;
        value.parse::<u32>().map_err(|_| ApiError::invalid_param(format!("`{name}` is a number of pixels")))
    };
    let fit = match exchange.query("method").as_deref() {
        Some("crop") => Fit::Crop,
        None | Some("scale") => Fit::Scale,
        Some(_) => return Err(ApiError::invalid_param("`method` is `crop` or `scale`")),
    };
    let size = ThumbnailSize::serving(pixels("width")?, pixels("height")?, fit);
    let stored = api.media.thumbnail(&server, &media_id, size).await.map_err(refused)?;
    Ok(serve(stored, None))
}

fn serve(stored: Stored, file_name: Option<&str>) -> Reply {
    let mut headers = HeaderMap::new();
    for (name, value) in security_headers() {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    let content_type = &stored.meta.content_type;
    let disposition = content_disposition(content_type, file_name.or(stored.meta.file_name.as_deref()));
    let mut put = |name: HeaderName, value: &str| {
        // What does not fit into a header is left out: the type then falls back to bytes.
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    put(header::CONTENT_TYPE, "application/octet-stream");
    put(header::CONTENT_TYPE, content_type);
    put(header::CONTENT_DISPOSITION, &disposition);
    let body = stored.stream.map(|piece| piece.map_err(refused)).boxed_local();
    Reply { status: StatusCode::OK, headers, body: ReplyBody::Stream(body) }
}
