//! Peers with the same name, seen from each of the two and from a third one.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use super::super::ConnId;
use super::super::channel::NoChannels;
use super::super::core::{Config, Input};
use super::super::handshake::Features;
use super::super::message::Message;
use super::super::name::{PeerName, ShortId};
use super::super::status::Retry;
use super::super::targets::ResolvedPeer;
use super::*;

const SHARED: u64 = 0x77;

fn claim(stake: Stake, since: u64, instance: u64, uid: u64) -> Claim {
    Claim {
        stake,
        since,
        instance,
        uid,
    }
}

fn mesh(name: u64, claim: Claim) -> Mesh {
    let mut mesh = Mesh::new(
        Config {
            name: PeerName::from_u64(name).unwrap(),
            nickname: format!("host{}", claim.uid),
            uid: claim.uid,
            short_id: ShortId::new(name).unwrap(),
            port: 6783,
            conn_limit: 0,
            discovery: true,
            seed: claim.uid,
        },
        Now::ZERO,
    );
    mesh.set_claim(claim);
    mesh
}

/// A mesh at the meeting point of several peers with one name.
fn third() -> Mesh {
    mesh(1, claim(Stake::Nothing, 0, 0, 1))
}

fn seconds(n: u64) -> Now {
    Duration::from_secs(n)
}

fn address(uid: u64) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, uid as u8], 6783))
}

/// A peer with the shared name, on host `uid`, introduces itself; `None`: an original.
fn introduction(conn: ConnId, uid: u64, claim: Option<Claim>, dialled: bool) -> Input {
    let extra = claim.map_or_else(BTreeMap::new, |claim| BTreeMap::from(claim.features()));
    let remote = address(uid);
    Input::Introduced(Box::new(Introduction {
        conn,
        outbound: dialled,
        dialled: dialled.then_some(remote),
        remote,
        features: Features {
            name: PeerName::from_u64(SHARED).unwrap(),
            nickname: format!("host{uid}"),
            uid,
            conn_id: conn,
            short_id: ShortId::new(uid),
            trusted: false,
            overlays: None,
            extra,
        },
        our_conn_id: 0,
    }))
}

fn arrives(mesh: &mut Mesh, at: u64, conn: ConnId, claim: Claim) -> Vec<Output> {
    let input = introduction(conn, claim.uid, Some(claim), false);
    mesh.handle(seconds(at), 0, input, &mut NoChannels)
}

fn added(outputs: &[Output]) -> bool {
    outputs.iter().any(|o| matches!(o, Output::Added { .. }))
}

fn gives_up(outputs: &[Output]) -> bool {
    outputs.iter().any(|o| matches!(o, Output::NameTaken(_)))
}

fn farewell(outputs: &[Output]) -> Option<Message> {
    outputs.iter().find_map(|o| match o {
        Output::Farewell { body, .. } => Message::decode(body).unwrap(),
        _ => None,
    })
}

/// What the mesh tells the other end of a connection about its name.
fn told(mesh: &mut Mesh, conn: ConnId) -> Option<Message> {
    std::iter::from_fn(|| mesh.poll_send(conn, 0, &mut NoChannels))
        .filter_map(|body| Message::decode(&body).unwrap())
        .find(|message| matches!(message, Message::NameTaken(_)))
}

/// A neighbour says so on connection 1, which is there.
fn hears(mesh: &mut Mesh, at: u64, message: &Message) -> Vec<Output> {
    if mesh.connections_status(seconds(at)).is_empty() {
        let mut input = introduction(1, 9, None, false);
        if let Input::Introduced(intro) = &mut input {
            intro.features.name = PeerName::from_u64(9).unwrap();
        }
        mesh.handle(seconds(at), 0, input, &mut NoChannels);
    }
    let input = Input::Received {
        conn: 1,
        message: message.clone(),
    };
    mesh.handle(seconds(at), 0, input, &mut NoChannels)
}

#[test]
fn of_two_that_meet_one_yields_and_both_try_again() {
    let (older, younger) = (claim(Stake::Space, 5, 1, 21), claim(Stake::Space, 6, 2, 22));
    for (ours, theirs, yields) in [(older, younger, false), (younger, older, true)] {
        let mut mesh = mesh(SHARED, ours);
        let direct = ResolvedPeer {
            text: "other".to_owned(),
            addr: address(theirs.uid),
            port_given: true,
        };
        let connect = Input::Connect {
            peers: vec![direct],
            replace: false,
        };
        mesh.handle(Now::ZERO, 0, connect, &mut NoChannels);
        let met = introduction(1, theirs.uid, Some(theirs), true);
        let outputs = mesh.handle(Now::ZERO, 0, met, &mut NoChannels);
        assert_eq!(gives_up(&outputs), yields);
        assert!(!added(&outputs));
        let status = &mesh.connections_status(Now::ZERO)[0];
        assert!(status.error.as_ref().unwrap().contains("peer names collision"));
        assert!(matches!(status.retry, Some(Retry::In(_))), "{:?}", status.retry);
        let seen: Vec<_> = mesh.collisions(seconds(599)).collect();
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].nickname, format!("host{}", theirs.uid));
        assert_eq!(seen[0].address, Some(address(theirs.uid)));
        assert_eq!(mesh.collisions(seconds(600)).count(), 0);
    }
}

#[test]
fn an_original_stays_and_a_chosen_name_stays() {
    let mut ours = mesh(SHARED, claim(Stake::Containers, 5, 1, 21));
    let original = || introduction(1, 22, None, false);
    assert!(gives_up(&ours.handle(Now::ZERO, 0, original(), &mut NoChannels)));
    let mut ours = mesh(SHARED, claim(Stake::Chosen, 5, 1, 21));
    for at in [0, 20, 40] {
        assert!(!gives_up(&ours.handle(
            seconds(at),
            0,
            original(),
            &mut NoChannels
        )));
    }
    let outcome = &ours.collisions(seconds(40)).next().unwrap().outcome;
    assert!(outcome.contains("--name"), "{outcome}");
}

#[test]
fn a_copy_of_our_directory_is_looked_at_twice() {
    let (keeps, yields) = (claim(Stake::Space, 5, 1, 21), claim(Stake::Space, 5, 1, 22));
    let mut ours = mesh(SHARED, yields);
    for (at, gone) in [(0, false), (5, false), (11, true)] {
        assert_eq!(gives_up(&arrives(&mut ours, at, at + 1, keeps)), gone, "{at} s");
    }
    let mut ours = mesh(SHARED, yields);
    for at in [0, 100, 200] {
        let outputs = arrives(&mut ours, at, at + 1, keeps);
        assert!(!gives_up(&outputs), "{at} s: not the same collision");
    }
}

#[test]
fn a_third_peer_tells_both() {
    let (first, second) = (claim(Stake::Space, 5, 1, 21), claim(Stake::Nothing, 6, 2, 22));
    for (resident, newcomer) in [(first, second), (second, first)] {
        let mut third = third();
        assert!(added(&arrives(&mut third, 0, 1, resident)));
        let outputs = arrives(&mut third, 1, 2, newcomer);
        let closed =
            |o: &Output| matches!(o, Output::Close { conn: 2, reason } if reason.contains("names collision"));
        assert!(!added(&outputs) && outputs.iter().any(closed), "{outputs:?}");
        let resident_stays = third.connection_to(PeerName::from_u64(SHARED).unwrap());
        assert_eq!(resident_stays, Some(1), "nobody is kicked out");
        let (to_newcomer, to_resident) = (farewell(&outputs).unwrap(), told(&mut third, 1).unwrap());
        for (claim, message) in [(newcomer, to_newcomer), (resident, to_resident)] {
            let mut peer = mesh(SHARED, claim);
            assert!(!gives_up(&hears(&mut peer, 1, &message)), "not by one word");
            let outputs = hears(&mut peer, 12, &message);
            assert_eq!(gives_up(&outputs), claim == second);
            let seen = peer.collisions(seconds(12)).next().unwrap();
            let other = if claim == first { second } else { first };
            assert_eq!(seen.address, Some(address(other.uid)));
        }
    }
}

#[test]
fn what_is_not_about_us_is_ignored() {
    let ours = claim(Stake::Nothing, 5, 1, 21);
    let mut mesh = mesh(SHARED, ours);
    let holder = |name: u64, claim| {
        Message::NameTaken(Box::new(Holder {
            name: PeerName::from_u64(name).unwrap(),
            nickname: String::new(),
            address: None,
            claim,
        }))
    };
    let other = claim(Stake::Space, 1, 9, 22);
    for at in [0, 11, 22] {
        assert!(!gives_up(&hears(&mut mesh, at, &holder(SHARED + 1, other))));
        assert!(
            !gives_up(&hears(&mut mesh, at, &holder(SHARED, ours))),
            "ourselves"
        );
    }
    assert_eq!(mesh.collisions(seconds(22)).count(), 0);
}

#[test]
fn a_restart_is_no_collision_but_two_lives_are() {
    let (before, after) = (claim(Stake::Space, 5, 1, 21), claim(Stake::Space, 5, 1, 22));
    let mut third = third();
    assert!(added(&arrives(&mut third, 0, 1, before)));
    assert!(added(&arrives(&mut third, 1, 2, after)), "restarted");
    // Meanwhile the same process comes by another way; that does not hide who was there before.
    arrives(&mut third, 2, 0, after);
    let again = arrives(&mut third, 3, 4, before);
    assert!(!added(&again) && farewell(&again).is_some(), "{again:?}");
}

#[test]
fn originals_are_replaced_as_ever() {
    for (first, second) in [
        (None, Some(claim(Stake::Space, 5, 1, 22))),
        (Some(claim(Stake::Space, 5, 1, 21)), None),
    ] {
        let mut third = third();
        for (conn, uid, claim) in [(1, 21, first), (2, 22, second)] {
            let input = introduction(conn, uid, claim, false);
            let outputs = third.handle(Now::ZERO, 0, input, &mut NoChannels);
            assert!(added(&outputs), "{outputs:?}");
        }
    }
}

#[test]
fn strangers_cannot_fill_the_list() {
    let mut ours = mesh(SHARED, claim(Stake::Chosen, 5, 1, 1));
    for uid in 2..200 {
        arrives(&mut ours, uid, uid, claim(Stake::Nothing, 9, uid, uid));
    }
    let seen: Vec<_> = ours.collisions(seconds(200)).collect();
    assert_eq!(seen.len(), MAX_COLLISIONS);
    assert!(seen.iter().any(|c| c.nickname == "host199"));
}
