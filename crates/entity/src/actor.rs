//! The actor around an entity.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use actix::{Actor, ActorContext, AsyncContext, Context, Handler, SpawnHandle, WrapFuture, fut::ActorFutureExt};
use bytes::Bytes;
use cofactor_store::{Key, LogKey, StoreError};
use cofactor_types::{EntityId, Fault, Position, limits};
use tokio::sync::oneshot;
use tracing::{Instrument, Span};

use crate::{
    Cx, Decision, Entity, Env, OpenPosition, Planted, Read,
    change::{Change, Fetched, RowKey},
    entities::Slot,
    envelope::{Answer, Asker, Drain, Envelope},
    log::{Group, Message as Outgoing, Writer},
    measure, outbox,
    publisher::Notice,
    route::not_owner,
};

/// An append takes no more than about this many bytes; what waits beyond it goes into the next.
const GROUP_BYTES_MAX: usize = 256 << 10;

/// An append takes no more than about this many rows and effects.
const GROUP_ROWS_MAX: usize = 500;

/// When a timer comes again that came while the node had no lease.
const TICK_AGAIN: Duration = Duration::from_millis(500);

/// How soon a store that did not say what became of an append is asked again: at first, and later.
const SETTLE_AGAIN: Duration = Duration::from_millis(100);
const SETTLE_AGAIN_MAX: Duration = Duration::from_secs(1);

type Waiter<E> = (Asker<E>, Result<<E as Entity>::Reply, Fault>);

/// A built state, its log, and the messages that a dead writer left unsent.
type Activated<E> = (E, Writer, Vec<(Key, Outgoing)>);

/// Changes that wait for their append, and those who wait for them.
struct Batch<E: Entity> {
    changes: Vec<Change>,
    bytes: usize,
    rows: usize,
    waiters: Vec<Waiter<E>>,
}

impl<E: Entity> Default for Batch<E> {
    fn default() -> Self {
        Self { changes: Vec::new(), bytes: 0, rows: 0, waiters: Vec::new() }
    }
}

enum Phase<E: Entity> {
    Loading(VecDeque<Envelope<E>>),
    Ready(Box<Ready<E>>),
    /// It goes: its log is being closed.
    Closing,
    /// Nothing follows from it any more but messages that are on their way.
    Closed,
    /// It could not be built, or an append failed and what became of it may still be asked.
    Failed,
}

struct Ready<E: Entity> {
    state: E,
    /// `None` while an append is under way.
    writer: Option<Writer>,
    batches: VecDeque<Batch<E>>,
    /// Effects that are decided but perhaps not yet readable.
    overlay: HashMap<RowKey, Option<Bytes>>,
    fetches: usize,
}

/// The one live instance of an entity on this node.
pub(crate) struct EntityActor<E: Entity> {
    env: Env,
    config: E::Config,
    id: EntityId,
    slot: Arc<Slot>,
    phase: Phase<E>,
    used: bool,
    timer: Option<SpawnHandle>,
    /// Groups of messages to other entities that are on their way.
    deliveries: usize,
    /// Messages that did not arrive and are to be tried again.
    left: Vec<(Key, Outgoing)>,
    drains: Vec<oneshot::Sender<()>>,
}

impl<E: Entity> EntityActor<E> {
    pub(crate) fn new(env: Env, config: E::Config, id: EntityId, slot: Arc<Slot>) -> Self {
        let phase = Phase::Loading(VecDeque::new());
        Self {
            env,
            config,
            id,
            slot,
            phase,
            used: true,
            timer: None,
            deliveries: 0,
            left: Vec::new(),
            drains: Vec::new(),
        }
    }

    fn loaded(&mut self, outcome: Result<Activated<E>, Fault>, ctx: &mut Context<Self>) {
        let Phase::Loading(waiting) = &mut self.phase else { return };
        let waiting = std::mem::take(waiting);
        match outcome {
            Ok((state, writer, unsent)) => {
                measure::activated(E::KIND);
                self.phase = Phase::Ready(Box::new(Ready {
                    state,
                    writer: Some(writer),
                    batches: VecDeque::new(),
                    overlay: HashMap::new(),
                    fetches: 0,
                }));
                if !unsent.is_empty() {
                    self.send(unsent, Vec::new(), ctx);
                }
                for envelope in waiting {
                    self.handle_envelope(envelope, ctx);
                }
                self.drained(ctx);
            }
            Err(fault) => {
                tracing::warn!(entity = ?self.id, error = %fault, "an entity cannot be activated");
                self.phase = Phase::Failed;
                if waiting.is_empty() {
                    self.wake_later();
                }
                for (_, reply) in waiting.into_iter().filter_map(Envelope::open) {
                    reply.send(Answer::Reply(Err(fault.clone())));
                }
                self.stop(ctx);
            }
        }
    }

    /// Activates an entity once more that has something to finish, though nobody asks it.
    fn wake_later(&self) {
        let (env, id) = (self.env.clone(), self.id.clone());
        actix_rt::spawn(async move {
            tokio::time::sleep(outbox::again(&env)).await;
            if env.ownership().epoch(env.shard(&id)).is_some() {
                env.wake(&id);
            }
        });
    }

    fn handle_envelope(&mut self, envelope: Envelope<E>, ctx: &mut Context<Self>) {
        self.used = true;
        match &mut self.phase {
            Phase::Loading(waiting) => waiting.push_back(envelope),
            Phase::Closing | Phase::Closed | Phase::Failed => drop(envelope),
            Phase::Ready(_) => {
                if let Some((command, reply)) = envelope.open() {
                    self.decide(command, reply, Fetched::default(), ctx);
                }
            }
        }
    }

    fn decide(&mut self, command: E::Command, reply: Asker<E>, fetched: Fetched, ctx: &mut Context<Self>) {
        let Phase::Ready(ready) = &mut self.phase else {
            reply.send(Answer::Returned(command));
            return;
        };
        if !self.env.positions().has_room() {
            let fault = Fault::unavailable("this node's lease has ended; it must renew it before it can act");
            reply.send(Answer::Reply(Err(fault)));
            return;
        }
        let change = Change::default();
        let mut cx = Cx { env: &self.env, id: &self.id, change, overlay: &ready.overlay, fetched, tick: None };
        let decision = ready.state.decide(command, &mut cx);
        let Cx { change, tick, fetched, .. } = cx;
        if let Some(after) = tick {
            self.tick_in(after, ctx);
        }
        match decision {
            Decision::Need(command, reads) => self.fetch(command, reply, reads, fetched, ctx),
            Decision::Reply(answer) => self.enqueue(Change::default(), Some((reply, answer)), ctx),
            Decision::Commit(answer) => self.enqueue(change, Some((reply, Ok(answer))), ctx),
        }
    }

    /// Puts a change and its waiter behind everything decided before.
    fn enqueue(&mut self, mut change: Change, waiter: Option<Waiter<E>>, ctx: &mut Context<Self>) {
        let Phase::Ready(ready) = &mut self.phase else { return };
        change.trace = waiter.as_ref().and_then(|(asker, _)| asker.trace());
        if change.is_empty() && ready.writer.is_some() && ready.batches.is_empty() {
            answer(waiter);
            return;
        }
        let waiter = match waiter {
            Some((reply, Ok(value))) if self.env.planted() == Planted::AcknowledgeBeforeCommit => {
                reply.send(Answer::Reply(Ok(value)));
                None
            }
            waiter => waiter,
        };
        for one in &change.effects {
            ready.overlay.insert((one.table.id, one.partition.clone(), one.clustering.clone()), one.value.clone());
        }
        let full = |batch: &Batch<E>| batch.bytes > GROUP_BYTES_MAX || batch.rows > GROUP_ROWS_MAX;
        let full = ready.batches.back().is_none_or(full);
        if full {
            ready.batches.push_back(Batch::default());
        }
        if let Some(batch) = ready.batches.back_mut() {
            batch.bytes += change.bytes();
            batch.rows += change.rows.len() + change.effects.len();
            if !change.is_empty() {
                batch.changes.push(change);
            }
            batch.waiters.extend(waiter);
        }
        self.flush(ctx);
    }

    /// Starts the next append, if none is under way.
    fn flush(&mut self, ctx: &mut Context<Self>) {
        let Phase::Ready(ready) = &mut self.phase else { return };
        let Some(mut writer) = ready.writer.take() else { return };
        let Some(batch) = ready.batches.pop_front() else {
            ready.writer = Some(writer);
            if ready.fetches == 0 {
                ready.overlay.clear();
            }
            self.drained(ctx);
            return;
        };
        let Batch { changes, waiters, .. } = batch;
        let mut group = Group::default();
        let mut notices = Vec::new();
        let mut messages = Vec::new();
        let mut open = Vec::new();
        for change in changes {
            group.last = change.open.iter().map(OpenPosition::get).max().unwrap_or_default().max(group.last);
            group.rows.extend(change.rows);
            group.effects.extend(change.effects);
            let trace = change.trace;
            notices.extend(change.notices.into_iter().map(|notice| Notice { trace, ..notice }));
            messages.extend(change.messages);
            open.extend(change.open);
        }
        let outgoing = match outbox::stage(&self.env, &self.id, messages, &mut group) {
            Ok(outgoing) => outgoing,
            Err(error) => return self.fail(&error, waiters, ctx),
        };
        let anything = !group.rows.is_empty() || !group.effects.is_empty();
        if anything && group.last == Position::ZERO {
            match self.env.positions().allocate() {
                Ok(position) => {
                    group.last = position.get();
                    open.push(position);
                }
                Err(fault) => return self.fail(&StoreError::Unavailable(fault.to_string()), waiters, ctx),
            }
        }
        let span = if anything { self.commit_span(&writer, &waiters) } else { Span::none() };
        let (clock, commands) = (Arc::clone(self.env.clock()), waiters.len());
        let append = async move {
            if !anything {
                return (writer, Ok(()));
            }
            let began_us = clock.steady_us();
            let outcome = writer.append(group).await;
            measure::committed(E::KIND, commands, clock.steady_us().saturating_sub(began_us), &outcome);
            (writer, outcome)
        };
        let within = span.clone();
        let done = append.instrument(span).into_actor(self).map(move |(writer, outcome), actor, ctx| match outcome {
            Ok(()) => {
                let records = notices.len();
                let publish = cofactor_telemetry::span!(parent: &within, "publish", records);
                publish.in_scope(|| actor.env.publisher().publish(&actor.id, writer.epoch(), notices));
                drop((publish, within));
                actor.committed(writer, open, outgoing, waiters, ctx);
            }
            Err(error) => {
                if let StoreError::Unknown(_) = error {
                    actor.settle(writer, open, ctx);
                }
                actor.fail(&error, waiters, ctx);
            }
        });
        ctx.spawn(done);
    }

    /// An append of unknown outcome may still appear: its positions stay open until it stands or never will. Nobody who
    /// listens has heard of it, so a number is left out: at once, before a new actor says anything that comes after it, and
    /// again when it is settled.
    fn settle(&self, mut writer: Writer, open: Vec<OpenPosition>, ctx: &mut Context<Self>) {
        let (env, id, epoch) = (self.env.clone(), self.id.clone(), writer.epoch());
        let shard = env.shard(&id);
        env.publisher().doubt(&id, epoch);
        let settled = async move {
            let mut pause = SETTLE_AGAIN;
            // Who takes the shard after this node fences the log first.
            while env.ownership().holds(shard, epoch) {
                let Err(error) = writer.settle().await else { break };
                tracing::warn!(entity = ?id, %error, "an append is still in doubt; asking again");
                tokio::time::sleep(pause).await;
                pause = SETTLE_AGAIN_MAX.min(pause * 2);
            }
            env.publisher().settled(&id, epoch);
            drop(open);
            if env.ownership().holds(shard, epoch) {
                // What it left undone is not for a request to begin.
                env.wake(&id);
            }
        };
        ctx.spawn(settled.into_actor(self).map(|(), _, ctx| ctx.stop()));
    }

    fn commit_span(&self, writer: &Writer, waiters: &[Waiter<E>]) -> Span {
        let commands = waiters.iter().map(|(asker, _)| asker.span());
        measure::commit_span(E::KIND, self.env.shard(&self.id), writer.epoch(), commands)
    }

    fn committed(
        &mut self,
        writer: Writer,
        open: Vec<OpenPosition>,
        outgoing: Vec<(Key, Outgoing)>,
        waiters: Vec<Waiter<E>>,
        ctx: &mut Context<Self>,
    ) {
        drop(open);
        if let Phase::Ready(ready) = &mut self.phase {
            ready.writer = Some(writer);
        }
        if outgoing.is_empty() {
            waiters.into_iter().for_each(|waiter| answer(Some(waiter)));
        } else {
            self.send(outgoing, waiters, ctx);
        }
        self.flush(ctx);
    }

    /// Brings messages to their targets, then answers.
    fn send(&mut self, outgoing: Vec<(Key, Outgoing)>, waiters: Vec<Waiter<E>>, ctx: &mut Context<Self>) {
        self.deliveries += 1;
        let outgoing = outbox::behind(&mut self.left, outgoing);
        let first = waiters.first().and_then(|(asker, _)| asker.span().id());
        let span = cofactor_telemetry::span!(parent: first, "deliver", messages = outgoing.len());
        let delivery = outbox::empty(self.env.clone(), self.id.clone(), outgoing).instrument(span);
        let done = delivery.into_actor(self).map(move |delivered, actor, ctx| {
            for (reply, result) in waiters {
                let result = match &delivered {
                    Err(left) => {
                        let fault = &left.fault;
                        Err(Fault::unknown(format!("the change stands, but is not known everywhere: {fault}")))
                    }
                    Ok(()) => result,
                };
                reply.send(Answer::Reply(result));
            }
            actor.deliveries -= 1;
            if let Err(left) = delivered {
                measure::put_off(E::KIND, left.messages.len());
                actor.left.extend(left.messages);
                // More than this is found by the next activation.
                actor.left.truncate(limits::MAILBOX_MAX);
                ctx.run_later(outbox::again(&actor.env), Self::send_left);
            }
            actor.sent(ctx);
        });
        ctx.spawn(done);
    }

    /// Tries again with what did not arrive. Who comes after this actor finds it in the outbox.
    fn send_left(&mut self, ctx: &mut Context<Self>) {
        let left = std::mem::take(&mut self.left);
        if let (Phase::Ready(_), false) = (&self.phase, left.is_empty()) {
            self.send(left, Vec::new(), ctx);
        }
    }

    /// Ends an actor of which only messages were on their way.
    fn sent(&mut self, ctx: &mut Context<Self>) {
        if let (Phase::Closed, 0) = (&self.phase, self.deliveries) {
            ctx.stop();
        }
    }

    fn fetch(
        &mut self,
        command: E::Command,
        reply: Asker<E>,
        reads: Vec<Read>,
        known: Fetched,
        ctx: &mut Context<Self>,
    ) {
        if let Phase::Ready(ready) = &mut self.phase {
            ready.fetches += 1;
        }
        let (env, id) = (self.env.clone(), self.id.clone());
        let fetched = async move { fetch_all(&env, &id, reads, known).await };
        let done = fetched.into_actor(self).map(move |outcome, actor, ctx| {
            match outcome {
                Ok(fetched) => actor.decide(command, reply, fetched, ctx),
                Err(error) => {
                    reply.send(Answer::Reply(Err(error.into())));
                }
            }
            if let Phase::Ready(ready) = &mut actor.phase {
                ready.fetches -= 1;
            }
            actor.drained(ctx);
        });
        ctx.spawn(done);
    }

    fn tick_in(&mut self, after: Duration, ctx: &mut Context<Self>) {
        if let Some(timer) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        self.timer = Some(ctx.run_later(after, |actor, ctx| {
            actor.timer = None;
            if !actor.env.positions().has_room() {
                return actor.tick_in(TICK_AGAIN, ctx);
            }
            let Phase::Ready(ready) = &mut actor.phase else { return };
            let (change, fetched) = (Change::default(), Fetched::default());
            let mut cx = Cx { env: &actor.env, id: &actor.id, change, overlay: &ready.overlay, fetched, tick: None };
            ready.state.tick(&mut cx);
            let Cx { change, tick, .. } = cx;
            if let Some(after) = tick {
                actor.tick_in(after, ctx);
            }
            actor.enqueue(change, None, ctx);
        }));
    }

    /// What is in memory may be ahead of the log: all who wait are refused, and the next command builds a new actor.
    fn fail(&mut self, error: &StoreError, waiters: Vec<Waiter<E>>, ctx: &mut Context<Self>) {
        tracing::warn!(entity = ?self.id, %error, "an append failed; the entity is dropped and will be built again");
        let fault = Fault::from(error.clone());
        let phase = std::mem::replace(&mut self.phase, Phase::Failed);
        let batches = if let Phase::Ready(ready) = phase { ready.batches } else { VecDeque::new() };
        let later = batches.into_iter().flat_map(|batch| batch.waiters);
        for (reply, _) in waiters.into_iter().chain(later) {
            reply.send(Answer::Reply(Err(fault.clone())));
        }
        self.slot.close();
        // Who takes the shard fences the log, so that nobody need wait until an append in doubt is settled.
        self.let_go();
        if !matches!(error, StoreError::Unknown(_)) {
            if self.deliveries > 0 || !self.left.is_empty() {
                // Only one actor is to send what is in the outbox.
                self.wake_later();
            }
            ctx.stop();
        }
    }

    /// Goes, if asked to and nothing more is to be written. Messages on their way are not waited for: their targets may be
    /// in shards that move together with this one, and whoever takes it finds them in the outbox.
    fn drained(&mut self, ctx: &mut Context<Self>) {
        if !self.drains.is_empty() && self.is_still() {
            self.rest(ctx);
        }
    }

    /// Goes in good order: the log is taken off the list of open ones first.
    fn rest(&mut self, ctx: &mut Context<Self>) {
        measure::passivated(E::KIND);
        self.slot.close();
        let Phase::Ready(ready) = std::mem::replace(&mut self.phase, Phase::Closing) else { return };
        self.left.clear();
        let closed = async move {
            if let Some(writer) = ready.writer {
                writer.close().await;
            }
        };
        ctx.spawn(closed.into_actor(self).map(|(), actor, ctx| {
            actor.phase = Phase::Closed;
            actor.let_go();
            actor.sent(ctx);
        }));
    }

    /// Tells those who wait for this actor to go.
    fn let_go(&mut self) {
        for drain in self.drains.drain(..) {
            let _ = drain.send(());
        }
    }

    /// Whether nothing is being written, or read for a decision.
    fn is_still(&self) -> bool {
        matches!(&self.phase, Phase::Ready(ready) if
            ready.writer.is_some() && ready.batches.is_empty() && ready.fetches == 0)
    }

    fn stop(&mut self, ctx: &mut Context<Self>) {
        self.slot.close();
        ctx.stop();
    }

    fn watch_idleness(&mut self, ctx: &mut Context<Self>) {
        ctx.run_later(self.env.idle(), |actor, ctx| {
            let sends = actor.deliveries > 0 || !actor.left.is_empty();
            let rests = !std::mem::take(&mut actor.used) && actor.timer.is_none() && !sends && actor.is_still();
            if rests && actor.slot.try_retire() {
                actor.rest(ctx);
            } else {
                actor.watch_idleness(ctx);
            }
        });
    }
}

fn answer<E: Entity>(waiter: Option<Waiter<E>>) {
    if let Some((reply, result)) = waiter {
        reply.send(Answer::Reply(result));
    }
}

/// What was known before, and more.
async fn fetch_all(env: &Env, id: &EntityId, reads: Vec<Read>, mut fetched: Fetched) -> Result<Fetched, StoreError> {
    for read in reads {
        match read {
            Read::Row { table, partition, clustering } => {
                let value = env.store().get(table, &partition, &clustering).await?;
                fetched.rows.insert((table.id, partition, clustering), value);
            }
            Read::Log { class, sub, range } => {
                let log = LogKey { entity: id.clone(), class, sub };
                fetched.logs.push(env.reader().read(&log, range).await?);
            }
        }
    }
    Ok(fetched)
}

/// Opens the log, finds unsent messages, and builds the state.
async fn activate<E: Entity>(env: Env, config: E::Config, id: EntityId) -> Result<Activated<E>, Fault> {
    let epoch = env.ownership().touch(env.shard(&id)).ok_or_else(not_owner)?;
    let (writer, last) = Writer::open(env.clone(), id.clone(), epoch).await?;
    let unsent = outbox::unsent(&env, &id).await?;
    let state = E::load(env, config, id, last).await?;
    Ok((state, writer, unsent))
}

impl<E: Entity> Actor for EntityActor<E> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        let activation = activate::<E>(self.env.clone(), self.config.clone(), self.id.clone());
        ctx.spawn(activation.into_actor(self).map(|outcome, actor, ctx| actor.loaded(outcome, ctx)));
        self.watch_idleness(ctx);
    }

    fn stopped(&mut self, _ctx: &mut Context<Self>) {
        self.slot.close();
        self.let_go();
    }
}

impl<E: Entity> Drop for EntityActor<E> {
    fn drop(&mut self) {
        // A panic ends the actor without `stopped`.
        self.slot.close();
    }
}

impl<E: Entity> Handler<Envelope<E>> for EntityActor<E> {
    type Result = ();

    fn handle(&mut self, envelope: Envelope<E>, ctx: &mut Context<Self>) {
        self.handle_envelope(envelope, ctx);
    }
}

impl<E: Entity> Handler<Drain> for EntityActor<E> {
    type Result = ();

    fn handle(&mut self, drain: Drain, ctx: &mut Context<Self>) {
        self.drains.push(drain.0);
        match self.phase {
            Phase::Loading(_) | Phase::Closing => {}
            Phase::Ready(_) => self.drained(ctx),
            Phase::Closed | Phase::Failed => self.let_go(),
        }
    }
}
