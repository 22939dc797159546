//! Values of templates: the report's JSON, with the order of its keys and the kinds of its nulls.

use std::fmt::{self, Write as _};

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

/// Objects of the report whose keys are data, so that a missing key is no error, and `null` is empty.
const MAPS: [&str; 4] = ["Attrs", "OverlayDiagnostics", "CaptureStats", "Counters"];
/// Keys whose `null` is a missing object; any other `null` is an empty list.
const POINTERS: [&str; 2] = ["Paxos", "sleeve"];

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// The constant `nil`, or a missing object.
    Nil,
    /// What a map gives for a key it does not have.
    Missing,
    /// Boolean.
    Bool(bool),
    /// Any integer, among them unsigned 64-bit ones.
    Int(i128),
    /// Floating point.
    Float(f64),
    /// Text.
    Text(String),
    /// List; `None` is an empty one whose JSON is `null`.
    List(Option<Vec<Value>>),
    /// Object with fixed fields.
    Struct(Vec<(String, Value)>),
    /// Object whose keys are data, sorted; `None` is an empty one whose JSON is `null`.
    Map(Option<Vec<(String, Value)>>),
}

impl Value {
    /// The elements of a list.
    pub fn items(&self) -> Option<&[Value]> {
        match self {
            Self::List(list) => Some(list.as_deref().unwrap_or_default()),
            _ => None,
        }
    }

    /// The pairs of a map.
    pub fn pairs(&self) -> Option<&[(String, Value)]> {
        match self {
            Self::Map(map) => Some(map.as_deref().unwrap_or_default()),
            _ => None,
        }
    }

    /// What `if` and `with` ask.
    pub fn is_true(&self) -> bool {
        match self {
            Self::Nil | Self::Missing => false,
            Self::Bool(b) => *b,
            Self::Int(n) => *n != 0,
            Self::Float(n) => *n != 0.0,
            Self::Text(text) => !text.is_empty(),
            Self::Struct(_) => true,
            Self::List(list) => list.as_ref().is_some_and(|l| !l.is_empty()),
            Self::Map(map) => map.as_ref().is_some_and(|m| !m.is_empty()),
        }
    }

    /// Name of the kind, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Nil | Self::Missing => "nil",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float64",
            Self::Text(_) => "string",
            Self::List(_) => "list",
            Self::Struct(_) => "struct",
            Self::Map(_) => "map",
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nil => f.write_str("<nil>"),
            Self::Missing => f.write_str("<no value>"),
            Self::Bool(b) => write!(f, "{b}"),
            Self::Int(n) => write!(f, "{n}"),
            Self::Float(n) => write!(f, "{n}"),
            Self::Text(text) => f.write_str(text),
            Self::List(_) => spaced(f, "[", "]", self.items().unwrap_or_default(), fmt::Display::fmt),
            Self::Struct(fields) => spaced(f, "{", "}", fields, |(_, v), f| v.fmt(f)),
            Self::Map(_) => spaced(f, "map[", "]", self.pairs().unwrap_or_default(), |(k, v), f| {
                write!(f, "{k}:{v}")
            }),
        }
    }
}

fn spaced<T>(
    f: &mut fmt::Formatter<'_>,
    open: &str,
    close: &str,
    items: &[T],
    show: impl Fn(&T, &mut fmt::Formatter<'_>) -> fmt::Result,
) -> fmt::Result {
    f.write_str(open)?;
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            f.write_char(' ')?;
        }
        show(item, f)?;
    }
    f.write_str(close)
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Nil | Self::Missing => serializer.serialize_unit(),
            Self::Bool(b) => serializer.serialize_bool(*b),
            Self::Int(n) => match (u64::try_from(*n), i64::try_from(*n)) {
                (Ok(n), _) => serializer.serialize_u64(n),
                (_, Ok(n)) => serializer.serialize_i64(n),
                _ => serializer.serialize_i128(*n),
            },
            Self::Float(n) => serializer.serialize_f64(*n),
            Self::Text(text) => serializer.serialize_str(text),
            Self::List(list) => list.serialize(serializer),
            Self::Map(None) => serializer.serialize_none(),
            Self::Struct(pairs) | Self::Map(Some(pairs)) => {
                let mut map = serializer.serialize_map(Some(pairs.len()))?;
                for (key, value) in pairs {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Nil)
    }
    fn visit_bool<E>(self, b: bool) -> Result<Value, E> {
        Ok(Value::Bool(b))
    }
    fn visit_u64<E>(self, n: u64) -> Result<Value, E> {
        Ok(Value::Int(n.into()))
    }
    fn visit_i64<E>(self, n: i64) -> Result<Value, E> {
        Ok(Value::Int(n.into()))
    }
    fn visit_f64<E>(self, n: f64) -> Result<Value, E> {
        Ok(Value::Float(n))
    }
    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = seq.next_element()? {
            list.push(item);
        }
        Ok(Value::List(Some(list)))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut fields = Vec::new();
        while let Some((key, value)) = map.next_entry::<String, Value>()? {
            let is_map = MAPS.contains(&key.as_str());
            let value = match value {
                Value::Nil if is_map => Value::Map(None),
                Value::Nil if !POINTERS.contains(&key.as_str()) => Value::List(None),
                Value::Struct(mut pairs) if is_map => {
                    pairs.sort_by(|a, b| a.0.cmp(&b.0));
                    Value::Map(Some(pairs))
                }
                value => value,
            };
            fields.push((key, value));
        }
        Ok(Value::Struct(fields))
    }
}
