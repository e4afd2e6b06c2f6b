//! What the operator chooses.

use std::{fmt, fs, io, path::Path, path::PathBuf, time::Duration};

use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

/// The shortest secret that is accepted, in characters.
const SECRET_CHARS_MIN: usize = 16;
/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// How the nodes of a cluster know one another. There is no way to run without.
#[derive(Clone)]
pub enum Security {
    /// A secret that all nodes share, at least 16 visible ASCII characters. It and the messages travel in the clear, so
    /// the network between the nodes must be private or encrypted by other means; otherwise use [`Self::MutualTls`].
    Secret(String),
    /// TLS in which both sides show a certificate of one authority. Whoever has such a certificate is a node, so the
    /// authority must be the cluster's own.
    MutualTls(MutualTls),
}

/// Where the pieces of mutual TLS are. All files are PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MutualTls {
    /// The certificates of the authority.
    pub ca: PathBuf,
    /// This node's certificate, and those between it and the authority. It must be good for servers and for clients.
    pub certificate: PathBuf,
    /// The private key of `certificate`.
    pub key: PathBuf,
    /// The name that the certificates of all nodes carry. `None`: each carries the host under which it is called.
    pub server_name: Option<String>,
}

/// Why the security is none.
#[derive(Debug, thiserror::Error)]
pub enum SecurityError {
    /// Neither a secret nor certificates.
    #[error("calls between nodes need a shared secret or mutual TLS; neither is configured")]
    Missing,
    /// Both.
    #[error("calls between nodes use a shared secret or mutual TLS, not both; remove one from the configuration")]
    Ambiguous,
    /// A secret that can be guessed.
    #[error(
        "the secret of the cluster has {0} characters; it needs at least {SECRET_CHARS_MIN}, better 32 random ones"
    )]
    ShortSecret(usize),
    /// A secret that no header can carry.
    #[error("the secret of the cluster may hold only letters, digits and visible ASCII signs, no spaces")]
    UnfitSecret,
    /// A file that cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Files that do not hold what they should.
    #[error("the certificates for calls between nodes cannot be used: {0}")]
    Certificates(String),
}

impl Security {
    /// What a configuration chose, which may name at most one of the two.
    ///
    /// # Errors
    /// If it names none, or both, or a secret that is too weak.
    pub fn choose(secret: Option<String>, tls: Option<MutualTls>) -> Result<Self, SecurityError> {
        let security = match (secret, tls) {
            (None, None) => return Err(SecurityError::Missing),
            (Some(_), Some(_)) => return Err(SecurityError::Ambiguous),
            (Some(secret), None) => Self::Secret(secret),
            (None, Some(tls)) => Self::MutualTls(tls),
        };
        security.check()?;
        Ok(security)
    }

    /// Refuses a weak secret. Files are checked when they are read.
    pub(crate) fn check(&self) -> Result<(), SecurityError> {
        let Self::Secret(secret) = self else { return Ok(()) };
        if !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(SecurityError::UnfitSecret);
        }
        if secret.len() < SECRET_CHARS_MIN {
            return Err(SecurityError::ShortSecret(secret.len()));
        }
        Ok(())
    }

    /// The value of `authorization` that proves the secret, if there is one.
    pub(crate) fn bearer(&self) -> Option<String> {
        match self {
            Self::Secret(secret) => Some(format!("Bearer {secret}")),
            Self::MutualTls(_) => None,
        }
    }
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret(_) => f.write_str("Secret(…)"),
            Self::MutualTls(tls) => f.debug_tuple("MutualTls").field(tls).finish(),
        }
    }
}

impl MutualTls {
    pub(crate) fn server(&self) -> Result<ServerTlsConfig, SecurityError> {
        choose_cryptography();
        Ok(ServerTlsConfig::new()
            .identity(self.identity()?)
            .client_ca_root(self.authority()?)
            .timeout(HANDSHAKE_TIMEOUT))
    }

    pub(crate) fn client(&self) -> Result<ClientTlsConfig, SecurityError> {
        choose_cryptography();
        let config = ClientTlsConfig::new()
            .identity(self.identity()?)
            .ca_certificate(self.authority()?)
            .timeout(HANDSHAKE_TIMEOUT);
        Ok(match &self.server_name {
            Some(name) => config.domain_name(name),
            None => config,
        })
    }

    fn identity(&self) -> Result<Identity, SecurityError> {
        Ok(Identity::from_pem(read(&self.certificate)?, read(&self.key)?))
    }

    fn authority(&self) -> Result<Certificate, SecurityError> {
        Ok(Certificate::from_pem(read(&self.ca)?))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, SecurityError> {
    fs::read(path).map_err(|error| SecurityError::Unreadable { path: path.to_owned(), error })
}

/// rustls asks the process for its cryptography, and panics if two are compiled in and none is chosen.
fn choose_cryptography() {
    // An error means that the process has chosen already, which is as good.
    drop(rustls::crypto::ring::default_provider().install_default());
}

/// How a node answers.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Where to listen, a host and port; port 0 takes any that is free.
    pub listen: String,
    /// How callers prove that they belong to the cluster.
    pub security: Security,
    /// The largest frame, in bytes, asked or answered. The same on all nodes.
    pub frame_bytes_max: usize,
    /// Calls at one time; beyond it they are refused at once. A waiting `/sync` of a user is one.
    pub calls_max: usize,
    /// Connections at one time; beyond it they wait in the kernel.
    pub connections_max: usize,
    /// The longest that a call may take, however long its caller would wait.
    pub call_timeout_max: Duration,
}

impl ServerOptions {
    /// The defaults: 64 MiB, 32,768 calls, 1,024 connections, 10 minutes.
    pub fn new(listen: impl Into<String>, security: Security) -> Self {
        Self {
            listen: listen.into(),
            security,
            frame_bytes_max: FRAME_BYTES_MAX,
            calls_max: 32_768,
            connections_max: 1_024,
            call_timeout_max: Duration::from_secs(600),
        }
    }
}

/// How a node calls others.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// How this node proves that it belongs to the cluster.
    pub security: Security,
    /// The largest frame, in bytes, asked or answered. The same on all nodes.
    pub frame_bytes_max: usize,
    /// How long a connection may take to open.
    pub connect_timeout: Duration,
    /// How long a call may wait to be sent, be it for a connection or for room on it.
    pub send_timeout: Duration,
    /// After this long without a sign of life a connection is asked for one.
    pub ping_interval: Duration,
    /// How long it may take to answer that before it counts as dead, and every call on it as unknown.
    pub ping_timeout: Duration,
    /// Connections kept, one for each address; the one unused for longest goes first.
    pub connections_max: usize,
    /// A connection unused for this long goes.
    pub idle: Duration,
}

impl ClientOptions {
    /// The defaults: 64 MiB; 1 s to connect, 2 s to send; asked after 5 s, dead after 5 more; 256 connections, 5 minutes.
    pub fn new(security: Security) -> Self {
        Self {
            security,
            frame_bytes_max: FRAME_BYTES_MAX,
            connect_timeout: Duration::from_secs(1),
            send_timeout: Duration::from_secs(2),
            ping_interval: Duration::from_secs(5),
            ping_timeout: Duration::from_secs(5),
            connections_max: 256,
            idle: Duration::from_secs(300),
        }
    }
}

/// The largest frame unless chosen otherwise, in bytes.
const FRAME_BYTES_MAX: usize = 64 * 1024 * 1024;
/// What the envelope may add to a frame, in bytes.
pub(crate) const ENVELOPE_BYTES_MAX: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "correct-horse-battery";

    fn refusal(secret: &str) -> String {
        Security::choose(Some(secret.to_owned()), None).unwrap_err().to_string()
    }

    #[test]
    fn neither_secret_nor_certificates_is_refused_with_a_sentence() {
        let error = Security::choose(None, None).unwrap_err();
        assert!(error.to_string().contains("need a shared secret or mutual TLS"), "{error}");
    }

    #[test]
    fn empty_short_and_unprintable_secrets_are_refused() {
        assert!(refusal("").contains("has 0 characters"));
        assert!(refusal("fifteen-letters").contains("has 15 characters"));
        assert!(refusal("a secret with spaces in it").contains("visible ASCII"));
        assert!(refusal("a\nsecret\nof\nmany\nlines").contains("visible ASCII"));
        assert!(Security::choose(Some("sixteen-letters!".to_owned()), None).is_ok());
    }

    #[test]
    fn both_a_secret_and_certificates_are_refused() {
        let nowhere = PathBuf::from("nowhere");
        let tls = MutualTls { ca: nowhere.clone(), certificate: nowhere.clone(), key: nowhere, server_name: None };
        assert!(matches!(Security::choose(Some(GOOD.to_owned()), Some(tls)), Err(SecurityError::Ambiguous)));
    }

    #[test]
    fn the_secret_is_not_in_debug_output() {
        let security = Security::Secret(GOOD.to_owned());
        let text = format!("{:?} {:?}", ServerOptions::new("[::1]:0", security.clone()), ClientOptions::new(security));
        assert!(!text.contains(GOOD), "{text}");
    }
}
