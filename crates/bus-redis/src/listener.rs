//! Hears one lane, and notices when it cannot.

use std::{sync::Arc, time::Duration};

use cofactor_bus::BusError;
use redis::{PushInfo, PushKind};
use tokio::{sync::mpsc, time::Instant};

use crate::{
    backoff::Backoff,
    core::{self, Core},
    door::{self, Ear, Home},
};

/// Channels subscribed to in one round trip.
const SUBSCRIBE_MAX: usize = 1_000;

/// After how many pings the lane's server is asked for again.
const LOCATE_EVERY: u64 = 10;

/// Hears a lane for ever, once anybody listens: connects, subscribes, and connects again.
pub(crate) async fn run(core: Arc<Core>, lane: u16) {
    core.wanted().await;
    let mut backoff = Backoff::new(&core.options, Arc::clone(&core.entropy));
    loop {
        let mut heard = Heard { core: &core, is_up: false };
        let error = listen(&mut heard, lane, &mut backoff).await;
        if heard.is_up {
            tracing::warn!(lane, error = %error.unwrap_or_else(|error| error), "redis is not heard any more");
        }
        drop(heard);
        tokio::time::sleep(backoff.next()).await;
    }
}

/// A lane that is heard is counted among the links as long as this lives.
struct Heard<'a> {
    core: &'a Arc<Core>,
    is_up: bool,
}

impl Heard<'_> {
    fn up(&mut self) {
        self.is_up = true;
        self.core.links.send_modify(|links| links.lanes += 1);
        // Between the last message and the subscription much may have been said.
        self.core.gap("found");
    }
}

impl Drop for Heard<'_> {
    fn drop(&mut self) {
        if self.is_up {
            self.core.links.send_modify(|links| links.lanes -= 1);
            // Whoever is watched here may have been on this lane, and its silence is no news.
            self.core.peers.clear();
            self.core.gap("lost");
        }
    }
}

/// Hears the lane until it is lost; says why.
async fn listen(heard: &mut Heard<'_>, lane: u16, backoff: &mut Backoff) -> Result<BusError, BusError> {
    let core = Arc::clone(heard.core);
    // Half of the silence passes before the question, half is for the answer.
    let half = core.options.silence() / 2;
    let (lost, mut is_lost) = mpsc::channel(1);
    let ear: Ear = {
        let core = Arc::clone(&core);
        Box::new(move |push: PushInfo| {
            match push.kind {
                PushKind::SMessage => core.hear(push.data),
                // The lane has moved to another server, or the connection is gone. One such word is enough.
                PushKind::SUnsubscribe | PushKind::Disconnection => drop(lost.try_send(())),
                _ => {}
            }
            Ok(())
        })
    };
    let home = core.door.locate(lane).await?;
    let mut connection = core.door.connect(&home, core.options.connect_timeout(), Some(ear)).await?;
    for channels in core::channels(&core.options, lane).chunks(SUBSCRIBE_MAX) {
        let mut pipeline = redis::pipe();
        for channel in channels {
            pipeline.cmd("SSUBSCRIBE").arg(channel).ignore();
        }
        door::within(core.options.connect_timeout(), pipeline.exec_async(&mut connection)).await?;
    }
    heard.up();
    let up_since = Instant::now();
    let mut pings = 0_u64;
    loop {
        tokio::select! {
            _ = is_lost.recv() => return Ok(BusError("the connection is closed or the lane has moved".into())),
            () = tokio::time::sleep(half) => {}
        }
        door::within(half, redis::cmd("PING").exec_async(&mut connection)).await?;
        pings += 1;
        if pings.is_multiple_of(LOCATE_EVERY) && has_moved(&core, lane, &home, half).await {
            return Ok(BusError("another server has the lane".into()));
        }
        if up_since.elapsed() > Duration::from_millis(core.options.retry_max_ms) {
            backoff.reset();
        }
    }
}

/// Whether the rest of the cluster takes another server for the lane's. A server that is cut off from the rest answers
/// pings, and knows least of all.
async fn has_moved(core: &Core, lane: u16, home: &Home, limit: Duration) -> bool {
    match tokio::time::timeout(limit, core.door.locate(lane)).await {
        Ok(Ok(now)) => now.id != home.id,
        // The one that was asked does not answer; the next time another is asked.
        Ok(Err(_)) | Err(_) => false,
    }
}
