//! Key backups. <https://spec.matrix.org/v1.19/client-server-api/#server-side-key-backups>

use bytes::Bytes;
use cofactor_entity::{Cx, Decision, Read};
use cofactor_store::{Key, key, tables};
use cofactor_types::{ErrorClass, Fault};
use cofactor_wire::{
    user::state,
    user_command::{Backup, UserCommand, UserReply},
};
use serde::Deserialize;

use crate::entity::UserEntity;

/// Keys in one request.
pub(crate) const KEYS_MAX: usize = 10_000;

/// One backed-up key, in bytes.
const KEY_BYTES_MAX: usize = 64 << 10;

/// What decides which of two copies of a key is the better one.
#[derive(Deserialize)]
struct Rank {
    #[serde(default)]
    is_verified: bool,
    #[serde(default)]
    first_message_index: u64,
    #[serde(default)]
    forwarded_count: u64,
}

impl UserEntity {
    pub(crate) fn create_backup(
        &mut self,
        algorithm: String,
        auth_data: Bytes,
        cx: &mut Cx,
    ) -> Result<Decision<Self>, Fault> {
        self.account()?;
        let version = self.backup_last + 1;
        let backup = Backup { algorithm, auth_data, count: 0, etag: 0 };
        self.put(cx, state::BACKUP, &version.to_string(), &backup)?;
        self.backup_last = version;
        self.backups.insert(version, backup);
        Ok(Decision::Commit(UserReply::Backup(version)))
    }

    pub(crate) fn update_backup(
        &mut self,
        version: u64,
        algorithm: &str,
        auth_data: Bytes,
        cx: &mut Cx,
    ) -> Result<(), Fault> {
        let known = self.backups.get(&version).ok_or_else(no_backup)?;
        if known.algorithm != algorithm {
            return Err(Fault::invalid("the algorithm of a backup cannot change; make a new version"));
        }
        let backup = Backup { auth_data, ..known.clone() };
        self.put_backup(version, backup, cx)
    }

    pub(crate) fn delete_backup(&mut self, version: u64, cx: &mut Cx) -> Result<(), Fault> {
        if self.backups.remove(&version).is_none() {
            return Err(no_backup());
        }
        // The number stays taken. The keys are deleted by the caller, who can page through them.
        cx.put(&tables::USER_STATE, key![cx.id()], key![state::BACKUP, version.to_string()], Bytes::new());
        Ok(())
    }

    pub(crate) fn put_backup_keys(
        &mut self,
        version: u64,
        keys: Vec<(String, String, Bytes)>,
        cx: &mut Cx,
    ) -> Decision<Self> {
        if let Err(fault) = self.check_newest(version, keys.len()) {
            return Decision::Reply(Err(fault));
        }
        let partition = backup_partition(cx, version);
        let reads =
            missing(cx, &partition, keys.iter().map(|(room, session, _)| key![room.as_str(), session.as_str()]));
        if !reads.is_empty() {
            return Decision::Need(UserCommand::PutBackupKeys { version, keys }, reads);
        }
        let mut backup = match self.backups.get(&version) {
            Some(backup) => backup.clone(),
            None => return Decision::Reply(Err(no_backup())),
        };
        let mut changed = false;
        for (room_id, session_id, new) in keys {
            if new.len() > KEY_BYTES_MAX {
                return Decision::Reply(Err(Fault::new(
                    ErrorClass::Invalid,
                    "M_TOO_LARGE",
                    "a backed-up key is too large",
                )));
            }
            let clustering = key![room_id, session_id];
            let known = cx.row(&tables::KEY_BACKUP, &partition, &clustering).flatten();
            if known.as_ref().is_some_and(|known| !is_better(&new, known)) {
                continue;
            }
            backup.count += u64::from(known.is_none());
            changed = true;
            cx.put(&tables::KEY_BACKUP, partition.clone(), clustering, new);
        }
        self.finish_backup(version, backup, changed, cx)
    }

    pub(crate) fn delete_backup_keys(
        &mut self,
        version: u64,
        keys: Vec<(String, String)>,
        cx: &mut Cx,
    ) -> Decision<Self> {
        let Some(mut backup) = self.backups.get(&version).cloned() else {
            return Decision::Reply(Err(no_backup()));
        };
        let partition = backup_partition(cx, version);
        let reads = missing(cx, &partition, keys.iter().map(|(room, session)| key![room.as_str(), session.as_str()]));
        if !reads.is_empty() {
            return Decision::Need(UserCommand::DeleteBackupKeys { version, keys }, reads);
        }
        let mut changed = false;
        for (room_id, session_id) in keys {
            let clustering = key![room_id, session_id];
            if cx.row(&tables::KEY_BACKUP, &partition, &clustering).flatten().is_some() {
                backup.count = backup.count.saturating_sub(1);
                changed = true;
                cx.delete(&tables::KEY_BACKUP, partition.clone(), clustering);
            }
        }
        self.finish_backup(version, backup, changed, cx)
    }

    fn finish_backup(&mut self, version: u64, mut backup: Backup, changed: bool, cx: &mut Cx) -> Decision<Self> {
        backup.etag += u64::from(changed);
        let reply = UserReply::BackupChanged { count: backup.count, etag: backup.etag };
        let written = if changed { self.put_backup(version, backup, cx) } else { Ok(()) };
        Decision::from_result(written.map(|()| Decision::Commit(reply)))
    }

    fn put_backup(&mut self, version: u64, backup: Backup, cx: &mut Cx) -> Result<(), Fault> {
        self.put(cx, state::BACKUP, &version.to_string(), &backup)?;
        self.backups.insert(version, backup);
        Ok(())
    }

    /// Keys go into the newest version only.
    fn check_newest(&self, version: u64, count: usize) -> Result<(), Fault> {
        if count > KEYS_MAX {
            return Err(Fault::new(ErrorClass::Invalid, "M_TOO_LARGE", "too many keys in one request"));
        }
        match self.backups.keys().next_back() {
            None => Err(no_backup()),
            Some(newest) if *newest != version => Err(Fault::new(
                ErrorClass::Forbidden,
                "M_WRONG_ROOM_KEYS_VERSION",
                format!("the current version is {newest}"),
            )),
            Some(_) => Ok(()),
        }
    }
}

pub(crate) fn no_backup() -> Fault {
    Fault::not_found("there is no such key backup")
}

fn backup_partition(cx: &Cx, version: u64) -> Key {
    key![cx.id(), version.to_string()]
}

fn missing(cx: &Cx, partition: &Key, clusterings: impl Iterator<Item = Key>) -> Vec<Read> {
    clusterings
        .filter(|clustering| cx.row(&tables::KEY_BACKUP, partition, clustering).is_none())
        .map(|clustering| Read::Row { table: &tables::KEY_BACKUP, partition: partition.clone(), clustering })
        .collect()
}

/// <https://spec.matrix.org/v1.19/client-server-api/#backup-algorithm-mmegolm_backupv1curve25519-aes-sha2>: verified
/// beats unverified, then the lower first index, then the lower forwarded count.
fn is_better(new: &[u8], known: &[u8]) -> bool {
    let rank = |bytes: &[u8]| serde_json::from_slice::<Rank>(bytes);
    let (Ok(new), Ok(known)) = (rank(new), rank(known)) else { return true };
    let order = |rank: &Rank| (!rank.is_verified, rank.first_message_index, rank.forwarded_count);
    order(&new) < order(&known)
}
