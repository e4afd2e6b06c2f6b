//! Keys and the declaration of tables.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use cofactor_types::{EntityId, Position};

/// One column of a key.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeyPart {
    /// Text, ordered by its UTF-8 bytes.
    Text(Arc<str>),
    /// A number, ordered as such.
    U64(u64),
    /// Bytes, ordered as such.
    Bytes(Bytes),
}

impl fmt::Debug for KeyPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => text.fmt(f),
            Self::U64(number) => number.fmt(f),
            Self::Bytes(bytes) => bytes.fmt(f),
        }
    }
}

impl From<&str> for KeyPart {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for KeyPart {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl From<Arc<str>> for KeyPart {
    fn from(text: Arc<str>) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for KeyPart {
    fn from(number: u64) -> Self {
        Self::U64(number)
    }
}

impl From<Position> for KeyPart {
    fn from(position: Position) -> Self {
        Self::U64(position.0)
    }
}

impl From<Bytes> for KeyPart {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<&EntityId> for KeyPart {
    fn from(entity: &EntityId) -> Self {
        Self::Text(entity.shared())
    }
}

/// A partition key, a clustering key, or the first columns of one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Vec<KeyPart>);

impl Key {
    /// The key of no columns: the clustering key of a table that has none, or the prefix of everything.
    pub const EMPTY: Self = Self(Vec::new());

    /// The columns.
    pub fn parts(&self) -> &[KeyPart] {
        &self.0
    }

    /// This key with one more column.
    #[must_use]
    pub fn with(mut self, part: impl Into<KeyPart>) -> Self {
        self.0.push(part.into());
        self
    }

    /// Whether the first columns of this key are those of `prefix`.
    pub fn starts_with(&self, prefix: &Self) -> bool {
        self.0.starts_with(&prefix.0)
    }

    /// The text in column `index`, empty if it is not text.
    pub fn text(&self, index: usize) -> &str {
        match self.0.get(index) {
            Some(KeyPart::Text(text)) => text,
            _ => "",
        }
    }

    /// The number in column `index`, zero if it is not a number.
    pub fn number(&self, index: usize) -> u64 {
        match self.0.get(index) {
            Some(KeyPart::U64(number)) => *number,
            _ => 0,
        }
    }
}

impl From<Vec<KeyPart>> for Key {
    fn from(parts: Vec<KeyPart>) -> Self {
        Self(parts)
    }
}

/// Makes a [`Key`] out of columns: `key![room_id, 0_u64]`.
#[macro_export]
macro_rules! key {
    ($($part:expr),* $(,)?) => { $crate::Key::from(vec![$($crate::KeyPart::from($part)),*]) };
}

/// The type of a key column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnKind {
    /// [`KeyPart::Text`].
    Text,
    /// [`KeyPart::U64`].
    U64,
    /// [`KeyPart::Bytes`].
    Bytes,
}

/// A key column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// The name, as an operator reads it in `cqlsh`.
    pub name: &'static str,
    /// The type.
    pub kind: ColumnKind,
}

/// What a table may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableKind {
    /// Fenced appends only; a partition carries a [`crate::Fence`].
    Log,
    /// Plain writes only.
    Plain,
    /// [`crate::Store::compare_and_set`] only.
    Conditional,
}

/// A table. Declared once, in [`crate::tables`].
#[derive(Debug, PartialEq, Eq)]
pub struct Table {
    /// The stable number, part of the stored form.
    pub id: u8,
    /// The stable name.
    pub name: &'static str,
    /// What it is for, in a sentence.
    pub about: &'static str,
    /// Which writes it takes.
    pub kind: TableKind,
    /// The columns of the partition key, at least one.
    pub partition: &'static [Column],
    /// The columns of the clustering key; none for one row a partition.
    pub clustering: &'static [Column],
}

impl Table {
    /// Whether `key` has the types of `columns`, or of their first few when `prefix` is set.
    pub fn fits(columns: &[Column], key: &Key, prefix: bool) -> bool {
        let length = key.parts().len();
        (length == columns.len() || (prefix && length < columns.len()))
            && key.parts().iter().zip(columns).all(|(part, column)| {
                matches!(
                    (part, column.kind),
                    (KeyPart::Text(_), ColumnKind::Text)
                        | (KeyPart::U64(_), ColumnKind::U64)
                        | (KeyPart::Bytes(_), ColumnKind::Bytes)
                )
            })
    }
}
