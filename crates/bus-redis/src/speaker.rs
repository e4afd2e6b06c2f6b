//! Publishes what waits.

use std::sync::Arc;

use cofactor_bus::BusError;
use redis::aio::MultiplexedConnection;

use crate::{backoff::Backoff, core::Core, door, frame::Said};

/// Publishes for ever: connects, sends what waits in one round trip after the other, and connects again.
pub(crate) async fn run(core: Arc<Core>) {
    let mut backoff = Backoff::new(&core.options, Arc::clone(&core.entropy));
    loop {
        let error = match connect(&core).await {
            Ok(connection) => speak(&core, connection, &mut backoff).await,
            Err(error) => error,
        };
        core.queue.shut();
        if core.links.send_if_modified(|links| std::mem::take(&mut links.speaks)) {
            tracing::warn!(%error, "redis does not take what is published");
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

async fn connect(core: &Core) -> Result<MultiplexedConnection, BusError> {
    let home = core.door.locate(core.lane).await?;
    core.door.connect(&home, core.options.publish_timeout(), None).await
}

async fn speak(core: &Core, mut connection: MultiplexedConnection, backoff: &mut Backoff) -> BusError {
    core.queue.open();
    core.links.send_modify(|links| links.speaks = true);
    loop {
        let batch = core.queue.take().await;
        let gap = if batch.gap { core.outgoing(None, Said::Gap) } else { None };
        let mut pipeline = redis::pipe();
        let (mut frames, mut bytes) = (0, 0);
        for outgoing in gap.iter().chain(&batch.frames) {
            pipeline.cmd("SPUBLISH").arg(&*outgoing.channel).arg(&outgoing.frame[..]).ignore();
            frames += 1;
            bytes += outgoing.frame.len() as u64;
        }
        if let Err(error) = door::within(core.options.publish_timeout(), pipeline.exec_async(&mut connection)).await {
            return error;
        }
        core.queue.sent();
        backoff.reset();
        metrics::counter!("cofactor_bus_frames_total").increment(frames);
        metrics::counter!("cofactor_bus_bytes_total").increment(bytes);
        metrics::counter!("cofactor_bus_rounds_total").increment(1);
    }
}
