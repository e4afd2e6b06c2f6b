//! Runs a server under load and faults and judges what its clients saw.

use std::{fs, io::Write, path::PathBuf, process::ExitCode, rc::Rc, time::Duration};

use anyhow::Context;
use clap::Parser;
use cofactor_testkit::chaos::{Deployment, Options, Processes, Report, faults::Kind, run};
use serde_json::json;

/// Lines of a node's log that are shown after a failure.
const LOG_LINES: usize = 60;

/// Run a server under load and faults and judge what its clients saw.
///
/// Starts BINARY on the embedded store in a temporary folder; lets people write into rooms, set state and account data,
/// send to-device messages, upload and claim keys, leave and join, and follow all of it by /sync, while the process is
/// killed (kill -9), stopped and held at moments that the seed chooses; then reads everything once more, after one more
/// kill. Whatever was acknowledged must be there, once, in one order, for every reader. Ends with 0 if it is, with 1 if
/// something is violated, with 2 if there is no judgement; the folder with data and log is kept unless it ends with 0.
///
/// The seed chooses what is done and where faults hit. It does not fix the timing: run a seed again to find out whether
/// a violation is frequent, not to see it step by step.
#[derive(Parser)]
#[command(max_term_width = 100)]
struct Arguments {
    /// The server, as `cargo build --release` makes it.
    #[arg(long, value_name = "FILE")]
    binary: PathBuf,
    /// How long there are load and faults; what comes before and after takes about ten seconds more.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// What is chosen.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Kinds of fault: kill, stop, pause. One that is named twice comes twice as often.
    #[arg(long, value_delimiter = ',', default_values = ["kill", "kill", "stop", "pause"])]
    faults: Vec<Kind>,
    /// No faults: does the checker accept a server that nothing happens to?
    #[arg(long, conflicts_with = "faults")]
    calm: bool,
    /// How many people there are.
    #[arg(long, default_value_t = 8)]
    users: usize,
    /// How many rooms there are.
    #[arg(long, default_value_t = 6)]
    rooms: usize,
    /// Where to write what happened, as JSON.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let folder = tempfile::Builder::new().prefix("cofactor-chaos-").tempdir().context("no temporary folder")?;
    let binary =
        arguments.binary.canonicalize().with_context(|| format!("no server at {}", arguments.binary.display()))?;
    let deployment: Rc<dyn Deployment> = Rc::new(Processes::embedded(&binary, folder.path())?);
    let options = Options {
        seed: arguments.seed,
        lasts: Duration::from_secs(arguments.seconds),
        users: arguments.users,
        rooms: arguments.rooms,
        faults: if arguments.calm { Vec::new() } else { arguments.faults.clone() },
        run: format!("{:x}", std::process::id()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    let outcome = runtime.block_on(run(Rc::clone(&deployment), options));
    let code = match &outcome {
        Ok(report) => {
            tell(report, &arguments)?;
            ExitCode::from(u8::from(!report.violations.is_empty()))
        }
        Err(error) => {
            say(&format!("no judgement: {error}"));
            ExitCode::from(2)
        }
    };
    if code != ExitCode::SUCCESS {
        for node in 0..deployment.base_urls().len() {
            say(&format!("the last lines of the log of node {node}:\n{}", deployment.log_tail(node, LOG_LINES)));
        }
        say(&format!("the data and the logs are in {}", folder.keep().display()));
    }
    Ok(code)
}

/// Prints a line; a reader that has gone is no error.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn tell(report: &Report, arguments: &Arguments) -> anyhow::Result<()> {
    let counts = serde_json::to_string_pretty(&report.counts)?;
    say(&format!("seed {}: {} faults, {counts}", arguments.seed, report.faults.len()));
    for violation in &report.violations {
        say(&format!("VIOLATION {violation}"));
    }
    if report.violations.is_empty() {
        say("nothing was violated");
    } else {
        report.faults.iter().for_each(|fault| say(&format!("fault at {fault}")));
    }
    if let Some(file) = &arguments.report {
        let violations: Vec<_> = report.violations.iter().map(ToString::to_string).collect();
        let all = json!({
            "seed": arguments.seed,
            "faults": report.faults,
            "counts": report.counts,
            "violations": violations,
        });
        fs::write(file, serde_json::to_vec_pretty(&all)?).with_context(|| file.display().to_string())?;
    }
    Ok(())
}
