//! `cargo xtask ci`: everything that must be green, in the order in which it fails fastest.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

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

const STEPS: &[Step] = &[
    command("format", &["cargo", "fmt", "--all", "--check"]),
    Step { name: "layers", work: Work::Check(crate::layers::run) },
    Step { name: "tidy", work: Work::Check(crate::tidy::run) },
    command("clippy", &["cargo", "clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    // Advisories need their database from the network, so they are not part of this check.
    command(
        "deny (licences, bans, sources; no advisories)",
        &["cargo", "deny", "check", "licenses", "bans", "sources"],
    ),
    Step {
        name: "documentation",
        work: Work::Command(&["cargo", "doc", "--workspace", "--no-deps"], &[("RUSTDOCFLAGS", RUSTDOCFLAGS)]),
    },
    command("build", &["cargo", "build", "--workspace", "--all-targets"]),
    Step { name: "endpoints", work: Work::Check(|root| crate::endpoints::run(root, &[])) },
    command("tests", &["cargo", "nextest", "run", "--workspace", "--all-targets", "--profile", "ci"]),
    Step { name: "clients and scripts", work: Work::Check(scripts) },
];

/// Runs every step, or those from the one named by `--from`, and stops at the first that fails.
pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    let first = match arguments {
        [] => 0,
        [flag, name] if flag == "--from" => {
            let found = STEPS.iter().position(|step| step.name.starts_with(name.as_str()));
            found.with_context(|| format!("no step begins with `{name}`"))?
        }
        _ => bail!("usage: cargo xtask ci [--from STEP]"),
    };
    let mut times: Vec<(&str, Duration)> = Vec::new();
    for step in &STEPS[first..] {
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

fn succeed(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("cannot start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}

/// Runs the real clients against the server that `build` made, then every executable file directly in `tests/`.
fn scripts(root: &Path) -> Result<()> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let server = root.join(target).join("debug/cofactor");
    succeed(Command::new(root.join("scripts/clients")).arg(server).current_dir(root))?;
    for script in executables(&root.join("tests"))? {
        println!("--- {}", script.display());
        succeed(Command::new(&script).current_dir(root))?;
    }
    Ok(())
}

fn executables(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry.context("cannot read a folder entry")?.path();
        let metadata = fs::metadata(&path).with_context(|| format!("cannot look at {}", path.display()))?;
        if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
