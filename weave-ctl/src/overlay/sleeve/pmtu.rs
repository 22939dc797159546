//! The search for a path's MTU (wire.md 6.7), and what keeps it right afterwards. Pure.
//!
//! All MTUs are the overlay's, in bytes, but for the underlay's in [`Search::too_big`].
//!
//! The first search is the original's: from the kernel's idea of the path downwards, which is used
//! until it is disproved. What it finds is *settled*. A settled MTU is kept while a larger one is
//! looked for, tested every ten seconds, and given up for a smaller one only if smaller packets do arrive
//! where its own do not, or the kernel says so.

use std::time::Duration;

use super::packet::{IP_UDP, MAX_PAYLOAD};
use crate::mesh::Now;

/// The least that a path carries, as far as the search goes.
pub const FLOOR: u16 = 552;
/// Tests of one size before it is given up.
const TESTS: u32 = 8;
/// After the first test; twice as long after each further one.
const WAIT: Duration = Duration::from_millis(10);
/// Between tests of the MTU in use.
const VERIFY: Duration = Duration::from_secs(10);
/// The same while no frames go by this path.
const STANDBY: Duration = Duration::from_secs(5 * 60);

/// Why a size is being tested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// The original's search; the MTU in use is the highest that may still pass.
    Down,
    /// The MTU in use is the highest that is known to pass.
    Up,
    /// It is the MTU in use: does it still pass?
    Verify,
    /// It does not: does anything?
    Floor,
}

/// A size under test.
#[derive(Debug, Clone, Copy)]
struct Test {
    purpose: Purpose,
    candidate: u16,
    sent: u32,
    /// Give up or send again.
    due: Now,
}

/// The state of one path.
#[derive(Debug, Clone)]
pub struct Search {
    /// Between overlay MTU and path MTU, in bytes.
    overhead: u16,
    mtu: u16,
    max_payload: u16,
    /// The MTU in use has been seen to pass.
    settled: bool,
    good: u16,
    bad: u16,
    test: Option<Test>,
    verify_at: Option<Now>,
    /// No frames go by this path.
    standby: bool,
}

impl Search {
    /// Nothing is known: everything passes.
    #[must_use]
    pub fn new(overhead: u16) -> Self {
        Self {
            overhead,
            mtu: u16::MAX,
            max_payload: MAX_PAYLOAD,
            settled: false,
            good: FLOOR,
            bad: u16::MAX,
            test: None,
            verify_at: None,
            standby: false,
        }
    }

    /// Frames go by another path, or by this one again: then its MTU is tested at once.
    pub fn set_standby(&mut self, now: Now, standby: bool) {
        if std::mem::replace(&mut self.standby, standby) != standby {
            let next = if standby { now + STANDBY } else { now };
            self.verify_at = self.verify_at.map(|_| next);
        }
    }

    /// The overlay MTU to be used.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Longest UDP payload to be used.
    #[must_use]
    pub fn max_payload(&self) -> u16 {
        self.max_payload
    }

    /// When [`Search::tick`] is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Now> {
        self.test.map(|test| test.due).or(self.verify_at)
    }

    /// The kernel says that the path carries IP packets of `path_mtu` bytes only. Returns the MTU to be
    /// tested now, if any; so do the other functions.
    pub fn too_big(&mut self, now: Now, path_mtu: u16) -> Option<u16> {
        let mtu = path_mtu.saturating_sub(self.overhead).max(FLOOR);
        let known = match self.test {
            Some(Test {
                purpose: Purpose::Down | Purpose::Up,
                candidate,
                ..
            }) => mtu >= candidate,
            Some(_) => mtu >= self.mtu,
            None => self.settled && mtu == self.mtu,
        };
        if known {
            return None;
        }
        self.bad = mtu + 1;
        if self.settled && mtu >= self.mtu {
            self.good = self.mtu;
            if mtu == self.mtu {
                return self.narrow(now, Purpose::Up);
            }
            return self.start(now, Purpose::Up, mtu);
        }
        self.settled = false;
        self.good = FLOOR;
        self.set(mtu);
        self.start(now, Purpose::Down, mtu)
    }

    /// The remote has received a test. Anything but the size under test is ignored.
    pub fn passed(&mut self, now: Now, mtu: u16) -> Option<u16> {
        let test = self.test.filter(|test| test.candidate == mtu)?;
        match test.purpose {
            Purpose::Verify => return self.finish(now),
            Purpose::Floor => self.bad = self.mtu,
            Purpose::Down | Purpose::Up => {}
        }
        self.good = mtu;
        let purpose = match test.purpose {
            Purpose::Down => Purpose::Down,
            _ => {
                self.set(mtu);
                Purpose::Up
            }
        };
        self.narrow(now, purpose)
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Now) -> Option<u16> {
        let Some(test) = &mut self.test else {
            self.verify_at.filter(|at| *at <= now)?;
            return self.start(now, Purpose::Verify, self.mtu);
        };
        if now < test.due {
            return None;
        }
        if test.sent < TESTS {
            test.due = now + WAIT * (1 << test.sent);
            test.sent += 1;
            return Some(test.candidate);
        }
        let Test {
            purpose, candidate, ..
        } = *test;
        match purpose {
            Purpose::Verify if self.mtu > FLOOR => self.start(now, Purpose::Floor, FLOOR),
            // Nothing passes: that is no matter of size.
            Purpose::Verify | Purpose::Floor => self.finish(now),
            Purpose::Down | Purpose::Up => {
                self.bad = candidate;
                self.narrow(now, purpose)
            }
        }
    }

    fn set(&mut self, mtu: u16) {
        self.mtu = mtu;
        self.max_payload = mtu.saturating_add(self.overhead - IP_UDP).min(MAX_PAYLOAD);
    }

    fn start(&mut self, now: Now, purpose: Purpose, candidate: u16) -> Option<u16> {
        self.verify_at = None;
        self.test = Some(Test {
            purpose,
            candidate,
            sent: 1,
            due: now + WAIT,
        });
        Some(candidate)
    }

    /// Tests half way between what passes and what does not, until they meet.
    fn narrow(&mut self, now: Now, purpose: Purpose) -> Option<u16> {
        if self.good + 1 >= self.bad {
            self.set(self.good);
            return self.finish(now);
        }
        self.start(now, purpose, self.good.midpoint(self.bad))
    }

    fn finish(&mut self, now: Now) -> Option<u16> {
        self.settled = true;
        self.test = None;
        self.verify_at = Some(now + if self.standby { STANDBY } else { VERIFY });
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLAIN: u16 = 62;

    /// A path that carries packets up to `limit` silently dropping others, while the kernel believes
    /// `believed` (`None`: it says nothing). Plays until the search rests; returns the sizes tested.
    fn play(
        search: &mut Search,
        now: &mut Now,
        mut test: Option<u16>,
        limit: u16,
        believed: u16,
    ) -> Vec<u16> {
        let mut tested = Vec::new();
        loop {
            while let Some(mtu) = test {
                tested.push(mtu);
                test = if mtu + search.overhead > believed {
                    search.too_big(*now, believed)
                } else if mtu + search.overhead <= limit {
                    search.passed(*now, mtu)
                } else {
                    None
                };
            }
            let Some(at) = search.test.map(|test| test.due) else {
                return tested;
            };
            *now = at;
            test = search.tick(at);
        }
    }

    fn settled(limit: u16, believed: u16) -> (Search, Now, Vec<u16>) {
        let (mut search, mut now) = (Search::new(PLAIN), Now::ZERO);
        let first = search.too_big(now, believed);
        let tested = play(&mut search, &mut now, first, limit, believed);
        (search, now, tested)
    }

    /// Lets the test of the MTU in use come due and plays on.
    fn a_minute_later(search: &mut Search, now: &mut Now, limit: u16, believed: u16) -> Vec<u16> {
        *now = search.next_deadline().unwrap();
        let first = search.tick(*now);
        play(search, now, first, limit, believed)
    }

    #[test]
    fn the_common_case_is_one_test() {
        let (search, now, tested) = settled(1500, 1500);
        assert_eq!(
            (search.mtu(), search.max_payload(), tested),
            (1438, 1472, vec![1438])
        );
        assert_eq!(now, Now::ZERO);
        let mut sealed = Search::new(86);
        assert_eq!(sealed.too_big(now, 1500), Some(1414));
        assert_eq!((sealed.mtu(), sealed.max_payload()), (1414, 1472));
    }

    #[test]
    fn a_black_hole_is_searched_as_the_original_does() {
        let (search, now, mut tested) = settled(1300, 1500);
        tested.dedup();
        assert_eq!(
            tested,
            [1438, 995, 1216, 1327, 1271, 1243, 1229, 1236, 1239, 1237, 1238]
        );
        assert_eq!((search.mtu(), search.max_payload()), (1238, 1272));
        assert_eq!(
            now,
            Duration::from_millis(2550) * 5,
            "five sizes did not pass, each costs 2.55 s"
        );
    }

    #[test]
    fn tests_double_their_patience() {
        let mut search = Search::new(PLAIN);
        search.too_big(Now::ZERO, 1500);
        let mut gaps = Vec::new();
        let mut now = Now::ZERO;
        for _ in 0..8 {
            let due = search.next_deadline().unwrap();
            gaps.push((due - now).as_millis());
            now = due;
            search.tick(now);
        }
        assert_eq!(gaps, [10, 20, 40, 80, 160, 320, 640, 1280]);
    }

    #[test]
    fn only_the_size_under_test_can_pass() {
        let mut search = Search::new(PLAIN);
        assert_eq!(search.passed(Now::ZERO, 59986), None, "loopback");
        search.too_big(Now::ZERO, 1500);
        for other in [0, 1437, 1439, 59986, 65535] {
            search.passed(Now::ZERO, other);
            assert_eq!(search.mtu(), 1438);
        }
        search.passed(Now::ZERO, 1438);
        assert_eq!(search.passed(Now::ZERO, 1438), None);
        assert_eq!(search.mtu(), 1438);
    }

    #[test]
    fn tiny_path_mtus_do_no_harm() {
        for path_mtu in [0, 1, 27, 61, 62, 552, 613, 614] {
            let (search, _, _) = settled(path_mtu.max(614), path_mtu.max(614));
            assert_eq!(search.mtu(), FLOOR);
            let mut fresh = Search::new(PLAIN);
            assert_eq!(fresh.too_big(Now::ZERO, path_mtu), Some(FLOOR), "{path_mtu}");
        }
        assert_eq!(Search::new(PLAIN).too_big(Now::ZERO, u16::MAX), Some(65473));
    }

    #[test]
    fn a_path_that_shrinks_with_notice() {
        let (mut search, mut now, _) = settled(1500, 1500);
        let test = search.too_big(now, 1300);
        assert_eq!(search.mtu(), 1238, "at once");
        play(&mut search, &mut now, test, 1300, 1300);
        assert_eq!(search.mtu(), 1238);
    }

    #[test]
    fn a_path_that_shrinks_silently() {
        let (mut search, mut now, _) = settled(1500, 1500);
        assert_eq!(a_minute_later(&mut search, &mut now, 1500, 1500), [1438]);
        let tested = a_minute_later(&mut search, &mut now, 1300, 1500);
        assert_eq!(tested[7..9], [1438, FLOOR], "first whether anything passes");
        assert_eq!(search.mtu(), 1238);
    }

    #[test]
    fn an_outage_is_not_taken_for_a_small_mtu() {
        let (mut search, mut now, _) = settled(1500, 1500);
        a_minute_later(&mut search, &mut now, 0, 1500);
        assert_eq!(search.mtu(), 1438);
        assert_eq!(a_minute_later(&mut search, &mut now, 1500, 1500), [1438]);
    }

    #[test]
    fn a_path_that_grows_is_used_and_one_that_does_not_is_kept() {
        let (mut search, mut now, _) = settled(1300, 1500);
        let test = search.too_big(now, 1500);
        assert_eq!((test, search.mtu()), (Some(1438), 1238), "kept meanwhile");
        let mut held = search.clone();
        play(&mut held, &mut now.clone(), test, 1300, 1500);
        assert_eq!(held.mtu(), 1238);
        play(&mut search, &mut now, test, 1500, 1500);
        assert_eq!(search.mtu(), 1438);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn it_finds_what_the_path_carries(
            limits in prop::collection::vec((614u16..9100, 0u16..3000), 1..6),
        ) {
            let (mut search, mut now) = (Search::new(PLAIN), Now::ZERO);
            for (limit, hidden) in limits {
                // Provoked, then verified twice: once to notice, once to be sure.
                let test = search.too_big(now, limit + hidden);
                play(&mut search, &mut now, test, limit, limit + hidden);
                for _ in 0..2 {
                    a_minute_later(&mut search, &mut now, limit, limit + hidden);
                }
                prop_assert_eq!(search.mtu(), limit - PLAIN);
                prop_assert_eq!(search.max_payload(), limit - IP_UDP);
            }
        }

        #[test]
        fn whatever_is_said_it_keeps_within_bounds(events in prop::collection::vec((0u8..3, any::<u16>()), 0..200)) {
            let (mut search, mut now, mut asked) = (Search::new(PLAIN), Now::ZERO, u16::MAX);
            for (event, value) in events {
                now += Duration::from_millis(u64::from(value));
                match event {
                    0 => search.too_big(now, value),
                    1 => search.passed(now, if value & 1 == 0 { value } else { asked }),
                    _ => search.tick(now),
                }.inspect(|test| asked = *test);
                prop_assert!(search.mtu() >= FLOOR);
                prop_assert!(search.max_payload() <= MAX_PAYLOAD);
                prop_assert!(search.mtu() == u16::MAX || search.max_payload() == search.mtu() + PLAIN - IP_UDP);
            }
        }
    }

    #[test]
    fn a_path_that_nobody_uses_is_hardly_tested_and_at_once_when_somebody_does() {
        let (mut search, now, _) = settled(1400, 1500);
        search.set_standby(now, true);
        assert_eq!(search.tick(now + 20 * VERIFY), None);
        let later = now + 21 * VERIFY;
        search.set_standby(later, false);
        assert_eq!(search.next_deadline(), Some(later));
        assert_eq!(search.tick(later), Some(search.mtu()));
        search.passed(later, search.mtu());
        assert_eq!(search.next_deadline(), Some(later + VERIFY));
    }
}
