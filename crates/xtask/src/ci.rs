//! `cargo xtask ci`: everything that must be green, in the order in which it fails fastest.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::succeed;

/// What a step does.
enum Work {
    /// A command line; the first word is the program. The second field adds to the environment.
    Command(&'static [&'static str], &'static [(&'static str, &'static str)]),
    /// One of this crate's own checks.
    Check(fn(&Path) -> Result<()>),
}

/// One line of the whole check.
struct Step {
    name: &'static str,
    work: Work,
}

const fn command(name: &'static str, line: &'static [&'static str]) -> Step {
    Step { name, work: Work::Command(line, &[]) }
}

/// Warnings of rustdoc are errors; the second flag repeats what `.cargo/config.toml` gives rustc.
const RUSTDOCFLAGS: &str = "-D warnings --cfg tokio_unstable";
/// The steps that `--no-clients` leaves out: the slowest, and the only ones that may install a Node, two Pythons, Redis and
/// a Java.
const WITH_CLIENTS: [&str; 2] = ["clients", "cluster"];

const STEPS: &[Step] = &[
    command("format", &["cargo", "fmt", "--all", "--check"]),
    Step { name: "layers", work: Work::Check(crate::layers::run) },
    Step { name: "tidy", work: Work::Check(crate::tidy::run) },
    command("clippy", &["cargo", "clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    command(
        "deny: bans, licences, sources (advisories need their database from the network: cargo deny check advisories)",
        &["cargo", "deny", "check", "bans", "licenses", "sources"],
    ),
    Step {
        name: "rustdoc",
        work: Work::Command(&["cargo", "doc", "--workspace", "--no-deps"], &[("RUSTDOCFLAGS", RUSTDOCFLAGS)]),
    },
    command("tests", &["cargo", "nextest", "run", "--workspace", "--all-targets", "--profile", "ci"]),
    command("build", &["cargo", "build", "--release", "--package", "cofactor"]),
    Step { name: "endpoints", work: Work::Check(endpoints) },
    Step { name: "chaos", work: Work::Check(chaos) },
    Step { name: "cost", work: Work::Check(cost) },
    Step { name: "clients", work: Work::Check(clients) },
    Step { name: "cluster", work: Work::Check(cluster) },
];

/// What the command line chose.
#[derive(Debug, PartialEq, Eq)]
struct Choice {
    /// The first step to run, an index into [`STEPS`].
    first: usize,
    clients: bool,
}

fn choose(arguments: &[String]) -> Result<Choice> {
    let mut choice = Choice { first: 0, clients: true };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--no-clients" => choice.clients = false,
            "--from" => {
                let name = arguments.next().context("--from needs the name of a step")?;
                let found = STEPS.iter().position(|step| step.name.starts_with(name.as_str()));
                choice.first = found.with_context(|| format!("no step begins with `{name}`"))?;
            }
            other => bail!("unknown argument `{other}`; usage: cargo xtask ci [--from STEP] [--no-clients]"),
        }
    }
    Ok(choice)
}

/// Runs every step, or those from the one named by `--from`, and stops at the first that fails.
pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    let choice = choose(arguments)?;
    let mut times: Vec<(&str, Duration)> = Vec::new();
    for step in STEPS[choice.first..].iter().filter(|step| choice.clients || !WITH_CLIENTS.contains(&step.name)) {
        println!("\n=== {}", step.name);
        let started = Instant::now();
        let outcome = perform(root, &step.work);
        times.push((step.name, started.elapsed()));
        println!("=== {}: {:.1} s", step.name, started.elapsed().as_secs_f64());
        if let Err(error) = outcome {
            summary(&times);
            bail!("{} failed: {error:#}", step.name);
        }
    }
    summary(&times);
    println!("all green");
    Ok(())
}

fn summary(times: &[(&str, Duration)]) {
    println!("\nsummary");
    for (name, time) in times {
        println!("{:>8.1} s  {name}", time.as_secs_f64());
    }
}

fn perform(root: &Path, work: &Work) -> Result<()> {
    match work {
        Work::Check(check) => check(root),
        Work::Command(line, environment) => {
            let (program, arguments) = line.split_first().context("a step with an empty command line")?;
            succeed(Command::new(program).args(arguments).envs(environment.iter().copied()).current_dir(root))
        }
    }
}

/// The server that the step `build` made.
fn server(root: &Path) -> PathBuf {
    crate::target(root).join("release/cofactor")
}

fn endpoints(root: &Path) -> Result<()> {
    let server = server(root).into_os_string().into_string();
    let server = server.ok().context("the path of the built server is not UTF-8")?;
    crate::endpoints::run(root, &["--binary".to_owned(), server])
}

/// Kills the built server under load, again and again, and judges what its clients saw.
fn chaos(root: &Path) -> Result<()> {
    let example = ["run", "--quiet", "--package", "cofactor-testkit", "--example", "chaos", "--", "--seconds", "20"];
    succeed(Command::new("cargo").args(example).arg("--binary").arg(server(root)).current_dir(root))
}

/// Refuses a server whose sends cost more in larger rooms, or whose syncs cost more in more rooms, and rules that resolve
/// a few conflicts more slowly in larger rooms.
fn cost(root: &Path) -> Result<()> {
    let resolution = ["bench", "--package", "cofactor-room", "--bench", "resolution"];
    succeed(Command::new("cargo").args(resolution).current_dir(root))?;
    let gate = ["run", "--release", "--package", "cofactor-loadtest", "--", "gate", "--binary"];
    succeed(Command::new("cargo").args(gate).arg(server(root)).current_dir(root))
}

/// Runs the real clients against the built server.
fn clients(root: &Path) -> Result<()> {
    succeed(Command::new(root.join("scripts/clients")).arg(server(root)).current_dir(root))
}

/// Runs the real clients against a whole cluster of the built server, and then lets faults hit it under load. The script
/// stops it whatever happens, and prints the ends of its logs if a client fails.
fn cluster(root: &Path) -> Result<()> {
    let mut clients = Command::new(root.join("scripts/clients"));
    clients.arg("--cluster").arg(server(root)).env("CLIENTS", "api nio js chaos");
    succeed(clients.current_dir(root))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_command_line_chooses_the_first_step_and_whether_clients_run() {
        assert_eq!(choose(&[]).unwrap(), Choice { first: 0, clients: true });
        let choice = choose(&words("--no-clients --from tests")).unwrap();
        assert_eq!((STEPS[choice.first].name, choice.clients), ("tests", false));
        for refused in ["--from", "--from nothing", "--fast"] {
            assert!(choose(&words(refused)).is_err(), "{refused}");
        }
    }
}
