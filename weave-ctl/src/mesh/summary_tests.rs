//! Topology payloads: examples, captures of real peers, and the general gob codec as a yardstick.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::super::capture;
use super::super::fuzzing::tests::damage;
use super::super::gob::tests::vector;
use super::super::gob::{MAX_VALUES, Value};
use super::super::message::{MAX_BODY, Message};
use super::*;

/// What [`encode_topology`] does, with the general encoder.
fn encode_by_values<'a>(peers: impl IntoIterator<Item = &'a PeerSummary>) -> Vec<u8> {
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

/// What [`decode_topology_news`] does, with the general decoder.
fn decode_by_values(payload: &[u8], skipped: &mut u64) -> Result<Vec<PeerSummary>, GobError> {
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

fn decode_topology_counting(payload: &[u8], skipped: &mut u64) -> Result<Vec<PeerSummary>, GobError> {
    decode_topology_news(payload, skipped, |_| true)
}

/// Both decoders say the same and leave out as much, also when only some connections are wanted.
pub(in super::super) fn decoders_agree(payload: &[u8]) {
    let (mut skipped, mut skipped_by_values) = (0, 0);
    let mut expected = decode_by_values(payload, &mut skipped_by_values);
    assert_eq!(decode_topology_counting(payload, &mut skipped), expected);
    assert_eq!(skipped, skipped_by_values);

    let is_news = |peer: &PeerSummary| peer.version.is_multiple_of(2);
    for peer in expected.iter_mut().flatten().filter(|peer| !is_news(peer)) {
        peer.connections.clear();
    }
    skipped = 0;
    assert_eq!(decode_topology_news(payload, &mut skipped, is_news), expected);
    assert_eq!(skipped, skipped_by_values);
}

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
        let peers = decode_topology_counting(&encode_raw(peer, connection, short_id), &mut skipped).unwrap();
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

/// More connections than a value may hold, and a list in place of the peer.
#[test]
fn decoders_agree_on_bounds() {
    for count in [MAX_VALUES / 2 - 1, MAX_VALUES / 2] {
        let mut encoder = Encoder::new();
        encoder.encode_with(&PEER, |out| out.push(0));
        encoder.encode_with(&CONNECTIONS, |out| {
            put_uint(out, count as u64);
            (0..count).for_each(|_| out.extend([3, 1, 0]));
        });
        let payload = encoder.finish();
        decoders_agree(&payload);
        assert_eq!(decode_topology(&payload).is_ok(), count < MAX_VALUES / 2);
    }
    let mut encoder = Encoder::new();
    encoder.encode_with(&CONNECTIONS, |out| out.push(0));
    encoder.encode_with(&CONNECTIONS, |out| out.push(0));
    decoders_agree(&encoder.finish());
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
    assert_eq!(payload, encode_by_values(&peers));
    assert_eq!(decode_topology(&payload).unwrap(), peers);
    decoders_agree(&payload);
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
        let payload = encode_topology(&peers);
        prop_assert_eq!(&payload, &encode_by_values(&peers));
        decoders_agree(&payload);
        prop_assert_eq!(decode_topology(&payload).unwrap(), peers);
    }

    #[test]
    fn decoders_agree_on_random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        decoders_agree(&bytes);
    }
}

/// A struct much like the ones expected: fields in another order, left out, given twice, unknown or
/// of another kind.
fn foreign_struct(rng: &mut SmallRng, fields: &[(&'static str, Type)]) -> Type {
    static OTHERS: [Type; 9] = [
        Type::Bool,
        Type::Int,
        Type::Uint,
        Type::Bytes,
        Type::String,
        Type::Slice(&Type::Uint),
        Type::Map(&Type::Uint, &Type::String),
        PEER,
        CONNECTIONS,
    ];
    let mut fields = fields.to_vec();
    fields.push(("NameByte2", OTHERS[rng.random_range(0..OTHERS.len())]));
    for _ in 0..rng.random_range(0..4) {
        let at = rng.random_range(0..fields.len());
        match rng.random_range(0..8) {
            0 => fields[at].1 = OTHERS[rng.random_range(0..OTHERS.len())],
            1 if fields.len() > 1 => drop(fields.swap_remove(at)),
            2 => fields.push(fields[at]),
            _ => fields.swap(0, at),
        }
    }
    Type::Struct("", fields.leak())
}

fn put_random(out: &mut Vec<u8>, ty: &Type, rng: &mut SmallRng) {
    match ty {
        Type::Bool => out.push(rng.random_range(0..3)),
        Type::Int | Type::Uint => put_uint(out, rng.random::<u64>() >> rng.random_range(0..64)),
        Type::Bytes if rng.random_range(0..8) > 0 => out.extend([6, 2, 0, 0, 0, 0, rng.random()]),
        Type::Bytes | Type::String => {
            let length = rng.random_range(0..9);
            out.push(length);
            out.extend((0..length).map(|_| rng.random_range(b'a'..=0x80)));
        }
        Type::Slice(element) => {
            let count = rng.random_range(0..4);
            out.push(count);
            (0..count).for_each(|_| put_random(out, element, rng));
        }
        Type::Map(key, element) => {
            let count = rng.random_range(0..3);
            out.push(count);
            for _ in 0..count {
                put_random(out, key, rng);
                put_random(out, element, rng);
            }
        }
        Type::Struct(_, fields) => {
            let mut delta = 0;
            for (_, ty) in *fields {
                delta += 1;
                if rng.random_range(0..6) > 0 {
                    out.push(delta);
                    put_random(out, ty, rng);
                    delta = 0;
                }
            }
            out.push(0);
        }
    }
}

#[test]
fn decoders_agree_on_foreign_and_damaged_streams() {
    let mut rng = SmallRng::seed_from_u64(6783);
    let (mut outcomes, mut peers_found, mut skips) = (BTreeSet::new(), 0, 0);
    for _ in 0..3000 {
        let mut encoder = Encoder::new();
        for _ in 0..rng.random_range(1..4) {
            let peer = foreign_struct(&mut rng, &PEER_FIELDS);
            let connection: &Type = Box::leak(Box::new(foreign_struct(&mut rng, &CONNECTION_FIELDS)));
            for _ in 0..rng.random_range(1..3) {
                for (ty, other) in [
                    (&peer, Type::Uint),
                    (&Type::Slice(connection), Type::Slice(&Type::Uint)),
                ] {
                    let ty = if rng.random_range(0..40) == 0 { &other } else { ty };
                    encoder.encode_with(ty, |out| put_random(out, ty, &mut rng));
                }
            }
        }
        let mut stream = encoder.finish();
        for _ in 0..4 {
            decoders_agree(&stream);
            let found = decode_topology_counting(&stream, &mut skips);
            peers_found += found.as_ref().map_or(0, Vec::len);
            outcomes.insert(found.err().map(|error| error.to_string()));
            damage(&mut stream, &mut rng);
        }
    }
    assert!(
        peers_found > 1000 && skips > 1000,
        "{peers_found} peers, {skips} skipped"
    );
    for expected in [
        None,
        Some(GobError::Truncated),
        Some(GobError::Trailing),
        Some(GobError::Field),
        Some(GobError::DuplicateType),
        Some(GobError::WrongType("connections")),
        Some(GobError::WrongType("NameByte")),
        Some(GobError::WrongType("RemoteTCPAddr")),
        Some(GobError::WrongType("Outbound")),
        Some(GobError::WrongType("NickName")),
        Some(GobError::WrongType("ShortID")),
    ] {
        let text = expected.map(|error| error.to_string());
        assert!(outcomes.contains(&text), "{text:?} not among {outcomes:?}");
    }
}
