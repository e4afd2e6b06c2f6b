//! Runs a server under load and faults and judges what its clients saw.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    rc::Rc,
    time::Duration,
};

use anyhow::Context;
use clap::Parser;
use cofactor_testkit::chaos::{Cluster, Deployment, Options, Processes, Report, faults::Kind, run};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

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
    #[arg(long, value_name = "FILE", required_unless_present = "cluster")]
    binary: Option<PathBuf>,
    /// The folder of a cluster that `cargo xtask cluster start` started: it is hit instead of a process of its own. It must
    /// be whole, and goes on afterwards.
    #[arg(long, value_name = "DIR", conflicts_with = "binary")]
    cluster: Option<PathBuf>,
    /// How long there are load and faults; what comes before and after takes about ten seconds more.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// What is chosen.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Kinds of fault: kill, stop, pause; of a cluster also stall (held beyond the lease), kill-bus, flush-bus, pause-store,
    /// kill-store, add-worker (once). One that is named twice comes twice as often. All of them unless it is given.
    #[arg(long, value_delimiter = ',')]
    faults: Vec<Kind>,
    /// Only nodes whose names begin like this are hit: worker, sync, frontend-1.
    #[arg(long, value_name = "NAME", default_value = "", requires = "cluster")]
    hits: String,
    /// No faults: does the checker accept a server that nothing happens to?
    #[arg(long, conflicts_with = "faults")]
    calm: bool,
    /// How many people there are.
    #[arg(long, default_value_t = 8)]
    users: usize,
    /// How many rooms there are.
    #[arg(long, default_value_t = 6)]
    rooms: usize,
    /// How many seconds a room may wait when a node is killed. More where other work shares the machine: there it says
    /// nothing about the server.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    outage_max: u64,
    /// Where to write what happened, as JSON.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let folder = tempfile::Builder::new().prefix("cofactor-chaos-").tempdir().context("no temporary folder")?;
    let deployment = deployment(&arguments, folder.path())?;
    let options = Options {
        seed: arguments.seed,
        lasts: Duration::from_secs(arguments.seconds),
        users: arguments.users,
        rooms: arguments.rooms,
        faults: arguments.kinds(),
        hits: arguments.hits.clone(),
        outage_max: Duration::from_secs(arguments.outage_max),
        run: format!("{:x}", std::process::id()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    let outcome = runtime.block_on(async {
        // Whoever ends this ends the processes too: they go with the deployment.
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            outcome = run(Rc::clone(&deployment), options) => outcome.map_err(anyhow::Error::from),
            _ = terminate.recv() => Err(anyhow::anyhow!("told to end")),
            _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
        }
    });
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
        for (node, name) in deployment.names().into_iter().enumerate() {
            say(&format!("the last lines of the log of {name}:\n{}", deployment.log_tail(node, LOG_LINES)));
        }
        let data = arguments.cluster.clone().unwrap_or_else(|| folder.keep());
        say(&format!("the data and the logs are in {}", data.display()));
    }
    Ok(code)
}

impl Arguments {
    /// The kinds of fault that come.
    fn kinds(&self) -> Vec<Kind> {
        match (self.calm, self.faults.is_empty(), &self.cluster) {
            (true, ..) => Vec::new(),
            (false, false, _) => self.faults.clone(),
            (false, true, Some(_)) => Kind::CLUSTER.to_vec(),
            (false, true, None) => vec![Kind::Kill, Kind::Kill, Kind::Stop, Kind::Pause],
        }
    }
}

/// What is hit.
fn deployment(arguments: &Arguments, folder: &Path) -> anyhow::Result<Rc<dyn Deployment>> {
    if let Some(cluster) = &arguments.cluster {
        return Ok(Rc::new(Cluster::of(cluster)?));
    }
    let binary = arguments.binary.as_deref().context("no server is named")?;
    let binary = binary.canonicalize().with_context(|| format!("no server at {}", binary.display()))?;
    Ok(Rc::new(Processes::embedded(&binary, folder)?))
}

/// Prints a line; a reader that has gone is no error.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn tell(report: &Report, arguments: &Arguments) -> anyhow::Result<()> {
    let counts = serde_json::to_string_pretty(&report.counts)?;
    let outages = serde_json::to_string_pretty(&report.outages)?;
    say(&format!("seed {}: {} faults, {counts}\noutages {outages}", arguments.seed, report.faults.len()));
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
            "outages": report.outages,
            "counts": report.counts,
            "violations": violations,
        });
        fs::write(file, serde_json::to_vec_pretty(&all)?).with_context(|| file.display().to_string())?;
    }
    Ok(())
}
