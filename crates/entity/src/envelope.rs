//! What is sent to an actor, and who waits for the answer.

use std::sync::Arc;

use actix::Message;
use cofactor_telemetry::Trace;
use cofactor_types::Fault;
use tokio::sync::oneshot;
use tracing::Span;

use crate::{Entity, entities::Slot};

/// What a caller gets back: the answer, or its command, untouched, if the actor is going away.
pub(crate) enum Answer<E: Entity> {
    Reply(Result<E::Reply, Fault>),
    Returned(E::Command),
}

/// Who waits for an answer.
pub(crate) struct Asker<E: Entity> {
    reply: oneshot::Sender<Answer<E>>,
    /// From the command's coming to its answer.
    span: Span,
}

impl<E: Entity> Asker<E> {
    /// An error says that the caller has gone.
    pub(crate) fn send(self, answer: Answer<E>) {
        let _ = self.reply.send(answer);
    }

    pub(crate) fn span(&self) -> &Span {
        &self.span
    }

    /// The trace of the request that the command is part of.
    pub(crate) fn trace(&self) -> Option<Trace> {
        Trace::of(&self.span)
    }
}

/// A command on its way to an actor. One that is dropped unhandled returns to its caller.
pub(crate) struct Envelope<E: Entity> {
    content: Option<(E::Command, Asker<E>)>,
    slot: Arc<Slot>,
}

impl<E: Entity> Envelope<E> {
    pub(crate) fn new(command: E::Command, reply: oneshot::Sender<Answer<E>>, slot: Arc<Slot>) -> Self {
        let span = cofactor_telemetry::span!("command", entity.kind = E::KIND.as_str());
        Self { content: Some((command, Asker { reply, span })), slot }
    }

    pub(crate) fn open(mut self) -> Option<(E::Command, Asker<E>)> {
        self.content.take()
    }
}

impl<E: Entity> Drop for Envelope<E> {
    fn drop(&mut self) {
        self.slot.leave();
        if let Some((command, asker)) = self.content.take() {
            asker.send(Answer::Returned(command));
        }
    }
}

impl<E: Entity> Message for Envelope<E> {
    type Result = ();
}

/// Asks the actor to finish what is under way and go.
pub(crate) struct Drain(pub(crate) oneshot::Sender<()>);

impl Message for Drain {
    type Result = ();
}
