//! Between the two versions of the `http` crate: actix-http speaks 0.2, ruma 1.

use actix_http::{Request, ResponseBuilder};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};

/// The method.
pub(crate) fn method(old: &actix_http::Method) -> Method {
    Method::from_bytes(old.as_str().as_bytes()).unwrap_or(Method::GET)
}

/// The path and query.
pub(crate) fn uri(request: &Request) -> Uri {
    let text = request.uri().path_and_query().map_or("/", |text| text.as_str());
    Uri::try_from(text).unwrap_or_default()
}

/// The headers.
pub(crate) fn headers(request: &Request) -> HeaderMap {
    let pairs = request.head().headers().iter().filter_map(|(name, value)| {
        let name = HeaderName::from_bytes(name.as_str().as_bytes()).ok()?;
        Some((name, HeaderValue::from_bytes(value.as_bytes()).ok()?))
    });
    pairs.collect()
}

/// The beginning of an answer.
pub(crate) fn response(status: StatusCode, headers: &HeaderMap) -> ResponseBuilder {
    use actix_http::StatusCode as Old;

    let mut response = ResponseBuilder::new(Old::from_u16(status.as_u16()).unwrap_or(Old::INTERNAL_SERVER_ERROR));
    for (name, value) in headers {
        response.append_header((name.as_str(), value.as_bytes()));
    }
    response
}
