//! The life of sleeve on one connection: heartbeats, fragmentation test, path MTU (wire.md 6.5 to
//! 6.7). Pure.
//!
//! Unlike the original's it never dies for good: silence makes it unhealthy, the next heartbeat
//! healthy again. Peers that are slow to answer see what an original would send them.

use std::net::SocketAddrV4;
use std::time::Duration;

use super::packet::mtu_overhead;
use super::pmtu::Search;
use super::{Arrived, Limits, Special};
use crate::mesh::Now;
use crate::overlay::pace::{Pace, Pulse};

/// Control message: "your heartbeat arrived" (wire.md 7.4).
pub const CONTROL_ACK: u8 = 1;
/// Control message: "your fragmentation test arrived".
pub const CONTROL_FRAGMENTATION: u8 = 2;
/// Control message: "your MTU test arrived", with the overlay MTU as u16.
pub const CONTROL_MTU: u8 = 3;

/// Between fragmentation tests, and between provocations.
const REPEAT: Duration = Duration::from_secs(5 * 60);
/// Most tests answered in a second. A search asks some 20 times; what exceeds this is no search, and
/// must not fill the control connection.
const ANSWERS: u32 = 100;

/// What the driver is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send this to [`Forwarder::remote`], which is known then.
    Send(Special),
    /// Tell the remote over TCP.
    Control {
        /// [`CONTROL_ACK`], [`CONTROL_FRAGMENTATION`] or [`CONTROL_MTU`].
        tag: u8,
        /// What goes with it.
        data: Vec<u8>,
    },
    /// The path works from here to there; once only.
    Established,
    /// [`Forwarder::usable`] has changed.
    Changed,
    /// [`Forwarder::remote`] has changed.
    Moved,
    /// [`Forwarder::limits`] has changed.
    Limits,
    /// Tell the remote over TCP whether we hear its heartbeats.
    TellHearing(bool),
}

/// One connection's sleeve.
#[derive(Debug, Clone)]
pub struct Forwarder {
    conn_uid: u64,
    remote: Option<SocketAddrV4>,
    pulse: Pulse,
    search: Search,
    fragmentation: bool,
    /// Next fragmentation test and provocation; `None` until established.
    repeat_at: Option<Now>,
    /// Answers to tests: since when, how many.
    answers: (Now, u32),
}

impl Forwarder {
    /// The connection is up ("confirm"). `remote` is known if we dialled; then the first heartbeat is
    /// due at once.
    #[must_use]
    pub fn new(now: Now, conn_uid: u64, remote: Option<SocketAddrV4>, sealed: bool, pace: Pace) -> Self {
        Self {
            conn_uid,
            remote,
            pulse: Pulse::new(now, pace),
            search: Search::new(mtu_overhead(sealed)),
            fragmentation: false,
            repeat_at: None,
            answers: (now, 0),
        }
    }

    /// Where UDP for this connection goes, once known.
    #[must_use]
    pub fn remote(&self) -> Option<SocketAddrV4> {
        self.remote
    }

    /// How large things may be.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            mtu: self.search.mtu(),
            max_payload: self.search.max_payload(),
            fragmentation: self.fragmentation,
        }
    }

    /// Acknowledged by the remote, not silent, the remote hears us, and we know where it is.
    #[must_use]
    pub fn usable(&self) -> bool {
        self.pulse.usable() && self.remote.is_some()
    }

    /// Why it is not usable.
    #[must_use]
    pub fn trouble(&self) -> Option<&'static str> {
        match self.remote {
            None => Some("no heartbeat received yet, nor is the peer's UDP address known"),
            Some(_) => self.pulse.trouble(),
        }
    }

    /// The remote has acknowledged a heartbeat.
    #[must_use]
    pub fn established(&self) -> bool {
        self.pulse.established()
    }

    /// When the last heartbeat came; until then when the connection was made.
    #[must_use]
    pub fn last_heard(&self) -> Now {
        self.pulse.last_heard()
    }

    /// Frames go by another path, or by this one again.
    pub fn set_standby(&mut self, now: Now, standby: bool) {
        self.search.set_standby(now, standby);
    }

    /// When [`Forwarder::tick`] is due.
    #[must_use]
    pub fn next_deadline(&self) -> Now {
        [self.search.next_deadline(), self.repeat_at]
            .into_iter()
            .flatten()
            .fold(self.pulse.next_deadline(), Now::min)
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Now) -> Vec<Action> {
        self.noticing(|this, actions| {
            let tick = this.pulse.tick(now);
            actions.extend(tick.tell.map(Action::TellHearing));
            if tick.beat {
                actions.push(this.heartbeat());
            }
            if this.repeat_at.is_some_and(|at| at <= now) {
                this.repeat_at = Some(now + REPEAT);
                // Without heartbeats nothing else would arrive; they bring the tests with them.
                if this.pulse.healthy() {
                    this.tests(now, actions);
                }
            }
            let test = this.search.tick(now);
            actions.extend(test.map(|mtu| Action::Send(Special::MtuTest { mtu })));
        })
    }

    /// Something has come from the remote by UDP, or the kernel refuses to send.
    pub fn on_arrived(&mut self, now: Now, arrived: Arrived) -> Vec<Action> {
        self.noticing(|this, actions| match arrived {
            Arrived::Heartbeat { conn_uid, from } if conn_uid == this.conn_uid => {
                this.on_heartbeat(now, from, actions);
            }
            Arrived::Heartbeat { .. } => {}
            Arrived::FragmentationTest => this.answer(now, CONTROL_FRAGMENTATION, Vec::new(), actions),
            Arrived::MtuTest { mtu } => this.answer(now, CONTROL_MTU, mtu.to_be_bytes().to_vec(), actions),
            Arrived::TooBig { path_mtu } => {
                let test = this.search.too_big(now, path_mtu);
                actions.extend(test.map(|mtu| Action::Send(Special::MtuTest { mtu })));
            }
        })
    }

    /// A control message of sleeve came over TCP; unknown and short ones change nothing.
    pub fn on_control(&mut self, now: Now, tag: u8, data: &[u8]) -> Vec<Action> {
        self.noticing(|this, actions| match (tag, data) {
            (CONTROL_ACK, _) => this.on_ack(now, actions),
            (CONTROL_FRAGMENTATION, _) => this.fragmentation = this.established(),
            (CONTROL_MTU, [high, low, ..]) => {
                let test = this.search.passed(now, u16::from_be_bytes([*high, *low]));
                actions.extend(test.map(|mtu| Action::Send(Special::MtuTest { mtu })));
            }
            _ => {}
        })
    }

    /// The remote tells whether it hears our heartbeats.
    pub fn on_peer_hears(&mut self, hears: bool) -> Vec<Action> {
        self.noticing(|this, _| this.pulse.peer_hears(hears))
    }

    fn on_heartbeat(&mut self, now: Now, from: SocketAddrV4, actions: &mut Vec<Action>) {
        let before = self.remote.replace(from);
        if before != Some(from) {
            actions.push(Action::Moved);
        }
        if before.is_none() {
            actions.push(self.heartbeat());
        }
        let heard = self.pulse.heard(now);
        if heard.first {
            actions.push(Action::Control {
                tag: CONTROL_ACK,
                data: Vec::new(),
            });
        }
        actions.extend(heard.tell.map(Action::TellHearing));
        // Another address or another time: perhaps another path.
        if self.established() && (heard.regained || before != Some(from)) {
            self.tests(now, actions);
        }
    }

    fn on_ack(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.pulse.acknowledged() {
            actions.push(Action::Established);
            self.tests(now, actions);
        }
    }

    fn heartbeat(&self) -> Action {
        Action::Send(Special::Heartbeat {
            conn_uid: self.conn_uid,
        })
    }

    /// Fragmentation test and provocation, now and every five minutes.
    fn tests(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.repeat_at = Some(now + REPEAT);
        self.fragmentation = false;
        actions.push(Action::Send(Special::FragmentationTest));
        actions.push(Action::Send(Special::MtuProvocation));
    }

    fn answer(&mut self, now: Now, tag: u8, data: Vec<u8>, actions: &mut Vec<Action>) {
        let (since, count) = &mut self.answers;
        if now.saturating_sub(*since) >= Duration::from_secs(1) {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        if *count <= ANSWERS {
            actions.push(Action::Control { tag, data });
        }
    }

    /// Collects what an event makes of it. Without an address there is nothing to send to.
    fn noticing(&mut self, event: impl FnOnce(&mut Self, &mut Vec<Action>)) -> Vec<Action> {
        let (usable, limits, mut actions) = (self.usable(), self.limits(), Vec::new());
        event(self, &mut actions);
        if self.search.mtu() < limits.mtu && limits.mtu != u16::MAX {
            // A path that carries less than it did: do the kernel's fragments still pass?
            self.fragmentation = false;
            actions.push(Action::Send(Special::FragmentationTest));
        }
        if self.remote.is_none() {
            actions.retain(|action| !matches!(action, Action::Send(_)));
        }
        if limits != self.limits() {
            actions.push(Action::Limits);
        }
        if usable != self.usable() {
            actions.push(Action::Changed);
        }
        actions
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const UID: u64 = 0x0123_4567_89ab_cdef;
    const HOME: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(172, 31, 0, 2), 6783);
    const AWAY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(172, 31, 9, 9), 1024);
    const BEAT: Action = Action::Send(Special::Heartbeat { conn_uid: UID });
    const ACK: Action = Action::Control {
        tag: CONTROL_ACK,
        data: Vec::new(),
    };
    const TESTS: [Action; 2] = [
        Action::Send(Special::FragmentationTest),
        Action::Send(Special::MtuProvocation),
    ];

    fn at(seconds: f64) -> Now {
        Duration::from_secs_f64(seconds)
    }

    fn beat(from: SocketAddrV4) -> Arrived {
        Arrived::Heartbeat { conn_uid: UID, from }
    }

    fn test(mtu: u16) -> Action {
        Action::Send(Special::MtuTest { mtu })
    }

    fn dialled(pace: Pace) -> Forwarder {
        Forwarder::new(at(0.0), UID, Some(HOME), false, pace)
    }

    /// In use, with a path MTU of 1500.
    fn running(pace: Pace) -> Forwarder {
        let mut forwarder = dialled(pace);
        forwarder.tick(at(0.0));
        forwarder.on_arrived(at(0.1), beat(HOME));
        forwarder.on_control(at(0.1), CONTROL_ACK, &[]);
        forwarder.on_arrived(at(0.1), Arrived::TooBig { path_mtu: 1500 });
        forwarder.on_control(at(0.2), CONTROL_MTU, &1438u16.to_be_bytes());
        forwarder.on_control(at(0.2), CONTROL_FRAGMENTATION, &[]);
        forwarder
    }

    #[test]
    fn the_dialling_end_speaks_first() {
        let mut forwarder = dialled(Pace::ORIGINAL);
        assert_eq!(
            forwarder.limits(),
            Limits {
                mtu: 65535,
                max_payload: 65507,
                fragmentation: false
            }
        );
        assert_eq!(forwarder.next_deadline(), at(0.0));
        assert_eq!(forwarder.tick(at(0.0)), [BEAT]);
        assert_eq!(forwarder.next_deadline(), at(0.5));
        assert_eq!(forwarder.on_arrived(at(0.1), beat(HOME)), [ACK]);
        assert_eq!(forwarder.on_arrived(at(0.2), beat(HOME)), [], "once only");
        assert!(!forwarder.usable());
        let [fragmentation, provocation] = TESTS;
        assert_eq!(
            forwarder.on_control(at(0.3), CONTROL_ACK, &[]),
            [Action::Established, fragmentation, provocation, Action::Changed]
        );
        assert_eq!(forwarder.on_control(at(0.3), CONTROL_ACK, &[]), [], "once only");
        assert_eq!(
            forwarder.on_arrived(at(0.3), Arrived::TooBig { path_mtu: 1500 }),
            [test(1438), Action::Limits]
        );
        forwarder.on_control(at(0.31), CONTROL_MTU, &1438u16.to_be_bytes());
        assert_eq!(
            forwarder.on_control(at(0.31), CONTROL_FRAGMENTATION, &[]),
            [Action::Limits]
        );
        assert_eq!(
            forwarder.limits(),
            Limits {
                mtu: 1438,
                max_payload: 1472,
                fragmentation: true
            }
        );
        assert_eq!(forwarder.tick(at(0.5)), [BEAT]);
        let verify = at(0.31) + Duration::from_secs(10);
        assert_eq!(forwarder.next_deadline(), at(10.0), "slow now");
        assert_eq!(forwarder.tick(at(10.0)), [BEAT]);
        assert_eq!(forwarder.next_deadline(), verify);
        assert_eq!(forwarder.trouble(), None);
    }

    #[test]
    fn the_accepting_end_learns_the_address() {
        let mut forwarder = Forwarder::new(at(0.0), UID, None, true, Pace::ORIGINAL);
        assert_eq!(forwarder.tick(at(0.0)), [], "nowhere to send to");
        let stranger = Arrived::Heartbeat {
            conn_uid: 1,
            from: AWAY,
        };
        assert_eq!(forwarder.on_arrived(at(0.1), stranger), []);
        assert_eq!(
            forwarder.on_arrived(at(0.2), beat(HOME)),
            [Action::Moved, BEAT, ACK]
        );
        assert_eq!(forwarder.remote(), Some(HOME));
    }

    #[test]
    fn an_acknowledgement_without_contact_makes_nothing_usable() {
        let mut forwarder = Forwarder::new(at(0.0), UID, None, true, Pace::ORIGINAL);
        assert_eq!(
            forwarder.on_control(at(0.1), CONTROL_ACK, &[]),
            [Action::Established]
        );
        assert!(!forwarder.usable());
        let contact = forwarder.on_arrived(at(0.2), beat(HOME));
        assert!(contact.contains(&Action::Changed) && contact.ends_with(&[Action::Changed]));
        assert!(TESTS.iter().all(|test| contact.contains(test)));
    }

    #[test]
    fn a_peer_that_moves_is_followed_and_its_path_measured_anew() {
        let mut forwarder = running(Pace::ORIGINAL);
        let [fragmentation, provocation] = TESTS;
        assert_eq!(
            forwarder.on_arrived(at(9.0), beat(AWAY)),
            [Action::Moved, fragmentation, provocation, Action::Limits]
        );
        assert_eq!(forwarder.remote(), Some(AWAY));
        assert!(forwarder.usable());
        assert_eq!(forwarder.limits().mtu, 1438);
    }

    #[test]
    fn silence_is_not_for_ever() {
        for (pace, patience) in [(Pace::ORIGINAL, 60.0), (Pace::QUICK, 1.25)] {
            let mut forwarder = running(pace);
            forwarder.on_arrived(at(1.0), beat(HOME));
            let told = pace == Pace::QUICK;
            forwarder.tick(at(1.0 + patience - 0.05));
            assert!(forwarder.usable());
            let silent = forwarder.tick(at(1.0 + patience));
            assert!(silent.contains(&Action::Changed) && !forwarder.usable());
            assert_eq!(silent.contains(&Action::TellHearing(false)), told);
            assert!(forwarder.trouble().is_some());
            assert!(forwarder.tick(at(5000.0)).contains(&BEAT), "ours go on");
            let back = forwarder.on_arrived(at(5001.0), beat(HOME));
            assert!(back.contains(&Action::Changed) && forwarder.usable());
            assert_eq!(back.contains(&Action::TellHearing(true)), told);
            assert!(back.contains(&TESTS[1]), "perhaps another path");
            assert_eq!(forwarder.last_heard(), at(5001.0));
        }
    }

    #[test]
    fn a_deaf_peer_takes_the_path_out_of_use() {
        let mut forwarder = running(Pace::QUICK);
        assert_eq!(forwarder.on_peer_hears(false), [Action::Changed]);
        assert_eq!(forwarder.trouble(), Some("the peer does not hear us"));
        assert_eq!(forwarder.on_peer_hears(true), [Action::Changed]);
        assert!(forwarder.usable());
    }

    #[test]
    fn tests_are_repeated_but_not_into_silence() {
        let mut forwarder = running(Pace::ORIGINAL);
        let mut repeated = Vec::new();
        while forwarder.next_deadline() < at(1000.0) {
            let now = forwarder.next_deadline();
            if now < at(700.0) {
                forwarder.on_arrived(now, beat(HOME));
            }
            for action in forwarder.tick(now) {
                match action {
                    Action::Send(Special::MtuTest { mtu }) => {
                        forwarder.on_control(now, CONTROL_MTU, &mtu.to_be_bytes());
                    }
                    action if TESTS.contains(&action) => repeated.push((now, action)),
                    _ => {}
                }
            }
        }
        let [fragmentation, provocation] = TESTS;
        assert_eq!(
            repeated,
            [
                (at(300.1), fragmentation.clone()),
                (at(300.1), provocation.clone()),
                (at(600.1), fragmentation),
                (at(600.1), provocation)
            ]
        );
        assert!(!forwarder.limits().fragmentation, "the tests went unanswered");
    }

    #[test]
    fn tests_are_answered_up_to_a_limit() {
        let mut forwarder = running(Pace::ORIGINAL);
        let answer = |tag, data: &[u8]| {
            let data = data.to_vec();
            [Action::Control { tag, data }]
        };
        assert_eq!(
            forwarder.on_arrived(at(1.0), Arrived::FragmentationTest),
            answer(CONTROL_FRAGMENTATION, &[])
        );
        let tested = Arrived::MtuTest { mtu: 59986 };
        assert_eq!(
            forwarder.on_arrived(at(1.0), tested),
            answer(CONTROL_MTU, &[0xea, 0x52])
        );
        let flood = (0..10_000)
            .filter(|_| !forwarder.on_arrived(at(1.5), tested).is_empty())
            .count();
        assert!(flood < 100);
        assert_eq!(
            forwarder.on_arrived(at(2.5), tested),
            answer(CONTROL_MTU, &[0xea, 0x52])
        );
    }

    #[test]
    fn senseless_control_messages_change_nothing() {
        let mut forwarder = dialled(Pace::ORIGINAL);
        forwarder.on_control(at(0.1), CONTROL_FRAGMENTATION, &[]);
        assert!(!forwarder.limits().fragmentation, "nothing was asked yet");
        let mut forwarder = running(Pace::ORIGINAL);
        for (tag, data) in [
            (0, &[][..]),
            (4, &[1, 2]),
            (255, &[]),
            (CONTROL_MTU, &[]),
            (CONTROL_MTU, &[5]),
            (CONTROL_MTU, &[0xff, 0xff]),
            (CONTROL_MTU, &1438u16.to_be_bytes()),
        ] {
            assert_eq!(forwarder.on_control(at(1.0), tag, data), [], "{tag} {data:?}");
        }
        assert_eq!(forwarder.limits().mtu, 1438);
    }
}
