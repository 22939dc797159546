//! The topology payload: peers and their connections (wire.md 3.5.3).

use super::gob::{Decoder, Encoder, GobError, Type, Value};
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
    /// Its side of each of its connections.
    pub connections: Vec<ConnectionSummary>,
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

static PEER: Type = Type::Struct(
    "peerSummary",
    &[
        ("NameByte", Type::Bytes),
        ("NickName", Type::String),
        ("UID", Type::Uint),
        ("Version", Type::Uint),
        ("ShortID", Type::Uint),
        ("HasShortID", Type::Bool),
    ],
);

static CONNECTIONS: Type = Type::Slice(&Type::Struct(
    "connectionSummary",
    &[
        ("NameByte", Type::Bytes),
        ("RemoteTCPAddr", Type::String),
        ("Outbound", Type::Bool),
        ("Established", Type::Bool),
    ],
));

/// The payload of a topology message about `peers`.
#[must_use]
pub fn encode_topology<'a>(peers: impl IntoIterator<Item = &'a PeerSummary>) -> Vec<u8> {
    let mut encoder = Encoder::new();
    for peer in peers {
        encoder.encode(
            &PEER,
            &Value::Struct(vec![
                ("NameByte", name_value(peer.name)),
                ("NickName", Value::String(peer.nickname.as_str().into())),
                ("UID", Value::Uint(peer.uid)),
                ("Version", Value::Uint(peer.version)),
                (
                    "ShortID",
                    Value::Uint(peer.short_id.map_or(0, |id| id.get().into())),
                ),
                ("HasShortID", Value::Bool(peer.short_id.is_some())),
            ]),
        );
        let connections = peer.connections.iter().map(|connection| {
            Value::Struct(vec![
                ("NameByte", name_value(connection.name)),
                (
                    "RemoteTCPAddr",
                    Value::String(connection.remote_addr.as_str().into()),
                ),
                ("Outbound", Value::Bool(connection.outbound)),
                ("Established", Value::Bool(connection.established)),
            ])
        });
        encoder.encode(&CONNECTIONS, &Value::Slice(connections.collect()));
    }
    encoder.finish()
}

/// The peers in the payload of a topology message. See [`decode_topology_counting`].
pub fn decode_topology(payload: &[u8]) -> Result<Vec<PeerSummary>, GobError> {
    decode_topology_counting(payload, &mut 0)
}

/// The peers in the payload of a topology message (wire.md 4.2.3 step 1).
///
/// Peers and connections whose name is zero or not six bytes are left out, each adding one to
/// `skipped`: an original peer would pass them on, so they must not cost us the connection. A last
/// summary without connections is left out, too. Any other oddity is an error.
pub fn decode_topology_counting(payload: &[u8], skipped: &mut u64) -> Result<Vec<PeerSummary>, GobError> {
    let mut decoder = Decoder::new(payload);
    let mut peers = Vec::new();
    while let Some(peer) = decoder.next_value()? {
        let Some(list) = decoder.next_value()? else { break };
        let mut connections = Vec::new();
        for connection in list.as_slice("connections")? {
            let summary = ConnectionSummary {
                name: match PeerName::from_bytes(connection.bytes("NameByte")?) {
                    Some(name) => name,
                    None => {
                        *skipped += 1;
                        continue;
                    }
                },
                remote_addr: connection.str("RemoteTCPAddr")?.to_owned(),
                outbound: connection.bool("Outbound")?,
                established: connection.bool("Established")?,
            };
            connections.push(summary);
        }
        let Some(name) = PeerName::from_bytes(peer.bytes("NameByte")?) else {
            *skipped += 1;
            continue;
        };
        let short_id = ShortId::new(peer.uint("ShortID")?);
        peers.push(PeerSummary {
            name,
            nickname: peer.str("NickName")?.to_owned(),
            uid: peer.uint("UID")?,
            version: peer.uint("Version")?,
            short_id: short_id.filter(|_| peer.bool("HasShortID") == Ok(true)),
            connections,
        });
    }
    Ok(peers)
}

fn name_value(name: PeerName) -> Value<'static> {
    Value::Bytes(name.to_bytes().to_vec().into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::super::capture;
    use super::super::gob::tests::vector;
    use super::super::message::{MAX_BODY, Message};
    use super::*;

    fn name(number: u64) -> PeerName {
        PeerName::from_u64(number).unwrap()
    }

    fn host1() -> PeerSummary {
        PeerSummary {
            name: name(0x0200_0000_0001),
            nickname: "host1".into(),
            uid: 0x1122_3344_5566_7788,
            version: 7,
            short_id: ShortId::new(0x123),
            connections: vec![ConnectionSummary {
                name: name(0x0200_0000_0002),
                remote_addr: "10.0.0.2:6783".into(),
                outbound: true,
                established: true,
            }],
        }
    }

    #[test]
    fn worked_example() {
        let host2 = PeerSummary {
            name: name(0x0200_0000_0002),
            nickname: "host2".into(),
            uid: 0x99,
            version: 3,
            short_id: ShortId::new(0xabc),
            connections: vec![],
        };
        assert_eq!(decode_topology(&vector("topology-one")).unwrap(), [host1()]);
        assert_eq!(
            decode_topology(&vector("topology-two")).unwrap(),
            [host1(), host2.clone()]
        );
        let ours = encode_topology([&host1(), &host2]);
        assert_eq!(decode_topology(&ours).unwrap(), [host1(), host2]);
        assert_eq!(decode_topology(&[]).unwrap(), []);
    }

    #[test]
    fn a_last_summary_without_connections_is_ignored() {
        assert_eq!(decode_topology(&vector("topology-foreign")).unwrap(), []);
        let mut stream = vector("topology-two");
        stream.truncate(stream.len() - 5); // 04 ff88 00 00
        assert_eq!(decode_topology(&stream).unwrap(), [host1()]);
    }

    /// What an original peer may pass on without having checked it.
    fn encode_raw(name: &[u8], connection: &[u8], short_id: u64) -> Vec<u8> {
        let bytes = |name: &[u8]| ("NameByte", Value::Bytes(name.to_vec().into()));
        let mut encoder = Encoder::new();
        let fields = vec![
            bytes(name),
            ("ShortID", Value::Uint(short_id)),
            ("HasShortID", Value::Bool(true)),
        ];
        encoder.encode(&PEER, &Value::Struct(fields));
        encoder.encode(
            &CONNECTIONS,
            &Value::Slice(vec![Value::Struct(vec![bytes(connection)])]),
        );
        encoder.finish()
    }

    #[test]
    fn bad_names_and_short_ids_cost_only_themselves() {
        let good = [1, 2, 3, 4, 5, 6];
        for (peer, connection, short_id, expected, skips) in [
            (&good[..], &good[..], 4095, Some((true, 1)), 0),
            (&good, &good, 4096, Some((false, 1)), 0),
            (&good, &good, 0x1_0000, Some((false, 1)), 0),
            (&good, &[0; 6], 1, Some((true, 0)), 1),
            (&good, &good[1..], 1, Some((true, 0)), 1),
            (&[], &good, 1, None, 1),
            (&[1; 7], &[], 1, None, 2),
        ] {
            let mut skipped = 0;
            let peers =
                decode_topology_counting(&encode_raw(peer, connection, short_id), &mut skipped).unwrap();
            let found = peers.first().map(|p| (p.short_id.is_some(), p.connections.len()));
            assert_eq!((found, skipped), (expected, skips));
        }
    }

    #[test]
    fn other_kinds_are_refused() {
        let mut encoder = Encoder::new();
        encoder.encode(&Type::Uint, &Value::Uint(1));
        encoder.encode(&Type::Uint, &Value::Uint(1));
        assert_eq!(
            decode_topology(&encoder.finish()),
            Err(GobError::WrongType("connections"))
        );
    }

    #[test]
    fn three_hundred_peers_in_full_mesh_fit_a_message() {
        let peers: Vec<_> = (1..=300)
            .map(|n| PeerSummary {
                name: name(n),
                connections: (1..=300)
                    .filter(|c| *c != n)
                    .map(|c| ConnectionSummary {
                        name: name(c),
                        ..host1().connections[0].clone()
                    })
                    .collect(),
                ..host1()
            })
            .collect();
        let payload = encode_topology(&peers);
        assert!(payload.len() < MAX_BODY);
        assert_eq!(decode_topology(&payload).unwrap(), peers);
    }

    /// Every message of real peers decodes, and what they say of themselves survives our encoder.
    #[test]
    fn captured_topologies() {
        let mut seen = BTreeSet::new();
        let mut established = 0;
        for pcap in [capture::PLAIN, capture::IPAM] {
            for stream in capture::streams(pcap).values() {
                let (header, flag, bodies) = capture::parts(stream);
                assert_eq!((header, flag), (&b"weave\x01\x02"[..], 0));
                for body in &bodies[1..] {
                    let message = Message::decode(body).unwrap().unwrap();
                    let Message::Gossip(envelope) = message else {
                        continue;
                    };
                    if envelope.channel != "topology" {
                        continue;
                    }
                    let mut skipped = 0;
                    let peers = decode_topology_counting(&envelope.payload, &mut skipped).unwrap();
                    assert_eq!(skipped, 0);
                    assert_eq!(decode_topology(&encode_topology(&peers)).unwrap(), peers);
                    for peer in peers {
                        assert_eq!(peer.nickname, format!("host{}", peer.name.to_bytes()[5]));
                        assert!(peer.uid != 0 && peer.short_id.is_some());
                        established += peer.connections.iter().filter(|c| c.established).count();
                        seen.insert(peer.name.to_string());
                    }
                }
            }
        }
        assert!(established > 0);
        let names = ["7a:00:00:00:00:01", "7a:00:00:00:00:02", "7a:00:00:00:00:03"];
        assert_eq!(seen, names.map(str::to_owned).into());
    }

    fn any_name() -> impl Strategy<Value = PeerName> {
        (1..1_u64 << 48).prop_map(name)
    }

    prop_compose! {
        fn connection()(name in any_name(), remote_addr in ".{0,20}", outbound: bool, established: bool)
            -> ConnectionSummary
        {
            ConnectionSummary { name, remote_addr, outbound, established }
        }
    }

    prop_compose! {
        fn peer()(name in any_name(), nickname in ".{0,9}", uid: u64, version: u64,
                  short_id in prop::option::of(0..4096_u64),
                  connections in prop::collection::vec(connection(), 0..5)) -> PeerSummary
        {
            let short_id = short_id.and_then(ShortId::new);
            PeerSummary { name, nickname, uid, version, short_id, connections }
        }
    }

    proptest! {
        #[test]
        fn topologies_come_back(peers in prop::collection::vec(peer(), 0..5)) {
            prop_assert_eq!(decode_topology(&encode_topology(&peers)).unwrap(), peers);
        }
    }
}
