//! The checks of the repository: `cargo xtask ci|layers|tidy|endpoints`.
//!
//! What this crate is: the one place that says what "green" means. What it is not: a build system, or a
//! dependency of anything. Each check is a module with a pure core (a function from text to complaints) and a
//! thin `run` that reads the tree; to add a check, write such a module, call it from `main`, and give it a line in
//! `ci::STEPS`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool for people; it has no log")]

mod ci;
mod endpoints;
mod layers;
mod scan;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

const USAGE: &str = "usage: cargo xtask ci [--from STEP] [--no-clients] | layers | tidy | \
                     endpoints [--routes FILE|-] [--binary FILE] [--bless]";

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
