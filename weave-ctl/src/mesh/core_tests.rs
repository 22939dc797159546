//! The rules of wire.md 2.6-2.10, 4 and 7.4 for one peer, one by one.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::super::channel::{Channel, GossipData, NoChannels, Outlet, Rejected, UnicastError};
use super::super::handshake::Features;
use super::super::message::Envelope;
use super::super::name::ShortId;
use super::super::queue::{MAX_MESSAGES, MAX_RELAYED};
use super::super::status::{ConnectionState, Retry};
use super::super::summary::{ConnectionSummary, decode_topology, encode_topology};
use super::super::targets::ResolvedPeer;
use super::*;

const OWN: u64 = 0x10;
const OWN_UID: u64 = 1000;

fn name(n: u64) -> PeerName {
    PeerName::from_u64(n).unwrap()
}

fn addr(n: u64) -> SocketAddr {
    format!("10.0.{}.{}:6783", n / 256, n % 256).parse().unwrap()
}

fn short(n: u64) -> ShortId {
    ShortId::new(n).unwrap()
}

/// A peer `n` connected to each of `to`, both ways established from its side.
fn summary(n: u64, uid: u64, version: u64, to: &[u64]) -> PeerSummary {
    let link = |to: &u64| ConnectionSummary {
        name: name(*to),
        remote_addr: addr(*to).to_string(),
        outbound: true,
        established: true,
    };
    PeerSummary {
        name: name(n),
        nickname: format!("host{n}"),
        uid,
        version,
        short_id: Some(short(n)),
        connections: to.iter().map(link).collect(),
    }
}

fn topology(peers: &[PeerSummary]) -> Message {
    let payload = encode_topology(peers);
    Message::Gossip(Envelope {
        channel: "topology".to_owned(),
        source: name(1),
        payload,
    })
}

/// A channel that notes what it hears.
#[derive(Default)]
struct Note {
    heard: Vec<(PeerName, Vec<u8>)>,
}

impl Channel for Note {
    fn on_unicast(&mut self, out: &mut dyn Outlet, from: PeerName, payload: &[u8]) -> Result<(), Rejected> {
        self.heard.push((from, payload.to_vec()));
        if payload == b"ping" {
            let _ = out.unicast(from, b"pong".to_vec());
        }
        Ok(())
    }
    fn on_broadcast(
        &mut self,
        _: &mut dyn Outlet,
        from: PeerName,
        p: &[u8],
    ) -> Result<Option<GossipData>, Rejected> {
        self.heard.push((from, p.to_vec()));
        Ok(Some(Arc::new(p.to_vec())))
    }
    fn on_gossip(&mut self, _: &mut dyn Outlet, payload: &[u8]) -> Result<Option<GossipData>, Rejected> {
        if payload == b"bad" {
            Err(Rejected("no such note".to_owned()))
        } else {
            Ok(None)
        }
    }
    fn full_state(&mut self, _: &mut dyn Outlet) -> Option<GossipData> {
        Some(Arc::new(b"all".to_vec()))
    }
    fn merge(&self, _: GossipData, new: GossipData) -> GossipData {
        new
    }
    fn encode(&mut self, unix_now: i64, data: &GossipData) -> Vec<u8> {
        let text = data.downcast_ref::<Vec<u8>>().unwrap();
        [text.as_slice(), unix_now.to_string().as_bytes()].concat()
    }
    fn on_peer_gone(&mut self, _: &mut dyn Outlet, peer: PeerName) {
        self.heard.push((peer, b"gone".to_vec()));
    }
}

impl Channels for Note {
    fn names(&self) -> Vec<&'static str> {
        vec!["note"]
    }
    fn get(&mut self, name: &str) -> Option<&mut dyn Channel> {
        (name == "note").then_some(self as &mut dyn Channel)
    }
}

struct Bench {
    mesh: Mesh,
    now: Now,
    note: Note,
}

impl Bench {
    fn new() -> Self {
        Self::with_limit(0)
    }

    fn with_limit(conn_limit: usize) -> Self {
        let config = Config {
            name: name(OWN),
            nickname: "own".to_owned(),
            uid: OWN_UID,
            short_id: short(0x123),
            port: 6783,
            conn_limit,
            discovery: true,
            seed: 5,
        };
        Self {
            mesh: Mesh::new(config, Now::ZERO),
            now: Now::ZERO,
            note: Note::default(),
        }
    }

    fn input(&mut self, input: Input) -> Vec<Output> {
        self.mesh.handle(self.now, 7, input, &mut self.note)
    }

    fn receive(&mut self, conn: ConnId, message: Message) -> Vec<Output> {
        self.input(Input::Received { conn, message })
    }

    /// All ticks until that time.
    fn wait_until(&mut self, millis: u64) -> Vec<Output> {
        let end = Duration::from_millis(millis);
        let mut outputs = Vec::new();
        while let Some(at) = self.mesh.next_deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            outputs.extend(self.input(Input::Tick));
        }
        self.now = end;
        outputs
    }

    fn introduction(conn: ConnId, peer: u64, uid: u64, conn_uid: u64) -> Introduction {
        Introduction {
            conn,
            outbound: false,
            dialled: None,
            remote: SocketAddr::new(addr(peer).ip(), 40_000),
            features: Features {
                name: name(peer),
                nickname: format!("host{peer}"),
                uid,
                conn_id: conn_uid ^ 0xff,
                short_id: Some(short(peer)),
                trusted: false,
                overlays: None,
                extra: BTreeMap::new(),
            },
            our_conn_id: 0xff,
        }
    }

    /// An inbound connection from peer `n` with UID `n`.
    fn accept(&mut self, conn: ConnId, n: u64) -> Vec<Output> {
        self.input(Input::Introduced(Box::new(Self::introduction(conn, n, n, conn))))
    }

    fn dial(&mut self, conn: ConnId, n: u64, uid: u64, target: SocketAddr) -> Vec<Output> {
        let intro = Introduction {
            outbound: true,
            dialled: Some(target),
            remote: target,
            ..Self::introduction(conn, n, uid, conn)
        };
        self.input(Input::Introduced(Box::new(intro)))
    }

    fn connect(&mut self, n: u64) -> Vec<Output> {
        let peer = ResolvedPeer {
            text: format!("10.0.0.{n}"),
            addr: addr(n),
            port_given: false,
        };
        self.input(Input::Connect {
            peers: vec![peer],
            replace: false,
        })
    }

    fn sent(&mut self, conn: ConnId) -> Vec<Message> {
        std::iter::from_fn(|| self.mesh.poll_send(conn, 7, &mut self.note))
            .map(|body| Message::decode(&body).unwrap().unwrap())
            .collect()
    }

    /// Texts of the messages sent on a connection.
    fn shown(&mut self, conn: ConnId) -> Vec<String> {
        self.sent(conn).iter().map(show).collect()
    }

    /// Connections 1..=n to peers 1..=n, settled, with nothing left to send.
    fn with_neighbours(n: u64) -> Self {
        let mut bench = Self::new();
        for peer in 1..=n {
            bench.accept(peer, peer);
            bench.input(Input::Established { conn: peer });
            bench.receive(peer, topology(&[summary(peer, peer, 1, &[OWN])]));
        }
        bench.wait_until(3000);
        for peer in 1..=n {
            bench.sent(peer);
        }
        bench
    }

    fn error_of(&self, target: SocketAddr) -> Option<(ConnectionState, Option<String>, Option<Retry>)> {
        let all = self.mesh.connections_status(self.now);
        all.into_iter()
            .find(|s| s.address == target && s.conn.is_none())
            .map(|s| (s.state, s.error, s.retry))
    }
}

fn show(message: &Message) -> String {
    match message {
        Message::Heartbeat => "heartbeat".to_owned(),
        Message::Gossip(e) if e.channel == "topology" => {
            let peers = decode_topology(&e.payload).unwrap();
            let list: Vec<String> = peers
                .iter()
                .map(|p| {
                    let links: Vec<String> = p
                        .connections
                        .iter()
                        .map(|c| format!("{:x}{}", c.name.as_u64(), if c.established { "!" } else { "?" }))
                        .collect();
                    format!("{:x}v{}[{}]", p.name.as_u64(), p.version, links.join(","))
                })
                .collect();
            format!("topology {}", list.join(" "))
        }
        Message::Gossip(e) => format!("gossip {} {}", e.channel, String::from_utf8_lossy(&e.payload)),
        Message::Broadcast(e) => {
            format!(
                "broadcast {} of {:x} {}",
                e.channel,
                e.source.as_u64(),
                String::from_utf8_lossy(&e.payload)
            )
        }
        Message::Unicast { to, envelope, .. } => format!(
            "unicast {} {:x}->{:x} {}",
            envelope.channel,
            envelope.source.as_u64(),
            to.as_u64(),
            String::from_utf8_lossy(&envelope.payload)
        ),
        Message::OverlayControl { index, tag, data } => format!("control {index} {tag} {data:?}"),
        Message::Reconcile(payload) => format!("reconcile {payload:?}"),
        Message::NameTaken(holder) => format!("name taken by {}", holder.nickname),
    }
}

fn reasons(outputs: &[Output]) -> Vec<(ConnId, &str)> {
    let close = |o: &'_ Output| matches!(o, Output::Close { .. });
    outputs
        .iter()
        .filter(|o| close(o))
        .filter_map(|o| {
            if let Output::Close { conn, reason } = o {
                Some((*conn, reason.as_str()))
            } else {
                None
            }
        })
        .collect()
}

fn envelope(channel: &str, source: u64, payload: &[u8]) -> Envelope {
    Envelope {
        channel: channel.to_owned(),
        source: name(source),
        payload: payload.to_vec(),
    }
}

fn unicast(channel: &str, source: u64, to: u64, payload: &[u8]) -> Message {
    let message = Message::Unicast {
        to: name(to),
        envelope: envelope(channel, source, payload),
        raw: None,
    };
    Message::decode(&message.encode()).unwrap().unwrap()
}

#[test]
fn a_new_neighbour_gets_everything_and_the_mesh_an_update() {
    let mut b = Bench::new();
    let outputs = b.accept(1, 1);
    assert!(
        matches!(
            &outputs[..],
            [
                Output::ShortIdsChanged,
                Output::Added {
                    conn: 1,
                    conn_uid: 1,
                    outbound: false,
                    ..
                },
                Output::Ready { conn: 1 }
            ]
        ),
        "{outputs:?}"
    );
    assert_eq!(b.shown(1), ["gossip note all7", "topology 1v0[] 10v1[1?]"]);
    assert!(b.wait_until(999).is_empty(), "data goes nowhere yet");
    assert_eq!(b.wait_until(1000), [Output::Ready { conn: 1 }]);
    assert_eq!(
        b.shown(1),
        ["topology 1v0[] 10v1[1?]"],
        "ourselves and the remote, once"
    );
    b.input(Input::Established { conn: 1 });
    b.input(Input::Established { conn: 1 });
    b.wait_until(3000);
    assert_eq!(b.shown(1), ["topology 10v2[1!]"]);
}

#[test]
fn a_neighbour_that_data_reaches_already_gets_no_full_state_unless_restarted() {
    let mut b = Bench::with_neighbours(1);
    let two = |version| summary(2, 2, version, &[1]);
    b.receive(1, topology(&[summary(1, 1, 2, &[OWN, 2]), two(1)]));
    b.wait_until(4000);
    assert_eq!(b.mesh.unicast_next_hop(name(2)), Some(name(1)));
    b.accept(2, 2);
    assert_eq!(b.shown(2), [""; 0]);
    b.input(Input::Closed {
        conn: 2,
        error: "x".to_owned(),
    });
    b.input(Input::Introduced(Box::new(Bench::introduction(3, 2, 22, 3))));
    assert_eq!(b.shown(3).len(), 2, "another UID: restarted");
}

#[test]
fn timers() {
    let mut b = Bench::new();
    b.accept(1, 1);
    b.wait_until(29_999);
    b.sent(1);
    b.wait_until(30_000);
    let sent = b.shown(1);
    assert_eq!(sent[0], "heartbeat", "30 s after the connection was added");
    assert_eq!(
        sent[1..],
        ["gossip note all7", "topology 1v0[] 10v1[1?]"],
        "30 s after the start"
    );
    b.wait_until(60_000);
    assert_eq!(b.shown(1).len(), 3);
}

#[test]
fn refusals() {
    let mut b = Bench::new();
    for n in [1, 2, 3] {
        b.connect(n);
    }
    assert_eq!(
        reasons(&b.dial(1, OWN, OWN_UID, addr(1))),
        [(1, "cannot connect to ourself")]
    );
    assert_eq!(b.mesh.termination_count(), 0);
    assert_eq!(
        reasons(&b.dial(2, OWN, 77, addr(2))),
        [(
            2,
            "local \"00:00:00:00:00:10(own)\" and remote \"00:00:00:00:00:10(host16)\" peer names collision"
        )]
    );
    assert_eq!(
        reasons(&b.dial(3, 9, 9, addr(9))),
        [(3, "Found unknown remote name: 00:00:00:00:00:09 at 10.0.0.9:6783")],
        "a discovered address may not introduce anybody"
    );
    assert_eq!(b.mesh.termination_count(), 2);
    for n in [1, 2] {
        let (state, error, retry) = b.error_of(addr(n)).unwrap();
        assert_eq!(
            (state, retry),
            (ConnectionState::Failed, Some(Retry::Never)),
            "{error:?}"
        );
    }
    assert!(matches!(
        &b.dial(4, 3, 3, addr(3))[..],
        [.., Output::Added { conn: 4, .. }, Output::Ready { .. }]
    ));
    assert_eq!(b.mesh.peers().count(), 2);
}

#[test]
fn of_two_connections_the_lower_uid_stays() {
    let text = "Multiple connections to 00:00:00:00:00:01(host1) added to 00:00:00:00:00:10(own)";
    for (new_uid, closed) in [(49, vec![50]), (51, vec![60]), (50, vec![50, 60])] {
        let mut b = Bench::new();
        b.accept(50, 1);
        let outputs = b.input(Input::Introduced(Box::new(Bench::introduction(
            60, 1, 1, new_uid,
        ))));
        assert_eq!(
            reasons(&outputs),
            closed.iter().map(|c| (*c, text)).collect::<Vec<_>>()
        );
        let left = [50, 60].into_iter().find(|c| !closed.contains(c));
        assert_eq!(b.mesh.connection_to(name(1)), left);
        b.wait_until(2000);
        assert_eq!(b.mesh.peer(name(1)).is_some(), left.is_some());
        assert!(!outputs.contains(&Output::PeerGone(name(1))) || left.is_none());
    }
    let mut b = Bench::new();
    b.accept(50, 1);
    let outputs = b.input(Input::Introduced(Box::new(Bench::introduction(60, 1, 2, 99))));
    assert_eq!(
        reasons(&outputs),
        [(50, text)],
        "a restarted peer has no other connection"
    );
}

#[test]
fn connection_limit() {
    let mut b = Bench::with_limit(1);
    b.accept(1, 1);
    assert_eq!(reasons(&b.accept(2, 2)), [(2, "Connection limit reached (1)")]);
    assert!(b.mesh.peer(name(2)).is_none());
    b.input(Input::Closed {
        conn: 1,
        error: "gone".to_owned(),
    });
    assert!(reasons(&b.accept(3, 2)).is_empty());
}

#[test]
fn a_closed_connection_leaves_nothing_behind() {
    let mut b = Bench::with_neighbours(2);
    let version = b.mesh.own().unwrap().version;
    let outputs = b.input(Input::Closed {
        conn: 1,
        error: "reset".to_owned(),
    });
    assert!(outputs.contains(&Output::Removed {
        conn: 1,
        remote: name(1)
    }));
    assert!(outputs.contains(&Output::PeerGone(name(1))), "at once");
    assert_eq!(b.note.heard, [(name(1), b"gone".to_vec())]);
    assert_eq!(b.mesh.own().unwrap().version, version + 1);
    assert_eq!(b.mesh.termination_count(), 1);
    assert!(
        b.input(Input::Closed {
            conn: 1,
            error: "again".to_owned()
        })
        .is_empty()
    );
    assert!(b.wait_until(3100).contains(&Output::RoutesChanged));
    b.wait_until(4000);
    assert_eq!(b.shown(2), [format!("topology 10v{}[2!]", version + 1)]);
}

#[test]
fn news_are_passed_on_but_not_back() {
    let mut b = Bench::with_neighbours(2);
    b.receive(
        1,
        topology(&[summary(1, 1, 2, &[OWN, 3]), summary(3, 3, 1, &[1])]),
    );
    assert_eq!(b.shown(2), [""; 0], "routes first");
    b.wait_until(3100);
    assert_eq!(b.shown(2), ["topology 1v2[3!,10!] 3v1[1!]"]);
    assert_eq!(b.shown(1), [""; 0]);
    b.receive(1, topology(&[summary(3, 3, 1, &[1])]));
    b.wait_until(3300);
    assert_eq!(b.shown(2), [""; 0], "no news");
}

#[test]
fn discovered_peers_are_dialled_and_forgotten_ones_collected() {
    let mut b = Bench::with_neighbours(1);
    b.receive(1, topology(&[summary(1, 1, 2, &[OWN, 3])]));
    assert!(b.wait_until(3200).contains(&Output::Dial { target: addr(3) }));
    assert!(b.mesh.peer(name(3)).is_some(), "as a placeholder");
    b.receive(1, topology(&[summary(1, 1, 3, &[OWN])]));
    assert!(b.wait_until(5000).contains(&Output::PeerGone(name(3))));
}

#[test]
fn an_earlier_incarnation_is_overtaken() {
    let mut b = Bench::with_neighbours(1);
    b.receive(1, topology(&[summary(OWN, 55, 40, &[])]));
    b.wait_until(5000);
    assert_eq!(b.shown(1), ["topology 10v41[1!]"]);
    b.receive(1, topology(&[summary(OWN, 55, u64::MAX, &[])]));
    assert_eq!(b.mesh.own().unwrap().version, u64::MAX, "no overflow");
}

#[test]
fn a_lower_name_takes_our_short_id() {
    let mut b = Bench::with_neighbours(1);
    let mut thief = summary(1, 1, 2, &[OWN]);
    thief.short_id = Some(short(0x123));
    let outputs = b.receive(1, topology(&[thief]));
    let new = outputs
        .iter()
        .find_map(|o| {
            if let Output::OwnShortIdChanged(id) = o {
                Some(*id)
            } else {
                None
            }
        })
        .unwrap();
    assert!(outputs.contains(&Output::ShortIdsChanged));
    assert_eq!(b.mesh.short_id_owner(short(0x123)), Some(name(1)));
    assert_eq!(
        (b.mesh.short_id_of(name(OWN)), b.mesh.own().unwrap().short_id),
        (Some(new), Some(new))
    );
    b.wait_until(5000);
    assert_eq!(b.sent(1).len(), 1, "others are told");
}

#[test]
fn who_joins_with_a_short_id_that_is_taken_moves_before_it_dials_others() {
    let mut b = Bench::new();
    b.accept(1, 1);
    // Name 0x20 is above ours: by the rule for all it would have to move (wire.md 1.4).
    let mut there = summary(0x20, 0x20, 1, &[1]);
    there.short_id = Some(short(0x123));
    let outputs = b.receive(1, topology(&[summary(1, 1, 1, &[OWN, 0x20]), there.clone()]));
    let moved = outputs
        .iter()
        .any(|o| matches!(o, Output::OwnShortIdChanged(id) if *id != short(0x123)));
    let dialled = |outputs: &[Output]| outputs.iter().any(|o| matches!(o, Output::Dial { .. }));
    assert!(moved && !dialled(&outputs), "{outputs:?}");
    assert_eq!(b.mesh.short_id_of(name(0x20)), Some(short(0x123)));
    let told = b.sent(1).into_iter().any(|message| match message {
        Message::Gossip(e) if e.channel == "topology" => {
            let peers = decode_topology(&e.payload).unwrap();
            peers
                .iter()
                .any(|p| p.name == name(OWN) && p.short_id == b.mesh.own().unwrap().short_id)
        }
        _ => false,
    });
    assert!(told, "at once");
    assert!(dialled(&b.wait_until(200)));
    // From now on the rule for all.
    let own = b.mesh.own().unwrap().short_id;
    there.short_id = own;
    there.version = 2;
    b.receive(1, topology(&[there]));
    assert_eq!(b.mesh.own().unwrap().short_id, own);
}

#[test]
fn broken_messages_are_skipped_and_not_passed_on() {
    let mut b = Bench::with_neighbours(2);
    for broken in [
        Message::Gossip(envelope("topology", 1, &[0xff])),
        Message::Broadcast(envelope("topology", 1, &[0xff])),
        unicast("topology", 1, OWN, b"x"),
    ] {
        assert_eq!(reasons(&b.receive(1, broken)), []);
    }
    b.wait_until(5000);
    assert!(b.mesh.connection_to(name(1)).is_some());
    assert_eq!(b.mesh.counters().topology_messages_skipped, 3);
    assert!(b.shown(2).iter().all(|sent| !sent.contains("topology")));
}

#[test]
fn a_rejection_closes_the_connection_with_its_text() {
    let mut b = Bench::new();
    b.connect(1);
    b.dial(1, 1, 1, addr(1));
    assert_eq!(
        reasons(&b.receive(1, Message::Gossip(envelope("note", 1, b"bad")))),
        [(1, "no such note")]
    );
    let (state, error, retry) = b.error_of(addr(1)).unwrap();
    assert_eq!(
        (state, error.as_deref()),
        (ConnectionState::Failed, Some("no such note"))
    );
    assert!(matches!(retry, Some(Retry::In(wait)) if wait <= Duration::from_secs(3)));
    b.wait_until(3000);
    assert_eq!(b.error_of(addr(1)).unwrap().0, ConnectionState::Retrying);
}

#[test]
fn unicasts_are_forwarded_byte_for_byte() {
    let mut b = Bench::with_neighbours(2);
    let mut body = unicast("x", 1, 2, b"data").encode();
    body.extend(b"bytes after the last value");
    b.receive(1, Message::decode(&body).unwrap().unwrap());
    assert_eq!(b.mesh.poll_send(2, 7, &mut b.note), Some(body));
    for (from, to) in [(OWN, 2), (1, 1), (1, 77)] {
        b.receive(1, unicast("x", from, to, b""));
    }
    assert_eq!((b.sent(1), b.sent(2)), (vec![], vec![]));
    let counters = b.mesh.counters();
    assert_eq!((counters.loops_cut, counters.unicasts_unroutable), (2, 1));
    b.receive(1, unicast("nobody's", 1, OWN, b"x"));
    b.receive(1, unicast("note", 2, OWN, b"ping"));
    assert_eq!(b.note.heard, [(name(2), b"ping".to_vec())]);
    assert_eq!(b.shown(2), ["unicast note 10->2 pong"]);
}

#[test]
fn broadcasts_follow_the_tree_of_their_originator() {
    let mut b = Bench::with_neighbours(3);
    b.receive(
        1,
        topology(&[summary(1, 1, 2, &[OWN, 2]), summary(2, 2, 2, &[OWN, 1])]),
    );
    b.wait_until(3500);
    for conn in 1..=3 {
        b.sent(conn);
    }
    b.receive(1, Message::Broadcast(envelope("note", 1, b"n")));
    b.receive(1, Message::Broadcast(envelope("unknown", 1, b"u")));
    b.receive(1, Message::Broadcast(envelope("unknown", 1, b"u")));
    assert_eq!(b.shown(2), [""; 0], "1 tells 2 itself");
    assert_eq!(
        b.shown(3),
        [
            "broadcast note of 1 n7",
            "broadcast unknown of 1 u",
            "broadcast unknown of 1 u"
        ],
        "3 is reached through us only; nothing is left out"
    );
    b.receive(1, Message::Broadcast(envelope("unknown", OWN, b"u")));
    b.receive(1, Message::Broadcast(envelope("unknown", 99, b"u")));
    assert_eq!(b.shown(3), [""; 0], "our own, and one of nobody");
}

#[test]
fn gossip_of_unknown_channels_is_passed_on_once() {
    let mut b = Bench::with_neighbours(2);
    for payload in [b"1", b"2", b"1"] {
        b.receive(1, Message::Gossip(envelope("dns", 1, payload)));
    }
    assert_eq!(b.shown(2), ["gossip dns 1", "gossip dns 2"]);
    assert_eq!(b.shown(1), [""; 0]);
}

#[test]
fn others_cannot_break_a_connection_by_what_they_send_through_us() {
    let mut b = Bench::with_neighbours(2);
    for n in 0..4 * MAX_RELAYED as u32 {
        assert!(reasons(&b.receive(1, unicast("x", 1, 2, b"data"))).is_empty());
        assert!(reasons(&b.receive(1, Message::Gossip(envelope("x", 1, &n.to_be_bytes())))).is_empty());
    }
    assert!(b.mesh.counters().relays_dropped > 0);
    let sent = b.sent(2).len();
    assert!((1..=MAX_MESSAGES + MAX_RELAYED).contains(&sent), "{sent}");
}

#[test]
fn a_remote_that_takes_nothing_is_cut_off() {
    let mut b = Bench::with_neighbours(1);
    let mut closed = Vec::new();
    for _ in 0..=MAX_MESSAGES {
        let control = Input::OverlayControl {
            conn: 1,
            index: 0,
            tag: 1,
            data: vec![2],
        };
        closed.extend(reasons(&b.input(control)).iter().map(|r| r.1.to_owned()));
    }
    assert_eq!(
        closed,
        ["remote does not keep up: 1024 messages with 4096 bytes and 0 gossip slots are waiting"]
    );
}

#[test]
fn overlay_control_goes_both_ways() {
    let mut b = Bench::with_neighbours(1);
    b.input(Input::OverlayControl {
        conn: 1,
        index: 1,
        tag: 3,
        data: vec![5, 0x9e],
    });
    assert_eq!(b.mesh.poll_send(1, 7, &mut b.note), Some(vec![7, 1, 3, 5, 0x9e]));
    let control = Message::OverlayControl {
        index: 0,
        tag: 0,
        data: vec![],
    };
    assert_eq!(
        b.receive(1, control),
        [Output::OverlayControlReceived {
            conn: 1,
            index: 0,
            tag: 0,
            data: vec![]
        }]
    );
}

#[test]
fn a_channel_acts_on_its_own_behalf() {
    let mut b = Bench::with_neighbours(2);
    let (result, outputs) = b.mesh.with_outlet(b.now, 7, "note", &mut b.note, |note, out| {
        note.heard.push((name(1), Vec::new()));
        out.broadcast(Arc::new(b"hello".to_vec()));
        assert_eq!(
            (out.nickname(name(1)), out.is_known(name(9))),
            (Some("host1".to_owned()), false)
        );
        assert_eq!(out.unicast(name(1), b"u".to_vec()), Ok(()));
        out.unicast(name(9), Vec::new())
    });
    assert_eq!(result, Err(UnicastError::NoRoute(name(9))));
    assert_eq!(outputs.len(), 2, "both have something to send: {outputs:?}");
    assert_eq!(
        b.shown(1),
        ["unicast note 10->1 u", "broadcast note of 10 hello7"]
    );
    assert_eq!(b.shown(2), ["broadcast note of 10 hello7"]);
}

#[test]
fn a_large_topology_is_sent_in_several_messages() {
    let mut b = Bench::new();
    let everybody: Vec<u64> = (1..=900).filter(|n| *n != OWN).collect();
    b.accept(1, 1);
    b.receive(1, topology(&[summary(1, 1, 1, &[OWN, 2])]));
    for chunk in everybody[1..].chunks(100) {
        let peers: Vec<PeerSummary> = chunk
            .iter()
            .map(|n| summary(*n, *n, 1, &everybody[..200]))
            .collect();
        b.receive(1, topology(&peers));
    }
    b.sent(1);
    b.accept(5000, 2000);
    let mut peers = 0;
    let mut messages = 0;
    while let Some(body) = b.mesh.poll_send(5000, 7, &mut b.note) {
        assert!(body.len() <= 5 << 20, "{}", body.len());
        if let Some(Message::Gossip(e)) = Message::decode(&body)
            .unwrap()
            .filter(|m| matches!(m, Message::Gossip(e) if e.channel == "topology"))
        {
            peers += decode_topology(&e.payload).unwrap().len();
            messages += 1;
        }
    }
    assert_eq!(peers, b.mesh.peers().count());
    assert!(messages > 1);
}

#[test]
fn shutdown_closes_all_and_ends_all() {
    let mut b = Bench::with_neighbours(2);
    b.connect(9);
    let outputs = b.input(Input::Shutdown);
    assert_eq!(
        reasons(&outputs),
        [(1, "weave is stopping"), (2, "weave is stopping")]
    );
    assert_eq!(b.mesh.next_deadline(), None);
    assert!(b.accept(7, 7).is_empty());
    assert!(b.mesh.handle(b.now, 7, Input::Tick, &mut NoChannels).is_empty());
}
