//! The topology payload: peers and their connections (wire.md 3.5.3).

use super::gob::{Decoder, Encoder, Field, Fields, GobError, RecordReader, Type, put_uint};
use super::name::{PeerName, ShortId};

/// One peer as told by gossip, with its complete list of connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSummary {
    /// The peer.
    pub name: PeerName,
    /// Display name.
    pub nickname: String,
    /// Which incarnation; 0 for a placeholder.
    pub uid: u64,
    /// Raised by the peer itself on each change.
    pub version: u64,
    /// `None` when it has none, or one out of range (wire.md W12).
    pub short_id: Option<ShortId>,
    /// Its side of each of its connections; by name, once the mesh has taken the record in.
    pub connections: Vec<ConnectionSummary>,
}

impl PeerSummary {
    /// Does this peer say that it has an established connection with the other? For records as the mesh has them.
    #[must_use]
    pub fn is_established_with(&self, other: PeerName) -> bool {
        let found = self.connections.binary_search_by_key(&other, |link| link.name);
        found.is_ok_and(|index| self.connections.get(index).is_some_and(|link| link.established))
    }
}

/// One directed connection as claimed by the peer it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionSummary {
    /// The other end.
    pub name: PeerName,
    /// `ip:port` of the other end as the reporting peer sees it.
    pub remote_addr: String,
    /// The reporting peer dialled.
    pub outbound: bool,
    /// At the reporting peer.
    pub established: bool,
}

const PEER_FIELDS: [(&str, Type); 6] = [
    ("NameByte", Type::Bytes),
    ("NickName", Type::String),
    ("UID", Type::Uint),
    ("Version", Type::Uint),
    ("ShortID", Type::Uint),
    ("HasShortID", Type::Bool),
];

const CONNECTION_FIELDS: [(&str, Type); 4] = [
    ("NameByte", Type::Bytes),
    ("RemoteTCPAddr", Type::String),
    ("Outbound", Type::Bool),
    ("Established", Type::Bool),
];

static PEER: Type = Type::Struct("peerSummary", &PEER_FIELDS);
static CONNECTIONS: Type = Type::Slice(&Type::Struct("connectionSummary", &CONNECTION_FIELDS));

/// The payload of a topology message about `peers`.
#[must_use]
pub fn encode_topology<'a>(peers: impl IntoIterator<Item = &'a PeerSummary>) -> Vec<u8> {
    let mut encoder = Encoder::new();
    for peer in peers {
        encoder.encode_with(&PEER, |out| {
            Fields::new(out)
                .bytes(&peer.name.to_bytes())
                .bytes(peer.nickname.as_bytes())
                .uint(peer.uid)
                .uint(peer.version)
                .uint(peer.short_id.map_or(0, |id| id.get().into()))
                .bool(peer.short_id.is_some())
                .end();
        });
        encoder.encode_with(&CONNECTIONS, |out| {
            put_uint(out, peer.connections.len() as u64);
            for connection in &peer.connections {
                Fields::new(out)
                    .bytes(&connection.name.to_bytes())
                    .bytes(connection.remote_addr.as_bytes())
                    .bool(connection.outbound)
                    .bool(connection.established)
                    .end();
            }
        });
    }
    encoder.finish()
}

/// The peers in the payload of a topology message. See [`decode_topology_news`].
pub fn decode_topology(payload: &[u8]) -> Result<Vec<PeerSummary>, GobError> {
    decode_topology_news(payload, &mut 0, |_| true)
}

/// The peers in the payload of a topology message (wire.md 4.2.3 step 1).
///
/// Peers and connections whose name is zero or not six bytes are left out, each adding one to
/// `skipped`: an original peer would pass them on, so they must not cost us the connection. A last
/// summary without connections is left out, too. Any other oddity is an error.
///
/// Most of what arrives is known already. So `is_news` is asked about each peer, which has no
/// connections yet; without a yes it stays without, although they are checked all the same.
pub fn decode_topology_news(
    payload: &[u8],
    skipped: &mut u64,
    is_news: impl Fn(&PeerSummary) -> bool,
) -> Result<Vec<PeerSummary>, GobError> {
    let mut decoder = Decoder::new(payload);
    let mut peer_reader = RecordReader::new(PEER_FIELDS);
    let mut connection_reader = RecordReader::new(CONNECTION_FIELDS);
    let mut peers = Vec::new();
    while let Some(fields) = peer_reader.next(&mut decoder)? {
        let peer = peer_of(fields);
        let wanted = matches!(&peer, Ok(Some(peer)) if is_news(peer));
        let mut connections = Vec::new();
        // What is malformed comes before what has an unexpected kind, and that in the connections
        // before that in the peer.
        let mut verdict = Ok(());
        let mut left_out = 0;
        let found = connection_reader.next_slice(&mut decoder, |fields| {
            if verdict.is_ok() {
                match connection_of(fields, wanted) {
                    Ok(Some(connection)) => connections.extend(connection),
                    Ok(None) => left_out += 1,
                    Err(error) => verdict = Err(error),
                }
            }
        })?;
        match found {
            None => break,
            Some(false) => return Err(GobError::WrongType("connections")),
            Some(true) => *skipped += left_out,
        }
        verdict?;
        match peer? {
            Some(peer) => peers.push(PeerSummary { connections, ..peer }),
            None => *skipped += 1,
        }
    }
    Ok(peers)
}

/// `Ok(None)` when the name is none, `Ok(Some(None))` when the connection is good but not wanted.
fn connection_of(
    fields: [Field<'_>; 4],
    wanted: bool,
) -> Result<Option<Option<ConnectionSummary>>, GobError> {
    let [name, remote_addr, outbound, established] = fields;
    let Some(name) = PeerName::from_bytes(name.bytes("NameByte")?) else {
        return Ok(None);
    };
    let remote_addr = remote_addr.bytes("RemoteTCPAddr")?;
    let outbound = outbound.bool("Outbound")?;
    let established = established.bool("Established")?;
    Ok(Some(wanted.then(|| ConnectionSummary {
        name,
        remote_addr: String::from_utf8_lossy(remote_addr).into_owned(),
        outbound,
        established,
    })))
}

/// Still without connections; `None` when the name is none.
fn peer_of(fields: [Field<'_>; 6]) -> Result<Option<PeerSummary>, GobError> {
    let [name, nickname, uid, version, short_id, has_short_id] = fields;
    let Some(name) = PeerName::from_bytes(name.bytes("NameByte")?) else {
        return Ok(None);
    };
    let short_id = ShortId::new(short_id.uint("ShortID")?);
    Ok(Some(PeerSummary {
        name,
        nickname: String::from_utf8_lossy(nickname.bytes("NickName")?).into_owned(),
        uid: uid.uint("UID")?,
        version: version.uint("Version")?,
        short_id: short_id.filter(|_| has_short_id.bool("HasShortID") == Ok(true)),
        connections: Vec::new(),
    }))
}

#[cfg(test)]
#[path = "summary_tests.rs"]
pub(super) mod tests;
