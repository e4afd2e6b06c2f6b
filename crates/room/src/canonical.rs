//! Strict reading of JSON that will be hashed and signed.
//!
//! Canonical JSON has one meaning for one byte sequence. Whatever leaves room for two readings is refused here:
//! numbers that are not integers of ±(2^53 − 1), negative zero, `NaN`, lone surrogates, duplicate keys, trailing
//! bytes and nesting beyond a bound.
//!
//! See <https://spec.matrix.org/v1.19/appendices/#canonical-json>.

use std::fmt;

use js_int::Int;
use ruma::{CanonicalJsonObject, CanonicalJsonValue};
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

/// The deepest nesting accepted from a client, counting the outermost object as one.
pub const CLIENT_DEPTH_MAX: usize = 64;

/// The deepest nesting accepted from another server, counting the outermost object as one.
///
/// The specification sets no bound, so this one is the bound of the common JSON parsers: a smaller one would
/// make us refuse events that others accept.
pub const PDU_DEPTH_MAX: usize = 127;

/// The largest integer of canonical JSON; the smallest is its negative.
pub const INTEGER_MAX: i64 = (1 << 53) - 1;

/// Why JSON was refused.
#[derive(Debug, thiserror::Error)]
pub enum CanonicalError {
    /// The bytes are not JSON at all, or a lone surrogate or a word like `NaN` is in them.
    #[error("not valid JSON: {0}")]
    NotJson(serde_json::Error),
    /// JSON, but not canonical: a float, an integer out of range, a duplicate key, too deep.
    #[error("not canonical JSON: {0}")]
    NotCanonical(serde_json::Error),
}

/// Reads the content of an event or another object sent by a client.
///
/// # Errors
///
/// [`CanonicalError`] if the bytes are not one strict canonical JSON object of at most [`CLIENT_DEPTH_MAX`] levels.
pub fn parse_client_content(bytes: &[u8]) -> Result<CanonicalJsonObject, CanonicalError> {
    parse_object(bytes, CLIENT_DEPTH_MAX)
}

/// Reads an event sent by another server.
///
/// # Errors
///
/// [`CanonicalError`] if the bytes are not one strict canonical JSON object of at most [`PDU_DEPTH_MAX`] levels.
pub fn parse_pdu_object(bytes: &[u8]) -> Result<CanonicalJsonObject, CanonicalError> {
    parse_object(bytes, PDU_DEPTH_MAX)
}

fn parse_object(bytes: &[u8], depth_max: usize) -> Result<CanonicalJsonObject, CanonicalError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = StrictValue { depth_left: depth_max }.deserialize(&mut deserializer).map_err(classify)?;
    deserializer.end().map_err(classify)?;
    match value {
        CanonicalJsonValue::Object(object) => Ok(object),
        _ => Err(CanonicalError::NotCanonical(de::Error::custom("expected an object"))),
    }
}

fn classify(error: serde_json::Error) -> CanonicalError {
    match error.classify() {
        serde_json::error::Category::Data => CanonicalError::NotCanonical(error),
        _ => CanonicalError::NotJson(error),
    }
}

/// Reads one value; arrays and objects spend one level each.
#[derive(Clone, Copy)]
struct StrictValue {
    depth_left: usize,
}

impl StrictValue {
    fn descend<E: de::Error>(self) -> Result<Self, E> {
        let depth_left = self.depth_left.checked_sub(1).ok_or_else(|| E::custom("nested too deeply"))?;
        Ok(Self { depth_left })
    }
}

impl<'de> DeserializeSeed<'de> for StrictValue {
    type Value = CanonicalJsonValue;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for StrictValue {
    type Value = CanonicalJsonValue;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a canonical JSON value")
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Self::Value, E> {
        Ok(CanonicalJsonValue::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Self::Value, E> {
        Int::new(value).map(CanonicalJsonValue::Integer).ok_or_else(|| E::custom("integer out of range"))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Self::Value, E> {
        let value = i64::try_from(value).map_err(|_| E::custom("integer out of range"))?;
        self.visit_i64(value)
    }

    fn visit_f64<E: de::Error>(self, _value: f64) -> Result<Self::Value, E> {
        Err(E::custom("numbers must be integers between -2^53 + 1 and 2^53 - 1"))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Self::Value, E> {
        Ok(CanonicalJsonValue::String(value.to_owned()))
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Self::Value, E> {
        Ok(CanonicalJsonValue::String(value))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(CanonicalJsonValue::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let inner = self.descend()?;
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(inner)? {
            items.push(item);
        }
        Ok(CanonicalJsonValue::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let inner = self.descend()?;
        let mut object = CanonicalJsonObject::new();
        while let Some(key) = access.next_key::<String>()? {
            let value = access.next_value_seed(inner)?;
            // Readers disagree about which of two equal keys counts, so an event with both would have two hashes.
            if object.contains_key(&key) {
                return Err(de::Error::custom("duplicate key"));
            }
            object.insert(key, value);
        }
        Ok(CanonicalJsonValue::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> String {
        serde_json::to_string(&parse_client_content(text.as_bytes()).unwrap()).unwrap()
    }

    /// The examples of <https://spec.matrix.org/v1.19/appendices/#examples>.
    #[test]
    fn published_examples_encode_as_published() {
        for (input, expected) in [
            ("{}", "{}"),
            ("{\n \"one\": 1,\n \"two\": \"Two\"\n}", r#"{"one":1,"two":"Two"}"#),
            (r#"{ "b": "2", "a": "1" }"#, r#"{"a":"1","b":"2"}"#),
            (r#"{"b":"2","a":"1"}"#, r#"{"a":"1","b":"2"}"#),
            (
                r#"{"auth":{"success":true,"mxid":"@john.doe:example.com","profile":{"display_name":"John Doe","three_pids":[{"medium":"email","address":"john.doe@example.org"},{"medium":"msisdn","address":"123456789"}]}}}"#,
                r#"{"auth":{"mxid":"@john.doe:example.com","profile":{"display_name":"John Doe","three_pids":[{"address":"john.doe@example.org","medium":"email"},{"address":"123456789","medium":"msisdn"}]},"success":true}}"#,
            ),
            (r#"{ "a": "日本語" }"#, r#"{"a":"日本語"}"#),
            (r#"{ "本": 2, "日": 1 }"#, r#"{"日":1,"本":2}"#),
            (r#"{ "a": "\u65E5" }"#, r#"{"a":"日"}"#),
            (r#"{ "a": null }"#, r#"{"a":null}"#),
        ] {
            assert_eq!(canonical(input), expected);
        }
    }

    #[test]
    fn integers_are_accepted_up_to_the_limits_and_not_beyond() {
        assert_eq!(canonical(r#"{"a":9007199254740991}"#), r#"{"a":9007199254740991}"#);
        assert_eq!(canonical(r#"{"a":-9007199254740991}"#), r#"{"a":-9007199254740991}"#);
        for number in [
            "9007199254740992",
            "-9007199254740992",
            "9223372036854775808",
            "18446744073709551615",
            "18446744073709551616",
            "1.0",
            "1e3",
            "1E400",
            "-0",
            "-0.0",
            "0.5",
        ] {
            let text = format!(r#"{{"a":{number}}}"#);
            assert!(parse_client_content(text.as_bytes()).is_err(), "{number}");
        }
    }

    #[test]
    fn words_and_forms_that_are_not_json_are_refused() {
        for text in [
            r#"{"a":NaN}"#,
            r#"{"a":Infinity}"#,
            r#"{"a":-Infinity}"#,
            r#"{"a":01}"#,
            r#"{"a":"\ud800"}"#,
            r#"{"a":"\udc00\ud800"}"#,
            r#"{"\ud800":1}"#,
            r#"{"a":1}x"#,
            r#"{"a":1,}"#,
            "",
            "[]",
            "1",
        ] {
            assert!(parse_client_content(text.as_bytes()).is_err(), "{text}");
        }
        assert!(parse_client_content(b"{\"a\":\"\xff\"}").is_err());
    }

    #[test]
    fn duplicate_keys_are_refused_at_any_level_also_when_escaped() {
        for text in [r#"{"a":1,"a":1}"#, r#"{"x":{"a":1,"b":2,"a":3}}"#, r#"{"a":1,"\u0061":2}"#] {
            assert!(matches!(parse_client_content(text.as_bytes()), Err(CanonicalError::NotCanonical(_))), "{text}");
        }
    }

    #[test]
    fn nesting_is_bounded_and_never_overflows_the_stack() {
        let nested = |levels: usize| format!("{{\"a\":{}{}}}", "[".repeat(levels - 1), "]".repeat(levels - 1));
        assert!(parse_client_content(nested(CLIENT_DEPTH_MAX).as_bytes()).is_ok());
        assert!(parse_client_content(nested(CLIENT_DEPTH_MAX + 1).as_bytes()).is_err());
        assert!(parse_pdu_object(nested(PDU_DEPTH_MAX).as_bytes()).is_ok());
        assert!(parse_pdu_object(nested(PDU_DEPTH_MAX + 1).as_bytes()).is_err());
        assert!(parse_pdu_object(nested(100_000).as_bytes()).is_err());
    }
}
