//! What a user is asked, and what it answers.

use std::collections::BTreeMap;

use bytes::Bytes;
use cofactor_types::Position;
use ruma::{OwnedDeviceId, OwnedRoomId, OwnedUserId};
use serde::{Deserialize, Serialize};

use crate::user::{KeyCounts, RoomEntry, ToDevice};

/// Hashes of the tokens that a login or refresh gives out; the tokens themselves never reach the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewTokens {
    /// The access token's hash.
    pub access_hash: String,
    /// When the access token ends, in milliseconds since the Unix epoch.
    pub expires_at_ms: Option<u64>,
    /// The refresh token's hash.
    pub refresh_hash: Option<String>,
}

/// A row of the `tokens` table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRow {
    /// The user.
    pub user_id: OwnedUserId,
    /// The device.
    pub device_id: OwnedDeviceId,
    /// A refresh token, not an access token.
    #[serde(default)]
    pub refresh: bool,
    /// When it ends, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub expires_at_ms: Option<u64>,
}

/// The account, in the row [`crate::user::state::ACCOUNT`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The password's hash in PHC form; none: no login by password.
    pub password_hash: Option<String>,
    /// A server administrator.
    #[serde(default)]
    pub admin: bool,
    /// Gone for good: the name stays taken.
    #[serde(default)]
    pub deactivated: bool,
    /// When it was made, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub created_ms: u64,
}

/// A device, in a row [`crate::user::state::DEVICE`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// The name for people.
    pub display_name: Option<String>,
    /// Where it was last seen.
    #[serde(default)]
    pub last_seen_ip: Option<String>,
    /// When it was last seen, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub last_seen_ms: Option<u64>,
    /// Hashes of its live access tokens.
    #[serde(default)]
    pub access_hashes: Vec<String>,
    /// Hashes of its live refresh tokens.
    #[serde(default)]
    pub refresh_hashes: Vec<String>,
    /// One-time keys that the first releases handed out, as short hashes; those since then have rows of their own,
    /// [`crate::user::state::ISSUED_KEYS`]. None is ever handed out again, even if it is uploaded again.
    #[serde(default)]
    pub issued_keys: Vec<u64>,
}

/// A version of the key backup, in a row [`crate::user::state::BACKUP`].
/// <https://spec.matrix.org/v1.19/client-server-api/#server-side-key-backups>
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// The algorithm.
    pub algorithm: String,
    /// The algorithm's data, a JSON object.
    pub auth_data: Bytes,
    /// Keys in it.
    pub count: u64,
    /// Rises with every change.
    pub etag: u64,
}

/// A fallback key, in a row [`crate::user::state::FALLBACK_KEY`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FallbackKey {
    /// `algorithm:key id`.
    pub key_id: String,
    /// The key, JSON.
    pub key: Bytes,
    /// It was handed out.
    pub used: bool,
}

/// What must stand for a change to be made, so that what is changed in parts loses no other's part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expected {
    /// Whatever does.
    Anything,
    /// Nothing.
    Nothing,
    /// This content.
    Content(Bytes),
}

impl Expected {
    /// What was found before.
    pub fn found(content: Option<Bytes>) -> Self {
        content.map_or(Self::Nothing, Self::Content)
    }

    /// Whether it is as `found`.
    pub fn is(&self, found: Option<&Bytes>) -> bool {
        match self {
            Self::Anything => true,
            Self::Nothing => found.is_none(),
            Self::Content(content) => found == Some(content),
        }
    }
}

/// What a user is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UserCommand {
    /// Create the account.
    Create {
        /// The password's hash.
        password_hash: Option<String>,
        /// Make it an administrator.
        admin: bool,
    },
    /// Log a device in. Answer: [`UserReply::Done`].
    Login {
        /// The device; a known one loses its old tokens.
        device_id: OwnedDeviceId,
        /// Its name, if it is new.
        display_name: Option<String>,
        /// The tokens.
        tokens: NewTokens,
    },
    /// Exchange a refresh token. Answer: [`UserReply::Done`].
    Refresh {
        /// The device.
        device_id: OwnedDeviceId,
        /// The refresh token's hash.
        refresh_hash: String,
        /// The new tokens.
        tokens: NewTokens,
    },
    /// Delete devices, which logs them out. Answer: [`UserReply::Done`].
    DeleteDevices {
        /// Which; `None` for all.
        device_ids: Option<Vec<OwnedDeviceId>>,
    },
    /// Name a device. Answer: [`UserReply::Done`].
    UpdateDevice {
        /// Which.
        device_id: OwnedDeviceId,
        /// Its name.
        display_name: Option<String>,
    },
    /// A device was used. Answer: [`UserReply::Done`].
    Seen {
        /// Which.
        device_id: OwnedDeviceId,
        /// From where.
        ip: String,
    },
    /// Change the password. Answer: [`UserReply::Done`].
    SetPassword {
        /// The new hash.
        password_hash: String,
        /// Log out every device but this.
        keep_only: Option<OwnedDeviceId>,
    },
    /// Deactivate the account for good. Answer: [`UserReply::Done`].
    Deactivate,
    /// Set a profile field, or remove it. Answer: [`UserReply::Done`].
    SetProfile {
        /// The field.
        field: String,
        /// The value, JSON.
        value: Option<Bytes>,
    },
    /// Set account data. Answer: [`UserReply::Done`].
    SetAccountData {
        /// The room, if it is a room's.
        room_id: Option<OwnedRoomId>,
        /// The type.
        event_type: String,
        /// The content, a JSON object.
        content: Bytes,
        /// What must stand.
        expected: Expected,
    },
    /// Keep a filter. Answer: [`UserReply::Filter`].
    PutFilter {
        /// The filter, a JSON object.
        filter: Bytes,
    },
    /// A room's word on the user's membership. Answer: [`UserReply::Done`].
    Membership(Box<RoomEntry>),
    /// Forget a room that the user left. Answer: [`UserReply::Done`].
    Forget {
        /// Which.
        room_id: OwnedRoomId,
    },
    /// Take keys of a device. Answer: [`UserReply::Counts`].
    UploadKeys {
        /// Which.
        device_id: OwnedDeviceId,
        /// Its identity keys, a JSON object, checked already.
        device_keys: Option<Bytes>,
        /// One-time keys by `algorithm:key id`, JSON.
        one_time: BTreeMap<String, Bytes>,
        /// Fallback keys by `algorithm:key id`, JSON.
        fallback: BTreeMap<String, Bytes>,
    },
    /// Hand out one key of each device. Answer: [`UserReply::Claimed`].
    ClaimKeys {
        /// Devices and algorithms.
        keys: Vec<(OwnedDeviceId, String)>,
    },
    /// Set cross-signing keys, checked already. Answer: [`UserReply::Done`].
    SetCrossSigning {
        /// The keys by kind (`master`, `self_signing`, `user_signing`), JSON objects.
        keys: BTreeMap<String, Bytes>,
    },
    /// Add signatures, checked already, to the user's own devices and keys. Answer: [`UserReply::Done`].
    AddSignatures {
        /// By device id or public key: signing key ids and signatures by this user.
        own: BTreeMap<String, BTreeMap<String, String>>,
        /// By user: signing key ids and signatures on that user's master key.
        others: BTreeMap<OwnedUserId, BTreeMap<String, String>>,
    },
    /// Make a key backup. Answer: [`UserReply::Backup`].
    CreateBackup {
        /// The algorithm.
        algorithm: String,
        /// Its data, a JSON object.
        auth_data: Bytes,
    },
    /// Change a key backup's data. Answer: [`UserReply::Done`].
    UpdateBackup {
        /// Which.
        version: u64,
        /// The algorithm, which must be the same.
        algorithm: String,
        /// The new data.
        auth_data: Bytes,
    },
    /// Delete a key backup. Answer: [`UserReply::Done`].
    DeleteBackup {
        /// Which.
        version: u64,
    },
    /// Put keys into the newest backup. Answer: [`UserReply::BackupChanged`].
    PutBackupKeys {
        /// Which it should be.
        version: u64,
        /// Room, session, key as JSON.
        keys: Vec<(String, String, Bytes)>,
    },
    /// Delete keys from a backup. Answer: [`UserReply::BackupChanged`].
    DeleteBackupKeys {
        /// Which.
        version: u64,
        /// Room and session.
        keys: Vec<(String, String)>,
    },
    /// Queue to-device messages. Answer: [`UserReply::Done`].
    AddToDevice {
        /// The same for every try of the same sending.
        delivery: u128,
        /// The receiving device, `None` for all, and the message.
        messages: Vec<(Option<OwnedDeviceId>, ToDevice)>,
    },
    /// Forget delivered to-device messages. Answer: [`UserReply::Done`].
    AckToDevice {
        /// The device.
        device_id: OwnedDeviceId,
        /// Up to here.
        up_to: Position,
    },
}

/// What a user answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UserReply {
    /// Done, or nothing to do.
    Done,
    /// A filter's id.
    Filter(String),
    /// Key counts after an upload.
    Counts(KeyCounts),
    /// Keys handed out: device, `algorithm:key id`, key as JSON.
    Claimed(Vec<(OwnedDeviceId, String, Bytes)>),
    /// A new backup's version.
    Backup(u64),
    /// A backup's count and etag after a change.
    BackupChanged {
        /// Keys in it.
        count: u64,
        /// Its etag.
        etag: u64,
    },
}
