//! How long rooms cannot be written to.

use std::{cell::Cell, collections::BTreeMap, fmt, time::Duration};

use serde_json::{Value, json};

use crate::chaos::{
    faults::Kind,
    history::{Ended, Operation, Text},
    load::Message,
    world::World,
};

/// The pause between two messages to one room.
const PULSE: Duration = Duration::from_millis(100);

/// Of a wait longer than this is told what it consisted of.
const TOLD_FROM: Duration = Duration::from_millis(500);

/// Unless that would be a longer text than this.
const TRIES_LEN_MAX: usize = 300;

/// The outages of a run.
#[derive(Debug, Default)]
pub(super) struct Outages(BTreeMap<Kind, Vec<Duration>>);

impl Outages {
    /// Notes the outage that came with a fault.
    pub(super) fn add(&mut self, kind: Kind, outage: Duration) {
        self.0.entry(kind).or_default().push(outage);
    }

    /// Of each kind of fault how often it came, and the longest time that a room waited, in milliseconds: for half of
    /// the faults at most, and for any.
    pub(super) fn told(mut self) -> Value {
        let told = self.0.iter_mut().map(|(kind, outages)| {
            outages.sort_unstable();
            let median = outages[outages.len() / 2].as_millis();
            let longest = outages.last().map_or(0, Duration::as_millis);
            (kind.to_string(), json!({ "faults": outages.len(), "median ms": median, "longest ms": longest }))
        });
        told.collect()
    }
}

/// The longest time that one message took until it was acknowledged.
#[derive(Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Wait {
    pub(super) time: Duration,
    /// When its tries began and how they ended.
    tries: String,
}

impl Wait {
    fn of(operation: &Operation<Text>) -> Self {
        let (begin, end) = (operation.invoked().0, operation.tries.last().map_or(0, |last| last.ended.0));
        let tries = operation.tries.iter().map(|one| {
            let ended = match one.outcome {
                Ended::Acknowledged(_) => "done",
                Ended::Refused => "not taken",
                Ended::Unknown => "unknown",
            };
            let ms = |moment: u64| moment.saturating_sub(begin) / 1_000;
            format!("{} to {} ms {ended}", ms(one.invoked.0), ms(one.ended.0))
        });
        let tries = tries.collect::<Vec<_>>().join(", ");
        Self { time: Duration::from_micros(end.saturating_sub(begin)), tries }
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.time.as_millis())?;
        // Tries without end, as long as a server is away, say nothing.
        if self.time > TOLD_FROM && self.tries.len() < TRIES_LEN_MAX {
            write!(f, " ({})", self.tries)?;
        }
        Ok(())
    }
}

/// Writes to every room again and again while something happens, and once afterwards: what came of it, and the longest wait.
pub(super) async fn during<T, E>(
    world: &World,
    number: usize,
    happens: impl Future<Output = Result<T, E>>,
) -> Result<(T, Wait), E> {
    let is_over = Cell::new(false);
    let pulses = world.rooms.iter().enumerate().map(|(room, _)| pulse(world, number, room, &is_over));
    let happens = async {
        let outcome = happens.await;
        is_over.set(true);
        outcome
    };
    let (outcome, outages) = tokio::join!(happens, futures::future::join_all(pulses));
    outcome.map(|outcome| (outcome, outages.into_iter().max().unwrap_or_default()))
}

async fn pulse(world: &World, fault: usize, room: usize, is_over: &Cell<bool>) -> Wait {
    let device = &world.people[0].devices[0];
    let mut longest = Wait::default();
    for number in 0_usize.. {
        let is_last = is_over.get();
        let body = Text::from(format!("pulse {number} of room {room} at fault {fault}"));
        let message = Message::new(device, &world.rooms[room].id, body, false);
        let operation = message.insist(world).await;
        longest = longest.max(Wait::of(&operation));
        message.note(world, operation);
        if is_last {
            break;
        }
        tokio::time::sleep(PULSE).await;
    }
    longest
}
