//! A small, bounded part of Go's `encoding/gob`: what peers and the original's database use
//! (wire.md section 3).
//!
//! Decoding follows the descriptors found in the stream and yields a [`Value`] tree that borrows
//! from the input; encoding is driven by a static [`Type`]. Fields are matched by name.

mod decode;
mod encode;
mod record;
#[cfg(test)]
pub(crate) mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;

pub use decode::{Decoder, MAX_DEPTH, MAX_VALUES};
pub use encode::{Encoder, encode_strings};
pub(crate) use encode::{Fields, put_uint};
pub(crate) use record::{Field, RecordReader};

/// What is wrong with a gob stream, or with what was found in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GobError {
    /// The input ends inside a value, or a count exceeds the bytes that are left.
    #[error("gob: unexpected end of data")]
    Truncated,
    /// A number with an impossible length byte.
    #[error("gob: malformed number")]
    Number,
    /// A message goes on after its value.
    #[error("gob: extra data in message")]
    Trailing,
    /// A second descriptor for one id.
    #[error("gob: duplicate type received")]
    DuplicateType,
    /// A value or descriptor refers to an id that has no descriptor.
    #[error("gob: unknown type id {0}")]
    UnknownType(i64),
    /// A descriptor that makes no sense or describes a kind outside the subset.
    #[error("gob: unsupported type descriptor")]
    Descriptor,
    /// A struct value names a field that its descriptor lacks.
    #[error("gob: no such field number")]
    Field,
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("gob: nested too deep")]
    TooDeep,
    /// More values than [`MAX_VALUES`], or more types than are sensible.
    #[error("gob: too many elements")]
    TooMany,
    /// A value is of another kind than its reader needs; the text names it.
    #[error("gob: wrong type for {0}")]
    WrongType(&'static str),
    /// The stream ends before a value that its reader needs; the text names it.
    #[error("gob: {0} is missing")]
    Missing(&'static str),
}

/// A type to encode, made to be written down as a `static`:
///
/// ```
/// use weave_ctl::mesh::gob::Type;
/// static RANGE: Type = Type::Struct("Range", &[("Start", Type::Uint), ("End", Type::Uint)]);
/// static RANGES: Type = Type::Slice(&RANGE);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// `bool`.
    Bool,
    /// Any signed width.
    Int,
    /// Any unsigned width.
    Uint,
    /// `[]byte`.
    Bytes,
    /// `string`.
    String,
    /// A slice of the inner type.
    Slice(&'static Type),
    /// A map from the first to the second.
    Map(&'static Type, &'static Type),
    /// A struct: its (informational) name, then its fields in order.
    Struct(&'static str, &'static [(&'static str, Type)]),
}

/// A value decoded or to be encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value<'a> {
    /// `bool`.
    Bool(bool),
    /// Signed.
    Int(i64),
    /// Unsigned.
    Uint(u64),
    /// Byte slice.
    Bytes(Cow<'a, [u8]>),
    /// String; bytes that are no UTF-8 have been replaced by U+FFFD.
    String(Cow<'a, str>),
    /// Slice.
    Slice(Vec<Value<'a>>),
    /// Map, in the order of the stream. Keys may repeat; the last one counts in Go.
    Map(Vec<(Value<'a>, Value<'a>)>),
    /// The fields present, by name. To encode, the order does not matter and a field left out is
    /// not written: so a nil map is a field left out, an empty map is one with an empty `Map`, and
    /// likewise an optional struct. Zero scalars and empty slices are never written.
    Struct(Vec<(&'a str, Value<'a>)>),
}

static EMPTY: Value<'static> = Value::Struct(Vec::new());

/// Reading a struct: a missing field is the zero of its kind; another kind is
/// [`GobError::WrongType`] with the field's name, as is asking a field of something that is no struct.
impl<'a> Value<'a> {
    /// The field itself, `None` when missing (a nil map, an absent optional struct).
    pub fn get(&self, field: &'static str) -> Result<Option<&Value<'a>>, GobError> {
        match self {
            Value::Struct(fields) => Ok(fields.iter().find(|(name, _)| *name == field).map(|(_, v)| v)),
            _ => Err(GobError::WrongType(field)),
        }
    }

    /// A boolean field.
    pub fn bool(&self, field: &'static str) -> Result<bool, GobError> {
        match self.get(field)? {
            None => Ok(false),
            Some(Value::Bool(v)) => Ok(*v),
            Some(_) => Err(GobError::WrongType(field)),
        }
    }

    /// A signed field.
    pub fn int(&self, field: &'static str) -> Result<i64, GobError> {
        self.get(field)?.map_or(Ok(0), |v| v.as_int(field))
    }

    /// An unsigned field.
    pub fn uint(&self, field: &'static str) -> Result<u64, GobError> {
        self.get(field)?.map_or(Ok(0), |v| v.as_uint(field))
    }

    /// A string field.
    pub fn str(&self, field: &'static str) -> Result<&str, GobError> {
        self.get(field)?.map_or(Ok(""), |v| v.as_str(field))
    }

    /// A byte slice field.
    pub fn bytes(&self, field: &'static str) -> Result<&[u8], GobError> {
        self.get(field)?.map_or(Ok(&[]), |v| v.as_bytes(field))
    }

    /// A slice field; empty and missing are the same.
    pub fn slice(&self, field: &'static str) -> Result<&[Value<'a>], GobError> {
        self.get(field)?.map_or(Ok(&[]), |v| v.as_slice(field))
    }

    /// A map field: `None` when missing (nil), which is not the same as empty.
    #[allow(clippy::type_complexity)]
    pub fn map(&self, field: &'static str) -> Result<Option<&[(Value<'a>, Value<'a>)]>, GobError> {
        self.get(field)?.map(|v| v.as_map(field)).transpose()
    }

    /// A struct field, all zero when missing. For an optional struct use [`Value::get`].
    pub fn child(&self, field: &'static str) -> Result<&Value<'a>, GobError> {
        match self.get(field)? {
            None => Ok(&EMPTY),
            Some(v @ Value::Struct(_)) => Ok(v),
            Some(_) => Err(GobError::WrongType(field)),
        }
    }

    /// This value as a signed number; `what` names it in the error.
    pub fn as_int(&self, what: &'static str) -> Result<i64, GobError> {
        match self {
            Value::Int(v) => Ok(*v),
            _ => Err(GobError::WrongType(what)),
        }
    }

    /// This value as an unsigned number; `what` names it in the error.
    pub fn as_uint(&self, what: &'static str) -> Result<u64, GobError> {
        match self {
            Value::Uint(v) => Ok(*v),
            _ => Err(GobError::WrongType(what)),
        }
    }

    /// This value as a string; `what` names it in the error.
    pub fn as_str(&self, what: &'static str) -> Result<&str, GobError> {
        match self {
            Value::String(v) => Ok(v),
            _ => Err(GobError::WrongType(what)),
        }
    }

    /// This value as a byte slice; `what` names it in the error.
    pub fn as_bytes(&self, what: &'static str) -> Result<&[u8], GobError> {
        match self {
            Value::Bytes(v) => Ok(v),
            _ => Err(GobError::WrongType(what)),
        }
    }

    /// This value as a slice; `what` names it in the error.
    pub fn as_slice(&self, what: &'static str) -> Result<&[Value<'a>], GobError> {
        match self {
            Value::Slice(v) => Ok(v),
            _ => Err(GobError::WrongType(what)),
        }
    }

    /// This value as a map; `what` names it in the error.
    pub fn as_map(&self, what: &'static str) -> Result<&[(Value<'a>, Value<'a>)], GobError> {
        match self {
            Value::Map(v) => Ok(v),
            _ => Err(GobError::WrongType(what)),
        }
    }

    /// This value as a map of strings; `what` names it in the error. Of keys that repeat, the last one counts.
    pub fn as_strings(&self, what: &'static str) -> Result<BTreeMap<&str, &str>, GobError> {
        let pairs = self.as_map(what)?.iter();
        pairs
            .map(|(key, value)| Ok((key.as_str(what)?, value.as_str(what)?)))
            .collect()
    }
}
