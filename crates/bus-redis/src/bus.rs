//! The bus.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use cofactor_bus::{Bus, BusError, Delivery, Heartbeat, Listener, Record, Subscription};
use cofactor_types::Entropy;
use futures::future::BoxFuture;
use tokio::{
    task::AbortHandle,
    time::{Instant, MissedTickBehavior},
};

use crate::{RedisOptions, core::Core, frame::Said, listener, speaker};

/// A bus on Redis. Clones are the same bus; when the last is dropped, it hears and says nothing any more.
#[derive(Clone)]
pub struct RedisBus {
    core: Arc<Core>,
    tasks: Arc<Tasks>,
}

impl fmt::Debug for RedisBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBus")
            .field("options", &self.core.options)
            .field("links", &*self.core.links.borrow())
            .finish()
    }
}

/// Ends the tasks with the bus.
#[derive(Debug)]
struct Tasks(Vec<AbortHandle>);

impl Tasks {
    fn end(&self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.end();
    }
}

impl RedisBus {
    /// A bus that connects on its own, at once or whenever Redis comes up. Until then its subscribers hear gaps. It hears the
    /// others from the first subscription on, and costs Redis nothing before. Must be called within a tokio runtime, which runs its tasks.
    ///
    /// # Errors
    /// If an option makes no sense.
    pub fn start(options: RedisOptions, entropy: Arc<dyn Entropy>) -> Result<Self, BusError> {
        let core = Arc::new(Core::new(options, entropy)?);
        let listeners = (0..core.options.lanes()).map(|lane| tokio::spawn(listener::run(Arc::clone(&core), lane)));
        let mut tasks: Vec<AbortHandle> = listeners.map(|task| task.abort_handle()).collect();
        tasks.push(tokio::spawn(speaker::run(Arc::clone(&core))).abort_handle());
        tasks.push(tokio::spawn(watch(Arc::clone(&core))).abort_handle());
        Ok(Self { core, tasks: Arc::new(Tasks(tasks)) })
    }

    /// [`Self::start`], and waits until the bus speaks and hears: what is said after this call is heard by whoever
    /// subscribed before it.
    ///
    /// # Errors
    /// If an option makes no sense, or Redis cannot be reached within [`RedisOptions::connect_timeout_ms`].
    pub async fn connect(options: RedisOptions, entropy: Arc<dyn Entropy>) -> Result<Self, BusError> {
        let limit = options.connect_timeout();
        let bus = Self::start(options, entropy)?;
        bus.core.want();
        bus.ready(limit).await?;
        Ok(bus)
    }

    /// Waits until the bus speaks and, if anybody has subscribed, hears, but no longer than `limit`.
    ///
    /// # Errors
    /// If it does not by then.
    pub async fn ready(&self, limit: Duration) -> Result<(), BusError> {
        let mut links = self.core.links.subscribe();
        match tokio::time::timeout(limit, links.wait_for(|links| self.core.is_whole(links))).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(BusError("redis cannot be reached".into())),
        }
    }

    /// Whether the bus speaks and, if anybody has subscribed, hears just now.
    pub fn is_ready(&self) -> bool {
        self.core.is_whole(&self.core.links.borrow())
    }

    /// Says what still waits, and that this publisher ends on purpose, so that nobody takes its silence for a loss. Takes
    /// at most [`RedisOptions::publish_timeout_ms`]. Afterwards nothing is said or heard through Redis.
    pub async fn close(&self) {
        self.core.say(None, Said::Bye);
        // What does not arrive in time is a gap for the others, who notice the silence.
        let _ = tokio::time::timeout(self.core.options.publish_timeout(), self.core.queue.drained()).await;
        self.tasks.end();
    }
}

impl Bus for RedisBus {
    fn publish(&self, record: Record) {
        self.core.say(Some(record.shard), Said::Record(&record));
        self.core.local.publish(record);
    }

    fn heartbeat(&self, heartbeat: Heartbeat) {
        self.core.say(None, Said::Heartbeat(&heartbeat));
        self.core.local.heartbeat(heartbeat);
    }

    fn subscribe(&self) -> Box<dyn Subscription> {
        self.core.want();
        let subscription = self.core.local.subscribe();
        // After the subscription: if the connection is lost in between, the gap comes twice.
        let deaf = !self.core.hears();
        Box::new(RedisSubscription { deaf, subscription })
    }

    fn listen(&self, listener: Arc<dyn Listener>) -> BoxFuture<'static, ()> {
        self.core.want();
        let listening = self.core.local.listen(Arc::clone(&listener));
        if !self.core.hears() {
            listener.hear(&Delivery::Gap);
        }
        listening
    }
}

/// Hears a gap first if the bus cannot hear the others when the subscription begins.
struct RedisSubscription {
    deaf: bool,
    subscription: Box<dyn Subscription>,
}

#[async_trait]
impl Subscription for RedisSubscription {
    async fn next(&mut self) -> Option<Delivery> {
        if std::mem::take(&mut self.deaf) {
            return Some(Delivery::Gap);
        }
        self.subscription.next().await
    }

    fn try_next(&mut self) -> Option<Delivery> {
        if std::mem::take(&mut self.deaf) {
            return Some(Delivery::Gap);
        }
        self.subscription.try_next()
    }
}

/// Tells of gaps that no message tells of: again and again while Redis cannot be heard, and when a publisher falls silent.
async fn watch(core: Arc<Core>) {
    let gap_every = Duration::from_millis(core.options.gap_every_ms);
    let mut ticks = tokio::time::interval(core.options.silence() / 4);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    core.wanted().await;
    let mut told = Instant::now();
    loop {
        let now = ticks.tick().await;
        if core.hears() {
            told = now;
            let silent = core.peers.silent(core.options.silence(), now);
            if silent > 0 {
                tracing::info!(silent, "publishers are not heard any more");
                core.gap("silent");
            }
        } else if now.saturating_duration_since(told) >= gap_every {
            told = now;
            core.gap("deaf");
        }
    }
}
