//! The checks of the repository, `cargo xtask ci|layers|tidy|endpoints`, and a whole cluster to try it on,
//! `cargo xtask cluster`.
//!
//! What this crate is: the one place that says what "green" means. What it is not: a build system, or a
//! dependency of anything. Each check is a module with a pure core (a function from text to complaints) and a
//! thin `run` that reads the tree; to add a check, write such a module, call it from `main`, and give it a line in
//! `ci::STEPS`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool for people; it has no log")]

mod ci;
mod cluster;
mod endpoints;
mod layers;
mod scan;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};

const USAGE: &str = "usage: cargo xtask ci [--from STEP] [--no-clients] | layers | tidy | \
                     endpoints [--routes FILE|-] [--binary FILE] [--bless] | cluster COMMAND";

fn main() -> ExitCode {
    match perform() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (command, rest) = arguments.split_first().context(USAGE)?;
    let root = workspace_root()?;
    match command.as_str() {
        "ci" => ci::run(&root, rest),
        "layers" => layers::run(&root),
        "tidy" => tidy::run(&root),
        "endpoints" => endpoints::run(&root, rest),
        "cluster" => cluster::run(&root, rest),
        other => bail!("unknown command `{other}`; {USAGE}"),
    }
}

/// The folder of the workspace, two levels above this crate.
fn workspace_root() -> Result<PathBuf> {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).map(PathBuf::from).context("this crate does not lie two levels below the workspace")
}

/// Prints every complaint of a check and turns them into one failure; prints a line of praise if there is none.
fn verdict(check: &str, complaints: &[String]) -> Result<()> {
    for complaint in complaints {
        println!("{complaint}");
    }
    if complaints.is_empty() {
        println!("{check}: clean");
        return Ok(());
    }
    bail!("{check}: {} complaint(s)", complaints.len())
}

/// Where cargo puts what it builds.
fn target(root: &Path) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    root.join(target)
}

/// Runs a command that must succeed; what it prints goes to the screen.
fn succeed(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("cannot start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}
