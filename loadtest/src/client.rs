//! A cheap HTTP/1.1 client for one server: keep-alive connections, no redirects, no cookies, no retries that hide a fault.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// An idle connection older than this is not used again: servers close idle connections after five seconds or more,
/// and a request that crosses such a close would look like a fault of the server.
const IDLE_MAX: Duration = Duration::from_secs(3);
/// The longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 512 * 1024 * 1024;

/// What the server answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The whole body.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Nothing came within the time limit; the request may or may not have had its effect.
    TimedOut,
    /// The connection could not be made or broke; the text is for people.
    Broken(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TimedOut => formatter.write_str("no answer within the time limit"),
            Self::Broken(why) => formatter.write_str(why),
        }
    }
}

impl std::error::Error for Failure {}

/// What is asked.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The method.
    pub method: Method,
    /// Path and query, percent-encoded.
    pub path: String,
    /// The access token, if the request carries one.
    pub token: Option<String>,
    /// The body and its content type.
    pub body: Option<(Bytes, &'static str)>,
}

impl Ask {
    /// A GET with an access token.
    #[must_use]
    pub fn get(path: impl Into<String>, token: &str) -> Self {
        Self { method: Method::GET, path: path.into(), token: Some(token.to_owned()), body: None }
    }

    /// A PUT of JSON with an access token.
    #[must_use]
    pub fn put(path: impl Into<String>, token: &str, json: impl Into<Bytes>) -> Self {
        let body = Some((json.into(), "application/json"));
        Self { method: Method::PUT, path: path.into(), token: Some(token.to_owned()), body }
    }

    /// A POST of JSON with an access token.
    #[must_use]
    pub fn post(path: impl Into<String>, token: &str, json: impl Into<Bytes>) -> Self {
        Self { method: Method::POST, ..Self::put(path, token, json) }
    }
}

struct Idle {
    sender: SendRequest<Full<Bytes>>,
    since: Instant,
}

/// A pool of connections to one address.
pub struct Client {
    address: SocketAddr,
    host: HeaderValue,
    idle: Mutex<Vec<Idle>>,
    slots: Semaphore,
    time_limit: Duration,
    connects: AtomicU64,
    received: AtomicU64,
}

impl Client {
    /// A client of `address` that names it `host`, holds at most `connections_max` connections and waits at most
    /// `time_limit` for an answer (unless a call says otherwise).
    ///
    /// # Errors
    /// When `host` cannot be a header.
    pub fn new(address: SocketAddr, host: &str, connections_max: usize, time_limit: Duration) -> anyhow::Result<Self> {
        Ok(Self {
            address,
            host: HeaderValue::from_str(host)?,
            idle: Mutex::new(Vec::new()),
            slots: Semaphore::new(connections_max),
            time_limit,
            connects: AtomicU64::new(0),
            received: AtomicU64::new(0),
        })
    }

    /// How many connections were made so far.
    #[must_use]
    pub fn connects(&self) -> u64 {
        self.connects.load(Ordering::Relaxed)
    }

    /// How many bytes of answers were received so far, bodies alone.
    #[must_use]
    pub fn received_bytes(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// [`Failure`], when there is no complete answer.
    pub async fn send(&self, ask: Ask) -> Result<Answer, Failure> {
        self.send_within(ask, self.time_limit).await
    }

    /// As [`Self::send`], with a time limit of its own.
    ///
    /// # Errors
    /// [`Failure`], when there is no complete answer in time.
    pub async fn send_within(&self, ask: Ask, limit: Duration) -> Result<Answer, Failure> {
        match timeout(limit, self.exchange(ask)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::TimedOut),
        }
    }

    async fn exchange(&self, ask: Ask) -> Result<Answer, Failure> {
        let _slot = self.slots.acquire().await.map_err(broken)?;
        let mut request = self.request(ask)?;
        loop {
            let (mut sender, fresh) = match self.reuse() {
                Some(sender) => (sender, false),
                None => (self.connect().await?, true),
            };
            let outcome = match sender.ready().await {
                Ok(()) => sender.try_send_request(request).await,
                Err(_) if !fresh => continue,
                Err(error) => return Err(broken(error)),
            };
            let response = match outcome {
                Ok(response) => response,
                Err(mut error) => match error.take_message() {
                    // The server had closed the idle connection; nothing of the request left this machine.
                    Some(unsent) if !fresh => {
                        request = unsent;
                        continue;
                    }
                    _ => return Err(broken(error.into_error())),
                },
            };
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| Failure::Broken(error.to_string()))?.to_bytes();
            self.received.fetch_add(body.len() as u64, Ordering::Relaxed);
            if !sender.is_closed() {
                self.idle_connections().push(Idle { sender, since: Instant::now() });
            }
            return Ok(Answer { status, body });
        }
    }

    fn request(&self, ask: Ask) -> Result<Request<Full<Bytes>>, Failure> {
        let mut request = Request::builder().method(ask.method).uri(ask.path).header(HOST, self.host.clone());
        if let Some(token) = ask.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let body = match ask.body {
            Some((body, kind)) => {
                request = request.header(CONTENT_TYPE, kind);
                body
            }
            None => Bytes::new(),
        };
        request.body(Full::new(body)).map_err(broken)
    }

    fn reuse(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle_connections();
        while let Some(connection) = idle.pop() {
            if !connection.sender.is_closed() && connection.since.elapsed() < IDLE_MAX {
                return Some(connection.sender);
            }
        }
        None
    }

    fn idle_connections(&self) -> std::sync::MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Failure> {
        let stream = TcpStream::connect(self.address).await.map_err(broken)?;
        stream.set_nodelay(true).map_err(broken)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(broken)?;
        self.connects.fetch_add(1, Ordering::Relaxed);
        // What goes wrong on the connection is told to the request that uses it.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }
}

fn broken(error: impl std::fmt::Display) -> Failure {
    Failure::Broken(error.to_string())
}
