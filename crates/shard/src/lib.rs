//! Entity to shard to owner, a pure function of a membership view.
//!
//! Every node computes the same owners from the same members, by rendezvous hashing over the members' stable names: a
//! member that comes or goes moves its own share of the shards and no other, and a member that comes back under its name
//! gets back what it had.
//!
//! Invariants: the assignment only says who should own a shard; who does is what the store's rows say.

use std::{cmp::Reverse, collections::BTreeMap};

use cofactor_types::{NodeId, ShardId};

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// HTTP.
    Frontend,
    /// Actors of rooms and users.
    Worker,
    /// Long-polls.
    Sync,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Frontend, Self::Worker, Self::Sync];

    /// The word in configurations and rows.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Frontend => "frontend",
            Self::Worker => "worker",
            Self::Sync => "sync",
        }
    }

    /// The role of a word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == word)
    }
}

/// A node as the others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The process.
    pub node: NodeId,
    /// The name that stays when the process is restarted.
    pub name: String,
    /// Where it takes calls: host and port.
    pub address: String,
    /// What it does.
    pub roles: Vec<Role>,
    /// It is about to go, and takes nothing more.
    pub draining: bool,
}

impl Member {
    fn takes(&self, role: Role) -> bool {
        !self.draining && self.roles.contains(&role)
    }
}

/// The members at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    members: BTreeMap<NodeId, Member>,
}

impl View {
    /// The view of `members`.
    pub fn new(members: impl IntoIterator<Item = Member>) -> Self {
        Self { members: members.into_iter().map(|member| (member.node, member)).collect() }
    }

    /// A member.
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        self.members.get(&node)
    }

    /// All members, by node.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// Who should own `shard`; `None` if nobody works.
    pub fn owner(&self, shard: ShardId) -> Option<&Member> {
        self.choose(Role::Worker, u64::from(shard.0))
    }

    /// Who should serve the long-polls of the user with this stable hash, and who next if that one cannot.
    pub fn sync_workers(&self, user_hash: u64) -> Vec<&Member> {
        let mut workers: Vec<_> = self.members.values().filter(|member| member.takes(Role::Sync)).collect();
        workers.sort_by_key(|member| Reverse((weight(&member.name, user_hash), member.node)));
        workers
    }

    fn choose(&self, role: Role, key: u64) -> Option<&Member> {
        let candidates = self.members.values().filter(|member| member.takes(role));
        candidates.max_by_key(|member| (weight(&member.name, key), member.node))
    }
}

/// The weight of a name for a key: FNV-1a over the name, then the finaliser of SplitMix64 over both. It must be the same on
/// every node and release; it need not withstand an attacker, who chooses neither names nor shards.
fn weight(name: &str, key: u64) -> u64 {
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let mut mixed = hash ^ key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARDS: u32 = 1024;

    fn worker(number: u64) -> Member {
        Member {
            node: NodeId(number),
            name: format!("worker-{number}"),
            address: format!("127.0.0.1:{number}"),
            roles: vec![Role::Worker],
            draining: false,
        }
    }

    fn owners(view: &View) -> Vec<Option<NodeId>> {
        (0..SHARDS).map(|shard| view.owner(ShardId(shard)).map(|member| member.node)).collect()
    }

    #[test]
    fn a_fourth_worker_takes_about_a_quarter_and_nothing_else_moves() {
        let three = owners(&View::new((1..=3).map(worker)));
        let four = owners(&View::new((1..=4).map(worker)));
        let moved: Vec<_> = three.iter().zip(&four).filter(|(before, after)| before != after).collect();
        assert!(moved.iter().all(|(_, after)| **after == Some(NodeId(4))));
        assert!((SHARDS as usize / 5..SHARDS as usize / 3).contains(&moved.len()), "{} moved", moved.len());
    }

    #[test]
    fn a_worker_that_comes_back_under_its_name_gets_what_it_had() {
        let before = owners(&View::new((1..=3).map(worker)));
        let back = Member { node: NodeId(9), ..worker(2) };
        let after = owners(&View::new([worker(1), back, worker(3)]));
        for (before, after) in before.iter().zip(after) {
            assert_eq!(if *before == Some(NodeId(2)) { Some(NodeId(9)) } else { *before }, after);
        }
    }

    #[test]
    fn who_drains_or_does_not_work_owns_nothing() {
        let draining = Member { draining: true, ..worker(1) };
        let frontend = Member { roles: vec![Role::Frontend], ..worker(2) };
        let view = View::new([draining, frontend, worker(3)]);
        assert!(owners(&view).iter().all(|owner| *owner == Some(NodeId(3))));
        assert!(view.sync_workers(1).is_empty());
        assert!(owners(&View::default()).iter().all(Option::is_none));
    }

    #[test]
    fn the_assignment_never_changes_between_releases() {
        let view = View::new((1..=3).map(worker));
        let first: Vec<_> = owners(&view).into_iter().take(8).flatten().map(|node| node.0).collect();
        assert_eq!(first, FIRST_EIGHT);
    }

    /// Nodes of two releases must agree.
    const FIRST_EIGHT: [u64; 8] = [1, 1, 2, 2, 2, 2, 2, 1];
}
