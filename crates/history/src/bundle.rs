//! What is served with an event about its children.
//! <https://spec.matrix.org/v1.19/client-server-api/#aggregations-of-child-events>

use std::collections::BTreeMap;

use cofactor_types::{Fault, Position};
use cofactor_wire::relation::Aggregate;
use ruma::{OwnedEventId, RoomId, UserId};

use crate::{History, Placed, Viewpoint};

/// What the children of one event say, as one reader may see it.
#[derive(Clone, Debug, Default)]
pub struct Bundle {
    /// The latest edit.
    pub edit: Option<Placed>,
    /// The thread of which the event is the root.
    pub thread: Option<ThreadBundle>,
    /// Events that refer to it.
    pub references: Vec<OwnedEventId>,
}

/// A thread, as it is served with its root.
#[derive(Clone, Debug)]
pub struct ThreadBundle {
    /// The latest reply.
    pub latest: Placed,
    /// Replies.
    pub count: u64,
    /// Whether the reader began the thread or replied in it.
    pub participated: bool,
}

/// Bundles by where their events stand.
#[derive(Clone, Debug, Default)]
pub struct Bundles {
    by_position: BTreeMap<Position, Bundle>,
}

impl Bundles {
    /// The bundle of the event at `position`.
    pub fn get(&self, position: Position) -> Option<&Bundle> {
        self.by_position.get(&position)
    }
}

impl Bundle {
    fn is_empty(&self) -> bool {
        self.edit.is_none() && self.thread.is_none() && self.references.is_empty()
    }
}

impl History {
    /// What `user_id`, who sees the room from `view`, gets with `events`. Without children it costs one read. `None` for the
    /// view: it is looked up if need be.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn bundles(
        &self,
        room_id: &RoomId,
        user_id: &UserId,
        view: Option<&Viewpoint>,
        events: &[Placed],
    ) -> Result<Bundles, Fault> {
        let mut bundles = Bundles::default();
        let positions = || events.iter().map(|placed| placed.position);
        let (Some(first), Some(last)) = (positions().min(), positions().max()) else { return Ok(bundles) };
        let aggregates = self.aggregates(room_id, first, last).await?;
        if !events.iter().any(|placed| aggregates.contains_key(&placed.position)) {
            return Ok(bundles);
        }
        let found;
        let view = match view {
            Some(view) => view,
            None => {
                found = self.viewpoint(room_id, user_id).await?;
                &found
            }
        };
        for placed in events {
            // What was redacted is served without what was said of it.
            let Some(aggregate) = aggregates.get(&placed.position).filter(|_| !placed.event.is_redacted()) else {
                continue;
            };
            let bundle = self.bundle(room_id, user_id, view, placed, aggregate).await?;
            if let Some(thread) = &bundle.thread {
                // The latest reply comes with its own edit.
                let latest = thread.latest.position;
                if let Some(aggregate) = self.aggregates(room_id, latest, latest).await?.get(&latest) {
                    let own = self.bundle(room_id, user_id, view, &thread.latest, aggregate).await?;
                    bundles.by_position.insert(latest, own);
                }
            }
            if !bundle.is_empty() {
                bundles.by_position.insert(placed.position, bundle);
            }
        }
        Ok(bundles)
    }

    async fn bundle(
        &self,
        room_id: &RoomId,
        user_id: &UserId,
        view: &Viewpoint,
        parent: &Placed,
        aggregate: &Aggregate,
    ) -> Result<Bundle, Fault> {
        let visible = async |position: Position| {
            let found = self.at(room_id, position).await?;
            Ok::<_, Fault>(found.filter(|placed| view.sees(placed.position, &placed.event)))
        };
        let mut bundle = Bundle::default();
        if let Some(edit) = &aggregate.edit {
            bundle.edit = visible(edit.position).await?;
        }
        if let Some(thread) = aggregate.thread.filter(|thread| thread.count > 0)
            && let Some(latest) = visible(thread.latest).await?
        {
            let participated =
                parent.event.sender == user_id || self.took_part(room_id, user_id, parent.position).await?;
            bundle.thread = Some(ThreadBundle { latest, count: thread.count, participated });
        }
        for reference in &aggregate.references {
            bundle.references.extend(visible(reference.position).await?.map(|placed| placed.event.event_id.clone()));
        }
        Ok(bundle)
    }
}
