//! Tests that stored and sent bytes are read for ever: by later releases, and, as far as fields were only added, by
//! earlier ones.
//!
//! Each record has one file of bytes for each form that a release wrote, `proto/golden/NAME.vN.bin`. A test names the values
//! in them, oldest form first, and the check holds that
//!
//! - today's code reads every form to its value, and writes the newest one byte for byte;
//! - the newest form has every field, and the forms together have every variant: a field or a variant without golden bytes
//!   fails;
//! - a field of a later release, added to any struct in it, is passed over;
//! - exactly those fields may be missing that the test names as optional;
//! - a variant of a later release is refused, and nothing worse.
//!
//! To change a record: add the field with a default, add the new value to the end of the test's list, and run the test once
//! with `COFACTOR_GOLDEN=write`, which writes files that are missing. Never edit or delete a file that a release has written.
//!
//! What it is not: a test that a value means the same; that is up to the tests of whoever reads it.

mod shape;
mod tree;

use std::{collections::BTreeSet, fmt::Debug, fs, path::PathBuf};

use rmpv::Value;
use serde::{Serialize, de::DeserializeOwned};

use crate::shape::Shape;

/// Set to `write` when this is compiled, files that are missing are written.
const WRITE: Option<&str> = option_env!("COFACTOR_GOLDEN");

/// What no release will ever call a field or a variant.
const LATER: &str = "zz_of_a_later_release";

/// What can be checked.
pub trait Record: Serialize + DeserializeOwned + PartialEq + Debug {}

impl<T: Serialize + DeserializeOwned + PartialEq + Debug> Record for T {}

/// The golden bytes of one type.
#[derive(Clone, Copy, Debug)]
pub struct Golden<'a> {
    name: &'a str,
    optional: &'a [&'a str],
    closed: &'a [&'a str],
}

impl<'a> Golden<'a> {
    /// Those in `proto/golden/NAME.vN.bin`.
    pub fn new(name: &'a str) -> Self {
        Self { name, optional: &[], closed: &[] }
    }

    /// The fields of the record that may be missing. Once optional, always optional.
    #[must_use]
    pub fn optional(self, optional: &'a [&'a str]) -> Self {
        Self { optional, ..self }
    }

    /// Fields in which a map is no struct, so that a new entry means something: true maps, and enums.
    #[must_use]
    pub fn closed(self, closed: &'a [&'a str]) -> Self {
        Self { closed, ..self }
    }

    /// Checks a record: the value of each form, oldest first.
    ///
    /// # Panics
    /// If the bytes and the code do not agree.
    pub fn record<T: Record>(self, forms: &[T]) {
        for (index, form) in forms.iter().enumerate() {
            let expected = encode(form);
            let bytes = self.bytes(index + 1, &expected);
            self.reads(&bytes, form);
            self.passes_over(&tree::read(&bytes), form, |later| later);
            if index + 1 == forms.len() {
                assert_eq!(tree::read(&bytes), tree::read(&expected), "{}: written in another form", self.name);
                assert_eq!(bytes, expected, "{}: written in another form", self.name);
                self.is_complete(Shape::of::<T>(), &[tree::read(&bytes)], "the record");
                self.misses_only_optional::<T>(&bytes);
            }
        }
        self.has_no_more_than(forms.len());
    }

    /// Checks an enum: values of each form, oldest first. A later form may leave out variants that did not change.
    ///
    /// # Panics
    /// If the bytes and the code do not agree.
    pub fn variants<T: Record>(self, forms: &[&[T]]) {
        let mut seen: BTreeSet<String> = BTreeSet::new();
        for (index, form) in forms.iter().enumerate().rev() {
            let file = self.bytes(index + 1, &encode(form));
            let Value::Array(written) = tree::read(&file) else { panic!("{}: no list of variants", self.name) };
            assert_eq!(written.len(), form.len(), "{}.v{}: another number of values", self.name, index + 1);
            let mut here: BTreeSet<String> = BTreeSet::new();
            for (value, expected) in written.iter().zip(form.iter()) {
                let tag = tree::tag(value);
                self.reads(&tree::write(value), expected);
                if let Some(body) = tree::body(value) {
                    self.passes_over(body, expected, |later| Value::Map(vec![(Value::from(tag.as_str()), later)]));
                }
                if !seen.contains(&tag) {
                    assert_eq!(
                        *value,
                        tree::read(&encode(expected)),
                        "{}: {tag} is written in another form",
                        self.name
                    );
                    here.insert(tag);
                }
            }
            for tag in &here {
                let bodies: Vec<Value> =
                    written.iter().filter(|value| tree::tag(value) == *tag).filter_map(tree::body).cloned().collect();
                self.is_complete(Shape::of_variant::<T>(tag), &bodies, tag);
            }
            seen.extend(here);
        }
        let Shape::Enum(variants) = Shape::of::<T>() else { panic!("{}: not an enum", self.name) };
        for variant in variants {
            assert!(seen.contains(*variant), "{}: the variant {variant} has no golden bytes", self.name);
        }
        self.has_no_more_than(forms.len());
        for stranger in [Value::from(LATER), Value::Map(vec![(Value::from(LATER), Value::Nil)])] {
            assert!(rmp_serde::from_slice::<T>(&tree::write(&stranger)).is_err(), "{}: takes anything", self.name);
        }
    }

    fn path(&self, version: usize) -> PathBuf {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../proto/golden");
        PathBuf::from(golden).join(format!("{}.v{version}.bin", self.name))
    }

    fn bytes(&self, version: usize, expected: &[u8]) -> Vec<u8> {
        let path = self.path(version);
        if !path.exists() && WRITE == Some("write") {
            let folder = path.parent().map(fs::create_dir_all).transpose();
            folder.and_then(|_| fs::write(&path, expected)).expect("the file can be written");
        }
        fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}; COFACTOR_GOLDEN=write writes it", path.display()))
    }

    fn has_no_more_than(&self, versions: usize) {
        let next = self.path(versions + 1);
        assert!(!next.exists(), "{} has no value in the test", next.display());
    }

    /// Today's code makes `expected` of `bytes`.
    fn reads<T: Record>(&self, bytes: &[u8], expected: &T) {
        let value = rmp_serde::from_slice::<T>(bytes).unwrap_or_else(|error| panic!("{}: {error}", self.name));
        assert_eq!(value, *expected, "{}: read as something else", self.name);
    }

    /// The same of `body`, to which `whole` adds what is around it, with one more field anywhere.
    fn passes_over<T: Record>(&self, body: &Value, expected: &T, whole: impl Fn(Value) -> Value) {
        for (at, later) in tree::each_with_more(body, LATER, self.closed) {
            let read = rmp_serde::from_slice::<T>(&tree::write(&whole(later)));
            let read = read.unwrap_or_else(|error| panic!("{}: one more field in `{at}`: {error}", self.name));
            assert_eq!(read, *expected, "{}: one more field in `{at}` changes the rest", self.name);
        }
    }

    fn is_complete(&self, shape: Shape, values: &[Value], what: &str) {
        let Shape::Struct(fields) = shape else { return };
        let names: BTreeSet<&str> = values.iter().flat_map(tree::names).collect();
        for field in fields {
            assert!(names.contains(field), "{}: the field {field} of {what} has no golden bytes", self.name);
        }
    }

    fn misses_only_optional<T: DeserializeOwned>(&self, bytes: &[u8]) {
        let value = tree::read(bytes);
        if !value.is_map() {
            return;
        }
        let misses =
            |without: &[&str]| rmp_serde::from_slice::<T>(&tree::write(&tree::without(&value, without))).is_ok();
        let optional: Vec<&str> = tree::names(&value).filter(|name| misses(&[name])).collect();
        assert_eq!(optional, self.optional, "{}: other fields are optional", self.name);
        assert!(misses(&optional), "{}: not all of them may be missing together", self.name);
    }
}

/// The form of `cofactor_store::record` and of `cofactor_wire`, whose tests hold that it is theirs.
fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    rmp_serde::to_vec_named(value).unwrap_or_else(|error| panic!("cannot be written: {error}"))
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use serde::Deserialize;

    use super::*;

    /// What the check of the golden bytes of leases, `{alive, end}`, complains of when they are `record`.
    fn complaint<T: Record>(record: T) -> String {
        let check = AssertUnwindSafe(|| Golden::new("store/lease").record(&[record]));
        let panic = catch_unwind(check).expect_err("a complaint");
        *panic.downcast::<String>().expect("a text")
    }

    #[test]
    fn a_new_field_without_a_default_or_golden_bytes_is_refused() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Required {
            alive: bool,
            end: u64,
            zone: u64,
        }
        assert!(complaint(Required { alive: true, end: 1, zone: 1 }).contains("missing field `zone`"));
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Forgotten {
            alive: bool,
            end: u64,
            #[serde(default, skip_serializing_if = "Option::is_none")]
            zone: Option<u64>,
        }
        let forgotten = Forgotten { alive: true, end: 1_780_000_000_000_000, zone: None };
        assert!(complaint(forgotten).contains("the field zone of the record has no golden bytes"));
    }

    #[test]
    fn a_record_that_is_closed_to_later_fields_is_refused() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Closed {
            alive: bool,
            end: u64,
        }
        assert!(complaint(Closed { alive: true, end: 1_780_000_000_000_000 }).contains("one more field"));
    }

    #[test]
    fn a_field_that_became_optional_is_to_be_named() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Optional {
            alive: bool,
            #[serde(default)]
            end: u64,
        }
        assert!(complaint(Optional { alive: true, end: 1_780_000_000_000_000 }).contains("other fields are optional"));
    }
}
