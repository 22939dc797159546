//! A JSON object in which everything that is not changed stays as it came, byte by byte: numbers of any size, unknown
//! fields, the order of the keys.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeOwned, Error as _, MapAccess, Visitor};
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// The object. Like Docker, it does not look at the letter case of keys, and of equal ones takes the last.
#[derive(Debug, Clone, Default)]
pub struct Object(Vec<(String, Box<RawValue>)>);

/// A field that has a value of another kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Wrong type for {field} field, expected {expected}, but got {got}")]
pub struct WrongType {
    field: String,
    expected: &'static str,
    got: &'static str,
}

/// One text, or some.
#[derive(Deserialize)]
#[serde(untagged)]
enum Texts {
    One(String),
    Some(Vec<String>),
}

impl Object {
    /// The first JSON value in the bytes, if it is an object. What follows does not matter to Docker either.
    ///
    /// # Errors
    /// If they begin with no JSON value.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, serde_json::Error> {
        let mut values = serde_json::Deserializer::from_slice(bytes).into_iter::<Box<RawValue>>();
        match values.next() {
            Some(Ok(value)) => Ok(serde_json::from_str(value.get()).ok()),
            Some(Err(error)) => Err(error),
            None => Ok(None),
        }
    }

    /// Has it no key at all?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value as it came; `None` if there is none, or `null`.
    #[must_use]
    pub fn raw(&self, key: &str) -> Option<&RawValue> {
        let found = self.0.iter().rev().find(|(k, _)| k.eq_ignore_ascii_case(key));
        found
            .map(|(_, value)| value.as_ref())
            .filter(|value| value.get() != "null")
    }

    /// Is there such a key, whatever its value is?
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(k, _)| k.eq_ignore_ascii_case(key))
    }

    /// Sets a value; a new key comes last.
    pub fn set(&mut self, key: &str, value: &impl Serialize) -> Result<(), serde_json::Error> {
        let value = serde_json::value::to_raw_value(value)?;
        let found = self.0.iter_mut().rev().find(|(k, _)| k.eq_ignore_ascii_case(key));
        match found {
            Some((_, old)) => *old = value,
            None => self.0.push((key.to_owned(), value)),
        }
        Ok(())
    }

    /// All but these.
    #[must_use]
    pub fn without(&self, keys: &[&str]) -> Self {
        let kept = |(key, _): &&(String, _)| !keys.iter().any(|k| k.eq_ignore_ascii_case(key));
        Self(self.0.iter().filter(kept).cloned().collect())
    }

    fn read<T: DeserializeOwned>(&self, key: &str, expected: &'static str) -> Result<Option<T>, WrongType> {
        self.raw(key)
            .map(|value| {
                serde_json::from_str(value.get()).map_err(|_| WrongType {
                    field: key.to_owned(),
                    expected,
                    got: kind(value),
                })
            })
            .transpose()
    }

    /// A text; empty if there is none.
    pub fn text(&self, key: &str) -> Result<String, WrongType> {
        Ok(self.read(key, "string")?.unwrap_or_default())
    }

    /// A list of texts; empty if there is none.
    pub fn texts(&self, key: &str) -> Result<Vec<String>, WrongType> {
        Ok(self.read(key, "array of strings")?.unwrap_or_default())
    }

    /// One text, or a list of them; empty if there is none, or an empty one.
    pub fn one_or_more(&self, key: &str) -> Result<Vec<String>, WrongType> {
        let found: Option<Texts> = self.read(key, "string or array of strings")?;
        Ok(match found {
            None => Vec::new(),
            Some(Texts::One(text)) => Some(text).filter(|text| !text.is_empty()).into_iter().collect(),
            Some(Texts::Some(texts)) => texts,
        })
    }

    /// Names with texts; empty if there are none.
    pub fn labels(&self, key: &str) -> Result<BTreeMap<String, String>, WrongType> {
        Ok(self.read(key, "object of strings")?.unwrap_or_default())
    }

    /// An object in this one.
    pub fn object(&self, key: &str) -> Result<Option<Self>, WrongType> {
        self.read(key, "object")
    }
}

fn kind(value: &RawValue) -> &'static str {
    match value.get().as_bytes().first() {
        Some(b'{') => "object",
        Some(b'[') => "array",
        Some(b'"') => "string",
        Some(b't' | b'f') => "boolean",
        Some(b'n') => "null",
        _ => "number",
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Object(entries))
            }

            fn visit_unit<E: serde::de::Error>(self) -> Result<Object, E> {
                Err(E::custom("null"))
            }
        }

        deserializer.deserialize_map(Entries).map_err(D::Error::custom)
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_changed_stays() {
        let text = r#"{"z":12345678901234567890123,"a":{ "x" : 1.50e3},"m":null,"s":"\u003c","a2":[1, 2]}"#;
        let mut object = Object::parse(text.as_bytes()).unwrap().unwrap();
        assert_eq!(serde_json::to_string(&object).unwrap(), text);
        object.set("M", &["x"]).unwrap();
        object.set("new", &7).unwrap();
        assert_eq!(
            serde_json::to_string(&object).unwrap(),
            r#"{"z":12345678901234567890123,"a":{ "x" : 1.50e3},"m":["x"],"s":"\u003c","a2":[1, 2],"new":7}"#
        );
    }

    #[test]
    fn kinds() {
        let text = r#"{"n":1,"t":"x","l":["a","b"],"o":{"k":"v"},"e":"","z":null,"T":"y","b":true}"#;
        let object = Object::parse(text.as_bytes()).unwrap().unwrap();
        assert_eq!(object.text("t").unwrap(), "y", "the last, in any letter case");
        assert_eq!(object.text("none").unwrap(), "");
        assert_eq!(object.texts("l").unwrap(), ["a", "b"]);
        assert_eq!(object.one_or_more("l").unwrap(), ["a", "b"]);
        assert_eq!(object.one_or_more("t").unwrap(), ["y"]);
        assert!(object.one_or_more("e").unwrap().is_empty() && object.one_or_more("z").unwrap().is_empty());
        assert_eq!(object.labels("o").unwrap().get("k").unwrap(), "v");
        assert!(object.object("z").unwrap().is_none() && object.has("z"));
        for (error, text) in [
            (
                object.text("n").unwrap_err(),
                "Wrong type for n field, expected string, but got number",
            ),
            (
                object.texts("t").unwrap_err(),
                "Wrong type for t field, expected array of strings, but got string",
            ),
            (
                object.one_or_more("o").unwrap_err(),
                "Wrong type for o field, expected string or array of strings, but got object",
            ),
            (
                object.object("l").unwrap_err(),
                "Wrong type for l field, expected object, but got array",
            ),
            (
                object.object("b").unwrap_err(),
                "Wrong type for b field, expected object, but got boolean",
            ),
        ] {
            assert_eq!(error.to_string(), text);
        }
    }

    #[test]
    fn no_objects() {
        for text in ["", " ", "null", "[]", "7", "\"x\""] {
            assert!(Object::parse(text.as_bytes()).unwrap().is_none(), "{text:?}");
        }
        assert!(Object::parse(b"{").is_err() && Object::parse(b"hello").is_err());
        assert!(Object::parse(b"{} and more").unwrap().unwrap().is_empty());
    }
}
