//! TCP connections as tasks: they read, write and dial; the daemon's loop decides.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::event::{Event, Events};
use super::gate::Gate;
use super::handle;
use crate::mesh::ConnId;
use crate::mesh::crypto::{Password, SessionKey};
use crate::mesh::handshake::Features;
use crate::mesh::transport::{self, Connected, IntroError, Reader, Writer};
use crate::mesh::trusted::TrustedSubnets;

/// After an error of the listening socket.
const PAUSE: Duration = Duration::from_millis(50);
/// Between two lines about refused connections.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// For a last message.
const FAREWELL: Duration = Duration::from_secs(5);
/// Messages handed to a writer ahead of time: one being written, one waiting.
const WRITER_DEPTH: usize = 2;

/// What new connections say of us; the connection's own number is drawn for each, and whether we trust
/// the remote is told by its address.
pub type OurFeatures = Arc<Mutex<Features>>;

/// What decides whether connections are sealed.
#[derive(Debug, Default)]
pub struct Secrecy {
    /// The network's; never empty.
    pub password: Option<Password>,
    /// Where nothing but the control connection needs to be.
    pub trusted_subnets: TrustedSubnets,
}

/// All connections of this host.
pub struct Connections {
    next: ConnId,
    introduced: BTreeMap<ConnId, Connected>,
    live: BTreeMap<ConnId, Live>,
    events: Events,
    ours: OurFeatures,
    secrecy: Arc<Secrecy>,
    host: Option<IpAddr>,
}

/// Facts of a connection whose reading and writing have begun.
pub struct Started {
    /// Ours and theirs.
    pub ends: (SocketAddr, SocketAddr),
    /// Of a sealed connection.
    pub session: Option<SessionKey>,
    /// The remote's address is in a subnet that we trust.
    pub trusted_by_us: bool,
}

struct Live {
    writer: mpsc::Sender<Vec<u8>>,
    /// In microseconds; 0: not measured yet.
    round_trip: Arc<AtomicU32>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Live {
    fn drop(&mut self) {
        // Both halves go: the connection is reset, as the original does.
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Introduces both ends; gives our number of the connection as well (wire.md 1.6).
async fn introduce(
    stream: TcpStream,
    remote: SocketAddr,
    ours: &OurFeatures,
    secrecy: &Secrecy,
    outbound: bool,
) -> Result<(Connected, Features, u64), IntroError> {
    let mut ours = ours.lock().unwrap_or_else(PoisonError::into_inner).clone();
    ours.conn_id = rand::random();
    ours.trusted = secrecy.trusted_subnets.contain(remote.ip());
    let password = secrecy.password.as_ref();
    let (connected, theirs) = transport::introduce(stream, &ours, password, outbound).await?;
    Ok((connected, theirs, ours.conn_id))
}

impl Connections {
    /// None yet.
    #[must_use]
    pub fn new(events: Events, ours: OurFeatures, secrecy: Arc<Secrecy>, host: Option<IpAddr>) -> Self {
        Self {
            next: 1 << 32,
            introduced: BTreeMap::new(),
            live: BTreeMap::new(),
            events,
            ours,
            secrecy,
            host,
        }
    }

    /// Dials, introduces, and reports. `texts` are the direct peers that are meant: those that are given by name
    /// are looked up first, and not dialled where they no longer are. `port` is our own.
    pub fn dial(&mut self, target: SocketAddr, texts: Vec<String>, port: u16) {
        let (events, host) = (self.events.clone(), self.host);
        let (ours, secrecy) = (self.ours.clone(), self.secrecy.clone());
        tokio::spawn(async move {
            let failed = |error: String, connected| Event::DialFailed {
                target,
                error,
                connected,
            };
            let mut gone = 0;
            for text in &texts {
                if let Some(peer) = handle::moved(text, target, port).await {
                    tracing::info!("{text} is at {} now, no longer at {target}", peer.addr.ip());
                    gone += 1;
                    events.send(Event::Moved(peer)).await;
                }
            }
            if gone > 0 && gone == texts.len() {
                let error = format!("{} has another address now", texts.join(", "));
                return events.send(failed(error, false)).await;
            }
            let event = match transport::dial(target, host).await {
                Err(error) => failed(error.to_string(), false),
                Ok(stream) => match introduce(stream, target, &ours, &secrecy, true).await {
                    Err(error) => failed(error.to_string(), true),
                    Ok((connected, features, our_conn_id)) => Event::Introduced {
                        dialled: Some(target),
                        connected: Box::new(connected),
                        features: Box::new(features),
                        our_conn_id,
                    },
                },
            };
            events.send(event).await;
        });
    }

    /// Keeps an introduced connection until the mesh has decided on it.
    pub fn keep(&mut self, connected: Connected) -> ConnId {
        self.next += 1;
        self.introduced.insert(self.next, connected);
        self.next
    }

    /// The mesh wants it: reading and writing start.
    pub fn start(&mut self, conn: ConnId) -> Option<Started> {
        let Connected {
            reader,
            writer,
            local,
            remote,
            session,
            trusted_by_us,
        } = self.introduced.remove(&conn)?;
        let (queue, bodies) = mpsc::channel(WRITER_DEPTH);
        let round_trip = Arc::new(AtomicU32::new(0));
        let tasks = [
            tokio::spawn(read(conn, reader, self.events.clone(), round_trip.clone())),
            tokio::spawn(write(conn, writer, bodies, self.events.clone())),
        ];
        let live = Live {
            writer: queue,
            round_trip,
            tasks,
        };
        self.live.insert(conn, live);
        Some(Started {
            ends: (local, remote),
            session,
            trusted_by_us,
        })
    }

    /// Sends a last message on a connection that has not been started, and ends it.
    pub fn farewell(&mut self, conn: ConnId, body: Vec<u8>) {
        if let Some(connected) = self.introduced.remove(&conn) {
            tokio::spawn(async move {
                let _in_vain = timeout(FAREWELL, connected.part_with(&body)).await;
            });
        }
    }

    /// Ends a connection, started or not.
    pub fn close(&mut self, conn: ConnId) {
        self.introduced.remove(&conn);
        self.live.remove(&conn);
    }

    /// How many messages the connection takes now; none once it is closed.
    pub fn room(&self, conn: ConnId) -> usize {
        self.live.get(&conn).map_or(0, |live| live.writer.capacity())
    }

    /// The time to the remote and back, as of the latest message from it.
    pub fn round_trip(&self, conn: ConnId) -> Option<Duration> {
        let micros = self.live.get(&conn)?.round_trip.load(Ordering::Relaxed);
        (micros > 0).then(|| Duration::from_micros(micros.into()))
    }

    /// Hands the connection a message, for which there must have been room. A closed one takes none.
    pub fn send(&self, conn: ConnId, body: Vec<u8>) {
        if let Some(live) = self.live.get(&conn) {
            let _ = live.writer.try_send(body);
        }
    }
}

async fn read(conn: ConnId, mut reader: Reader, events: Events, round_trip: Arc<AtomicU32>) {
    loop {
        match reader.next().await {
            Ok(message) => {
                let micros = reader.round_trip().map_or(0, |time| time.as_micros());
                round_trip.store(u32::try_from(micros).unwrap_or(u32::MAX), Ordering::Relaxed);
                events.send(Event::Received { conn, message }).await;
            }
            Err(error) => {
                return events
                    .send(Event::Closed {
                        conn,
                        error: error.to_string(),
                    })
                    .await;
            }
        }
    }
}

async fn write(conn: ConnId, mut writer: Writer, mut bodies: mpsc::Receiver<Vec<u8>>, events: Events) {
    while let Some(body) = bodies.recv().await {
        if let Err(error) = writer.send(&body).await {
            return events
                .send(Event::Closed {
                    conn,
                    error: error.to_string(),
                })
                .await;
        }
        events.send(Event::WriterFree { conn }).await;
    }
}

/// Accepts and introduces. Whoever comes too often, or keeps too many handshakes waiting, is sent away at
/// once and may come again.
pub async fn accept(listener: TcpListener, events: Events, ours: OurFeatures, secrecy: Arc<Secrecy>) {
    let started = Instant::now();
    let mut gate = Gate::default();
    let mut told_at = None::<Instant>;
    let mut handshakes = JoinSet::new();
    loop {
        tokio::select! {
            Some(done) = handshakes.join_next() => {
                if let Ok(source) = done {
                    gate.done(started.elapsed(), source);
                }
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, remote)) => {
                    let source = remote.ip();
                    if !gate.enter(started.elapsed(), source) {
                        if told_at.is_none_or(|at| at.elapsed() > TELL_EVERY) {
                            told_at = Some(Instant::now());
                            let count = gate.take_refused();
                            tracing::warn!("too many connections: refused {count}, the latest from {source}");
                        }
                        continue;
                    }
                    let (events, ours, secrecy) = (events.clone(), ours.clone(), secrecy.clone());
                    handshakes.spawn(async move {
                        let introduced = introduce(stream, remote, &ours, &secrecy, false).await;
                        events.send(accepted_event(remote, introduced)).await;
                        source
                    });
                }
                Err(error) => {
                    // Out of descriptors, or a connection that ended at once.
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            },
        }
    }
}

fn accepted_event(remote: SocketAddr, introduced: Result<(Connected, Features, u64), IntroError>) -> Event {
    match introduced {
        Err(error) => Event::AcceptFailed {
            remote: transport::canonical(remote),
            error: error.to_string(),
        },
        Ok((connected, features, our_conn_id)) => Event::Introduced {
            dialled: None,
            connected: Box::new(connected),
            features: Box::new(features),
            our_conn_id,
        },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use tokio::io::AsyncReadExt;

    use super::super::gate::MAX_PER_SOURCE;
    use super::*;
    use crate::mesh::name::PeerName;

    fn features(number: u64) -> Features {
        Features {
            name: PeerName::from_u64(number).unwrap(),
            nickname: String::new(),
            uid: number,
            conn_id: 0,
            short_id: None,
            trusted: false,
            overlays: None,
            extra: BTreeMap::new(),
        }
    }

    /// One source keeps a hundred connections open and says nothing; it could only take its own turns.
    #[tokio::test]
    async fn a_silent_crowd_from_one_source_starves_nobody() {
        let (events, mut happened) = Events::new();
        let listener = transport::listen(None, 0).unwrap();
        let to_us = SocketAddr::from(([127, 0, 0, 1], listener.local_addr().unwrap().port()));
        let ours = Arc::new(Mutex::new(features(1)));
        let accepting = tokio::spawn(accept(listener, events, ours, Arc::default()));
        let from = |host: &str| transport::dial(to_us, Some(host.parse().unwrap()));
        let mut crowd = Vec::new();
        for _ in 0..100 {
            crowd.push(from("127.0.0.9").await.unwrap());
        }
        let stream = from("127.0.0.2").await.unwrap();
        transport::introduce(stream, &features(2), None, true)
            .await
            .unwrap();
        let event = happened.recv().await;
        assert!(matches!(event, Some(Event::Introduced { features, .. }) if features.uid == 2));
        // Those beyond its share were sent away, without waiting for a word of theirs.
        let mut gone = 0;
        for stream in crowd.iter_mut().skip(MAX_PER_SOURCE) {
            let mut byte = [0; 64];
            gone += usize::from(!matches!(stream.read(&mut byte).await, Ok(1..)));
        }
        assert_eq!(gone, 100 - MAX_PER_SOURCE);
        accepting.abort();
    }

    /// A host that trusts 127.0.0.2 only, and has a password.
    #[tokio::test]
    async fn trust_depends_on_the_remote_address() {
        let (events, mut happened) = Events::new();
        let ours = Arc::new(Mutex::new(features(1)));
        let secrecy = Arc::new(Secrecy {
            password: Some("p".parse().unwrap()),
            trusted_subnets: "127.0.0.2/32".parse().unwrap(),
        });
        let mut connections = Connections::new(events.clone(), ours.clone(), secrecy.clone(), None);
        let listener = transport::listen(None, 0).unwrap();
        let port = listener.local_addr().unwrap().port();
        let accepting = tokio::spawn(accept(listener, events, ours, secrecy));
        let password: Password = "p".parse().unwrap();
        for (host, trusted) in [("127.0.0.2", true), ("127.0.0.3", false)] {
            let host: IpAddr = host.parse().unwrap();
            let to_us = SocketAddr::from(([127, 0, 0, 1], port));
            let stream = transport::dial(to_us, Some(host)).await.unwrap();
            let (_kept, of_us) = transport::introduce(stream, &features(2), Some(&password), true)
                .await
                .unwrap();
            assert_eq!(of_us.trusted, trusted, "accepted from {host}");

            let theirs = transport::listen(Some(host), 0).unwrap();
            connections.dial(theirs.local_addr().unwrap(), Vec::new(), 0);
            let (stream, _) = theirs.accept().await.unwrap();
            let (_kept_too, of_us) = transport::introduce(stream, &features(2), Some(&password), false)
                .await
                .unwrap();
            assert_eq!(of_us.trusted, trusted, "dialled {host}");

            for _ in 0..2 {
                let Some(Event::Introduced { connected, .. }) = happened.recv().await else {
                    panic!("not introduced");
                };
                assert_eq!((connected.remote.ip(), connected.trusted_by_us), (host, trusted));
                assert!(connected.session.is_some());
            }
        }
        accepting.abort();
    }
}
