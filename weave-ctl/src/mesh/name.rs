//! Peer names and short IDs (wire.md 1.1, 1.4).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A peer's name: 48 bits, never zero, written like a MAC address (wire.md 1.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerName(u64);

/// Text that is no peer name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid peer name format: \"{0}\"")]
pub struct InvalidPeerName(pub String);

impl PeerName {
    /// The first one in order.
    pub(crate) const LEAST: Self = Self(1);

    /// From the number used in gob; `None` when zero or wider than 48 bits.
    #[must_use]
    pub fn from_u64(number: u64) -> Option<Self> {
        (number != 0 && number >> 48 == 0).then_some(Self(number))
    }

    /// The number used in gob.
    #[must_use]
    pub fn as_u64(self) -> u64 {
        self.0
    }

    /// From exactly six bytes, big-endian; `None` otherwise.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: [u8; 6] = bytes.try_into().ok()?;
        let mut wide = [0; 8];
        wide[2..].copy_from_slice(&bytes);
        Self::from_u64(u64::from_be_bytes(wide))
    }

    /// Six bytes, big-endian: also the MAC address of the peer's bridge.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 6] {
        let [_, _, rest @ ..] = self.0.to_be_bytes();
        rest
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.to_bytes();
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for PeerName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PeerName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl FromStr for PeerName {
    type Err = InvalidPeerName;

    /// Six groups of one or two hex digits, or fewer (one to four) with one `::` for the missing.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| InvalidPeerName(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<PeerName> {
    let groups = |part: &str| -> Option<Vec<u8>> {
        if part.is_empty() {
            return Some(Vec::new());
        }
        part.split(':')
            .map(|g| {
                let fits = (1..=2).contains(&g.len()) && g.bytes().all(|b| b.is_ascii_hexdigit());
                fits.then(|| u8::from_str_radix(g, 16).ok()).flatten()
            })
            .collect()
    };
    let bytes = match text.split_once("::") {
        None => groups(text)?,
        Some((head, tail)) => {
            let (head, tail) = (groups(head)?, groups(tail)?);
            let given = head.len() + tail.len();
            if !(1..=4).contains(&given) {
                return None;
            }
            [head, vec![0; 6 - given], tail].concat()
        }
    };
    PeerName::from_bytes(&bytes)
}

/// A peer's number inside a VXLAN VNI: 12 bits, zero is legal (wire.md 1.4).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ShortId(u16);

impl ShortId {
    /// How many there are.
    pub const COUNT: usize = 1 << 12;

    /// `None` above 4095 (wire.md W12: such an ID is treated as absent).
    #[must_use]
    pub fn new(number: u64) -> Option<Self> {
        u16::try_from(number)
            .ok()
            .filter(|n| usize::from(*n) < Self::COUNT)
            .map(Self)
    }

    /// The number, 0..=4095.
    #[must_use]
    pub fn get(self) -> u16 {
        self.0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn text_forms() {
        let shown = |t: &str| t.parse::<PeerName>().map(|n| n.to_string());
        assert_eq!(shown("7A:9f:31:c2:4d:18").unwrap(), "7a:9f:31:c2:4d:18");
        for (text, name) in [
            ("::1", "00:00:00:00:00:01"),
            ("1::", "01:00:00:00:00:00"),
            ("1::6", "01:00:00:00:00:06"),
            ("1:2::5:6", "01:02:00:00:05:06"),
            ("1:2:3:4::", "01:02:03:04:00:00"),
            ("::3:4:5:6", "00:00:03:04:05:06"),
        ] {
            assert_eq!(shown(text).unwrap(), name);
        }
        for bad in [
            "",
            "::",
            "1:2:3::5:6",
            "1:2:3:4:5",
            "1:2:3:4:5:6:7",
            "1:2:3:4:5:g",
            "+1::1",
            "1::2::3",
            "0::0",
        ] {
            assert_eq!(shown(bad), Err(InvalidPeerName(bad.to_owned())));
        }
    }

    #[test]
    fn numbers() {
        let name = PeerName::from_u64(0x7a9f_31c2_4d18).unwrap();
        assert_eq!(name.to_bytes(), [0x7a, 0x9f, 0x31, 0xc2, 0x4d, 0x18]);
        assert_eq!(PeerName::from_bytes(&name.to_bytes()), Some(name));
        assert_eq!(PeerName::from_u64(0), None);
        assert_eq!(PeerName::from_u64(1 << 48), None);
        assert_eq!(ShortId::new(4095).map(ShortId::get), Some(4095));
        assert_eq!(ShortId::new(4096), None);
    }
}
