//! The latest events, known without a read.

use std::collections::{HashMap, VecDeque};

use cofactor_room::Relation;
use cofactor_types::Position;
use cofactor_wire::room::{EventRecord, InThread, Totals};
use ruma::{OwnedEventId, OwnedUserId};

/// Recent events that are kept.
const RECENT_MAX: usize = 256;

/// What is asked of an event that others speak of.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) position: Position,
    pub(crate) totals: Totals,
    pub(crate) main: Totals,
    pub(crate) thread: Option<InThread>,
    pub(crate) sender: OwnedUserId,
    pub(crate) event_type: String,
    pub(crate) is_state: bool,
    pub(crate) rel_type: Option<String>,
}

impl Known {
    pub(crate) fn of(event: &EventRecord, position: Position) -> Self {
        Self {
            position,
            totals: event.totals,
            main: event.main,
            thread: event.thread.clone(),
            sender: event.sender.clone(),
            event_type: event.event_type.clone(),
            is_state: event.state_key.is_some(),
            rel_type: Relation::of_event(&event.json).map(|relation| relation.rel_type),
        }
    }
}

/// The latest events.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    events: HashMap<OwnedEventId, Known>,
    order: VecDeque<OwnedEventId>,
}

impl Recent {
    pub(crate) fn get(&self, event_id: &OwnedEventId) -> Option<&Known> {
        self.events.get(event_id)
    }

    pub(crate) fn note(&mut self, event: &EventRecord, position: Position) {
        self.events.insert(event.event_id.clone(), Known::of(event, position));
        self.order.push_back(event.event_id.clone());
        if self.order.len() > RECENT_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.events.remove(&oldest);
        }
    }
}
