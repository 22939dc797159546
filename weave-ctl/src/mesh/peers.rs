//! The topology table: every known peer with its connections (wire.md 4.2).

use std::collections::{BTreeMap, BTreeSet};

use super::name::PeerName;
use super::reconcile::history::History;
use super::short_ids::{Effect, ShortIds};
use super::summary::{ConnectionSummary, PeerSummary};

/// Peers kept at most, ourselves included. A short ID exists for no more than this.
pub const MAX_PEERS: usize = 4096;
/// Connections kept at most, of all peers together: a full mesh of 1000 peers has fewer.
pub const MAX_LINKS: usize = 1 << 20;
/// Longest nickname kept, in bytes; more is cut off.
pub const MAX_NICKNAME: usize = 256;
/// Longest textual address kept, in bytes; a longer one is emptied.
pub const MAX_ADDRESS: usize = 64;

/// What applying an update did.
#[derive(Debug, Default)]
pub struct Applied {
    /// Summarised peers that were news to us: to be passed on.
    pub changed: BTreeSet<PeerName>,
    /// Every summarised peer that we know now.
    pub mentioned: BTreeSet<PeerName>,
    /// Effects on the short-ID table.
    pub short_ids: Vec<Effect>,
    /// Somebody remembers an earlier incarnation of us, with this version (wire.md 4.2.5).
    pub overtake: Option<u64>,
    /// Entries left out because a bound is reached.
    pub refused: usize,
}

/// The table. One entry is our own.
#[derive(Debug)]
pub struct Peers {
    own: PeerName,
    table: BTreeMap<PeerName, PeerSummary>,
    links: usize,
    short_ids: ShortIds,
    history: BTreeMap<PeerName, History>,
}

impl Peers {
    /// A table with nobody but us.
    #[must_use]
    pub fn new(own: PeerSummary) -> Self {
        let mut short_ids = ShortIds::default();
        if let Some(id) = own.short_id {
            short_ids.claim(id, own.name);
        }
        let links = own.connections.len();
        Self {
            own: own.name,
            history: BTreeMap::from([(own.name, History::new(&own))]),
            table: BTreeMap::from([(own.name, own)]),
            links,
            short_ids,
        }
    }

    /// One peer.
    #[must_use]
    pub fn get(&self, name: PeerName) -> Option<&PeerSummary> {
        self.table.get(&name)
    }

    /// The latest changes of its record.
    #[must_use]
    pub fn history(&self, name: PeerName) -> Option<&History> {
        self.history.get(&name)
    }

    /// All of them by name.
    pub fn iter(&self) -> impl Iterator<Item = &PeerSummary> {
        self.table.values()
    }

    /// How many, ourselves included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Never true: we are always in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// May one more peer be added?
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.table.len() >= MAX_PEERS
    }

    /// Who owns which short ID.
    #[must_use]
    pub fn short_ids(&self) -> &ShortIds {
        &self.short_ids
    }

    /// `name(nickname)`, as texts show a peer.
    #[must_use]
    pub fn full_name(&self, name: PeerName) -> String {
        let nickname = self.get(name).map_or("", |p| p.nickname.as_str());
        format!("{name}({nickname})")
    }

    /// Changes our own entry and counts its version up (wire.md 1.5).
    pub fn change_own(&mut self, change: impl FnOnce(&mut PeerSummary)) {
        if let Some(own) = self.table.get_mut(&self.own) {
            let before = own.clone();
            change(own);
            own.connections.sort_by_key(|c| c.name);
            own.version = own.version.saturating_add(1);
            self.links = self.links - before.connections.len() + own.connections.len();
            if let Some(history) = self.history.get_mut(&self.own) {
                history.changed(&before, own);
            }
        }
    }

    /// Moves our own entry to another short ID.
    pub fn change_own_short_id(&mut self, id: super::name::ShortId) -> Vec<Effect> {
        let mut effects = Vec::new();
        if let Some(old) = self.get(self.own).and_then(|p| p.short_id) {
            effects.push(self.short_ids.release(old, self.own));
        }
        effects.push(self.short_ids.claim(id, self.own));
        self.change_own(|own| own.short_id = Some(id));
        effects
    }

    /// A peer that has just introduced itself; nothing happens if it is known.
    pub fn introduce(&mut self, mut peer: PeerSummary) -> Option<Effect> {
        if self.is_full() || self.table.contains_key(&peer.name) {
            return None;
        }
        cut(&mut peer.nickname, MAX_NICKNAME);
        let effect = peer.short_id.map(|id| self.short_ids.claim(id, peer.name));
        self.table.insert(peer.name, peer);
        effect
    }

    /// Will [`Self::apply`] look at the connections of this summary? Its own do not count here.
    #[must_use]
    pub fn is_news(&self, summary: &PeerSummary) -> bool {
        summary.name != self.own
            && self
                .get(summary.name)
                .is_none_or(|known| is_newer(summary, known))
    }

    /// Applies an update by the rules of wire.md 4.2.3.
    pub fn apply(&mut self, update: Vec<PeerSummary>) -> Applied {
        let mut applied = Applied::default();
        let mut new = BTreeSet::new();
        for summary in &update {
            if self.table.contains_key(&summary.name) {
                continue;
            }
            if self.is_full() {
                applied.refused += 1;
                continue;
            }
            self.table.insert(summary.name, placeholder(summary.name));
            new.insert(summary.name);
        }
        for summary in update {
            let name = summary.name;
            let Some(known) = self.table.get(&name) else {
                continue;
            };
            if name == self.own {
                if summary.uid != known.uid && summary.version >= known.version {
                    applied.overtake = applied.overtake.max(Some(summary.version));
                }
                applied.mentioned.insert(name);
                continue;
            }
            applied.mentioned.insert(name);
            if new.remove(&name) || is_newer(&summary, known) {
                self.replace(summary, &mut applied);
                applied.changed.insert(name);
            }
        }
        applied
    }

    fn replace(&mut self, mut summary: PeerSummary, applied: &mut Applied) {
        let name = summary.name;
        let (old_id, old_links) = self
            .table
            .get(&name)
            .map_or((None, 0), |p| (p.short_id, p.connections.len()));
        if old_id != summary.short_id {
            let released = old_id.map(|id| self.short_ids.release(id, name));
            let claimed = summary.short_id.map(|id| self.short_ids.claim(id, name));
            applied.short_ids.extend(released.into_iter().chain(claimed));
        }
        cut(&mut summary.nickname, MAX_NICKNAME);
        let links = std::mem::take(&mut summary.connections);
        summary.connections = self.admit_links(name, links, old_links, applied);
        self.links = self.links - old_links + summary.connections.len();
        let history = self.history.entry(name);
        match self.table.get(&name) {
            Some(old) => history.or_default().changed(old, &summary),
            None => *history.or_default() = History::new(&summary),
        }
        self.table.insert(name, summary);
    }

    /// The links that can be kept, sorted; their far ends become placeholders where unknown.
    fn admit_links(
        &mut self,
        from: PeerName,
        mut links: Vec<ConnectionSummary>,
        freed: usize,
        applied: &mut Applied,
    ) -> Vec<ConnectionSummary> {
        let given = links.len();
        links.sort_by_key(|l| l.name);
        links.dedup_by_key(|l| l.name);
        let room = (MAX_LINKS + freed).saturating_sub(self.links);
        let mut kept = Vec::with_capacity(links.len().min(room));
        for mut link in links {
            if link.name == from || kept.len() >= room {
                continue;
            }
            if !self.table.contains_key(&link.name) {
                if self.is_full() {
                    continue;
                }
                self.table.insert(link.name, placeholder(link.name));
            }
            if link.remote_addr.len() > MAX_ADDRESS {
                link.remote_addr.clear();
            }
            kept.push(link);
        }
        applied.refused += given - kept.len();
        kept
    }

    /// Removes every peer that no chain of recorded connections leads to from us, or from one that
    /// is just connecting (wire.md 4.2.6).
    pub fn collect_garbage(&mut self, connecting: Option<PeerName>) -> (Vec<PeerSummary>, Vec<Effect>) {
        let mut worklist: Vec<PeerName> = connecting
            .into_iter()
            .filter(|n| self.table.contains_key(n))
            .collect();
        worklist.push(self.own);
        let mut reached: BTreeSet<PeerName> = worklist.iter().copied().collect();
        while let Some(name) = worklist.pop() {
            for link in self.table.get(&name).map_or(&[][..], |p| &p.connections) {
                if reached.insert(link.name) {
                    worklist.push(link.name);
                }
            }
        }
        if reached.len() >= self.table.len() {
            return (Vec::new(), Vec::new());
        }
        let gone: Vec<PeerName> = self
            .table
            .keys()
            .filter(|n| !reached.contains(n))
            .copied()
            .collect();
        let removed: Vec<PeerSummary> = gone.iter().filter_map(|n| self.table.remove(n)).collect();
        let mut effects = Vec::new();
        for peer in &removed {
            self.links -= peer.connections.len();
            self.history.remove(&peer.name);
            effects.extend(peer.short_id.map(|id| self.short_ids.release(id, peer.name)));
        }
        (removed, effects)
    }
}

fn placeholder(name: PeerName) -> PeerSummary {
    PeerSummary {
        name,
        nickname: String::new(),
        uid: 0,
        version: 0,
        short_id: None,
        connections: Vec::new(),
    }
}

fn is_newer(news: &PeerSummary, known: &PeerSummary) -> bool {
    (news.version, news.uid) > (known.version, known.uid)
        || ((news.version, news.uid) == (known.version, known.uid)
            && news.short_id.is_some()
            && known.short_id.is_none())
}

/// Cuts a text to at most that many bytes, between characters.
fn cut(text: &mut String, limit: usize) {
    if text.len() > limit {
        text.truncate(text.floor_char_boundary(limit));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::name::ShortId;
    use super::*;

    fn name(n: u64) -> PeerName {
        PeerName::from_u64(n).unwrap()
    }

    fn summary(n: u64, uid: u64, version: u64, short: Option<u64>, links: &[u64]) -> PeerSummary {
        let link = |to: &u64| ConnectionSummary {
            name: name(*to),
            remote_addr: format!("10.0.0.{to}:6783"),
            outbound: true,
            established: true,
        };
        PeerSummary {
            name: name(n),
            nickname: format!("host{n}"),
            uid,
            version,
            short_id: short.and_then(ShortId::new),
            connections: links.iter().map(link).collect(),
        }
    }

    fn changed(applied: &Applied) -> Vec<u64> {
        applied.changed.iter().map(|n| n.as_u64()).collect()
    }

    #[test]
    fn only_newer_records_are_accepted() {
        let mut peers = Peers::new(summary(1, 11, 5, Some(1), &[]));
        let applied = peers.apply(vec![summary(2, 22, 3, None, &[1, 3])]);
        assert_eq!(changed(&applied), [2]);
        assert_eq!(
            (peers.get(name(3)).unwrap().uid, peers.len()),
            (0, 3),
            "3 is a placeholder"
        );
        for (uid, version, short, accepted) in [
            (22, 2, None, false),
            (22, 3, None, false),
            (21, 3, Some(7), false),
            (22, 3, Some(7), true),
            (22, 3, Some(8), false),
            (23, 3, None, true),
            (1, 4, None, true),
        ] {
            let applied = peers.apply(vec![summary(2, uid, version, short, &[])]);
            assert_eq!(
                !applied.changed.is_empty(),
                accepted,
                "uid {uid} version {version} short {short:?}"
            );
            assert!(applied.mentioned.contains(&name(2)));
        }
        assert!(
            peers.get(name(2)).unwrap().connections.is_empty(),
            "the whole list is replaced"
        );
        assert_eq!(
            peers.short_ids().owner(ShortId::new(7).unwrap()),
            None,
            "a lost short ID is released"
        );
    }

    #[test]
    fn news_about_ourselves() {
        let mut peers = Peers::new(summary(1, 11, 5, None, &[]));
        assert_eq!(
            peers.apply(vec![summary(1, 11, 99, None, &[])]).overtake,
            None,
            "the same incarnation"
        );
        assert_eq!(
            peers.apply(vec![summary(1, 12, 4, None, &[])]).overtake,
            None,
            "older than we are"
        );
        assert_eq!(peers.apply(vec![summary(1, 12, 5, None, &[])]).overtake, Some(5));
        assert_eq!(peers.get(name(1)).unwrap().uid, 11);
    }

    #[test]
    fn unreachable_peers_are_removed() {
        let mut peers = Peers::new(summary(1, 11, 0, None, &[2]));
        peers.introduce(summary(2, 22, 0, None, &[]));
        peers.apply(vec![
            summary(2, 22, 1, None, &[3]),
            summary(3, 3, 1, Some(3), &[]),
            summary(4, 4, 1, Some(4), &[1]),
        ]);
        let (gone, effects) = peers.collect_garbage(None);
        assert_eq!(
            gone.iter().map(|p| p.name).collect::<Vec<_>>(),
            [name(4)],
            "4 leads to us, but we not to it"
        );
        assert_eq!(effects.len(), 1);
        assert_eq!(peers.short_ids().owner(ShortId::new(4).unwrap()), None);
        assert!(peers.collect_garbage(None).0.is_empty());
    }

    #[test]
    fn everything_learned_is_bounded() {
        let mut peers = Peers::new(summary(1, 11, 0, None, &[]));
        let mut long = summary(2, 1, 1, None, &[2, 3, 3]);
        long.nickname = "é".repeat(1000);
        for link in &mut long.connections {
            link.remote_addr = "9".repeat(65);
        }
        assert_eq!(
            peers.apply(vec![long]).refused,
            1 + 1,
            "a link to itself, and one given twice"
        );
        let kept = peers.get(name(2)).unwrap();
        assert_eq!((kept.nickname.len(), kept.connections.len()), (256, 1));
        assert_eq!(kept.connections[0].remote_addr, "");

        let many: Vec<u64> = (10..6000).collect();
        peers.apply(vec![summary(2, 1, 2, None, &many)]);
        assert_eq!(peers.len(), MAX_PEERS);
        assert!(peers.apply(vec![summary(9999, 1, 1, None, &[])]).refused > 0);
        for n in 10..2000 {
            peers.apply(vec![summary(n, 1, 1, None, &many[..1000])]);
        }
        assert!(peers.links <= MAX_LINKS);
        assert_eq!(
            peers.links,
            peers.iter().map(|p| p.connections.len()).sum::<usize>()
        );
    }
}
