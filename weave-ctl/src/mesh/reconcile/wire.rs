//! The messages of reconciling: TCP tag 17, only between neighbours that both have the feature.
//!
//! ```text
//! version (1) | kind (1) | length of the channel's name (1) | name | scope (4) | what the kind asks for
//! digest    clock of the sender in Unix seconds (8) | log2 of the number of buckets (1) | 8 bytes for each
//! list      log2 (1) | flags (1) | [8 bytes for each bucket] | bits of the buckets listed (8) | stamps
//! ask       stamps: what the asker has, 0 and 0 for nothing
//! announce  originator or 0 (6) | stamps
//! records   what the channel makes of them
//! full      nothing: the asker has another scope, or cannot reconcile now
//! ```
//! Big-endian. *Stamps*: their number, then by ascending key the difference to the key before, the version (these
//! three as LEB128), and the tag (4).

use std::collections::BTreeMap;

use super::{MAX_BUCKETS, Stamp, Stamps};
use crate::mesh::name::PeerName;

const VERSION: u8 = 1;
const HASHES: u8 = 1;
const REPLY: u8 = 2;
/// Least bytes of a key with its stamp.
const LEAST: usize = 6;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Of this channel.
    pub channel: String,
    /// See [`super::Reconcile::scope`].
    pub scope: u32,
    /// The rest.
    pub body: Body,
}

/// What is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// A number for each bucket of the sender's stamps.
    Digest {
        /// The sender's clock, in Unix seconds.
        clock: i64,
        /// The numbers.
        hashes: Vec<u64>,
    },
    /// Stamps of the sender.
    List(List),
    /// Send these records; with each what the asker has.
    Ask(Stamps),
    /// The sender has these records.
    Announce {
        /// Along whose broadcast tree this goes.
        origin: Option<PeerName>,
        /// What is new.
        stamps: Stamps,
    },
    /// Records.
    Records(Vec<u8>),
    /// Send the full state as one would to an original.
    Full,
}

/// All stamps that the sender has in some buckets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List {
    /// How many buckets there are.
    pub buckets: usize,
    /// Numbers of all of them, for channels that must send everything at once.
    pub hashes: Option<Vec<u64>>,
    /// Those listed.
    pub mask: u64,
    /// Answers a list: not to be answered by one.
    pub reply: bool,
    /// The stamps.
    pub stamps: Stamps,
}

/// A message cannot be read. It is skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// It ends too early.
    #[error("truncated")]
    Truncated,
    /// Something follows that does not belong to it.
    #[error("{0} bytes too many")]
    Trailing(usize),
    /// From the future.
    #[error("unknown version {0}")]
    Version(u8),
    /// From the future.
    #[error("unknown kind {0}")]
    Kind(u8),
    /// A number that cannot be.
    #[error("{0} is out of range")]
    OutOfRange(&'static str),
}

impl Packet {
    /// The body of the TCP message behind its tag.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        let kind = match &self.body {
            Body::Digest { .. } => 1,
            Body::List(_) => 2,
            Body::Ask(_) => 3,
            Body::Announce { .. } => 4,
            Body::Records(_) => 5,
            Body::Full => 6,
        };
        // Names longer than that are never reconciled.
        let name = self
            .channel
            .as_bytes()
            .get(..255)
            .unwrap_or(self.channel.as_bytes());
        out.0.extend([VERSION, kind, name.len() as u8]);
        out.0.extend(name);
        out.0.extend(self.scope.to_be_bytes());
        match &self.body {
            Body::Digest { clock, hashes } => {
                out.0.extend(clock.to_be_bytes());
                out.log2(hashes.len());
                out.hashes(hashes);
            }
            Body::List(list) => {
                out.log2(list.buckets);
                let hashes = if list.hashes.is_some() { HASHES } else { 0 };
                out.0.push(hashes | if list.reply { REPLY } else { 0 });
                out.hashes(list.hashes.as_deref().unwrap_or_default());
                out.0.extend(list.mask.to_be_bytes());
                out.stamps(&list.stamps);
            }
            Body::Ask(stamps) => out.stamps(stamps),
            Body::Announce { origin, stamps } => {
                out.0.extend(origin.map_or([0; 6], PeerName::to_bytes));
                out.stamps(stamps);
            }
            Body::Records(payload) => out.0.extend(payload),
            Body::Full => {}
        }
        out.0
    }

    /// Reads one.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut input = Reader(bytes);
        let version = input.byte()?;
        if version != VERSION {
            return Err(WireError::Version(version));
        }
        let kind = input.byte()?;
        let length = input.byte()?.into();
        let name = std::str::from_utf8(input.take(length)?);
        let channel = name
            .map_err(|_| WireError::OutOfRange("channel name"))?
            .to_owned();
        let scope = u32::from_be_bytes(input.array()?);
        let body = match kind {
            1 => {
                let clock = i64::from_be_bytes(input.array()?);
                let buckets = input.buckets()?;
                let hashes = input.hashes(buckets)?;
                Body::Digest { clock, hashes }
            }
            2 => {
                let (buckets, flags) = (input.buckets()?, input.byte()?);
                let hashes = if flags & HASHES == 0 {
                    None
                } else {
                    Some(input.hashes(buckets)?)
                };
                Body::List(List {
                    buckets,
                    hashes,
                    mask: u64::from_be_bytes(input.array()?),
                    reply: flags & REPLY != 0,
                    stamps: input.stamps()?,
                })
            }
            3 => Body::Ask(input.stamps()?),
            4 => Body::Announce {
                origin: PeerName::from_bytes(input.take(6)?),
                stamps: input.stamps()?,
            },
            5 => Body::Records(std::mem::take(&mut input.0).to_vec()),
            6 => Body::Full,
            other => return Err(WireError::Kind(other)),
        };
        input.end()?;
        Ok(Self { channel, scope, body })
    }
}

/// Puts numbers one after the other.
#[derive(Debug, Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    /// LEB128.
    pub fn uint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// Length and bytes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.uint(bytes.len() as u64);
        self.0.extend(bytes);
    }

    fn log2(&mut self, buckets: usize) {
        self.0.push(buckets.trailing_zeros() as u8);
    }

    fn hashes(&mut self, hashes: &[u64]) {
        hashes.iter().for_each(|hash| self.0.extend(hash.to_be_bytes()));
    }

    fn stamps(&mut self, stamps: &Stamps) {
        self.uint(stamps.len() as u64);
        let mut before = 0;
        for (key, stamp) in stamps {
            self.uint(key - before);
            self.uint(stamp.version);
            self.0.extend(stamp.tag.to_be_bytes());
            before = *key;
        }
    }
}

/// Takes them apart again.
#[derive(Debug)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// So many bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(WireError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    /// So many bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(WireError::Truncated)?;
        self.0 = rest;
        Ok(*taken)
    }

    /// One.
    pub fn byte(&mut self) -> Result<u8, WireError> {
        self.array().map(|[byte]| byte)
    }

    /// LEB128.
    pub fn uint(&mut self) -> Result<u64, WireError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(WireError::OutOfRange("number"))
    }

    /// A number of things that take at least that many bytes each.
    pub fn count(&mut self, least: usize) -> Result<usize, WireError> {
        let count = usize::try_from(self.uint()?).map_err(|_| WireError::Truncated)?;
        if count > self.0.len() / least {
            return Err(WireError::Truncated);
        }
        Ok(count)
    }

    /// Length and bytes.
    pub fn bytes(&mut self) -> Result<&'a [u8], WireError> {
        let length = self.count(1)?;
        self.take(length)
    }

    /// Nothing may be left.
    pub fn end(&self) -> Result<(), WireError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(WireError::Trailing(self.0.len()))
        }
    }

    fn buckets(&mut self) -> Result<usize, WireError> {
        let buckets = 1_usize.checked_shl(self.byte()?.into());
        buckets
            .filter(|n| *n <= MAX_BUCKETS)
            .ok_or(WireError::OutOfRange("number of buckets"))
    }

    fn hashes(&mut self, count: usize) -> Result<Vec<u64>, WireError> {
        (0..count).map(|_| self.array().map(u64::from_be_bytes)).collect()
    }

    fn stamps(&mut self) -> Result<Stamps, WireError> {
        let mut stamps = BTreeMap::new();
        let mut key = 0_u64;
        for _ in 0..self.count(LEAST)? {
            let step = self.uint()?;
            key = key.checked_add(step).ok_or(WireError::OutOfRange("key"))?;
            let version = self.uint()?;
            let tag = u32::from_be_bytes(self.array()?);
            if stamps.insert(key, Stamp { version, tag }).is_some() {
                return Err(WireError::OutOfRange("key"));
            }
        }
        Ok(stamps)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stamps() -> impl Strategy<Value = Stamps> {
        let key = prop_oneof![0..20_u64, any::<u64>()];
        let stamp = (prop_oneof![0..20_u64, any::<u64>()], any::<u32>());
        let stamp = stamp.prop_map(|(version, tag)| Stamp { version, tag });
        prop::collection::btree_map(key, stamp, 0..30)
    }

    fn body() -> impl Strategy<Value = Body> {
        let hashes = (0..7_u32).prop_flat_map(|log| prop::collection::vec(any::<u64>(), 1_usize << log));
        let list = (hashes.clone(), any::<(bool, bool, u64)>(), stamps());
        let list = list.prop_map(|(hashes, (with, reply, mask), stamps)| {
            let buckets = hashes.len();
            Body::List(List {
                buckets,
                hashes: with.then_some(hashes),
                mask,
                reply,
                stamps,
            })
        });
        let announce = (0..1_u64 << 48, stamps());
        prop_oneof![
            (any::<i64>(), hashes).prop_map(|(clock, hashes)| Body::Digest { clock, hashes }),
            list,
            stamps().prop_map(Body::Ask),
            announce.prop_map(|(origin, stamps)| {
                let origin = PeerName::from_u64(origin);
                Body::Announce { origin, stamps }
            }),
            prop::collection::vec(any::<u8>(), 0..99).prop_map(Body::Records),
            Just(Body::Full),
        ]
    }

    proptest! {
        #[test]
        fn packets_come_back(channel in ".{0,20}", scope: u32, body in body(),
                             cut in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), bit in 0..8_u8) {
            let packet = Packet { channel, scope, body };
            let mut bytes = packet.encode();
            prop_assert_eq!(Packet::decode(&bytes), Ok(packet.clone()));
            // Shortened or damaged it is refused, or it means something else: never a panic.
            let short = bytes.get(..cut.index(bytes.len())).unwrap();
            prop_assert!(Packet::decode(short).is_err() || matches!(packet.body, Body::Records(_)));
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            if let Ok(other) = Packet::decode(&bytes) {
                prop_assert_eq!(Packet::decode(&other.encode()), Ok(other));
            }
        }

        #[test]
        fn any_bytes(kind in 0..8_u8, rest in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Packet::decode(&rest);
            let bytes = [&[VERSION, kind, 0, 0, 0, 0, 0], rest.as_slice()].concat();
            if let Ok(packet) = Packet::decode(&bytes) {
                prop_assert_eq!(Packet::decode(&packet.encode()), Ok(packet));
            }
        }
    }

    #[test]
    fn what_is_wrong() {
        let head = |kind: u8, rest: &[u8]| [&[VERSION, kind, 1, b'x', 0, 0, 0, 9], rest].concat();
        for (bytes, error) in [
            (vec![], WireError::Truncated),
            (vec![2], WireError::Version(2)),
            (head(7, &[]), WireError::Kind(7)),
            (head(6, &[1]), WireError::Trailing(1)),
            (
                head(1, &[0, 0, 0, 0, 0, 0, 0, 0, 7]),
                WireError::OutOfRange("number of buckets"),
            ),
            (
                head(1, &[0, 0, 0, 0, 0, 0, 0, 0, 200]),
                WireError::OutOfRange("number of buckets"),
            ),
            (head(1, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 1]), WireError::Truncated),
            // More stamps than could be in the rest: not even room for them is made.
            (head(3, &[0xff, 0xff, 0xff, 0x7f, 0]), WireError::Truncated),
            (head(3, &[0xff; 11]), WireError::OutOfRange("number")),
            // The same key twice.
            (
                head(3, &[2, 5, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]),
                WireError::OutOfRange("key"),
            ),
            (
                vec![VERSION, 6, 1, 0xff, 0, 0, 0, 0],
                WireError::OutOfRange("channel name"),
            ),
        ] {
            assert_eq!(Packet::decode(&bytes), Err(error), "{bytes:?}");
        }
    }
}
