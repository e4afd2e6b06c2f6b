//! Account data and filters.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use cofactor_entity::{Cx, Decision, Read};
use cofactor_store::{key, record, tables};
use cofactor_types::{ErrorClass, Fault};
use cofactor_wire::{
    user::{AccountData, AccountDataChange, class, state},
    user_command::{Expected, UserCommand, UserReply},
};
use ruma::OwnedRoomId;
use sha2::{Digest, Sha256};

use crate::entity::UserEntity;

/// One piece of account data, in bytes.
const DATA_BYTES_MAX: usize = 256 << 10;

/// A filter, in bytes.
const FILTER_BYTES_MAX: usize = 64 << 10;

impl UserEntity {
    pub(crate) fn set_account_data(
        &mut self,
        room_id: Option<OwnedRoomId>,
        event_type: String,
        content: Bytes,
        expected: Expected,
        cx: &mut Cx,
    ) -> Decision<Self> {
        let (kind, name) = account_data_key(room_id.as_ref().map(|id| id.as_str()), &event_type);
        if expected != Expected::Anything {
            let (partition, clustering) = (key![cx.id()], key![kind, name.as_str()]);
            match cx.row(&tables::USER_STATE, &partition, &clustering) {
                None => {
                    let read = Read::Row { table: &tables::USER_STATE, partition, clustering };
                    let command = UserCommand::SetAccountData { room_id, event_type, content, expected };
                    return Decision::Need(command, vec![read]);
                }
                Some(found) => {
                    let found = found.map(|row| record::decode::<AccountData>(&row)).transpose();
                    match found {
                        Ok(found) if expected.is(found.as_ref().map(|row| &row.content)) => {}
                        Ok(_) => {
                            return Decision::Reply(Err(Fault::unavailable("the data changed meanwhile; try again")));
                        }
                        Err(error) => return Decision::Reply(Err(error.into())),
                    }
                }
            }
        }
        let written = self.write_account_data(kind, &name, room_id, event_type, content, cx);
        Decision::from_result(written.map(|()| Decision::Commit(UserReply::Done)))
    }

    fn write_account_data(
        &mut self,
        kind: &str,
        name: &str,
        room_id: Option<OwnedRoomId>,
        event_type: String,
        content: Bytes,
        cx: &mut Cx,
    ) -> Result<(), Fault> {
        self.account()?;
        if content.len() > DATA_BYTES_MAX || event_type.len() > 255 {
            return Err(Fault::new(ErrorClass::Invalid, "M_TOO_LARGE", "account data has at most 256 KiB"));
        }
        let position = cx.allocate()?;
        self.put(cx, kind, name, &AccountData { content: content.clone(), position })?;
        let change = record::encode(&AccountDataChange { room_id, event_type, content })?;
        cx.append(class::ACCOUNT_DATA, &Arc::from(""), position, change.clone());
        cx.publish(class::ACCOUNT_DATA, position, change);
        Ok(())
    }

    /// The same filter gets the same id, so that clients that put theirs at every start leave one row.
    pub(crate) fn put_filter(&mut self, filter: &Bytes, cx: &mut Cx) -> Result<Decision<Self>, Fault> {
        self.account()?;
        if filter.len() > FILTER_BYTES_MAX {
            return Err(Fault::new(ErrorClass::Invalid, "M_TOO_LARGE", "a filter has at most 64 KiB"));
        }
        let digest = Sha256::digest(filter);
        let filter_id = URL_SAFE_NO_PAD.encode(&digest[..12]);
        cx.put(&tables::USER_STATE, key![cx.id()], key![state::FILTER, filter_id.as_str()], filter.clone());
        Ok(Decision::Commit(UserReply::Filter(filter_id)))
    }
}

/// Kind and name of the row of account data.
pub(crate) fn account_data_key(room_id: Option<&str>, event_type: &str) -> (&'static str, String) {
    match room_id {
        None => (state::ACCOUNT_DATA, event_type.to_owned()),
        Some(room_id) => (state::ROOM_ACCOUNT_DATA, format!("{room_id}\0{event_type}")),
    }
}
