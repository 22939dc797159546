//! All names of the cluster: what we registered, what others did, and what was deleted lately (control.md 2.1-2.3).
//!
//! Tombstones keep a deleted name from coming back with old gossip. Each stays for half an hour by our
//! monotonic clock, counted from the age that it had when we heard of it: no two clocks need to agree.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::entry::{Id, State};
use crate::ipam::address::Address;
use crate::mesh::Now;
use crate::mesh::channel::Outlet;
use crate::mesh::name::PeerName;

/// Name of the mesh channel.
pub const CHANNEL: &str = "nameserver";
/// How long a tombstone stays (control.md 2.2).
pub const TOMBSTONE_LIFE: Duration = Duration::from_secs(1800);
/// Between two looks at the tombstones.
const SWEEP: Duration = Duration::from_secs(60);
/// How long we keep what we heard of a peer that is not known yet.
const STRANGER_LIFE: Duration = Duration::from_secs(60);
/// Entries of one peer at most, tombstones included.
pub const MAX_PER_ORIGIN: usize = 20_000;
/// Entries of all other peers at most.
pub const MAX_ENTRIES: usize = 100_000;
/// Entries of unknown peers at most.
pub const MAX_STRANGERS: usize = 20_000;

/// Some entries.
pub type Ids = BTreeSet<Arc<Id>>;

/// A name that is not registered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It cannot be asked for.
    #[error("invalid name \"{0}\"")]
    Invalid(String),
    /// [`MAX_PER_ORIGIN`] is reached.
    #[error("too many names: this host has {0}, deleted ones of the last 30 minutes included")]
    TooMany(usize),
}

/// Which of our entries are meant: all that agree with what is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Container ID.
    pub container: Option<String>,
    /// Address.
    pub addr: Option<Address>,
    /// Name as for [`Names::register`]; letter case counts.
    pub name: Option<String>,
}

/// For whom answers change.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Lower-cased hostnames.
    pub names: BTreeSet<Arc<str>>,
    /// For reverse lookups.
    pub addrs: BTreeSet<Address>,
}

/// An entry as somebody else tells it.
#[derive(Debug, Clone)]
pub(super) struct Heard {
    pub id: Id,
    pub state: State,
    /// For how long it has been deleted, if it is.
    pub age: Duration,
}

/// What became of entries that were heard.
#[derive(Debug, Default)]
pub(super) struct News {
    /// New to us.
    pub merged: Ids,
    /// Of ours, and others had it wrong: they are to be told.
    pub corrected: Ids,
    /// All that we have now.
    pub present: Ids,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    state: State,
    /// When a tombstone goes.
    expires: Now,
}

#[derive(Debug, Clone, Copy)]
struct Stranger {
    held: Held,
    until: Now,
}

/// See the module's description.
#[derive(Debug)]
pub struct Names {
    us: PeerName,
    domain: String,
    entries: BTreeMap<Arc<Id>, Held>,
    by_key: BTreeMap<u64, Arc<Id>>,
    by_addr: BTreeMap<Address, Ids>,
    per_origin: BTreeMap<PeerName, usize>,
    /// Of peers that are not known: they may be about to be.
    strangers: BTreeMap<Arc<Id>, Stranger>,
    /// Keys that neighbours have not been told of.
    pub(super) changed: BTreeSet<u64>,
    touched: Touched,
    /// The time as last told.
    latest: Now,
    next_sweep: Now,
    skipped: u64,
    pub(super) told: Option<Now>,
    /// Clocks of neighbouring originals minus ours, in seconds.
    pub(super) clocks: BTreeMap<PeerName, i64>,
}

/// When a name was deleted, as others are told.
fn tombstone(out: &dyn Outlet) -> i64 {
    out.unix_now().max(1)
}

impl Names {
    /// No names yet. The domain is given with or without its final dot.
    #[must_use]
    pub fn new(us: PeerName, domain: &str) -> Self {
        let domain = domain.trim_matches('.');
        Self {
            us,
            domain: format!("{domain}."),
            entries: BTreeMap::new(),
            by_key: BTreeMap::new(),
            by_addr: BTreeMap::new(),
            per_origin: BTreeMap::new(),
            strangers: BTreeMap::new(),
            changed: BTreeSet::new(),
            touched: Touched::default(),
            latest: Now::ZERO,
            next_sweep: SWEEP,
            skipped: 0,
            told: None,
            clocks: BTreeMap::new(),
        }
    }

    /// The local domain, with its final dot.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// All entries in storage order, tombstones included.
    pub fn entries(&self) -> impl Iterator<Item = (&Id, State)> {
        self.entries.iter().map(|(id, held)| (&**id, held.state))
    }

    /// Live entries of a lower-cased hostname, in storage order.
    pub fn answers<'a>(&'a self, lower: &'a str) -> impl Iterator<Item = &'a Id> {
        self.entries
            .range::<Id, _>(Id::first_of(lower)..)
            .take_while(move |(id, _)| **id.lower() == *lower)
            .filter(|(_, held)| held.state.is_live())
            .map(|(id, _)| &**id)
    }

    /// The first live entry with that address, in storage order.
    #[must_use]
    pub fn reverse(&self, addr: Address) -> Option<&Id> {
        let ids = self.by_addr.get(&addr)?;
        let live = |id: &&Arc<Id>| self.entries.get(*id).is_some_and(|held| held.state.is_live());
        ids.iter().find(live).map(|id| &**id)
    }

    /// How many entries could not be used.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    pub(super) fn skip(&mut self, count: u64) {
        self.skipped = self.skipped.saturating_add(count);
    }

    /// What has changed since the last call.
    pub fn take_touched(&mut self) -> Touched {
        std::mem::take(&mut self.touched)
    }

    /// Whether these peers can be reached has changed, and with it how their names are answered.
    pub fn touch_origins(&mut self, origins: &BTreeSet<PeerName>) {
        let theirs = self.entries.keys().filter(|id| origins.contains(&id.origin()));
        self.touched.names.extend(theirs.map(|id| Arc::clone(id.lower())));
    }

    /// The name as it is kept; `None`: outside our domain (control.md 2.3).
    fn qualified(&self, name: &str) -> Option<String> {
        let dotted = format!("{}.", name.strip_suffix('.').unwrap_or(name));
        let is_domain = dotted.eq_ignore_ascii_case(&self.domain);
        let head = dotted.len().checked_sub(self.domain.len());
        let inside = head
            .and_then(|at| dotted.split_at_checked(at))
            .is_some_and(|(head, tail)| head.ends_with('.') && tail.eq_ignore_ascii_case(&self.domain));
        if is_domain || inside {
            return Some(dotted);
        }
        let bare = dotted.trim_end_matches('.');
        (!bare.is_empty() && !bare.contains('.')).then(|| format!("{dotted}{}", self.domain))
    }

    /// Registers a name of ours. One outside our domain is ignored, which the log tells.
    ///
    /// # Errors
    /// See [`NameError`].
    pub fn register(
        &mut self,
        out: &mut dyn Outlet,
        container: &str,
        addr: Address,
        name: &str,
    ) -> Result<(), NameError> {
        let Some(hostname) = self.qualified(name) else {
            tracing::info!(
                "[nameserver {}] Ignoring registration {name} {} {container} (not a subdomain of {})",
                self.us,
                std::net::Ipv4Addr::from(addr),
                self.domain
            );
            return Ok(());
        };
        let id = Id::new(container, self.us, addr, &hostname);
        let id = id.ok_or(NameError::Invalid(hostname))?;
        let (id, state) = match self.held(&id) {
            Some((_, held)) if held.state.is_live() => return Ok(()),
            Some((id, held)) => {
                let version = held.state.version + 1;
                (
                    id,
                    State {
                        version,
                        tombstone: 0,
                    },
                )
            }
            None if self.is_full(self.us) => return Err(NameError::TooMany(MAX_PER_ORIGIN)),
            None => (Arc::new(id), State::default()),
        };
        self.set(&id, state, Now::ZERO);
        self.tell(out, Ids::from([id]));
        Ok(())
    }

    /// Deletes names of ours. Returns how many.
    pub fn remove(&mut self, out: &mut dyn Outlet, filter: &Filter) -> usize {
        let name = match &filter.name {
            None => None,
            Some(name) => match self.qualified(name) {
                Some(name) => Some(name),
                None => return 0,
            },
        };
        self.bury(out, |id| {
            filter.container.as_deref().is_none_or(|c| c == id.container())
                && filter.addr.is_none_or(|addr| addr == id.addr())
                && name.as_deref().is_none_or(|name| name == id.hostname())
        })
    }

    /// A container has ended: its names of ours go.
    pub fn container_died(&mut self, out: &mut dyn Outlet, container: &str) {
        self.bury(out, |id| id.container() == container);
    }

    /// Of the containers that `is_docker` tells by their IDs only these run.
    pub fn containers_died_except(
        &mut self,
        out: &mut dyn Outlet,
        running: &[String],
        is_docker: impl Fn(&str) -> bool,
    ) {
        let running: BTreeSet<&str> = running.iter().map(String::as_str).collect();
        self.bury(out, |id| {
            is_docker(id.container()) && !running.contains(id.container())
        });
    }

    fn bury(&mut self, out: &mut dyn Outlet, which: impl Fn(&Id) -> bool) -> usize {
        let ours =
            |(id, held): &(&Arc<Id>, &Held)| id.origin() == self.us && held.state.is_live() && which(id);
        let doomed = self.entries.iter().filter(ours);
        let doomed: Vec<(Arc<Id>, u64)> = doomed
            .map(|(id, held)| (Arc::clone(id), held.state.version + 1))
            .collect();
        self.latest = out.now();
        for (id, version) in &doomed {
            let tombstone = tombstone(out);
            let state = State {
                version: *version,
                tombstone,
            };
            self.set(id, state, out.now() + TOMBSTONE_LIFE);
        }
        let count = doomed.len();
        self.tell(out, doomed.into_iter().map(|(id, _)| id).collect());
        count
    }

    /// Tells all others of changes.
    pub(super) fn tell(&mut self, out: &mut dyn Outlet, ids: Ids) {
        if !ids.is_empty() {
            self.changed.extend(ids.iter().map(|id| id.key()));
            out.broadcast(super::gossip::some(ids));
        }
    }

    fn held(&self, id: &Id) -> Option<(Arc<Id>, Held)> {
        let found = self.entries.get_key_value(id);
        found.map(|(id, held)| (Arc::clone(id), *held))
    }

    pub(super) fn state(&self, id: &Id) -> Option<State> {
        self.entries.get(id).map(|held| held.state)
    }

    pub(super) fn of_key(&self, key: u64) -> Option<&Arc<Id>> {
        self.by_key.get(&key)
    }

    /// For how long a name has been deleted, to within a tick; zero while it lives.
    pub(super) fn age(&self, id: &Id) -> Duration {
        let dead = self.entries.get(id).filter(|held| !held.state.is_live());
        dead.map_or(Duration::ZERO, |held| {
            TOMBSTONE_LIFE.saturating_sub(held.expires.saturating_sub(self.latest))
        })
    }

    fn is_full(&self, origin: PeerName) -> bool {
        let of = |peer| self.per_origin.get(&peer).copied().unwrap_or_default();
        let others = self.entries.len() - of(self.us);
        of(origin) >= MAX_PER_ORIGIN || (origin != self.us && others >= MAX_ENTRIES)
    }

    fn set(&mut self, id: &Arc<Id>, state: State, expires: Now) {
        let before = self.entries.insert(Arc::clone(id), Held { state, expires });
        if before.is_none() {
            self.by_key.insert(id.key(), Arc::clone(id));
            self.by_addr.entry(id.addr()).or_default().insert(Arc::clone(id));
            *self.per_origin.entry(id.origin()).or_default() += 1;
        }
        if before.is_some_and(|held| held.state.is_live()) != state.is_live() {
            self.touch(id);
        }
    }

    fn touch(&mut self, id: &Id) {
        self.touched.names.insert(Arc::clone(id.lower()));
        self.touched.addrs.insert(id.addr());
    }

    fn drop_all(&mut self, which: impl Fn(&Id, Held) -> bool) {
        let gone: Vec<(Arc<Id>, Held)> = self.entries.extract_if(.., |id, held| which(id, *held)).collect();
        for (id, held) in gone {
            if self.by_key.get(&id.key()) == Some(&id) {
                self.by_key.remove(&id.key());
            }
            self.changed.remove(&id.key());
            if let Some(ids) = self.by_addr.get_mut(&id.addr()) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.by_addr.remove(&id.addr());
                }
            }
            if let Some(count) = self.per_origin.get_mut(&id.origin()) {
                *count -= 1;
                if *count == 0 {
                    self.per_origin.remove(&id.origin());
                }
            }
            if held.state.is_live() {
                self.touch(&id);
            }
        }
    }

    /// Takes in what somebody tells (control.md 2.2, steps 2 to 4).
    pub(super) fn hear(&mut self, out: &dyn Outlet, heard: Heard, news: &mut News) {
        let Heard {
            id,
            mut state,
            mut age,
        } = heard;
        let now = out.now();
        self.latest = now;
        let held = self.held(&id);
        let mut corrects = false;
        if id.origin() == self.us {
            // Only we change our entries: whoever has another version has it from an earlier life of ours.
            if let Some((id, held)) = held {
                let differs = state.tombstone != held.state.tombstone;
                if state.version > held.state.version || (state.version == held.state.version && differs) {
                    let version = state.version + 1;
                    self.set(
                        &id,
                        State {
                            version,
                            ..held.state
                        },
                        held.expires,
                    );
                    news.corrected.insert(Arc::clone(&id));
                }
                news.present.insert(id);
                return;
            }
            if state.is_live() {
                state = State {
                    version: state.version + 1,
                    tombstone: tombstone(out),
                };
                age = Duration::ZERO;
                corrects = true;
            }
        } else if !out.is_known(id.origin()) {
            return self.hear_of_stranger(now, id, state, age);
        }
        let expires = now + TOMBSTONE_LIFE.saturating_sub(age);
        let id = match held {
            Some((id, held)) if state > held.state => {
                // Others may have missed it as long as we did.
                let late = held.state.is_live() && !state.is_live();
                self.set(&id, state, if late { now + TOMBSTONE_LIFE } else { expires });
                news.merged.insert(Arc::clone(&id));
                id
            }
            Some((id, _)) => id,
            None if !state.is_live() && expires <= now => return,
            None if self.is_full(id.origin()) => return self.skip(1),
            None => {
                let id = Arc::new(id);
                self.set(&id, state, expires);
                let list = if corrects {
                    &mut news.corrected
                } else {
                    &mut news.merged
                };
                list.insert(Arc::clone(&id));
                id
            }
        };
        news.present.insert(id);
    }

    /// A peer that is not known has left, or has come and the topology does not tell yet.
    fn hear_of_stranger(&mut self, now: Now, id: Id, state: State, age: Duration) {
        let expires = now + TOMBSTONE_LIFE.saturating_sub(age);
        let held = Held { state, expires };
        let room = self.strangers.len() < MAX_STRANGERS;
        match self.strangers.get_mut(&id) {
            Some(known) if state > known.held.state => known.held = held,
            Some(_) => {}
            None if room => {
                let until = now + STRANGER_LIFE;
                self.strangers.insert(Arc::new(id), Stranger { held, until });
            }
            None => self.skip(1),
        }
    }

    /// Takes in what was heard of peers that are known now.
    pub fn adopt_strangers(&mut self, out: &mut dyn Outlet) {
        let now = out.now();
        self.strangers.retain(|_, stranger| stranger.until > now);
        let known = |id: &Arc<Id>, _: &mut Stranger| out.is_known(id.origin());
        let known: Vec<(Arc<Id>, Stranger)> = self.strangers.extract_if(.., known).collect();
        let mut news = News::default();
        for (id, Stranger { held, .. }) in known {
            let heard = Heard {
                id: Arc::unwrap_or_clone(id),
                state: held.state,
                age: TOMBSTONE_LIFE.saturating_sub(held.expires.saturating_sub(now)),
            };
            self.hear(out, heard, &mut news);
        }
        self.spread(out, news.merged);
        self.tell(out, news.corrected);
    }

    fn spread(&mut self, out: &mut dyn Outlet, ids: Ids) {
        if !ids.is_empty() {
            self.changed.extend(ids.iter().map(|id| id.key()));
            out.gossip(super::gossip::some(ids));
        }
    }

    /// From time to time: old tombstones go.
    pub fn tick(&mut self, out: &mut dyn Outlet) {
        self.adopt_strangers(out);
        let now = out.now();
        self.latest = now;
        if now >= self.next_sweep {
            self.next_sweep = now + SWEEP;
            self.drop_all(|_, held| !held.state.is_live() && held.expires <= now);
        }
    }

    /// A peer has left: its names go at once, without tombstones.
    pub(super) fn forget(&mut self, peer: PeerName) {
        self.drop_all(|id, _| id.origin() == peer);
        self.strangers.retain(|id, _| id.origin() != peer);
    }

    /// Entries, those held aside included: for tests of growth.
    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        let all = self.entries.len();
        assert_eq!(self.by_key.len(), all);
        assert_eq!(self.by_addr.values().map(BTreeSet::len).sum::<usize>(), all);
        assert_eq!(self.per_origin.values().sum::<usize>(), all);
        all + self.strangers.len()
    }
}

#[cfg(test)]
#[path = "names_tests.rs"]
mod tests;
