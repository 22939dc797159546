//! Heartbeats of one path between two peers: when to send them, and what their coming or staying away
//! says. Shared by the fast path and sleeve (wire.md 6.5, 8.6). Pure.

use std::time::Duration;

use crate::mesh::Now;

/// How fast heartbeats go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Between heartbeats until one has been acknowledged.
    pub fast: Duration,
    /// Between heartbeats afterwards.
    pub slow: Duration,
    /// Between heartbeats while the path does not work.
    pub retry: Duration,
    /// Without one for so long an established path is unhealthy.
    pub timeout: Duration,
}

impl Pace {
    /// The original's.
    pub const ORIGINAL: Self = Self {
        fast: Duration::from_millis(500),
        slow: Duration::from_secs(10),
        retry: Duration::from_secs(10),
        timeout: Duration::from_secs(60),
    };
    /// Between peers that both know it, while frames use the path. Four lost in a row are noticed
    /// before TCP's third retransmission, 1.4 s after the first loss: the next one would be as long again.
    pub const QUICK: Self = Self {
        fast: Duration::from_millis(300),
        slow: Duration::from_millis(300),
        retry: Duration::from_millis(300),
        timeout: Duration::from_millis(1250),
    };
    /// Between the same peers, while nobody would miss the path.
    pub const IDLE: Self = Self {
        fast: Duration::from_millis(300),
        slow: Duration::from_secs(10),
        retry: Duration::from_secs(1),
        timeout: Duration::from_secs(32),
    };

    /// The remote understands being told whether we hear it.
    fn tells(self) -> bool {
        self != Self::ORIGINAL
    }
}

/// One path's state.
#[derive(Debug, Clone)]
pub struct Pulse {
    /// How often we send.
    sends: Pace,
    /// How often the remote sends.
    expects: Pace,
    established: bool,
    healthy: bool,
    peer_hears: bool,
    answered: bool,
    next_beat: Now,
    timeout: Option<Now>,
    last_heard: Now,
}

/// What [`Pulse::tick`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tick {
    /// A heartbeat is to be sent.
    pub beat: bool,
    /// What to tell the remote about our hearing it, if that is new.
    pub tell: Option<bool>,
}

/// What [`Pulse::heard`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// The remote is to be told, once, that its heartbeat arrived.
    pub first: bool,
    /// The path was unhealthy until now.
    pub regained: bool,
    /// What to tell the remote about our hearing it, if that is new.
    pub tell: Option<bool>,
}

impl Pulse {
    /// The first heartbeat is due at once.
    #[must_use]
    pub fn new(now: Now, pace: Pace) -> Self {
        Self {
            sends: pace,
            expects: pace,
            established: false,
            healthy: true,
            peer_hears: true,
            answered: false,
            next_beat: now,
            timeout: Some(now + Pace::ORIGINAL.timeout),
            last_heard: now,
        }
    }

    /// Acknowledged, not silent, and not deaf at the other end.
    #[must_use]
    pub fn usable(&self) -> bool {
        self.established && self.healthy && self.peer_hears
    }

    /// One of our heartbeats has been acknowledged.
    #[must_use]
    pub fn established(&self) -> bool {
        self.established
    }

    /// Heartbeats come.
    #[must_use]
    pub fn healthy(&self) -> bool {
        self.healthy
    }

    /// When the last one came; until then when the path was made.
    #[must_use]
    pub fn last_heard(&self) -> Now {
        self.last_heard
    }

    /// Why it is not usable.
    #[must_use]
    pub fn trouble(&self) -> Option<&'static str> {
        match self {
            Self {
                established: false, ..
            } => Some("no heartbeat acknowledged yet"),
            Self { healthy: false, .. } if self.expects.tells() => Some("heartbeats have ceased"),
            Self { healthy: false, .. } => Some("no heartbeat received for 60 s"),
            Self {
                peer_hears: false, ..
            } => Some("the peer does not hear us"),
            _ => None,
        }
    }

    /// When [`Pulse::tick`] is due.
    #[must_use]
    pub fn next_deadline(&self) -> Now {
        self.timeout
            .map_or(self.next_beat, |timeout| timeout.min(self.next_beat))
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Now) -> Tick {
        let mut tick = Tick {
            beat: self.next_beat <= now,
            tell: None,
        };
        if self.timeout.is_some_and(|at| at <= now) {
            self.timeout = None;
            self.healthy = false;
            tick.tell = self.expects.tells().then_some(false);
        }
        if tick.beat {
            self.next_beat = next_multiple(now, self.interval());
        }
        tick
    }

    fn interval(&self) -> Duration {
        match (self.established, self.healthy && self.peer_hears) {
            (false, true) => self.sends.fast,
            (true, true) => self.sends.slow,
            (_, false) => self.sends.retry,
        }
    }

    /// From now on we send at this pace.
    pub fn send_at(&mut self, now: Now, pace: Pace) {
        self.sends = pace;
        if self.next_beat > now + self.interval() {
            self.next_beat = now;
        }
    }

    /// From now on the remote is to send at this pace.
    pub fn expect(&mut self, now: Now, pace: Pace) {
        if std::mem::replace(&mut self.expects, pace) != pace && self.established && self.healthy {
            self.timeout = Some(now + pace.timeout);
        }
    }

    /// A valid heartbeat has come.
    pub fn heard(&mut self, now: Now) -> Heard {
        // Peers start at different times, and an address may have to be learnt first: until the path
        // works there is nothing to fail over from, and no hurry.
        let patience = if self.established {
            self.expects.timeout
        } else {
            Pace::ORIGINAL.timeout
        };
        self.timeout = Some(now + patience);
        self.last_heard = now;
        let regained = !std::mem::replace(&mut self.healthy, true);
        Heard {
            first: !std::mem::replace(&mut self.answered, true),
            regained,
            tell: (regained && self.expects.tells()).then_some(true),
        }
    }

    /// The remote acknowledges a heartbeat of ours. True the first time: the path is established.
    pub fn acknowledged(&mut self) -> bool {
        if std::mem::replace(&mut self.established, true) {
            return false;
        }
        // From now on silence counts sooner.
        let sooner = self.next_beat + self.expects.timeout;
        self.timeout = self.timeout.map(|at| at.min(sooner));
        true
    }

    /// The remote tells whether it hears us.
    pub fn peer_hears(&mut self, hears: bool) {
        self.peer_hears = hears;
    }
}

/// The beats of all neighbours fall together, so that the daemon wakes up once for all of them.
fn next_multiple(now: Now, interval: Duration) -> Now {
    let step = interval.as_nanos().max(1);
    let at = (now.as_nanos() / step + 1) * step;
    u64::try_from(at).map_or(now + interval, Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Now {
        Duration::from_secs_f64(seconds)
    }

    /// Ticks as it wants until `end`, and returns when it found itself unhealthy.
    fn silent_at(pulse: &mut Pulse, end: Now) -> Option<(Now, Tick)> {
        while pulse.next_deadline() <= end {
            let now = pulse.next_deadline();
            let tick = pulse.tick(now);
            if !pulse.healthy() {
                return Some((now, tick));
            }
        }
        None
    }

    #[test]
    fn between_new_peers_a_dead_path_is_noticed_within_two_seconds() {
        let mut pulse = Pulse::new(at(0.0), Pace::QUICK);
        assert!(pulse.acknowledged());
        for beat in 0..50 {
            let now = at(f64::from(beat) * 0.4);
            assert!(pulse.tick(now).beat, "beats go on at {now:?}");
            assert!(!pulse.heard(now).regained);
        }
        let last = pulse.last_heard();
        let (when, tick) = silent_at(&mut pulse, at(1000.0)).unwrap_or((at(0.0), pulse.tick(at(0.0))));
        assert!(when > last && when - last < at(2.0));
        assert_eq!(tick.tell, Some(false));
        assert_eq!(pulse.trouble(), Some("heartbeats have ceased"));
        let heard = pulse.heard(at(30.0));
        assert_eq!(
            (heard.first, heard.regained, heard.tell),
            (false, true, Some(true))
        );
        assert!(pulse.usable());
    }

    #[test]
    fn before_it_is_established_there_is_a_minute() {
        let mut pulse = Pulse::new(at(0.0), Pace::QUICK);
        pulse.heard(at(1.0));
        assert_eq!(silent_at(&mut pulse, at(60.9)), None);
        assert_eq!(
            silent_at(&mut pulse, at(1000.0)).map(|(when, _)| when),
            Some(at(61.0))
        );
    }

    #[test]
    fn once_established_silence_counts_though_heartbeats_came_before() {
        let mut pulse = Pulse::new(at(0.0), Pace::QUICK);
        pulse.tick(at(0.0));
        pulse.heard(at(0.1));
        pulse.acknowledged();
        assert_eq!(
            silent_at(&mut pulse, at(1000.0)).map(|(when, _)| when),
            Some(Pace::QUICK.fast + Pace::QUICK.timeout)
        );
    }

    #[test]
    fn an_original_is_told_nothing_that_it_does_not_know() {
        let mut pulse = Pulse::new(at(0.0), Pace::ORIGINAL);
        pulse.acknowledged();
        assert_eq!(
            silent_at(&mut pulse, at(1000.0)).map(|(_, tick)| tick.tell),
            Some(None)
        );
        assert_eq!(pulse.heard(at(99.0)).tell, None);
    }

    #[test]
    fn a_path_on_which_the_peer_is_deaf_is_not_used() {
        let mut pulse = Pulse::new(at(0.0), Pace::QUICK);
        pulse.acknowledged();
        pulse.peer_hears(false);
        assert!(!pulse.usable());
        assert_eq!(pulse.trouble(), Some("the peer does not hear us"));
        pulse.peer_hears(true);
        assert!(pulse.usable());
    }

    #[test]
    fn the_beats_of_all_neighbours_fall_together() {
        let mut early = Pulse::new(at(1.0), Pace::QUICK);
        let mut late = Pulse::new(at(1.13), Pace::QUICK);
        early.tick(at(1.0));
        late.tick(at(1.13));
        assert_eq!(early.next_deadline(), late.next_deadline());
        assert!(late.next_deadline() > at(1.13));
    }

    #[test]
    fn without_traffic_beats_are_rare_and_silence_counts_later() {
        let mut pulse = Pulse::new(at(0.0), Pace::IDLE);
        pulse.acknowledged();
        pulse.tick(at(0.0));
        pulse.heard(at(0.0));
        assert_eq!(pulse.next_deadline(), at(10.0));
        assert_eq!(silent_at(&mut pulse, at(31.9)), None);
        // Traffic: the next beat is due at once, and the remote's are due soon.
        pulse.expect(at(31.9), Pace::QUICK);
        pulse.send_at(at(31.9), Pace::QUICK);
        assert!(pulse.tick(at(31.9)).beat);
        let silent = silent_at(&mut pulse, at(100.0)).map(|(when, _)| when);
        assert_eq!(silent, Some(at(31.9) + Pace::QUICK.timeout));
        // What does not work is tried more often than what does.
        pulse.send_at(at(34.0), Pace::IDLE);
        pulse.tick(pulse.next_deadline());
        assert_eq!(pulse.next_deadline(), at(34.0));
    }
}
