//! What the threads look up: replaced as a whole by the loop, taken over by each thread between two
//! batches, so that no packet takes a lock.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::counters::TrafficCells;
use super::seal::{Opener, Sealer};
use super::{Limits, LinkState, NewLink, Tables};
use crate::mesh::name::PeerName;
use crate::mesh::{ConnId, Now};

/// One connection as the threads see it.
#[derive(Clone)]
pub struct Link {
    /// The loop's number for it.
    pub conn: ConnId,
    /// Who is at the other end.
    pub remote: PeerName,
    /// Plain data only from the neighbour's own address.
    pub strict_source: bool,
    /// What changes.
    pub state: LinkState,
    /// What all versions of this link have in common.
    pub shared: Arc<Shared>,
}

/// What outlives a change of a link's state.
pub struct Shared {
    /// `None`: in clear.
    pub sealer: Option<Sealer>,
    /// `None`: in clear.
    pub opener: Option<Opener>,
    /// Counts.
    pub traffic: TrafficCells,
    /// Reports to the loop in the current period, with the period in the upper half: because of what
    /// anybody may have sent, and of what the neighbour has sent.
    reports: [AtomicU64; 2],
}

/// Most reports of each kind to the loop about one link in [`REPORT_PERIOD_MS`]: in clear, a stranger
/// may choose how many special frames come.
const REPORTS: u64 = 32;
/// Milliseconds.
const REPORT_PERIOD_MS: u64 = 100;

impl Link {
    /// A link as added.
    #[must_use]
    pub fn new(link: NewLink, state: LinkState) -> Self {
        let session = link.session.as_ref();
        Self {
            conn: link.conn,
            remote: link.remote,
            strict_source: link.strict_source,
            state,
            shared: Arc::new(Shared {
                sealer: session.map(Sealer::new),
                opener: session.map(Opener::new),
                traffic: TrafficCells::default(),
                reports: Default::default(),
            }),
        }
    }

    /// Its sizes.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.state.limits
    }

    /// Packets on it are encrypted.
    #[must_use]
    pub fn sealed(&self) -> bool {
        self.shared.sealer.is_some()
    }

    /// The loop may be told one more thing about it. Strangers (not `trusted`) do not use up what the
    /// neighbour may say. Threads that race may exceed the limit by a few.
    #[must_use]
    pub fn may_report(&self, now: Now, trusted: bool) -> bool {
        let [strangers, neighbour] = &self.shared.reports;
        let reports = if trusted { neighbour } else { strangers };
        let period = now.as_millis() as u64 / REPORT_PERIOD_MS + 1;
        let before = reports.load(Ordering::Relaxed);
        let count = if before >> 32 == period & 0xffff_ffff {
            before & 0xffff_ffff
        } else {
            0
        };
        reports.store(period << 32 | (count + 1).min(REPORTS + 1), Ordering::Relaxed);
        count < REPORTS
    }
}

/// All of it at one moment.
#[derive(Clone, Default)]
pub struct Snapshot {
    /// All links.
    pub links: HashMap<ConnId, Arc<Link>>,
    /// The link on which we receive from a neighbour: the newest.
    pub by_peer: HashMap<PeerName, Arc<Link>>,
    /// Where peers are.
    pub tables: Arc<Tables>,
}

impl Snapshot {
    /// Adds a link, on which its neighbour is received from now on.
    pub fn add(&mut self, link: Link) {
        let link = Arc::new(link);
        self.by_peer.insert(link.remote, Arc::clone(&link));
        self.links.insert(link.conn, link);
    }

    /// Changes a link that is there.
    pub fn update(&mut self, conn: ConnId, state: LinkState) {
        let Some(link) = self.links.get_mut(&conn) else {
            return;
        };
        *link = Arc::new(Link {
            state,
            ..Link::clone(link)
        });
        if let Some(current) = self.by_peer.get_mut(&link.remote).filter(|l| l.conn == conn) {
            *current = Arc::clone(link);
        }
    }

    /// Forgets a link.
    pub fn remove(&mut self, conn: ConnId) {
        let Some(link) = self.links.remove(&conn) else {
            return;
        };
        if self
            .by_peer
            .get(&link.remote)
            .is_some_and(|known| known.conn == conn)
        {
            self.by_peer.remove(&link.remote);
        }
    }
}

/// The current [`Snapshot`].
#[derive(Default)]
pub struct Published {
    generation: AtomicU64,
    current: Mutex<Arc<Snapshot>>,
}

impl Published {
    fn lock(&self) -> MutexGuard<'_, Arc<Snapshot>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one of now.
    #[must_use]
    pub fn get(&self) -> Arc<Snapshot> {
        Arc::clone(&self.lock())
    }

    /// Makes a new one.
    pub fn change(&self, edit: impl FnOnce(&mut Snapshot)) {
        let mut current = self.lock();
        edit(Arc::make_mut(&mut current));
        self.generation.fetch_add(1, Ordering::Release);
    }
}

/// One thread's view.
pub struct Reader {
    published: Arc<Published>,
    seen: u64,
    snapshot: Arc<Snapshot>,
}

impl Reader {
    /// Starts with the snapshot of now.
    #[must_use]
    pub fn new(published: Arc<Published>) -> Self {
        let seen = published.generation.load(Ordering::Acquire);
        let snapshot = published.get();
        Self {
            published,
            seen,
            snapshot,
        }
    }

    /// The latest. Costs one load when nothing has changed.
    pub fn latest(&mut self) -> Arc<Snapshot> {
        let generation = self.published.generation.load(Ordering::Acquire);
        if generation != self.seen {
            self.snapshot = self.published.get();
            self.seen = generation;
        }
        Arc::clone(&self.snapshot)
    }
}
