//! What the targets `sleeve_*` in `fuzz/` do with their input, so that the ordinary tests can do it as
//! well. See `mesh/fuzzing.rs`.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use super::forwarder::{Action, Forwarder};
use super::packet::{self, SEALED_OVERHEAD};
use super::pmtu::FLOOR;
use super::seal::{OpenError, Opener, Sealer};
use super::{Arrived, Session, fragment, icmp};
use crate::mesh::Now;
use crate::mesh::crypto::SessionKey;
use crate::overlay::pace::Pace;

/// Any packet in clear: what can be read of it is what is written again.
pub fn packet(data: &[u8]) {
    let Ok((_, records)) = packet::split(data) else {
        return;
    };
    let read: Vec<_> = packet::records(records).filter_map(Result::ok).collect();
    let mut written = Vec::new();
    for record in &read {
        let _ = packet::kind(record.frame);
        assert_eq!(
            packet::append_record(&mut written, record.src, record.dst, record.frame),
            Ok(())
        );
    }
    assert!(packet::records(&written).eq(read.into_iter().map(Ok)));
}

/// Any packet as if it were sealed; then the same bytes sealed by us.
pub fn open(data: &[u8]) {
    let session = |outbound| Session {
        key: SessionKey::new([7; 32]),
        outbound,
    };
    let opener = Opener::new(&session(false));
    let mut forged = data.to_vec();
    assert!(opener.open(&mut forged).is_err());
    assert_eq!(forged, data);

    let mut sealed = vec![1; SEALED_OVERHEAD];
    sealed.extend_from_slice(data);
    assert_eq!(
        Sealer::new(&session(true)).seal(data.len().is_multiple_of(2), &mut sealed),
        Ok(())
    );
    assert!(
        opener
            .open(&mut sealed.clone())
            .is_ok_and(|records| records == data)
    );
    assert_eq!(opener.open(&mut sealed), Err(OpenError::Replay));
}

/// Events in any order: kind, then two bytes about it.
pub fn forwarder(data: &[u8]) {
    let first = data.first().copied().unwrap_or_default();
    let home = |port| SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), port);
    let remote = (first & 1 != 0).then_some(home(6783));
    let pace = if first & 2 != 0 {
        Pace::QUICK
    } else {
        Pace::ORIGINAL
    };
    let mut now = Now::ZERO;
    let mut forwarder = Forwarder::new(now, 1, remote, first & 4 != 0, pace);
    for [kind, high, low] in data.as_chunks::<3>().0 {
        let value = u16::from_be_bytes([*high, *low]);
        let before = (forwarder.usable(), forwarder.remote(), forwarder.limits());
        let actions = match kind % 8 {
            0 => forwarder.on_arrived(
                now,
                Arrived::Heartbeat {
                    conn_uid: u64::from(value & 1),
                    from: home(value),
                },
            ),
            1 => forwarder.on_arrived(now, Arrived::FragmentationTest),
            2 => forwarder.on_arrived(now, Arrived::MtuTest { mtu: value }),
            3 => forwarder.on_arrived(now, Arrived::TooBig { path_mtu: value }),
            4 => forwarder.on_control(now, *high, &value.to_be_bytes()[usize::from(low & 1)..]),
            // The MTU in use is often the one under test.
            5 => forwarder.on_control(now, 3, &forwarder.limits().mtu.to_be_bytes()),
            6 => forwarder.on_peer_hears(value & 1 != 0),
            _ => {
                now = match value {
                    0..1000 => now + Duration::from_millis(u64::from(value)),
                    _ => now.max(forwarder.next_deadline()),
                };
                let actions = forwarder.tick(now);
                assert!(forwarder.next_deadline() > now, "it would tick for ever");
                actions
            }
        };
        check(&forwarder, before, &actions);
    }
}

type State = (bool, Option<SocketAddrV4>, super::Limits);

/// The driver learns of every change, and the sizes stay within their bounds.
fn check(forwarder: &Forwarder, before: State, actions: &[Action]) {
    let told = |action| actions.contains(&action);
    assert_eq!(before.0 != forwarder.usable(), told(Action::Changed));
    assert_eq!(before.1 != forwarder.remote(), told(Action::Moved));
    assert_eq!(before.2 != forwarder.limits(), told(Action::Limits));
    assert_eq!(forwarder.usable(), forwarder.trouble().is_none());
    let sends = actions.iter().any(|action| matches!(action, Action::Send(_)));
    assert!(!sends || forwarder.remote().is_some());
    let limits = forwarder.limits();
    assert!(limits.mtu >= FLOOR && limits.max_payload <= packet::MAX_PAYLOAD);
    assert!(actions.len() < 10);
}

/// Any frame of a container, behind two bytes of MTU.
pub fn frame(data: &[u8]) {
    let Some((mtu, frame)) = data.split_first_chunk::<2>() else {
        return;
    };
    let (mtu, mut scratch) = (u16::from_be_bytes(*mtu), Vec::new());
    let _ = packet::kind(frame);
    let df = fragment::kind(frame);
    fragment::ipv4(frame, mtu, &mut scratch, |piece| {
        assert!(piece.len() <= usize::from(mtu) + packet::ETHERNET);
        assert_eq!(fragment::kind(piece), df);
    });
    if let Some(answer) = icmp::too_big(frame, mtu) {
        assert!(answer.len() <= packet::ETHERNET + usize::from(icmp::IPV6_MIN_MTU));
        assert_eq!(icmp::too_big(&answer, 0), None, "no answers to answers");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::Special;
    use super::super::fragment::tests::frame as ipv4_frame;
    use crate::mesh::fuzzing::tests::run;
    use crate::mesh::name::PeerName;

    fn packets() -> Vec<Vec<u8>> {
        let [a, b] = [1, 2].map(|number| PeerName::from_u64(number).unwrap());
        let mut packet = a.to_bytes().to_vec();
        super::packet::append_special(&mut packet, a, b, Special::Heartbeat { conn_uid: 1 });
        super::packet::append_record(&mut packet, b, a, &[7; 60]).unwrap();
        vec![packet[..42].to_vec(), packet]
    }

    #[test]
    fn packet() {
        run(super::packet, &packets());
    }

    #[test]
    fn open() {
        run(super::open, &packets());
    }

    #[test]
    fn forwarder() {
        // Contact, acknowledgement, a path of 1500 bytes, its test, time, a narrower path, more time.
        let start = [[0, 0x1a, 0x7f], [4, 1, 0], [3, 5, 0xdc], [5, 0, 0], [7, 0xff, 0]];
        let later = [[3, 5, 0x14], [5, 0, 0], [6, 0, 0], [0, 0, 1], [6, 0, 1]];
        let ticks = [[7, 0xff, 0]; 40];
        let history = [&start[..], &ticks, &later, &ticks].concat().concat();
        let quick = [&[[0xff, 0, 0]], &start[..], &ticks].concat().concat();
        run(super::forwarder, &[history, quick]);
    }

    #[test]
    fn frame() {
        let mtu = |frame: Vec<u8>| [&[4, 0x10][..], &frame].concat();
        let mut ipv6 = ipv4_frame(0, 0, &[0; 1400], 0);
        ipv6[12..21].copy_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, 5, 0x60, 44]);
        let frames = [
            ipv4_frame(0, 0, &[1; 2000], 3),
            ipv4_frame(8, 0x4000, &[1; 1400], 0),
            ipv6,
        ];
        run(super::frame, &frames.map(mtu));
    }
}
