//! What an operator writes. Every option has a default, so that no file is needed at all.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use cofactor_api::RegistrationOptions;
use cofactor_http::LimitOptions;
use cofactor_shard::Role;
use config::{Environment, File, FileFormat};
use ruma::OwnedServerName;
use serde::{Deserialize, Serialize};

/// The whole configuration, with every option explained.
pub const EXAMPLE: &str = include_str!("example.toml");

/// The configuration of a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The name of this homeserver: the part of user ids after the colon.
    pub server_name: String,
    /// The folder with all data of the embedded store.
    pub data_dir: PathBuf,
    /// The address that clients are told.
    pub public_url: Option<String>,
    /// Listening.
    pub http: cofactor_http::Options,
    /// Where data is kept.
    pub store: StoreConfig,
    /// How processes hear of one another.
    pub bus: BusConfig,
    /// What other processes there are, and how they reach one another.
    pub cluster: Cluster,
    /// The operator's page.
    pub admin: Admin,
    /// Who may register.
    pub registration: RegistrationOptions,
    /// Media.
    pub media: cofactor_media::Options,
    /// Rate limits.
    pub rate_limits: LimitOptions,
    /// `/sync`.
    pub sync: Sync,
    /// Actors.
    pub limits: Limits,
    /// Logs, traces, metrics.
    pub telemetry: cofactor_telemetry::Options,
}

/// Where data is kept.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// Which store.
    pub backend: StoreBackend,
    /// The embedded store.
    pub embedded: cofactor_store_embedded::Options,
    /// ScyllaDB or Cassandra.
    pub cql: cofactor_store_cql::Options,
}

/// The stores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreBackend {
    /// A folder of this process alone.
    #[default]
    Embedded,
    /// ScyllaDB, or Apache Cassandra.
    Cql,
}

/// How processes hear of one another.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BusConfig {
    /// Which bus.
    pub backend: BusBackend,
    /// Redis.
    pub redis: cofactor_bus_redis::RedisOptions,
}

/// The buses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BusBackend {
    /// Within this process alone.
    #[default]
    Local,
    /// Redis.
    Redis,
}

/// A node among others.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cluster {
    /// What this process does.
    pub roles: Vec<String>,
    /// The name that stays when the process is restarted; with it come the same shards. Empty: the machine's name.
    pub name: String,
    /// Where other processes call this one.
    pub listen: String,
    /// Where other processes reach this one, if that is another address than it listens on.
    pub advertise: Option<String>,
    /// How long nobody takes the place of a process that does not answer, in seconds.
    pub lease_s: u64,
    /// What all processes of the cluster know and nobody else does: at least 16 characters. This, or `tls`.
    #[serde(skip_serializing)]
    pub secret: Option<String>,
    /// Certificates, in place of the secret.
    pub tls: Option<Tls>,
}

/// Certificates for the calls between processes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The authority that signed every process's certificate, a PEM file.
    pub ca: PathBuf,
    /// This process's certificate, a PEM file.
    pub certificate: PathBuf,
    /// Its key, a PEM file.
    pub key: PathBuf,
    /// A name that all certificates carry; none: the host that is called.
    pub server_name: Option<String>,
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            roles: Role::ALL.map(|role| role.as_str().to_owned()).to_vec(),
            name: String::new(),
            listen: "127.0.0.1:8009".into(),
            advertise: None,
            lease_s: 6,
            secret: None,
            tls: None,
        }
    }
}

/// The operator's page.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// Where it listens: `/`, `/status.json`, `/metrics` and `/health`, for operators only. Empty: nowhere.
    pub listen: Vec<SocketAddr>,
    /// Show `/metrics` to clients, too.
    pub public_metrics: bool,
}

/// `/sync`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sync {
    /// Users whose rooms are kept in memory at once.
    pub users_max: usize,
    /// Recent events of rooms in memory, in bytes: what wakes many is read once for all of them. 0: none.
    pub event_cache_bytes: u64,
}

impl Default for Sync {
    fn default() -> Self {
        Self { users_max: 100_000, event_cache_bytes: cofactor_sync::EVENT_CACHE_BYTES }
    }
}

/// Actors.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// How long a room or user stays in memory without being asked anything, in seconds.
    pub idle_s: u64,
    /// How long requests may take to finish when the server stops, in seconds.
    pub shutdown_s: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { idle_s: 300, shutdown_s: 10 }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server_name: "localhost".into(),
            data_dir: "cofactor-data".into(),
            public_url: None,
            http: cofactor_http::Options::default(),
            store: StoreConfig::default(),
            bus: BusConfig::default(),
            cluster: Cluster::default(),
            admin: Admin::default(),
            registration: RegistrationOptions::default(),
            media: cofactor_media::Options::default(),
            rate_limits: LimitOptions::default(),
            sync: Sync::default(),
            limits: Limits::default(),
            telemetry: cofactor_telemetry::Options::default(),
        }
    }
}

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read, or an option has a wrong name or form.
    #[error("the configuration{} cannot be used: {message}; `cofactor config example` shows every option", .file.as_ref().map(|file| format!(" in {}", file.display())).unwrap_or_default())]
    Invalid {
        /// The file.
        file: Option<PathBuf>,
        /// What is wrong.
        message: String,
    },
    /// A role is none.
    #[error(
        "the option `cluster.roles` names {0:?}, which is no role; write some of \"frontend\", \"worker\", \"sync\""
    )]
    Role(String),
    /// A role is missing that no other process can have.
    #[error(
        "the option `cluster.roles` leaves something undone: a process on the embedded store is alone and needs the roles \"frontend\", \"worker\" and \"sync\"; for several processes set `store.backend` to \"cql\""
    )]
    Alone,
    /// The server name is none.
    #[error("the option `server_name` is not a server name: {0:?}; write a host name such as \"example.org\"")]
    ServerName(String),
}

impl Config {
    /// The configuration of a file, with options from the environment on top: `COFACTOR__HTTP__KEEP_ALIVE_S=30` sets
    /// `http.keep_alive_s`.
    ///
    /// # Errors
    /// One sentence naming the option and the file.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let invalid = |error: config::ConfigError| ConfigError::Invalid {
            file: file.map(ToOwned::to_owned),
            message: error.to_string(),
        };
        let mut builder = config::Config::builder();
        if let Some(file) = file {
            builder = builder.add_source(File::new(&file.to_string_lossy(), FileFormat::Toml));
        }
        let environment = Environment::with_prefix("COFACTOR")
            .prefix_separator("__")
            .separator("__")
            .try_parsing(true)
            .ignore_empty(true);
        let config: Self =
            builder.add_source(environment).build().and_then(config::Config::try_deserialize).map_err(invalid)?;
        config.check()?;
        Ok(config)
    }

    /// Checks what one option alone does not show.
    ///
    /// # Errors
    /// One sentence naming the option.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.name()?;
        let roles = self.roles()?;
        let does_everything = Role::ALL.iter().all(|role| roles.contains(role));
        if roles.is_empty() || (self.store.backend == StoreBackend::Embedded && !does_everything) {
            return Err(ConfigError::Alone);
        }
        Ok(())
    }

    /// The roles, checked.
    ///
    /// # Errors
    /// [`ConfigError::Role`].
    pub fn roles(&self) -> Result<Vec<Role>, ConfigError> {
        self.cluster.roles.iter().map(|word| Role::parse(word).ok_or_else(|| ConfigError::Role(word.clone()))).collect()
    }

    /// The name of this process among those of its cluster.
    pub fn instance(&self) -> String {
        match self.cluster.name.as_str() {
            "" => std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned(),
            name => name.to_owned(),
        }
    }

    /// The server name, checked.
    ///
    /// # Errors
    /// [`ConfigError::ServerName`].
    pub fn name(&self) -> Result<OwnedServerName, ConfigError> {
        let name = self.server_name.as_str();
        name.try_into().map_err(|_| ConfigError::ServerName(self.server_name.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_shows_every_option_with_its_default() {
        let example: toml::Value = toml::from_str(EXAMPLE).unwrap();
        let default = toml::Value::try_from(Config::default()).unwrap();
        assert_eq!(example, default);
        let parsed: Config = toml::from_str(EXAMPLE).unwrap();
        assert_eq!(parsed.server_name, "localhost");
    }

    #[test]
    fn a_process_on_the_embedded_store_must_do_everything() {
        let mut config = Config::default();
        assert!(config.check().is_ok());
        config.cluster.roles = vec!["frontend".into()];
        assert!(config.check().unwrap_err().to_string().contains("cluster.roles"));
        config.store.backend = StoreBackend::Cql;
        assert!(config.check().is_ok());
        config.cluster.roles.clear();
        assert!(config.check().is_err());
    }

    #[test]
    fn a_wrong_option_is_named_with_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cofactor.toml");
        std::fs::write(&file, "server_nam = \"x\"\n").unwrap();
        let error = Config::load(Some(&file)).unwrap_err().to_string();
        assert!(error.contains("server_nam") && error.contains("cofactor.toml"), "{error}");
        std::fs::write(&file, "server_name = \"not a name\"\n").unwrap();
        assert!(Config::load(Some(&file)).unwrap_err().to_string().contains("server_name"));
    }
}
