//! One name with one address: who it is, and which of two versions of it counts (control.md 2.1).

use std::net::Ipv4Addr;
use std::sync::Arc;

use super::zone;
use crate::ipam::address::Address;
use crate::mesh::name::PeerName;
use crate::mesh::reconcile::{Stamp, hash, mix};

/// Longest container ID, in bytes.
pub const MAX_ID: usize = 256;
/// Entries with a greater version are not taken in, so that there is always a next one.
pub const MAX_VERSION: u64 = 1 << 48;

/// What makes an entry the one that it is. Sorts in storage order: lower-cased hostname, origin, container ID,
/// address (then letter case).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id {
    /// The hostname in lower case.
    lower: Arc<str>,
    origin: PeerName,
    container: String,
    addr: Address,
    hostname: Arc<str>,
}

impl Id {
    /// `None`: not a name that can be asked for, or text that has no place in a terminal or a log.
    /// `hostname` is fully qualified, with the final dot.
    #[must_use]
    pub fn new(container: &str, origin: PeerName, addr: Address, hostname: &str) -> Option<Self> {
        let plain = |text: &str| text.bytes().all(|b| b.is_ascii_graphic());
        let valid = hostname.len() > 1 && hostname.ends_with('.') && plain(hostname);
        let fits = container.len() <= MAX_ID && !container.chars().any(char::is_control);
        if !valid || !fits || zone::wire(hostname).is_none() {
            return None;
        }
        let lower = hostname.to_ascii_lowercase();
        let hostname: Arc<str> = hostname.into();
        Some(Self {
            lower: if *lower == *hostname {
                Arc::clone(&hostname)
            } else {
                lower.into()
            },
            origin,
            container: container.to_owned(),
            addr,
            hostname,
        })
    }

    /// Where the entries of a lower-cased hostname begin in storage order.
    pub(super) fn first_of(lower: &str) -> Self {
        Self {
            lower: lower.into(),
            origin: PeerName::LEAST,
            container: String::new(),
            addr: 0,
            hostname: "".into(),
        }
    }

    /// The hostname in lower case, as it is looked up.
    #[must_use]
    pub fn lower(&self) -> &Arc<str> {
        &self.lower
    }

    /// The peer that registered it.
    #[must_use]
    pub fn origin(&self) -> PeerName {
        self.origin
    }

    /// Container ID, `weave:expose` or `weave:extern`.
    #[must_use]
    pub fn container(&self) -> &str {
        &self.container
    }

    /// The address.
    #[must_use]
    pub fn addr(&self) -> Address {
        self.addr
    }

    /// The address as such.
    #[must_use]
    pub fn ip(&self) -> Ipv4Addr {
        self.addr.into()
    }

    /// Letter case as registered.
    #[must_use]
    pub fn hostname(&self) -> &str {
        &self.hostname
    }

    /// A number for it that is the same on every host, for reconciling. That of another entry, for all practical
    /// purposes.
    pub(super) fn key(&self) -> u64 {
        let head = mix(self.origin.as_u64()) ^ u64::from(self.addr);
        let head = mix(head ^ hash(self.container.as_bytes()));
        mix(head ^ hash(self.hostname.as_bytes()))
    }

    /// The order that originals want in messages: by hostname with its letter case.
    pub(super) fn wire_order(&self) -> (&str, PeerName, &str, Address) {
        (&self.hostname, self.origin, &self.container, self.addr)
    }
}

/// Which version of an entry. The greater counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct State {
    /// Starts at 0, one more with each deletion and revival.
    pub version: u64,
    /// 0 while it lives, else the Unix time of deletion by the clock of whoever deleted it. That
    /// clock may be wrong, so it only tells versions apart; how long a tombstone stays is measured otherwise.
    pub tombstone: i64,
}

impl State {
    /// From numbers of a message; `None` if they cannot be.
    pub(super) fn new(version: u64, tombstone: i64) -> Option<Self> {
        let valid = version <= MAX_VERSION && tombstone >= 0;
        valid.then_some(Self { version, tombstone })
    }

    /// Not deleted?
    #[must_use]
    pub fn is_live(self) -> bool {
        self.tombstone == 0
    }

    pub(super) fn stamp(self) -> Stamp {
        Stamp {
            // Nothing at all is 0.
            version: self.version + 1,
            tag: match self.tombstone {
                0 => 0,
                time => mix(time.cast_unsigned()) as u32 | 1,
            },
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn id(container: &str, origin: u64, addr: Address, hostname: &str) -> Option<Id> {
        Id::new(container, PeerName::from_u64(origin).unwrap(), addr, hostname)
    }

    #[test]
    fn storage_order() {
        let mut ids = [
            id("a", 1, 1, "two.weave.local."),
            id("a", 1, 1, "ONE.weave.local."),
            id("a", 1, 1, "one.weave.local."),
            id("a", 1, 2, "One.weave.local."),
            id("b", 1, 1, "one.weave.local."),
            id("a", 2, 1, "one.weave.local."),
        ]
        .map(Option::unwrap);
        ids.sort();
        let text: Vec<String> = ids
            .iter()
            .map(|id| format!("{} {} {}", &id.hostname[..3], id.origin.as_u64(), id.container))
            .collect();
        assert_eq!(
            text,
            ["ONE 1 a", "one 1 a", "One 1 a", "one 1 b", "one 2 a", "two 1 a"]
        );
        let first = Id::first_of("one.weave.local.");
        assert!(ids.iter().all(|id| (first < *id) == (*id.lower >= *first.lower)));
    }

    #[test]
    fn names_that_cannot_be() {
        for bad in [
            "",
            ".",
            "one",
            "one..weave.",
            "o ne.",
            "on\u{e9}.",
            "one\n.",
            &format!("{}.", "a".repeat(64)),
            &"abcdefg.".repeat(40),
        ] {
            assert_eq!(id("c", 1, 1, bad), None, "{bad:?}");
        }
        assert_eq!(id(&"c".repeat(MAX_ID + 1), 1, 1, "one."), None);
        assert_eq!(id("c\x1b[2J", 1, 1, "one."), None);
        assert!(id("weave:extern", 1, 1, "_srv-1.one.").is_some());
    }

    #[test]
    fn the_greater_state_counts_and_each_has_a_stamp_of_its_own() {
        let states = [(0, 0), (1, 100), (1, 101), (2, 0), (3, 1)];
        let states = states.map(|(version, tombstone)| State { version, tombstone });
        assert!(states.is_sorted());
        let news = |a: State, b: State| a.stamp().is_news_to(Some(b.stamp()));
        for pair in states.windows(2) {
            assert!(news(pair[1], pair[0]));
        }
        assert!(!news(states[0], states[0]) && !news(states[0], states[1]));
        // To one who has nothing.
        assert!(states[0].stamp().is_news_to(Some(Stamp::default())));
    }
}
