//! Messages into rooms of growing size while nobody syncs: what a send costs, how many a second there can be, how
//! long they take, and whether each arrives at every member.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use async_trait::async_trait;

use super::{Case, Context, FloorOf, Plan, Sample, Scenario, add_open, cost_of};
use crate::check::{Ledger, Reader, verify};
use crate::load::{Operation, operation};
use crate::matrix::{Homeserver, Session};
use crate::world::{Room, World};

/// A fresh scenario.
#[must_use]
pub fn make() -> Box<dyn Scenario> {
    Box::new(Send::default())
}

#[derive(Default)]
struct Send {
    rooms: BTreeMap<u64, (Room, Vec<Reader>)>,
}

#[async_trait(?Send)]
impl Scenario for Send {
    fn cases(&self, plan: &Plan) -> Vec<Case> {
        let case = |in_flight: usize, size: u64| Case {
            series: format!("send, {in_flight} in flight"),
            variable: "members",
            size,
            in_flight,
            floor: FloorOf::Send,
        };
        plan.in_flight.iter().flat_map(|n| plan.members.iter().map(move |size| case(*n, *size))).collect()
    }

    async fn prepare(&mut self, world: &mut World, case: &Case, context: &Context) -> Result<()> {
        if self.rooms.contains_key(&case.size) {
            return Ok(());
        }
        let members = usize::try_from(case.size)?;
        let room = world.room(&format!("room-{members}"), members, &context.progress).await?;
        let users = world.users(members, &context.progress).await?;
        let checked = spread(users, context.plan.check_members);
        let server = Arc::clone(&world.server);
        let readers = Reader::start(&server, &checked, &room.id).await?;
        self.rooms.insert(case.size, (room, readers));
        Ok(())
    }

    async fn measure(&mut self, world: &mut World, case: &Case, context: &Context, round: u32) -> Result<Sample> {
        let plan = &context.plan;
        let (room, readers) = self.rooms.get_mut(&case.size).context("the case was not prepared")?;
        let sender = world.users(1, &context.progress).await?[0].clone();
        let ledger = Ledger::new(&format!("{}-{}-{}-{round}", plan.run, case.size, case.in_flight));
        let work = sending(&world.server, &ledger, &sender, &room.id);
        let mut sample = cost_of(&world.target, case.in_flight, plan, &work).await?;
        add_open(&mut sample, plan, round, &work).await?;
        if !readers.is_empty() {
            sample.findings = Some(
                verify(&world.server, &room.id, &ledger, readers, plan.patience, plan.check_deliveries_max).await?,
            );
        }
        Ok(sample)
    }
}

/// An operation that sends one event to a room and keeps it in a ledger. Numbers run on over everything that is done
/// with it: each is one event.
pub(super) fn sending(server: &Arc<Homeserver>, ledger: &Arc<Ledger>, sender: &Session, room_id: &str) -> Operation {
    let next = Arc::new(AtomicU64::new(0));
    let (server, ledger, sender) = (Arc::clone(server), Arc::clone(ledger), sender.clone());
    let room_id = room_id.to_owned();
    operation(move |_| {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let (server, ledger, sender) = (Arc::clone(&server), Arc::clone(&ledger), sender.clone());
        let room_id = room_id.clone();
        async move { ledger.send(&server, &sender, &room_id, number).await }
    })
}

/// At most `count` of some things, evenly spread, with the first and the last.
pub(super) fn spread<T: Clone>(all: &[T], count: usize) -> Vec<T> {
    if count >= all.len() {
        return all.to_vec();
    }
    let last = all.len() - 1;
    (0..count).map(|at| all[at * last / count.saturating_sub(1).max(1)].clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checked_members_are_spread_over_all() {
        let all: Vec<u32> = (0..100).collect();
        assert_eq!(spread(&all, 200), all);
        assert_eq!(spread(&all, 0), Vec::<u32>::new());
        assert_eq!(spread(&all, 1), [0]);
        assert_eq!(spread(&all, 3), [0, 49, 99]);
    }
}
