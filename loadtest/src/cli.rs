//! What the command line says, and what is done about it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand};
use cofactor_loadtest::check::Patience;
use cofactor_loadtest::gate;
use cofactor_loadtest::probes::{Floor, generator_rate};
use cofactor_loadtest::progress::Progress;
use cofactor_loadtest::report::{page, table};
use cofactor_loadtest::run::run;
use cofactor_loadtest::scenario::{ALL, Context, Known, Plan};
use cofactor_loadtest::target::{Target, for_target};
use cofactor_loadtest::world::{Bounds, ClientBounds, World, connect};

/// Measures Matrix homeservers through the client-server API.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run scenarios against one or more homeservers, which take turns.
    Run(Box<Run>),
    /// Measure what this machine allows: the parts of the work that no server can leave out.
    Floor {
        /// How long each probe runs, in seconds.
        #[arg(long, default_value_t = 2.0)]
        seconds: f64,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Start a Cofactor binary and fail if its costs grow with the size of rooms or accounts.
    Gate {
        /// The server.
        #[arg(long, value_name = "FILE")]
        binary: PathBuf,
    },
    /// List the scenarios.
    Scenarios,
}

#[derive(Args)]
struct Run {
    /// Which scenarios; `cofactor-loadtest scenarios` lists them.
    #[arg(required = true, value_name = "SCENARIO")]
    scenarios: Vec<String>,
    /// A homeserver. May be given often: the targets take turns.
    #[arg(long, required = true, value_name = "[NAME=]URL")]
    target: Vec<String>,
    /// Processes of a target on this machine, with their descendants: their CPU time, memory and writes are reported.
    #[arg(long, value_name = "[NAME=]PID[,PID…]")]
    pid: Vec<String>,
    /// Pages on which a target's processes show what they count, as Prometheus text: how much each counter grew for one
    /// operation is reported, and the CPU time if there is no --pid and they count it (process_cpu_seconds_total).
    #[arg(long, value_name = "[NAME=]URL[,URL…]")]
    metrics: Vec<String>,
    /// The token that a target's registration asks for.
    #[arg(long, value_name = "[NAME=]TOKEN")]
    registration_token: Vec<String>,
    /// Keep accounts and rooms here for the next run: one file for each target, FOLDER/NAME.json.
    #[arg(long, value_name = "FOLDER")]
    state: Option<PathBuf>,
    /// Allow a target that is neither loopback nor private.
    #[arg(long)]
    i_own_this_server: bool,
    /// Print JSON instead of the table.
    #[arg(long)]
    json: bool,
    /// Also write one HTML page with charts.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(flatten)]
    size: Size,
}

/// How much is measured.
#[derive(Args)]
struct Size {
    /// Sizes of rooms, in members.
    #[arg(long, value_delimiter = ',', default_value = "1,10,100,1000")]
    members: Vec<u64>,
    /// Sizes of accounts, in rooms.
    #[arg(long, value_delimiter = ',', default_value = "10,100,1000")]
    rooms: Vec<u64>,
    /// Operations at a time.
    #[arg(long, value_delimiter = ',', default_value = "1,10,64")]
    in_flight: Vec<usize>,
    /// Members that wait for one event (wake).
    #[arg(long, value_delimiter = ',', default_value = "10,100,500")]
    waiters: Vec<u64>,
    /// Syncs that are held while nothing happens (idle).
    #[arg(long, value_delimiter = ',', default_value = "100,1000")]
    polls: Vec<u64>,
    /// Rooms in which something happened since the last sync (incremental).
    #[arg(long, value_delimiter = ',', default_value = "1,10,100")]
    changed: Vec<u64>,
    /// Pages of 50 events, counted from the newest (history).
    #[arg(long, value_delimiter = ',', default_value = "1,10,100")]
    pages: Vec<u64>,
    /// Logins each second beside sends (login-storm).
    #[arg(long, value_delimiter = ',', default_value = "0,50,500")]
    logins: Vec<u64>,
    /// Devices (mixed-day, soak).
    #[arg(long, value_delimiter = ',', default_value = "100,1000")]
    devices: Vec<u64>,
    /// Sizes of uploads and downloads in bytes (media).
    #[arg(long, value_delimiter = ',', default_value = "1000,100000,1000000")]
    media: Vec<u64>,
    /// How long the soak takes, in seconds.
    #[arg(long, default_value_t = 600.0)]
    soak_seconds: f64,
    /// How often each case is measured; the median counts.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// How long each phase of a case is measured, in seconds.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// What goes before each phase and is not counted, in seconds.
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// Requests of one phase.
    #[arg(long, default_value_t = 20_000)]
    requests_max: u64,
    /// Open arrivals come at this part of the capacity that was found.
    #[arg(long, default_value_t = 0.5)]
    load: f64,
    /// The most open arrivals each second.
    #[arg(long, default_value_t = 5000.0)]
    rate_max: f64,
    /// Members of each room at which arrivals are checked.
    #[arg(long, default_value_t = 10_000)]
    check_members: usize,
    /// Events that one check may read; above it, evenly spread members are checked instead of all.
    #[arg(long, default_value_t = 200_000)]
    check_deliveries_max: usize,
    /// Accounts on each target.
    #[arg(long, default_value_t = 20_000)]
    users_max: usize,
    /// Rooms on each target.
    #[arg(long, default_value_t = 20_000)]
    rooms_max: usize,
    /// Connections at a time.
    #[arg(long, default_value_t = 20_000)]
    connections_max: usize,
    /// The time limit of one request, in seconds.
    #[arg(long, default_value_t = 30.0)]
    request_seconds_max: f64,
    /// The time limit of the whole run, in seconds.
    #[arg(long, default_value_t = 7200.0)]
    run_seconds_max: f64,
    /// The seed of all that is random.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// How long each probe of the floor runs before the scenarios.
const PROBE: Duration = Duration::from_secs(1);

/// What is printed, and whether the figures may be used.
pub(crate) struct Verdict {
    pub(crate) text: String,
    pub(crate) valid: bool,
}

/// Does what the command line asks.
pub(crate) async fn perform(arguments: Arguments) -> Result<Verdict> {
    match arguments.command {
        Command::Run(options) => {
            let limit = duration(options.size.run_seconds_max)?;
            let whole = tokio::time::timeout(limit, measure(*options)).await;
            whole.context("the run took longer than --run-seconds-max allows")?
        }
        Command::Floor { seconds, json } => floor(duration(seconds)?, json),
        Command::Gate { binary } => {
            let report = gate::measure(&binary, Progress::on_stderr()).await?;
            Ok(Verdict { text: gate::judge(&report)?, valid: true })
        }
        Command::Scenarios => {
            let lines: Vec<String> = ALL.iter().map(|known| format!("{:14} {}\n", known.name, known.about)).collect();
            Ok(Verdict { text: lines.concat(), valid: true })
        }
    }
}

fn floor(each: Duration, json: bool) -> Result<Verdict> {
    let floor = Floor::measure(each)?;
    if json {
        return Ok(Verdict { text: serde_json::to_string_pretty(&floor)? + "\n", valid: true });
    }
    let (rate, cost_us) = generator_rate(each)?;
    let mine = format!(
        "this generator: {rate:.0} requests/s against a server that does nothing, {cost_us:.1} µs of CPU each\n"
    );
    Ok(Verdict { text: table::floors(&floor) + &mine, valid: true })
}

async fn measure(options: Run) -> Result<Verdict> {
    let scenarios = chosen(&options.scenarios)?;
    let targets = targets(&options)?;
    let size = &options.size;
    let client = ClientBounds {
        connections_max: size.connections_max,
        time_limit: duration(size.request_seconds_max)?,
        i_own_this_server: options.i_own_this_server,
    };
    let bounds = Bounds { users_max: size.users_max, rooms_max: size.rooms_max };
    let run_name = run_name();
    if let Some(folder) = &options.state {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let mut worlds: Vec<World> = Vec::new();
    for target in targets {
        let file = options.state.as_ref().map(|folder| folder.join(format!("{}.json", file_name(&target.name))));
        worlds.push(connect(target, client, file, format!("load-{run_name}"), bounds).await?);
    }
    let context = Context { plan: plan(size, run_name)?, progress: Progress::on_stderr() };
    let mut report = run(&mut worlds, &scenarios, Some(Floor::measure(PROBE)?), &context).await?;
    report.notes.splice(0..0, notes(&options, &worlds));
    if let Some(path) = &options.html {
        std::fs::write(path, page::render(&report)).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let text = if options.json { serde_json::to_string_pretty(&report)? + "\n" } else { table::render(&report) };
    Ok(Verdict { text, valid: report.valid() })
}

/// What a reader must know to judge the figures.
fn notes(options: &Run, worlds: &[World]) -> Vec<String> {
    let size = &options.size;
    let mut notes: Vec<String> = worlds
        .iter()
        .map(|world| {
            let pids = &world.target.pids;
            let cost =
                if pids.is_empty() { "no --pid, so no CPU time".to_owned() } else { format!("processes {pids:?}") };
            format!("{}: {}, {cost}", world.target.name, world.target.url)
        })
        .collect();
    notes.push(format!(
        "{} rounds, targets taking turns; phases of {} s after {} s of warm-up; open arrivals (Poisson, seed {}) at {} of \
         the capacity found, at most {}/s; latency counts from the intended start, failures count as infinite",
        size.rounds, size.seconds, size.warm_up, size.seed, size.load, size.rate_max
    ));
    notes
}

fn chosen(names: &[String]) -> Result<Vec<&'static Known>> {
    let find = |name: &String| {
        let known = ALL.iter().find(|known| known.name == name);
        known.with_context(|| format!("no scenario is called `{name}`; see: cofactor-loadtest scenarios"))
    };
    names.iter().map(find).collect()
}

fn targets(options: &Run) -> Result<Vec<Target>> {
    let mut targets = options.target.iter().map(|text| Target::parse(text)).collect::<Result<Vec<_>>>()?;
    for text in &options.pid {
        let (target, pids) = for_target(&mut targets, text)?;
        for pid in pids.split(',') {
            target.pids.push(pid.parse().with_context(|| format!("`{pid}` is no process id"))?);
        }
    }
    for text in &options.metrics {
        let (target, pages) = for_target(&mut targets, text)?;
        for page in pages.split(',') {
            target.metrics.push(Target::parse(page)?.url);
        }
    }
    for text in &options.registration_token {
        let (target, token) = for_target(&mut targets, text)?;
        target.registration_token = Some(token.to_owned());
    }
    Ok(targets)
}

fn plan(size: &Size, run: String) -> Result<Plan> {
    let sizes = [&size.members, &size.rooms, &size.waiters, &size.polls, &size.pages, &size.devices, &size.media];
    if size.rounds == 0 || size.in_flight.contains(&0) || sizes.iter().any(|sizes| sizes.contains(&0)) {
        bail!("--rounds and all sizes but --changed and --logins begin at 1");
    }
    Ok(Plan {
        members: size.members.clone(),
        rooms: size.rooms.clone(),
        in_flight: size.in_flight.clone(),
        waiters: size.waiters.clone(),
        polls: size.polls.clone(),
        changed: size.changed.clone(),
        pages: size.pages.clone(),
        logins: size.logins.clone(),
        devices: size.devices.clone(),
        media: size.media.clone(),
        soak: duration(size.soak_seconds)?,
        rounds: size.rounds,
        time: duration(size.seconds)?,
        warm_up: duration(size.warm_up)?,
        requests_max: size.requests_max,
        open: true,
        open_load: size.load,
        open_rate_max: size.rate_max,
        open_in_flight_max: size.connections_max,
        check_members: size.check_members,
        check_deliveries_max: size.check_deliveries_max,
        patience: Patience::default(),
        seed: size.seed,
        run,
    })
}

fn duration(seconds: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(seconds).with_context(|| format!("{seconds} is no time in seconds"))
}

/// Distinguishes the accounts and events of this run from those of every other.
fn run_name() -> String {
    #[expect(clippy::disallowed_methods, reason = "this is where the time enters: a name must be new, not exact")]
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{:x}", now.as_millis())
}

fn file_name(target: &str) -> String {
    target.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' }).collect()
}
