//! The servers that a cluster stands on: CQL and Redis.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::plan::{Folder, Plan, free_ports};
use super::process::until;

/// ScyllaDB, where containers can be run. One core and 1 GiB: enough for trials, nothing to measure with.
const SCYLLA: &str = "scylladb/scylla:2025.1";
const SCYLLA_OPTIONS: &[&str] = &["--smp", "1", "--memory", "1G", "--overprovisioned", "1", "--developer-mode", "1"];

/// How long a container may take to start, after its image is there.
const SCYLLA_START_MAX: Duration = Duration::from_secs(180);

/// Starts what is not running yet, and notes where it is.
pub(crate) fn start(root: &Path, folder: &Folder, plan: &mut Plan) -> Result<()> {
    plan.redis = script(root, "redis", &["start"], &folder.service("redis"))?;
    println!("Redis     {}", plan.redis);
    if std::env::var_os("COFACTOR_CQL").is_none() && (plan.container.is_some() || docker_runs()) {
        start_container(folder, plan)?;
        println!("ScyllaDB  {} (container {})", plan.cql, plan.container.as_deref().unwrap_or_default());
    } else {
        plan.container = None;
        plan.cql = script(root, "cql", &["start"], &folder.service("cql"))?;
        println!("CQL       {}", plan.cql);
    }
    Ok(())
}

/// Stops what was started here; data stays, except that of Redis, which keeps none.
pub(crate) fn stop(root: &Path, folder: &Folder, plan: &Plan) -> Result<()> {
    let redis = script(root, "redis", &["stop"], &folder.service("redis"));
    let cql = match &plan.container {
        Some(name) => docker(&["stop", "--time", "30", name]).map(drop),
        None => script(root, "cql", &["stop"], &folder.service("cql")).map(drop),
    };
    redis.map(drop).and(cql)
}

/// Deletes what the folder itself does not hold.
pub(crate) fn wipe(plan: &Plan) -> Result<()> {
    match &plan.container {
        Some(name) => docker(&["rm", "--force", "--volumes", name]).map(drop),
        None => Ok(()),
    }
}

/// Runs `scripts/services/NAME ACTION FOLDER`; what it prints is an address.
fn script(root: &Path, name: &str, action: &[&str], folder: &Path) -> Result<String> {
    let mut command = Command::new(root.join("scripts/services").join(name));
    output(command.args(action).arg(folder))
}

fn docker(arguments: &[&str]) -> Result<String> {
    output(Command::new("docker").args(arguments))
}

fn docker_runs() -> bool {
    let info = Command::new("docker").arg("info").stdout(Stdio::null()).stderr(Stdio::null()).status();
    info.is_ok_and(|status| status.success())
}

/// Runs a command whose complaints go to the screen; what it prints.
fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} ended with {}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn start_container(folder: &Folder, plan: &mut Plan) -> Result<()> {
    match &plan.container {
        Some(name) => docker(&["start", name]).map(drop)?,
        None => {
            let name = format!("cofactor-{}", plan.keyspace);
            let [port, _] = free_ports(&[])?;
            let publish = format!("127.0.0.1:{port}:9042");
            let mut run = vec!["run", "--detach", "--name", &name, "--publish", &publish, SCYLLA];
            run.extend(SCYLLA_OPTIONS);
            docker(&run)?;
            plan.cql = format!("127.0.0.1:{port}");
            plan.container = Some(name);
            // From now on `stop` finds it.
            folder.write(plan)?;
        }
    }
    if !until(SCYLLA_START_MAX, || answers(&plan.cql).unwrap_or(false)) {
        bail!("ScyllaDB did not answer at {} within {} s", plan.cql, SCYLLA_START_MAX.as_secs());
    }
    Ok(())
}

/// Whether a server there speaks CQL: it answers OPTIONS of protocol version 4 with SUPPORTED.
fn answers(address: &str) -> Result<bool> {
    let address: SocketAddr = address.to_socket_addrs()?.next().context("no address")?;
    let patience = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(&[4, 0, 0, 0, 5, 0, 0, 0, 0])?;
    let mut head = [0; 5];
    stream.read_exact(&mut head)?;
    Ok(head[0] == 0x84 && head[4] == 6)
}
