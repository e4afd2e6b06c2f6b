//! A service that does as it is told, and the two ends of a cluster of two.
#![expect(clippy::unwrap_used, reason = "helpers of tests may fail the test")]

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use cofactor_rpc::{ClientOptions, RpcServer, RpcTransport, Running, Security, ServerOptions};
use cofactor_types::{EntityId, EntityKind, ErrorClass, Fault, SystemClock};
use cofactor_wire::node::{Call, Serve, Target};
use tokio::sync::{Notify, Semaphore};

pub(crate) const SECRET: &str = "correct-horse-battery-staple";
/// Long enough never to pass in a test that works.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// Answers by the kind of the target: an entity gets its own frame back; `shards` gets a fault, as the frame says; `sync`
/// waits until it is released, for ever if need be.
#[derive(Debug)]
pub(crate) struct Scripted {
    pub(crate) begun: AtomicUsize,
    pub(crate) cut: AtomicUsize,
    pub(crate) arrived: Semaphore,
    pub(crate) was_cut: Notify,
    pub(crate) release: Semaphore,
    pub(crate) last_trace: Mutex<Option<String>>,
    pub(crate) frames: Mutex<Vec<Bytes>>,
}

impl Default for Scripted {
    fn default() -> Self {
        Self {
            begun: AtomicUsize::new(0),
            cut: AtomicUsize::new(0),
            arrived: Semaphore::new(0),
            was_cut: Notify::new(),
            release: Semaphore::new(0),
            last_trace: Mutex::default(),
            frames: Mutex::default(),
        }
    }
}

/// Notices that work was dropped before it was done.
struct Work<'a>(Option<&'a Scripted>);

impl Drop for Work<'_> {
    fn drop(&mut self) {
        if let Some(scripted) = self.0 {
            scripted.cut.fetch_add(1, Ordering::SeqCst);
            scripted.was_cut.notify_one();
        }
    }
}

pub(crate) const CLASSES: [ErrorClass; 9] = [
    ErrorClass::NotFound,
    ErrorClass::Forbidden,
    ErrorClass::Invalid,
    ErrorClass::Conflict,
    ErrorClass::Limited,
    ErrorClass::NotOwner,
    ErrorClass::Unavailable,
    ErrorClass::Unknown,
    ErrorClass::Internal,
];

/// The fault of a class, with everything that a fault may carry.
pub(crate) fn fault(index: usize) -> Fault {
    let retry_after_ms = index.is_multiple_of(2).then_some(index as u64 * 100);
    Fault {
        retry_after_ms, ..Fault::new(CLASSES[index], "M_EXAMPLE", format!("fault {index}: größer als «nichts»"))
    }
}

#[async_trait]
impl Serve for Scripted {
    async fn serve(&self, call: Call) -> Result<Bytes, Fault> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        self.frames.lock().unwrap().push(call.frame.clone());
        *self.last_trace.lock().unwrap() = call.trace;
        match call.target {
            Target::Entity(_) | Target::Status => Ok(call.frame),
            Target::Shards => Err(fault(usize::from(call.frame[0]))),
            Target::Sync => {
                let mut work = Work(Some(self));
                self.arrived.add_permits(1);
                self.release.acquire().await.unwrap().forget();
                work.0 = None;
                Ok(call.frame)
            }
        }
    }
}

pub(crate) fn secret() -> Security {
    Security::Secret(SECRET.to_owned())
}

/// A server on a free port.
pub(crate) async fn server() -> (Arc<Scripted>, Running, String) {
    server_with(ServerOptions::new("127.0.0.1:0", secret())).await
}

pub(crate) async fn server_with(options: ServerOptions) -> (Arc<Scripted>, Running, String) {
    let scripted = Arc::new(Scripted::default());
    let serve: Arc<dyn Serve> = Arc::<Scripted>::clone(&scripted);
    let running = RpcServer::bind(options, serve).await.unwrap();
    let address = running.address().to_string();
    (scripted, running, address)
}

pub(crate) fn client() -> RpcTransport {
    client_with(ClientOptions::new(secret()))
}

pub(crate) fn client_with(options: ClientOptions) -> RpcTransport {
    RpcTransport::new(options, Arc::new(SystemClock)).unwrap()
}

/// Comes back as it is.
pub(crate) fn echo(frame: impl Into<Bytes>) -> Call {
    let room = EntityId::new(EntityKind::Room, "!room:example.org");
    Call { target: Target::Entity(room), frame: frame.into(), timeout: LONG, trace: None }
}

/// Waits until the server releases it.
pub(crate) fn wait(timeout: Duration) -> Call {
    Call { target: Target::Sync, frame: Bytes::from_static(b"done"), timeout, trace: None }
}

/// An address where nobody listens.
pub(crate) async fn nobody() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}
