//! What the machine itself allows: the parts of a homeserver's work that no design can leave out, measured here and
//! now, so that a cost can be stated as a multiple of them on whatever machine it was measured.

use std::fs::OpenOptions;
use std::hint::black_box;
use std::io::Write;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use ed25519_dalek::{Signer, SigningKey};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::client::{Ask, Client};
use crate::load::{Outcome, closed, operation};
use crate::proc::thread_cpu_ns;

/// The bytes of one record of a log.
const RECORD_BYTES: usize = 1024;
/// How many wait for one sync of the log.
const GROUP: u32 = 10;
/// A request such as a server gets for a message.
const BODY: &[u8] = br#"{"msgtype":"m.text","body":"the quick brown fox jumps over the lazy dog, again and again"}"#;
/// How many requests are in flight at the echo server.
const ECHO_IN_FLIGHT: usize = 10;

/// CPU time of each probe, in µs per operation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Floor {
    /// An ed25519 signature of 600 bytes.
    pub sign_us: f64,
    /// SHA-256 of an event, parsing it and encoding it again.
    pub json_us: f64,
    /// The server's part of a keep-alive PUT with a JSON body through a real socket.
    pub put_us: f64,
    /// The server's part of a keep-alive GET through a real socket.
    pub get_us: f64,
    /// Handing work to another thread that sleeps, and being woken: one way.
    pub hop_us: f64,
    /// One appended record of 1 KiB, when ten share one `fdatasync`.
    pub append_us: f64,
}

impl Floor {
    /// Runs every probe for about `each`.
    ///
    /// # Errors
    /// When a thread, a socket or a temporary file cannot be had.
    pub fn measure(each: Duration) -> Result<Self> {
        Ok(Self {
            sign_us: sign(each),
            json_us: json(each)?,
            put_us: echo(each, Ask::put("/", "token", BODY))?,
            get_us: echo(each, Ask::get("/", "token"))?,
            hop_us: hop(each)?,
            append_us: append(each)?,
        })
    }

    /// The floor of a durable send: a request, an event, two hops, a record. In µs.
    #[must_use]
    pub fn send_us(&self) -> f64 {
        self.put_us + self.json_us + self.sign_us + 2.0 * self.hop_us + self.append_us
    }

    /// The floor of a sync with nothing new: a request. In µs.
    #[must_use]
    pub fn sync_us(&self) -> f64 {
        self.get_us
    }
}

/// CPU µs of this thread for each call of `work`, which does `batch` operations.
fn per_operation(each: Duration, batch: u32, mut work: impl FnMut()) -> f64 {
    let (start, before) = (Instant::now(), thread_cpu_ns());
    let mut operations = 0.0;
    while start.elapsed() < each {
        work();
        operations += f64::from(batch);
    }
    micros(thread_cpu_ns() - before) / f64::max(operations, 1.0)
}

#[expect(clippy::cast_precision_loss, reason = "a duration of seconds")]
fn micros(ns: u64) -> f64 {
    ns as f64 / 1000.0
}

fn sign(each: Duration) -> f64 {
    let key = SigningKey::from_bytes(&[7; 32]);
    let object = [b'a'; 600];
    per_operation(each, 100, || {
        for _ in 0..100 {
            black_box(key.sign(black_box(&object)));
        }
    })
}

fn json(each: Duration) -> Result<f64> {
    let event = serde_json::json!({
        "auth_events": ["$".repeat(44), "$".repeat(44), "$".repeat(44)], "prev_events": ["$".repeat(44)],
        "content": { "msgtype": "m.text", "body": "the quick brown fox jumps over the lazy dog" },
        "depth": 17, "hashes": { "sha256": "h".repeat(43) }, "origin_server_ts": 1_700_000_000_000_u64,
        "room_id": "!room:example.org", "sender": "@user:example.org", "type": "m.room.message",
        "signatures": { "example.org": { "ed25519:1": "s".repeat(86) } },
    });
    let text = serde_json::to_vec(&event)?;
    Ok(per_operation(each, 100, || {
        for _ in 0..100 {
            black_box(Sha256::digest(black_box(&text)));
            let tree: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
            black_box(serde_json::to_vec(&tree).unwrap_or_default());
        }
    }))
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let body = request.into_body().collect().await?.to_bytes();
    let read: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    black_box(&read);
    Ok(Response::new(Full::new(Bytes::from_static(b"{\"event_id\":\"$0123456789012345678901234567890123456789012\"}"))))
}

/// A server on a thread of its own that answers everything at once, and the CPU time it used when told to stop.
struct Echo {
    address: std::net::SocketAddr,
    stop: oneshot::Sender<()>,
    used: std::thread::JoinHandle<u64>,
}

impl Echo {
    fn start() -> Result<Self> {
        let (told, address) = sync_channel(1);
        let (stop, stopped) = oneshot::channel::<()>();
        let used = std::thread::Builder::new().name("echo".to_owned()).spawn(move || {
            if let Err(error) = serve_until(&told, stopped) {
                drop(told.send(Err(error)));
            }
            thread_cpu_ns()
        })?;
        let address = address.recv().context("the echo server did not start")??;
        Ok(Self { address, stop, used })
    }

    fn stop(self) -> Result<u64> {
        let _ = self.stop.send(());
        self.used.join().map_err(|_| anyhow!("the echo server failed"))
    }
}

type Told = SyncSender<Result<std::net::SocketAddr>>;

fn serve_until(told: &Told, mut stopped: oneshot::Receiver<()>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        told.send(Ok(listener.local_addr()?))?;
        loop {
            tokio::select! {
                _ = &mut stopped => return Ok(()),
                accepted = listener.accept() => {
                    let (stream, _) = accepted?;
                    stream.set_nodelay(true)?;
                    let connection = hyper::server::conn::http1::Builder::new();
                    let serving = connection.serve_connection(TokioIo::new(stream), service_fn(answer));
                    tokio::spawn(async move { drop(serving.await) });
                }
            }
        }
    })
}

/// How many requests a second this process answers itself, with one thread that asks: what the generator can do.
///
/// # Errors
/// When the echo server cannot be had.
pub fn generator_rate(each: Duration) -> Result<(f64, f64)> {
    let echo = Echo::start()?;
    let (done, asked_us) = ask_for(each, &echo, &Ask::put("/", "token", BODY))?;
    echo.stop()?;
    Ok((done / each.as_secs_f64(), asked_us / done.max(1.0)))
}

fn echo(each: Duration, ask: Ask) -> Result<f64> {
    let echo = Echo::start()?;
    let (done, _) = ask_for(each, &echo, &ask)?;
    Ok(micros(echo.stop()?) / done.max(1.0))
}

/// Asks on a thread of its own, so that only its time is counted; returns how many answers came and the CPU time in µs.
fn ask_for(each: Duration, echo: &Echo, ask: &Ask) -> Result<(f64, f64)> {
    let (address, ask) = (echo.address, ask.clone());
    let asking = std::thread::spawn(move || -> Result<(f64, f64)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = std::sync::Arc::new(Client::new(address, "localhost", ECHO_IN_FLIGHT, Duration::from_secs(5))?);
        let work = operation(move |_| {
            let (client, ask) = (std::sync::Arc::clone(&client), ask.clone());
            async move { Outcome::from(client.send(ask).await) }
        });
        let tally = runtime.block_on(closed(ECHO_IN_FLIGHT, u64::MAX, each, &work));
        if tally.done == 0 {
            return Err(anyhow!("the echo server answered nothing: {:?}", tally.failed));
        }
        #[expect(clippy::cast_precision_loss, reason = "a count of some seconds")]
        Ok((tally.done as f64, micros(thread_cpu_ns())))
    });
    asking.join().map_err(|_| anyhow!("the asking thread failed"))?
}

fn hop(each: Duration) -> Result<f64> {
    let (there, over): (SyncSender<u64>, Receiver<u64>) = sync_channel(1);
    let (back, here) = sync_channel::<u64>(1);
    let other = std::thread::Builder::new().name("hop".to_owned()).spawn(move || {
        while let Ok(word) = over.recv() {
            if back.send(word).is_err() {
                break;
            }
        }
        thread_cpu_ns()
    })?;
    let (start, before) = (Instant::now(), thread_cpu_ns());
    let mut hops = 0.0;
    while start.elapsed() < each {
        there.send(1)?;
        here.recv()?;
        hops += 2.0;
    }
    let mine = thread_cpu_ns() - before;
    drop(there);
    let theirs = other.join().map_err(|_| anyhow!("the other thread failed"))?;
    Ok(micros(mine + theirs) / hops)
}

fn append(each: Duration) -> Result<f64> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let path = folder.path().join("log");
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    let records = [b'r'; RECORD_BYTES * GROUP as usize];
    let mut failure = None;
    let cost = per_operation(each, GROUP, || {
        let written = file.write_all(&records).and_then(|()| file.sync_data());
        failure = written.err().or(failure.take());
    });
    match failure {
        Some(error) => Err(error).context("cannot append to a temporary file"),
        None => Ok(cost),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_probe_finds_a_cost_and_the_floors_are_their_sums() {
        let floor = Floor::measure(Duration::from_millis(60)).unwrap();
        let parts = [floor.sign_us, floor.json_us, floor.put_us, floor.get_us, floor.hop_us, floor.append_us];
        assert!(parts.iter().all(|cost| *cost > 0.0 && cost.is_finite()), "{floor:?}");
        let sum = floor.sign_us + floor.json_us + floor.put_us + 2.0 * floor.hop_us + floor.append_us;
        assert!((floor.send_us() - sum).abs() < 1e-6 && floor.sync_us() < floor.send_us(), "{floor:?}");
    }
}
