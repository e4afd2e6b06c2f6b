//! MessagePack without a type.

use rmpv::Value;

/// The value in `bytes`, and nothing after it.
pub(crate) fn read(mut bytes: &[u8]) -> Value {
    let value = rmpv::decode::read_value(&mut bytes).unwrap_or_else(|error| panic!("no MessagePack: {error}"));
    assert!(bytes.is_empty(), "something comes after the value");
    value
}

pub(crate) fn write(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, value).unwrap_or_else(|error| panic!("cannot be written: {error}"));
    bytes
}

/// The variant of an enum's value.
pub(crate) fn tag(value: &Value) -> String {
    let tag = match value {
        Value::Map(entries) if entries.len() == 1 => entries[0].0.as_str(),
        value => value.as_str(),
    };
    tag.unwrap_or_else(|| panic!("not a variant: {value}")).to_owned()
}

/// What a variant holds.
pub(crate) fn body(value: &Value) -> Option<&Value> {
    value.as_map().map(|entries| &entries[0].1)
}

/// The names in a map.
pub(crate) fn names(value: &Value) -> impl Iterator<Item = &str> {
    value.as_map().into_iter().flatten().filter_map(|(name, _)| name.as_str())
}

/// A map without some names.
pub(crate) fn without(value: &Value, names: &[&str]) -> Value {
    let entries = value.as_map().into_iter().flatten();
    Value::Map(entries.filter(|(name, _)| !name.as_str().is_some_and(|name| names.contains(&name))).cloned().collect())
}

/// The value as often as it has maps, each time with one more entry in one of them, and where that is. Maps in the fields
/// `closed`, but not those further in, are left as they are.
pub(crate) fn each_with_more(value: &Value, name: &str, closed: &[&str]) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    grow(value, "", name, closed, &mut |at, grown| found.push((at.to_owned(), grown)));
    found
}

fn grow(value: &Value, at: &str, name: &str, closed: &[&str], found: &mut dyn FnMut(&str, Value)) {
    match value {
        Value::Map(entries) => {
            if !closed.contains(&at) {
                let mut more = entries.clone();
                more.insert(entries.len() / 2, (Value::from(name), Value::from(vec![Value::Nil])));
                found(at, Value::Map(more));
            }
            for (index, (key, inner)) in entries.iter().enumerate() {
                grow(inner, key.as_str().unwrap_or(at), name, closed, &mut |at, grown| {
                    let mut changed = entries.clone();
                    changed[index].1 = grown;
                    found(at, Value::Map(changed));
                });
            }
        }
        Value::Array(items) => {
            for (index, inner) in items.iter().enumerate() {
                grow(inner, at, name, closed, &mut |at, grown| {
                    let mut changed = items.clone();
                    changed[index] = grown;
                    found(at, Value::Array(changed));
                });
            }
        }
        _ => {}
    }
}
