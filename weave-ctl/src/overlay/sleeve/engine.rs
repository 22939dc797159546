//! Starts and stops the threads that move frames between the TAP and UDP, and takes the loop's orders.

use std::io::{self, PipeReader, PipeWriter};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::counters::{Cells, Counters, Traffic};
use super::forward::Forward;
use super::incoming::Incoming;
use super::macs::{Mac, Macs, Where};
use super::outbox::report_path_mtu;
use super::outgoing::Outgoing;
use super::packet::{self, append_special, special_df};
use super::shared::{Common, Events, Sockets};
use super::snapshot::{Link, Published, Reader};
use super::socket::{Message, Socket};
use super::tap::Tap;
use super::{FrameSource, LinkState, NewLink, Special, Tables};
use crate::mesh::name::PeerName;
use crate::mesh::{ConnId, Now};

/// What the engine is told once.
#[derive(Debug, Clone)]
pub struct Config {
    /// Our name.
    pub own: PeerName,
    /// UDP port, on all peers the same.
    pub port: u16,
    /// The only address to listen on, if there is one.
    pub host: Option<Ipv4Addr>,
    /// Name of the TAP.
    pub tap: String,
    /// Who decides where frames go.
    pub source: FrameSource,
    /// Queues of the TAP, each with two threads; at least one.
    pub workers: usize,
}

/// A MAC address that has been learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownMac {
    /// The address.
    pub mac: Mac,
    /// Who has it; ourselves among them.
    pub peer: PeerName,
    /// Time since it was last seen, to the minute.
    pub age: Duration,
}

/// Why the engine does not start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No TAP.
    #[error("making the TAP {name}: {error}")]
    Tap {
        /// Its name.
        name: String,
        /// Why.
        error: io::Error,
    },
    /// No socket.
    #[error("opening UDP port {port}: {error}")]
    Socket {
        /// Which.
        port: u16,
        /// Why.
        error: io::Error,
    },
    /// No thread.
    #[error("starting a thread: {0}")]
    Thread(#[from] io::Error),
}

/// The data path of sleeve. Dropping it stops the threads and removes the TAP.
pub struct Engine {
    ifindex: u32,
    published: Arc<Published>,
    macs: Arc<Macs>,
    /// For what the loop itself sends.
    own: Common,
    cells: Vec<Arc<Cells>>,
    failed: Arc<Mutex<Option<String>>>,
    /// Closed to stop the threads.
    stop: Option<PipeWriter>,
    threads: Vec<JoinHandle<()>>,
}

impl Engine {
    /// Makes the TAP, the sockets and the threads, in the current network namespace.
    ///
    /// `events` is called from the threads and must not block.
    ///
    /// # Errors
    /// The interface's name or the port is taken, or there are no rights.
    pub fn start(config: Config, events: Events) -> Result<Self, EngineError> {
        let workers = config.workers.max(1);
        let tap_error = |error| EngineError::Tap {
            name: config.tap.clone(),
            error,
        };
        let port = config.port;
        let socket_error = |error| EngineError::Socket { port, error };

        let host = SocketAddrV4::new(config.host.unwrap_or(Ipv4Addr::UNSPECIFIED), port);
        let sockets = (0..workers)
            .map(|_| {
                Ok(Arc::new(Sockets {
                    df: Socket::shared(host, true)?,
                    fragmenting: Socket::shared(host, false)?,
                    vxlan: Socket::vxlan()?,
                }))
            })
            .collect::<io::Result<Vec<_>>>()
            .map_err(socket_error)?;
        let taps = Tap::open(&config.tap, workers).map_err(tap_error)?;
        let ifindex = taps.first().map_or(Ok(0), Tap::ifindex).map_err(tap_error)?;

        let start = Instant::now();
        let common = |sockets: &Arc<Sockets>| Common {
            own: config.own,
            source: config.source,
            sockets: Arc::clone(sockets),
            cells: Arc::default(),
            events: Arc::clone(&events),
            start,
        };
        let first = sockets
            .first()
            .ok_or(io::ErrorKind::InvalidInput)
            .map_err(io::Error::from)?;
        let (stop_reader, stop) = io::pipe()?;
        let mut engine = Self {
            ifindex,
            published: Arc::default(),
            macs: Arc::new(Macs::default()),
            own: common(first),
            cells: Vec::new(),
            failed: Arc::default(),
            stop: Some(stop),
            threads: Vec::new(),
        };
        engine.cells.push(Arc::clone(&engine.own.cells));
        let stop_reader = Arc::new(stop_reader);
        for (number, (tap, sockets)) in taps.into_iter().zip(&sockets).enumerate() {
            let tap = Arc::new(tap);
            let mut parts = || {
                let common = Arc::new(common(sockets));
                engine.cells.push(Arc::clone(&common.cells));
                let forward = Forward::new(common, Arc::clone(&tap));
                (
                    forward,
                    Reader::new(Arc::clone(&engine.published)),
                    Arc::clone(&engine.macs),
                )
            };
            let (forward, reader, macs) = parts();
            let outgoing = Outgoing::new(Arc::clone(&tap), forward, reader, macs);
            let (forward, reader, macs) = parts();
            let incoming = Incoming::new(Arc::clone(&tap), forward, reader, macs);
            engine.spawn(format!("sleeve-out-{number}"), &stop_reader, |stop| {
                outgoing.run(stop)
            })?;
            engine.spawn(format!("sleeve-in-{number}"), &stop_reader, |stop| {
                incoming.run(stop)
            })?;
        }
        Ok(engine)
    }

    fn spawn(
        &mut self,
        name: String,
        stop: &Arc<PipeReader>,
        run: impl FnOnce(BorrowedFd<'_>) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let (stop, failed, thread) = (Arc::clone(stop), Arc::clone(&self.failed), name.clone());
        let work = move || {
            if let Err(error) = run(stop.as_fd()) {
                tracing::error!(thread, %error, "sleeve has stopped");
                let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                failed.get_or_insert_with(|| format!("{thread}: {error}"));
            }
        };
        self.threads
            .push(std::thread::Builder::new().name(name).spawn(work)?);
        Ok(())
    }

    /// Index of the TAP.
    #[must_use]
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Why a thread has ended, if one has: sleeve must then be taken for dead.
    #[must_use]
    pub fn failed(&self) -> Option<String> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        failed.or_else(|| {
            let ended = self.threads.iter().find(|thread| thread.is_finished())?;
            Some(format!(
                "{} has ended",
                ended.thread().name().unwrap_or("a thread")
            ))
        })
    }

    /// Adds a connection; what the neighbour sends belongs to it from now on, no longer to an earlier
    /// one (wire.md 6.5).
    pub fn add(&self, link: NewLink, state: LinkState) {
        self.published
            .change(|snapshot| snapshot.add(Link::new(link, state)));
    }

    /// Something about a connection has changed. Nothing happens if it is not known.
    pub fn update(&self, conn: ConnId, state: LinkState) {
        self.published.change(|snapshot| snapshot.update(conn, state));
    }

    /// Forgets a connection.
    pub fn remove(&self, conn: ConnId) {
        self.published.change(|snapshot| snapshot.remove(conn));
    }

    /// Replaces what is looked up.
    pub fn set_tables(&self, tables: Tables) {
        self.published
            .change(|snapshot| snapshot.tables = Arc::new(tables));
    }

    /// Sends a special frame at once. To be called in the engine's network namespace. When the kernel finds it too long for the path, that is an event
    /// and no error.
    ///
    /// # Errors
    /// The connection or the neighbour's address is not known, or the kernel's own.
    pub fn send(&self, conn: ConnId, special: Special) -> io::Result<()> {
        let snapshot = self.published.get();
        let link = snapshot.links.get(&conn).ok_or(io::ErrorKind::NotConnected)?;
        let remote = link.state.remote.ok_or(io::ErrorKind::NotConnected)?;
        let df = special_df(special);
        let mut packet = Vec::new();
        packet::start(&mut packet, self.own.own, link.sealed());
        append_special(&mut packet, self.own.own, link.remote, special);
        if let Some(sealer) = &link.shared.sealer {
            sealer.seal(df, &mut packet).map_err(io::Error::other)?;
        }
        let message = Message {
            remote,
            local: link.state.local,
            contents: &packet,
            segment: None,
        };
        match self.own.socket(df).send(&[message]) {
            Ok(_) => {
                link.shared.traffic.sent(1, packet.len() as u64);
                Ok(())
            }
            Err(error) if df && error.raw_os_error() == Some(libc::EMSGSIZE) => {
                report_path_mtu(&self.own, link);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// What has been counted so far, by all threads.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut total = Counters::default();
        for cells in &self.cells {
            cells.add_to(&mut total);
        }
        total
    }

    /// Sleeve's traffic on a connection.
    #[must_use]
    pub fn traffic(&self, conn: ConnId) -> Option<Traffic> {
        let snapshot = self.published.get();
        snapshot.links.get(&conn).map(|link| link.shared.traffic.get())
    }

    /// The MAC addresses that the threads have learnt.
    #[must_use]
    pub fn macs(&self) -> Vec<KnownMac> {
        let now = self.own.now();
        self.macs.sweep(now);
        let known = |(mac, place, last_seen): (_, _, Now)| KnownMac {
            mac,
            peer: match place {
                Where::Local => self.own.own,
                Where::Peer(peer) => peer,
            },
            age: now.saturating_sub(last_seen),
        };
        self.macs.list().into_iter().map(known).collect()
    }

    /// Forgets a peer's MAC addresses.
    pub fn forget_peer(&self, name: PeerName) {
        self.macs.remove_peer(name);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
