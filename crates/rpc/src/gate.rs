//! What stands before the services: who may come in, and how many. It reads headers only, so that whoever is refused
//! costs no memory.

use std::{
    convert::Infallible,
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use subtle::ConstantTimeEq;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Status,
    body::Body,
    codegen::{BoxFuture, Service, http},
    metadata::{MetadataMap, MetadataValue},
};

/// The one method that needs no secret: what it tells, an open port tells as well. Watching is not offered: such calls
/// never end.
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";
/// The metadata that marks a refusal; its value is a [`Refusal::word`].
const REFUSED: &str = "cofactor-refused";

/// Why a call was not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The caller does not know the secret of the cluster.
    Stranger,
    /// As many calls as may be are under way.
    Busy,
    /// The node is about to stop.
    Stopping,
}

impl Refusal {
    const ALL: [Self; 3] = [Self::Stranger, Self::Busy, Self::Stopping];

    fn word(self) -> &'static str {
        match self {
            Self::Stranger => "stranger",
            Self::Busy => "busy",
            Self::Stopping => "stopping",
        }
    }

    fn status(self) -> Status {
        let (code, message) = match self {
            Self::Stranger => (Code::Unauthenticated, "the caller does not know the secret of the cluster"),
            Self::Busy => (Code::ResourceExhausted, "too many calls at one time"),
            Self::Stopping => (Code::Unavailable, "the node is stopping"),
        };
        let mut metadata = MetadataMap::with_capacity(1);
        metadata.insert(REFUSED, MetadataValue::from_static(self.word()));
        Status::with_metadata(code, message, metadata)
    }

    /// The refusal in a status from another node, if it is one.
    pub(crate) fn of(status: &Status) -> Option<Self> {
        let word = status.metadata().get(REFUSED)?;
        Self::ALL.into_iter().find(|refusal| word.as_encoded_bytes() == refusal.word().as_bytes())
    }
}

/// Sends a request to one of two services, or away.
#[derive(Clone)]
pub(crate) struct Gate<N, H> {
    node: N,
    health: H,
    rules: Arc<Rules>,
}

struct Rules {
    /// The value of `authorization` that callers must send. `None`: TLS has proved who they are.
    bearer: Option<String>,
    calls: Arc<Semaphore>,
    stopping: CancellationToken,
}

impl<N, H> Gate<N, H> {
    pub(crate) fn new(
        node: N,
        health: H,
        bearer: Option<String>,
        calls_max: usize,
        stopping: CancellationToken,
    ) -> Self {
        let calls = Arc::new(Semaphore::new(calls_max.min(Semaphore::MAX_PERMITS)));
        Self { node, health, rules: Arc::new(Rules { bearer, calls, stopping }) }
    }
}

impl Rules {
    /// A place among the calls under way, to be kept until the answer is made.
    fn admit(&self, headers: &http::HeaderMap) -> Result<OwnedSemaphorePermit, Refusal> {
        if !self.knows(headers) {
            return Err(Refusal::Stranger);
        }
        if self.stopping.is_cancelled() {
            return Err(Refusal::Stopping);
        }
        Arc::clone(&self.calls).try_acquire_owned().map_err(|_| Refusal::Busy)
    }

    /// Compares in a time that tells nothing about the secret but its length.
    fn knows(&self, headers: &http::HeaderMap) -> bool {
        let Some(bearer) = &self.bearer else { return true };
        headers
            .get(http::header::AUTHORIZATION)
            .is_some_and(|shown| bool::from(shown.as_bytes().ct_eq(bearer.as_bytes())))
    }
}

impl<N, H> fmt::Debug for Gate<N, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}

type Answer = http::Response<Body>;

impl<N, H> Service<http::Request<Body>> for Gate<N, H>
where
    N: Service<http::Request<Body>, Response = Answer, Error = Infallible, Future: Send + 'static>,
    H: Service<http::Request<Body>, Response = Answer, Error = Infallible, Future: Send + 'static>,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = BoxFuture<Answer, Infallible>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Services that tonic generates are always ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if request.uri().path() == HEALTH_CHECK {
            return Box::pin(self.health.call(request));
        }
        match self.rules.admit(request.headers()) {
            Ok(place) => {
                let answer = self.node.call(request);
                Box::pin(async move {
                    let answer = answer.await;
                    drop(place);
                    answer
                })
            }
            Err(refusal) => {
                tracing::debug!(reason = refusal.word(), "refused a call of another node");
                Box::pin(async move { Ok(refusal.status().into_http()) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEARER: &str = "Bearer correct-horse-battery";

    fn rules(calls_max: usize) -> Rules {
        let calls = Arc::new(Semaphore::new(calls_max));
        Rules { bearer: Some(BEARER.to_owned()), calls, stopping: CancellationToken::new() }
    }

    fn headers(authorization: &'static str) -> http::HeaderMap {
        [(http::header::AUTHORIZATION, http::HeaderValue::from_static(authorization))].into_iter().collect()
    }

    #[test]
    fn only_the_exact_secret_is_let_in() {
        let rules = rules(1);
        for wrong in ["", "Bearer ", "Bearer correct-horse-batterz", "Bearer correct-horse-battery1", "Bearer c"] {
            assert_eq!(rules.admit(&headers(wrong)).unwrap_err(), Refusal::Stranger, "{wrong}");
        }
        assert_eq!(rules.admit(&http::HeaderMap::new()).unwrap_err(), Refusal::Stranger);
        assert!(rules.admit(&headers(BEARER)).is_ok());
    }

    #[test]
    fn a_stranger_does_not_learn_that_the_node_is_busy_or_stopping() {
        let rules = rules(0);
        rules.stopping.cancel();
        assert_eq!(rules.admit(&headers("Bearer x")).unwrap_err(), Refusal::Stranger);
    }

    #[test]
    fn calls_beyond_the_limit_are_refused_until_one_ends() {
        let rules = rules(1);
        let first = rules.admit(&headers(BEARER)).unwrap();
        assert_eq!(rules.admit(&headers(BEARER)).unwrap_err(), Refusal::Busy);
        drop(first);
        assert!(rules.admit(&headers(BEARER)).is_ok());
    }

    #[test]
    fn every_refusal_is_recognised_by_the_caller_and_no_other_status_is() {
        for refusal in Refusal::ALL {
            assert_eq!(Refusal::of(&refusal.status()), Some(refusal));
        }
        for status in [Status::unavailable(""), Status::unauthenticated(""), Status::resource_exhausted("")] {
            assert_eq!(Refusal::of(&status), None);
        }
    }
}
