//! Entities: the units of single-writer ownership.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::ShardId;

/// The kinds of entities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntityKind {
    /// A room.
    Room,
    /// A local user.
    User,
    /// A remote server that we send to.
    Destination,
}

impl EntityKind {
    /// The word used in keys, logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Room => "room",
            Self::User => "user",
            Self::Destination => "destination",
        }
    }
}

/// 64 bits of SHA-256 over kind and id. It picks the shard and stands for the entity inside tokens, so it must be the
/// same on every node and release, and hard to steer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EntityHash(pub u64);

/// The identity of one entity. Cheap to clone.
#[derive(Clone, Serialize, Deserialize)]
#[serde(from = "(EntityKind, Arc<str>)", into = "(EntityKind, Arc<str>)")]
pub struct EntityId {
    kind: EntityKind,
    id: Arc<str>,
    hash: EntityHash,
}

impl EntityId {
    /// The entity of `kind` named `id`.
    pub fn new(kind: EntityKind, id: impl Into<Arc<str>>) -> Self {
        let id = id.into();
        let digest = Sha256::new().chain_update(kind.as_str()).chain_update([0]).chain_update(id.as_bytes()).finalize();
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        Self { kind, id, hash: EntityHash(u64::from_be_bytes(first)) }
    }

    /// The entity of a room.
    pub fn room(room_id: &RoomId) -> Self {
        Self::new(EntityKind::Room, room_id.as_str())
    }

    /// The entity of a user.
    pub fn user(user_id: &UserId) -> Self {
        Self::new(EntityKind::User, user_id.as_str())
    }

    /// The kind.
    pub fn kind(&self) -> EntityKind {
        self.kind
    }

    /// The Matrix identifier.
    pub fn as_str(&self) -> &str {
        &self.id
    }

    /// The Matrix identifier, shared.
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.id)
    }

    /// The stable hash.
    pub fn hash64(&self) -> EntityHash {
        self.hash
    }

    /// The shard among `count` shards. `count` is fixed when the cluster is created.
    pub fn shard(&self, count: u32) -> ShardId {
        let bucket = self.hash.0 % u64::from(count.max(1));
        ShardId(u32::try_from(bucket).unwrap_or(0))
    }

    /// The room id, if this is a room.
    pub fn room_id(&self) -> Option<OwnedRoomId> {
        (self.kind == EntityKind::Room).then(|| RoomId::parse(&*self.id).ok()).flatten()
    }

    /// The user id, if this is a user.
    pub fn user_id(&self) -> Option<OwnedUserId> {
        (self.kind == EntityKind::User).then(|| UserId::parse(&*self.id).ok()).flatten()
    }
}

impl From<(EntityKind, Arc<str>)> for EntityId {
    fn from((kind, id): (EntityKind, Arc<str>)) -> Self {
        Self::new(kind, id)
    }
}

impl From<EntityId> for (EntityKind, Arc<str>) {
    fn from(entity: EntityId) -> Self {
        (entity.kind, entity.id)
    }
}

impl PartialEq for EntityId {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.kind == other.kind && self.id == other.id
    }
}

impl Eq for EntityId {}

impl Hash for EntityId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash.0);
    }
}

impl PartialOrd for EntityId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for EntityId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.kind, &self.id).cmp(&(other.kind, &other.id))
    }
}

impl fmt::Debug for EntityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind.as_str(), self.id)
    }
}

impl fmt::Display for EntityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_of_an_entity_never_changes_between_releases() {
        // These numbers are part of the stored format: a cluster's shards must survive an upgrade.
        assert_eq!(EntityId::new(EntityKind::Room, "!a:example.org").shard(1024), ShardId(580));
        assert_ne!(
            EntityId::new(EntityKind::Room, "@a:example.org").hash64(),
            EntityId::new(EntityKind::User, "@a:example.org").hash64()
        );
    }
}
