//! The answering side.

use std::{error::Error, fmt, future::Future, io, iter, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use cofactor_types::Fault;
use cofactor_wire::node::Serve;
use tokio::{net::TcpListener, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status,
    transport::{self, Server},
};
use tonic_health::pb::health_server::HealthServer;

use crate::{
    envelope::{
        self,
        proto::{
            CallReply, CallRequest,
            node_server::{Node, NodeServer},
        },
    },
    gate::Gate,
    incoming,
    options::{ENVELOPE_BYTES_MAX, Security, SecurityError, ServerOptions},
};

/// After this long without a sign of life a connection is asked for one, and it has as long to answer.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// What a connection may send ahead of its being read, in bytes: of one call, and of all.
const CALL_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// Headers of a request, in bytes.
const HEADERS_BYTES_MAX: u32 = 16 * 1024;
/// Calls of one connection that were given up before they were looked at. A node that was paused finds many of them at
/// once, and must not take that for an attack.
const GIVEN_UP_MAX: usize = 32_768;
/// A request to the health service, in bytes: the name of a service.
const HEALTH_BYTES_MAX: usize = 1_024;
/// How long the body of a request may take beyond the longest call.
const BODY_MARGIN: Duration = Duration::from_secs(5);
/// How long callers that were cut off have to read that they were.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Answers the calls of other nodes.
#[derive(Debug)]
pub struct RpcServer;

/// Why a node cannot answer calls.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The security is none.
    #[error(transparent)]
    Security(#[from] SecurityError),
    /// The address cannot be listened at.
    #[error("cannot listen for calls of other nodes at {listen}: {error}")]
    Listen {
        /// The address.
        listen: String,
        /// Why.
        error: io::Error,
    },
}

/// A server that runs. Dropped, it ends at once; see [`Running::stop`] for the polite way.
pub struct Running {
    address: SocketAddr,
    stopping: CancellationToken,
    cut: CancellationToken,
    task: JoinHandle<Result<(), transport::Error>>,
}

impl RpcServer {
    /// Listens, and answers with what `serve` says, on a task of its own. The health service (`grpc.health.v1`, `Check`
    /// only) answers beside it, to anyone whom TLS lets in.
    ///
    /// # Errors
    /// If the security is none or its files cannot be used, or the address cannot be listened at.
    pub async fn bind(options: ServerOptions, serve: Arc<dyn Serve>) -> Result<Running, BindError> {
        options.security.check()?;
        let mut server = http2(&options);
        if let Security::MutualTls(tls) = &options.security {
            let unfit = |error: transport::Error| SecurityError::Certificates(sentence(&error));
            server = server.tls_config(tls.server()?).map_err(unfit)?;
        }
        let cannot = |error| BindError::Listen { listen: options.listen.clone(), error };
        let listener = TcpListener::bind(&options.listen).await.map_err(cannot)?;
        let address = listener.local_addr().map_err(cannot)?;

        let (stopping, cut) = (CancellationToken::new(), CancellationToken::new());
        let limit = options.frame_bytes_max.saturating_add(ENVELOPE_BYTES_MAX);
        let answerer = Answerer {
            serve,
            call_timeout_max: options.call_timeout_max,
            frame_bytes_max: options.frame_bytes_max,
            cut: cut.clone(),
        };
        let node = NodeServer::new(answerer).max_decoding_message_size(limit).max_encoding_message_size(limit);
        let health = HealthServer::new(tonic_health::server::HealthService::from_health_reporter(
            tonic_health::server::HealthReporter::new(),
        ))
        .max_decoding_message_size(HEALTH_BYTES_MAX);
        let gate = Gate::new(node, health, options.security.bearer(), options.calls_max, stopping.clone());
        let connections = incoming::connections(listener, options.connections_max);
        let stop = stopping.clone().cancelled_owned();
        let task = tokio::spawn(server.serve_with_incoming_shutdown(gate, connections, stop));
        Ok(Running { address, stopping, cut, task })
    }
}

fn http2(options: &ServerOptions) -> Server {
    Server::builder()
        .timeout(options.call_timeout_max.saturating_add(BODY_MARGIN))
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_INTERVAL))
        .initial_stream_window_size(CALL_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        // One more than are let in at all, so that it is the gate that refuses, with a word that callers understand.
        .max_concurrent_streams(u32::try_from(options.calls_max.saturating_add(1)).unwrap_or(u32::MAX))
        .http2_max_pending_accept_reset_streams(Some(GIVEN_UP_MAX))
        .http2_max_local_error_reset_streams(Some(GIVEN_UP_MAX))
        .http2_max_header_list_size(HEADERS_BYTES_MAX)
}

/// An error and its causes, each once, without tonic's own "transport error".
pub(crate) fn sentence(error: &(dyn Error + 'static)) -> String {
    let causes = iter::successors(Some(error), |&error| error.source()).map(ToString::to_string);
    let mut parts: Vec<String> = causes.filter(|cause| cause != "transport error").collect();
    parts.dedup();
    parts.join(": ")
}

impl Running {
    /// Where it listens: what port 0 became.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts no more calls and no more connections, and waits for what is under way, no longer than `deadline`. What
    /// is not done by then is cut off, and its callers are told that it is unknown.
    pub async fn stop(mut self, deadline: Duration) {
        self.stopping.cancel();
        if finished(timeout(deadline, &mut self.task)).await {
            return;
        }
        self.cut.cancel();
        // A caller that does not read its answer is not waited for: its connection dies of its silence.
        finished(timeout(LAST_WORDS, &mut self.task)).await;
    }
}

type Ended = Result<Result<(), transport::Error>, tokio::task::JoinError>;

async fn finished(wait: impl Future<Output = Result<Ended, tokio::time::error::Elapsed>>) -> bool {
    match wait.await {
        Ok(Ok(Ok(()))) => true,
        Ok(Ok(Err(error))) => {
            tracing::error!(error = sentence(&error), "the server for calls of other nodes failed");
            true
        }
        Ok(Err(error)) => {
            tracing::error!(%error, "the server for calls of other nodes failed");
            true
        }
        Err(_) => false,
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stopping.cancel();
        self.cut.cancel();
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("address", &self.address).finish_non_exhaustive()
    }
}

/// The service `Node`.
#[derive(Debug)]
struct Answerer {
    serve: Arc<dyn Serve>,
    call_timeout_max: Duration,
    frame_bytes_max: usize,
    cut: CancellationToken,
}

impl Answerer {
    async fn answer(&self, request: CallRequest) -> Result<Bytes, Fault> {
        let mut call = envelope::call(request)?;
        call.timeout = call.timeout.min(self.call_timeout_max);
        let work = pin!(timeout(call.timeout, self.serve.serve(call)));
        let answer = tokio::select! {
            done = work => done.unwrap_or_else(|_| Err(Fault::unknown("the caller's time was up before the answer came"))),
            () = self.cut.cancelled() => Err(Fault::unknown("the node stopped before the answer came")),
        }?;
        if answer.len() > self.frame_bytes_max {
            // The work is done, whatever it was, so that any other class would be untrue.
            return Err(Fault::unknown(format!("an answer of {} bytes is too large to be carried", answer.len())));
        }
        Ok(answer)
    }
}

#[async_trait]
impl Node for Answerer {
    async fn call(&self, request: Request<CallRequest>) -> Result<Response<CallReply>, Status> {
        let outcome = self.answer(request.into_inner()).await;
        Ok(Response::new(envelope::reply(outcome)))
    }
}
