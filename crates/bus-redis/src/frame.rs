//! What is said, as bytes: a version, the publisher's id in eight bytes, big-endian, and a MessagePack map.
//!
//! Later releases may add fields to the maps; readers ignore what they do not know. Only a change that older readers must
//! not ignore needs another version, which they hear as a gap. Field names are one letter each: they are in every frame.

use std::sync::Arc;

use bytes::Bytes;
use cofactor_bus::{Heartbeat, Record};
use cofactor_telemetry::Trace;
use cofactor_types::{EntityId, EntityKind, Epoch, NodeId, Position, ShardId};
use serde::{Deserialize, Serialize};

const VERSION: u8 = 1;

/// Version and publisher.
const HEADER_BYTES: usize = 9;

/// What a publisher says.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Said<'a> {
    Record(&'a Record),
    Heartbeat(&'a Heartbeat),
    /// Something before this was not said.
    Gap,
    /// The publisher ends on purpose; nobody need miss it.
    Bye,
}

/// What a listener makes of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Record(Record),
    Heartbeat(Heartbeat),
    Gap,
    Bye,
    /// A thing of a later release that concerns nobody here.
    Nothing,
}

/// A frame that this release cannot read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unreadable;

#[derive(Default, Serialize, Deserialize)]
struct Body<'a> {
    #[serde(rename = "r", borrow, default, skip_serializing_if = "Option::is_none")]
    record: Option<WireRecord<'a>>,
    #[serde(rename = "h", default, skip_serializing_if = "Option::is_none")]
    heartbeat: Option<WireHeartbeat>,
    #[serde(rename = "g", default, skip_serializing_if = "is_false")]
    gap: bool,
    #[serde(rename = "b", default, skip_serializing_if = "is_false")]
    bye: bool,
}

#[derive(Serialize, Deserialize)]
struct WireRecord<'a> {
    #[serde(rename = "s")]
    shard: ShardId,
    #[serde(rename = "e")]
    epoch: Epoch,
    #[serde(rename = "q")]
    seq: u64,
    #[serde(rename = "k")]
    kind: EntityKind,
    #[serde(rename = "i")]
    id: &'a str,
    #[serde(rename = "p")]
    position: Position,
    #[serde(rename = "c")]
    class: u64,
    #[serde(rename = "b", with = "serde_bytes")]
    payload: &'a [u8],
    /// As [`Trace::to_bytes`]; anything else is passed over.
    #[serde(rename = "t", borrow, default, skip_serializing_if = "Option::is_none")]
    trace: Option<&'a serde_bytes::Bytes>,
}

#[derive(Serialize, Deserialize)]
struct WireHeartbeat {
    #[serde(rename = "n")]
    node: NodeId,
    #[serde(rename = "c")]
    closed: Position,
    #[serde(rename = "s")]
    shards: Vec<(ShardId, Epoch, u64)>,
    #[serde(rename = "v", default)]
    version: u64,
    #[serde(rename = "f", default, skip_serializing_if = "is_false")]
    full: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// The frame in which `publisher` says something.
pub(crate) fn encode(publisher: u64, said: Said<'_>) -> Result<Vec<u8>, rmp_serde::encode::Error> {
    let trace = match said {
        Said::Record(record) => record.trace.map(Trace::to_bytes),
        _ => None,
    };
    let body = match said {
        Said::Record(record) => Body {
            record: Some(WireRecord {
                shard: record.shard,
                epoch: record.epoch,
                seq: record.seq,
                kind: record.entity.kind(),
                id: record.entity.as_str(),
                position: record.position,
                class: record.class,
                payload: &record.payload,
                trace: trace.as_ref().map(|bytes| serde_bytes::Bytes::new(bytes)),
            }),
            ..Body::default()
        },
        Said::Heartbeat(heartbeat) => Body {
            heartbeat: Some(WireHeartbeat {
                node: heartbeat.node,
                closed: heartbeat.closed,
                shards: heartbeat.shards.clone(),
                version: heartbeat.version,
                full: heartbeat.full,
            }),
            ..Body::default()
        },
        Said::Gap => Body { gap: true, ..Body::default() },
        Said::Bye => Body { bye: true, ..Body::default() },
    };
    let mut frame = vec![VERSION];
    frame.extend_from_slice(&publisher.to_be_bytes());
    body.serialize(&mut rmp_serde::Serializer::new(&mut frame).with_struct_map())?;
    Ok(frame)
}

/// Who said the frame. The same in every version, so that a publisher knows its own.
pub(crate) fn publisher(frame: &[u8]) -> Option<u64> {
    let id = frame.get(1..HEADER_BYTES)?;
    id.try_into().ok().map(u64::from_be_bytes)
}

/// What the frame says. A record's payload shares the frame's memory.
pub(crate) fn decode(frame: &Bytes) -> Result<Heard, Unreadable> {
    let body = match frame.split_at_checked(HEADER_BYTES) {
        Some((header, body)) if header[0] == VERSION => body,
        _ => return Err(Unreadable),
    };
    let body: Body<'_> = rmp_serde::from_slice(body).map_err(|_| Unreadable)?;
    if let Some(record) = body.record {
        return Ok(Heard::Record(Record {
            shard: record.shard,
            epoch: record.epoch,
            seq: record.seq,
            entity: EntityId::new(record.kind, Arc::<str>::from(record.id)),
            position: record.position,
            class: record.class,
            payload: frame.slice_ref(record.payload),
            trace: record.trace.and_then(|bytes| Trace::from_bytes(bytes)),
        }));
    }
    if let Some(heartbeat) = body.heartbeat {
        let WireHeartbeat { node, closed, shards, version, full } = heartbeat;
        return Ok(Heard::Heartbeat(Heartbeat { node, closed, version, full, shards }));
    }
    Ok(match (body.gap, body.bye) {
        (true, _) => Heard::Gap,
        (false, true) => Heard::Bye,
        (false, false) => Heard::Nothing,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOLDEN_RECORD: &[u8] = include_bytes!("../../../proto/golden/bus/record.v1.bin");
    const GOLDEN_HEARTBEAT: &[u8] = include_bytes!("../../../proto/golden/bus/heartbeat.v1.bin");

    fn record(payload: &'static [u8]) -> Record {
        Record {
            shard: ShardId(580),
            epoch: Epoch(12),
            seq: 70_000,
            entity: EntityId::new(EntityKind::Room, "!yKBaMuTcVcYQGbDaUx:example.org"),
            position: Position(1_780_000_000_000_000),
            class: 1,
            payload: Bytes::from_static(payload),
            trace: None,
        }
    }

    fn heartbeat() -> Heartbeat {
        Heartbeat {
            node: NodeId(0xfeed_beef_0102_0304),
            closed: Position(1_780_000_000_000_001),
            version: 0,
            full: false,
            shards: vec![(ShardId(1), Epoch(2), 3), (ShardId(1023), Epoch(9), 1 << 40)],
        }
    }

    #[test]
    fn frames_of_version_1_are_read_for_ever() {
        assert_eq!(decode(&Bytes::from_static(GOLDEN_RECORD)), Ok(Heard::Record(record(b"hello"))));
        assert_eq!(decode(&Bytes::from_static(GOLDEN_HEARTBEAT)), Ok(Heard::Heartbeat(heartbeat())));
        assert_eq!(publisher(GOLDEN_RECORD), Some(0x0102_0304_0506_0708));
        // Written today as they were then.
        assert_eq!(encode(0x0102_0304_0506_0708, Said::Record(&record(b"hello"))).expect("a frame"), GOLDEN_RECORD);
    }

    #[test]
    fn a_record_costs_little_more_than_its_room_id_and_payload() {
        let frame = encode(1, Said::Record(&record(b""))).expect("a frame");
        assert!(frame.len() <= 100, "{} bytes", frame.len());
    }

    #[test]
    fn a_trace_goes_along_and_one_that_cannot_be_read_is_passed_over() {
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().ok();
        let traced = Record { trace, ..record(b"hello") };
        let frame = encode(1, Said::Record(&traced)).expect("a frame");
        let plain = encode(1, Said::Record(&record(b"hello"))).expect("a frame");
        assert_eq!(frame.len() - plain.len(), Trace::BYTES + 4);
        assert_eq!(decode(&Bytes::from(frame.clone())), Ok(Heard::Record(traced)));
        // The length of the bytes is the third from their beginning; the map ends with them.
        let at = frame.len() - Trace::BYTES - 1;
        let shorter = [&frame[..at], &[2, 7, 7]].concat();
        assert_eq!(decode(&Bytes::from(shorter)), Ok(Heard::Record(record(b"hello"))));
    }

    #[test]
    fn fields_and_things_of_later_releases_are_passed_over() {
        #[derive(Serialize)]
        struct Later {
            r: LaterRecord,
            zz: u8,
        }
        #[derive(Serialize)]
        struct LaterRecord {
            s: u32,
            e: u64,
            new: &'static str,
            q: u64,
            k: &'static str,
            i: &'static str,
            p: u64,
            c: u64,
            b: serde_bytes::ByteBuf,
        }
        let in_frame = |body: Vec<u8>| Bytes::from([vec![VERSION], vec![0; 8], body].concat());
        let (i, p) = ("!yKBaMuTcVcYQGbDaUx:example.org", 1_780_000_000_000_000);
        let r = LaterRecord { s: 580, e: 12, new: "?", q: 70_000, k: "room", i, p, c: 1, b: b"hello".to_vec().into() };
        let later = in_frame(rmp_serde::to_vec_named(&Later { r, zz: 1 }).expect("bytes"));
        assert_eq!(decode(&later), Ok(Heard::Record(record(b"hello"))));
        let unknown = in_frame(rmp_serde::to_vec_named(&[("zz", 1)].into_iter().collect::<Map>()).expect("bytes"));
        assert_eq!(decode(&unknown), Ok(Heard::Nothing));
    }

    type Map = std::collections::BTreeMap<&'static str, u8>;

    #[test]
    fn another_version_and_anything_cut_short_is_unreadable() {
        let mut frame = GOLDEN_RECORD.to_vec();
        frame[0] = 2;
        assert_eq!(decode(&Bytes::from(frame)), Err(Unreadable));
        for len in 0..GOLDEN_RECORD.len() {
            assert_eq!(decode(&Bytes::from_static(&GOLDEN_RECORD[..len])), Err(Unreadable), "{len} bytes");
        }
        assert_eq!(publisher(&GOLDEN_RECORD[..5]), None);
    }

    #[test]
    fn gap_and_bye_are_told_apart() {
        let there_and_back = |said| decode(&Bytes::from(encode(7, said).expect("a frame")));
        assert_eq!(there_and_back(Said::Gap), Ok(Heard::Gap));
        assert_eq!(there_and_back(Said::Bye), Ok(Heard::Bye));
    }

    proptest! {
        #[test]
        fn what_is_said_is_heard(
            (shard, epoch, seq, position, class) in any::<(u32, u64, u64, u64, u64)>(),
            id in ".{0,40}",
            payload in proptest::collection::vec(any::<u8>(), 0..300),
            trace in proptest::option::of(any::<([u8; 24], u8)>()),
            shards in proptest::collection::vec(any::<(u32, u64, u64)>(), 0..50),
        ) {
            let record = Record {
                shard: ShardId(shard),
                epoch: Epoch(epoch),
                seq,
                entity: EntityId::new(EntityKind::User, id),
                position: Position(position),
                class,
                payload: payload.into(),
                trace: trace.map(|(bytes, flags)| Trace::from_bytes(&[&bytes[..], &[flags]].concat()).expect("25 bytes")),
            };
            let frame = Bytes::from(encode(seq, Said::Record(&record)).expect("a frame"));
            prop_assert_eq!(publisher(&frame), Some(seq));
            prop_assert_eq!(decode(&frame), Ok(Heard::Record(record)));
            let shards = shards.into_iter().map(|(shard, epoch, seq)| (ShardId(shard), Epoch(epoch), seq)).collect();
            let heartbeat = Heartbeat { node: NodeId(epoch), closed: Position(position), version: 1, full: true, shards };
            let frame = Bytes::from(encode(seq, Said::Heartbeat(&heartbeat)).expect("a frame"));
            prop_assert_eq!(decode(&frame), Ok(Heard::Heartbeat(heartbeat)));
        }

        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&Bytes::from([vec![VERSION], noise].concat()));
        }
    }
}
