//! From the types of `wire` to the messages of `proto/cofactor.proto` and back.

use std::{borrow::Cow, time::Duration};

use bytes::Bytes;
use cofactor_types::{EntityId, EntityKind, ErrorClass, Fault};
use cofactor_wire::node::{Call, Target};
use proto::{call_reply::Outcome, call_request::Target as WireTarget};

/// What the compiler of protocol buffers writes.
pub(crate) mod proto {
    #![expect(
        unreachable_pub,
        unused_qualifications,
        clippy::allow_attributes,
        clippy::allow_attributes_without_reason,
        reason = "written by a generator"
    )]

    tonic::include_proto!("cofactor.v1");
}

/// The longest `traceparent` that is passed on, in bytes. Version 00 has 55; later ones may be longer.
const TRACE_BYTES_MAX: usize = 256;

/// The request that carries `call`.
pub(crate) fn request(call: Call) -> proto::CallRequest {
    let target = match call.target {
        Target::Entity(id) => {
            WireTarget::Entity(proto::Entity { kind: kind_number(id.kind()).into(), id: id.as_str().to_owned() })
        }
        Target::Sync => WireTarget::Sync(proto::Sync {}),
        Target::Shards => WireTarget::Shards(proto::Shards {}),
        Target::Status => WireTarget::Status(proto::Status {}),
    };
    proto::CallRequest {
        target: Some(target),
        frame: call.frame,
        timeout_ms: u64::try_from(call.timeout.as_millis()).unwrap_or(u64::MAX),
        traceparent: call.trace.filter(|trace| trace.len() <= TRACE_BYTES_MAX).unwrap_or_default(),
    }
}

/// The call in `request`.
///
/// # Errors
/// [`ErrorClass::Unavailable`] if the target is none that this release knows.
pub(crate) fn call(request: proto::CallRequest) -> Result<Call, Fault> {
    let stranger = || Fault::unavailable("the node called does not know the target: it is older than the caller");
    let target = match request.target.ok_or_else(stranger)? {
        WireTarget::Entity(entity) => {
            let kind = kind(entity.kind()).ok_or_else(stranger)?;
            Target::Entity(EntityId::new(kind, entity.id))
        }
        WireTarget::Sync(proto::Sync {}) => Target::Sync,
        WireTarget::Shards(proto::Shards {}) => Target::Shards,
        WireTarget::Status(proto::Status {}) => Target::Status,
    };
    let trace = Some(request.traceparent).filter(|trace| !trace.is_empty() && trace.len() <= TRACE_BYTES_MAX);
    Ok(Call { target, frame: request.frame, timeout: Duration::from_millis(request.timeout_ms), trace })
}

/// The reply that carries `outcome`.
pub(crate) fn reply(outcome: Result<Bytes, Fault>) -> proto::CallReply {
    let outcome = match outcome {
        Ok(frame) => Outcome::Frame(frame),
        Err(fault) => Outcome::Fault(proto::Fault {
            class: class_number(fault.class).into(),
            errcode: fault.errcode.into_owned(),
            message: fault.message.into_owned(),
            retry_after_ms: fault.retry_after_ms,
        }),
    };
    proto::CallReply { outcome: Some(outcome) }
}

/// The outcome in `reply`.
pub(crate) fn outcome(reply: proto::CallReply) -> Result<Bytes, Fault> {
    match reply.outcome {
        Some(Outcome::Frame(frame)) => Ok(frame),
        Some(Outcome::Fault(fault)) => Err(Fault {
            class: class(fault.class()),
            errcode: Cow::Owned(fault.errcode),
            message: Cow::Owned(fault.message),
            retry_after_ms: fault.retry_after_ms,
        }),
        None => Err(Fault::unknown("the node called answered in a form that this one does not know")),
    }
}

fn kind_number(kind: EntityKind) -> proto::EntityKind {
    match kind {
        EntityKind::Room => proto::EntityKind::Room,
        EntityKind::User => proto::EntityKind::User,
        EntityKind::Destination => proto::EntityKind::Destination,
    }
}

fn kind(number: proto::EntityKind) -> Option<EntityKind> {
    Some(match number {
        proto::EntityKind::Unspecified => return None,
        proto::EntityKind::Room => EntityKind::Room,
        proto::EntityKind::User => EntityKind::User,
        proto::EntityKind::Destination => EntityKind::Destination,
    })
}

fn class_number(class: ErrorClass) -> proto::FaultClass {
    match class {
        ErrorClass::NotFound => proto::FaultClass::NotFound,
        ErrorClass::Forbidden => proto::FaultClass::Forbidden,
        ErrorClass::Invalid => proto::FaultClass::Invalid,
        ErrorClass::Conflict => proto::FaultClass::Conflict,
        ErrorClass::Limited => proto::FaultClass::Limited,
        ErrorClass::NotOwner => proto::FaultClass::NotOwner,
        ErrorClass::Unavailable => proto::FaultClass::Unavailable,
        ErrorClass::Unknown => proto::FaultClass::Unknown,
        ErrorClass::Internal => proto::FaultClass::Internal,
    }
}

/// A class that this release does not know promises nothing.
fn class(number: proto::FaultClass) -> ErrorClass {
    match number {
        proto::FaultClass::Unspecified | proto::FaultClass::Unknown => ErrorClass::Unknown,
        proto::FaultClass::NotFound => ErrorClass::NotFound,
        proto::FaultClass::Forbidden => ErrorClass::Forbidden,
        proto::FaultClass::Invalid => ErrorClass::Invalid,
        proto::FaultClass::Conflict => ErrorClass::Conflict,
        proto::FaultClass::Limited => ErrorClass::Limited,
        proto::FaultClass::NotOwner => ErrorClass::NotOwner,
        proto::FaultClass::Unavailable => ErrorClass::Unavailable,
        proto::FaultClass::Internal => ErrorClass::Internal,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    const CALL_V1: &[u8] = include_bytes!("../../../proto/golden/rpc/call_v1.bin");
    const REPLY_V1: &[u8] = include_bytes!("../../../proto/golden/rpc/reply_v1.bin");
    const FAULT_V1: &[u8] = include_bytes!("../../../proto/golden/rpc/fault_v1.bin");

    fn call_of_version_1() -> Call {
        Call {
            target: Target::Entity(EntityId::new(EntityKind::Room, "!room:example.org")),
            frame: Bytes::from_static(b"\x81\xa4ping\x01"),
            timeout: Duration::from_millis(5_000),
            trace: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
        }
    }

    fn fault_of_version_1() -> Fault {
        Fault::limited("too many messages", 1_500)
    }

    #[test]
    fn the_golden_call_of_version_1_is_still_read_and_written() {
        let decoded = proto::CallRequest::decode(CALL_V1).unwrap();
        assert_eq!(call(decoded).unwrap(), call_of_version_1());
        assert_eq!(request(call_of_version_1()).encode_to_vec(), CALL_V1);
    }

    #[test]
    fn the_golden_replies_of_version_1_are_still_read_and_written() {
        let answer = Ok(Bytes::from_static(b"\x81\xa4pong\x02"));
        for (golden, expected) in [(REPLY_V1, answer), (FAULT_V1, Err(fault_of_version_1()))] {
            assert_eq!(outcome(proto::CallReply::decode(golden).unwrap()), expected);
            assert_eq!(reply(expected).encode_to_vec(), golden);
        }
    }

    #[test]
    fn a_target_of_a_later_release_is_refused_before_anything_happens() {
        let unknown_kind = proto::Entity { kind: 99, id: "x".to_owned() };
        for target in [None, Some(WireTarget::Entity(unknown_kind))] {
            let refused = call(proto::CallRequest { target, ..Default::default() }).unwrap_err();
            assert_eq!(refused.class, ErrorClass::Unavailable);
        }
    }

    #[test]
    fn an_outcome_of_a_later_release_promises_nothing() {
        let later = proto::Fault { class: 99, ..Default::default() };
        for outcome_of_later in [None, Some(Outcome::Fault(later))] {
            let fault = outcome(proto::CallReply { outcome: outcome_of_later }).unwrap_err();
            assert_eq!(fault.class, ErrorClass::Unknown);
        }
    }

    #[test]
    fn a_trace_beyond_the_bound_is_left_out() {
        let long = Call { trace: Some("x".repeat(TRACE_BYTES_MAX + 1)), ..call_of_version_1() };
        assert_eq!(call(request(long)).unwrap().trace, None);
    }

    fn targets() -> impl Strategy<Value = Target> {
        let kinds = prop_oneof![Just(EntityKind::Room), Just(EntityKind::User), Just(EntityKind::Destination)];
        prop_oneof![
            (kinds, ".{0,64}").prop_map(|(kind, id)| Target::Entity(EntityId::new(kind, id))),
            Just(Target::Sync),
            Just(Target::Shards),
            Just(Target::Status),
        ]
    }

    proptest! {
        #[test]
        fn every_call_survives_the_way(
            target in targets(),
            frame in prop::collection::vec(any::<u8>(), 0..256),
            timeout_ms in any::<u64>(),
            trace in prop::option::of("[0-9a-f-]{1,64}"),
        ) {
            let sent = Call { target, frame: frame.into(), timeout: Duration::from_millis(timeout_ms), trace };
            let bytes = request(sent.clone()).encode_to_vec();
            prop_assert_eq!(call(proto::CallRequest::decode(&*bytes).unwrap()).unwrap(), sent);
        }
    }
}
