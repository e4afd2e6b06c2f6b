//! What an operator does without a server: accounts, and a look at the installation.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    time::Duration,
};

use cofactor_api::hash_password;
use cofactor_entity::{Placement, Planted};
use cofactor_shard::Role;
use cofactor_sync::SyncOptions;
use cofactor_types::{Clock, Entropy, Fault, SystemClock, SystemEntropy};
use cofactor_users::UsersHandle;
use cofactor_wire::user_command::UserCommand;
use ruma::{OwnedUserId, UserId};
use tokio::sync::watch;

use crate::{
    BuildError, BusBackend, Config, Core, CoreParts, Glance, Identity, StartError, StoreBackend,
    backends::{self, Backends},
    calls::Rpc,
    glance::Lookout,
    lifecycle::keeper_options,
};

/// Something to do with an account.
#[derive(Clone, Debug)]
pub enum AccountTask {
    /// Create it.
    Create {
        /// The password.
        password: String,
        /// Make it an administrator.
        admin: bool,
    },
    /// Change its password, and log all its devices out.
    Password {
        /// The new password.
        password: String,
    },
    /// Deactivate it for good.
    Deactivate,
}

/// Does something with an account. With the embedded store no running server may have the data folder; in a cluster the
/// worker that owns the account does it, so one must run. Must be called inside an actix system.
///
/// # Errors
/// If the folder is in use, no worker runs, or the account refuses.
pub async fn account(config: &Config, name: &str, task: AccountTask) -> Result<OwnedUserId, StartError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
    let server_name = config.name()?;
    let user_id =
        if name.starts_with('@') { UserId::parse(name) } else { UserId::parse_with_server_name(name, &server_name) };
    let user_id = user_id.ok().filter(|user_id| user_id.server_name() == server_name);
    let user_id = user_id.ok_or_else(|| {
        Fault::invalid(format!(
            "{name:?} is not a user name of {server_name}: write lower-case letters, digits and ._=-/+"
        ))
    })?;
    let backends = backends::open(config, Arc::clone(&clock), Arc::clone(&entropy)).await?;
    let identity = Identity::establish(&backends.store, &*entropy, server_name).await?;
    let (_shutdown, stopping) = watch::channel(false);
    let mut parts = quiet_parts(config, &backends, &identity, stopping)?;
    if let Some(rpc) = Rpc::choose(config, &*backends.store, &parts.clock)? {
        // A guest of the cluster: it takes no shards, and nobody calls it.
        parts.keeper.roles.clear();
        parts.keeper.address.clear();
        parts.transport = Some(rpc.transport());
    }
    let (core, mut keeper) = Core::build(parts).await?;
    keeper.begin().await.map_err(BuildError::from)?;
    let outcome = carry_out(&core.users, &user_id, task).await;
    if let Err(error) = keeper.leave().await {
        tracing::warn!(%error, "the shards were not handed back");
    }
    backends.store.close().await.map_err(Fault::from)?;
    outcome?;
    Ok(user_id)
}

/// How the cluster is doing. The operator's page of the process with this configuration is asked; without one, a cluster's
/// store and each of its processes. Must be called inside an actix system.
///
/// # Errors
/// If neither can be asked.
pub async fn glance(config: &Config) -> Result<Glance, StartError> {
    if let Some(address) = config.admin.listen.first() {
        match fetch(*address, "/status.json") {
            Ok(body) => return Ok(wire_json(&body)?),
            Err(error) if config.store.backend == StoreBackend::Embedded => {
                let message =
                    format!("the server does not answer at {address} (option `admin.listen`): {error}; does it run?");
                return Err(Fault::unavailable(message).into());
            }
            // The process is one of several, and how the others are is what an operator wants to know now.
            Err(_) => {}
        }
    }
    if config.store.backend == StoreBackend::Embedded {
        let message = "a server on the embedded store says how it is only on its operator's page: set the option \
                       `admin.listen`, such as [\"127.0.0.1:8010\"], and start it again";
        return Err(Fault::invalid(message).into());
    }
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
    let backends = backends::open(config, Arc::clone(&clock), Arc::clone(&entropy)).await?;
    let identity = Identity::establish(&backends.store, &*entropy, config.name()?).await?;
    let transport = Rpc::choose(config, &*backends.store, &clock)?.map(|rpc| rpc.transport());
    let lookout = Lookout {
        server_name: identity.server_name.as_str(),
        shard_count: identity.shard_count,
        store: &*backends.store,
        transport: transport.as_ref(),
        clock: &*clock,
        here: None,
    };
    let glance = lookout.look().await.map_err(Fault::from)?;
    backends.leave_bus().await;
    backends.store.close().await.map_err(Fault::from)?;
    Ok(glance)
}

fn wire_json(body: &str) -> Result<Glance, Fault> {
    serde_json::from_str(body)
        .map_err(|error| Fault::internal(format!("the operator's page of another release: {error}")))
}

/// How long the operator's page may take to answer.
const FETCH_MAX: Duration = Duration::from_secs(15);

/// The body of a page that answers with 200. HTTP/1.0, so that the body simply ends.
fn fetch(mut address: SocketAddr, path: &str) -> std::io::Result<String> {
    if address.ip().is_unspecified() {
        let is_v4 = address.is_ipv4();
        address.set_ip(if is_v4 { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
    }
    let mut stream = TcpStream::connect_timeout(&address, FETCH_MAX)?;
    stream.set_read_timeout(Some(FETCH_MAX))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        _ => Err(std::io::Error::other(format!("it says {:?} {body}", head.lines().next().unwrap_or_default()))),
    }
}

/// The parts of a node that does one thing and ends.
fn quiet_parts(
    config: &Config,
    backends: &Backends,
    identity: &Identity,
    shutdown: watch::Receiver<bool>,
) -> Result<CoreParts, StartError> {
    Ok(CoreParts {
        backends: backends.clone(),
        identity: identity.clone(),
        clock: Arc::new(SystemClock),
        entropy: Arc::new(SystemEntropy),
        placement: Placement::default(),
        idle: Duration::from_secs(config.limits.idle_s),
        sync: SyncOptions::default(),
        shutdown,
        keeper: keeper_options(config, &*backends.store)?,
        transport: None,
        planted: Planted::Nothing,
    })
}

async fn carry_out(users: &UsersHandle, user_id: &UserId, task: AccountTask) -> Result<(), Fault> {
    match task {
        AccountTask::Create { password, admin } => {
            let password_hash = Some(hash_password(&password)?);
            users.ask(user_id, UserCommand::Create { password_hash, admin }).await?;
        }
        AccountTask::Password { password } => {
            let password_hash = hash_password(&password)?;
            users.ask(user_id, UserCommand::SetPassword { password_hash, keep_only: None }).await?;
            users.ask(user_id, UserCommand::DeleteDevices { device_ids: None }).await?;
        }
        AccountTask::Deactivate => {
            users.ask(user_id, UserCommand::Deactivate).await?;
        }
    }
    Ok(())
}

/// Every method and path that this release serves. Needs no data.
///
/// # Errors
/// If the routes contradict one another: a defect.
pub async fn endpoints() -> Result<Vec<String>, StartError> {
    let dir = std::env::temp_dir().join(format!("cofactor-endpoints-{}", std::process::id()));
    let config = Config { data_dir: dir.clone(), ..Config::default() };
    let listed = list(&config).await;
    // What is left behind of an empty store is small, and the next one has another name.
    let _ = std::fs::remove_dir_all(&dir);
    listed
}

async fn list(config: &Config) -> Result<Vec<String>, StartError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
    let backends = backends::open(config, Arc::clone(&clock), Arc::clone(&entropy)).await?;
    let identity = Identity::establish(&backends.store, &*entropy, config.name()?).await?;
    let (_shutdown, stopping) = watch::channel(false);
    let (core, _keeper) = Core::build(quiet_parts(config, &backends, &identity, stopping)?).await?;
    let media = crate::lifecycle::open_media(config, &backends, &clock, &entropy)?;
    let api = cofactor_api::Api::new(cofactor_api::ApiParts {
        server_name: identity.server_name.clone(),
        public_url: None,
        registration: config.registration.clone(),
        rooms: core.rooms.clone(),
        users: core.users.clone(),
        history: core.history.clone(),
        sync: core.sync.clone(),
        media,
        shared: Arc::clone(&backends.shared),
        passwords: cofactor_api::Passwords::new()?,
        limits: cofactor_api::RateLimits::new(
            config.rate_limits.clone(),
            Arc::clone(&backends.shared),
            Arc::clone(&clock),
        ),
        clock,
        entropy,
        ready: || false,
        metrics: None,
    });
    let routes = cofactor_api::routes(api);
    if let Some(mistake) = routes.mistakes().first() {
        return Err(Fault::internal(mistake.clone()).into());
    }
    Ok(routes.list().into_iter().map(|(method, path)| format!("{method} {path}")).collect())
}

/// A look at the installation: one line for each thing that is well, or what is wrong with it and what to do.
pub async fn doctor(config: &Config) -> Vec<Result<String, String>> {
    let mut findings = Vec::new();
    findings.push(config.name().map(|name| format!("server name: {name}")).map_err(|error| error.to_string()));
    findings.push(match config.store.backend {
        StoreBackend::Embedded => examine_folder(config).await,
        StoreBackend::Cql => schema(config, SchemaTask::Check).await.map_err(|error| error.to_string()),
    });
    if config.store.backend == StoreBackend::Cql {
        findings.push(examine_cluster(config));
    }
    for address in &config.http.listen {
        let bound = TcpListener::bind(address);
        findings.push(bound.map(|_| format!("address: {address} is free")).map_err(|error| {
            format!("address: {address} cannot be listened on: {error}; stop what uses it, or change `http.listen`")
        }));
    }
    findings.push(match (&config.registration.token, config.registration.open) {
        (_, true) => Err(
            "registration: open to everybody; set `registration.token` instead where strangers can reach the server"
                .into(),
        ),
        (Some(_), false) => Ok("registration: by token".into()),
        (None, false) => Ok("registration: closed; `cofactor user create` makes accounts".into()),
    });
    findings
}

async fn examine_folder(config: &Config) -> Result<String, String> {
    let folder = config.data_dir.display();
    if !config.data_dir.exists() {
        return Ok(format!("data folder: {folder} will be made at the first start"));
    }
    let opened = backends::open(config, Arc::new(SystemClock), Arc::new(SystemEntropy)).await;
    opened.map(|_| format!("data folder: {folder} opens")).map_err(|error| error.to_string())
}

/// What several processes need that one does not.
fn examine_cluster(config: &Config) -> Result<String, String> {
    let alone = Role::ALL.iter().all(|role| config.cluster.roles.iter().any(|word| word == role.as_str()));
    if config.bus.backend == BusBackend::Local && !alone {
        return Err("cluster: processes do not hear of one another: set `bus.backend` to \"redis\"".into());
    }
    if config.cluster.secret.is_none() && config.cluster.tls.is_none() {
        return Err("cluster: calls between processes are not guarded: set `cluster.secret` or `cluster.tls`".into());
    }
    let address = config.cluster.advertise.as_ref().unwrap_or(&config.cluster.listen);
    Ok(format!("cluster: {} at {address}", config.cluster.roles.join(", ")))
}

/// Something to do with the schema of the CQL store.
#[derive(Clone, Copy, Debug)]
pub enum SchemaTask {
    /// Make what is not there, and change what is older than this release.
    Migrate,
    /// Change nothing; say whether a server of this release could start on it.
    Check,
}

/// Makes, changes or examines the schema of the CQL store, and says in a sentence how it stands. Processes that start at
/// the same time, or that run already, do not mind.
///
/// # Errors
/// If there is no CQL store, it cannot be reached, or its schema is not what this release needs.
pub async fn schema(config: &Config, task: SchemaTask) -> Result<String, StartError> {
    if config.store.backend != StoreBackend::Cql {
        return Err(
            Fault::invalid("the embedded store has no schema; the option `store.backend` would say \"cql\"").into()
        );
    }
    let options = &config.store.cql;
    let keyspace = format!("keyspace {} at {}", options.keyspace, options.nodes.join(", "));
    match task {
        SchemaTask::Migrate => {
            let report = cofactor_store_cql::migrate(options).await?;
            Ok(format!("{keyspace}: {report}"))
        }
        SchemaTask::Check => {
            cofactor_store_cql::check(options).await?;
            Ok(format!("{keyspace}: the schema is what this release needs"))
        }
    }
}
