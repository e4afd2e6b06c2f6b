//! What the store says of the cluster: for operators, who may ask whether or not any node answers.

use cofactor_shard::Role;
use cofactor_store::{Key, Scan, Store, StoreError, key, record, tables};
use cofactor_types::{Epoch, NodeId, Position, ShardId};
use futures::{StreamExt, TryStreamExt, stream};

use crate::{
    keeper::{CLUSTER, MemberRow},
    lease::Lease,
    takeover::{self, ShardRow},
};

/// Partitions read at the same time.
const READS_AT_ONCE: usize = 16;

/// A node that is a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberSeen {
    /// The process.
    pub node: NodeId,
    /// The name that stays when the process is restarted.
    pub name: String,
    /// Where it takes calls; empty if nobody can call it.
    pub address: String,
    /// What it does.
    pub roles: Vec<Role>,
    /// It is about to go.
    pub draining: bool,
    /// Whether its lease stands, and up to where; `None` if it has none.
    pub lease: Option<(bool, Position)>,
}

/// The rows of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// The members, by node.
    pub members: Vec<MemberSeen>,
    /// The shards that were ever owned: epoch, and the owner unless it was released.
    pub shards: Vec<(ShardId, Epoch, Option<NodeId>)>,
}

impl Survey {
    /// Reads the rows, one after the other: they may belong to different moments.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn read(store: &dyn Store, shard_count: u32) -> Result<Self, StoreError> {
        let rows = store.scan(Scan::new(&tables::MEMBERS, key![CLUSTER], Key::EMPTY, usize::MAX)).await?;
        let mut members = Vec::with_capacity(rows.len());
        for row in rows {
            let node = NodeId(row.clustering.number(0));
            let said: MemberRow = record::decode(&row.value)?;
            members.push(MemberSeen {
                node,
                name: said.name,
                address: said.address,
                roles: said.roles.iter().filter_map(|word| Role::parse(word)).collect(),
                draining: said.draining,
                lease: Lease::read(store, node).await?.map(|seen| (seen.row.alive, seen.row.end)),
            });
        }
        let last = takeover::slice(ShardId(shard_count.saturating_sub(1)));
        let slices = stream::iter(0..=last).map(|slice| async move {
            let rows = store.scan(Scan::new(&tables::SHARDS, key![slice], Key::EMPTY, usize::MAX)).await?;
            let shard = |row: cofactor_store::Row| {
                let said: ShardRow = record::decode(&row.value)?;
                let number = u32::try_from(row.clustering.number(0)).unwrap_or(u32::MAX);
                Ok((ShardId(number), said.epoch, said.node))
            };
            rows.into_iter().map(shard).collect::<Result<Vec<_>, StoreError>>()
        });
        let shards: Vec<Vec<_>> = slices.buffered(READS_AT_ONCE).try_collect().await?;
        Ok(Self { members, shards: shards.into_iter().flatten().collect() })
    }
}
