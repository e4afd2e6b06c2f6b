//! Real servers, started and stopped by `scripts/services/redis`.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
};

use cofactor_bus_redis::{RedisBus, RedisOptions, RedisShared};
use cofactor_types::{Entropy, SystemEntropy};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/services/redis");

/// Servers of one test, gone with it.
pub(crate) struct Server {
    folder: tempfile::TempDir,
    /// `HOST:PORT` of each.
    pub(crate) addresses: Vec<String>,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Not `run`: a second panic would hide the first.
        let _ = Command::new(SCRIPT).arg("stop").arg(self.folder.path()).status();
    }
}

fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().expect("a command that can be run");
    assert!(status.success(), "{command:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).expect("text").trim().to_owned()
}

impl Server {
    fn with(action: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let addresses = run(Command::new(SCRIPT).arg(action).arg(folder.path()));
        Self { folder, addresses: addresses.split(',').map(str::to_owned).collect() }
    }

    /// One server.
    pub(crate) fn start() -> Self {
        Self::with("start")
    }

    /// A Redis Cluster of three.
    pub(crate) fn cluster() -> Self {
        Self::with("cluster")
    }

    fn folder(&self, n: usize) -> PathBuf {
        let folder = self.folder.path();
        if self.addresses.len() == 1 { folder.to_owned() } else { folder.join((n + 1).to_string()) }
    }

    fn pid(folder: &Path) -> String {
        std::fs::read_to_string(folder.join("pid")).expect("a running server")
    }

    /// Sends a signal, such as `KILL`, to a server.
    pub(crate) fn signal(&self, n: usize, signal: &str) {
        run(Command::new("kill").arg(format!("-{signal}")).arg(Self::pid(&self.folder(n))));
    }

    /// Starts a killed server again, at the same address.
    pub(crate) fn restart(&self, n: usize) {
        let folder = self.folder(n);
        let mut command = Command::new(SCRIPT);
        match self.addresses[n].rsplit_once(':') {
            Some((_, port)) if self.addresses.len() == 1 => command.arg("start").arg(folder).arg(port),
            _ => command.arg("node").arg(folder),
        };
        run(&mut command);
    }

    /// Asks a server what only an operator asks.
    pub(crate) fn cli(&self, n: usize, words: &[&str]) -> String {
        let (host, port) = self.addresses[n].rsplit_once(':').expect("an address");
        run(Command::new("redis-cli").args(["-h", host, "-p", port]).args(words))
    }

    /// Options for these servers, with short pauses.
    pub(crate) fn options(&self) -> RedisOptions {
        options(&self.addresses)
    }

    pub(crate) async fn bus(&self) -> RedisBus {
        bus(self.options()).await
    }

    pub(crate) fn facts(&self) -> RedisShared {
        RedisShared::new(&self.options()).expect("options that work")
    }
}

/// Options for servers at these addresses, under a prefix that nobody else has.
pub(crate) fn options(addresses: &[String]) -> RedisOptions {
    RedisOptions {
        prefix: "test".into(),
        lanes: 3,
        channels: 4,
        connect_timeout_ms: 10_000,
        retry_max_ms: 200,
        ..RedisOptions::at(addresses.iter().map(|address| format!("redis://{address}")))
    }
}

pub(crate) async fn bus(options: RedisOptions) -> RedisBus {
    RedisBus::connect(options, Arc::new(SystemEntropy)).await.expect("a bus")
}

/// A prefix that no other run has.
pub(crate) fn prefix() -> String {
    format!("test-{}", SystemEntropy.alphanumeric(12))
}
