//! The overlay switch (wire.md 7): both ways to a neighbour live side by side, and the best one that
//! works is used. Pure.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use super::fastdp::heartbeat::{self, CONTROL_ACK, CONTROL_IPSEC, Path, Received};
use super::forwarding::Best;
use super::pace::Pace;
use super::sleeve::forwarder::{self, Forwarder};
use super::sleeve::{Arrived, SLEEVE, Special};
use crate::mesh::Now;

/// The fast path's name in `Overlays` (wire.md 7.1).
pub const FASTDP: &str = "fastdp";
/// Control message between new peers: whether the sender hears the other's heartbeats, one byte.
/// Never sent to the original, which would crash (wire.md W2).
pub const CONTROL_HEARING: u8 = 0x40;
/// Control message between new peers: whether the sender sends frames on the path, one byte. While one
/// end does, both send heartbeats quickly. To be assumed until told otherwise.
pub const CONTROL_TRAFFIC: u8 = 0x41;
/// A connection on which nothing is heard for so long is closed, and dialled again.
const DEAD: Duration = Duration::from_secs(60);

/// What the driver is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send a heartbeat on the fast path.
    FastdpHeartbeat,
    /// The remote's address on the fast path has changed.
    FastdpMoved,
    /// Send something on sleeve.
    Sleeve(Special),
    /// Address or limits of sleeve have changed.
    SleeveChanged,
    /// Send a control message over TCP (wire.md 7.4).
    Control {
        /// Index into the common list.
        index: u8,
        /// Overlay's tag.
        tag: u8,
        /// Overlay's data.
        data: Vec<u8>,
    },
    /// The first path works: the connection is established.
    Established,
    /// [`Switch::best`] or [`Switch::reason`] may have changed.
    Changed,
    /// Nothing works any more: close the TCP connection.
    Close,
}

/// What a switch is made of.
pub struct NewSwitch<'a> {
    /// UID of the connection.
    pub conn_uid: u64,
    /// What we offer: the order of the two is given (wire.md 7.2).
    pub ours: &'a [&'a str],
    /// What the remote offers.
    pub theirs: &'a [String],
    /// The remote's address on the fast path, or why there is none.
    pub fastdp: Result<Ipv4Addr, String>,
    /// The remote's UDP address on sleeve, if known, or why there is no sleeve.
    pub sleeve: Result<Option<SocketAddrV4>, String>,
    /// Sleeve seals its packets.
    pub sealed: bool,
    /// The remote is a new peer, and knows [`CONTROL_HEARING`].
    pub quick: bool,
}

/// Nothing in common.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no overlays in common with peer")]
pub struct NoCommonOverlay;

/// Both ways to one neighbour.
#[derive(Debug)]
pub struct Switch {
    conn_uid: u64,
    fastdp: Option<(u8, Path)>,
    sleeve: Option<(u8, Forwarder)>,
    /// Why there is no fast path at all.
    no_fastdp: Option<String>,
    quick: bool,
    best: Option<Best>,
    established: bool,
    /// The remote has told that it does not hear us on the fast path.
    unheard: bool,
    /// Since when the fast path has not worked.
    slow_since: Option<Now>,
    /// When something was last heard on any path.
    heard: Now,
}

impl Switch {
    /// The connection is up. The remote's offer is taken in our order, fastdp first (wire.md 7.2).
    pub fn new(now: Now, new: NewSwitch<'_>) -> Result<Self, NoCommonOverlay> {
        let common = |name: &str| new.ours.contains(&name) && new.theirs.iter().any(|theirs| theirs == name);
        let pace = if new.quick { Pace::QUICK } else { Pace::ORIGINAL };
        // A slot that cannot be prepared stays empty, and indices do not shift.
        let mut index = 0;
        let mut slot = |name: &str| {
            let at = common(name).then_some(index);
            index += u8::from(at.is_some());
            at
        };
        let (fastdp_at, sleeve_at) = (slot(FASTDP), slot(SLEEVE));
        let mut no_fastdp = None;
        let fastdp = match (fastdp_at, new.fastdp) {
            (Some(at), Ok(remote)) => Some((at, Path::new(now, new.conn_uid, remote, pace))),
            (_, Err(why)) => {
                no_fastdp = Some(why);
                None
            }
            (None, Ok(_)) => {
                no_fastdp = Some("the peer does not offer fastdp".to_owned());
                None
            }
        };
        let sleeve = match (sleeve_at, new.sleeve) {
            (Some(at), Ok(remote)) => {
                // There is nothing to fall back to from here, so no hurry.
                let forwarder = Forwarder::new(now, new.conn_uid, remote, new.sealed, Pace::ORIGINAL);
                Some((at, forwarder))
            }
            _ => None,
        };
        if fastdp.is_none() && sleeve.is_none() {
            return Err(NoCommonOverlay);
        }
        Ok(Self {
            conn_uid: new.conn_uid,
            fastdp,
            sleeve,
            no_fastdp,
            quick: new.quick,
            best: None,
            established: false,
            unheard: false,
            slow_since: None,
            heard: now,
        })
    }

    /// UID of the connection.
    #[must_use]
    pub fn conn_uid(&self) -> u64 {
        self.conn_uid
    }

    /// The fast path, unless there is none.
    #[must_use]
    pub fn fastdp(&self) -> Option<&Path> {
        self.fastdp.as_ref().map(|(_, path)| path)
    }

    /// Sleeve, unless there is none.
    #[must_use]
    pub fn sleeve(&self) -> Option<&Forwarder> {
        self.sleeve.as_ref().map(|(_, forwarder)| forwarder)
    }

    /// Which way frames go; `None` before any has worked.
    #[must_use]
    pub fn best(&self) -> Option<Best> {
        self.best
    }

    /// Why frames do not take the fast path.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        match &self.fastdp {
            Some((_, path)) => path.trouble().map(str::to_owned),
            None => self.no_fastdp.clone(),
        }
    }

    /// When [`Switch::tick`] is due.
    #[must_use]
    pub fn next_deadline(&self) -> Now {
        let fastdp = self.fastdp().map(Path::next_deadline);
        let sleeve = self.sleeve().map(Forwarder::next_deadline);
        let dead = self.heard + DEAD;
        fastdp
            .into_iter()
            .chain(sleeve)
            .min()
            .map_or(dead, |at| at.min(dead))
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Now) -> Vec<Action> {
        if self.heard + DEAD <= now {
            // Said once; the driver closes the connection.
            self.heard = now;
            return vec![Action::Close];
        }
        let fastdp = self
            .fastdp
            .as_mut()
            .map(|(_, path)| path.tick(now))
            .unwrap_or_default();
        let sleeve = self.sleeve.as_mut().map(|(_, f)| f.tick(now)).unwrap_or_default();
        self.collect(now, fastdp, sleeve)
    }

    /// A heartbeat came on the fast path.
    pub fn on_heartbeat(&mut self, now: Now, received: Received) -> Vec<Action> {
        let Some((_, path)) = &mut self.fastdp else {
            return Vec::new();
        };
        if received.conn_uid == self.conn_uid {
            self.heard = now;
        }
        let fastdp = path.on_heartbeat(now, received);
        self.collect(now, fastdp, Vec::new())
    }

    /// Frames leave by the fast path, or have not for some seconds.
    pub fn on_traffic(&mut self, now: Now, traffic: bool) -> Vec<Action> {
        let Some((_, path)) = &mut self.fastdp else {
            return Vec::new();
        };
        let actions = path.on_traffic(now, traffic);
        self.collect(now, actions, Vec::new())
    }

    /// Something came on sleeve.
    pub fn on_sleeve(&mut self, now: Now, arrived: Arrived) -> Vec<Action> {
        let Some((_, forwarder)) = &mut self.sleeve else {
            return Vec::new();
        };
        if matches!(arrived, Arrived::Heartbeat { conn_uid, .. } if conn_uid == self.conn_uid) {
            self.heard = now;
        }
        let sleeve = forwarder.on_arrived(now, arrived);
        self.collect(now, Vec::new(), sleeve)
    }

    /// A control message came over TCP. What cannot be understood is ignored (wire.md W2).
    pub fn on_control(&mut self, now: Now, index: u8, tag: u8, data: &[u8]) -> Vec<Action> {
        if let Some((_, path)) = self.fastdp.as_mut().filter(|(at, _)| *at == index) {
            return match (tag, data.first()) {
                (CONTROL_ACK, _) => {
                    let actions = path.on_ack();
                    self.collect(now, actions, Vec::new())
                }
                (CONTROL_HEARING, Some(hears)) if self.quick => self.on_hearing(now, *hears != 0),
                (CONTROL_TRAFFIC, Some(traffic)) => {
                    path.on_peer_traffic(now, *traffic != 0);
                    Vec::new()
                }
                _ => Vec::new(),
            };
        }
        if let Some((_, forwarder)) = self.sleeve.as_mut().filter(|(at, _)| *at == index) {
            let actions = forwarder.on_control(now, tag, data);
            return self.collect(now, Vec::new(), actions);
        }
        if tag == CONTROL_IPSEC {
            tracing::debug!("the peer offers IPsec, which this version does not have");
        }
        Vec::new()
    }

    /// The remote hears our fast path, or does not any more. In the second case it waits for a sign of
    /// life on sleeve before it leaves the fast path: a controller that is merely busy must not cost
    /// its host the traffic that its kernel still carries.
    fn on_hearing(&mut self, now: Now, hears: bool) -> Vec<Action> {
        self.unheard = !hears;
        let actions = self.fastdp.as_mut().map(|(_, path)| path.on_peer_hears(hears));
        let mut actions = self.collect(now, actions.unwrap_or_default(), Vec::new());
        if !hears && self.sleeve().is_some_and(|sleeve| sleeve.remote().is_some()) {
            let conn_uid = self.conn_uid;
            actions.push(Action::Sleeve(Special::Heartbeat { conn_uid }));
        }
        actions
    }

    /// Turns what the two paths ask for into what the driver is to do.
    fn collect(
        &mut self,
        now: Now,
        fastdp: Vec<heartbeat::Action>,
        sleeve: Vec<forwarder::Action>,
    ) -> Vec<Action> {
        let mut actions = Vec::new();
        let (mut changed, mut established) = (false, false);
        let fast_at = self.fastdp.as_ref().map_or(0, |(at, _)| *at);
        let sleeve_at = self.sleeve.as_ref().map_or(0, |(at, _)| *at);
        let control = |index, tag, data| Action::Control { index, tag, data };
        for action in fastdp {
            match action {
                heartbeat::Action::SendHeartbeat => actions.push(Action::FastdpHeartbeat),
                heartbeat::Action::SendAck => actions.push(control(fast_at, CONTROL_ACK, Vec::new())),
                heartbeat::Action::TellHearing(hears) => {
                    actions.push(control(fast_at, CONTROL_HEARING, vec![hears.into()]));
                }
                heartbeat::Action::TellTraffic(traffic) => {
                    actions.push(control(fast_at, CONTROL_TRAFFIC, vec![traffic.into()]));
                }
                heartbeat::Action::Established => established = true,
                heartbeat::Action::Changed => changed = true,
                heartbeat::Action::Moved => actions.push(Action::FastdpMoved),
            }
        }
        for action in sleeve {
            match action {
                forwarder::Action::Send(special) => actions.push(Action::Sleeve(special)),
                forwarder::Action::Control { tag, data } => actions.push(control(sleeve_at, tag, data)),
                forwarder::Action::TellHearing(_) => {}
                forwarder::Action::Established => established = true,
                forwarder::Action::Changed => changed = true,
                // Before anything is sent to the new address.
                forwarder::Action::Moved | forwarder::Action::Limits => {
                    actions.insert(0, Action::SleeveChanged);
                    changed = true;
                }
            }
        }
        if established && !std::mem::replace(&mut self.established, true) {
            actions.push(Action::Established);
        }
        if changed || established {
            actions.push(Action::Changed);
        }
        self.choose(now, &mut actions);
        actions
    }

    /// The first path that works (W9: looked up for each packet from then on). While none does, the
    /// last one that did: it may be the first to return.
    fn choose(&mut self, now: Now, actions: &mut Vec<Action>) {
        let before = self.best;
        if self.fastdp().is_some_and(Path::usable) {
            self.slow_since = None;
            self.best = Some(Best::Fastdp);
        } else {
            let since = *self.slow_since.get_or_insert(now);
            let alive = self.unheard || self.sleeve().is_some_and(|sleeve| sleeve.last_heard() >= since);
            let leave = before != Some(Best::Fastdp) || !self.quick || alive;
            if leave && self.sleeve().is_some_and(Forwarder::usable) {
                self.best = Some(Best::Sleeve);
            }
        }
        if let Some((_, sleeve)) = &mut self.sleeve {
            sleeve.set_standby(now, self.best == Some(Best::Fastdp));
        }
        if self.best != before && !actions.contains(&Action::Changed) {
            actions.push(Action::Changed);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const UID: u64 = 7;
    const PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

    fn at(milliseconds: u64) -> Now {
        Duration::from_millis(milliseconds)
    }

    fn from() -> SocketAddrV4 {
        SocketAddrV4::new(PEER, 6783)
    }

    fn both(quick: bool) -> Switch {
        let theirs = ["fastdp".to_owned(), "sleeve".to_owned()];
        let new = NewSwitch {
            conn_uid: UID,
            ours: &[FASTDP, SLEEVE],
            theirs: &theirs,
            fastdp: Ok(PEER),
            sleeve: Ok(Some(from())),
            sealed: false,
            quick,
        };
        Switch::new(at(0), new).unwrap()
    }

    fn beat() -> Received {
        Received {
            conn_uid: UID,
            frame_len: 1390,
            claimed_len: 1390,
            from: PEER,
        }
    }

    fn sleeve_beat() -> Arrived {
        Arrived::Heartbeat {
            conn_uid: UID,
            from: from(),
        }
    }

    /// Both paths work; the fast one is used.
    fn running(quick: bool) -> Switch {
        let mut switch = both(quick);
        switch.on_sleeve(at(1), sleeve_beat());
        switch.on_heartbeat(at(1), beat());
        switch.on_control(at(2), 1, 1, &[]);
        assert_eq!(switch.best(), Some(Best::Sleeve), "whichever comes first");
        let actions = switch.on_control(at(3), 0, 0, &[]);
        assert!(actions.contains(&Action::Changed) && !actions.contains(&Action::Established));
        assert_eq!(switch.best(), Some(Best::Fastdp));
        switch.on_heartbeat(at(100), beat());
        switch
    }

    fn hearing(index: u8, hears: bool) -> Action {
        let (tag, data) = (CONTROL_HEARING, vec![hears.into()]);
        Action::Control { index, tag, data }
    }

    /// Ticks until `end`; all that came of it.
    fn run(switch: &mut Switch, end: Now) -> Vec<Action> {
        let mut all = Vec::new();
        while switch.next_deadline() <= end {
            let now = switch.next_deadline();
            all.extend(switch.tick(now));
        }
        all
    }

    #[test]
    fn the_first_acknowledgement_establishes() {
        let mut switch = both(true);
        assert_eq!(switch.best(), None);
        let actions = switch.on_control(at(5), 0, 0, &[]);
        assert!(actions.contains(&Action::Established));
        let again = switch.on_control(at(6), 1, 1, &[]);
        assert!(!again.contains(&Action::Established));
        assert_eq!(switch.reason(), None);
    }

    #[test]
    fn a_blocked_fast_path_is_left_within_two_seconds_and_taken_again() {
        let mut switch = running(true);
        let actions = run(&mut switch, at(1900));
        assert!(actions.contains(&hearing(0, false)), "the other end is told");
        assert_eq!(switch.best(), Some(Best::Fastdp), "it may only be busy");
        // It answers with a sign of life on sleeve.
        let actions = switch.on_sleeve(at(1901), sleeve_beat());
        assert!(actions.contains(&Action::Changed));
        assert_eq!(switch.best(), Some(Best::Sleeve));
        assert!(switch.reason().is_some());
        let actions = switch.on_heartbeat(at(5000), beat());
        assert!(actions.contains(&hearing(0, true)));
        assert_eq!((switch.best(), switch.reason()), (Some(Best::Fastdp), None));
    }

    #[test]
    fn a_path_that_nobody_used_is_left_as_soon_after_the_first_frame() {
        let mut switch = running(true);
        let told = |traffic: bool| Action::Control {
            index: 0,
            tag: CONTROL_TRAFFIC,
            data: vec![traffic.into()],
        };
        assert_eq!(switch.on_traffic(at(200), false), [told(false)]);
        switch.on_control(at(200), 0, CONTROL_TRAFFIC, &[0]);
        switch.on_heartbeat(at(5000), beat());
        assert!(!run(&mut switch, at(19_900)).contains(&hearing(0, false)));
        assert_eq!(switch.best(), Some(Best::Fastdp));
        let actions = switch.on_traffic(at(20_000), true);
        assert_eq!(actions, [told(true)]);
        run(&mut switch, at(21_500));
        switch.on_sleeve(at(21_501), sleeve_beat());
        assert_eq!(switch.best(), Some(Best::Sleeve));
    }

    #[test]
    fn a_peer_that_does_not_hear_us_gets_a_sign_of_life_and_sleeve() {
        let mut switch = running(true);
        let actions = switch.on_control(at(150), 0, CONTROL_HEARING, &[0]);
        assert!(actions.contains(&Action::Sleeve(Special::Heartbeat { conn_uid: UID })));
        assert_eq!(
            switch.best(),
            Some(Best::Sleeve),
            "one way is blocked, so both are left"
        );
        switch.on_control(at(160), 0, CONTROL_HEARING, &[1]);
        assert_eq!(switch.best(), Some(Best::Fastdp));
    }

    #[test]
    fn an_original_is_given_its_minute_and_never_told() {
        let mut switch = running(false);
        let actions = run(&mut switch, at(59_000));
        assert!(!actions.iter().any(|a| matches!(
            a,
            Action::Control {
                tag: CONTROL_HEARING,
                ..
            }
        )));
        assert_eq!(switch.best(), Some(Best::Fastdp));
        switch.on_sleeve(at(59_500), sleeve_beat());
        run(&mut switch, at(60_200));
        assert_eq!(switch.best(), Some(Best::Sleeve));
    }

    #[test]
    fn silence_everywhere_closes_the_connection() {
        let mut switch = running(true);
        assert!(!run(&mut switch, at(60_000)).contains(&Action::Close));
        assert!(run(&mut switch, at(60_200)).contains(&Action::Close));
    }

    #[test]
    fn indices_are_those_of_the_common_list() {
        let theirs = ["sleeve".to_owned()];
        let new = |fastdp, theirs| NewSwitch {
            conn_uid: UID,
            ours: &[FASTDP, SLEEVE],
            theirs,
            fastdp,
            sleeve: Ok(Some(from())),
            sealed: true,
            quick: true,
        };
        let mut switch = Switch::new(at(0), new(Ok(PEER), &theirs)).unwrap();
        assert!(switch.reason().unwrap().contains("does not offer"));
        switch.on_control(at(1), 0, 1, &[]);
        assert_eq!(switch.best(), Some(Best::Sleeve), "sleeve is index 0 here");

        let theirs = ["fastdp".to_owned(), "sleeve".to_owned()];
        let mut switch = Switch::new(at(0), new(Err("why".to_owned()), &theirs)).unwrap();
        switch.on_control(at(1), 0, 0, &[]);
        assert_eq!(switch.best(), None, "an empty slot");
        switch.on_control(at(1), 1, 1, &[]);
        assert_eq!(
            (switch.best(), switch.reason()),
            (Some(Best::Sleeve), Some("why".to_owned()))
        );

        let without = NewSwitch {
            ours: &[SLEEVE],
            ..new(Err("--no-fastdp".to_owned()), &theirs)
        };
        let mut switch = Switch::new(at(0), without).unwrap();
        switch.on_control(at(1), 0, 1, &[]);
        assert_eq!(
            switch.best(),
            Some(Best::Sleeve),
            "what we do not offer does not count"
        );

        let nothing = ["awsvpc".to_owned()];
        assert!(Switch::new(at(0), new(Ok(PEER), &nothing)).is_err());
    }

    #[test]
    fn odd_control_messages_change_nothing() {
        let mut switch = both(true);
        for (index, tag, data) in [
            (0, 9, &[][..]),
            (7, 1, &[]),
            (0, CONTROL_HEARING, &[]),
            (1, 3, &[1]),
            (0, 1, &[0; 64]),
        ] {
            switch.on_control(at(1), index, tag, data);
        }
        assert_eq!(switch.best(), None);
    }
}
