//! The topology's records: one for each peer, as a whole or as what has changed of its links.
//!
//! ```text
//! flags (1): 1 has a short ID, 2 only changes follow | name (6) | nickname | UID (8) | version | [short ID (2)]
//! [version on which the changes build | hash of the links that result (8) | names of the links that are gone]
//! links: name (6) | flags (1): 1 dialled, 2 established, 4 IPv4, 8 IPv6, 12 text | address
//! ```

use std::collections::BTreeMap;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};

use super::wire::{Reader, WireError, Writer};
use super::{Stamp, Stamps, hash, mix};
use crate::mesh::name::{PeerName, ShortId};
use crate::mesh::peers::Peers;
use crate::mesh::summary::{ConnectionSummary, PeerSummary};

const SHORT_ID: u8 = 1;
const CHANGES: u8 = 2;
const OUTBOUND: u8 = 1;
const ESTABLISHED: u8 = 2;
const IPV4: u8 = 4;
const IPV6: u8 = 8;
const TEXT: u8 = 12;
/// Least bytes of a link.
const LEAST: usize = 7;

/// A record as it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// All of it, or with only those links that have changed.
    pub peer: PeerSummary,
    /// What the changes build on.
    pub changes: Option<Changes>,
}

/// See [`Record`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// For those who have this version or a later one.
    pub base: u64,
    /// Of the links that result.
    pub hash: u64,
    /// Links that are no more.
    pub gone: Vec<PeerName>,
}

/// The stamp of a record; `None` for a placeholder, of which there is nothing to know.
#[must_use]
pub fn stamp(peer: &PeerSummary) -> Option<Stamp> {
    let tag = mix(peer.uid.wrapping_mul(2) ^ (peer.uid >> 63) ^ u64::from(peer.short_id.is_some()));
    (peer.uid != 0).then_some(Stamp {
        version: peer.version,
        tag: tag as u32,
    })
}

/// The stamps of all peers.
#[must_use]
pub fn stamps(peers: &Peers) -> Stamps {
    peers
        .iter()
        .filter_map(|p| Some((p.name.as_u64(), stamp(p)?)))
        .collect()
}

/// See [`super::Reconcile::records`].
#[must_use]
pub fn records(peers: &Peers, wanted: &mut Stamps, limit: usize) -> Vec<u8> {
    let mut out = Writer::default();
    while out.0.len() < limit
        && let Some((key, has)) = wanted.pop_first()
    {
        let Some(peer) = PeerName::from_u64(key).and_then(|name| peers.get(name)) else {
            continue;
        };
        let Some(ours) = stamp(peer) else { continue };
        let builds = has.tag == ours.tag && has.version < ours.version;
        let changed = peers
            .history(peer.name)
            .filter(|_| builds)
            .and_then(|h| h.since(peer.uid, has.version));
        match changed {
            None => put(&mut out, peer, peer.connections.iter(), None),
            Some(changed) => {
                let links: BTreeMap<PeerName, &ConnectionSummary> =
                    peer.connections.iter().map(|l| (l.name, l)).collect();
                let given = changed.iter().filter_map(|name| links.get(name).copied());
                let gone = changed.iter().filter(|name| !links.contains_key(name));
                let changes = Changes {
                    base: has.version,
                    hash: hash_links(&peer.connections),
                    gone: gone.copied().collect(),
                };
                put(&mut out, peer, given, Some(&changes));
            }
        }
    }
    out.0
}

fn put<'a>(
    out: &mut Writer,
    peer: &PeerSummary,
    links: impl Iterator<Item = &'a ConnectionSummary>,
    changes: Option<&Changes>,
) {
    let short = if peer.short_id.is_some() { SHORT_ID } else { 0 };
    out.0.push(short | if changes.is_some() { CHANGES } else { 0 });
    out.0.extend(peer.name.to_bytes());
    out.bytes(peer.nickname.as_bytes());
    out.0.extend(peer.uid.to_be_bytes());
    out.uint(peer.version);
    if let Some(id) = peer.short_id {
        out.0.extend(id.get().to_be_bytes());
    }
    if let Some(changes) = changes {
        out.uint(changes.base);
        out.0.extend(changes.hash.to_be_bytes());
        out.uint(changes.gone.len() as u64);
        changes.gone.iter().for_each(|name| out.0.extend(name.to_bytes()));
    }
    let links: Vec<_> = links.collect();
    out.uint(links.len() as u64);
    links.iter().for_each(|link| put_link(out, link));
}

fn put_link(out: &mut Writer, link: &ConnectionSummary) {
    let outbound = if link.outbound { OUTBOUND } else { 0 };
    let flags = outbound | if link.established { ESTABLISHED } else { 0 };
    out.0.extend(link.name.to_bytes());
    let text = link.remote_addr.as_str();
    // Others must get it letter by letter, so only what is written as usual is shortened.
    match text
        .parse::<SocketAddr>()
        .ok()
        .filter(|addr| addr.to_string() == text)
    {
        Some(SocketAddr::V4(addr)) => {
            out.0.push(flags | IPV4);
            out.0.extend(addr.ip().octets());
            out.0.extend(addr.port().to_be_bytes());
        }
        Some(SocketAddr::V6(addr)) if addr.scope_id() == 0 => {
            out.0.push(flags | IPV6);
            out.0.extend(addr.ip().octets());
            out.0.extend(addr.port().to_be_bytes());
        }
        _ if text.is_empty() => out.0.push(flags),
        _ => {
            out.0.push(flags | TEXT);
            out.bytes(text.as_bytes());
        }
    }
}

/// Reads what [`records`] has written; those of peers without a name are left out.
pub fn decode(payload: &[u8]) -> Result<Vec<Record>, WireError> {
    let mut input = Reader(payload);
    let mut records = Vec::new();
    while !input.0.is_empty() {
        let flags = input.byte()?;
        let name = PeerName::from_bytes(input.take(6)?);
        let nickname = String::from_utf8_lossy(input.bytes()?).into_owned();
        let uid = u64::from_be_bytes(input.array()?);
        let version = input.uint()?;
        let short_id = if flags & SHORT_ID == 0 {
            None
        } else {
            ShortId::new(u16::from_be_bytes(input.array()?).into())
        };
        let changes = if flags & CHANGES == 0 {
            None
        } else {
            let (base, hash) = (input.uint()?, u64::from_be_bytes(input.array()?));
            let gone =
                (0..input.count(6)?).filter_map(|_| input.take(6).map(PeerName::from_bytes).transpose());
            let gone = gone.collect::<Result<_, _>>()?;
            Some(Changes { base, hash, gone })
        };
        let links = (0..input.count(LEAST)?).filter_map(|_| link(&mut input).transpose());
        let connections = links.collect::<Result<_, _>>()?;
        records.extend(name.map(|name| Record {
            peer: PeerSummary {
                name,
                nickname,
                uid,
                version,
                short_id,
                connections,
            },
            changes,
        }));
    }
    Ok(records)
}

fn link(input: &mut Reader<'_>) -> Result<Option<ConnectionSummary>, WireError> {
    let name = PeerName::from_bytes(input.take(6)?);
    let flags = input.byte()?;
    let remote_addr = match flags & TEXT {
        IPV4 => {
            let ip: [u8; 4] = input.array()?;
            SocketAddrV4::new(ip.into(), u16::from_be_bytes(input.array()?)).to_string()
        }
        IPV6 => {
            let ip: [u8; 16] = input.array()?;
            SocketAddrV6::new(ip.into(), u16::from_be_bytes(input.array()?), 0, 0).to_string()
        }
        TEXT => String::from_utf8_lossy(input.bytes()?).into_owned(),
        _ => String::new(),
    };
    Ok(name.map(|name| ConnectionSummary {
        name,
        remote_addr,
        outbound: flags & OUTBOUND != 0,
        established: flags & ESTABLISHED != 0,
    }))
}

impl Record {
    /// The whole record, given what we know of this peer; `None` if its changes do not fit to that.
    #[must_use]
    pub fn complete(self, known: Option<&PeerSummary>) -> Option<PeerSummary> {
        let Some(changes) = self.changes else {
            return Some(self.peer);
        };
        let known = known.filter(|k| k.uid == self.peer.uid && k.version >= changes.base)?;
        let mut links: BTreeMap<PeerName, ConnectionSummary> =
            known.connections.iter().map(|l| (l.name, l.clone())).collect();
        links.extend(self.peer.connections.into_iter().map(|l| (l.name, l)));
        changes.gone.iter().for_each(|name| drop(links.remove(name)));
        let connections: Vec<ConnectionSummary> = links.into_values().collect();
        (hash_links(&connections) == changes.hash).then_some(PeerSummary {
            connections,
            ..self.peer
        })
    }
}

fn hash_links(links: &[ConnectionSummary]) -> u64 {
    links.iter().fold(0, |sum: u64, link| {
        let flags = u64::from(link.outbound) | u64::from(link.established) << 1;
        let address = hash(link.remote_addr.as_bytes());
        mix(mix(mix(sum ^ link.name.as_u64()) ^ address).wrapping_add(flags))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(n: u64) -> PeerName {
        PeerName::from_u64(n).unwrap()
    }

    fn link() -> impl Strategy<Value = ConnectionSummary> {
        let address = prop_oneof![
            any::<([u8; 4], u16)>().prop_map(|a| SocketAddr::from(a).to_string()),
            any::<([u16; 8], u16)>().prop_map(|a| SocketAddr::from(a).to_string()),
            Just(String::new()),
            Just("10.0.0.01:80".to_owned()),
            Just("[fe80::1%3]:6783".to_owned()),
            ".{0,15}",
        ];
        (2..9_u64, address, any::<[bool; 2]>()).prop_map(|(to, remote_addr, [outbound, established])| {
            ConnectionSummary {
                name: name(to),
                remote_addr,
                outbound,
                established,
            }
        })
    }

    fn states() -> impl Strategy<Value = Vec<PeerSummary>> {
        let links = prop::collection::vec(link(), 0..6);
        let step = (links, 0..2_u64, 1..4_u64, any::<bool>());
        prop::collection::vec(step, 1..12).prop_map(|steps| {
            let (mut uid, mut version) = (1, 0);
            let state =
                |(mut connections, restart, grows, short): (Vec<ConnectionSummary>, u64, u64, bool)| {
                    connections.sort_by_key(|l| l.name);
                    connections.dedup_by_key(|l| l.name);
                    uid += u64::from(restart == 1 && version % 3 == 0);
                    version += grows;
                    PeerSummary {
                        name: name(1),
                        nickname: "one".to_owned(),
                        uid,
                        version,
                        short_id: ShortId::new(5).filter(|_| short),
                        connections,
                    }
                };
            steps.into_iter().map(state).collect()
        })
    }

    fn table() -> Peers {
        Peers::new(PeerSummary {
            name: name(99),
            nickname: String::new(),
            uid: 99,
            version: 0,
            short_id: None,
            connections: Vec::new(),
        })
    }

    proptest! {
        /// Whatever of the history the asker has seen, and even if it learns more before the answer arrives.
        #[test]
        fn who_asks_gets_the_record_as_it_is(states in states(), seen in any::<[prop::sample::Index; 2]>()) {
            let mut sender = table();
            states.iter().for_each(|s| drop(sender.apply(vec![s.clone()])));
            let last = states.last().unwrap();
            prop_assert_eq!(sender.get(name(1)), Some(last));
            let mut seen = seen.map(|s| s.index(states.len()));
            seen.sort_unstable();
            let mut asker = table();
            asker.apply(vec![states[seen[0]].clone()]);
            let has = stamp(asker.get(name(1)).unwrap()).unwrap();
            let payload = records(&sender, &mut Stamps::from([(1, has)]), 1000);
            asker.apply(vec![states[seen[1]].clone()]);
            let mut decoded = decode(&payload).unwrap();
            let record = decoded.pop().unwrap();
            if let Some(whole) = record.complete(asker.get(name(1))) {
                prop_assert_eq!(&whole, last);
            } else {
                // Only when the asker has seen another incarnation meanwhile.
                prop_assert!(states[seen[0]].uid != states[seen[1]].uid);
            }
            let payload = records(&sender, &mut Stamps::from([(1, Stamp::default())]), 1000);
            prop_assert_eq!(decode(&payload).unwrap(), [Record { peer: last.clone(), changes: None }]);
        }

        #[test]
        fn any_bytes(mut bytes in prop::collection::vec(any::<u8>(), 0..200), states in states(),
                     at in any::<prop::sample::Index>(), byte: u8) {
            let _ = decode(&bytes);
            let mut sender = table();
            states.into_iter().for_each(|s| drop(sender.apply(vec![s])));
            bytes = records(&sender, &mut Stamps::from([(1, Stamp::default())]), 1000);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn a_change_is_told_alone() {
        let link = |to: u64| ConnectionSummary {
            name: name(to),
            remote_addr: format!("10.0.0.{to}:6783"),
            outbound: true,
            established: true,
        };
        let mut record = PeerSummary {
            name: name(1),
            nickname: "one".to_owned(),
            uid: 11,
            version: 1,
            short_id: None,
            connections: (2..100).map(link).collect(),
        };
        let mut peers = table();
        peers.apply(vec![record.clone()]);
        let before = stamp(&record).unwrap();
        record.version = 2;
        record.connections.remove(7);
        record.connections.push(link(100));
        peers.apply(vec![record.clone()]);
        let (mut whole, mut changes) = (Stamps::from([(1, Stamp::default())]), Stamps::from([(1, before)]));
        let sizes = [&mut whole, &mut changes].map(|wanted| records(&peers, wanted, 1 << 20).len());
        assert!(sizes[0] > 1000 && sizes[1] < 100, "{sizes:?}");
    }
}
