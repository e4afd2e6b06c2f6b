//! `cargo xtask cluster`: a whole cluster on this machine, for trials and for the tests that need one.
//!
//! Everything of it lies in one folder: the plan (`cluster.json`), a configuration and a log for each process, the data of
//! the CQL server, the media. What runs is found by process id and command line, so that any command works whatever became
//! of the one before it.

mod plan;
mod process;
mod services;

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use self::plan::{Folder, Node, Plan, Sizes};
use self::process::{Health, health, running, signal, until};

const USAGE: &str = "usage: cargo xtask cluster COMMAND [--dir DIR]
  start [--frontends 2] [--workers 3] [--syncs 2] [--binary PATH]
                   starts Redis, a CQL server and the processes, and waits until every shard has its owner;
                   without --binary, the server is built first
  start --add-worker
                   starts one more worker in a cluster that runs
  stop [--wipe]    stops everything; --wipe deletes its data and logs too
  status           shows every process; fails unless all is well
  restart NODE     asks a process to end, if it runs, and starts it again
  kill NODE        ends a process without warning
  pause NODE       makes a process stand still; after the length of its lease the others take it for dead
  continue NODE    lets it go on; if it was taken for dead, it ends
  logs [LINES]     prints the end of every log
DIR is target/cluster unless it is given; COFACTOR_CQL=HOST:PORT names a CQL server that runs already.";

/// How long a cluster may take to become whole, and a process to end, before it counts as failed.
const START_MAX: Duration = Duration::from_secs(240);
const STOP_MAX: Duration = Duration::from_secs(30);

/// The order in which processes stop: those that others need last.
const STOP_ORDER: [&str; 3] = ["frontend", "sync", "worker"];

const TAIL_LINES: usize = 40;

/// What the command line chose.
#[derive(Debug, PartialEq, Eq)]
struct Choice {
    /// The command and its operand.
    words: Vec<String>,
    dir: Option<PathBuf>,
    binary: Option<PathBuf>,
    sizes: Sizes,
    add_worker: bool,
    wipe: bool,
}

fn choose(arguments: &[String]) -> Result<Choice> {
    let mut choice =
        Choice { words: Vec::new(), dir: None, binary: None, sizes: Sizes::default(), add_worker: false, wipe: false };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value\n{USAGE}"));
        match argument.as_str() {
            "--dir" => choice.dir = Some(value()?.into()),
            "--binary" => choice.binary = Some(value()?.into()),
            "--frontends" => choice.sizes.frontends = value()?.parse().context("--frontends needs a number")?,
            "--workers" => choice.sizes.workers = value()?.parse().context("--workers needs a number")?,
            "--syncs" => choice.sizes.syncs = value()?.parse().context("--syncs needs a number")?,
            "--add-worker" => choice.add_worker = true,
            "--wipe" => choice.wipe = true,
            other if other.starts_with('-') => bail!("unknown argument `{other}`\n{USAGE}"),
            word => choice.words.push(word.to_owned()),
        }
    }
    Ok(choice)
}

/// Does what the command line says, for the cluster of one folder.
pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    let choice = choose(arguments)?;
    let dir = choice.dir.clone().unwrap_or_else(|| crate::target(root).join("cluster"));
    let folder = Folder(plan::absolute(&dir)?);
    let words: Vec<&str> = choice.words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["status"] => return status(&folder),
        ["logs"] => return logs(&folder, TAIL_LINES),
        ["logs", lines] => return logs(&folder, lines.parse().context("`logs` takes a number of lines")?),
        ["start" | "stop"] | ["restart" | "kill" | "pause" | "continue", _] => {}
        _ => bail!("{USAGE}"),
    }
    let _lock = lock(&folder)?;
    match words.as_slice() {
        ["start"] if choice.add_worker => add_worker(&folder),
        ["start"] => start(root, &folder, &choice),
        ["stop"] => stop(root, &folder, choice.wipe),
        ["restart", node] => restart(&folder, node),
        ["kill", node] => send(&folder, node, "KILL"),
        ["pause", node] => send(&folder, node, "STOP"),
        ["continue", node] => send(&folder, node, "CONT"),
        _ => bail!("{USAGE}"),
    }
}

/// Two commands at once would undo one another.
fn lock(folder: &Folder) -> Result<File> {
    fs::create_dir_all(&folder.0).with_context(|| format!("cannot make {}", folder.0.display()))?;
    let lock = File::create(folder.0.join("lock")).context("cannot make the lock")?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => bail!("another command is at work in {}", folder.0.display()),
        Err(TryLockError::Error(error)) => Err(error).context("cannot lock the folder"),
    }
}

/// The cluster of a folder that must have one.
fn known(folder: &Folder) -> Result<Plan> {
    folder.read()?.with_context(|| format!("there is no cluster in {}: start one", folder.0.display()))
}

fn start(root: &Path, folder: &Folder, choice: &Choice) -> Result<()> {
    let before = folder.read()?;
    if let Some(plan) = &before {
        let (up, down): (Vec<&Node>, Vec<&Node>) =
            plan.nodes.iter().partition(|node| running(folder, &node.name).is_some());
        if !up.is_empty() && down.is_empty() {
            println!("this cluster runs already");
            print_summary(folder, plan);
            return Ok(());
        }
        if let (false, Some(down)) = (up.is_empty(), down.first()) {
            bail!(
                "half of this cluster runs, and {} does not: `cluster restart {}`, or `cluster stop`",
                down.name,
                down.name
            );
        }
    }
    let binary = binary(root, choice)?;
    let mut plan = match before {
        Some(plan) => Plan { binary, ..plan },
        None => Plan::new(binary)?,
    };
    plan.resize(choice.sizes)?;
    folder.write(&plan)?;
    let started = Instant::now();
    if let Err(error) = start_all(root, folder, &mut plan) {
        for node in &plan.nodes {
            process::print_tail(folder, &node.name, TAIL_LINES / 4);
        }
        stop(root, folder, false)?;
        return Err(error.context("the cluster did not start; its logs are above and in the folder"));
    }
    println!("whole after {:.1} s", started.elapsed().as_secs_f64());
    print_summary(folder, &plan);
    Ok(())
}

fn start_all(root: &Path, folder: &Folder, plan: &mut Plan) -> Result<()> {
    services::start(root, folder, plan)?;
    folder.write(plan)?;
    process::forget_logs(folder)?;
    for node in &plan.nodes {
        process::spawn(folder, &plan.binary, &node.name)?;
    }
    wait_until_whole(folder, plan)
}

/// The server that was named, or a fresh build.
fn binary(root: &Path, choice: &Choice) -> Result<PathBuf> {
    if let Some(binary) = &choice.binary {
        let binary = plan::absolute(binary)?;
        if !binary.is_file() {
            bail!("there is no server at {}", binary.display());
        }
        return Ok(binary);
    }
    let mut build = Command::new("cargo");
    crate::succeed(build.args(["build", "--release", "--package", "cofactor"]).current_dir(root))?;
    Ok(crate::target(root).join("release/cofactor"))
}

/// Waits until every process that is not paused is ready, sees exactly those processes, and every shard has its owner.
fn wait_until_whole(folder: &Folder, plan: &Plan) -> Result<()> {
    let mut ended = None;
    let mut missing = String::new();
    let whole = until(START_MAX, || {
        let all: Vec<(&Node, Health)> = plan.nodes.iter().map(|node| (node, health(folder, node))).collect();
        ended = all.iter().find(|(_, health)| *health == Health::Down).map(|(node, _)| node.name.clone());
        missing = what_is_missing(&all).unwrap_or_default();
        ended.is_some() || missing.is_empty()
    });
    match ended {
        Some(name) => bail!("{name} has ended; see {}", folder.log(&name).display()),
        None if whole => Ok(()),
        None => bail!("not whole within {} s: {missing}", START_MAX.as_secs()),
    }
}

/// What keeps a cluster from being whole.
fn what_is_missing(all: &[(&Node, Health)]) -> Option<String> {
    let standing = all.iter().filter(|(_, health)| *health != Health::Paused);
    let expected = standing.clone().count() as u64;
    let (mut owned, mut shards) = (0, 0);
    for (node, health) in standing {
        let numbers = match health {
            Health::Ready(numbers) => numbers,
            Health::Down => return Some(format!("{} does not run", node.name)),
            Health::Paused | Health::Starting => return Some(format!("{} is not ready", node.name)),
        };
        if numbers.members != expected {
            return Some(format!("{} sees {} of {expected} processes", node.name, numbers.members));
        }
        owned += numbers.owned;
        shards = shards.max(numbers.shards);
    }
    (owned != shards || shards == 0).then(|| format!("{owned} of {shards} shards have an owner"))
}

fn add_worker(folder: &Folder) -> Result<()> {
    let mut plan = known(folder)?;
    if plan.nodes.iter().any(|node| running(folder, &node.name).is_none()) {
        bail!("a worker is added to a cluster that runs; this one does not, or not all of it");
    }
    let name = plan.add_worker()?;
    folder.write(&plan)?;
    process::spawn(folder, &plan.binary, &name)?;
    wait_until_whole(folder, &plan)?;
    println!("{name} runs");
    status(folder)
}

fn stop(root: &Path, folder: &Folder, wipe: bool) -> Result<()> {
    let Some(plan) = folder.read()? else {
        println!("there is no cluster in {}", folder.0.display());
        return Ok(());
    };
    let mut outcome = Ok(());
    for role in STOP_ORDER {
        let nodes: Vec<&Node> = plan.nodes.iter().filter(|node| node.role == role).collect();
        outcome = outcome.and(process::end(folder, &nodes, "TERM", STOP_MAX));
    }
    // The services end whatever became of the processes.
    outcome.and(services::stop(root, folder, &plan))?;
    if wipe {
        services::wipe(&plan)?;
        fs::remove_dir_all(&folder.0).with_context(|| format!("cannot delete {}", folder.0.display()))?;
    }
    println!("stopped");
    Ok(())
}

fn restart(folder: &Folder, name: &str) -> Result<()> {
    let plan = known(folder)?;
    let node = plan.node(name)?;
    process::end(folder, &[node], "TERM", STOP_MAX)?;
    process::spawn(folder, &plan.binary, name)?;
    // The others may be down on purpose; this one must come back, and what runs must be whole.
    let nodes = plan.nodes.iter().filter(|other| other.name == name || running(folder, &other.name).is_some());
    let standing = Plan { nodes: nodes.cloned().collect(), ..plan };
    let started = Instant::now();
    wait_until_whole(folder, &standing)?;
    println!("{name} is back; whole after {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

fn send(folder: &Folder, name: &str, what: &str) -> Result<()> {
    let plan = known(folder)?;
    let node = plan.node(name)?;
    let pid = running(folder, name).with_context(|| format!("{name} does not run"))?;
    signal(pid, what)?;
    let done = || match what {
        "KILL" => running(folder, name).is_none(),
        "STOP" => health(folder, node) == Health::Paused,
        _ => health(folder, node) != Health::Paused,
    };
    if !until(STOP_MAX, done) {
        bail!("SIG{what} had no effect on {name}");
    }
    println!("{name}: SIG{what}");
    Ok(())
}

fn status(folder: &Folder) -> Result<()> {
    let plan = known(folder)?;
    let all: Vec<(&Node, Health)> = plan.nodes.iter().map(|node| (node, health(folder, node))).collect();
    println!("{:<12} {:>8} {:>5}  {:<10} {:>7} {:>6}  address", "process", "pid", "MiB", "state", "members", "shards");
    for (node, health) in &all {
        let pid = running(folder, &node.name);
        let mib = pid.map_or(0, process::memory_mib);
        let pid = pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let (state, members, owned) = match health {
            Health::Down => ("down", 0, 0),
            Health::Paused => ("paused", 0, 0),
            Health::Starting => ("not ready", 0, 0),
            Health::Ready(numbers) => ("ready", numbers.members, numbers.owned),
        };
        let address = format!("http://127.0.0.1:{}", node.http_port);
        println!("{:<12} {pid:>8} {mib:>5}  {state:<10} {members:>7} {owned:>6}  {address}", node.name);
    }
    print_summary(folder, &plan);
    match what_is_missing(&all) {
        Some(missing) => bail!("not whole: {missing}"),
        None => Ok(()),
    }
}

fn logs(folder: &Folder, lines: usize) -> Result<()> {
    for node in &known(folder)?.nodes {
        process::print_tail(folder, &node.name, lines);
    }
    Ok(())
}

/// What people and scripts need to use the cluster.
fn print_summary(folder: &Folder, plan: &Plan) {
    println!("urls      {}", plan.urls());
    println!("token     {}", plan.token);
    println!("cql       {} keyspace {}", plan.cql, plan.keyspace);
    println!("redis     {}", plan.redis);
    println!("folder    {}", folder.0.display());
}

#[cfg(test)]
mod tests {
    use super::process::Numbers;
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_command_line_chooses_folder_sizes_and_server() {
        let choice = choose(&words("start --workers 5 --dir /x --binary cofactor")).unwrap();
        assert_eq!(choice.words, ["start"]);
        assert_eq!((choice.sizes.workers, choice.sizes.syncs), (5, 2));
        assert_eq!((choice.dir, choice.binary), (Some("/x".into()), Some("cofactor".into())));
        assert!(choose(&words("start --add-worker")).unwrap().add_worker);
        for refused in ["start --workers", "start --workers many", "stop --now"] {
            assert!(choose(&words(refused)).is_err(), "{refused}");
        }
    }

    #[test]
    fn a_cluster_is_whole_when_all_see_all_and_every_shard_has_its_owner() {
        let node = |name: &str| Node { name: name.into(), role: "worker".into(), http_port: 1, call_port: 2 };
        let (one, two) = (node("worker-1"), node("worker-2"));
        let ready = |owned, members| Health::Ready(Numbers { owned, shards: 8, members });
        assert_eq!(what_is_missing(&[(&one, ready(5, 2)), (&two, ready(3, 2))]), None);
        assert_eq!(what_is_missing(&[(&one, ready(8, 1)), (&two, Health::Paused)]), None);
        for incomplete in [
            [(&one, ready(5, 2)), (&two, ready(2, 2))],
            [(&one, ready(5, 1)), (&two, ready(3, 2))],
            [(&one, ready(8, 2)), (&two, Health::Starting)],
            [(&one, ready(0, 2)), (&two, Health::Down)],
        ] {
            assert!(what_is_missing(&incomplete).is_some(), "{incomplete:?}");
        }
    }

    #[test]
    fn a_folder_without_a_cluster_is_stopped_already_and_cannot_be_examined() {
        let folder = Folder(std::env::temp_dir().join("no-such-cluster"));
        assert!(stop(Path::new("/"), &folder, true).is_ok());
        assert!(status(&folder).is_err());
    }
}
