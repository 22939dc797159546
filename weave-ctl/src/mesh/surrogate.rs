//! Channels that we do not have, relayed for others (wire.md 4.1 "Unknown channel").

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::Now;

/// How long a payload is remembered, and a channel without traffic: one gossip interval.
pub const MEMORY: Duration = Duration::from_secs(30);
/// Channels relayed at a time at most.
pub const MAX_CHANNELS: usize = 64;
/// Longest channel name relayed, in bytes.
pub const MAX_NAME: usize = 256;
/// Payloads remembered at most, of all channels.
pub const MAX_REMEMBERED: usize = 4096;
/// Their bytes at most; the newest payload is remembered whatever its size.
pub const MAX_REMEMBERED_BYTES: usize = 32 << 20;

type Seen = (Arc<str>, Arc<[u8]>);

/// Channel names in use, and what came by lately.
#[derive(Debug, Default)]
pub struct Surrogates {
    channels: BTreeMap<Arc<str>, Now>,
    seen: HashSet<Seen>,
    order: VecDeque<(Now, Seen)>,
    bytes: usize,
}

impl Surrogates {
    /// The channel's name, if it may be relayed; the reason for not doing so is a bound.
    pub fn channel(&mut self, now: Now, name: &str) -> Option<Arc<str>> {
        if let Some((name, used)) = self
            .channels
            .get_key_value(name)
            .map(|(n, u)| (Arc::clone(n), *u))
        {
            if used != now {
                self.channels.insert(Arc::clone(&name), now);
            }
            return Some(name);
        }
        self.channels
            .retain(|_, used| now.saturating_sub(*used) <= MEMORY);
        if self.channels.len() >= MAX_CHANNELS || name.len() > MAX_NAME {
            return None;
        }
        let name: Arc<str> = name.into();
        self.channels.insert(Arc::clone(&name), now);
        Some(name)
    }

    /// Gossip of that channel: the payload to pass on, if it was not seen lately.
    pub fn unseen(&mut self, now: Now, channel: &Arc<str>, payload: &[u8]) -> Option<Arc<[u8]>> {
        let seen: Seen = (Arc::clone(channel), payload.into());
        if self.seen.contains(&seen) {
            return None;
        }
        while let Some((at, _)) = self.order.front() {
            let full =
                self.order.len() >= MAX_REMEMBERED || self.bytes + payload.len() > MAX_REMEMBERED_BYTES;
            if !full && now.saturating_sub(*at) <= MEMORY {
                break;
            }
            if let Some((_, oldest)) = self.order.pop_front() {
                self.bytes -= oldest.1.len();
                self.seen.remove(&oldest);
            }
        }
        self.bytes += payload.len();
        self.seen.insert(seen.clone());
        self.order.push_back((now, seen.clone()));
        Some(seen.1)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Now {
        Duration::from_secs(seconds)
    }

    #[test]
    fn remembers_for_one_gossip_interval() {
        let mut table = Surrogates::default();
        let x = table.channel(at(0), "x").unwrap();
        let y = table.channel(at(0), "y").unwrap();
        assert_eq!(table.unseen(at(0), &x, b"1").as_deref(), Some(&b"1"[..]));
        assert!(table.unseen(at(0), &y, b"1").is_some(), "another channel");
        assert!(table.unseen(at(30), &x, b"1").is_none());
        assert!(
            table.unseen(at(31), &x, b"1").is_none(),
            "nothing stored meanwhile"
        );
        assert!(table.unseen(at(31), &x, b"2").is_some());
        assert!(
            table.unseen(at(31), &x, b"1").is_some(),
            "forgotten when 2 was stored"
        );
    }

    #[test]
    fn is_bounded() {
        let mut table = Surrogates::default();
        assert!(table.channel(at(0), &"n".repeat(257)).is_none());
        let relayed = |table: &mut Surrogates, now| {
            (0..100)
                .filter(|n| table.channel(now, &format!("{now:?} {n}")).is_some())
                .count()
        };
        assert_eq!(relayed(&mut table, at(0)), MAX_CHANNELS);
        assert_eq!(relayed(&mut table, at(30)), 0);
        assert_eq!(relayed(&mut table, at(31)), MAX_CHANNELS);
        let x = table.channel(at(100), "x").unwrap();
        for n in 0..10_000_u32 {
            assert!(table.unseen(at(100), &x, &n.to_be_bytes()).is_some());
        }
        assert_eq!(
            (table.order.len(), table.seen.len()),
            (MAX_REMEMBERED, MAX_REMEMBERED)
        );
        for n in 0..4 {
            assert!(table.unseen(at(100), &x, &vec![n; 10 << 20]).is_some());
        }
        assert!(table.bytes <= MAX_REMEMBERED_BYTES);
        assert_eq!(
            table.bytes,
            table.order.iter().map(|(_, s)| s.1.len()).sum::<usize>()
        );
    }
}
