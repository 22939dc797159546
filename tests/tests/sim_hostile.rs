//! One mesh among liars: whatever they send, it stays whole and small.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use weave_ctl::mesh::Now;
use weave_ctl::mesh::core::{Input, Introduction};
use weave_ctl::mesh::handshake::Features;
use weave_ctl::mesh::message::{Envelope, Message};
use weave_ctl::mesh::name::ShortId;
use weave_ctl::mesh::summary::{ConnectionSummary, PeerSummary, encode_topology};
use weave_ctl::mesh::targets::ResolvedPeer;
use weave_tests::sim::toy::{Toy, Toys};
use weave_tests::sim::{Settings, World, address, name};

fn lie(rng: &mut SmallRng) -> PeerSummary {
    let links = rng.random_range(0..12);
    let link = |rng: &mut SmallRng| ConnectionSummary {
        name: name(rng.random_range(0..20)),
        remote_addr: ["", "10.0.0.3:6783", "[::1]:1", "nonsense", "10.0.0.1:6783"][rng.random_range(0..5)]
            .to_owned(),
        outbound: rng.random(),
        established: rng.random(),
    };
    PeerSummary {
        name: name(rng.random_range(0..20)),
        nickname: "n".repeat(rng.random_range(0..400)),
        uid: rng.random_range(0..3),
        version: if rng.random_range(0..9) == 0 {
            u64::MAX
        } else {
            rng.random_range(0..5)
        },
        short_id: ShortId::new(rng.random_range(0..8)),
        connections: (0..links).map(|_| link(rng)).collect(),
    }
}

fn message(rng: &mut SmallRng) -> Message {
    let lies: Vec<PeerSummary> = (0..rng.random_range(0..4)).map(|_| lie(rng)).collect();
    let mut payload = encode_topology(&lies);
    if rng.random_range(0..20) == 0 {
        payload.truncate(rng.random_range(0..=payload.len()));
    }
    let channel = ["topology", "toy", "x", "y"][rng.random_range(0..4)].to_owned();
    let envelope = Envelope {
        channel,
        source: name(rng.random_range(0..20)),
        payload,
    };
    match rng.random_range(0..5) {
        0 => Message::Unicast {
            to: name(rng.random_range(0..20)),
            envelope,
            raw: None,
        },
        1 => Message::Broadcast(envelope),
        2 => Message::Heartbeat,
        _ => Message::Gossip(envelope),
    }
}

fn input(rng: &mut SmallRng) -> Input {
    let conn = rng.random_range(0..12);
    let target = address(rng.random_range(0..20));
    match rng.random_range(0..14) {
        0 | 1 => Input::Introduced(Box::new(Introduction {
            conn,
            outbound: rng.random(),
            dialled: rng.random::<bool>().then_some(target),
            remote: target,
            features: Features {
                name: name(rng.random_range(0..20)),
                nickname: "n".repeat(rng.random_range(0..400)),
                uid: rng.random_range(0..3),
                conn_id: rng.random_range(0..4),
                short_id: ShortId::new(rng.random_range(0..8)),
                trusted: false,
                overlays: None,
                extra: BTreeMap::new(),
            },
            our_conn_id: rng.random_range(0..4),
        })),
        2 => Input::Closed {
            conn,
            error: "closed".to_owned(),
        },
        3 => Input::DialFailed {
            target,
            error: "failed".to_owned(),
            connected: rng.random(),
        },
        4 => Input::Established { conn },
        5 => {
            let peers = vec![ResolvedPeer {
                text: target.to_string(),
                addr: target,
                port_given: rng.random(),
            }];
            if rng.random() {
                Input::Connect {
                    peers,
                    replace: rng.random(),
                }
            } else {
                Input::Tick
            }
        }
        6 => Input::OverlayControl {
            conn,
            index: 0,
            tag: 0,
            data: Vec::new(),
        },
        _ => Input::Received {
            conn,
            message: message(rng),
        },
    }
}

/// What must be true whatever happens.
fn whole(world: &mut World<Toys>) {
    let mesh = &mut world.nodes[0].mesh;
    let own = mesh.own().unwrap().clone();
    assert_eq!((own.name, own.nickname.as_str()), (name(0), "host0"));
    let linked: Vec<_> = own.connections.iter().map(|c| c.name).collect();
    let status = mesh.connections_status(world.now);
    let mut connected: Vec<_> = status
        .iter()
        .filter_map(|s| s.remote.as_ref())
        .map(|r| r.0)
        .collect();
    connected.sort_unstable();
    assert_eq!(linked, connected, "our record lists exactly our connections");
    assert!(
        linked
            .iter()
            .all(|n| mesh.connection_to(*n).is_some() && mesh.peer(*n).is_some())
    );
    for id in (0..8).filter_map(ShortId::new) {
        let lowest = mesh.peers().find(|p| p.short_id == Some(id)).map(|p| p.name);
        assert_eq!(mesh.short_id_owner(id), lowest, "the lowest claimant owns it");
    }
    assert!(
        mesh.next_deadline().is_some_and(|at| at > world.now),
        "nothing due is left undone"
    );
    assert!(
        mesh.peers()
            .all(|p| p.nickname.len() <= 256 && p.connections.iter().all(|c| c.name != p.name))
    );
}

#[test]
fn lies_do_no_harm() {
    for seed in 0..60 {
        let settings = Settings {
            seed,
            peers: 1,
            discovery: true,
            conn_limit: (seed % 3) as usize * 3,
            same_short_id: true,
        };
        let mut world = World::new(settings, |_| Toys {
            toy: Some(Toy::default()),
        });
        let mut rng = SmallRng::seed_from_u64(seed);
        for _ in 0..400 {
            world.now += Now::from_millis([0, 1, 50, 700, 3000][rng.random_range(0..5)]);
            let input = input(&mut rng);
            let unix = world.unix(0);
            let node = &mut world.nodes[0];
            node.mesh.handle(world.now, unix, input, &mut node.site);
            if rng.random() {
                let conn = rng.random_range(0..12);
                while node.mesh.poll_send(conn, unix, &mut node.site).is_some() {}
            }
            node.mesh.handle(world.now, unix, Input::Tick, &mut node.site);
            whole(&mut world);
        }
    }
}
