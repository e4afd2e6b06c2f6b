//! What a deployment is called and signs with. It is made at the first start and never changes.

use std::sync::Arc;

use cofactor_store::{CasOutcome, Key, Store, StoreError, key, record, tables};
use cofactor_types::{Entropy, limits::SHARDS_DEFAULT};
use ruma::{OwnedServerName, signatures::Ed25519KeyPair};
use serde::{Deserialize, Serialize};

/// Who a deployment is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The name.
    pub server_name: OwnedServerName,
    /// Shards, fixed for ever.
    pub shard_count: u32,
    /// The signing key, a PKCS#8 document.
    #[serde(with = "bytes_as_list")]
    key: Vec<u8>,
    /// The signing key's version: the part of its id after `ed25519:`.
    key_version: String,
}

mod bytes_as_list {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        bytes.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        Vec::deserialize(deserializer)
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

/// Why a deployment cannot be what the configuration says.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The data belongs to a server of another name.
    #[error(
        "the data is of the server {stored}, but the option `server_name` says {configured}; a server cannot be renamed: set the option back, or use another data folder"
    )]
    Renamed {
        /// The name in the data.
        stored: OwnedServerName,
        /// The name in the configuration.
        configured: OwnedServerName,
    },
    /// The signing key is damaged.
    #[error("the stored signing key cannot be read: {0}")]
    Key(String),
    /// The store fails.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Identity {
    /// The stored identity; made now if there is none.
    ///
    /// # Errors
    /// If it is another server's.
    pub async fn establish(
        store: &Arc<dyn Store>,
        entropy: &dyn Entropy,
        server_name: OwnedServerName,
    ) -> Result<Self, IdentityError> {
        let partition = key!["identity"];
        let identity = match store.get(&tables::DEPLOYMENT, &partition, &Key::EMPTY).await? {
            Some(stored) => record::decode::<Self>(&stored)?,
            None => {
                let new = Self {
                    server_name: server_name.clone(),
                    shard_count: SHARDS_DEFAULT,
                    key: Ed25519KeyPair::generate().to_vec(),
                    key_version: entropy.alphanumeric(6),
                };
                let value = record::encode(&new)?;
                match store.compare_and_set(&tables::DEPLOYMENT, &partition, &Key::EMPTY, None, Some(value)).await? {
                    CasOutcome::Applied => new,
                    CasOutcome::Found(Some(other)) => record::decode(&other)?,
                    CasOutcome::Found(None) => {
                        return Err(StoreError::Unavailable("the identity cannot be written".into()).into());
                    }
                }
            }
        };
        if identity.server_name != server_name {
            let stored = identity.server_name;
            return Err(IdentityError::Renamed { stored, configured: server_name });
        }
        Ok(identity)
    }

    /// The signing key.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn key_pair(&self) -> Result<Ed25519KeyPair, IdentityError> {
        Ed25519KeyPair::from_der(&self.key, self.key_version.clone())
            .map_err(|error| IdentityError::Key(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_is_read_for_ever() {
        let identity = Identity {
            server_name: ruma::owned_server_name!("example.org"),
            shard_count: 1024,
            key: vec![1, 2, 255],
            key_version: "abc".to_owned(),
        };
        cofactor_golden::Golden::new("store/identity").record(&[identity]);
    }
}
