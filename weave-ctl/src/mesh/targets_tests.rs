//! The rules of wire.md 5, one by one.
#![allow(clippy::unwrap_used)]

use rand::SeedableRng;

use super::*;

const PORT: u16 = 6783;

fn at(seconds: u64) -> Now {
    Duration::from_secs(seconds)
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn direct(text: &str) -> ResolvedPeer {
    match text.parse() {
        Ok(addr) => ResolvedPeer {
            text: text.to_owned(),
            addr,
            port_given: true,
        },
        Err(_) => {
            let addr = SocketAddr::new(text.parse().unwrap(), 0);
            ResolvedPeer {
                text: text.to_owned(),
                addr,
                port_given: false,
            }
        }
    }
}

fn peer(n: u64) -> PeerName {
    PeerName::from_u64(n).unwrap()
}

fn link(text: &str, outbound: bool, remote: u64) -> Link {
    Link {
        addr: addr(text),
        outbound,
        remote: peer(remote),
    }
}

struct World {
    targets: Targets,
    rng: SmallRng,
    links: Vec<Link>,
    found: Vec<&'static str>,
}

impl World {
    fn new(limit: usize) -> Self {
        let rng = SmallRng::seed_from_u64(7);
        Self {
            targets: Targets::new(PORT, limit),
            rng,
            links: Vec::new(),
            found: Vec::new(),
        }
    }
    fn connect(&mut self, seconds: u64, texts: &[&str]) {
        self.targets
            .connect(at(seconds), texts.iter().map(|t| direct(t)).collect(), false);
    }
    fn dials(&mut self, seconds: u64) -> Vec<String> {
        self.dials_at(at(seconds))
    }
    fn dials_at(&mut self, now: Now) -> Vec<String> {
        let found = self.found.iter().map(|t| addr(t)).collect();
        self.targets
            .refresh(now, &self.links, found, &mut self.rng)
            .iter()
            .map(ToString::to_string)
            .collect()
    }
    fn fails(&mut self, now: Now, text: &str, how: Ending) {
        self.targets
            .ended(now, addr(text), how, "broken".to_owned(), &mut self.rng);
    }
    fn state(&self, text: &str) -> Option<State> {
        self.targets.targets.get(&addr(text)).map(|t| t.state)
    }
}

#[test]
fn a_direct_peer_without_a_port_has_ours() {
    let mut w = World::new(0);
    w.connect(0, &["10.0.0.1", "10.0.0.2:7000", "::1"]);
    assert_eq!(w.dials(0), ["10.0.0.1:6783", "10.0.0.2:7000", "[::1]:6783"]);
    assert_eq!(w.dials(0), [""; 0], "they are being attempted");
    assert!(w.targets.is_direct(addr("10.0.0.1:6783")));
    assert!(!w.targets.is_direct(addr("10.0.0.2:6783")));
    assert_eq!(
        w.targets.direct().collect::<Vec<_>>(),
        ["10.0.0.1", "10.0.0.2:7000", "::1"]
    );
}

#[test]
fn without_a_port_an_inbound_connection_from_its_address_will_do() {
    let mut w = World::new(0);
    w.links.push(link("10.0.0.1:40000", false, 1));
    w.connect(0, &["10.0.0.1", "10.0.0.1:6784"]);
    assert_eq!(
        w.dials(0),
        ["10.0.0.1:6784"],
        "with a port it may be another peer"
    );
    w.targets.answered(addr("10.0.0.1:6784"), peer(1), false);
    w.fails(at(1), "10.0.0.1:6784", Ending::NotMade);
    assert_eq!(w.dials(100), [""; 0], "it was not");
    assert_eq!(w.state("10.0.0.1:6784"), Some(State::Suspended));
    w.links.clear();
    assert_eq!(w.dials(100), ["10.0.0.1:6783", "10.0.0.1:6784"]);
}

#[test]
fn discovered_addresses_come_and_go() {
    let mut w = World::new(0);
    w.found = vec!["10.0.0.1:6783", "10.0.0.2:6783"];
    w.links.push(link("10.0.0.2:6783", true, 2));
    assert_eq!(w.dials(0), ["10.0.0.1:6783"]);
    w.fails(at(0), "10.0.0.1:6783", Ending::NotMade);
    assert_eq!(w.state("10.0.0.1:6783"), Some(State::Waiting));
    w.found.clear();
    w.dials(0);
    assert_eq!(w.state("10.0.0.1:6783"), None, "forgotten with its error");
}

#[test]
fn back_off() {
    let mut w = World::new(0);
    w.connect(0, &["10.0.0.1"]);
    let mut now = at(0);
    let mut interval = FIRST_INTERVAL;
    for _ in 0..30 {
        assert_eq!(w.dials_at(now), ["10.0.0.1:6783"]);
        assert_eq!(w.targets.next_try(), None);
        w.fails(now, "10.0.0.1:6783", Ending::NotMade);
        let next = w.targets.next_try().unwrap();
        assert!(
            (interval / 2..interval * 3 / 2).contains(&(next - now)),
            "{:?} of {interval:?}",
            next - now
        );
        assert_eq!(w.dials_at(next - Duration::from_millis(1)), [""; 0]);
        now = next;
        interval = (interval * 3 / 2).min(LONGEST_INTERVAL);
    }
    assert_eq!(interval, LONGEST_INTERVAL);
    w.connect(5, &["10.0.0.1"]);
    assert_eq!(
        w.dials(5),
        ["10.0.0.1:6783"],
        "adding it again resets the back-off"
    );
}

#[test]
fn a_good_connection_resets_the_back_off_a_short_one_does_not() {
    let mut w = World::new(0);
    w.connect(0, &["10.0.0.1"]);
    w.dials(0);
    w.targets.answered(addr("10.0.0.1:6783"), peer(1), true);
    assert_eq!(w.state("10.0.0.1:6783"), Some(State::Connected));
    w.fails(at(60), "10.0.0.1:6783", Ending::Lost);
    assert_ne!(w.targets.next_try(), Some(at(60)), "not more than a minute");
    let tried = w.targets.next_try().unwrap();
    assert_eq!(w.dials_at(tried), ["10.0.0.1:6783"]);
    w.targets.answered(addr("10.0.0.1:6783"), peer(1), true);
    w.fails(tried + at(61), "10.0.0.1:6783", Ending::Lost);
    assert_eq!(w.dials_at(tried + at(61)), ["10.0.0.1:6783"]);
}

#[test]
fn hopeless_targets_are_left_alone_until_added_again() {
    let mut w = World::new(0);
    w.connect(0, &["10.0.0.1", "10.0.0.2"]);
    w.dials(0);
    w.fails(at(0), "10.0.0.1:6783", Ending::Hopeless);
    assert_eq!((w.dials(100_000), w.targets.next_try()), (Vec::new(), None));
    assert_eq!(w.targets.active(), 1);
    w.connect(100_000, &["10.0.0.1"]);
    assert_eq!(w.dials(100_000), ["10.0.0.1:6783"]);
    assert_eq!(w.targets.active(), 2);
}

#[test]
fn forget_and_replace() {
    let mut w = World::new(0);
    w.connect(0, &["10.0.0.1", "10.0.0.2"]);
    w.dials(0);
    w.targets
        .forget(&["10.0.0.1:6783".to_owned(), "10.0.0.2".to_owned(), "x".to_owned()]);
    assert_eq!(
        w.targets.direct().collect::<Vec<_>>(),
        ["10.0.0.1"],
        "the text counts, not the address"
    );
    w.fails(at(0), "10.0.0.2:6783", Ending::NotMade);
    w.dials(0);
    assert_eq!(w.state("10.0.0.2:6783"), None);
    w.targets.connect(at(1), vec![direct("10.0.0.3")], true);
    assert_eq!(w.targets.direct().collect::<Vec<_>>(), ["10.0.0.3"]);
}

#[test]
fn the_limit_is_checked_before_dialling() {
    let mut w = World::new(1);
    w.links.push(link("10.0.0.9:6783", true, 9));
    w.connect(0, &["10.0.0.1"]);
    assert_eq!(w.dials(0), [""; 0]);
    assert!(w.targets.next_try().unwrap() >= at(1));
    let (_, target) = w.targets.iter().next().unwrap();
    assert_eq!(target.error.as_deref(), Some("Connection limit reached (1)"));
}

#[test]
fn what_gossip_can_make_us_dial_is_bounded() {
    let mut w = World::new(0);
    let found: BTreeSet<SocketAddr> = (0..10_000_u32)
        .map(|n| SocketAddr::from(((n + (10 << 24)).to_be_bytes(), 1)))
        .collect();
    w.connect(0, &["192.0.2.1"]);
    let dials = w.targets.refresh(at(0), &[], found.clone(), &mut w.rng);
    assert_eq!(dials.len(), MAX_ATTEMPTS + 1);
    assert!(dials.contains(&addr("192.0.2.1:6783")));
    assert!(w.targets.targets.len() <= MAX_DISCOVERED + 1);
    assert!(w.targets.refresh(at(60), &[], found, &mut w.rng).is_empty());
}

#[test]
fn addresses_from_the_topology() {
    let shown = |text, out| discovered(text, out, PORT).map(|a| a.to_string());
    assert_eq!(shown("10.0.0.1:7000", true).as_deref(), Some("10.0.0.1:7000"));
    assert_eq!(
        shown("10.0.0.1:40123", false).as_deref(),
        Some("10.0.0.1:6783"),
        "theirs is ephemeral"
    );
    assert_eq!(
        shown("[::ffff:10.0.0.1]:7000", true).as_deref(),
        Some("10.0.0.1:7000")
    );
    assert_eq!(shown("[fd00::1]:7000", true).as_deref(), Some("[fd00::1]:7000"));
    for bad in [
        "",
        "host:6783",
        "10.0.0.1",
        "0.0.0.0:1",
        "224.0.0.1:1",
        "255.255.255.255:1",
        "[::]:1",
        "10.0.0.1:0",
    ] {
        assert_eq!(shown(bad, true), None, "{bad}");
    }
}

#[test]
fn a_direct_peer_that_has_moved_is_dialled_where_it_is() {
    let mut w = World::new(0);
    let named = |ip: &str| ResolvedPeer {
        text: "host".to_owned(),
        addr: SocketAddr::new(ip.parse().unwrap(), 0),
        port_given: false,
    };
    w.targets.connect(at(0), vec![named("10.0.0.1")], false);
    assert_eq!(w.dials(0), ["10.0.0.1:6783"]);
    let texts = |w: &World, text: &str| w.targets.direct_at(addr(text)).count();
    assert_eq!((texts(&w, "10.0.0.1:6783"), texts(&w, "10.0.0.2:6783")), (1, 0));
    w.targets.moved(&named("10.0.0.2"));
    w.fails(at(1), "10.0.0.1:6783", Ending::NotMade);
    assert_eq!(w.dials(1), ["10.0.0.2:6783"], "at once");
    assert_eq!(w.state("10.0.0.1:6783"), None, "and no longer where it was");
    assert!(w.targets.is_direct(addr("10.0.0.2:6783")));
    w.targets.forget(&["host".to_owned()]);
    w.targets.moved(&named("10.0.0.3"));
    assert_eq!(w.targets.direct().count(), 0);
}
