//! What users are asked, and what they answer.

use std::collections::BTreeMap;

use bytes::Bytes;
use cofactor_golden::Golden;
use cofactor_wire::{
    user::{KeyCounts, ToDevice},
    user_command::{Expected, NewTokens, UserCommand, UserReply},
};
use ruma::{OwnedDeviceId, owned_device_id};

use crate::{alice, bob, bytes, position, room, room_entry};

fn device_id() -> OwnedDeviceId {
    owned_device_id!("DEVICE")
}

fn map<T>(key: &str, value: T) -> BTreeMap<String, T> {
    BTreeMap::from([(key.to_owned(), value)])
}

fn keys() -> BTreeMap<String, Bytes> {
    map("signed_curve25519:A", bytes("{}"))
}

fn tokens() -> NewTokens {
    NewTokens {
        access_hash: "access".to_owned(),
        expires_at_ms: Some(1_780_000_000_000),
        refresh_hash: Some("refresh".to_owned()),
    }
}

fn about_the_account() -> Vec<UserCommand> {
    vec![
        UserCommand::Create { password_hash: Some("$argon2id$".to_owned()), admin: true },
        UserCommand::Login { device_id: device_id(), display_name: Some("phone".to_owned()), tokens: tokens() },
        UserCommand::Refresh { device_id: device_id(), refresh_hash: "refresh".to_owned(), tokens: tokens() },
        UserCommand::DeleteDevices { device_ids: Some(vec![device_id()]) },
        UserCommand::DeleteDevices { device_ids: None },
        UserCommand::UpdateDevice { device_id: device_id(), display_name: Some("phone".to_owned()) },
        UserCommand::Seen { device_id: device_id(), ip: "192.0.2.1".to_owned() },
        UserCommand::SetPassword { password_hash: "$argon2id$".to_owned(), keep_only: Some(device_id()) },
        UserCommand::Deactivate,
        UserCommand::SetProfile { field: "displayname".to_owned(), value: Some(bytes("\"A\"")) },
        UserCommand::SetAccountData {
            room_id: Some(room()),
            event_type: "m.tag".to_owned(),
            content: bytes("{}"),
            expected: Expected::Content(bytes("[]")),
        },
        UserCommand::SetAccountData {
            room_id: None,
            event_type: "m.direct".to_owned(),
            content: bytes("{}"),
            expected: Expected::Nothing,
        },
        UserCommand::PutFilter { filter: bytes("{}") },
        UserCommand::Membership(Box::new(room_entry())),
        UserCommand::Forget { room_id: room() },
    ]
}

fn about_keys() -> Vec<UserCommand> {
    let signatures = || map("DEVICE", map("ed25519:A", "signature".to_owned()));
    let message = ToDevice { sender: alice(), event_type: "m.room_key".to_owned(), content: bytes("{}") };
    vec![
        UserCommand::UploadKeys {
            device_id: device_id(),
            device_keys: Some(bytes("{}")),
            one_time: keys(),
            fallback: keys(),
        },
        UserCommand::ClaimKeys { keys: vec![(device_id(), "signed_curve25519".to_owned())] },
        UserCommand::SetCrossSigning { keys: map("master", bytes("{}")) },
        UserCommand::AddSignatures {
            own: signatures(),
            others: BTreeMap::from([(bob(), map("ed25519:A", "signature".to_owned()))]),
        },
        UserCommand::CreateBackup { algorithm: "m.megolm".to_owned(), auth_data: bytes("{}") },
        UserCommand::UpdateBackup { version: 7, algorithm: "m.megolm".to_owned(), auth_data: bytes("{}") },
        UserCommand::DeleteBackup { version: 7 },
        UserCommand::PutBackupKeys { version: 7, keys: vec![("!r".to_owned(), "session".to_owned(), bytes("{}"))] },
        UserCommand::DeleteBackupKeys { version: 7, keys: vec![("!r".to_owned(), "session".to_owned())] },
        UserCommand::AddToDevice {
            delivery: 1 << 100,
            messages: vec![(Some(device_id()), message.clone()), (None, message)],
        },
        UserCommand::AckToDevice { device_id: device_id(), up_to: position(1) },
    ]
}

#[test]
fn what_users_are_asked_is_read_for_ever() {
    let commands = [about_the_account(), about_keys()].concat();
    let maps = ["one_time", "fallback", "keys", "own", "others", "expected", "DEVICE", "@bob:example.org"];
    Golden::new("wire/user_command").closed(&maps).variants(&[&commands]);
}

#[test]
fn what_account_data_is_expected_to_be_is_read_for_ever() {
    let all = [Expected::Anything, Expected::Nothing, Expected::Content(bytes("{}"))];
    Golden::new("wire/expected").variants(&[&all]);
}

#[test]
fn what_users_answer_is_read_for_ever() {
    let counts = KeyCounts {
        device_id: Some(device_id()),
        one_time: map("signed_curve25519", 50),
        unused_fallback: vec!["signed_curve25519".to_owned()],
        position: position(1),
    };
    let replies = [
        UserReply::Done,
        UserReply::Filter("7".to_owned()),
        UserReply::Counts(counts),
        UserReply::Claimed(vec![(device_id(), "signed_curve25519:A".to_owned(), bytes("{}"))]),
        UserReply::Backup(7),
        UserReply::BackupChanged { count: 300, etag: 8 },
    ];
    Golden::new("wire/user_reply").closed(&["one_time"]).variants(&[&replies]);
}
