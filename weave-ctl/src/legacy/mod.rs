//! What a Weave Net 2.x daemon kept on this host: read once, at our first launch, so that a host keeps its peer
//! name, its part of the address range and the addresses of its containers when ours takes over
//! (control.md 8.1, "Migration"; docs/migrating.md). The file itself stays as it is.

mod boltdb;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use crate::ipam::address::Cidr;
use crate::ipam::allocator::Persisted;
use crate::ipam::message::{MessageError, ring_of};
use crate::ipam::owned::OwnedRecord;
use crate::ipam::ring::{Ring, RingError};
use crate::mesh::gob::{Decoder, GobError, Value};
use crate::mesh::name::PeerName;

/// Names of the file in the data directory: of a Docker host, and of a Kubernetes node.
const FILE_NAMES: [&str; 2] = ["weavedata.db", "weave-netdata.db"];
/// Largest file looked at, in bytes; the original's has some ten thousand.
const MAX_FILE: u64 = 64 << 20;
const BUCKET: &[u8] = b"top";
/// The major version of the format that we know.
const MAJOR: u8 = 1;
const FLAG: &[u8] = b"flag:";

/// The content of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Legacy {
    /// Name, ring and owners; `None` while that peer had no ring.
    pub ipam: Option<Persisted>,
    /// Direct peers as the user wrote them.
    pub direct_peers: Vec<String>,
    /// Flags by name.
    pub flags: BTreeMap<String, String>,
}

/// A file cannot be used; the texts say what to do.
#[derive(Debug, thiserror::Error)]
#[error("{} of Weave Net cannot be taken over: {reason}. Its owner's addresses would be lost: copy it again, or move it \
         away and launch to do without it", .path.display())]
pub struct LegacyError {
    path: PathBuf,
    reason: Reason,
}

/// Why not.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// Larger than any that the original would write.
    #[error("it is too large")]
    TooLarge,
    /// No database.
    #[error(transparent)]
    Bolt(#[from] boltdb::BoltError),
    /// Another format.
    #[error("its format has version {0}.{1}, known is {MAJOR}.x")]
    Version(u8, u8),
    /// A value is no gob, or not what it should be.
    #[error(transparent)]
    Gob(#[from] GobError),
    /// The ring, or an address, makes no sense.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The ring contradicts itself.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// Copied along with another host's disk, or the host has a name that we cannot guess.
    #[error("it is of peer {theirs}, and we are {ours} (if it is this host's, launch with --name {theirs})")]
    OtherPeer {
        /// Whose it is.
        theirs: PeerName,
        /// Who we are.
        ours: PeerName,
    },
    /// A peer name, or an address, out of range.
    #[error("value {0} is out of range")]
    OutOfRange(&'static str),
}

/// What is in a file's bytes.
pub fn parse(file: &[u8]) -> Result<Legacy, Reason> {
    let items = boltdb::bucket(file, BUCKET)?;
    let item = |key: &str| {
        items
            .get(key.as_bytes())
            .copied()
            .filter(|value| !value.is_empty())
    };
    match item("version") {
        Some(&[MAJOR, _]) | None => {}
        Some(other) => {
            let byte = |at| other.get(at).copied().unwrap_or_default();
            return Err(Reason::Version(byte(0), byte(1)));
        }
    }
    let mut legacy = Legacy::default();
    if let (Some(name), Some(ring)) = (item("peername"), item("ring")) {
        let name = Decoder::new(name).require("peername")?.as_uint("peername")?;
        let ring = checked(ring_of(&Decoder::new(ring).require("ring")?)?)?;
        legacy.ipam = Some(Persisted {
            peer: PeerName::from_u64(name).ok_or(Reason::OutOfRange("peername"))?,
            ring,
            owned: item("ownedAddresses").map(owned).transpose()?.unwrap_or_default(),
            voter: None,
        });
    }
    if let Some(peers) = item("directPeers") {
        let peers = Decoder::new(peers).require("directPeers")?;
        for peer in peers.as_slice("directPeers")? {
            legacy.direct_peers.push(peer.as_str("directPeers")?.to_owned());
        }
    }
    for (key, value) in items.iter().filter(|(_, value)| !value.is_empty()) {
        if let Some(name) = key.strip_prefix(FLAG) {
            let value = Decoder::new(value).require("flag")?;
            let name = String::from_utf8_lossy(name).into_owned();
            legacy.flags.insert(name, value.as_str("flag")?.to_owned());
        }
    }
    Ok(legacy)
}

fn checked(ring: Ring) -> Result<Ring, Reason> {
    ring.check()?;
    Ok(ring)
}

/// Numbered in the order of the file: their ages are not in it.
fn owned(value: &[u8]) -> Result<BTreeMap<u64, OwnedRecord>, Reason> {
    let value = Decoder::new(value).require("ownedAddresses")?;
    let mut records = BTreeMap::new();
    for (number, (id, data)) in (0..).zip(value.as_map("ownedAddresses")?) {
        let cidrs = data.slice("Cidrs")?.iter().map(cidr).collect::<Result<_, _>>()?;
        let record = OwnedRecord {
            id: id.as_str("ownedAddresses")?.to_owned(),
            is_container: data.bool("IsContainer")?,
            cidrs,
        };
        records.insert(number, record);
    }
    Ok(records)
}

fn cidr(value: &Value<'_>) -> Result<Cidr, Reason> {
    let prefix_len = u8::try_from(value.int("PrefixLen")?)
        .ok()
        .filter(|len| *len <= 32);
    Ok(Cidr {
        addr: u32::try_from(value.uint("Addr")?).map_err(|_| Reason::OutOfRange("Addr"))?,
        prefix_len: prefix_len.ok_or(Reason::OutOfRange("PrefixLen"))?,
    })
}

/// The file that a Weave Net left in the data directory, if there is one. `ours`: who we are.
///
/// # Errors
/// If it is there and cannot be used: to start without it would be to forget which addresses are in use.
pub fn find(data_dir: &Path, ours: PeerName) -> Result<Option<(PathBuf, Legacy)>, LegacyError> {
    for name in FILE_NAMES {
        let path = data_dir.join(name);
        let read = File::open(&path).map_err(Reason::Io).and_then(|file| {
            let mut bytes = Vec::new();
            file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
            if bytes.len() as u64 > MAX_FILE {
                return Err(Reason::TooLarge);
            }
            parse(&bytes)?.of(ours)
        });
        match read {
            Ok(legacy) => return Ok(Some((path, legacy))),
            Err(Reason::Io(error)) if error.kind() == ErrorKind::NotFound => {}
            Err(reason) => return Err(LegacyError { path, reason }),
        }
    }
    Ok(None)
}

impl Legacy {
    fn of(self, ours: PeerName) -> Result<Self, Reason> {
        match self.ipam.as_ref().map(|ipam| ipam.peer) {
            Some(theirs) if theirs != ours => Err(Reason::OtherPeer { theirs, ours }),
            _ => Ok(self),
        }
    }

    /// How many addresses are in use.
    #[must_use]
    pub fn addresses(&self) -> usize {
        let records = self.ipam.iter().flat_map(|ipam| ipam.owned.values());
        records.map(|record| record.cidrs.len()).sum()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests;
