//! Which links of a record changed in which version, so that a neighbour can be told these alone.

use std::collections::{BTreeSet, VecDeque};

use crate::mesh::name::PeerName;
use crate::mesh::summary::PeerSummary;

/// Links remembered at most, per record.
pub const MAX_CHANGES: usize = 128;

/// The latest changes of one record within one incarnation of its peer.
#[derive(Debug, Clone, Default)]
pub struct History {
    uid: u64,
    /// Nothing is known of how versions before this one differ from it.
    floor: u64,
    /// In order of versions, each link once.
    changes: VecDeque<(u64, PeerName)>,
}

impl History {
    /// What begins with a record learnt as a whole.
    #[must_use]
    pub fn new(record: &PeerSummary) -> Self {
        Self {
            uid: record.uid,
            floor: record.version,
            changes: VecDeque::new(),
        }
    }

    /// The record became another one.
    pub fn changed(&mut self, old: &PeerSummary, new: &PeerSummary) {
        if self.uid != new.uid || old.uid != new.uid || old.version >= new.version {
            *self = Self::new(new);
            return;
        }
        let (mut was, mut is) = (
            old.connections.iter().peekable(),
            new.connections.iter().peekable(),
        );
        loop {
            let name = match (was.peek(), is.peek()) {
                (None, None) => break,
                (Some(a), None) => a.name,
                (None, Some(b)) => b.name,
                (Some(a), Some(b)) => a.name.min(b.name),
            };
            if was.next_if(|l| l.name == name) != is.next_if(|l| l.name == name) {
                self.log(new.version, name);
            }
        }
    }

    fn log(&mut self, version: u64, link: PeerName) {
        if let Some(earlier) = self.changes.iter().position(|(_, name)| *name == link) {
            self.changes.remove(earlier);
        }
        self.changes.push_back((version, link));
        if self.changes.len() > MAX_CHANGES
            && let Some((lost, _)) = self.changes.pop_front()
        {
            self.floor = self.floor.max(lost);
        }
    }

    /// The links that differ from what they were in that version; `None` if that is too long ago.
    #[must_use]
    pub fn since(&self, uid: u64, version: u64) -> Option<BTreeSet<PeerName>> {
        let known = uid == self.uid && version >= self.floor;
        let later = self.changes.iter().rev().take_while(|(at, _)| *at > version);
        known.then(|| later.map(|(_, name)| *name).collect())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::mesh::summary::ConnectionSummary;

    fn record(version: u64, links: &[(u64, bool)]) -> PeerSummary {
        let link = |(to, established): &(u64, bool)| ConnectionSummary {
            name: PeerName::from_u64(*to).unwrap(),
            remote_addr: String::new(),
            outbound: true,
            established: *established,
        };
        PeerSummary {
            name: PeerName::from_u64(1).unwrap(),
            nickname: String::new(),
            uid: 7,
            version,
            short_id: None,
            connections: links.iter().map(link).collect(),
        }
    }

    fn since(history: &History, version: u64) -> Option<Vec<u64>> {
        let names = history.since(7, version)?;
        Some(names.iter().map(|n| n.as_u64()).collect())
    }

    #[test]
    fn tells_what_changed_since() {
        let states = [
            record(3, &[(2, true), (4, true)]),
            record(5, &[(2, true), (3, false), (4, true)]),
            record(6, &[(3, true), (4, true)]),
            record(9, &[(3, true), (4, true), (5, false)]),
        ];
        let mut history = History::new(&states[0]);
        for pair in states.windows(2) {
            history.changed(&pair[0], &pair[1]);
        }
        assert_eq!(since(&history, 2), None, "before the beginning");
        assert_eq!(since(&history, 3), Some(vec![2, 3, 5]));
        assert_eq!(since(&history, 5), Some(vec![2, 3, 5]));
        assert_eq!(since(&history, 6), Some(vec![5]));
        assert_eq!(since(&history, 9), Some(vec![]));
        assert_eq!(history.since(8, 9), None, "another incarnation");
        let restarted = PeerSummary {
            uid: 8,
            ..record(10, &[])
        };
        history.changed(&states[3], &restarted);
        assert_eq!(
            (since(&history, 9), history.since(8, 10)),
            (None, Some(BTreeSet::new()))
        );
    }

    #[test]
    fn forgets_what_is_long_ago() {
        let mut history = History::new(&record(0, &[]));
        let mut links = Vec::new();
        for n in 1..=200 {
            let before = record(n - 1, &links);
            links.push((n + 1, true));
            history.changed(&before, &record(n, &links));
        }
        assert_eq!(since(&history, 71), None);
        assert_eq!(since(&history, 72).unwrap().len(), MAX_CHANGES);
        assert_eq!(since(&history, 199), Some(vec![201]));
    }
}
