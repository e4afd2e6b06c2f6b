//! What the tasks of one bus value share.

use std::sync::Arc;

use bytes::Bytes;
use cofactor_bus::{Bus, BusError, local::LocalBus};
use cofactor_types::{Entropy, ShardId};
use redis::Value;
use tokio::{sync::watch, time::Instant};

use crate::{
    RedisOptions,
    door::Door,
    frame::{self, Heard, Said, Unreadable},
    peers::Peers,
    queue::{Outgoing, Queue},
};

/// Which connections stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Links {
    /// Lanes that are heard.
    pub(crate) lanes: u16,
    /// What is published arrives.
    pub(crate) speaks: bool,
}

#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) options: RedisOptions,
    pub(crate) entropy: Arc<dyn Entropy>,
    pub(crate) door: Door,
    /// This bus value, so that its echoes are known.
    publisher: u64,
    pub(crate) lane: u16,
    /// The subscribers of this process.
    pub(crate) local: LocalBus,
    pub(crate) queue: Queue,
    pub(crate) peers: Peers,
    pub(crate) links: watch::Sender<Links>,
    /// Whether anybody here ever listens. Until then the others are not heard.
    wanted: watch::Sender<bool>,
    record_channels: Vec<Arc<str>>,
    heartbeat_channel: Arc<str>,
}

impl Core {
    pub(crate) fn new(options: RedisOptions, entropy: Arc<dyn Entropy>) -> Result<Self, BusError> {
        options.check()?;
        let door = Door::new(&options)?;
        // The lower half of a random number is one too.
        let publisher = entropy.u128() as u64;
        let lane = (publisher % u64::from(options.lanes())) as u16;
        let mut record_channels: Vec<Arc<str>> = channels(&options, lane).into_iter().map(Arc::from).collect();
        let heartbeat_channel = record_channels.pop().unwrap_or_default();
        Ok(Self {
            entropy,
            door,
            publisher,
            lane,
            local: LocalBus::default(),
            queue: Queue::new(&options),
            peers: Peers::default(),
            links: watch::Sender::default(),
            wanted: watch::Sender::default(),
            record_channels,
            heartbeat_channel,
            options,
        })
    }

    /// Somebody listens: the others are to be heard from here on.
    pub(crate) fn want(&self) {
        self.wanted.send_if_modified(|wanted| !std::mem::replace(wanted, true));
    }

    pub(crate) fn is_wanted(&self) -> bool {
        *self.wanted.borrow()
    }

    /// Waits until somebody listens.
    pub(crate) async fn wanted(&self) {
        // An error says that the bus is gone, and with it whoever waits.
        let _ = self.wanted.subscribe().wait_for(|wanted| *wanted).await;
    }

    /// Whether all is as it should be: it speaks and, if anybody listens, hears all lanes.
    pub(crate) fn is_whole(&self, links: &Links) -> bool {
        links.speaks && (links.lanes == self.options.lanes() || !self.is_wanted())
    }

    /// Queues what is said; what is for everybody has no shard.
    pub(crate) fn say(&self, shard: Option<ShardId>, said: Said<'_>) {
        self.queue.push(|| self.outgoing(shard, said));
    }

    /// The frame and its channel; `None` if it cannot be encoded, which a gap must tell.
    pub(crate) fn outgoing(&self, shard: Option<ShardId>, said: Said<'_>) -> Option<Outgoing> {
        let channel = match shard {
            Some(shard) => self.record_channels.get(shard.0 as usize % self.record_channels.len().max(1)),
            None => Some(&self.heartbeat_channel),
        };
        match frame::encode(self.publisher, said) {
            Ok(frame) => Some(Outgoing { channel: Arc::clone(channel?), frame }),
            Err(error) => {
                tracing::error!(%error, "a record cannot be encoded");
                None
            }
        }
    }

    /// Hears a message: channel and frame.
    pub(crate) fn hear(&self, message: Vec<Value>) {
        let Some(Value::BulkString(frame)) = message.into_iter().nth(1) else { return };
        let frame = Bytes::from(frame);
        let publisher = frame::publisher(&frame);
        if publisher == Some(self.publisher) {
            // Heard already, directly.
            return;
        }
        match (frame::decode(&frame), publisher) {
            (Ok(Heard::Record(record)), _) => self.local.publish(record),
            (Ok(Heard::Heartbeat(heartbeat)), publisher) => {
                if let Some(publisher) = publisher {
                    self.peers.heard(publisher, Instant::now());
                }
                self.local.heartbeat(heartbeat);
            }
            (Ok(Heard::Gap), _) => self.gap("told"),
            (Ok(Heard::Bye), Some(publisher)) => self.peers.left(publisher),
            (Ok(Heard::Bye | Heard::Nothing), _) => {}
            (Err(Unreadable), _) => self.gap("unreadable"),
        }
    }

    /// Whether all lanes are heard.
    pub(crate) fn hears(&self) -> bool {
        self.links.borrow().lanes == self.options.lanes()
    }

    /// Tells the subscribers of this process that something was missed.
    pub(crate) fn gap(&self, reason: &'static str) {
        metrics::counter!("cofactor_bus_gaps_total", "reason" => reason).increment(1);
        self.local.gap();
    }
}

/// All channels of a lane; the one for everybody comes last.
pub(crate) fn channels(options: &RedisOptions, lane: u16) -> Vec<String> {
    let prefix = &options.prefix;
    let records = (0..options.channels).map(|channel| format!("{prefix}:{{{lane}}}:r:{channel}"));
    records.chain([format!("{prefix}:{{{lane}}}:h")]).collect()
}
