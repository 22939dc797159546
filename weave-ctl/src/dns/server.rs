//! The DNS server as a whole: what it is told, its start and its end (control.md 2.4).

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

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

/// What the server is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Domain and TTL of our names.
    pub local: Local,
    /// Where to listen, over UDP and TCP.
    pub listen: SocketAddrV4,
    /// Only what arrives by this device, where `listen` is all addresses.
    pub device: Option<String>,
    /// How long upstream servers have to answer.
    pub fallback_timeout: Duration,
    /// The file that names them; `None`: there are none.
    pub resolv_conf: Option<PathBuf>,
    /// Their port.
    pub upstream_port: u16,
}

/// The server cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for DNS queries on {transport} {address}: {source}{advice}")]
pub struct StartError {
    transport: &'static str,
    address: SocketAddrV4,
    source: io::Error,
    advice: &'static str,
}

impl StartError {
    fn new(transport: &'static str, address: SocketAddrV4, source: io::Error) -> Self {
        let advice = match source.kind() {
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
            source,
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
    stopped: AtomicBool,
    address: SocketAddrV4,
}

impl Shared {
    pub(super) fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

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
    /// Where it listens; all addresses where it listens to one device.
    #[must_use]
    pub fn address(&self) -> SocketAddrV4 {
        self.0.address
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

    /// Addresses of our bridge with their masks: who asks from there gets the addresses of his own subnet first.
    pub fn set_subnets(&self, subnets: Vec<(Ipv4Addr, Ipv4Addr)>) {
        *self.0.subnets.write().unwrap_or_else(PoisonError::into_inner) = subnets;
    }
}

/// The running server; end it with [`Server::stop`].
pub struct Server {
    shared: Arc<Shared>,
    socket: Arc<UdpSocket>,
    thread: Option<std::thread::JoinHandle<()>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Server {
    /// Listens and answers, inside a tokio runtime.
    pub fn start(config: Config, zone: SharedZone) -> Result<Self, StartError> {
        let device = config.device.as_deref();
        let failed = |transport, source| StartError::new(transport, config.listen, source);
        let listener = tcp::bind(config.listen, device).map_err(|e| failed("TCP", e))?;
        // Port 0 is any port, but the same for both.
        let port = listener.local_addr().map_err(|e| failed("TCP", e))?.port();
        let address = SocketAddrV4::new(*config.listen.ip(), port);
        let socket = Arc::new(udp::bind(address, device).map_err(|e| failed("UDP", e))?);
        let listener = tokio::net::TcpListener::from_std(listener).map_err(|e| failed("TCP", e))?;

        // What arrives by one device is nobody's own question: those go by the loopback device.
        let own = match device {
            Some(_) => Ipv4Addr::BROADCAST,
            None => *address.ip(),
        };
        let upstream = Upstream::new(
            config.resolv_conf,
            config.upstream_port,
            IpAddr::V4(own),
            config.fallback_timeout,
        );
        let shared = Arc::new(Shared {
            local: config.local,
            zone,
            upstream: Arc::new(upstream),
            counters: Counters::default(),
            subnets: RwLock::default(),
            stopped: AtomicBool::new(false),
            address,
        });
        let (jobs, waiting) = mpsc::channel(QUEUE);
        let thread = {
            let (shared, socket) = (shared.clone(), socket.clone());
            std::thread::Builder::new()
                .name("dns".to_owned())
                .spawn(move || udp::serve(&shared, &socket, &jobs))
                .map_err(|e| StartError::new("UDP", address, e))?
        };
        let tasks = vec![
            tokio::spawn(udp::pass_on(shared.clone(), socket.clone(), waiting)),
            tokio::spawn(tcp::serve(shared.clone(), listener)),
        ];
        Ok(Self {
            shared,
            socket,
            thread: Some(thread),
            tasks,
        })
    }

    /// For those who want to know about it.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle(self.shared.clone())
    }

    /// Ends it; afterwards its port is free.
    pub async fn stop(mut self) {
        self.halt();
        for task in std::mem::take(&mut self.tasks) {
            let _ = task.await;
        }
    }

    fn halt(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        // On a socket without a connection this fails, and wakes who waits at it all the same.
        let _ = socket2::SockRef::from(&*self.socket).shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.halt();
    }
}
