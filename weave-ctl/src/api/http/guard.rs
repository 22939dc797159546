//! Who may not use the interface, wherever it listens: containers, and pages in somebody's browser
//! (control.md 9, ask 27).

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use axum::Router;
use axum::extract::Request;
use axum::http::header::{HOST, ORIGIN};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn};
use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::net::if_::if_indextoname;
use nix::sys::socket::SockaddrStorage;
use tokio::net::TcpStream;

use super::reply;
use crate::ipam::address::{Address, Cidr};

/// Bridges of Docker, containerd and CNI plugins; containers are behind them, and nobody else.
const CONTAINER_BRIDGES: [&str; 5] = ["docker0", "docker_gwbridge", "cni0", "cbr0", "podman0"];

/// How containers are told from others.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    /// Our own bridge.
    pub bridge: String,
    /// Containers have addresses from here.
    pub range: Option<Cidr>,
}

impl Guard {
    /// Does somebody at `from` ask from within a container? `through` is the interface by which the connection
    /// came, where the kernel tells.
    fn is_container(&self, from: IpAddr, through: Option<&str>) -> bool {
        if from.is_loopback() || through == Some("lo") {
            return false;
        }
        let inside = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => self.range.is_some_and(|r| r.range().contains(Address::from(ip))),
            IpAddr::V6(_) => false,
        };
        // A host whose own address is in the range, too, as a neighbour on another network of this host. What we
        // send to such an address goes there, and to no container.
        let neighbour = || through.is_some_and(|name| on_link(from, name));
        through.is_some_and(|name| self.is_bridge(name)) || (inside(from) && !neighbour())
    }

    fn is_bridge(&self, name: &str) -> bool {
        // Docker calls the bridges of its other networks `br-` and the start of the network's ID.
        let of_network = |id: &str| id.len() == 12 && id.bytes().all(|b| b.is_ascii_hexdigit());
        name == self.bridge
            || CONTAINER_BRIDGES.contains(&name)
            || name.strip_prefix("br-").is_some_and(of_network)
    }

    /// Is this a connection from within a container?
    pub fn refuses(&self, stream: &TcpStream, remote: SocketAddr) -> bool {
        // The host asks one of its own addresses; the kernel takes such packets from nobody else. By which
        // interface it says that they came is the one with the address.
        if stream.local_addr().is_ok_and(|ours| ours.ip() == remote.ip()) {
            return false;
        }
        let through = arrived_by(stream, remote).and_then(|index| if_indextoname(index).ok());
        let through = through.as_ref().and_then(|name| name.to_str().ok());
        self.is_container(remote.ip().to_canonical(), through)
    }
}

/// Is the address in a network that this interface is part of?
fn on_link(address: IpAddr, interface: &str) -> bool {
    let IpAddr::V4(address) = address else {
        return false;
    };
    let number = |storage: Option<SockaddrStorage>| Some(storage?.as_sockaddr_in()?.ip().to_bits());
    let within = |found: InterfaceAddress| -> Option<bool> {
        let (ours, mask) = (number(found.address)?, number(found.netmask)?);
        Some(found.interface_name == interface && mask != 0 && (ours ^ address.to_bits()) & mask == 0)
    };
    getifaddrs().is_ok_and(|mut found| found.any(|address| within(address) == Some(true)))
}

/// The number of the interface by which the connection's first packet came.
fn arrived_by(stream: &TcpStream, remote: SocketAddr) -> Option<u32> {
    if let SocketAddr::V6(v6) = remote
        && v6.ip().to_ipv4_mapped().is_none()
    {
        return Some(v6.scope_id()).filter(|index| *index > 0);
    }
    let (fd, on) = (stream.as_raw_fd(), 1_i32);
    let mut control = [0_u8; 256];
    let mut length = control.len() as libc::socklen_t;
    // SAFETY: the descriptor is open; `on` is readable, `control` and `length` are writable for the sizes given.
    let told = unsafe {
        libc::setsockopt(
            fd,
            libc::IPPROTO_IP,
            libc::IP_PKTINFO,
            (&raw const on).cast(),
            size_of::<i32>() as libc::socklen_t,
        ) == 0
            && libc::getsockopt(
                fd,
                libc::IPPROTO_IP,
                libc::IP_PKTOPTIONS,
                control.as_mut_ptr().cast(),
                &raw mut length,
            ) == 0
    };
    let control = control.get(..length as usize).filter(|_| told)?;
    interface_of(control)
}

/// The interface in a list of control messages (`struct cmsghdr`, aligned to words) with IP_PKTINFO.
fn interface_of(mut control: &[u8]) -> Option<u32> {
    const HEADER: usize = size_of::<libc::cmsghdr>();
    const WORD: usize = size_of::<usize>();
    let number = |bytes: &[u8], at: usize| -> Option<i32> {
        Some(i32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
    };
    loop {
        let length = usize::from_ne_bytes(*control.first_chunk()?);
        let (level, kind) = (number(control, WORD)?, number(control, WORD + 4)?);
        let data = control.get(HEADER..length)?;
        if (level, kind) == (libc::IPPROTO_IP, libc::IP_PKTINFO) {
            let index = u32::from_ne_bytes(*data.first_chunk()?);
            return Some(index).filter(|index| *index > 0);
        }
        control = control.get(length.next_multiple_of(WORD)..)?;
    }
}

/// What containers get instead of the interface.
pub fn closed() -> Router {
    Router::new().fallback(|| async {
        let text = "containers may not use this interface: ask on the host itself";
        reply::error(StatusCode::FORBIDDEN, text)
    })
}

/// Refuses what only browsers send: requests of other web pages, and, on the loopback interface, of pages that
/// had their own name resolved to it.
pub fn without_browsers(router: Router, loopback: bool) -> Router {
    router.layer(from_fn(move |request: Request, next: Next| async move {
        let headers = request.headers();
        if headers.contains_key(ORIGIN) || (loopback && !is_local(headers)) {
            return reply::error(StatusCode::FORBIDDEN, "web pages may not use this interface");
        }
        next.run(request).await
    }))
}

/// An address, `localhost`, or a name that no domain can have: without a dot.
fn is_local(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(HOST) else {
        return true;
    };
    let Ok(host) = host.to_str() else { return false };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_end_matches('.');
    let bare = name
        .strip_prefix('[')
        .and_then(|n| n.strip_suffix(']'))
        .unwrap_or(name);
    bare.parse::<IpAddr>().is_ok() || !name.contains('.') || name.ends_with(".localhost")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_told_by_address_and_by_bridge() {
        let guard = Guard {
            bridge: "weave".to_owned(),
            range: Some("10.32.0.0/12".parse().unwrap()),
        };
        for (from, through, container) in [
            ("127.0.0.1", Some("lo"), false),
            ("10.32.0.1", Some("lo"), false),
            ("192.0.2.7", Some("eth0"), false),
            ("192.0.2.7", Some("br0"), false),
            ("192.0.2.7", Some("br-lan"), false),
            ("192.0.2.7", None, false),
            ("10.40.1.2", Some("eth0"), true),
            ("10.40.1.2", None, true),
            ("192.0.2.7", Some("weave"), true),
            ("172.17.0.2", Some("docker0"), true),
            ("172.18.0.2", Some("br-0123456789ab"), true),
            ("fe80::1", Some("weave"), true),
        ] {
            let told = guard.is_container(from.parse().unwrap(), through);
            assert_eq!(told, container, "{from} {through:?}");
        }
    }

    #[test]
    fn neighbours_of_an_interface() {
        for (address, interface, neighbour) in [
            ("127.7.7.7", "lo", true),
            ("127.7.7.7", "nosuch0", false),
            ("10.40.1.2", "lo", false),
            ("::1", "lo", false),
        ] {
            let told = on_link(address.parse().unwrap(), interface);
            assert_eq!(told, neighbour, "{address} {interface}");
        }
    }

    #[tokio::test]
    async fn the_kernel_tells_the_interface() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let client = TcpStream::connect(address).await.unwrap();
        let (stream, remote) = listener.accept().await.unwrap();
        let index = arrived_by(&stream, remote).unwrap();
        assert_eq!(if_indextoname(index).unwrap().to_str().unwrap(), "lo");
        drop(client);
    }

    #[test]
    fn damaged_control_messages() {
        assert_eq!(interface_of(&[]), None);
        assert_eq!(interface_of(&[0; 64]), None);
        assert_eq!(interface_of(&[0xff; 64]), None);
        let mut message = vec![0_u8; 40];
        message[0] = 28;
        message[12] = libc::IP_PKTINFO as u8;
        message[16] = 7;
        assert_eq!(interface_of(&message), Some(7));
        assert_eq!(interface_of(&message[..20]), None);
    }

    #[test]
    fn names_that_lead_here() {
        for (host, local) in [
            ("127.0.0.1:6784", true),
            ("[::1]:6784", true),
            ("localhost:6784", true),
            ("x.localhost", true),
            ("weave", true),
            ("myhost:6784", true),
            ("evil.example:6784", false),
            ("evil.example.", false),
            ("127.0.0.1.evil.example", false),
        ] {
            let headers = HeaderMap::from_iter([(HOST, host.parse().unwrap())]);
            assert_eq!(is_local(&headers), local, "{host}");
        }
    }
}
