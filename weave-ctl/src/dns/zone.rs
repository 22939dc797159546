//! What the DNS server answers from: the live names in the form in which questions arrive.
//!
//! Names are kept in wire format (length and bytes of each label), so that a question is looked up without making a
//! text of it first.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::mesh::name::PeerName;

/// The longest name in wire format, with its final zero (RFC 1035, 2.3.4).
pub const MAX_NAME: usize = 255;
/// The longest label (RFC 1035, 2.3.4).
pub const MAX_LABEL: usize = 63;

/// One address of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The address.
    pub addr: Ipv4Addr,
    /// The peer that registered it.
    pub origin: PeerName,
    /// Registered on this host.
    pub local: bool,
    /// The origin has a route now; always so for our own.
    pub reachable: bool,
}

/// The live names.
#[derive(Debug, Default)]
pub struct Zone {
    /// By lower-cased name in wire format.
    names: HashMap<Box<[u8]>, Box<[Answer]>>,
    /// Names in wire format, letter case as registered.
    reverse: HashMap<Ipv4Addr, Box<[u8]>>,
}

impl Zone {
    /// Sets the live answers of a name (fully qualified, with trailing dot); with none of them the name goes. Of
    /// several with one address one is kept, rather a reachable one, rather our own. A name that cannot be asked for (an empty or too long label) is ignored.
    pub fn set(&mut self, name: &str, mut answers: Vec<Answer>) {
        let Some(mut name) = wire(name) else {
            return;
        };
        name.make_ascii_lowercase();
        if answers.is_empty() {
            self.names.remove(&*name);
        } else {
            answers.sort_by_key(|a| (a.addr, !a.reachable, !a.local));
            answers.dedup_by_key(|a| a.addr);
            self.names.insert(name, answers.into());
        }
    }

    /// Sets the name of an address: the hostname of its first live entry, letter case as registered; `None`: it has
    /// none any more. A name that cannot be written in an answer counts as none.
    pub fn set_reverse(&mut self, addr: Ipv4Addr, hostname: Option<&str>) {
        match hostname.and_then(wire) {
            Some(name) => self.reverse.insert(addr, name),
            None => self.reverse.remove(&addr),
        };
    }

    /// The addresses of a lower-cased name in wire format; empty: no such name.
    pub fn answers(&self, name: &[u8]) -> &[Answer] {
        self.names.get(name).map_or(&[], |answers| answers)
    }

    /// The name of an address, in wire format.
    pub fn hostname(&self, addr: Ipv4Addr) -> Option<&[u8]> {
        self.reverse.get(&addr).map(|name| &**name)
    }

    /// Number of names.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is no name.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

/// The zone, shared by those who change it and those who answer from it. Hold it shortly: the other side waits.
#[derive(Clone, Debug, Default)]
pub struct SharedZone(Arc<RwLock<Zone>>);

impl SharedZone {
    /// To answer from.
    pub fn read(&self) -> RwLockReadGuard<'_, Zone> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// To change. Several changes under one hold are seen together.
    pub fn write(&self) -> RwLockWriteGuard<'_, Zone> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name in wire format from its text, in which `\X` and `\DDD` stand for a byte; a missing trailing dot is taken as
/// given. `None` if it has an empty or too long label, or is too long.
pub fn wire(text: &str) -> Option<Box<[u8]>> {
    let text = if text == "." { "" } else { text };
    let mut out = vec![0];
    let mut length_at = 0;
    let mut bytes = text.bytes();
    let end_label = |out: &mut Vec<u8>, length_at: usize| {
        let length = out.len() - length_at - 1;
        let length = u8::try_from(length)
            .ok()
            .filter(|n| (1..=MAX_LABEL).contains(&usize::from(*n)))?;
        *out.get_mut(length_at)? = length;
        out.push(0);
        Some(out.len() - 1)
    };
    while let Some(byte) = bytes.next() {
        match byte {
            b'.' => length_at = end_label(&mut out, length_at)?,
            b'\\' => out.push(escaped(&mut bytes)?),
            byte => out.push(byte),
        }
    }
    if length_at + 1 < out.len() {
        end_label(&mut out, length_at)?;
    }
    (out.len() <= MAX_NAME).then(|| out.into())
}

/// What follows a backslash: three digits of a decimal number, or the byte itself.
fn escaped(bytes: &mut std::str::Bytes<'_>) -> Option<u8> {
    let first = bytes.next()?;
    if !first.is_ascii_digit() {
        return Some(first);
    }
    let mut value = u16::from(first - b'0');
    for _ in 0..2 {
        let digit = bytes.next().filter(u8::is_ascii_digit)?;
        value = value * 10 + u16::from(digit - b'0');
    }
    u8::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn answer(last: u8) -> Answer {
        Answer {
            addr: Ipv4Addr::new(10, 32, 0, last),
            origin: PeerName::from_u64(1).unwrap(),
            local: true,
            reachable: true,
        }
    }

    #[test]
    fn names_in_wire_format() {
        let long = "a".repeat(63);
        for (text, expected) in [
            ("Seven.weave.local.", Some(&b"\x05Seven\x05weave\x05local\0"[..])),
            ("seven.weave.local", Some(b"\x05seven\x05weave\x05local\0")),
            (r"a\.b.c.", Some(b"\x03a.b\x01c\0")),
            (r"a\032b.", Some(b"\x03a b\0")),
            (r"a\.", Some(b"\x02a.\0")),
            (r"a\\.", Some(b"\x02a\\\0")),
            (".", Some(b"\0")),
            ("", Some(b"\0")),
            ("a..b.", None),
            (".a.", None),
            (r"a\25", None),
            (r"a\256", None),
            (r"a\", None),
            (&"a".repeat(64), None),
            (&format!("{long}.{long}.{long}.{long}."), None),
        ] {
            assert_eq!(wire(text).as_deref(), expected, "{text}");
        }
        let longest = format!("{long}.{long}.{long}.{}.", "a".repeat(61));
        assert_eq!(wire(&longest).map(|w| w.len()), Some(MAX_NAME));
    }

    #[test]
    fn set_and_looked_up() {
        let shared = SharedZone::default();
        let key = wire("seven.weave.local.").unwrap();
        shared
            .write()
            .set("Seven.weave.local.", vec![answer(2), answer(1)]);
        shared
            .write()
            .set_reverse(answer(1).addr, Some("Seven.weave.local."));
        shared.write().set("a..b", vec![answer(1)]);
        let zone = shared.read();
        assert_eq!(zone.answers(&key), [answer(1), answer(2)]);
        assert_eq!(
            zone.hostname(answer(1).addr),
            wire("Seven.weave.local.").as_deref()
        );
        assert_eq!((zone.hostname(answer(2).addr), zone.len()), (None, 1));
        drop(zone);
        shared.write().set("seven.weave.local.", vec![]);
        shared.write().set_reverse(answer(1).addr, None);
        let zone = shared.read();
        assert!(zone.is_empty() && zone.answers(&key).is_empty() && zone.hostname(answer(1).addr).is_none());
    }
}
