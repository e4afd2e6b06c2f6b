//! What a local cluster consists of. It is kept in the folder of the cluster, so that each command finds it again.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// Where ports are looked for: below those that systems give to outgoing connections and those that `scripts/services`
/// choose from, so that a process that was killed finds its own free again.
const PORT_FIRST: u16 = 4_000;
const PORTS: u16 = 4_000;

/// The most processes of one role.
const PROCESSES_MAX: usize = 32;

/// A whole cluster.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The server that is run.
    pub(crate) binary: PathBuf,
    /// Whoever knows it may register.
    pub(crate) token: String,
    /// What the processes prove to one another.
    pub(crate) secret: String,
    /// The keyspace, and the prefix in Redis: new for each folder, for servers that are shared with others.
    pub(crate) keyspace: String,
    /// The CQL server, `HOST:PORT`; empty until it was started.
    pub(crate) cql: String,
    /// The container that the CQL server runs in, if it does.
    pub(crate) container: Option<String>,
    /// The Redis server, `HOST:PORT`; empty until it was started.
    pub(crate) redis: String,
    /// The processes: workers, sync workers, frontends; the order in which they start.
    pub(crate) nodes: Vec<Node>,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Node {
    /// `worker-1`.
    pub(crate) name: String,
    /// `worker`.
    pub(crate) role: String,
    /// Where it listens to clients, or to its operator only.
    pub(crate) http_port: u16,
    /// Where it listens to the other processes.
    pub(crate) call_port: u16,
}

/// How many processes of each role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) frontends: usize,
    pub(crate) workers: usize,
    pub(crate) syncs: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { frontends: 2, workers: 3, syncs: 2 }
    }
}

/// The folder of a cluster.
#[derive(Clone, Debug)]
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn plan(&self) -> PathBuf {
        self.0.join("cluster.json")
    }

    pub(crate) fn config(&self, node: &str) -> PathBuf {
        self.0.join(format!("config/{node}.toml"))
    }

    pub(crate) fn log(&self, node: &str) -> PathBuf {
        self.0.join(format!("logs/{node}.log"))
    }

    pub(crate) fn pid(&self, node: &str) -> PathBuf {
        self.0.join(format!("run/{node}.pid"))
    }

    pub(crate) fn service(&self, service: &str) -> PathBuf {
        self.0.join(service)
    }

    /// The cluster of this folder, if there ever was one.
    pub(crate) fn read(&self) -> Result<Option<Plan>> {
        if !self.plan().exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(self.plan()).with_context(|| format!("cannot read {}", self.plan().display()))?;
        let plan = serde_json::from_str(&text);
        plan.map(Some).with_context(|| format!("{} is not what it was: delete the folder", self.plan().display()))
    }

    /// Writes the plan, and the configuration of each process.
    pub(crate) fn write(&self, plan: &Plan) -> Result<()> {
        for folder in ["config", "logs", "run", "media", "data"] {
            fs::create_dir_all(self.0.join(folder))
                .with_context(|| format!("cannot make a folder in {}", self.0.display()))?;
        }
        fs::write(self.plan(), serde_json::to_string_pretty(plan)?).context("cannot write the plan")?;
        for node in &plan.nodes {
            fs::write(self.config(&node.name), plan.config(self, node)).context("cannot write a configuration")?;
        }
        Ok(())
    }
}

impl Plan {
    /// A cluster that never ran.
    pub(crate) fn new(binary: PathBuf) -> Result<Self> {
        Ok(Self {
            binary,
            token: random(8)?,
            secret: random(16)?,
            keyspace: format!("cofactor_{}", random(4)?),
            cql: String::new(),
            container: None,
            redis: String::new(),
            nodes: Vec::new(),
        })
    }

    /// Makes the processes as many as `sizes` says. Those that were there keep their ports, if these are still free.
    pub(crate) fn resize(&mut self, sizes: Sizes) -> Result<()> {
        let before = std::mem::take(&mut self.nodes);
        for (role, count) in [("worker", sizes.workers), ("sync", sizes.syncs), ("frontend", sizes.frontends)] {
            if !(1..=PROCESSES_MAX).contains(&count) {
                bail!("a cluster has 1 to {PROCESSES_MAX} processes of each role, not {count} of the role {role}");
            }
            for number in 1..=count {
                let name = format!("{role}-{number}");
                let known = before.iter().find(|node| node.name == name);
                match known.filter(|node| is_free(node.http_port) && is_free(node.call_port)) {
                    Some(node) => self.nodes.push(node.clone()),
                    None => self.add(role, number, &before)?,
                }
            }
        }
        Ok(())
    }

    /// One more worker; its name.
    pub(crate) fn add_worker(&mut self) -> Result<String> {
        let number = self.nodes.iter().filter(|node| node.role == "worker").count() + 1;
        self.add("worker", number, &[])?;
        Ok(format!("worker-{number}"))
    }

    fn add(&mut self, role: &str, number: usize, others: &[Node]) -> Result<()> {
        let taken: Vec<u16> =
            self.nodes.iter().chain(others).flat_map(|node| [node.http_port, node.call_port]).collect();
        let ports = free_ports(&taken)?;
        let [http_port, call_port] = ports;
        self.nodes.push(Node { name: format!("{role}-{number}"), role: role.to_owned(), http_port, call_port });
        Ok(())
    }

    /// The process of this name.
    pub(crate) fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|node| node.name == name).with_context(|| {
            let names: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
            format!("there is no process `{name}`: the cluster has {}", names.join(", "))
        })
    }

    /// Where clients find the frontends.
    pub(crate) fn urls(&self) -> String {
        let frontends = self.nodes.iter().filter(|node| node.role == "frontend");
        frontends.map(|node| format!("http://127.0.0.1:{}", node.http_port)).collect::<Vec<_>>().join(",")
    }

    fn config(&self, folder: &Folder, node: &Node) -> String {
        let Self { token, secret, keyspace, cql, redis, .. } = self;
        let Node { name, role, http_port, call_port } = node;
        let (data, media) = (folder.0.join("data"), folder.0.join("media"));
        format!(
            "server_name = \"localhost\"\ndata_dir = {data:?}\n\n\
             [http]\nlisten = [\"127.0.0.1:{http_port}\"]\nworkers = 2\n\n\
             [store]\nbackend = \"cql\"\n\n\
             [store.cql]\nnodes = [{cql:?}]\nkeyspace = {keyspace:?}\nreplication_factor = 1\n\n\
             [bus]\nbackend = \"redis\"\n\n\
             [bus.redis]\nurls = [\"redis://{redis}\"]\nprefix = {keyspace:?}\n\n\
             [cluster]\nroles = [{role:?}]\nname = {name:?}\nlisten = \"127.0.0.1:{call_port}\"\nsecret = {secret:?}\n\n\
             [admin]\npublic_metrics = true\n\n\
             [registration]\ntoken = {token:?}\n\n\
             [media]\ndir = {media:?}\n\n\
             [rate_limits]\nenabled = false\n"
        )
    }
}

/// As many random bytes, in hexadecimal.
fn random(bytes: usize) -> Result<String> {
    let mut buffer = vec![0; bytes];
    let mut source = fs::File::open("/dev/urandom").context("cannot open /dev/urandom")?;
    source.read_exact(&mut buffer).context("cannot read /dev/urandom")?;
    Ok(buffer.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}

/// Two ports that nobody listens on and that are not `taken`. Where the search begins differs from process to process, so
/// that two clusters that start at once seldom meet.
pub(crate) fn free_ports(taken: &[u16]) -> Result<[u16; 2]> {
    let start = std::process::id().wrapping_mul(64);
    let candidates = (0..u32::from(PORTS)).filter_map(|step| {
        let offset = u16::try_from(start.wrapping_add(step) % u32::from(PORTS)).ok()?;
        Some(PORT_FIRST + offset)
    });
    let mut free = candidates.filter(|port| !taken.contains(port) && is_free(*port));
    match (free.next(), free.next()) {
        (Some(first), Some(second)) => Ok([first, second]),
        _ => bail!("no free ports from {PORT_FIRST} on"),
    }
}

/// The absolute form of a folder that need not exist.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("{} is no path", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        let mut plan = Plan::new("cofactor".into()).unwrap();
        plan.resize(Sizes { frontends: 1, workers: 2, syncs: 1 }).unwrap();
        plan
    }

    #[test]
    fn every_process_has_ports_of_its_own_and_keeps_them() {
        let mut plan = plan();
        let before = plan.nodes.clone();
        let mut ports: Vec<u16> = before.iter().flat_map(|node| [node.http_port, node.call_port]).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 8);
        plan.resize(Sizes { frontends: 1, workers: 1, syncs: 1 }).unwrap();
        assert_eq!(plan.nodes.len(), 3);
        assert!(plan.nodes.iter().all(|node| before.contains(node)), "{plan:?}");
        assert_eq!(plan.add_worker().unwrap(), "worker-2");
        assert!(plan.resize(Sizes { frontends: 0, ..Sizes::default() }).is_err());
    }

    #[test]
    fn the_configuration_is_toml_and_names_role_store_and_bus() {
        let mut plan = plan();
        plan.cql = "127.0.0.1:9042".into();
        plan.redis = "127.0.0.1:6379".into();
        let node = plan.node("worker-2").unwrap();
        let config: toml::Value = toml::from_str(&plan.config(&Folder("/x".into()), node)).unwrap();
        assert_eq!(config["cluster"]["roles"][0].as_str(), Some("worker"));
        assert_eq!(config["store"]["cql"]["nodes"][0].as_str(), Some("127.0.0.1:9042"));
        assert_eq!(config["bus"]["redis"]["urls"][0].as_str(), Some("redis://127.0.0.1:6379"));
        assert_eq!(config["media"]["dir"].as_str(), Some("/x/media"));
        assert!(plan.node("worker-9").unwrap_err().to_string().contains("worker-2"));
    }
}
