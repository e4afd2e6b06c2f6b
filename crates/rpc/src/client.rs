//! The calling side.

use std::{error::Error, fmt, pin::pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use cofactor_types::{Clock, ErrorClass, Fault};
use cofactor_wire::node::{Call, Transport};
use futures::stream;
use tokio::time::timeout;
use tonic::{
    Request, Status,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};
use tonic_prost::ProstCodec;

use crate::{
    envelope::{
        self,
        proto::{CallReply, CallRequest},
    },
    gate::Refusal,
    latch::Latch,
    options::{ClientOptions, ENVELOPE_BYTES_MAX, SecurityError},
    pool::Pool,
    server::sentence,
};

const METHOD: &str = "/cofactor.v1.Node/Call";
/// When a node that refused a call for having too many may be asked again, in milliseconds.
const BUSY_RETRY_MS: u64 = 1_000;

/// Calls other nodes.
///
/// It keeps one connection for each address, opened at the first call and again when it is gone. A call takes no longer
/// than its own timeout, and fails as [`ErrorClass::Unavailable`] after [`ClientOptions::send_timeout`] if it could not
/// be sent by then.
pub struct RpcTransport {
    pool: Pool,
    bearer: Option<MetadataValue<Ascii>>,
    frame_bytes_max: usize,
    send_timeout: Duration,
}

impl RpcTransport {
    /// A transport without connections. `clock` tells it which have become idle. Connections live on the runtime inside
    /// which this is called, whoever uses them.
    ///
    /// # Errors
    /// If the security is none or its files cannot be used.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn new(options: ClientOptions, clock: Arc<dyn Clock>) -> Result<Self, SecurityError> {
        options.security.check()?;
        let bearer = match options.security.bearer() {
            Some(bearer) => {
                let mut value: MetadataValue<Ascii> = bearer.parse().map_err(|_| SecurityError::UnfitSecret)?;
                value.set_sensitive(true);
                Some(value)
            }
            None => None,
        };
        let (frame_bytes_max, send_timeout) = (options.frame_bytes_max, options.send_timeout);
        Ok(Self { pool: Pool::new(options, clock)?, bearer, frame_bytes_max, send_timeout })
    }

    /// Sends `message` and reads the reply. The latch opens when the connection takes the message.
    async fn exchange(&self, channel: Channel, latch: Arc<Latch>, message: CallRequest) -> Result<CallReply, Status> {
        let limit = self.frame_bytes_max.saturating_add(ENVELOPE_BYTES_MAX);
        let mut grpc = Grpc::new(channel).max_decoding_message_size(limit).max_encoding_message_size(limit);
        grpc.ready().await.map_err(|error| Status::unavailable(sentence(&error)))?;
        // On the wire a stream of one message and a single message are the same. A stream, however, is asked for it only
        // when the connection writes it; one that has been held stays empty, which no node takes for a call.
        let messages = stream::iter(std::iter::once_with(move || latch.depart().then_some(message)).flatten());
        let mut request = Request::new(messages);
        if let Some(bearer) = &self.bearer {
            request.metadata_mut().insert("authorization", bearer.clone());
        }
        let codec = ProstCodec::default();
        Ok(grpc.client_streaming(request, PathAndQuery::from_static(METHOD), codec).await?.into_inner())
    }
}

#[async_trait]
impl Transport for RpcTransport {
    async fn call(&self, address: &str, call: Call) -> Result<Bytes, Fault> {
        if call.frame.len() > self.frame_bytes_max {
            let message = format!("a request of {} bytes is too large for another node", call.frame.len());
            return Err(Fault::new(ErrorClass::Invalid, "M_TOO_LARGE", message));
        }
        let channel = self.pool.channel(address)?;
        let to_send = call.timeout.min(self.send_timeout);
        let to_answer = call.timeout.saturating_sub(to_send);
        let latch = Arc::new(Latch::default());
        let mut exchange = pin!(self.exchange(channel, Arc::clone(&latch), envelope::request(call)));
        let result = match timeout(to_send, &mut exchange).await {
            Ok(result) => result,
            Err(_) if latch.hold() => return Err(unsent(address, "it does not take the call")),
            Err(_) => match timeout(to_answer, exchange).await {
                Ok(result) => result,
                Err(_) => return Err(Fault::unknown(format!("the node at {address} did not answer in time"))),
            },
        };
        match result {
            Ok(reply) => envelope::outcome(reply),
            Err(status) => Err(classify(address, &status, &latch)),
        }
    }
}

/// What a call without a reply means. The codes of gRPC do not decide it: `UNAVAILABLE`, for one, is also what a
/// connection reports that died while the call was under way.
fn classify(address: &str, status: &Status, latch: &Latch) -> Fault {
    match Refusal::of(status) {
        Some(Refusal::Busy) => {
            return Fault::limited(format!("the node at {address} has too many calls at one time"), BUSY_RETRY_MS);
        }
        Some(Refusal::Stranger | Refusal::Stopping) => {
            return Fault::unavailable(format!("the node at {address} refused the call: {}", status.message()));
        }
        None => {}
    }
    let why = status.source().map_or_else(|| status.message().to_owned(), sentence);
    if latch.hold() {
        return unsent(address, &why);
    }
    Fault::unknown(format!("the call of the node at {address} broke off: {why}"))
}

fn unsent(address: &str, why: &str) -> Fault {
    Fault::unavailable(format!("the node at {address} cannot be reached: {why}"))
}

impl fmt::Debug for RpcTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RpcTransport").field("pool", &self.pool).finish_non_exhaustive()
    }
}
