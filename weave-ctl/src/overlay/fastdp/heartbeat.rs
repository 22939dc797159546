//! The life of one connection's fast path, told by heartbeats (wire.md 8.6). Pure.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::mesh::Now;
use crate::overlay::pace::{Pace, Pulse};

/// Control message: "your heartbeat arrived" (wire.md 7.4).
pub const CONTROL_ACK: u8 = 0;
/// Control message: IPsec parameters (wire.md 8.9).
pub const CONTROL_IPSEC: u8 = 1;
/// After the last frame beats stay quick for so long: the remote must learn of the end first.
const LINGER: Duration = Duration::from_secs(3);

/// What the driver is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Send a heartbeat to [`Path::remote`].
    SendHeartbeat,
    /// Tell the remote over TCP that its heartbeat arrived ([`CONTROL_ACK`]).
    SendAck,
    /// The path works from here to there.
    Established,
    /// Usable or not usable any more: [`Path::usable`] has changed.
    Changed,
    /// The remote's heartbeats come from another address now: [`Path::remote`] has changed.
    Moved,
    /// Tell the remote over TCP whether we hear its heartbeats.
    TellHearing(bool),
    /// Tell the remote over TCP whether we send frames on the path.
    TellTraffic(bool),
}

/// One connection's fast path.
#[derive(Debug, Clone)]
pub struct Path {
    conn_uid: u64,
    remote: Ipv4Addr,
    pulse: Pulse,
    demand: Option<Demand>,
}

/// A path between new peers beats quickly only while frames use it.
#[derive(Debug, Clone, Copy)]
struct Demand {
    /// We send frames.
    ours: bool,
    /// The remote does.
    theirs: bool,
    /// When our beats become slow.
    slow_at: Option<Now>,
}

/// A heartbeat as received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Connection it claims to belong to.
    pub conn_uid: u64,
    /// Inner frame's length in bytes.
    pub frame_len: u32,
    /// Length written into it, modulo 2^16.
    pub claimed_len: u32,
    /// Outer source.
    pub from: Ipv4Addr,
}

impl Path {
    /// The connection is up ("confirm"): the first heartbeat is due at once.
    #[must_use]
    pub fn new(now: Now, conn_uid: u64, remote: Ipv4Addr, pace: Pace) -> Self {
        Self {
            conn_uid,
            remote,
            pulse: Pulse::new(now, pace),
            // Both ends take a new path for a busy one until they have looked.
            demand: (pace == Pace::QUICK).then_some(Demand {
                ours: true,
                theirs: true,
                slow_at: None,
            }),
        }
    }

    /// Where VXLAN for this connection goes.
    #[must_use]
    pub fn remote(&self) -> Ipv4Addr {
        self.remote
    }

    /// UID of the connection, written into its heartbeats.
    #[must_use]
    pub fn conn_uid(&self) -> u64 {
        self.conn_uid
    }

    /// Acknowledged by the remote, not silent, and the remote hears us.
    #[must_use]
    pub fn usable(&self) -> bool {
        self.pulse.usable()
    }

    /// Why it is not usable.
    #[must_use]
    pub fn trouble(&self) -> Option<&'static str> {
        self.pulse.trouble()
    }

    /// When [`Path::tick`] is due.
    #[must_use]
    pub fn next_deadline(&self) -> Now {
        let slow_at = self.demand.and_then(|demand| demand.slow_at);
        slow_at.map_or(self.pulse.next_deadline(), |at| {
            at.min(self.pulse.next_deadline())
        })
    }

    /// Do we send frames, as far as we know?
    #[must_use]
    pub fn has_traffic(&self) -> bool {
        self.demand.is_some_and(|demand| demand.ours)
    }

    /// Frames leave by this path, or have not for some seconds.
    pub fn on_traffic(&mut self, now: Now, traffic: bool) -> Vec<Action> {
        match &mut self.demand {
            Some(demand) if demand.ours != traffic => demand.ours = traffic,
            _ => return Vec::new(),
        }
        self.repace(now);
        vec![Action::TellTraffic(traffic)]
    }

    /// The remote tells whether it sends frames on the path.
    pub fn on_peer_traffic(&mut self, now: Now, traffic: bool) {
        if let Some(demand) = &mut self.demand {
            demand.theirs = traffic;
            self.repace(now);
        }
    }

    fn repace(&mut self, now: Now) {
        let Some(demand) = &mut self.demand else { return };
        if demand.ours || demand.theirs {
            demand.slow_at = None;
            self.pulse.expect(now, Pace::QUICK);
            self.pulse.send_at(now, Pace::QUICK);
        } else {
            demand.slow_at = Some(now + LINGER);
            self.pulse.expect(now, Pace::IDLE);
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Now) -> Vec<Action> {
        if let Some(demand) = &mut self.demand
            && demand.slow_at.is_some_and(|at| at <= now)
        {
            demand.slow_at = None;
            self.pulse.send_at(now, Pace::IDLE);
        }
        self.noticing(|path, actions| {
            let tick = path.pulse.tick(now);
            actions.extend(tick.tell.map(Action::TellHearing));
            if tick.beat {
                actions.push(Action::SendHeartbeat);
            }
        })
    }

    /// A heartbeat has come from the remote peer; an invalid one changes nothing.
    pub fn on_heartbeat(&mut self, now: Now, heartbeat: Received) -> Vec<Action> {
        if heartbeat.conn_uid != self.conn_uid || heartbeat.frame_len & 0xffff != heartbeat.claimed_len {
            return Vec::new();
        }
        self.noticing(|path, actions| {
            if heartbeat.from != path.remote {
                path.remote = heartbeat.from;
                actions.push(Action::Moved);
            }
            let heard = path.pulse.heard(now);
            if heard.first {
                actions.push(Action::SendAck);
            }
            actions.extend(heard.tell.map(Action::TellHearing));
        })
    }

    /// The remote has received one of ours ([`CONTROL_ACK`]).
    pub fn on_ack(&mut self) -> Vec<Action> {
        self.noticing(|path, actions| {
            if path.pulse.acknowledged() {
                actions.push(Action::Established);
            }
        })
    }

    /// The remote tells whether it hears our heartbeats.
    pub fn on_peer_hears(&mut self, hears: bool) -> Vec<Action> {
        self.noticing(|path, _| path.pulse.peer_hears(hears))
    }

    /// Collects what an event makes of it.
    fn noticing(&mut self, event: impl FnOnce(&mut Self, &mut Vec<Action>)) -> Vec<Action> {
        let (before, mut actions) = (self.usable(), Vec::new());
        event(self, &mut actions);
        if before != self.usable() {
            actions.push(Action::Changed);
        }
        actions
    }
}

/// UDP payload of a heartbeat: VXLAN header and inner frame (wire.md 8.6). `mtu` is our overlay
/// MTU: the frame has that size and so tests that full-size packets pass.
#[must_use]
pub fn packet(dst: u16, src: u16, conn_uid: u64, mtu: u32) -> Vec<u8> {
    let frame_len = 14 + mtu as usize;
    let mut bytes = vec![0; 8 + frame_len];
    bytes[0] = 8;
    let vni = (u32::from(dst) << 12 | u32::from(src)) << 8;
    bytes[4..8].copy_from_slice(&vni.to_be_bytes());
    bytes[22..30].copy_from_slice(&conn_uid.to_be_bytes());
    // Modulo 2^16, as the field has 16 bits.
    bytes[30..32].copy_from_slice(&(frame_len as u16).to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const UID: u64 = 0x0123_4567_89ab_cdef;
    const HOME: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 2);

    fn at(seconds: f64) -> Now {
        Duration::from_secs_f64(seconds)
    }

    fn good(from: Ipv4Addr) -> Received {
        Received {
            conn_uid: UID,
            frame_len: 1390,
            claimed_len: 1390,
            from,
        }
    }

    #[test]
    fn the_example_of_the_specification() {
        let bytes = packet(0xabc, 0x123, UID, 1376);
        assert_eq!(bytes.len() + 8, 0x057e, "UDP length");
        assert_eq!(bytes[..8], [8, 0, 0, 0, 0xab, 0xc1, 0x23, 0]);
        assert_eq!(bytes[8..22], [0; 14]);
        assert_eq!(
            bytes[22..32],
            [1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 5, 0x6e]
        );
        assert!(bytes[32..].iter().all(|b| *b == 0) && bytes.len() == 32 + 1366);
    }

    #[test]
    fn fast_until_acknowledged_then_slow() {
        let mut path = Path::new(at(0.0), UID, HOME, Pace::ORIGINAL);
        assert_eq!(path.tick(at(0.0)), [Action::SendHeartbeat]);
        assert_eq!(path.next_deadline(), at(0.5));
        assert!(!path.usable());
        assert_eq!(path.on_ack(), [Action::Established, Action::Changed]);
        assert_eq!(path.on_ack(), [], "once only");
        assert!(path.usable());
        assert_eq!(path.tick(at(0.5)), [Action::SendHeartbeat]);
        assert_eq!(path.next_deadline(), at(10.0));
    }

    #[test]
    fn quick_only_while_frames_use_it() {
        let beats = |path: &mut Path, from: f64, to: f64| {
            let mut count = 0;
            while path.next_deadline() <= at(to) {
                let now = path.next_deadline().max(at(from));
                for action in path.tick(now) {
                    assert_ne!(action, Action::TellHearing(false), "at {now:?}");
                    count += usize::from(action == Action::SendHeartbeat);
                }
                // The remote goes by the same rules.
                path.on_heartbeat(now, good(HOME));
            }
            count
        };
        let mut path = Path::new(at(0.0), UID, HOME, Pace::QUICK);
        path.on_ack();
        assert!(beats(&mut path, 0.0, 10.0) > 30, "at first");
        assert_eq!(path.on_traffic(at(10.0), false), [Action::TellTraffic(false)]);
        assert_eq!(path.on_traffic(at(10.0), false), [], "nothing new");
        assert!(beats(&mut path, 10.0, 20.0) > 30, "the remote has traffic");
        path.on_peer_traffic(at(20.0), false);
        assert!(
            beats(&mut path, 20.0, 22.9) > 8,
            "it may not have seen yet that we have none"
        );
        beats(&mut path, 22.9, 30.0);
        assert_eq!(beats(&mut path, 30.0, 130.0), 10);
        assert_eq!(path.on_traffic(at(131.0), true), [Action::TellTraffic(true)]);
        assert_eq!(path.tick(at(131.0)), [Action::SendHeartbeat], "at once");
        let silent = path.tick(at(132.3));
        assert!(silent.contains(&Action::TellHearing(false)) && !path.usable());
    }

    #[test]
    fn an_original_keeps_its_pace() {
        let mut path = Path::new(at(0.0), UID, HOME, Pace::ORIGINAL);
        assert!(path.on_traffic(at(1.0), true).is_empty());
        path.on_peer_traffic(at(1.0), true);
        assert_eq!(path.on_ack(), [Action::Established, Action::Changed]);
        path.tick(at(1.0));
        assert_eq!(path.next_deadline(), at(10.0));
    }

    #[test]
    fn the_first_valid_heartbeat_is_acknowledged_once() {
        let mut path = Path::new(at(0.0), UID, HOME, Pace::ORIGINAL);
        for bad in [
            Received {
                conn_uid: 1,
                ..good(HOME)
            },
            Received {
                frame_len: 1389,
                ..good(HOME)
            },
        ] {
            assert_eq!(path.on_heartbeat(at(0.1), bad), []);
        }
        assert_eq!(path.on_heartbeat(at(0.1), good(HOME)), [Action::SendAck]);
        assert_eq!(path.on_heartbeat(at(0.2), good(HOME)), []);
    }

    #[test]
    fn silence_makes_it_unhealthy_and_one_heartbeat_healthy_again() {
        let mut path = Path::new(at(0.0), UID, HOME, Pace::ORIGINAL);
        path.on_ack();
        path.on_heartbeat(at(1.0), good(HOME));
        assert!(path.tick(at(60.9)).contains(&Action::SendHeartbeat));
        assert!(path.usable());
        assert!(path.tick(at(61.0)).contains(&Action::Changed));
        assert!(!path.usable());
        assert_eq!(path.trouble(), Some("no heartbeat received for 60 s"));
        assert!(
            path.tick(at(200.0)).contains(&Action::SendHeartbeat),
            "heartbeats go on"
        );
        assert_eq!(path.on_heartbeat(at(201.0), good(HOME)), [Action::Changed]);
        assert!(path.usable());
    }

    #[test]
    fn blocked_one_way_both_ends_leave_it() {
        let mut path = Path::new(at(0.0), UID, HOME, Pace::QUICK);
        path.on_heartbeat(at(0.0), good(HOME));
        path.on_ack();
        assert_eq!(path.on_peer_hears(false), [Action::Changed]);
        assert_eq!(path.on_peer_hears(false), []);
        assert!(!path.usable());
        assert_eq!(path.on_peer_hears(true), [Action::Changed]);
        let silent = path.tick(at(2.0));
        assert!(silent.contains(&Action::TellHearing(false)) && silent.contains(&Action::Changed));
        assert_eq!(
            path.on_heartbeat(at(3.0), good(HOME)),
            [Action::TellHearing(true), Action::Changed]
        );
    }

    #[test]
    fn a_peer_may_move() {
        let mut path = Path::new(at(0.0), UID, HOME, Pace::ORIGINAL);
        let away = Ipv4Addr::new(172, 31, 9, 9);
        assert_eq!(
            path.on_heartbeat(at(0.1), good(away)),
            [Action::Moved, Action::SendAck]
        );
        assert_eq!(path.remote(), away);
    }

    #[test]
    fn large_mtus_wrap_the_length() {
        let bytes = packet(1, 2, UID, 65535);
        assert_eq!(bytes[30..32], [0, 13]);
        let mut path = Path::new(at(0.0), UID, HOME, Pace::ORIGINAL);
        let heartbeat = Received {
            frame_len: 65549,
            claimed_len: 13,
            ..good(HOME)
        };
        assert_eq!(path.on_heartbeat(at(0.1), heartbeat), [Action::SendAck]);
    }
}
