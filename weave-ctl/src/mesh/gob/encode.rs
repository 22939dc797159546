//! Encoding gob streams: one stream, each descriptor once, ids from 65 upward (wire.md 3.2, 3.3).

use super::{Type, Value};

const FIRST_ID: i64 = 65;

/// A stream of nothing but one map of strings.
#[must_use]
pub fn encode_strings<K: AsRef<str>, V: AsRef<str>>(pairs: &[(K, V)]) -> Vec<u8> {
    fn string(text: &str) -> Value<'_> {
        Value::String(text.into())
    }
    let pairs = pairs
        .iter()
        .map(|(key, value)| (string(key.as_ref()), string(value.as_ref())));
    let mut encoder = Encoder::new();
    encoder.encode(
        &Type::Map(&Type::String, &Type::String),
        &Value::Map(pairs.collect()),
    );
    encoder.finish()
}

/// Writes values into one stream.
#[derive(Debug, Default)]
pub struct Encoder {
    out: Vec<u8>,
    /// Position gives the id.
    types: Vec<Type>,
}

impl Encoder {
    /// An empty stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends `value`, preceded by the descriptors that the stream still lacks.
    ///
    /// A value that is not of type `ty` is a mistake of the caller: it panics in debug builds and
    /// is written as that type's zero otherwise.
    pub fn encode(&mut self, ty: &Type, value: &Value<'_>) {
        self.encode_with(ty, |out| put_value(out, ty, value));
    }

    /// The same with a value that the function writes: a tree of values costs much in large tables.
    pub(crate) fn encode_with(&mut self, ty: &Type, write: impl FnOnce(&mut Vec<u8>)) {
        let id = self.id_of(ty);
        let mut message = Vec::new();
        put_int(&mut message, id);
        if !matches!(ty, Type::Struct(..)) {
            message.push(0);
        }
        write(&mut message);
        put_bytes(&mut self.out, &message);
    }

    /// The bytes of the stream.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.out
    }

    fn id_of(&mut self, ty: &Type) -> i64 {
        match ty {
            Type::Bool => return 1,
            Type::Int => return 2,
            Type::Uint => return 3,
            Type::Bytes => return 5,
            Type::String => return 6,
            Type::Slice(_) | Type::Map(..) | Type::Struct(..) => {}
        }
        if let Some(id) = (FIRST_ID..)
            .zip(&self.types)
            .find_map(|(id, known)| (known == ty).then_some(id))
        {
            return id;
        }
        let wire = match ty {
            Type::Slice(element) => (2, vec![("", self.id_of(element))]),
            Type::Map(key, element) => (4, vec![("", self.id_of(key)), ("", self.id_of(element))]),
            Type::Struct(_, fields) => (
                3,
                fields.iter().map(|(name, ty)| (*name, self.id_of(ty))).collect(),
            ),
            _ => return 0,
        };
        self.types.push(*ty);
        let id = (FIRST_ID..)
            .zip(&self.types)
            .map(|(id, _)| id)
            .last()
            .unwrap_or(FIRST_ID);
        put_bytes(&mut self.out, &descriptor(ty, id, wire));
        id
    }
}

/// Writes a struct's fields, which must come in the order of its [`Type`]; zero ones are left out.
pub(crate) struct Fields<'o> {
    out: &'o mut Vec<u8>,
    delta: u64,
}

impl<'o> Fields<'o> {
    pub(crate) fn new(out: &'o mut Vec<u8>) -> Self {
        Self { out, delta: 0 }
    }

    pub(crate) fn uint(mut self, number: u64) -> Self {
        if self.announce(number != 0) {
            put_uint(self.out, number);
        }
        self
    }

    pub(crate) fn int(self, number: i64) -> Self {
        self.uint(zigzag(number))
    }

    pub(crate) fn bool(self, value: bool) -> Self {
        self.uint(value.into())
    }

    /// A byte slice or a string.
    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        if self.announce(!bytes.is_empty()) {
            put_bytes(self.out, bytes);
        }
        self
    }

    /// So many elements, which the function writes.
    pub(crate) fn slice(mut self, count: usize, write: impl FnOnce(&mut Vec<u8>)) -> Self {
        if self.announce(count != 0) {
            put_uint(self.out, count as u64);
            write(self.out);
        }
        self
    }

    pub(crate) fn end(self) {
        self.out.push(0);
    }

    fn announce(&mut self, present: bool) -> bool {
        self.delta += 1;
        if present {
            put_uint(self.out, self.delta);
            self.delta = 0;
        }
        present
    }
}

/// A descriptor's message. `wire`: number of the field of `wireType`, then the parts.
fn descriptor(ty: &Type, id: i64, (kind, parts): (u8, Vec<(&str, i64)>)) -> Vec<u8> {
    let mut out = Vec::new();
    put_int(&mut out, -id);
    out.push(kind);
    out.push(1);
    match ty {
        Type::Struct(name, _) if !name.is_empty() => {
            out.push(1);
            put_bytes(&mut out, name.as_bytes());
            out.push(1);
        }
        _ => out.push(2),
    }
    put_int(&mut out, id);
    out.push(0);
    if matches!(ty, Type::Struct(..)) && !parts.is_empty() {
        out.push(1);
        put_uint(&mut out, parts.len() as u64);
        for (name, id) in parts {
            out.push(1);
            put_bytes(&mut out, name.as_bytes());
            out.push(1);
            put_int(&mut out, id);
            out.push(0);
        }
    } else {
        for (_, id) in parts {
            out.push(1);
            put_int(&mut out, id);
        }
    }
    out.extend([0, 0]);
    out
}

fn put_value(out: &mut Vec<u8>, ty: &Type, value: &Value<'_>) {
    match (ty, value) {
        (Type::Bool, Value::Bool(v)) => out.push(u8::from(*v)),
        (Type::Int, Value::Int(v)) => put_int(out, *v),
        (Type::Uint, Value::Uint(v)) => put_uint(out, *v),
        (Type::Bytes, Value::Bytes(v)) => put_bytes(out, v),
        (Type::String, Value::String(v)) => put_bytes(out, v.as_bytes()),
        (Type::Slice(element), Value::Slice(values)) => {
            put_uint(out, values.len() as u64);
            for v in values {
                put_value(out, element, v);
            }
        }
        (Type::Map(key, element), Value::Map(pairs)) => {
            put_uint(out, pairs.len() as u64);
            for (k, v) in pairs {
                put_value(out, key, k);
                put_value(out, element, v);
            }
        }
        (Type::Struct(_, fields), Value::Struct(values)) => put_fields(out, fields, values),
        _ => {
            debug_assert!(false, "{value:?} is no {ty:?}");
            // The zero of every kind.
            out.push(0);
        }
    }
}

fn put_fields(out: &mut Vec<u8>, fields: &[(&str, Type)], values: &[(&str, Value<'_>)]) {
    debug_assert!(
        values
            .iter()
            .all(|(name, _)| fields.iter().any(|(known, _)| known == name)),
        "unknown field among {values:?}"
    );
    let mut delta = 0;
    for (name, ty) in fields {
        delta += 1;
        let found = values.iter().find(|(n, _)| n == name).map(|(_, v)| v);
        if let Some(value) = found.filter(|v| !is_omitted(v)) {
            put_uint(out, delta);
            put_value(out, ty, value);
            delta = 0;
        }
    }
    out.push(0);
}

/// Zero fields are not written, but structs and maps that are there always are (wire.md 3.1).
fn is_omitted(value: &Value<'_>) -> bool {
    match value {
        Value::Bool(v) => !v,
        Value::Int(v) => *v == 0,
        Value::Uint(v) => *v == 0,
        Value::Bytes(v) => v.is_empty(),
        Value::String(v) => v.is_empty(),
        Value::Slice(v) => v.is_empty(),
        Value::Map(_) | Value::Struct(_) => false,
    }
}

pub(crate) fn put_uint(out: &mut Vec<u8>, number: u64) {
    if let Some(small) = u8::try_from(number).ok().filter(|b| *b < 0x80) {
        out.push(small);
        return;
    }
    let bytes = number.to_be_bytes();
    let significant = bytes
        .iter()
        .position(|b| *b != 0)
        .map_or(&[][..], |at| &bytes[at..]);
    out.push((significant.len() as u8).wrapping_neg());
    out.extend_from_slice(significant);
}

fn put_int(out: &mut Vec<u8>, number: i64) {
    put_uint(out, zigzag(number));
}

/// The sign in the lowest bit.
fn zigzag(number: i64) -> u64 {
    let doubled = number.cast_unsigned() << 1;
    if number < 0 { !doubled } else { doubled }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_uint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}
