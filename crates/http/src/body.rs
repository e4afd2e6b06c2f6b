//! Bodies: read whole within limits, or as a stream.

use std::time::Duration;

use actix_web::web;
use bytes::{Bytes, BytesMut};
use cofactor_types::limits::JSON_DEPTH_MAX;
use futures::{StreamExt, stream::LocalBoxStream};
use http::StatusCode;
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

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Whole(bytes) => f.debug_tuple("Whole").field(&bytes.len()).finish(),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

/// Reads a body of at most `bytes_max` bytes within `time_max`.
pub(crate) async fn read_whole(
    mut payload: web::Payload,
    bytes_max: usize,
    time_max: Duration,
) -> Result<Bytes, ApiError> {
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
pub(crate) fn stream(payload: web::Payload, time_max: Duration) -> BodyStream {
    let begin = Instant::now();
    let paced = move |(mut payload, arrived): (web::Payload, u64)| async move {
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

fn broken(error: &actix_web::error::PayloadError) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "M_UNKNOWN", format!("the body broke off: {error}"))
}

/// Whether `bytes` are JSON of bounded depth; the types are somebody else's question.
pub(crate) fn check_json(bytes: &[u8]) -> Result<(), ApiError> {
    if depth_of(bytes) > JSON_DEPTH_MAX {
        return Err(ApiError::bad_json(format!("the body nests deeper than {JSON_DEPTH_MAX} levels")));
    }
    serde_json::from_slice::<serde::de::IgnoredAny>(bytes).map(drop).map_err(|_| ApiError::not_json())
}

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
        let deep = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
        assert_eq!(check_json(&deep).unwrap_err().errcode, "M_BAD_JSON");
    }
}
