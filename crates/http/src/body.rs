//! Bodies: read whole within limits, or as a stream.

use std::{borrow::Cow, fmt, time::Duration};

use actix_http::{Payload, error::PayloadError};
use bytes::{Bytes, BytesMut};
use cofactor_types::limits::JSON_DEPTH_MAX;
use futures::{StreamExt, stream::LocalBoxStream};
use http::StatusCode;
use rustc_hash::FxHashSet;
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::error::Category;
use tokio::time::Instant;

use crate::ApiError;

/// A body that comes or goes in pieces.
pub type BodyStream = LocalBoxStream<'static, Result<Bytes, ApiError>>;

/// The body of a request.
pub enum Body {
    /// All of it.
    Whole(Bytes),
    /// In pieces, which may be slow; the reader sets its own limits.
    Stream(BodyStream),
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(bytes) => f.debug_tuple("Whole").field(&bytes.len()).finish(),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

/// Reads a body of at most `bytes_max` bytes within `time_max`.
pub(crate) async fn read_whole(mut payload: Payload, bytes_max: usize, time_max: Duration) -> Result<Bytes, ApiError> {
    let read = async {
        let Some(first) = payload.next().await else { return Ok(Bytes::new()) };
        let first = first.map_err(|error| broken(&error))?;
        let Some(second) = payload.next().await else { return whole(first, bytes_max) };
        let mut all = BytesMut::from(&first[..]);
        let mut next = Some(second);
        while let Some(piece) = next {
            all.extend_from_slice(&piece.map_err(|error| broken(&error))?);
            if all.len() > bytes_max {
                return Err(ApiError::too_large(bytes_max as u64));
            }
            next = payload.next().await;
        }
        whole(all.freeze(), bytes_max)
    };
    tokio::time::timeout(time_max, read).await.unwrap_or_else(|_| Err(too_slow()))
}

fn too_slow() -> ApiError {
    ApiError::new(StatusCode::REQUEST_TIMEOUT, "M_UNKNOWN", "the body did not arrive in time")
}

fn whole(bytes: Bytes, bytes_max: usize) -> Result<Bytes, ApiError> {
    if bytes.len() > bytes_max { Err(ApiError::too_large(bytes_max as u64)) } else { Ok(bytes) }
}

/// The slowest that a stream may be on the whole, in bytes a second: less than any network that people still use.
const STREAM_BYTES_A_SECOND_MIN: u32 = 4 << 10;

/// The body as a stream that ends with an error when it is slower than `time_max` and the slowest pace allow.
pub(crate) fn stream(payload: Payload, time_max: Duration) -> BodyStream {
    let begin = Instant::now();
    let paced = move |(mut payload, arrived): (Payload, u64)| async move {
        let time = time_max + Duration::from_secs(arrived) / STREAM_BYTES_A_SECOND_MIN;
        let piece = match tokio::time::timeout_at(begin + time, payload.next()).await {
            Ok(None) => return None,
            Ok(Some(piece)) => piece.map_err(|error| broken(&error)),
            Err(_) => Err(too_slow()),
        };
        let arrived = arrived + piece.as_ref().map_or(0, |piece| piece.len() as u64);
        Some((piece, (payload, arrived)))
    };
    futures::stream::unfold((payload, 0), paced).boxed_local()
}

fn broken(error: &PayloadError) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "M_UNKNOWN", format!("the body broke off: {error}"))
}

/// Whether `bytes` are JSON that every reader reads alike: of bounded depth, no member twice, text that is Unicode, numbers
/// that a number holds. What passes may be stored and sent to others as it is; the types are somebody else's question.
///
/// # Errors
/// `M_NOT_JSON`, or `M_BAD_JSON` for depth and members.
pub fn check_json(bytes: &[u8]) -> Result<(), ApiError> {
    if depth_of(bytes) > JSON_DEPTH_MAX {
        return Err(ApiError::bad_json(format!("the body nests deeper than {JSON_DEPTH_MAX} levels")));
    }
    serde_json::from_slice::<Plain>(bytes).map(drop).map_err(|error| match error.classify() {
        Category::Data => ApiError::bad_json(error.to_string()),
        Category::Io | Category::Syntax | Category::Eof => ApiError::not_json(),
    })
}

/// serde_json gives objects with such a member a meaning of its own: they would be read as something else than they are.
const SERDE_PRIVATE: &str = "$serde_json::private::";

/// Any JSON without a second reading. Nothing of it is kept.
struct Plain;

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PlainVisitor)
    }
}

struct PlainVisitor;

impl<'de> Visitor<'de> for PlainVisitor {
    type Value = Plain;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Plain, E> {
        Ok(Plain)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Plain, E> {
        Ok(Plain)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Plain, E> {
        Ok(Plain)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Plain, E> {
        Ok(Plain)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Plain, E> {
        Ok(Plain)
    }

    fn visit_str<E>(self, _: &str) -> Result<Plain, E> {
        Ok(Plain)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Plain, A::Error> {
        while items.next_element::<Plain>()?.is_some() {}
        Ok(Plain)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Plain, A::Error> {
        let mut known = FxHashSet::default();
        while let Some(name) = members.next_key::<Name<'de>>()? {
            if name.0.starts_with(SERDE_PRIVATE) {
                return Err(A::Error::custom("a member has a name that this server cannot hold"));
            }
            if !known.insert(name.0) {
                return Err(A::Error::custom("a member stands twice in one object"));
            }
            members.next_value::<Plain>()?;
        }
        Ok(Plain)
    }
}

/// A member's name, copied only where it has escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// How deep brackets nest, whatever else the bytes are.
fn depth_of(bytes: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in bytes {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_told_from_what_is_not_and_from_what_is_too_deep() {
        assert!(check_json(br#"{"a":[1,"]"],"b":"\"{["}"#).is_ok());
        assert_eq!(check_json(b"nope").unwrap_err().errcode, "M_NOT_JSON");
        assert_eq!(check_json(br#"{"a":1} x"#).unwrap_err().errcode, "M_NOT_JSON");
        assert_eq!(check_json(br#"{"a":1,"\u0061":2}"#).unwrap_err().errcode, "M_BAD_JSON");
        let hidden = br#"{"$serde_json::private::RawValue":"[]"}"#;
        assert_eq!(check_json(hidden).unwrap_err().errcode, "M_BAD_JSON");
        assert!(check_json(br#"[{"a":1,"b":{"a":0.5}},{"a":-0}]"#).is_ok());
        for torn in [&br#""\ud800""#[..], b"1e400", b"\"\xff\"", b"NaN", b"", b"\xef\xbb\xbf{}"] {
            assert_eq!(check_json(torn).unwrap_err().errcode, "M_NOT_JSON");
        }
        let deep = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
        assert_eq!(check_json(&deep).unwrap_err().errcode, "M_BAD_JSON");
    }
}
