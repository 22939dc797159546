//! The DNS server as a whole: what it is told, its start and its end (control.md 2.4).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::answer::Local;
use super::counters::{Counters, Counts};
use super::upstream::Upstream;
use super::zone::SharedZone;
use super::{tcp, udp};

/// The port of DNS.
pub const PORT: u16 = 53;
/// Queries on their way to the tasks that wait for others.
const QUEUE: usize = 256;

/// Where to listen, over UDP and TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// At this address, or not at all.
    At(SocketAddrV4),
    /// At this port of the addresses that [`Handle::set_addresses`] tells, as they come and go, wherever it is free.
    /// All addresses at once would keep other servers of the host from having any.
    Follow(u16),
}

/// What the server is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Domain and TTL of our names.
    pub local: Local,
    /// Where to listen.
    pub listen: Listen,
    /// How long upstream servers have to answer.
    pub fallback_timeout: Duration,
    /// The file that names them; `None`: there are none.
    pub resolv_conf: Option<PathBuf>,
    /// Their port.
    pub upstream_port: u16,
}

/// The server cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for DNS queries on {transport} {address}: {error}{advice}")]
pub struct StartError {
    transport: &'static str,
    address: SocketAddrV4,
    error: io::Error,
    advice: &'static str,
}

impl StartError {
    fn new(transport: &'static str, address: SocketAddrV4, error: io::Error) -> Self {
        let advice = match error.kind() {
            io::ErrorKind::AddrInUse => {
                ". Another DNS server runs there: choose another address with --dns-listen-address, or do without \
                 with --no-dns"
            }
            io::ErrorKind::AddrNotAvailable => ". This host has no such address: see --dns-listen-address",
            _ => "",
        };
        Self {
            transport,
            address,
            error,
            advice,
        }
    }
}

/// What the parts of the server share.
pub struct Shared {
    pub(super) local: Local,
    pub(super) zone: SharedZone,
    pub(super) upstream: Arc<Upstream>,
    pub(super) counters: Counters,
    /// Addresses and masks of our bridge.
    subnets: RwLock<Vec<(Ipv4Addr, Ipv4Addr)>>,
    listen: Listen,
    listeners: Mutex<Listeners>,
}

/// Who listens now.
#[derive(Default)]
struct Listeners {
    all: BTreeMap<Ipv4Addr, Listener>,
    /// Addresses that could not be had, of which this has been said.
    refused: BTreeSet<Ipv4Addr>,
    /// The address of Docker's bridge.
    docker: Option<Ipv4Addr>,
    /// The end of the server.
    closed: bool,
}

impl Shared {
    /// The subnet of our bridge that an asker is in.
    pub(super) fn subnet_of(&self, asker: Ipv4Addr) -> Option<(Ipv4Addr, Ipv4Addr)> {
        let subnets = self.subnets.read().unwrap_or_else(PoisonError::into_inner);
        let within = |(address, mask): &&(Ipv4Addr, Ipv4Addr)| {
            u32::from(asker) & u32::from(*mask) == u32::from(*address) & u32::from(*mask)
        };
        subnets.iter().find(within).copied()
    }
}

/// The running server, for those who want to know about it. Cheap to clone.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

impl Handle {
    /// Where it listens: at the address of Docker's bridge, if it follows that and has it; 0.0.0.0 where it does at
    /// those of the weave bridge.
    #[must_use]
    pub fn address(&self) -> SocketAddrV4 {
        match self.0.listen {
            Listen::At(given) => self.addresses().first().copied().unwrap_or(given),
            Listen::Follow(port) => {
                let listeners = lock(&self.0.listeners);
                let docker = listeners
                    .docker
                    .filter(|docker| listeners.all.contains_key(docker));
                SocketAddrV4::new(docker.unwrap_or(Ipv4Addr::UNSPECIFIED), port)
            }
        }
    }

    /// All addresses at which it listens now.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddrV4> {
        let listeners = lock(&self.0.listeners);
        listeners.all.values().map(|listener| listener.address).collect()
    }

    /// Present upstream servers, without the port where it is the usual one.
    #[must_use]
    pub fn upstream(&self) -> Vec<String> {
        let text = |server: &SocketAddr| match server.port() {
            PORT => server.ip().to_string(),
            _ => server.to_string(),
        };
        self.0.upstream.servers().iter().map(text).collect()
    }

    /// Queries since the start.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.0.counters.counts()
    }

    /// The address of Docker's bridge, and those of ours with their masks, inside a tokio runtime: who asks from
    /// there gets the addresses of his own subnet first. Without Docker, the host itself asks at its loopback address.
    pub async fn set_addresses(&self, docker: Option<Ipv4Addr>, subnets: Vec<(Ipv4Addr, Ipv4Addr)>) {
        if let Listen::Follow(port) = self.0.listen {
            lock(&self.0.listeners).docker = docker;
            let wanted = subnets.iter().map(|(address, _)| *address);
            let wanted = wanted.chain([docker.unwrap_or(Ipv4Addr::LOCALHOST)]).collect();
            for listener in self.0.take_others(&wanted) {
                listener.stop().await;
            }
            self.0.listen_at(wanted, port);
        }
        *self.0.subnets.write().unwrap_or_else(PoisonError::into_inner) = subnets;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Takes out those who listen elsewhere.
    fn take_others(&self, wanted: &BTreeSet<Ipv4Addr>) -> Vec<Listener> {
        let mut listeners = lock(&self.listeners);
        listeners.refused.retain(|address| wanted.contains(address));
        let others = listeners
            .all
            .extract_if(.., |address, _| !wanted.contains(address));
        others.map(|(_, listener)| listener).collect()
    }

    /// Listens at these addresses, too. What cannot be had is tried again when the addresses change.
    fn listen_at(self: &Arc<Self>, wanted: BTreeSet<Ipv4Addr>, port: u16) {
        let mut listeners = lock(&self.listeners);
        if listeners.closed {
            return;
        }
        for ip in wanted {
            if listeners.all.contains_key(&ip) {
                continue;
            }
            let address = SocketAddrV4::new(ip, port);
            match Listener::start(self, address) {
                Ok(listener) => {
                    listeners.refused.remove(&ip);
                    listeners.all.insert(ip, listener);
                }
                Err(error) if listeners.refused.insert(ip) => {
                    tracing::warn!("Names are not answered at {ip}: {error}");
                }
                Err(_) => {}
            }
        }
        // We would only ask ourselves.
        self.upstream
            .set_own(listeners.all.keys().map(|ip| IpAddr::V4(*ip)).collect());
    }
}

/// Both transports of one address. Ends when it is dropped.
struct Listener {
    address: SocketAddrV4,
    stopped: Arc<AtomicBool>,
    udp: Arc<UdpSocket>,
    thread: Option<std::thread::JoinHandle<()>>,
    tasks: [JoinHandle<()>; 2],
}

impl Listener {
    /// Port 0 is any port, but the same for both transports.
    fn start(shared: &Arc<Shared>, listen: SocketAddrV4) -> Result<Self, StartError> {
        let failed = |transport| move |error| StartError::new(transport, listen, error);
        let tcp = tcp::bind(listen).map_err(failed("TCP"))?;
        let port = tcp.local_addr().map_err(failed("TCP"))?.port();
        let tcp = TcpListener::from_std(tcp).map_err(failed("TCP"))?;
        let address = SocketAddrV4::new(*listen.ip(), port);
        let udp = Arc::new(udp::bind(address).map_err(failed("UDP"))?);
        let stopped = Arc::new(AtomicBool::new(false));
        let (jobs, waiting) = mpsc::channel(QUEUE);
        let ours = (shared.clone(), udp.clone(), stopped.clone());
        let thread = std::thread::Builder::new()
            .name("dns".to_owned())
            .spawn(move || udp::serve(&ours.0, &ours.1, &ours.2, &jobs))
            .map_err(failed("UDP"))?;
        tracing::info!("Listening for DNS queries on {address}");
        Ok(Self {
            address,
            stopped,
            thread: Some(thread),
            tasks: [
                tokio::spawn(udp::pass_on(shared.clone(), udp.clone(), waiting)),
                tokio::spawn(tcp::serve(shared.clone(), tcp)),
            ],
            udp,
        })
    }
}

impl Listener {
    /// Ends it; afterwards its port is free.
    async fn stop(mut self) {
        self.halt();
        for task in &mut self.tasks {
            let _ = task.await;
        }
    }

    fn halt(&mut self) {
        self.stopped.store(true, Ordering::Release);
        // On a socket without a connection this fails, and wakes who waits at it all the same.
        let _ = socket2::SockRef::from(&*self.udp).shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.halt();
    }
}

/// The running server; end it with [`Server::stop`].
pub struct Server(Handle);

impl Server {
    /// Listens and answers, inside a tokio runtime.
    pub fn start(config: Config, zone: SharedZone) -> Result<Self, StartError> {
        let upstream = Upstream::new(config.resolv_conf, config.upstream_port, config.fallback_timeout);
        let shared = Arc::new(Shared {
            local: config.local,
            zone,
            upstream: Arc::new(upstream),
            counters: Counters::default(),
            subnets: RwLock::default(),
            listen: config.listen,
            listeners: Mutex::default(),
        });
        let server = Self(Handle(shared.clone()));
        match config.listen {
            Listen::At(address) => {
                let listener = Listener::start(&shared, address)?;
                shared.upstream.set_own(vec![IpAddr::V4(*address.ip())]);
                lock(&shared.listeners).all.insert(*address.ip(), listener);
            }
            Listen::Follow(_) => {}
        }
        Ok(server)
    }

    /// For those who want to know about it.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.0.clone()
    }

    /// Ends it; afterwards its port is free.
    pub async fn stop(self) {
        for listener in self.close().into_values() {
            listener.stop().await;
        }
    }

    fn close(&self) -> BTreeMap<Ipv4Addr, Listener> {
        let mut listeners = lock(&self.0.0.listeners);
        listeners.closed = true;
        std::mem::take(&mut listeners.all)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.close();
    }
}
