//! Starts a Cofactor server of its own for a measurement: a free port, a temporary folder, no rate limits.

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::target::Target;

/// How long a server may take until it answers.
const READY_MAX: Duration = Duration::from_secs(20);
/// The registration token of servers started here; they listen on loopback for a minute.
const TOKEN: &str = "loadtest";

/// A server that is stopped, and whose data is deleted, when this is dropped.
pub struct Launched {
    child: Child,
    folder: TempDir,
    /// How to reach it, with its process id.
    pub target: Target,
}

impl Launched {
    /// Starts `binary serve --config FILE` and waits until it answers.
    ///
    /// # Errors
    /// When the binary does not start or is not ready in time; with the end of its log.
    pub fn start(binary: &Path) -> Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        let port = free_port()?;
        let config = folder.path().join("cofactor.toml");
        std::fs::write(&config, configuration(port, &folder.path().join("data")))?;
        let log = File::create(folder.path().join("log"))?;
        let child = Command::new(binary)
            .args(["serve", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))?;
        let mut target = Target::parse(&format!("cofactor=http://127.0.0.1:{port}"))?;
        target.pids = vec![child.id()];
        target.registration_token = Some(TOKEN.to_owned());
        let mut launched = Self { child, folder, target };
        launched.wait_ready(port)?;
        Ok(launched)
    }

    fn wait_ready(&mut self, port: u16) -> Result<()> {
        let start = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = self.child.try_wait()?;
            if ended.is_some() || start.elapsed() > READY_MAX {
                let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(20).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                bail!("the server is not ready ({ended:?}); the end of its log:\n{}", tail.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        // Its data goes with it, so there is nothing to end in good order.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0").context("no free port")?.local_addr()?.port())
}

fn configuration(port: u16, data: &Path) -> String {
    format!(
        "server_name = \"localhost:{port}\"\ndata_dir = {:?}\n\n[http]\nlisten = [\"127.0.0.1:{port}\"]\n\n\
         [registration]\ntoken = \"{TOKEN}\"\n\n[rate_limits]\nenabled = false\n",
        data.display().to_string()
    )
}
