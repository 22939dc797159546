//! Sockets of the control connection: dialling, listening, options, Go's error texts (wire.md 2.1).

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::errno::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

/// The original waits as long as the kernel does, minutes (wire.md W6).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a remote may leave data, or the kernel's own probes, unacknowledged: finds a host that is dead or
/// cut off long before the 60 s without a message have passed (wire.md W5). The remote's kernel answers, so
/// nothing is asked of an original.
pub(super) const USER_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence after which the kernel probes, and between probes. The third one would come at the end of
/// [`USER_TIMEOUT`].
pub(super) const PROBE_AFTER: Duration = Duration::from_secs(4);
const PROBE_EVERY: Duration = Duration::from_secs(3);
const BACKLOG: i32 = 1024;

/// The time to the remote and back as the kernel has measured it lately (`TCP_INFO`); `None` before it has.
pub(super) fn round_trip(socket: &impl AsRawFd) -> Option<Duration> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and `info` is writable for `length` bytes.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    // SAFETY: zeroed at first, it holds integers only, so any bytes that were written make a valid value.
    let info = unsafe { info.assume_init() };
    (result == 0 && info.tcpi_rtt > 0).then(|| Duration::from_micros(info.tcpi_rtt.into()))
}

/// What Go says when a deadline has passed.
pub(super) const TIMEOUT: &str = "i/o timeout";

/// Connects to `address`, from the local address `bind` if given. The error's text is the one that
/// people know: `dial tcp :0->IP:PORT: connect: no route to host`.
pub async fn dial(address: SocketAddr, bind: Option<IpAddr>) -> io::Result<TcpStream> {
    let from = bind.map_or_else(|| ":0".to_owned(), |ip| SocketAddr::new(ip, 0).to_string());
    let failed = |kind, text: String| io::Error::new(kind, format!("dial tcp {from}->{address}: {text}"));
    let connect = async {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        if let Some(ip) = bind {
            socket.bind(SocketAddr::new(ip, 0))?;
        }
        socket.connect(address).await
    };
    match timeout(CONNECT_TIMEOUT, connect).await {
        Ok(result) => result.map_err(|e| failed(e.kind(), format!("connect: {}", reason(&e)))),
        Err(_) => Err(failed(io::ErrorKind::TimedOut, TIMEOUT.to_owned())),
    }
}

/// Listens on `host`, or on all addresses, IPv4 and IPv6; IPv4 only where there is no IPv6. Port 0
/// picks one. Must be called within a tokio runtime. Use [`canonical`] on addresses of what it accepts.
pub fn listen(host: Option<IpAddr>, port: u16) -> io::Result<TcpListener> {
    let v4 = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    match host {
        Some(ip) => listen_on(SocketAddr::new(ip, port)),
        None => match listen_on(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)) {
            Err(error) if no_ipv6(&error) => listen_on(SocketAddr::new(v4, port)),
            result => result,
        },
    }
}

/// The kernel has no IPv6, or it is switched off.
fn no_ipv6(error: &io::Error) -> bool {
    [libc::EAFNOSUPPORT, libc::EADDRNOTAVAIL, libc::EPROTONOSUPPORT]
        .iter()
        .any(|code| error.raw_os_error() == Some(*code))
}

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Options of every control connection. Closing discards what is unsent (wire.md 2.1).
pub(super) fn configure(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_tcp_nodelay(true)?;
    let probes = TcpKeepalive::new()
        .with_time(PROBE_AFTER)
        .with_interval(PROBE_EVERY);
    socket.set_tcp_keepalive(&probes)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}

/// The address with IPv4 as IPv4, which a socket for both shows as IPv6.
#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The cause alone, in Go's words: the C library's, in lower case.
pub(super) fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => Errno::from_raw(code).desc().to_lowercase(),
        None => error.to_string(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_in_gos_words() {
        for (code, text) in [
            (libc::ECONNREFUSED, "connection refused"),
            (libc::EHOSTUNREACH, "no route to host"),
            (libc::ENETUNREACH, "network is unreachable"),
            (libc::ECONNRESET, "connection reset by peer"),
            (libc::ETIMEDOUT, "connection timed out"),
        ] {
            assert_eq!(reason(&io::Error::from_raw_os_error(code)), text);
        }
    }

    #[tokio::test]
    async fn dialling_nobody() {
        // A bound socket that does not listen keeps the port from others.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        let error = dial(address, None).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(
            error.to_string(),
            format!("dial tcp :0->{address}: connect: connection refused")
        );
        let error = dial(address, Some("127.0.0.2".parse().unwrap()))
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("dial tcp 127.0.0.2:0->{address}: connect: connection refused")
        );
    }

    #[tokio::test]
    async fn listening_on_all_addresses() {
        let listener = listen(None, 0).unwrap();
        let port = listener.local_addr().unwrap().port();
        let local = "127.0.0.3".parse().unwrap();
        let _stream = dial(SocketAddr::from(([127, 0, 0, 1], port)), Some(local))
            .await
            .unwrap();
        let (_, remote) = listener.accept().await.unwrap();
        assert_eq!(canonical(remote).ip(), local);

        let v6 = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port);
        if listen(Some(v6.ip()), 0).is_ok() {
            let _stream = dial(v6, None).await.unwrap();
            assert_eq!(canonical(listener.accept().await.unwrap().1).ip(), v6.ip());
        }
        assert_eq!(listen(None, port).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
