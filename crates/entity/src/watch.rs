//! Looks who is there.

use std::collections::HashMap;

use cofactor_shard::{Member, Role, View};
use cofactor_store::{Durability, Key, Scan, StoreError, key, record, tables};
use cofactor_types::NodeId;

use crate::{
    Env,
    keeper::{BEATS_A_LEASE, CLUSTER, MemberRow, member},
    lease::Lease,
};

/// The longest pause, in microseconds, after which another node tries again to reach a store that was away.
const RECONNECT_MAX_US: u64 = 12_000_000;

/// When another node was last seen to move.
#[derive(Debug)]
struct Seen {
    beat: u64,
    since_us: u64,
}

/// Looks who is there.
#[derive(Debug)]
pub(crate) struct Watch {
    env: Env,
    length_us: u64,
    seen: HashMap<NodeId, Seen>,
    /// Since when the store has not answered.
    away_since_us: Option<u64>,
    /// The silence of who was not heard since the store was away does not count before this.
    patient_until_us: u64,
}

impl Watch {
    pub(crate) fn new(env: Env, length_us: u64) -> Self {
        Self { env, length_us, seen: HashMap::new(), away_since_us: None, patient_until_us: 0 }
    }

    /// Reads the members, and ends the leases of those who have not moved for a whole length.
    pub(crate) async fn look(&mut self) -> Result<(), StoreError> {
        // Before the rows are read: if this process stands still while it reads them, that is nobody else's silence.
        let now_us = self.env.clock().steady_us();
        let rows = self.env.store().scan(Scan::new(&tables::MEMBERS, key![CLUSTER], Key::EMPTY, usize::MAX)).await;
        let took_us = self.env.clock().steady_us().saturating_sub(now_us);
        if rows.is_err() || took_us > self.length_us / u64::from(BEATS_A_LEASE) {
            // While the store does not answer nobody can say that it lives: whoever is silent then is given a whole lease.
            self.seen.clear();
        }
        match (&rows, self.away_since_us) {
            (Err(_), None) => self.away_since_us = Some(now_us),
            (Err(_), Some(_)) | (Ok(_), None) => {}
            (Ok(_), Some(since_us)) => {
                // Others may find it later than this node: who tries again and again pauses as long as it has tried already.
                self.away_since_us = None;
                self.patient_until_us = now_us + now_us.saturating_sub(since_us).min(RECONNECT_MAX_US);
            }
        }
        let rows = rows?;
        let me = self.env.ownership().node();
        let mut members = Vec::with_capacity(rows.len());
        for row in rows {
            let node = NodeId(row.clustering.number(0));
            let said: MemberRow = record::decode(&row.value)?;
            if node != me && self.is_silent(node, said.beat, now_us) && self.bury(node).await? {
                continue;
            }
            members.push(Member {
                node,
                name: said.name,
                address: said.address,
                roles: said.roles.iter().filter_map(|word| Role::parse(word)).collect(),
                draining: said.draining,
            });
        }
        self.seen.retain(|node, _| members.iter().any(|member| member.node == *node));
        self.env.ownership().set_view(View::new(members));
        Ok(())
    }

    /// Whether a node's beat has stood still for the length of a lease. On a store that only this process can have open,
    /// every other node is a process that has ended.
    fn is_silent(&mut self, node: NodeId, beat: u64, now_us: u64) -> bool {
        if self.env.store().spans_partitions() {
            return true;
        }
        let patient_us = now_us.max(self.patient_until_us);
        let seen = self.seen.entry(node).or_insert(Seen { beat, since_us: patient_us });
        if seen.beat != beat {
            *seen = Seen { beat, since_us: now_us };
        }
        now_us.saturating_sub(seen.since_us) > self.length_us
    }

    /// Ends the lease of a silent node; says whether it is over.
    async fn bury(&mut self, node: NodeId) -> Result<bool, StoreError> {
        let store = self.env.store();
        let over = match Lease::read(&**store, node).await? {
            None => true,
            Some(seen) => !seen.row.alive || Lease::bury(&**store, node, &seen).await?.is_some(),
        };
        if over {
            metrics::counter!("cofactor_members_buried_total").increment(1);
            tracing::warn!(%node, "a node is gone; its shards pass on");
            store.write(vec![member(node, None)], Durability::Deferred).await?;
        } else {
            self.seen.remove(&node);
        }
        Ok(over)
    }
}
