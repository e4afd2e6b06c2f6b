//! The server: sockets, one request's way through, shutdown.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use actix_web::{App, HttpRequest, HttpResponse, HttpServer, dev::ServerHandle, web};
use futures::FutureExt;
use http::{HeaderMap, Method, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use crate::{
    Access, ApiError, Body, Exchange, Reply, ReplyBody, RequestContext, Routes, Service, Session,
    body::{read_whole, stream},
    convert,
};

/// What an operator may choose.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Addresses to listen on.
    pub listen: Vec<SocketAddr>,
    /// Threads that serve requests; 0 for one a core.
    pub workers: usize,
    /// How long the head of a request may take to arrive, in milliseconds.
    pub head_timeout_ms: u64,
    /// How long a body may take to arrive, in milliseconds. Uploads may take longer as long as they keep moving.
    pub body_timeout_ms: u64,
    /// How long an idle connection stays open, in seconds.
    pub keep_alive_s: u64,
    /// Connections of one worker thread.
    pub connections_max: usize,
    /// Believe the first address in `X-Forwarded-For`. Only behind a proxy that sets it.
    pub trust_forwarded_for: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 8008))],
            workers: 0,
            head_timeout_ms: 10_000,
            body_timeout_ms: 30_000,
            keep_alive_s: 75,
            connections_max: 25_000,
            trust_forwarded_for: false,
        }
    }
}

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}; stop what uses it, or choose another address (option `http.listen`)")]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// What the system says.
    pub source: io::Error,
}

/// A server that takes requests.
#[derive(Debug)]
pub struct RunningServer {
    addresses: Vec<SocketAddr>,
    handle: ServerHandle,
    task: JoinHandle<io::Result<()>>,
}

impl RunningServer {
    /// Where it listens.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Takes no more connections, lets requests finish, and ends.
    pub async fn stop(self) {
        self.handle.stop(true).await;
        // What it has to say by now is only that it ended.
        let _ = self.task.await;
    }
}

struct Edge<S> {
    routes: Routes<S>,
    options: Options,
    /// Request ids: a number of the process, and a count.
    prefix: u64,
    count: AtomicU64,
}

/// Listens and serves. Must be called inside the runtime of an actix system. `shutdown_s`: how long requests may take to
/// finish when it stops.
///
/// # Errors
/// [`BindError`] for the first address that cannot be used; then nothing listens.
pub fn serve<S: Service>(
    routes: Routes<S>,
    options: &Options,
    request_id_prefix: u64,
    shutdown_s: u64,
) -> Result<RunningServer, BindError> {
    let edge = Arc::new(Edge { routes, options: options.clone(), prefix: request_id_prefix, count: AtomicU64::new(0) });
    let workers = match options.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        workers => workers,
    };
    let mut server = HttpServer::new(move || {
        let edge = Arc::clone(&edge);
        App::new().default_service(web::to(move |request: HttpRequest, payload: web::Payload| {
            let edge = Arc::clone(&edge);
            async move { edge.handle(request, payload).await }
        }))
    })
    .workers(workers)
    .keep_alive(Duration::from_secs(options.keep_alive_s))
    .max_connections(options.connections_max)
    .client_request_timeout(Duration::from_millis(options.head_timeout_ms))
    .shutdown_timeout(shutdown_s)
    .disable_signals();
    for address in &options.listen {
        server = server.bind(address).map_err(|source| BindError { address: *address, source })?;
    }
    let addresses = server.addrs();
    let server = server.run();
    let handle = server.handle();
    let task = tokio::spawn(server);
    Ok(RunningServer { addresses, handle, task })
}

impl<S: Service> Edge<S> {
    async fn handle(&self, request: HttpRequest, payload: web::Payload) -> HttpResponse {
        let start = Instant::now();
        let method = convert::method(request.method());
        let context = Arc::new(self.context(&request));
        let mut template = "unrecognized";
        let answer = AssertUnwindSafe(self.answer(&request, payload, &method, &context, &mut template));
        let outcome = answer.catch_unwind().await.unwrap_or_else(|_| {
            tracing::error!(request_id = context.request_id, "a request panicked");
            Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "M_UNKNOWN", "the request failed; the log has its id"))
        });
        let (status, response) = match outcome {
            Ok(reply) => (reply.status, finish(reply, &context)),
            Err(error) => (error.status, finish_error(&error, &context)),
        };
        let elapsed = start.elapsed();
        let code = status.as_u16();
        metrics::histogram!("cofactor_http_request_seconds", "route" => template, "class" => status_class(code))
            .record(elapsed.as_secs_f64());
        let elapsed_ms = elapsed.as_millis() as u64;
        if status.is_server_error() {
            tracing::info!(%method, route = template, code, elapsed_ms, request_id = context.request_id, "request failed");
        } else {
            tracing::debug!(%method, route = template, code, elapsed_ms, request_id = context.request_id, "request");
        }
        response
    }

    async fn answer(
        &self,
        request: &HttpRequest,
        payload: web::Payload,
        method: &Method,
        context: &Arc<RequestContext>,
        template: &mut &'static str,
    ) -> Result<Reply, ApiError> {
        if *method == Method::OPTIONS {
            return Ok(Reply {
                status: StatusCode::NO_CONTENT,
                headers: HeaderMap::new(),
                body: ReplyBody::Whole(bytes::Bytes::new()),
            });
        }
        check_head(request)?;
        let (endpoint, args) = self.routes.find(method, request.uri().path())?;
        *template = endpoint.template;
        let uri = convert::uri(request);
        let session = self.session(endpoint.access, request, &uri, context).await?;
        let time_max = Duration::from_millis(self.options.body_timeout_ms);
        let body = match endpoint.bytes_max {
            Some(bytes_max) => {
                check_body_headers(request, bytes_max)?;
                Body::Whole(read_whole(payload, bytes_max, time_max).await?)
            }
            None => Body::Stream(stream(payload, time_max)),
        };
        let exchange = Exchange {
            session,
            context: Arc::clone(context),
            method: method.clone(),
            uri,
            headers: convert::headers(request),
            args,
            body,
        };
        (endpoint.handler)(self.routes.service.clone(), exchange).await
    }

    async fn session(
        &self,
        access: Access,
        request: &HttpRequest,
        uri: &http::Uri,
        context: &RequestContext,
    ) -> Result<Option<Session>, ApiError> {
        if access == Access::Open {
            return Ok(None);
        }
        match token(request, uri) {
            Some(token) => self.routes.service.authenticate(&token, context).await.map(Some),
            None if access == Access::Required => Err(ApiError::missing_token()),
            None => Ok(None),
        }
    }

    fn context(&self, request: &HttpRequest) -> RequestContext {
        let peer = request.peer_addr().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.ip());
        let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
        let forwarded = self.options.trust_forwarded_for.then(|| header("x-forwarded-for")).flatten();
        let forwarded = forwarded.and_then(|text| text.split(',').next()?.trim().parse().ok());
        RequestContext {
            ip: forwarded.unwrap_or(peer),
            request_id: format!("{:x}-{}", self.prefix, self.count.fetch_add(1, Ordering::Relaxed)),
            user_agent: header("user-agent").map(|text| text.chars().take(200).collect()),
        }
    }
}

/// The longest path and query, in bytes. The longest that clients send is a filter in `/sync`.
const URL_BYTES_MAX: usize = 16 << 10;

/// All names and values of the headers together, in bytes.
const HEADERS_BYTES_MAX: usize = 32 << 10;

/// actix-web bounds the head at 96 headers and 128 KiB; what is decoded and copied from there on may be much less.
fn check_head(request: &HttpRequest) -> Result<(), ApiError> {
    let refuse = |status, message| Err(ApiError::new(status, "M_TOO_LARGE", message));
    if request.uri().path_and_query().map_or(0, |text| text.as_str().len()) > URL_BYTES_MAX {
        return refuse(StatusCode::URI_TOO_LONG, "the path and query are too long");
    }
    let headers = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len());
    if headers.sum::<usize>() > HEADERS_BYTES_MAX {
        return refuse(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "the headers are too large");
    }
    Ok(())
}

/// What the headers say of a body that is to be read whole.
fn check_body_headers(request: &HttpRequest, bytes_max: usize) -> Result<(), ApiError> {
    if request.headers().contains_key("content-encoding") {
        let message = "compressed bodies are not taken";
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "M_UNKNOWN", message));
    }
    let length = request.headers().get("content-length").and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > bytes_max as u64) {
        return Err(ApiError::too_large(bytes_max as u64));
    }
    Ok(())
}

/// The access token of a request. <https://spec.matrix.org/v1.19/client-server-api/#using-access-tokens>
fn token(request: &HttpRequest, uri: &http::Uri) -> Option<String> {
    let header = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    if let Some(text) = header
        && let Some((scheme, token)) = text.split_once(' ')
        && scheme.eq_ignore_ascii_case("bearer")
    {
        return Some(token.trim().to_owned());
    }
    let query = uri.query()?;
    form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "access_token").map(|(_, token)| token.into())
}

fn status_class(code: u16) -> &'static str {
    match code {
        200..=299 => "2xx",
        300..=399 => "3xx",
        400..=499 => "4xx",
        _ => "5xx",
    }
}

fn finish(reply: Reply, context: &RequestContext) -> HttpResponse {
    let mut response = convert::response(reply.status, &reply.headers);
    common_headers(&mut response, context);
    match reply.body {
        ReplyBody::Whole(bytes) => response.body(bytes),
        ReplyBody::Stream(stream) => {
            use futures::StreamExt;
            response.streaming(stream.map(|piece| piece.map_err(|error| io::Error::other(error.to_string()))))
        }
    }
}

fn finish_error(error: &ApiError, context: &RequestContext) -> HttpResponse {
    let mut response = convert::response(error.status, &HeaderMap::new());
    common_headers(&mut response, context);
    response.insert_header(("content-type", "application/json"));
    if let Some(retry_after_ms) = error.retry_after_ms {
        response.insert_header(("retry-after", retry_after_ms.div_ceil(1_000).to_string()));
    }
    response.body(error.body())
}

/// <https://spec.matrix.org/v1.19/client-server-api/#web-browser-clients>
fn common_headers(response: &mut actix_web::HttpResponseBuilder, context: &RequestContext) {
    response
        .insert_header(("x-request-id", context.request_id.as_str()))
        .insert_header(("access-control-allow-origin", "*"))
        .insert_header(("access-control-allow-methods", "GET, POST, PUT, DELETE, OPTIONS"))
        .insert_header(("access-control-allow-headers", "X-Requested-With, Content-Type, Authorization"));
}
