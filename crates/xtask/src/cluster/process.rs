//! The processes of a local cluster: starting them, sending them signals, asking how they are.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::plan::{Folder, Node};

/// How long a process may take to connect and to answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// How often something is looked at that is waited for.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    /// It does not run.
    Down,
    /// It was told to stand still.
    Paused,
    /// It runs and takes no requests: it starts, or stops, or hangs.
    Starting,
    /// It takes requests.
    Ready(Numbers),
}

/// What a process knows of the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Numbers {
    /// Shards that it owns.
    pub(crate) owned: u64,
    /// Shards of the cluster.
    pub(crate) shards: u64,
    /// Processes that it sees, itself among them.
    pub(crate) members: u64,
}

/// Starts a process that outlives this one; what it says is added to its log.
pub(crate) fn spawn(folder: &Folder, binary: &Path, node: &str) -> Result<()> {
    let path = folder.log(node);
    let log = OpenOptions::new().create(true).append(true).open(&path);
    let log = log.with_context(|| format!("cannot write {}", path.display()))?;
    let child = Command::new(binary)
        .args(["serve", "--config"])
        .arg(folder.config(node))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // An interrupt of the terminal is not meant for it.
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {}", binary.display()))?;
    fs::write(folder.pid(node), child.id().to_string()).context("cannot write the process id")
}

/// The id of a process, if it runs; not of one that has ended and is reaped by nobody, nor of what got its number later.
pub(crate) fn running(folder: &Folder, node: &str) -> Option<u32> {
    let pid: u32 = fs::read_to_string(folder.pid(node)).ok()?.trim().parse().ok()?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    if command.is_empty() {
        // The dead have no command line, and neither has, for a moment, what is being started.
        return state(pid).filter(|state| *state != 'Z').map(|_| pid);
    }
    let config = folder.config(node);
    String::from_utf8_lossy(&command).contains(config.to_str()?).then_some(pid)
}

/// Sends a signal, such as `TERM`; a process that has ended meanwhile is no error.
pub(crate) fn signal(pid: u32, name: &str) -> Result<()> {
    let mut kill = Command::new("sh");
    kill.args(["-c", "kill -s \"$0\" \"$1\"", name, &pid.to_string()]).stderr(Stdio::null());
    kill.status().map(drop).with_context(|| format!("cannot send SIG{name}"))
}

/// Sends processes a signal and waits until they are gone; those that stay are killed.
pub(crate) fn end(folder: &Folder, nodes: &[&Node], name: &str, patience: Duration) -> Result<()> {
    let pids = |nodes: &[&Node]| -> Vec<(String, u32)> {
        nodes.iter().filter_map(|node| Some((node.name.clone(), running(folder, &node.name)?))).collect()
    };
    for (_, pid) in pids(nodes) {
        signal(pid, name)?;
        // One that stands still hears nothing until it goes on.
        signal(pid, "CONT")?;
    }
    if until(patience, || pids(nodes).is_empty()) {
        return Ok(());
    }
    for (node, pid) in pids(nodes) {
        println!("{node} did not end within {} s of SIG{name}; killing it", patience.as_secs());
        signal(pid, "KILL")?;
    }
    if !until(patience, || pids(nodes).is_empty()) {
        bail!("some processes cannot be killed");
    }
    Ok(())
}

/// Looks again and again until it is so; whether it became so in time.
pub(crate) fn until(patience: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + patience;
    while !is_so() {
        if Instant::now() > end {
            return false;
        }
        sleep(LOOK_EVERY);
    }
    true
}

/// How a process is.
pub(crate) fn health(folder: &Folder, node: &Node) -> Health {
    let Some(pid) = running(folder, &node.name) else { return Health::Down };
    if state(pid) == Some('T') {
        return Health::Paused;
    }
    let is_ready = get(node.http_port, "/health/ready").is_ok_and(|(status, _)| status == 200);
    match get(node.http_port, "/metrics") {
        Ok((200, page)) if is_ready => Health::Ready(numbers(&page)),
        _ => Health::Starting,
    }
}

/// The letter that the system has for the state of a process.
fn state(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold blanks and parentheses; the state follows its last one.
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// The resident memory of a process, in MiB.
pub(crate) fn memory_mib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

fn numbers(page: &str) -> Numbers {
    let gauge = |name: &str| {
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse::<f64>().ok());
        value.unwrap_or(0.0) as u64
    };
    Numbers {
        owned: gauge("cofactor_shards_owned"),
        shards: gauge("cofactor_shards"),
        members: gauge("cofactor_members"),
    }
}

/// A request to a process of this machine; status and body. HTTP/1.0, so that the body simply ends.
fn get(port: u16, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), ANSWER_MAX)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).context("no status")?;
    Ok((status, body.to_owned()))
}

/// Deletes the logs of an earlier run.
pub(crate) fn forget_logs(folder: &Folder) -> Result<()> {
    for entry in fs::read_dir(folder.0.join("logs")).context("cannot read the folder of logs")? {
        fs::remove_file(entry?.path()).context("cannot delete a log")?;
    }
    Ok(())
}

/// Prints the end of a log.
pub(crate) fn print_tail(folder: &Folder, node: &str, lines: usize) {
    let bytes = fs::read(folder.log(node)).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    println!("--- {}: the last of {} lines", folder.log(node).display(), all.len());
    for line in &all[all.len().saturating_sub(lines)..] {
        println!("{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_from_the_metrics_page_by_their_whole_name() {
        let page =
            "# TYPE cofactor_shards gauge\ncofactor_shards_owned 341\ncofactor_shards 1024\ncofactor_members 7\n";
        assert_eq!(numbers(page), Numbers { owned: 341, shards: 1024, members: 7 });
        assert_eq!(numbers(""), Numbers::default());
    }

    #[test]
    fn this_process_runs_and_does_not_stand_still() {
        let pid = std::process::id();
        assert!(state(pid).is_some_and(|state| !['T', 'Z'].contains(&state)));
        assert!(memory_mib(pid) > 0);
    }
}
