//! What a type says of itself when it is read: the names of its fields or variants.

use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeSeed, EnumAccess, VariantAccess, Visitor, value::Error, value::StrDeserializer},
    forward_to_deserialize_any,
};

type Names = &'static [&'static str];

/// The outermost form of a type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Shape {
    Struct(Names),
    Enum(Names),
    #[default]
    Other,
}

impl Shape {
    /// Of a type.
    pub(crate) fn of<'de, T: Deserialize<'de>>() -> Self {
        Self::seen(None, |probe| drop(T::deserialize(probe)))
    }

    /// Of what a variant of a type holds.
    pub(crate) fn of_variant<'de, T: Deserialize<'de>>(tag: &str) -> Self {
        Self::seen(Some(tag), |probe| drop(T::deserialize(probe)))
    }

    fn seen(tag: Option<&str>, ask: impl FnOnce(Probe<'_>)) -> Self {
        let mut shape = Self::Other;
        ask(Probe { shape: &mut shape, tag });
        shape
    }
}

/// Offers nothing to read and notes what is asked for.
struct Probe<'a> {
    shape: &'a mut Shape,
    tag: Option<&'a str>,
}

fn over() -> Error {
    de::Error::custom("the shape is seen")
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(over())
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(self, _: &'static str, fields: Names, _: V) -> Result<V::Value, Error> {
        *self.shape = Shape::Struct(fields);
        Err(over())
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: Names,
        visitor: V,
    ) -> Result<V::Value, Error> {
        if self.tag.is_some() {
            return visitor.visit_enum(self);
        }
        *self.shape = Shape::Enum(variants);
        Err(over())
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

impl<'de> EnumAccess<'de> for Probe<'_> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(mut self, seed: V) -> Result<(V::Value, Self), Error> {
        let tag = StrDeserializer::new(self.tag.take().unwrap_or_default());
        Ok((seed.deserialize(tag)?, self))
    }
}

impl<'de> VariantAccess<'de> for Probe<'_> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Error> {
        Err(over())
    }

    fn struct_variant<V: Visitor<'de>>(self, fields: Names, _: V) -> Result<V::Value, Error> {
        *self.shape = Shape::Struct(fields);
        Err(over())
    }
}
