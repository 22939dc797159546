//! The DNS server as a whole: what it is told, its start and its end (control.md 2.4).

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
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
/// By which the host's own questions come.
const LOOPBACK: &str = "lo";
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
    /// An address of the loopback device to listen on as well, if it can be had: what the host itself asks does not
    /// arrive by `device`.
    pub host: Option<SocketAddrV4>,
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

/// Sockets of one address.
struct Sockets {
    udp: Arc<UdpSocket>,
    tcp: TcpListener,
    address: SocketAddrV4,
    any_of_device: bool,
}

impl Sockets {
    /// Port 0 is any port, but the same for both transports.
    fn bind(listen: SocketAddrV4, device: Option<&str>) -> Result<Self, StartError> {
        let failed = |transport| move |error| StartError::new(transport, listen, error);
        let tcp = tcp::bind(listen, device).map_err(failed("TCP"))?;
        let port = tcp.local_addr().map_err(failed("TCP"))?.port();
        let address = SocketAddrV4::new(*listen.ip(), port);
        Ok(Self {
            udp: Arc::new(udp::bind(address, device).map_err(failed("UDP"))?),
            tcp: TcpListener::from_std(tcp).map_err(failed("TCP"))?,
            address,
            any_of_device: device.is_some() && listen.ip().is_unspecified(),
        })
    }
}

/// The running server; end it with [`Server::stop`].
pub struct Server {
    shared: Arc<Shared>,
    sockets: Vec<Arc<UdpSocket>>,
    threads: Vec<std::thread::JoinHandle<()>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Server {
    /// Listens and answers, inside a tokio runtime.
    pub fn start(config: Config, zone: SharedZone) -> Result<Self, StartError> {
        let first = Sockets::bind(config.listen, config.device.as_deref())?;
        let address = first.address;
        let second = match config.host.map(|host| Sockets::bind(host, Some(LOOPBACK))) {
            Some(Err(error)) => {
                tracing::warn!("this host itself cannot ask WeaveDNS: {error}");
                None
            }
            second => second.and_then(Result::ok),
        };
        let all: Vec<Sockets> = std::iter::once(first).chain(second).collect();
        // All addresses of a device are not ours to ask: such questions go by the loopback device.
        let own = all
            .iter()
            .filter(|s| !s.any_of_device)
            .map(|s| IpAddr::V4(*s.address.ip()));
        let upstream = Upstream::new(
            config.resolv_conf,
            config.upstream_port,
            own.collect(),
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
        let mut server = Self {
            shared,
            sockets: Vec::new(),
            threads: Vec::new(),
            tasks: Vec::new(),
        };
        for sockets in all {
            server.serve(sockets)?;
        }
        Ok(server)
    }

    fn serve(&mut self, sockets: Sockets) -> Result<(), StartError> {
        let Sockets {
            udp, tcp, address, ..
        } = sockets;
        let (jobs, waiting) = mpsc::channel(QUEUE);
        let (shared, socket) = (self.shared.clone(), udp.clone());
        let thread = std::thread::Builder::new()
            .name("dns".to_owned())
            .spawn(move || udp::serve(&shared, &socket, &jobs));
        let thread = thread.map_err(|e| StartError::new("UDP", address, e))?;
        self.threads.push(thread);
        let pass_on = udp::pass_on(self.shared.clone(), udp.clone(), waiting);
        self.tasks.push(tokio::spawn(pass_on));
        self.tasks
            .push(tokio::spawn(tcp::serve(self.shared.clone(), tcp)));
        self.sockets.push(udp);
        Ok(())
    }

    /// For those who want to know about it.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle(self.shared.clone())
    }

    /// All addresses at which it listens.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddrV4> {
        let address = |socket: &Arc<UdpSocket>| match socket.local_addr() {
            Ok(SocketAddr::V4(address)) => Some(address),
            _ => None,
        };
        self.sockets.iter().filter_map(address).collect()
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
        for socket in &self.sockets {
            // On a socket without a connection this fails, and wakes who waits at it all the same.
            let _ = socket2::SockRef::from(&**socket).shutdown(std::net::Shutdown::Both);
        }
        for thread in std::mem::take(&mut self.threads) {
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
