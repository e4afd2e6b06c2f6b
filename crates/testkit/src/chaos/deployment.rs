//! The processes of a server, and what can be done to them.

use std::{
    cell::RefCell,
    fs::{self, File, OpenOptions},
    io,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use async_trait::async_trait;

/// How long a process may take to become ready.
pub(super) const READY_MAX: Duration = Duration::from_secs(60);

/// How long a process may take to end when it is asked to.
pub(super) const STOP_MAX: Duration = Duration::from_secs(20);

/// How often a process is looked at while something of it is awaited.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The part of a log that is searched, in bytes.
const LOG_BYTES_MAX: u64 = 64 << 20;

/// What went wrong with a process.
#[derive(Debug, thiserror::Error)]
pub enum DeploymentError {
    /// Something of the machine.
    #[error("{0}: {1}")]
    Io(String, #[source] io::Error),
    /// A process ended that nobody had ended.
    #[error("node {node} ended by itself: {status}")]
    Ended {
        /// The node.
        node: usize,
        /// How it ended.
        status: String,
    },
    /// A process did not do in time what it was told.
    #[error("node {node} was not {what} within {} s", .within.as_secs())]
    Late {
        /// The node.
        node: usize,
        /// What it should have become.
        what: &'static str,
        /// The time that it had.
        within: Duration,
    },
    /// A fault that this kind of deployment cannot have.
    #[error("{0}: not with one process and the embedded store")]
    NotHere(&'static str),
}

/// The nodes of one server. Nodes are numbered from 0; each listens on an address of its own.
#[async_trait(?Send)]
pub trait Deployment {
    /// Where clients find those of the nodes that serve them.
    fn base_urls(&self) -> Vec<String>;

    /// What the nodes are called, in the order of their numbers.
    fn names(&self) -> Vec<String>;

    /// The token that lets somebody register.
    fn registration_token(&self) -> String;

    /// Starts every node and waits until all are ready.
    ///
    /// # Errors
    /// If one cannot be started or does not become ready.
    async fn start(&self) -> Result<(), DeploymentError>;

    /// Ends a node without warning (`SIGKILL`) and waits until it is gone.
    ///
    /// # Errors
    /// If the node had ended by itself.
    async fn kill(&self, node: usize) -> Result<(), DeploymentError>;

    /// Asks a node to end (`SIGTERM`) and waits until it has.
    ///
    /// # Errors
    /// If it had ended by itself, ends with a failure, or does not end.
    async fn stop(&self, node: usize) -> Result<(), DeploymentError>;

    /// Holds a node (`SIGSTOP`).
    ///
    /// # Errors
    /// If the signal cannot be sent.
    async fn pause(&self, node: usize) -> Result<(), DeploymentError>;

    /// Lets a held node go on (`SIGCONT`).
    ///
    /// # Errors
    /// If the signal cannot be sent.
    async fn resume(&self, node: usize) -> Result<(), DeploymentError>;

    /// Starts a node that was ended, on the same data, and waits until it is ready.
    ///
    /// # Errors
    /// If it cannot be started or does not become ready.
    async fn restart(&self, node: usize) -> Result<(), DeploymentError>;

    /// Waits until every node is ready after a fault, and starts those again that ended as they may: their names.
    ///
    /// # Errors
    /// If one ended as it may not, or does not become ready.
    async fn settle(&self) -> Result<Vec<String>, DeploymentError> {
        Ok(Vec::new())
    }

    /// Ends what the nodes tell one another news with, without warning.
    ///
    /// # Errors
    /// If there is none.
    async fn kill_bus(&self) -> Result<(), DeploymentError> {
        Err(DeploymentError::NotHere("kill-bus"))
    }

    /// Starts it again; it remembers nothing.
    ///
    /// # Errors
    /// If there is none, or it does not start.
    async fn restart_bus(&self) -> Result<(), DeploymentError> {
        Err(DeploymentError::NotHere("kill-bus"))
    }

    /// Lets it forget everything.
    ///
    /// # Errors
    /// If there is none, or it refuses.
    async fn flush_bus(&self) -> Result<(), DeploymentError> {
        Err(DeploymentError::NotHere("flush-bus"))
    }

    /// Holds the server of the store, or lets it go on.
    ///
    /// # Errors
    /// If there is none.
    async fn pause_store(&self, is_paused: bool) -> Result<(), DeploymentError> {
        let _ = is_paused;
        Err(DeploymentError::NotHere("pause-store"))
    }

    /// Kills the server of the store without warning.
    ///
    /// # Errors
    /// If there is none.
    async fn kill_store(&self) -> Result<(), DeploymentError> {
        Err(DeploymentError::NotHere("kill-store"))
    }

    /// Starts the server of the store again, on what its disk has.
    ///
    /// # Errors
    /// If there is none, or it does not come.
    async fn restart_store(&self) -> Result<(), DeploymentError> {
        Err(DeploymentError::NotHere("kill-store"))
    }

    /// Adds a worker, and waits until it has its share. The numbers of the other nodes may change.
    ///
    /// # Errors
    /// If there cannot be one more.
    async fn add_worker(&self) -> Result<(), DeploymentError> {
        Err(DeploymentError::NotHere("add-worker"))
    }

    /// The last `lines` lines of a node's log.
    fn log_tail(&self, node: usize, lines: usize) -> String;

    /// Lines of the logs that tell of a panic.
    fn panics(&self) -> Vec<String>;
}

/// Processes of one binary on this machine, each with a configuration of its own.
#[derive(Debug)]
pub struct Processes {
    binary: PathBuf,
    token: String,
    nodes: Vec<Process>,
    wire: reqwest::Client,
}

#[derive(Debug)]
struct Process {
    url: String,
    configuration: PathBuf,
    log: PathBuf,
    child: RefCell<Option<Child>>,
}

impl Process {
    /// How it ended, if it did.
    fn ended(&self) -> Result<Option<ExitStatus>, DeploymentError> {
        let mut child = self.child.borrow_mut();
        let status = child.as_mut().map(Child::try_wait).transpose().map_err(io_error("wait"))?.flatten();
        if status.is_some() {
            *child = None;
        }
        Ok(status)
    }
}

pub(super) fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> DeploymentError {
    let what = what.into();
    move |error| DeploymentError::Io(what, error)
}

/// A port that was free a moment ago.
fn free_port() -> Result<u16, DeploymentError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(io_error("no free port"))?;
    Ok(listener.local_addr().map_err(io_error("no free port"))?.port())
}

impl Processes {
    /// One node on the embedded store, with its data, configuration and log in `folder`.
    ///
    /// # Errors
    /// If the folder cannot be written or no port is free.
    pub fn embedded(binary: &Path, folder: &Path) -> Result<Self, DeploymentError> {
        let port = free_port()?;
        let token = "chaos".to_owned();
        let data = toml_string(&folder.join("data"));
        let configuration = format!(
            "server_name = \"localhost:{port}\"\ndata_dir = {data}\n\n\
             [http]\nlisten = [\"127.0.0.1:{port}\"]\n\n\
             [registration]\ntoken = \"{token}\"\n\n\
             [rate_limits]\nenabled = false\n"
        );
        let nodes = vec![(format!("http://127.0.0.1:{port}"), configuration)];
        Self::new(binary, folder, token, nodes)
    }

    /// One process for each base URL and configuration (TOML) of `nodes`; what they write goes into `folder`.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn new(
        binary: &Path,
        folder: &Path,
        token: String,
        nodes: Vec<(String, String)>,
    ) -> Result<Self, DeploymentError> {
        let mut processes = Vec::with_capacity(nodes.len());
        for (node, (url, text)) in nodes.into_iter().enumerate() {
            let configuration = folder.join(format!("node-{node}.toml"));
            fs::write(&configuration, text).map_err(io_error(configuration.display().to_string()))?;
            let log = folder.join(format!("node-{node}.log"));
            processes.push(Process { url, configuration, log, child: RefCell::new(None) });
        }
        Ok(Self { binary: binary.to_owned(), token, nodes: processes, wire: reqwest::Client::new() })
    }

    fn spawn(&self, node: usize) -> Result<(), DeploymentError> {
        let process = &self.nodes[node];
        let open = || OpenOptions::new().create(true).append(true).open(&process.log);
        let log = open().map_err(io_error(process.log.display().to_string()))?;
        let errors = log.try_clone().map_err(io_error(process.log.display().to_string()))?;
        let child = Command::new(&self.binary)
            .arg("serve")
            .arg("--config")
            .arg(&process.configuration)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(io_error(self.binary.display().to_string()))?;
        *process.child.borrow_mut() = Some(child);
        Ok(())
    }

    /// An error if the process has ended.
    fn check_alive(&self, node: usize) -> Result<(), DeploymentError> {
        let process = &self.nodes[node];
        let status = match process.ended()? {
            Some(status) => status.to_string(),
            None if process.child.borrow().is_none() => "it was not running".to_owned(),
            None => return Ok(()),
        };
        Err(DeploymentError::Ended { node, status })
    }

    async fn ready(&self, node: usize) -> Result<(), DeploymentError> {
        let url = format!("{}/health/ready", self.nodes[node].url);
        let end = Instant::now() + READY_MAX;
        while Instant::now() < end {
            let answer = self.wire.get(&url).timeout(Duration::from_secs(2)).send().await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            self.check_alive(node)?;
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Err(DeploymentError::Late { node, what: "ready", within: READY_MAX })
    }

    /// Sends a signal by its name; the standard library knows no other than `SIGKILL`.
    fn signal(&self, node: usize, name: &str) -> Result<(), DeploymentError> {
        self.check_alive(node)?;
        let Some(id) = self.nodes[node].child.borrow().as_ref().map(Child::id) else { return Ok(()) };
        let sent = Command::new("kill").arg(format!("-{name}")).arg(id.to_string()).status();
        let status = sent.map_err(io_error("kill"))?;
        if status.success() { Ok(()) } else { self.check_alive(node) }
    }

    fn log(&self, node: usize) -> String {
        read_log(&self.nodes[node].log, 0)
    }
}

/// What a log says from a byte on, at most its last [`LOG_BYTES_MAX`].
pub(super) fn read_log(path: &Path, from: u64) -> String {
    let read = || {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        io::Seek::seek(&mut file, io::SeekFrom::Start(length.saturating_sub(LOG_BYTES_MAX).max(from)))?;
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut file, &mut bytes)?;
        Ok::<_, io::Error>(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_else(|error| format!("the log cannot be read: {error}"))
}

/// A path as a TOML string: its debug form escapes what TOML wants escaped.
fn toml_string(path: &Path) -> String {
    format!("{:?}", path.to_string_lossy())
}

#[async_trait(?Send)]
impl Deployment for Processes {
    fn base_urls(&self) -> Vec<String> {
        self.nodes.iter().map(|process| process.url.clone()).collect()
    }

    fn names(&self) -> Vec<String> {
        (0..self.nodes.len()).map(|node| format!("node {node}")).collect()
    }

    fn registration_token(&self) -> String {
        self.token.clone()
    }

    async fn start(&self) -> Result<(), DeploymentError> {
        for node in 0..self.nodes.len() {
            self.spawn(node)?;
        }
        for node in 0..self.nodes.len() {
            self.ready(node).await?;
        }
        Ok(())
    }

    async fn kill(&self, node: usize) -> Result<(), DeploymentError> {
        self.check_alive(node)?;
        let child = self.nodes[node].child.borrow_mut().take();
        if let Some(mut child) = child {
            child.kill().map_err(io_error("kill"))?;
            child.wait().map_err(io_error("wait"))?;
        }
        Ok(())
    }

    async fn stop(&self, node: usize) -> Result<(), DeploymentError> {
        self.signal(node, "TERM")?;
        let end = Instant::now() + STOP_MAX;
        while Instant::now() < end {
            if let Some(status) = self.nodes[node].ended()? {
                let failed = || DeploymentError::Ended { node, status: status.to_string() };
                return if status.success() { Ok(()) } else { Err(failed()) };
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Err(DeploymentError::Late { node, what: "stopped", within: STOP_MAX })
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

    fn log_tail(&self, node: usize, lines: usize) -> String {
        let log = self.log(node);
        let all: Vec<_> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    fn panics(&self) -> Vec<String> {
        let logs = (0..self.nodes.len()).map(|node| self.log(node));
        logs.flat_map(|log| {
            log.lines().filter(|line| line.contains("panicked at")).map(ToOwned::to_owned).collect::<Vec<_>>()
        })
        .collect()
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for process in &self.nodes {
            if let Some(mut child) = process.child.take() {
                // It is ours to end; one that has ended already is no error.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}
