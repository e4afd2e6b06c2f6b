//! An event as conditions look at it: a tree, walked along dot-separated paths.
//! <https://spec.matrix.org/v1.19/appendices/#dot-separated-property-paths>

use cofactor_types::split_property_path;
use serde_json::Value;

/// A path, split where its dots are not escaped.
#[derive(Debug)]
pub(crate) struct Path(Vec<String>);

impl Path {
    pub(crate) fn new(text: &str) -> Self {
        Self(split_property_path(text))
    }

    /// Whether the path is that of a message's text, in which words are looked for.
    pub(crate) fn is_body(&self) -> bool {
        self.0.len() == 2 && self.0[0] == "content" && self.0[1] == "body"
    }
}

/// An event.
#[derive(Debug)]
pub(crate) struct Event(Value);

impl Event {
    /// Reads client JSON, to which the room's id is added. What cannot be read, also because it nests too deeply, has no
    /// properties.
    pub(crate) fn new(json: &[u8], room_id: &str) -> Self {
        let mut value = serde_json::from_slice(json).unwrap_or(Value::Null);
        if let Value::Object(members) = &mut value {
            members.insert("room_id".to_owned(), room_id.into());
        }
        Self(value)
    }

    pub(crate) fn get(&self, path: &Path) -> Option<&Value> {
        path.0.iter().try_fold(&self.0, |value, name| value.as_object()?.get(name))
    }

    pub(crate) fn text(&self, path: &Path) -> Option<&str> {
        self.get(path)?.as_str()
    }

    pub(crate) fn sender(&self) -> Option<&str> {
        self.0.get("sender")?.as_str()
    }

    pub(crate) fn body(&self) -> Option<&str> {
        self.0.get("content")?.get("body")?.as_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_walked_with_their_escapes() {
        let json = br#"{"content":{"m.relates_to":{"rel_type":"m.thread"},"a\\b":1,"":{"":2},"x":{"y":null}}}"#;
        let event = Event::new(json, "!r:x");
        let get = |path: &str| event.get(&Path::new(path)).cloned();
        assert_eq!(get(r"content.m\.relates_to.rel_type"), Some("m.thread".into()));
        assert_eq!(get("content.m.relates_to.rel_type"), None);
        assert_eq!(get(r"content.a\\b"), Some(1.into()));
        assert_eq!(get(r"content.a\b"), Some(1.into()));
        assert_eq!(get("content.."), Some(2.into()));
        assert_eq!(get("content.x.y"), Some(Value::Null));
        assert_eq!(get("content.x.y.z"), None);
        assert_eq!(get("room_id"), Some("!r:x".into()));
        assert_eq!(get(""), None);
    }

    #[test]
    fn an_event_that_nests_too_deeply_has_no_properties() {
        let json = format!(r#"{{"type":"a","content":{}1{}}}"#, "[".repeat(30_000), "]".repeat(30_000));
        assert!(Event::new(json.as_bytes(), "!r:x").get(&Path::new("type")).is_none());
    }
}
