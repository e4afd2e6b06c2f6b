//! The published test values for signing: <https://spec.matrix.org/v1.19/appendices/#cryptographic-test-vectors>.

use cofactor_room::{Checked, room_version};
use ruma::{
    serde::{Base64, base64::Standard},
    signatures::{Ed25519KeyPair, PublicKeyMap, hash_and_sign_event, sign_json},
};
use serde_json::{Value, json};

use crate::support::object;

fn published_key() -> Ed25519KeyPair {
    // The published text has bits left over at its end, which a strict decoder refuses.
    let seed = Base64::<Standard>::parse("YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1").unwrap();
    let mut der = vec![0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
    der.extend(seed.as_bytes());
    Ed25519KeyPair::from_der(&der, "1".to_owned()).unwrap()
}

fn signature(object: &Value) -> &str {
    object["signatures"]["domain"]["ed25519:1"].as_str().unwrap()
}

#[test]
fn json_is_signed_as_published() {
    for (input, expected) in [
        (json!({}), "K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ"),
        (
            json!({ "one": 1, "two": "Two" }),
            "KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw",
        ),
    ] {
        let mut signed = object(&input);
        sign_json("domain", &published_key(), &mut signed).unwrap();
        assert_eq!(signature(&serde_json::to_value(signed).unwrap()), expected);
    }
}

#[test]
fn events_are_hashed_and_signed_as_published() {
    let minimal = json!({
        "room_id": "!x:domain", "sender": "@a:domain", "origin": "domain", "origin_server_ts": 1_000_000,
        "signatures": {}, "hashes": {}, "type": "X", "content": {}, "prev_events": [], "auth_events": [], "depth": 3,
        "unsigned": { "age_ts": 1_000_000 },
    });
    let redactable = json!({
        "content": { "body": "Here is the message content" }, "event_id": "$0:domain", "origin": "domain",
        "origin_server_ts": 1_000_000, "type": "m.room.message", "room_id": "!r:domain", "sender": "@u:domain",
        "signatures": {}, "unsigned": { "age_ts": 1_000_000 },
    });
    let rules = room_version("1").unwrap().rules();
    for (input, hash, expected) in [
        (
            &minimal,
            "5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos",
            "KxwGjPSDEtvnFgU00fwFz+l6d2pJM6XBIaMEn81SXPTRl16AqLAYqfIReFGZlHi5KLjAWbOoMszkwsQma+lYAg",
        ),
        (
            &redactable,
            "onLKD1bGljeBWQhWZ1kaP9SorVmRQNdN5aM2JYU2n/g",
            "Wm+VzmOUOz08Ds+0NTWb1d4CZrVsJSikkeRxh6aCcUwu6pNC78FunoD7KNWzqFn241eYHYMGCA5McEiVPdhzBA",
        ),
    ] {
        let mut event = object(input);
        hash_and_sign_event("domain", &published_key(), &mut event, &rules.redaction).unwrap();
        let event = serde_json::to_value(event).unwrap();
        assert_eq!(event["hashes"]["sha256"], hash);
        assert_eq!(signature(&event), expected);
    }
}

/// The published minimal event passes our way in, in the versions whose events have no id of their own.
#[test]
fn the_published_event_is_verified_with_the_published_key() {
    let event = json!({
        "auth_events": [], "content": {}, "depth": 3,
        "hashes": { "sha256": "5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos" },
        "origin": "domain", "origin_server_ts": 1_000_000, "prev_events": [], "room_id": "!x:domain",
        "sender": "@a:domain", "type": "X", "unsigned": { "age_ts": 1_000_000 },
        "signatures": { "domain": {
            "ed25519:1": "KxwGjPSDEtvnFgU00fwFz+l6d2pJM6XBIaMEn81SXPTRl16AqLAYqfIReFGZlHi5KLjAWbOoMszkwsQma+lYAg",
        } },
    });
    let key = Base64::new(published_key().public_key().to_vec());
    let keys = PublicKeyMap::from([("domain".to_owned(), [("ed25519:1".to_owned(), key)].into())]);
    // From version 11 on `origin` is not kept by a redaction, so the signature is another one.
    for version in ["3", "4", "5", "6", "7", "8", "9", "10"] {
        let checked = Checked::from_bytes(event.to_string().as_bytes(), room_version(version).unwrap()).unwrap();
        let verified = checked.verify(&keys).unwrap();
        assert!(!verified.was_redacted());
        assert_eq!(verified.pdu().depth(), 3);
    }
}
