//! The way in to users.

use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use cofactor_entity::{Entities, Env, Placement};
use cofactor_store::{Key, Scan, key, record, tables};
use cofactor_types::{EntityId, Fault, Position};
use cofactor_wire::{
    user::{ToDevice, Users},
    user_command::{TokenRow, UserCommand, UserReply},
};
use futures::future::try_join_all;
use ruma::{DeviceId, OwnedDeviceId, OwnedUserId, UserId};
use sha2::{Digest, Sha256};

use crate::entity::UserEntity;

/// The hash under which a token is stored: tokens have 256 random bits, so that a plain hash is enough.
pub fn token_hash(token: &str) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(token))
}

/// Messages to one user: the device, `None` for all, and the message.
pub type Addressed = Vec<(Option<OwnedDeviceId>, ToDevice)>;

/// The users of this node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct UsersHandle {
    pub(crate) env: Env,
    entities: Entities<UserEntity>,
}

#[async_trait]
impl Users for UsersHandle {
    async fn acknowledge_to_device(
        &self,
        user_id: &UserId,
        device_id: &DeviceId,
        up_to: Position,
    ) -> Result<(), Fault> {
        self.ask(user_id, UserCommand::AckToDevice { device_id: device_id.to_owned(), up_to }).await.map(drop)
    }
}

impl UsersHandle {
    /// Users that run in `placement`.
    pub fn new(env: Env, placement: Placement) -> Self {
        Self { entities: Entities::new(env.clone(), (), placement), env }
    }

    /// The runtime below, for the node.
    pub fn entities(&self) -> &Entities<UserEntity> {
        &self.entities
    }

    /// Asks a user.
    ///
    /// # Errors
    /// The user's own refusal, or that of the runtime.
    pub async fn ask(&self, user_id: &UserId, command: UserCommand) -> Result<UserReply, Fault> {
        self.entities.ask(&EntityId::user(user_id), command).await
    }

    /// Who a token belongs to, by its hash; one whose time is over belongs to its device still.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn token(&self, hash: &str) -> Result<Option<TokenRow>, Fault> {
        let found = self.env.store().get(&tables::TOKENS, &key![hash], &Key::EMPTY).await?;
        Ok(found.map(|value| record::decode(&value)).transpose()?)
    }

    /// Sends to-device messages: for each receiver, the device (`None` for all) and the message. However often it is
    /// called with the same sender, device and transaction, each arrives once.
    ///
    /// # Errors
    /// If a receiver cannot be reached; call again with the same transaction.
    pub async fn send_to_device(
        &self,
        sender: &UserId,
        device_id: &DeviceId,
        transaction: &str,
        messages: Vec<(OwnedUserId, Addressed)>,
    ) -> Result<(), Fault> {
        let digest = Sha256::new()
            .chain_update(sender.as_str())
            .chain_update([0])
            .chain_update(device_id.as_str())
            .chain_update([0])
            .chain_update(transaction)
            .finalize();
        let mut first = [0; 16];
        first.copy_from_slice(&digest[..16]);
        let delivery = u128::from_be_bytes(first);
        let sends = messages.into_iter().map(|(receiver, messages)| async move {
            self.ask(&receiver, UserCommand::AddToDevice { delivery, messages }).await
        });
        try_join_all(sends).await.map(drop)
    }

    /// Deletes a key backup and its keys.
    ///
    /// # Errors
    /// If there is none, or the store fails.
    pub async fn delete_backup(&self, user_id: &UserId, version: u64) -> Result<(), Fault> {
        const PAGE: usize = 500;
        self.ask(user_id, UserCommand::DeleteBackup { version }).await?;
        let partition = key![user_id.as_str(), version.to_string()];
        loop {
            let scan = Scan::new(&tables::KEY_BACKUP, partition.clone(), Key::EMPTY, PAGE);
            let rows = self.env.store().scan(scan).await?;
            let count = rows.len();
            let delete = |row: cofactor_store::Row| cofactor_store::Mutation {
                table: &tables::KEY_BACKUP,
                partition: partition.clone(),
                clustering: row.clustering,
                value: None,
            };
            let batch = rows.into_iter().map(delete).collect();
            self.env.store().write(batch, cofactor_store::Durability::Deferred).await?;
            if count < PAGE {
                return Ok(());
            }
        }
    }
}
