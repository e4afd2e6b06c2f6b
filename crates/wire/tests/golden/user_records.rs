//! The records of users.

use std::collections::BTreeMap;

use cofactor_golden::Golden;
use cofactor_wire::{
    user::{AccountData, AccountDataChange, DevicesChange, KeyCounts, SessionsEnded, ToDevice, UserDelivery},
    user_command::{Account, Backup, Device, FallbackKey, TokenRow},
};
use ruma::owned_device_id;

use crate::{alice, bytes, position, room, room_entry};

#[test]
fn the_rooms_of_a_user_are_read_for_ever() {
    let optional = ["stripped_state", "forgotten", "position", "since", "since_room", "was_joined"];
    Golden::new("store/room_entry").optional(&optional).record(&[room_entry()]);
    let delivery = UserDelivery::Membership(Box::new(room_entry()));
    Golden::new("wire/user_delivery").variants(&[&[delivery]]);
}

#[test]
fn account_data_is_read_for_ever() {
    Golden::new("store/account_data").record(&[AccountData { content: bytes("{}"), position: position(1) }]);
    let change = AccountDataChange { room_id: Some(room()), event_type: "m.tag".to_owned(), content: bytes("{}") };
    Golden::new("store/account_data_change").optional(&["room_id"]).record(&[change]);
}

#[test]
fn accounts_devices_and_tokens_are_read_for_ever() {
    let account = Account {
        password_hash: Some("$argon2id$".to_owned()),
        admin: true,
        deactivated: true,
        created_ms: 1_780_000_000_000,
    };
    let optional = ["password_hash", "admin", "deactivated", "created_ms"];
    Golden::new("store/account").optional(&optional).record(&[account]);
    let device = Device {
        display_name: Some("phone".to_owned()),
        last_seen_ip: Some("192.0.2.1".to_owned()),
        last_seen_ms: Some(1_780_000_000_000),
        access_hashes: vec!["access".to_owned()],
        refresh_hashes: vec!["refresh".to_owned()],
        issued_keys: vec![1, u64::MAX],
    };
    let optional = ["display_name", "last_seen_ip", "last_seen_ms", "access_hashes", "refresh_hashes", "issued_keys"];
    Golden::new("store/device").optional(&optional).record(&[device]);
    let token = TokenRow {
        user_id: alice(),
        device_id: owned_device_id!("DEVICE"),
        refresh: true,
        expires_at_ms: Some(1_780_000_000_000),
    };
    Golden::new("store/token").optional(&["refresh", "expires_at_ms"]).record(&[token]);
    Golden::new("store/account_created_ms").record(&[1_780_000_000_000_u64]);
}

#[test]
fn keys_and_backups_are_read_for_ever() {
    let counts = KeyCounts {
        device_id: Some(owned_device_id!("DEVICE")),
        one_time: BTreeMap::from([("signed_curve25519".to_owned(), 50)]),
        unused_fallback: vec!["signed_curve25519".to_owned()],
        position: position(1),
    };
    Golden::new("store/key_counts").optional(&["device_id", "position"]).closed(&["one_time"]).record(&[counts]);
    let key = FallbackKey { key_id: "signed_curve25519:A".to_owned(), key: bytes("{}"), used: true };
    Golden::new("store/fallback_key").record(&[key]);
    let backup = Backup { algorithm: "m.megolm".to_owned(), auth_data: bytes("{}"), count: 300, etag: 7 };
    Golden::new("store/backup").record(&[backup]);
    let change = DevicesChange { device_ids: vec![owned_device_id!("DEVICE")] };
    Golden::new("store/devices_change").record(&[change]);
    Golden::new("wire/sessions_ended").record(&[SessionsEnded { token_hashes: vec!["hash".to_owned()] }]);
}

#[test]
fn to_device_messages_are_read_for_ever() {
    let message = ToDevice { sender: alice(), event_type: "m.room_key".to_owned(), content: bytes("{}") };
    Golden::new("store/to_device").record(&[message]);
    Golden::new("store/delivered").record(&[0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10_u128]);
}
