//! Events written here, and the forms they have.

use cofactor_room::{
    AuthorError, Draft, EventRef, Pdu, author, author::PDU_BYTES_MAX, next_depth, supported_room_versions,
};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, MilliSecondsSinceUnixEpoch, OwnedRoomId, UInt,
    events::TimelineEventType,
};
use serde_json::{Value, json};

use crate::support::{ALICE, BOB, World, key_pair, object, user};

fn draft<'a>(room_id: &'a OwnedRoomId, event_type: &'a TimelineEventType, content: CanonicalJsonObject) -> Draft<'a> {
    Draft {
        room_id: Some(room_id),
        sender: user(ALICE),
        event_type,
        state_key: None,
        content,
        redacts: None,
        origin_server_ts: MilliSecondsSinceUnixEpoch(UInt::from(1_u32)),
        prev_events: &[],
        auth_events: &[],
        depth: 1,
        unsigned: None,
        event_id_localpart: "local",
    }
}

fn write(version: &str, draft: Draft<'_>) -> Result<Pdu, AuthorError> {
    author(cofactor_room::room_version(version).unwrap(), draft, &key_pair("a.test"))
}

fn text(length: usize) -> CanonicalJsonObject {
    object(&json!({ "body": "x".repeat(length) }))
}

#[test]
fn an_event_may_be_exactly_as_large_as_the_limit_and_no_larger() {
    let room_id: OwnedRoomId = "!room:a.test".try_into().unwrap();
    let kind = TimelineEventType::RoomMessage;
    let empty = write("11", draft(&room_id, &kind, text(0))).unwrap().federation_json().len();
    assert!(write("11", draft(&room_id, &kind, text(PDU_BYTES_MAX - empty))).is_ok());
    let larger = write("11", draft(&room_id, &kind, text(PDU_BYTES_MAX - empty + 1)));
    assert!(matches!(larger, Err(AuthorError::TooLarge { bytes }) if bytes == PDU_BYTES_MAX + 1), "{larger:?}");
}

/// S34.
#[test]
fn types_and_state_keys_are_limited_in_bytes() {
    let room_id: OwnedRoomId = "!room:a.test".try_into().unwrap();
    for (length, fits) in [(254, true), (255, true), (256, false)] {
        for name in ["x".repeat(length), format!("{}é", "x".repeat(length - 2))] {
            let kind = TimelineEventType::from(name.as_str());
            assert_eq!(write("11", draft(&room_id, &kind, text(0))).is_ok(), fits);
            let kind = TimelineEventType::RoomTopic;
            let with_key = Draft { state_key: Some(&name), ..draft(&room_id, &kind, text(0)) };
            assert_eq!(write("11", with_key).is_ok(), fits);
        }
    }
}

#[test]
fn references_and_nesting_are_limited() {
    let room_id: OwnedRoomId = "!room:a.test".try_into().unwrap();
    let kind = TimelineEventType::RoomMessage;
    let refs: Vec<EventRef> =
        (0..21).map(|n| EventRef { event_id: EventId::parse(format!("$e{n}")).unwrap(), sha256: None }).collect();
    let with = |auth: usize, prev: usize| {
        let draft = Draft { auth_events: &refs[..auth], prev_events: &refs[..prev], ..draft(&room_id, &kind, text(0)) };
        write("11", draft).is_ok()
    };
    assert!(with(10, 20));
    assert!(!with(11, 20));
    assert!(!with(10, 21));
    // Versions 1 and 2 refer with hashes.
    let hashless = Draft { prev_events: &refs[..1], ..draft(&room_id, &kind, text(0)) };
    assert!(matches!(write("1", hashless), Err(AuthorError::InvalidReferences("prev_events"))));
    let mut deep = CanonicalJsonValue::Null;
    for _ in 0..70 {
        deep = CanonicalJsonValue::Array(vec![deep]);
    }
    let content = CanonicalJsonObject::from([("deep".to_owned(), deep)]);
    assert!(matches!(write("11", draft(&room_id, &kind, content)), Err(AuthorError::TooDeep)));
}

#[test]
fn only_the_create_event_of_a_hash_named_room_goes_without_room_id() {
    let room_id: OwnedRoomId = "!room:a.test".try_into().unwrap();
    for version in supported_room_versions() {
        for kind in [TimelineEventType::RoomCreate, TimelineEventType::RoomMessage] {
            let hash_named = version.name() == "12" && kind == TimelineEventType::RoomCreate;
            let with = draft(&room_id, &kind, object(&json!({})));
            let without = Draft { room_id: None, ..with.clone() };
            assert_eq!(write(version.name(), with).is_ok(), !hash_named);
            assert_eq!(write(version.name(), without).is_ok(), hash_named);
        }
    }
}

/// S24: a peer's depth does not stop the room.
#[test]
fn depth_stays_at_the_largest_integer() {
    const LARGEST: u64 = (1 << 53) - 1;
    assert_eq!(next_depth([]), 1);
    assert_eq!(next_depth([4, 9, 2]), 10);
    assert_eq!(next_depth([LARGEST]), LARGEST);
    assert_eq!(next_depth([u64::MAX]), LARGEST);
    let room_id: OwnedRoomId = "!room:a.test".try_into().unwrap();
    let kind = TimelineEventType::RoomMessage;
    assert!(write("11", Draft { depth: LARGEST, ..draft(&room_id, &kind, text(0)) }).is_ok());
    assert!(write("11", Draft { depth: LARGEST + 1, ..draft(&room_id, &kind, text(0)) }).is_err());
}

#[test]
fn event_ids_have_the_form_of_the_version() {
    for version in supported_room_versions() {
        let world = World::new(version);
        let pdu = world.create(ALICE, &json!({}));
        let id = pdu.event_id().as_str();
        match version.name() {
            "1" | "2" => assert_eq!(id, "$event1:a.test"),
            "3" => assert!(id.len() == 44 && !id.contains(['-', '_']), "{id}"),
            _ => assert!(id.len() == 44 && !id.contains(['+', '/', ':']), "{id}"),
        }
        let again = Pdu::from_canonical(pdu.to_canonical_object(), version).unwrap();
        assert_eq!(again.event_id(), pdu.event_id());
        assert_eq!(again.federation_json(), pdu.federation_json());
        let stored = Pdu::from_stored(pdu.federation_json(), pdu.event_id().to_owned(), true, version).unwrap();
        assert_eq!(stored.federation_json(), pdu.federation_json());
        assert_eq!(stored.room_id(), pdu.room_id());
        assert!(stored.is_rejected());
    }
}

#[test]
fn the_client_form_has_no_room_and_names_a_redactions_target_twice() {
    for version in supported_room_versions() {
        let world = World::new(version);
        let state = world.furnish("public", &[(BOB, 50)]);
        let topic = world.state_event(BOB, "m.room.topic", "", &json!({ "topic": "x" }), &state);
        let json: Value = serde_json::from_slice(&topic.client_json().unwrap()).unwrap();
        let expected = json!({
            "type": "m.room.topic",
            "state_key": "",
            "sender": BOB,
            "event_id": topic.event_id(),
            "origin_server_ts": topic.origin_server_ts(),
            "content": { "topic": "x" },
        });
        assert_eq!(json, expected);
        let target = Some(topic.event_id());
        let redaction = world.build(BOB, "m.room.redaction", None, object(&json!({ "reason": "r" })), target, &state);
        let json: Value = serde_json::from_slice(&redaction.client_json().unwrap()).unwrap();
        assert_eq!(json["redacts"], topic.event_id().as_str());
        assert_eq!(json["content"], json!({ "reason": "r", "redacts": topic.event_id() }));
        assert!(json.get("state_key").is_none());
        // The federation form has it once, where the version wants it.
        let object = redaction.to_canonical_object();
        assert_eq!(object.contains_key("redacts"), !version.redacts_in_content());
    }
}

#[test]
fn unsigned_reaches_clients_without_age_and_never_the_hash() {
    let room_id: OwnedRoomId = "!room:a.test".try_into().unwrap();
    let kind = TimelineEventType::RoomMessage;
    let unsigned = object(&json!({ "age": 7, "prev_content": { "a": 1 } }));
    let plain = write("11", draft(&room_id, &kind, text(1))).unwrap();
    let noted = write("11", Draft { unsigned: Some(unsigned), ..draft(&room_id, &kind, text(1)) }).unwrap();
    assert_eq!(plain.event_id(), noted.event_id());
    assert_eq!(plain.federation_json(), noted.federation_json());
    let json: Value = serde_json::from_slice(&noted.client_json().unwrap()).unwrap();
    assert_eq!(json["unsigned"], json!({ "prev_content": { "a": 1 } }));
    let aged = object(&json!({ "age": 7 }));
    let aged = write("11", Draft { unsigned: Some(aged), ..draft(&room_id, &kind, text(1)) }).unwrap();
    assert!(aged.unsigned().is_none());
}
