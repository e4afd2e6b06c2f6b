//! A cluster that `cargo xtask cluster` started, and the faults that only a cluster can have.
//!
//! It goes on running when the run is over, on the processes that were started here: all of them are found by the files
//! that the command keeps in the folder of the cluster, so that the command still controls it.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    net::TcpStream,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use serde::Deserialize;

use super::deployment::{Deployment, DeploymentError, LOOK_EVERY, READY_MAX, STOP_MAX, io_error, read_log};

/// What a process says when its lease was ended while it did not renew it.
const TAKEN_FOR_DEAD: &str = "another node took this one for dead";

/// Lines of a log in which the reason of an end is looked for: a process that ends may fail many requests meanwhile.
const LAST_WORDS: usize = 500;

/// How long Redis may take to answer.
const REDIS_MAX: Duration = Duration::from_secs(2);

/// What `cargo xtask cluster` keeps of a cluster in `cluster.json`, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Plan {
    binary: PathBuf,
    token: String,
    cql: String,
    redis: String,
    nodes: Vec<Node>,
}

#[derive(Clone, Debug, Deserialize)]
struct Node {
    name: String,
    role: String,
    http_port: u16,
}

impl Node {
    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.http_port)
    }
}

/// A cluster of processes on this machine.
#[derive(Debug)]
pub struct Cluster {
    folder: PathBuf,
    plan: RefCell<Plan>,
    /// Where logs ended when the run began: what was there before is not its business.
    logs_from: RefCell<BTreeMap<String, u64>>,
    /// Those that were started here, so that they are reaped.
    children: RefCell<BTreeMap<String, Child>>,
    wire: reqwest::Client,
}

fn read_plan(folder: &Path) -> Result<Plan, DeploymentError> {
    let path = folder.join("cluster.json");
    let text = fs::read(&path).map_err(io_error(path.display().to_string()))?;
    serde_json::from_slice(&text).map_err(|error| io_error(path.display().to_string())(error.into()))
}

/// The repository, whose scripts and commands start what is not a process of the server.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

impl Cluster {
    /// The cluster in `folder`, which must run.
    ///
    /// # Errors
    /// If there is none.
    pub fn of(folder: &Path) -> Result<Self, DeploymentError> {
        let folder = folder.canonicalize().map_err(io_error(folder.display().to_string()))?;
        let plan = read_plan(&folder)?;
        let length = |node: &Node| fs::metadata(log_path(&folder, &node.name)).map_or(0, |data| data.len());
        let logs_from = plan.nodes.iter().map(|node| (node.name.clone(), length(node))).collect();
        Ok(Self {
            folder,
            plan: RefCell::new(plan),
            logs_from: RefCell::new(logs_from),
            children: RefCell::default(),
            wire: reqwest::Client::new(),
        })
    }

    fn node(&self, node: usize) -> Node {
        self.plan.borrow().nodes[node].clone()
    }

    fn count(&self) -> usize {
        self.plan.borrow().nodes.len()
    }

    /// The process id of a node that runs.
    fn running(&self, node: usize) -> Option<u32> {
        let name = self.node(node).name;
        if let Some(child) = self.children.borrow_mut().get_mut(&name) {
            return matches!(child.try_wait(), Ok(None)).then(|| child.id());
        }
        let id = read_id(&self.folder.join(format!("run/{name}.pid")))?;
        let command = fs::read(format!("/proc/{id}/cmdline")).ok()?;
        // Another process may have got the number since.
        String::from_utf8_lossy(&command).contains(self.configuration(&name).to_str()?).then_some(id)
    }

    fn configuration(&self, name: &str) -> PathBuf {
        self.folder.join(format!("config/{name}.toml"))
    }

    fn log(&self, node: usize) -> String {
        let name = self.node(node).name;
        let from = self.logs_from.borrow().get(&name).copied().unwrap_or(0);
        read_log(&log_path(&self.folder, &name), from)
    }

    /// Sends a signal to a node that must run.
    fn signal(&self, node: usize, name: &str) -> Result<(), DeploymentError> {
        let Some(id) = self.running(node) else { return Err(self.ended(node)) };
        send_signal(id, name)
    }

    fn ended(&self, node: usize) -> DeploymentError {
        let log = self.log_tail(node, LAST_WORDS);
        let words = log.lines().last().unwrap_or("no word").to_owned();
        DeploymentError::Ended { node, status: format!("{}: {words}", self.node(node).name) }
    }

    async fn gone(&self, node: usize) -> Result<(), DeploymentError> {
        let end = Instant::now() + STOP_MAX;
        while self.running(node).is_some() {
            if Instant::now() > end {
                return Err(DeploymentError::Late { node, what: "stopped", within: STOP_MAX });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    fn spawn(&self, node: usize) -> Result<(), DeploymentError> {
        let name = self.node(node).name;
        let path = log_path(&self.folder, &name);
        let log = OpenOptions::new().create(true).append(true).open(&path);
        let log = log.map_err(io_error(path.display().to_string()))?;
        let errors = log.try_clone().map_err(io_error(path.display().to_string()))?;
        let binary = self.plan.borrow().binary.clone();
        let child = Command::new(&binary)
            .args(["serve", "--config"])
            .arg(self.configuration(&name))
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .map_err(io_error(binary.display().to_string()))?;
        let id_file = self.folder.join(format!("run/{name}.pid"));
        fs::write(&id_file, child.id().to_string()).map_err(io_error(id_file.display().to_string()))?;
        self.children.borrow_mut().insert(name, child);
        Ok(())
    }

    async fn is_ready(&self, node: usize) -> bool {
        let url = format!("{}/health/ready", self.node(node).url());
        let answer = self.wire.get(url).timeout(Duration::from_secs(2)).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    /// Waits until a node is ready; one that ends meanwhile because others took it for dead is started again.
    async fn ready(&self, node: usize) -> Result<(), DeploymentError> {
        let end = Instant::now() + READY_MAX;
        while !self.is_ready(node).await {
            if self.running(node).is_none() {
                self.revive(node)?;
            }
            if Instant::now() > end {
                return Err(DeploymentError::Late { node, what: "ready", within: READY_MAX });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Starts a node again that ended as it may: as one that was taken for dead.
    fn revive(&self, node: usize) -> Result<(), DeploymentError> {
        if !self.log_tail(node, LAST_WORDS).contains(TAKEN_FOR_DEAD) {
            return Err(self.ended(node));
        }
        self.spawn(node)
    }
}

/// What is not a process of the server.
impl Cluster {
    /// The process id of a service.
    fn service(&self, service: &str) -> Result<u32, DeploymentError> {
        let path = self.folder.join(service).join("pid");
        let missing = || io_error(path.display().to_string())(io::ErrorKind::NotFound.into());
        read_id(&path).ok_or_else(missing)
    }

    /// Kills a service and waits until nothing of it is left: a large process takes its time to go.
    async fn kill_service(&self, service: &str) -> Result<(), DeploymentError> {
        let id = self.service(service)?;
        send_signal(id, "KILL")?;
        // The command line of a process that nobody has waited for yet is empty.
        let is_there = || fs::read(format!("/proc/{id}/cmdline")).is_ok_and(|command| !command.is_empty());
        let end = Instant::now() + STOP_MAX;
        while is_there() && Instant::now() < end {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Starts a service again on its data and its port.
    async fn serve_again(&self, service: &str, address: &str) -> Result<(), DeploymentError> {
        let port = address.rsplit(':').next().unwrap_or_default();
        let mut command = Command::new(root().join("scripts/services").join(service));
        command.arg("start").arg(self.folder.join(service)).arg(port);
        run(command).await
    }
}

/// Runs a command that takes a while, and lets the clients go on meanwhile.
async fn run(mut command: Command) -> Result<(), DeploymentError> {
    command.current_dir(root()).stdin(Stdio::null()).stdout(Stdio::null());
    let what = command.get_program().to_string_lossy().into_owned();
    let status = tokio::task::spawn_blocking(move || command.status()).await.map_err(io::Error::other).flatten();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(io_error(what)(io::Error::other(status.to_string()))),
        Err(error) => Err(io_error(what)(error)),
    }
}

fn log_path(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("logs/{name}.log"))
}

fn read_id(path: &Path) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn send_signal(id: u32, name: &str) -> Result<(), DeploymentError> {
    Command::new("kill").arg(format!("-{name}")).arg(id.to_string()).status().map_err(io_error("kill")).map(drop)
}

/// Deletes all that Redis knows. <https://redis.io/docs/latest/develop/reference/protocol-spec/#inline-commands>
fn flush(address: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(REDIS_MAX))?;
    stream.write_all(b"FLUSHALL\r\n")?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer)?;
    if &answer == b"+OK\r\n" { Ok(()) } else { Err(io::Error::other(String::from_utf8_lossy(&answer).into_owned())) }
}

#[async_trait(?Send)]
impl Deployment for Cluster {
    fn base_urls(&self) -> Vec<String> {
        self.plan.borrow().nodes.iter().filter(|node| node.role == "frontend").map(Node::url).collect()
    }

    fn names(&self) -> Vec<String> {
        self.plan.borrow().nodes.iter().map(|node| node.name.clone()).collect()
    }

    fn registration_token(&self) -> String {
        self.plan.borrow().token.clone()
    }

    /// It runs already: waits until all are ready.
    async fn start(&self) -> Result<(), DeploymentError> {
        for node in 0..self.count() {
            self.ready(node).await?;
        }
        Ok(())
    }

    async fn kill(&self, node: usize) -> Result<(), DeploymentError> {
        self.signal(node, "KILL")?;
        self.gone(node).await
    }

    async fn stop(&self, node: usize) -> Result<(), DeploymentError> {
        self.signal(node, "TERM")?;
        self.gone(node).await
    }

    async fn pause(&self, node: usize) -> Result<(), DeploymentError> {
        self.signal(node, "STOP")
    }

    async fn resume(&self, node: usize) -> Result<(), DeploymentError> {
        self.signal(node, "CONT")
    }

    async fn restart(&self, node: usize) -> Result<(), DeploymentError> {
        self.spawn(node)?;
        self.ready(node).await
    }

    async fn settle(&self) -> Result<Vec<String>, DeploymentError> {
        let mut revived = Vec::new();
        for node in 0..self.count() {
            if self.running(node).is_none() {
                self.revive(node)?;
                revived.push(self.node(node).name);
            }
        }
        for node in 0..self.count() {
            self.ready(node).await?;
        }
        Ok(revived)
    }

    async fn kill_bus(&self) -> Result<(), DeploymentError> {
        self.kill_service("redis").await
    }

    async fn restart_bus(&self) -> Result<(), DeploymentError> {
        let address = self.plan.borrow().redis.clone();
        self.serve_again("redis", &address).await
    }

    async fn flush_bus(&self) -> Result<(), DeploymentError> {
        flush(&self.plan.borrow().redis).map_err(io_error("Redis"))
    }

    async fn pause_store(&self, is_paused: bool) -> Result<(), DeploymentError> {
        send_signal(self.service("cql")?, if is_paused { "STOP" } else { "CONT" })
    }

    async fn kill_store(&self) -> Result<(), DeploymentError> {
        self.kill_service("cql").await
    }

    async fn restart_store(&self) -> Result<(), DeploymentError> {
        let address = self.plan.borrow().cql.clone();
        self.serve_again("cql", &address).await
    }

    async fn add_worker(&self) -> Result<(), DeploymentError> {
        let mut command = Command::new("cargo");
        command.args(["xtask", "cluster", "start", "--add-worker", "--dir"]).arg(&self.folder);
        run(command).await?;
        *self.plan.borrow_mut() = read_plan(&self.folder)?;
        Ok(())
    }

    fn log_tail(&self, node: usize, lines: usize) -> String {
        let log = self.log(node);
        let all: Vec<_> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    fn panics(&self) -> Vec<String> {
        let logs = (0..self.count()).map(|node| self.log(node));
        logs.flat_map(|log| {
            log.lines().filter(|line| line.contains("panicked at")).map(ToOwned::to_owned).collect::<Vec<_>>()
        })
        .collect()
    }
}
