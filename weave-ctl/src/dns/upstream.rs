//! Questions that others have to answer: which servers are asked, when, and what is believed (control.md 2.4).
//!
//! The server that answered last is asked first, and the next one a moment later if it has not answered by then. When
//! it is not known who is alive, or not any more, two are asked at once. So a dead server costs nobody a time-out.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

use super::cache::{Cache, Key};
use super::resolv::Resolv;
use super::sockets::Sockets;
use super::wire::{self, Query, Question, Reader, rcode};

/// How long a server may take before the next one is asked, too.
const HEDGE: Duration = Duration::from_millis(150);
/// How long after all have been asked they are asked again: messages get lost.
const AGAIN: Duration = Duration::from_secs(1);
/// How often in all that happens.
const AGAINS: usize = 2;
/// How long the server that answered last is the first without others being tried beside it.
const PREFER_FOR: Duration = Duration::from_secs(30);
/// For connecting and sending over TCP.
const DIAL: Duration = Duration::from_secs(2);
/// Different questions under way at most.
const MOST_FLIGHTS: usize = 200;
/// The largest answer over UDP.
const LARGEST_UDP: usize = 65_535;

/// What an upstream server said; `None`: nobody said anything.
pub type Said = Option<Arc<[u8]>>;

/// Asks upstream servers.
pub struct Upstream {
    resolv: Mutex<Resolv>,
    timeout: Duration,
    cache: Mutex<Cache>,
    sockets: Sockets,
    started: Instant,
    flights: Mutex<HashMap<Key, watch::Receiver<Option<Said>>>>,
    preferred: Mutex<Option<(SocketAddr, Instant)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Upstream {
    /// Servers are those of the file (none without one), on `port`, without our own addresses. They have `timeout` to
    /// answer.
    pub fn new(resolv_conf: Option<PathBuf>, port: u16, timeout: Duration) -> Self {
        Self {
            resolv: Mutex::new(Resolv::new(resolv_conf, port)),
            timeout,
            cache: Mutex::default(),
            sockets: Sockets::default(),
            started: Instant::now(),
            flights: Mutex::default(),
            preferred: Mutex::default(),
        }
    }

    /// Our own addresses; see [`Resolv::set_own`].
    pub fn set_own(&self, own: Vec<IpAddr>) {
        lock(&self.resolv).set_own(own);
    }

    /// The present servers, in the file's order. If they have changed, what the others said is forgotten.
    pub fn servers(&self) -> Vec<SocketAddr> {
        let mut resolv = lock(&self.resolv);
        let (servers, changed) = resolv.servers(Instant::now());
        let servers = servers.to_vec();
        drop(resolv);
        if changed {
            lock(&self.cache).clear();
            tracing::debug!("upstream DNS servers: {servers:?}");
        }
        servers
    }

    fn now(&self) -> u64 {
        self.started.elapsed().as_secs()
    }

    /// What was said before, and how many seconds ago.
    pub fn cached(&self, key: &[u8]) -> Option<(Arc<[u8]>, u32)> {
        lock(&self.cache).get(key, self.now())
    }

    /// Asks, or waits with those who have asked the same. Over TCP if the asker came over it, as his answer may be
    /// large.
    pub async fn ask(self: &Arc<Self>, key: Key, request: &[u8], tcp: bool) -> Said {
        let mut result = self.fly(key, request, tcp)?;
        let said = result.wait_for(Option::is_some).await.ok()?;
        said.clone().flatten()
    }

    fn fly(self: &Arc<Self>, key: Key, request: &[u8], tcp: bool) -> Option<watch::Receiver<Option<Said>>> {
        let mut flights = lock(&self.flights);
        if let Some(flight) = flights.get(&key) {
            return Some(flight.clone());
        }
        if flights.len() >= MOST_FLIGHTS {
            return None;
        }
        let (tell, result) = watch::channel(None);
        flights.insert(key.clone(), result.clone());
        drop(flights);
        let (this, request) = (self.clone(), request.to_vec());
        // On its own: the one who asked first may go away, others wait, too.
        tokio::spawn(async move {
            let said: Said = this.race(&request, tcp).await.map(Arc::from);
            if let Some(answer) = &said {
                lock(&this.cache).put(key.clone(), answer, this.now());
            }
            lock(&this.flights).remove(&key);
            let _ = tell.send(Some(said));
        });
        Some(result)
    }

    /// Servers in the order in which they are asked, and how long to wait between the first two.
    fn order(&self) -> (Vec<SocketAddr>, Duration) {
        let mut servers = self.servers();
        let preferred = *lock(&self.preferred);
        let Some((preferred, since)) = preferred else {
            return (servers, Duration::ZERO);
        };
        let place = servers.iter().position(|server| *server == preferred);
        let Some(place) = place else {
            return (servers, Duration::ZERO);
        };
        if let Some(before) = servers.get_mut(..=place) {
            before.rotate_right(1);
        }
        let known = since.elapsed() < PREFER_FOR;
        (servers, if known { HEDGE } else { Duration::ZERO })
    }

    fn prefer(&self, server: SocketAddr) {
        let mut preferred = lock(&self.preferred);
        let same = preferred.is_some_and(|(known, since)| known == server && since.elapsed() < PREFER_FOR);
        if !same {
            *preferred = Some((server, Instant::now()));
        }
    }

    /// The first good answer; failing that, the first one.
    async fn race(&self, request: &[u8], tcp: bool) -> Option<Vec<u8>> {
        let (servers, first_gap) = self.order();
        let count = servers.len();
        let mut order = servers.iter().cycle().copied();
        // A connection does its own repeating.
        let mut left = if tcp || count == 0 { count } else { count + AGAINS };
        let mut asked = 0;
        let mut poor: Option<Vec<u8>> = None;
        let mut running = FuturesUnordered::new();
        let deadline = tokio::time::Instant::now() + self.timeout;
        let mut next_at = tokio::time::Instant::now();
        while left > 0 || !running.is_empty() {
            tokio::select! {
                biased;
                Some(ended) = running.next() => {
                    let (server, answer): (SocketAddr, io::Result<Vec<u8>>) = ended;
                    if answer.as_deref().is_ok_and(is_good) {
                        self.prefer(server);
                        return answer.ok();
                    }
                    // The next one, then; but nobody is asked again at once, and not again who has answered.
                    if asked < count {
                        next_at = tokio::time::Instant::now();
                    } else if answer.is_ok() {
                        left = 0;
                    }
                    poor = poor.or(answer.ok());
                }
                () = tokio::time::sleep_until(next_at), if left > 0 => {
                    let Some(server) = order.next() else { break };
                    running.push(async move {
                        let answer = match tcp {
                            true => over_tcp(server, request).await,
                            false => over_udp(&self.sockets, server, request).await,
                        };
                        (server, answer)
                    });
                    asked += 1;
                    left -= 1;
                    next_at += match asked {
                        1 if count > 1 => first_gap,
                        _ if asked < count => HEDGE,
                        _ => AGAIN,
                    };
                }
                () = tokio::time::sleep_until(deadline) => break,
            }
        }
        poor
    }
}

/// An answer that says more about the name than about the server.
fn is_good(answer: &[u8]) -> bool {
    let header = Reader::new(answer).header();
    header.is_some_and(|header| {
        let code = header.flags & wire::RCODE;
        !matches!(code, rcode::SERVFAIL | rcode::NOTIMP | rcode::REFUSED)
    })
}

/// Whether a message answers the request that was sent with this ID.
fn answers<'a>(message: &'a [u8], request: &'a [u8], id: u16) -> bool {
    let mut reader = Reader::new(message);
    let Some(header) = reader.header() else {
        return false;
    };
    if header.id != id || header.flags & wire::QR == 0 {
        return false;
    }
    if header.counts[0] == 0 {
        // Servers that did not understand the question do not repeat it.
        return header.flags & wire::RCODE != 0 && header.counts[1] == 0;
    }
    let asked = Query::read(request).ok().and_then(|query| query.question);
    let told = reader.question();
    asked.zip(told).is_some_and(|(asked, told)| {
        let type_and_class = |question: &Question<'a>| question.bytes.get(question.name.len()..);
        let same_name = asked.name.eq_ignore_ascii_case(told.name);
        header.counts[0] == 1 && same_name && type_and_class(&asked) == type_and_class(&told)
    })
}

/// The request with an ID that nobody can guess.
fn with_new_id(request: &[u8]) -> (u16, Vec<u8>) {
    let id: u16 = rand::random();
    let mut sent = request.to_vec();
    sent.iter_mut()
        .zip(id.to_be_bytes())
        .for_each(|(to, from)| *to = from);
    (id, sent)
}

async fn over_udp(sockets: &Sockets, server: SocketAddr, request: &[u8]) -> io::Result<Vec<u8>> {
    let connected = sockets.get(server).await?;
    let (id, sent) = with_new_id(request);
    connected.socket.send(&sent).await?;
    let mut answer = Vec::with_capacity(LARGEST_UDP);
    loop {
        answer.clear();
        connected.socket.recv_buf(&mut answer).await?;
        if answers(&answer, request, id) {
            sockets.put_back(connected);
            return Ok(answer);
        }
    }
}

async fn over_tcp(server: SocketAddr, request: &[u8]) -> io::Result<Vec<u8>> {
    let (id, sent) = with_new_id(request);
    let length = u16::try_from(sent.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let dialled = timeout(DIAL, async {
        let mut stream = TcpStream::connect(server).await?;
        stream
            .write_all(&[&length.to_be_bytes()[..], &sent].concat())
            .await?;
        io::Result::Ok(stream)
    });
    let mut stream = dialled.await.map_err(|_| io::ErrorKind::TimedOut)??;
    let mut answer = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut answer).await?;
    match answers(&answer, request, id) {
        true => Ok(answer),
        false => Err(io::ErrorKind::InvalidData.into()),
    }
}
