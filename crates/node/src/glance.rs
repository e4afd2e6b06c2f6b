//! The whole cluster at one glance: what the store says of it, what each process says of itself, what is wrong, and what to
//! do about it.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use cofactor_entity::Survey;
use cofactor_shard::Role;
use cofactor_store::{Store, StoreError};
use cofactor_types::{Clock, NodeId, limits};
use cofactor_wire::{
    self as wire,
    node::{Call, Target, Transport},
    status::{Latency, NodeStatus},
};
use futures::future::join_all;
use serde::{Deserialize, Serialize};

/// How long a process may take to say how it is doing.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// Beyond this, an append or the way over the bus is slow, in milliseconds: people notice.
const SLOW_MS: f64 = 500.0;

/// Beyond this, `/sync` is behind, in milliseconds.
const LAG_MS_MAX: u64 = 3_000;

/// From this many waiting commands on a room or user is hot.
const HOT_QUEUE: u64 = limits::MAILBOX_MAX as u64 / 4;

/// The cluster at one moment.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Glance {
    /// The name of the homeserver.
    pub server_name: String,
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Shards of the cluster.
    pub shards: u32,
    /// Shards whose owner is a member with a lease.
    pub shards_owned: u32,
    /// The processes, by name.
    pub nodes: Vec<NodeGlance>,
    /// What is wrong. Empty: nothing.
    pub wrong: Vec<Finding>,
}

/// A process.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct NodeGlance {
    /// Its id, which it has until it ends.
    pub node: String,
    /// Its name.
    pub name: String,
    /// Where the others call it; empty if nobody can.
    pub address: String,
    /// What it does.
    pub roles: Vec<String>,
    /// It is about to go.
    pub draining: bool,
    /// Shards that are its own by the store's rows.
    pub shards: u32,
    /// The highest epoch of these.
    pub epoch_max: u64,
    /// Whether its lease stands by the store's row.
    pub has_lease: bool,
    /// When that ends by this machine's clock, in milliseconds from now.
    pub lease_ends_in_ms: i64,
    /// What it says of itself.
    pub status: Option<NodeStatus>,
    /// Why it says nothing.
    pub silence: Option<String>,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What.
    pub what: String,
    /// What to do.
    pub todo: String,
}

/// Where a glance is taken from.
#[derive(Debug)]
pub(crate) struct Lookout<'a> {
    pub(crate) server_name: &'a str,
    pub(crate) shard_count: u32,
    pub(crate) store: &'a dyn Store,
    pub(crate) transport: Option<&'a Arc<dyn Transport>>,
    pub(crate) clock: &'a dyn Clock,
    /// The process that looks, if it is a member: nobody need call it.
    pub(crate) here: Option<(NodeId, NodeStatus)>,
}

impl Lookout<'_> {
    /// Looks.
    ///
    /// # Errors
    /// If the store cannot be read. A process that does not answer is a finding, no error.
    pub(crate) async fn look(&self) -> Result<Glance, StoreError> {
        let survey = Survey::read(self.store, self.shard_count).await?;
        let answers = join_all(survey.members.iter().map(|member| self.ask(member.node, &member.address))).await;
        let now_us = self.clock.now_us();
        let mut owned: BTreeMap<NodeId, (u32, u64)> = BTreeMap::new();
        for (_, epoch, node) in &survey.shards {
            let Some(node) = node else { continue };
            let entry = owned.entry(*node).or_default();
            *entry = (entry.0 + 1, entry.1.max(epoch.0));
        }
        let node = |(member, answer): (&cofactor_entity::MemberSeen, Result<NodeStatus, String>)| {
            let (shards, epoch_max) = owned.get(&member.node).copied().unwrap_or_default();
            let (has_lease, end) = member.lease.unwrap_or_default();
            NodeGlance {
                node: member.node.to_string(),
                name: member.name.clone(),
                address: member.address.clone(),
                roles: member.roles.iter().map(|role| role.as_str().to_owned()).collect(),
                draining: member.draining,
                shards,
                epoch_max,
                has_lease,
                lease_ends_in_ms: (end.0 as i64 - now_us as i64) / 1_000,
                silence: answer.as_ref().err().cloned(),
                status: answer.ok(),
            }
        };
        let mut nodes: Vec<NodeGlance> = survey.members.iter().zip(answers).map(node).collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let shards_owned = nodes.iter().filter(|node| node.has_lease).map(|node| node.shards).sum();
        let mut glance = Glance {
            server_name: self.server_name.to_owned(),
            at_ms: now_us / 1_000,
            shards: self.shard_count,
            shards_owned,
            nodes,
            wrong: Vec::new(),
        };
        glance.wrong = glance.judge();
        Ok(glance)
    }

    async fn ask(&self, node: NodeId, address: &str) -> Result<NodeStatus, String> {
        match (&self.here, self.transport) {
            (Some((here, status)), _) if *here == node => Ok(status.clone()),
            (_, Some(transport)) if !address.is_empty() => {
                let call = Call { target: Target::Status, frame: Bytes::new(), timeout: ANSWER_MAX, trace: None };
                let answer = transport.call(address, call).await;
                answer.and_then(|frame| wire::decode(&frame)).map_err(|fault| fault.message.into_owned())
            }
            _ => Err("it cannot be called".to_owned()),
        }
    }
}

fn finding(what: impl Into<String>, todo: impl Into<String>) -> Finding {
    Finding { what: what.into(), todo: todo.into() }
}

impl Glance {
    /// What is wrong with it.
    fn judge(&self) -> Vec<Finding> {
        let mut wrong = Vec::new();
        let missing = self.shards.saturating_sub(self.shards_owned);
        if missing > 0 {
            wrong.push(finding(
                format!("{missing} of {} shards have no owner: their rooms and users do not answer", self.shards),
                "wait for the length of a lease; if it stays so, start a worker and look at its log",
            ));
        }
        for role in Role::ALL {
            let takes = |node: &NodeGlance| !node.draining && node.roles.iter().any(|word| word == role.as_str());
            if !self.nodes.iter().any(takes) {
                wrong.push(finding(
                    format!("no process has the role {}", role.as_str()),
                    format!("start one: cofactor serve --role {}", role.as_str()),
                ));
            }
        }
        for (index, node) in self.nodes.iter().enumerate() {
            if self.nodes[..index].iter().any(|other| other.name == node.name && other.has_lease && node.has_lease) {
                wrong.push(finding(
                    format!("two processes are called {}", node.name),
                    "if one of them has ended, wait for the length of a lease; otherwise give one another name (--name)",
                ));
            }
            node.judge(&mut wrong);
        }
        let mut versions: Vec<&str> =
            self.nodes.iter().filter_map(|node| node.status.as_ref()).map(|status| status.version.as_str()).collect();
        versions.sort_unstable();
        versions.dedup();
        if versions.len() > 1 {
            wrong.push(finding(
                format!("processes of different releases run together: {}", versions.join(", ")),
                "finish the upgrade: restart the older ones",
            ));
        }
        wrong
    }
}

impl NodeGlance {
    fn judge(&self, wrong: &mut Vec<Finding>) {
        let name = &self.name;
        let Some(status) = &self.status else {
            // Guests, such as `cofactor user create`, cannot be called and own nothing.
            if !self.address.is_empty() || self.shards > 0 {
                let why = self.silence.as_deref().unwrap_or("no answer");
                wrong.push(finding(
                    format!("{name} does not say how it is: {why}"),
                    "look whether the process runs and at its log; if it has died, the others take over when its lease ends",
                ));
            }
            return;
        };
        if !status.is_ready && !self.draining {
            wrong.push(finding(format!("{name} is not ready"), "wait; if it stays so, look at its log"));
        }
        if status.lease_remaining_ms == 0 {
            wrong.push(finding(
                format!("{name} could not renew its lease: it answers for none of its shards"),
                "look at the store, which may be slow or away, and at the log of the process",
            ));
        }
        let slow = |latency: &Option<Latency>| latency.filter(|one| one.p99_ms > SLOW_MS);
        if let Some(append) = slow(&status.append) {
            wrong.push(finding(
                format!("{name}: the store is slow, 1 of 100 appends takes {:.0} ms or more", append.p99_ms),
                "look at the disks and the load of the store's machines",
            ));
        }
        if let Some(bus) = slow(&status.bus) {
            wrong.push(finding(
                format!("{name} hears of 1 in 100 changes only after {:.0} ms or more", bus.p99_ms),
                "look at Redis and the network, and whether the clocks of the machines agree",
            ));
        }
        match status.sync.map(|sync| sync.lag_ms) {
            Some(None) => wrong.push(finding(
                format!("{name} has not heard of every shard yet: its /sync waits"),
                "see whether all shards have owners, and whether Redis can be reached from everywhere",
            )),
            Some(Some(lag_ms)) if lag_ms > LAG_MS_MAX => wrong.push(finding(
                format!("{name}: /sync is {:.1} s behind", lag_ms as f64 / 1e3),
                "see whether a worker stands still, and whether Redis can be reached from everywhere",
            )),
            _ => {}
        }
        for (id, queued) in status.rooms.busiest.iter().chain(&status.users.busiest) {
            if *queued >= HOT_QUEUE {
                wrong.push(finding(
                    format!("{name}: {queued} commands wait for {id}"),
                    "beyond 1,000 clients are told to try again; look at the store's latency, then at who sends there",
                ));
            }
        }
    }
}

impl fmt::Display for Glance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} of {} shards owned", self.server_name, self.shards_owned, self.shards)?;
        for row in table(self) {
            writeln!(f, "{}", row.trim_end())?;
        }
        let hot = hot(self);
        if !hot.is_empty() {
            writeln!(f, "busiest: {}", hot.join(", "))?;
        }
        if self.wrong.is_empty() {
            return writeln!(f, "all is well");
        }
        for Finding { what, todo } in &self.wrong {
            writeln!(f, "WRONG {what}\n      {todo}")?;
        }
        Ok(())
    }
}

/// The columns of [`cells`].
pub(crate) const COLUMNS: [&str; 12] = [
    "process",
    "roles",
    "state",
    "shards",
    "epoch",
    "lease",
    "rooms",
    "users",
    "syncs",
    "append p50/p99",
    "bus p50/p99",
    "lag",
];

/// What a glance shows of a process.
pub(crate) fn cells(node: &NodeGlance) -> [String; COLUMNS.len()] {
    let none = String::new;
    let ms =
        |latency: Option<Latency>| latency.map_or_else(none, |one| format!("{:.1}/{:.1} ms", one.p50_ms, one.p99_ms));
    let state = match (&node.status, node.draining) {
        (None, _) => "silent",
        (Some(_), true) => "leaving",
        (Some(status), _) if status.is_ready => "ready",
        (Some(_), _) => "starting",
    };
    let lease = match node.has_lease {
        true => format!("{:.1} s", node.lease_ends_in_ms as f64 / 1e3),
        false => "over".to_owned(),
    };
    let status = node.status.as_ref();
    let sync = status.and_then(|status| status.sync);
    [
        node.name.clone(),
        node.roles.join(","),
        state.to_owned(),
        node.shards.to_string(),
        node.epoch_max.to_string(),
        lease,
        status.map_or_else(none, |status| status.rooms.live.to_string()),
        status.map_or_else(none, |status| status.users.live.to_string()),
        sync.map_or_else(none, |sync| sync.waiting.to_string()),
        ms(status.and_then(|status| status.append)),
        ms(status.and_then(|status| status.bus)),
        sync.map_or_else(none, |sync| sync.lag_ms.map_or_else(|| "?".to_owned(), |lag_ms| format!("{lag_ms} ms"))),
    ]
}

/// The busiest rooms and users of all processes.
pub(crate) fn hot(glance: &Glance) -> Vec<String> {
    let statuses = glance.nodes.iter().filter_map(|node| node.status.as_ref());
    let mut all: Vec<&(String, u64)> =
        statuses.flat_map(|status| status.rooms.busiest.iter().chain(&status.users.busiest)).collect();
    all.sort_by_key(|(_, queued)| std::cmp::Reverse(*queued));
    all.iter().take(5).map(|(id, queued)| format!("{id} ({queued})")).collect()
}

/// The lines of a table whose columns are as wide as they must be.
fn table(glance: &Glance) -> Vec<String> {
    let header = COLUMNS.map(str::to_owned);
    let rows: Vec<[String; COLUMNS.len()]> = std::iter::once(header).chain(glance.nodes.iter().map(cells)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..COLUMNS.len()).map(width).collect();
    let line = |row: &[String; COLUMNS.len()]| -> String {
        row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}  ")).collect()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use cofactor_wire::status::{KindStatus, SyncStatus};

    use super::*;

    fn node(name: &str, shards: u32) -> NodeGlance {
        let status = NodeStatus {
            version: "1".into(),
            is_ready: true,
            lease_remaining_ms: 4_000,
            sync: Some(SyncStatus { lag_ms: Some(120), ..SyncStatus::default() }),
            ..NodeStatus::default()
        };
        let roles = Role::ALL.map(|role| role.as_str().to_owned()).to_vec();
        NodeGlance {
            name: name.into(),
            address: format!("{name}:1"),
            roles,
            shards,
            has_lease: true,
            lease_ends_in_ms: 5_000,
            status: Some(status),
            ..NodeGlance::default()
        }
    }

    fn glance(nodes: Vec<NodeGlance>) -> Glance {
        let shards_owned = nodes.iter().filter(|node| node.has_lease).map(|node| node.shards).sum();
        Glance { server_name: "x".into(), shards: 10, shards_owned, nodes, ..Glance::default() }
    }

    /// The one thing that is wrong after a change of a cluster where nothing was.
    fn the_wrong(change: impl FnOnce(&mut NodeGlance)) -> String {
        let mut nodes = vec![node("a", 5), node("b", 5)];
        assert_eq!(glance(nodes.clone()).judge(), []);
        change(&mut nodes[1]);
        let wrong = glance(nodes).judge();
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        wrong[0].what.clone()
    }

    fn status(node: &mut NodeGlance) -> &mut NodeStatus {
        node.status.as_mut().unwrap()
    }

    #[test]
    fn each_thing_that_is_wrong_is_told_once_with_the_process() {
        assert!(the_wrong(|b| b.shards = 3).contains("2 of 10 shards"));
        assert!(the_wrong(|b| b.name = "a".into()).contains("two processes are called a"));
        assert!(the_wrong(|b| status(b).lease_remaining_ms = 0).contains("b could not renew"));
        assert!(the_wrong(|b| status(b).is_ready = false).contains("b is not ready"));
        assert!(the_wrong(|b| status(b).version = "2".into()).contains("different releases"));
        let slow = Some(Latency { p50_ms: 1.0, p99_ms: 900.0 });
        assert!(the_wrong(|b| status(b).append = slow).contains("900 ms"));
        assert!(the_wrong(|b| status(b).bus = slow).contains("b hears"));
        let behind = Some(SyncStatus { lag_ms: Some(9_000), ..SyncStatus::default() });
        assert!(the_wrong(|b| status(b).sync = behind).contains("9.0 s behind"));
        assert!(the_wrong(|b| status(b).sync = Some(SyncStatus::default())).contains("every shard"));
        let hot = KindStatus { busiest: vec![("!hot:x".into(), 800), ("!cool:x".into(), 8)], ..KindStatus::default() };
        assert!(the_wrong(|b| status(b).rooms = hot).contains("800 commands wait for !hot:x"));
        let silent = |b: &mut NodeGlance| (b.status, b.silence) = (None, Some("refused".into()));
        assert!(the_wrong(silent).contains("refused"));
    }

    #[test]
    fn a_guest_that_cannot_be_called_is_nothing_wrong() {
        let guest = NodeGlance { name: "guest".into(), has_lease: true, ..NodeGlance::default() };
        assert_eq!(glance(vec![node("a", 10), guest]).judge(), []);
    }

    #[test]
    fn a_cluster_without_workers_lacks_owners_and_the_role() {
        let mut lonely = node("a", 0);
        lonely.roles = vec!["frontend".into(), "sync".into()];
        let wrong = glance(vec![lonely]).judge();
        assert!(wrong.iter().any(|one| one.what.contains("10 of 10")), "{wrong:?}");
        assert!(wrong.iter().any(|one| one.what.contains("role worker")), "{wrong:?}");
    }

    #[test]
    fn the_text_has_a_line_for_each_process_and_says_that_all_is_well() {
        let text = glance(vec![node("a", 5), node("longer-name", 5)]).to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "x: 10 of 10 shards owned");
        assert_eq!(lines.len(), 5, "{text}");
        assert!(lines[1].starts_with("process"), "{text}");
        assert_eq!(lines[2].find("ready"), lines[3].find("ready"), "columns stand below one another\n{text}");
        assert_eq!(lines[4], "all is well");
    }
}
