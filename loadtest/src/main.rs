//! The command line of the load test.

mod cli;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;

fn main() -> ExitCode {
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
        .and_then(|runtime| runtime.block_on(cli::perform(cli::Arguments::parse())));
    match outcome {
        Ok(cli::Verdict { text, valid }) => {
            // A reader that went away wants nothing more.
            drop(std::io::stdout().write_all(text.as_bytes()));
            if valid { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            drop(writeln!(std::io::stderr(), "error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
