//! The command line of Cofactor.

use std::{io::Write, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Parser, Subcommand};
use cofactor_node::{Config, EXAMPLE, Node, admin};
use mimalloc::MiMalloc;

/// What is asked on one thread is often given back on another, which the system's allocator pays dearly for.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Cofactor, a Matrix homeserver.
///
/// Without any configuration it is a complete homeserver on http://localhost:8008 with its data in ./cofactor-data.
/// Registration is closed until a token or a flag opens it: `cofactor serve --registration-token TOKEN`.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    /// The configuration file (TOML). Options in the environment (COFACTOR__…) go before those in the file.
    #[arg(long, short, global = true, env = "COFACTOR_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the homeserver until it is told to stop (SIGTERM, Ctrl-C).
    Serve(Serve),
    /// Show or check the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Create and change accounts.
    ///
    /// With the embedded store the server must not be running on the same data; in a cluster a worker must be running.
    #[command(subcommand)]
    User(UserCommand),
    /// Make, change or examine the schema of the CQL store (`store.backend = "cql"`).
    #[command(subcommand)]
    Schema(SchemaCommand),
    /// See how the homeserver is doing, whether it is one process or a cluster.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Look at the installation and say what is wrong with it.
    Doctor,
    /// List every method and path that this release serves.
    Endpoints,
}

#[derive(clap::Args)]
struct Serve {
    /// The name of this homeserver, the part of user ids after the colon (option `server_name`).
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
    /// The data folder (option `data_dir`).
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// An address to listen on, instead of those in the configuration (option `http.listen`). May be given often.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Vec<std::net::SocketAddr>,
    /// Let whoever knows this token register (option `registration.token`).
    #[arg(long, value_name = "TOKEN")]
    registration_token: Option<String>,
    /// Let anybody register (option `registration.open`). Only where strangers cannot reach the server.
    #[arg(long)]
    open_registration: bool,
    /// What this process does in a cluster: `frontend` serves clients, `worker` owns rooms and users, `sync` keeps what
    /// waiting clients wait for. Several with commas between them, or the flag several times; without it the option
    /// `cluster.roles`, which is all three unless it is set. A process alone must do everything.
    #[arg(long = "role", value_name = "ROLE", value_delimiter = ',')]
    roles: Vec<String>,
    /// The name of this process in its cluster (option `cluster.name`). No two that run may have the same. A process that
    /// starts again under its name gets back the rooms and users it had; without a name it has the machine's.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Where other processes of the cluster call this one (option `cluster.listen`).
    #[arg(long, value_name = "ADDRESS:PORT")]
    cluster_listen: Option<String>,
    /// Where other processes of the cluster reach this one, if that is another address than it listens on (option
    /// `cluster.advertise`).
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
}

#[derive(Subcommand)]
enum ClusterCommand {
    /// Show the processes, their shards and leases, how fast they are, what is wrong and what to do.
    ///
    /// Asks the operator's page (option `admin.listen`) of the process with this configuration; without it, the store and
    /// each process of a cluster. Fails if something is wrong.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
enum SchemaCommand {
    /// Make the keyspace and its tables where they are not there, and change what an older release made.
    ///
    /// A starting server does the same unless `store.cql.migrate = false`; then this is run once before each new release.
    /// Several may run at once: one does the work, the others wait.
    #[command(visible_alias = "create")]
    Migrate,
    /// Change nothing, and say whether a server of this release could start on what is there.
    Check,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Print every option with its default and meaning.
    Example,
    /// Say whether the configuration can be used.
    Check,
}

#[derive(Subcommand)]
enum UserCommand {
    /// Create an account. The password is read from standard input.
    Create {
        /// The user name, such as `alice`.
        name: String,
        /// Make it a server administrator.
        #[arg(long)]
        admin: bool,
    },
    /// Change an account's password, and log all its devices out. The password is read from standard input.
    Password {
        /// The user name.
        name: String,
    },
    /// Deactivate an account for good. The name stays taken.
    Deactivate {
        /// The user name.
        name: String,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(code) => code,
        Err(error) => {
            say_error(&format!("cofactor: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "a command line speaks to its user")]
fn say_error(line: &str) {
    eprintln!("{line}");
}

/// Prints a line; a reader that has gone is no error.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let load = || Config::load(arguments.config.as_deref());
    match arguments.command {
        Command::Serve(serve) => {
            let mut config = load()?;
            serve.apply(&mut config);
            config.check()?;
            let _telemetry = cofactor_telemetry::init(&config.telemetry, &config.instance())?;
            actix_rt::System::new().block_on(run_server(&config))?;
        }
        Command::Config(ConfigCommand::Example) => say(EXAMPLE.trim_end()),
        Command::Config(ConfigCommand::Check) => {
            load()?;
            say("the configuration can be used");
        }
        Command::User(command) => {
            let config = load()?;
            let (name, task) = command.task()?;
            let user_id = actix_rt::System::new().block_on(admin::account(&config, &name, task))?;
            say(&format!("done: {user_id}"));
        }
        Command::Schema(command) => {
            let config = load()?;
            let task = match command {
                SchemaCommand::Migrate => admin::SchemaTask::Migrate,
                SchemaCommand::Check => admin::SchemaTask::Check,
            };
            say(&actix_rt::System::new().block_on(admin::schema(&config, task))?);
        }
        Command::Cluster(ClusterCommand::Status { json }) => {
            let glance = actix_rt::System::new().block_on(admin::glance(&load()?))?;
            say(if json { serde_json::to_string_pretty(&glance)? } else { glance.to_string() }.trim_end());
            return Ok(if glance.wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Doctor => return Ok(doctor(&load()?)),
        Command::Endpoints => {
            let endpoints = actix_rt::System::new().block_on(admin::endpoints())?;
            endpoints.iter().for_each(|line| say(line));
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn run_server(config: &Config) -> anyhow::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .context("cannot listen for SIGTERM")?;
    let mut node = Node::start(config).await?;
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    };
    let kept = node.keep(stop).await;
    if kept.is_ok() {
        node.stop().await;
    }
    Ok(kept?)
}

fn doctor(config: &Config) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for finding in actix_rt::System::new().block_on(admin::doctor(config)) {
        match finding {
            Ok(line) => say(&format!("ok    {line}")),
            Err(line) => {
                code = ExitCode::FAILURE;
                say(&format!("WRONG {line}"));
            }
        }
    }
    code
}

impl Serve {
    fn apply(self, config: &mut Config) {
        if let Some(server_name) = self.server_name {
            config.server_name = server_name;
        }
        if let Some(data_dir) = self.data_dir {
            config.data_dir = data_dir;
        }
        if !self.listen.is_empty() {
            config.http.listen = self.listen;
        }
        if self.registration_token.is_some() {
            config.registration.token = self.registration_token;
        }
        config.registration.open |= self.open_registration;
        if !self.roles.is_empty() {
            config.cluster.roles = self.roles;
        }
        if let Some(name) = self.name {
            config.cluster.name = name;
        }
        if let Some(listen) = self.cluster_listen {
            config.cluster.listen = listen;
        }
        if self.advertise.is_some() {
            config.cluster.advertise = self.advertise;
        }
    }
}

impl UserCommand {
    fn task(self) -> anyhow::Result<(String, admin::AccountTask)> {
        Ok(match self {
            Self::Create { name, admin } => (name, admin::AccountTask::Create { password: read_password()?, admin }),
            Self::Password { name } => (name, admin::AccountTask::Password { password: read_password()? }),
            Self::Deactivate { name } => (name, admin::AccountTask::Deactivate),
        })
    }
}

/// The first line of standard input; never an argument, which other users of the machine could see.
fn read_password() -> anyhow::Result<String> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).context("the password cannot be read from standard input")?;
    let password = line.trim_end_matches(['\r', '\n']).to_owned();
    anyhow::ensure!(!password.is_empty(), "the password is empty; write it to standard input");
    Ok(password)
}
