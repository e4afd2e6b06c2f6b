//! The server: sockets, one request's way through, shutdown.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    panic::AssertUnwindSafe,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use actix_http::{
    ConnectionType, HttpService, Payload, Protocol, Request, Response, ResponseBuilder,
    body::{BodyStream, BoxBody},
    error::DispatchError,
};
use actix_web::dev::{Server, ServerHandle, Service as _, ServiceFactory as _, fn_factory, fn_service};
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use http::{HeaderMap, Method, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::{
    net::{TcpSocket, TcpStream},
    task::JoinHandle,
};
use tracing::{Instrument, field};

use crate::{
    Access, ApiError, Body, Exchange, Reply, ReplyBody, RequestContext, Routes, Service, Session,
    body::{read_whole, stream},
    connection::{Connection, Limits, Open, Requests},
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
    /// How long a client may take nothing of an answer, in milliseconds.
    pub write_timeout_ms: u64,
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
            write_timeout_ms: 60_000,
            keep_alive_s: 75,
            connections_max: 25_000,
            trust_forwarded_for: false,
        }
    }
}

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}; stop what uses it, or choose another address (option `{option}`)")]
pub struct BindError {
    /// The option that says where to listen.
    pub option: &'static str,
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
    clients: Arc<Clients>,
}

/// Who is connected, and what they are to be told.
#[derive(Debug, Default)]
struct Clients {
    open: Open,
    /// Each answer is the last on its connection.
    sent_away: AtomicBool,
}

impl RunningServer {
    /// Where it listens.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// From now on each answer says that it is the last on its connection.
    pub fn send_away(&self) {
        self.clients.sent_away.store(true, Ordering::Release);
    }

    /// Sends clients away with the answers to what they ask, lets requests finish, and ends.
    pub async fn stop(self) {
        self.send_away();
        // A connection that is closed just as its client asks something fails that request. Whoever is about to ask is
        // answered instead; what is left after a while is idle.
        let all_gone = async {
            while self.clients.open.count() > 0 {
                tokio::time::sleep(FAREWELL_LOOK).await;
            }
        };
        let _ = tokio::time::timeout(FAREWELL, all_gone).await;
        self.handle.stop(true).await;
        // What it has to say by now is only that it ended.
        let _ = self.task.await;
    }
}

/// How long clients are sent away before idle connections are closed.
const FAREWELL: Duration = Duration::from_secs(1);

/// How often is looked whether all have gone.
const FAREWELL_LOOK: Duration = Duration::from_millis(10);

/// How long a connection that is being closed may take to say goodbye.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(1);

struct Edge<S> {
    routes: Routes<S>,
    options: Options,
    /// Request ids: a number of the process, and a count.
    prefix: u64,
    count: AtomicU64,
    clients: Arc<Clients>,
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
    let clients = Arc::<Clients>::default();
    let edge = Arc::new(Edge {
        routes,
        options: options.clone(),
        prefix: request_id_prefix,
        count: AtomicU64::new(0),
        clients: Arc::clone(&clients),
    });
    let workers = match options.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        workers => workers,
    };
    let mut server = Server::build()
        .workers(workers)
        .max_concurrent_connections(options.connections_max)
        .shutdown_timeout(shutdown_s)
        .disable_signals();
    let mut addresses = Vec::with_capacity(options.listen.len());
    for address in &options.listen {
        let refused = |source| BindError { option: "http.listen", address: *address, source };
        let listener = listen(*address).map_err(refused)?;
        addresses.push(listener.local_addr().map_err(refused)?);
        let edge = Arc::clone(&edge);
        let stopping = server.graceful_shutdown_signal();
        let signal = move || {
            let stopping = stopping.clone();
            async move { stopping.notified().await }
        };
        server =
            server.listen("http", listener, move || connections(Arc::clone(&edge), signal.clone())).map_err(refused)?;
    }
    let server = server.run();
    let handle = server.handle();
    let task = tokio::spawn(server);
    Ok(RunningServer { addresses, handle, task, clients })
}

/// Connections that wait to be taken, of one address.
const BACKLOG: u32 = 2_048;

fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

/// What serves the connections of one thread.
fn connections<S: Service, F: Future<Output = ()> + 'static>(
    edge: Arc<Edge<S>>,
    stopping: impl Fn() -> F + Clone + 'static,
) -> impl actix_web::dev::ServiceFactory<TcpStream, Config = (), Response = (), Error = DispatchError, InitError = ()> {
    fn_factory(move || {
        let (edge, stopping) = (Arc::clone(&edge), stopping.clone());
        let limits = Limits::of(&edge.options);
        async move {
            let keep_alive = Duration::from_secs(edge.options.keep_alive_s);
            let head_timeout = limits.head;
            let open = edge.clients.open.clone();
            let requests = fn_service(move |request: Request| {
                let edge = Arc::clone(&edge);
                async move { Ok::<_, Infallible>(edge.handle(request).await) }
            });
            let http = HttpService::build()
                .graceful_shutdown_signal(stopping)
                .keep_alive(keep_alive)
                .client_request_timeout(head_timeout)
                .client_disconnect_timeout(DISCONNECT_TIMEOUT)
                .on_connect_ext(|connection: &Connection, data| {
                    data.insert(connection.requests());
                })
                .finish(requests);
            let http = Rc::new(http.new_service(()).await?);
            Ok(fn_service(move |stream: TcpStream| {
                // A socket that does not take the option serves all the same, only slower.
                let _ = stream.set_nodelay(true);
                let peer = stream.peer_addr().ok();
                http.call((Connection::new(stream, limits, &open), Protocol::Http1, peer))
            }))
        }
    })
}

impl<S: Service> Edge<S> {
    async fn handle(&self, mut request: Request) -> Response<BoxBody> {
        // Until the answer is there, the connection waits for us and not for the client.
        let _under_way = request.conn_data::<Requests>().map(Requests::begin);
        let payload = request.take_payload();
        let start = Instant::now();
        let method = convert::method(request.method());
        let context = Arc::new(self.context(&request));
        let mut template = "unrecognized";
        let mut unread = Some(payload);
        let span = cofactor_telemetry::span!(
            "request",
            otel.kind = "server",
            http.request.method = %method,
            http.route = field::Empty,
            http.response.status_code = field::Empty,
        );
        let length = content_length(&request);
        let answer = self.answer(request, &mut unread, &method, &context, &mut template).instrument(span.clone());
        let answer = AssertUnwindSafe(answer);
        let outcome = answer.catch_unwind().await.unwrap_or_else(|_| {
            tracing::error!(request_id = context.request_id, "a request panicked");
            Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "M_UNKNOWN", "the request failed; the log has its id"))
        });
        let (status, mut response) = match outcome {
            Ok(reply) => (reply.status, finish(reply, &context, self.routes.same_origin)),
            Err(error) => (error.status, finish_error(&error, &context, self.routes.same_origin)),
        };
        let time_max = Duration::from_millis(self.options.body_timeout_ms);
        let skipped = match unread {
            Some(payload) => skip(payload, length, time_max).await,
            None => true,
        };
        if !skipped || self.clients.sent_away.load(Ordering::Acquire) {
            response.head_mut().set_connection_type(ConnectionType::Close);
        }
        let elapsed = start.elapsed();
        let code = status.as_u16();
        if !span.is_none() {
            cofactor_telemetry::rename(&span, format!("{method} {template}"));
            span.record("http.route", template).record("http.response.status_code", code);
        }
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
        request: Request,
        unread: &mut Option<Payload>,
        method: &Method,
        context: &Arc<RequestContext>,
        template: &mut &'static str,
    ) -> Result<Reply, ApiError> {
        if *method == Method::OPTIONS {
            return Ok(Reply {
                status: StatusCode::NO_CONTENT,
                headers: HeaderMap::new(),
                body: ReplyBody::Whole(Bytes::new()),
            });
        }
        check_head(&request)?;
        let (endpoint, args) = self.routes.find(method, request.uri().path())?;
        *template = endpoint.template;
        let uri = convert::uri(&request);
        let session = self.session(endpoint.access, &request, &uri, context).await?;
        let body = self.body(endpoint.bytes_max, &request, unread).await?;
        let exchange = Exchange {
            session,
            context: Arc::clone(context),
            method: method.clone(),
            uri,
            headers: convert::headers(&request),
            args,
            body,
        };
        // Not kept while the request is answered, which may take long: it holds what was read from the connection.
        drop(request);
        (endpoint.handler)(self.routes.service.clone(), exchange).await
    }

    async fn body(
        &self,
        bytes_max: Option<usize>,
        request: &Request,
        unread: &mut Option<Payload>,
    ) -> Result<Body, ApiError> {
        if let Some(bytes_max) = bytes_max {
            check_body_headers(request, bytes_max)?;
        }
        let time_max = Duration::from_millis(self.options.body_timeout_ms);
        let Some(payload) = unread.take() else { return Ok(Body::Whole(Bytes::new())) };
        match bytes_max {
            Some(bytes_max) => read_whole(payload, bytes_max, time_max).await.map(Body::Whole),
            None => Ok(Body::Stream(stream(payload, time_max))),
        }
    }

    async fn session(
        &self,
        access: Access,
        request: &Request,
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

    fn context(&self, request: &Request) -> RequestContext {
        let peer = request.peer_addr().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.ip());
        let header = |name: &str| request.head().headers().get(name).and_then(|value| value.to_str().ok());
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
fn check_head(request: &Request) -> Result<(), ApiError> {
    let refuse = |status, message| Err(ApiError::new(status, "M_TOO_LARGE", message));
    if request.uri().path_and_query().map_or(0, |text| text.as_str().len()) > URL_BYTES_MAX {
        return refuse(StatusCode::URI_TOO_LONG, "the path and query are too long");
    }
    let headers = request.head().headers().iter().map(|(name, value)| name.as_str().len() + value.len());
    if headers.sum::<usize>() > HEADERS_BYTES_MAX {
        return refuse(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "the headers are too large");
    }
    Ok(())
}

/// What the headers say of a body that is to be read whole.
fn check_body_headers(request: &Request, bytes_max: usize) -> Result<(), ApiError> {
    if request.head().headers().contains_key("content-encoding") {
        let message = "compressed bodies are not taken";
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "M_UNKNOWN", message));
    }
    if content_length(request).is_some_and(|length| length > bytes_max as u64) {
        return Err(ApiError::too_large(bytes_max as u64));
    }
    Ok(())
}

fn content_length(request: &Request) -> Option<u64> {
    request.head().headers().get("content-length")?.to_str().ok()?.parse().ok()
}

/// What is read and thrown away of a refused request's body, in bytes, so that the connection can go on.
const SKIP_BYTES_MAX: usize = 64 << 10;

/// Skips the body of a request that was answered without it, of `length` bytes if its head says so; whether the next request
/// can follow on the connection.
async fn skip(mut payload: Payload, length: Option<u64>, time_max: Duration) -> bool {
    if length.is_some_and(|length| length > SKIP_BYTES_MAX as u64) {
        return false;
    }
    let all = async {
        let mut bytes = 0;
        while let Some(piece) = payload.next().await {
            let Ok(piece) = piece else { return false };
            bytes += piece.len();
            if bytes > SKIP_BYTES_MAX {
                return false;
            }
        }
        true
    };
    tokio::time::timeout(time_max, all).await.unwrap_or(false)
}

/// The access token of a request. <https://spec.matrix.org/v1.19/client-server-api/#using-access-tokens>
fn token(request: &Request, uri: &http::Uri) -> Option<String> {
    let header = request.head().headers().get("authorization").and_then(|value| value.to_str().ok());
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

fn finish(reply: Reply, context: &RequestContext, same_origin: bool) -> Response<BoxBody> {
    let mut response = convert::response(reply.status, &reply.headers);
    common_headers(&mut response, context, same_origin);
    match reply.body {
        ReplyBody::Whole(bytes) => response.body(bytes).map_into_boxed_body(),
        ReplyBody::Stream(stream) => {
            let stream = stream.map(|piece| piece.map_err(|error| io::Error::other(error.to_string())));
            response.body(BodyStream::new(stream)).map_into_boxed_body()
        }
    }
}

fn finish_error(error: &ApiError, context: &RequestContext, same_origin: bool) -> Response<BoxBody> {
    let mut response = convert::response(error.status, &HeaderMap::new());
    common_headers(&mut response, context, same_origin);
    response.insert_header(("content-type", "application/json"));
    if let Some(retry_after_ms) = error.retry_after_ms {
        response.insert_header(("retry-after", retry_after_ms.div_ceil(1_000).to_string()));
    }
    response.body(error.body()).map_into_boxed_body()
}

/// <https://spec.matrix.org/v1.19/client-server-api/#web-browser-clients>
fn common_headers(response: &mut ResponseBuilder, context: &RequestContext, same_origin: bool) {
    response.insert_header(("x-request-id", context.request_id.as_str()));
    if same_origin {
        return;
    }
    response
        .insert_header(("access-control-allow-origin", "*"))
        .insert_header(("access-control-allow-methods", "GET, POST, PUT, DELETE, OPTIONS"))
        .insert_header(("access-control-allow-headers", "X-Requested-With, Content-Type, Authorization"));
}
