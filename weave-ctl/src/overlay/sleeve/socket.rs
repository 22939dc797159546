//! The UDP sockets: DF and non-DF, several messages and several packets per message at once.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use quinn_udp::{RecvMeta, UdpSocketState};
use socket2::{Domain, Protocol, Socket as RawSocket, Type};

use crate::overlay::sockopt::set;

/// Most packets in one message, as all kernels allow them.
pub const MAX_SEGMENTS: usize = 64;
/// Most messages in one system call.
pub const MAX_MESSAGES: usize = 32;
/// Kernel buffers of each socket, bytes: some milliseconds at 10 Gb/s.
const BUFFER: usize = 4 << 20;

/// One UDP socket.
pub struct Socket {
    socket: RawSocket,
    state: UdpSocketState,
    /// The kernel can cut a message into packets on the way out.
    gso: AtomicBool,
}

/// One message: a packet, or several of one size for one destination.
#[derive(Clone, Copy)]
pub struct Message<'a> {
    /// Destination.
    pub remote: SocketAddrV4,
    /// Source; unspecified: the kernel chooses.
    pub local: Ipv4Addr,
    /// The packets one after the other.
    pub contents: &'a [u8],
    /// Bytes of each but the last, if there are several.
    pub segment: Option<u16>,
}

impl Socket {
    /// Opens one of the sockets on the shared port. `df`: packets are never fragmented.
    pub fn shared(address: SocketAddrV4, df: bool) -> io::Result<Self> {
        let socket = RawSocket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_reuse_port(true)?;
        Self::bind(socket, address, df)
    }

    /// Opens a socket for sending VXLAN: any port, DF, no checksum (wire.md 8.1).
    pub fn vxlan() -> io::Result<Self> {
        let socket = RawSocket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        set(&socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1)?;
        Self::bind(socket, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0), true)
    }

    fn bind(socket: RawSocket, address: SocketAddrV4, df: bool) -> io::Result<Self> {
        socket.bind(&address.into())?;
        let state = UdpSocketState::new((&socket).into())?;
        // After quinn-udp has set its own idea of these.
        let discover = if df {
            libc::IP_PMTUDISC_DO
        } else {
            libc::IP_PMTUDISC_DONT
        };
        set(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, discover)?;
        let _ = set(&socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 0);
        for (forced, plain) in [
            (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF),
            (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF),
        ] {
            let size = BUFFER as i32;
            if set(&socket, libc::SOL_SOCKET, forced, size).is_err() {
                set(&socket, libc::SOL_SOCKET, plain, size)?;
            }
        }
        let gso = AtomicBool::new(state.max_gso_segments() > 1);
        Ok(Self { socket, state, gso })
    }

    /// Messages with several packets are worth a try.
    pub fn gso(&self) -> bool {
        self.gso.load(Ordering::Relaxed)
    }

    /// The network card cannot: do not try again.
    pub fn no_gso(&self) {
        self.gso.store(false, Ordering::Relaxed);
    }

    /// Receives what is there, into one buffer for each message.
    pub fn receive(&self, buffers: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> io::Result<usize> {
        self.state.recv((&self.socket).into(), buffers, meta)
    }

    /// Sends up to [`MAX_MESSAGES`] messages; returns how many the kernel took, at least one.
    /// The error is that of the first.
    pub fn send(&self, messages: &[Message<'_>]) -> io::Result<usize> {
        loop {
            match send_many(&self.socket, messages) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The control messages as one `struct`: what `CMSG_NXTHDR` would walk through.
#[repr(C)]
struct Controls {
    source: libc::cmsghdr,
    pktinfo: libc::in_pktinfo,
    _pad: u32,
    segment: libc::cmsghdr,
    size: u16,
    _pad2: [u16; 3],
}

// As `CMSG_SPACE` lays them out.
const _: () = assert!(size_of::<Controls>() == 56 && align_of::<Controls>() == 8);

fn controls(message: &Message<'_>) -> (Controls, usize) {
    let [a, b, c, d] = message.local.octets();
    let header = |level, kind, len: usize| {
        // SAFETY: a plain C struct of integers, for which zero is a value.
        let mut header: libc::cmsghdr = unsafe { MaybeUninit::zeroed().assume_init() };
        header.cmsg_level = level;
        header.cmsg_type = kind;
        header.cmsg_len = (size_of::<libc::cmsghdr>() + len) as _;
        header
    };
    let controls = Controls {
        source: header(libc::IPPROTO_IP, libc::IP_PKTINFO, size_of::<libc::in_pktinfo>()),
        pktinfo: libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: libc::in_addr {
                s_addr: u32::from_ne_bytes([a, b, c, d]),
            },
            ipi_addr: libc::in_addr { s_addr: 0 },
        },
        _pad: 0,
        segment: header(libc::SOL_UDP, libc::UDP_SEGMENT, size_of::<u16>()),
        size: message.segment.unwrap_or(0),
        _pad2: [0; 3],
    };
    let len = match message.segment {
        Some(_) => size_of::<Controls>(),
        None => std::mem::offset_of!(Controls, segment),
    };
    (controls, len)
}

fn send_many(socket: &RawSocket, messages: &[Message<'_>]) -> io::Result<usize> {
    let count = messages.len().min(MAX_MESSAGES);
    let mut headers = [const { MaybeUninit::<libc::mmsghdr>::zeroed() }; MAX_MESSAGES];
    let mut addresses = [const { MaybeUninit::<libc::sockaddr_in>::zeroed() }; MAX_MESSAGES];
    let mut vectors = [const { MaybeUninit::<libc::iovec>::zeroed() }; MAX_MESSAGES];
    let mut control = [const { MaybeUninit::<Controls>::uninit() }; MAX_MESSAGES];
    let places = headers
        .iter_mut()
        .zip(&mut addresses)
        .zip(&mut vectors)
        .zip(&mut control);
    for (message, (((header, address), vector), control)) in messages.iter().zip(places) {
        let (values, control_len) = controls(message);
        let control = control.write(values);
        let vector = vector.write(libc::iovec {
            iov_base: message.contents.as_ptr().cast_mut().cast(),
            iov_len: message.contents.len(),
        });
        let address = address.write(libc::sockaddr_in {
            sin_family: libc::AF_INET as libc::sa_family_t,
            sin_port: message.remote.port().to_be(),
            sin_addr: libc::in_addr {
                s_addr: u32::from_ne_bytes(message.remote.ip().octets()),
            },
            sin_zero: [0; 8],
        });
        // SAFETY: zero is a value for each of its fields: integers and pointers.
        let header = &mut unsafe { header.assume_init_mut() }.msg_hdr;
        header.msg_name = std::ptr::from_mut(address).cast();
        header.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
        header.msg_iov = vector;
        header.msg_iovlen = 1;
        header.msg_control = std::ptr::from_mut(control).cast();
        header.msg_controllen = control_len as _;
    }
    // SAFETY: the first `count` headers are filled in with pointers to what lives until the call is
    // over; the kernel only reads the messages.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr().cast(), count as u32, 0) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// The kernel's idea of a path's MTU, bytes of IP packet.
pub fn path_mtu(local: Ipv4Addr, remote: SocketAddrV4) -> io::Result<u16> {
    let socket = RawSocket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    set(
        &socket,
        libc::IPPROTO_IP,
        libc::IP_MTU_DISCOVER,
        libc::IP_PMTUDISC_DO,
    )?;
    socket.bind(&SocketAddrV4::new(local, 0).into())?;
    socket.connect(&remote.into())?;
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the kernel writes at most `len` bytes to `value`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU,
            std::ptr::from_mut(&mut value).cast(),
            &mut len,
        )
    };
    match result {
        0 => Ok(u16::try_from(value).unwrap_or(u16::MAX)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The IPv4 sender of what was received.
#[must_use]
pub fn sender(meta: &RecvMeta) -> Option<SocketAddrV4> {
    match meta.addr {
        SocketAddr::V4(address) => Some(address),
        SocketAddr::V6(_) => None,
    }
}

/// Waits until one of them can be read or is closed, or a signal comes.
pub fn wait<const N: usize>(on: [BorrowedFd<'_>; N]) -> io::Result<[bool; N]> {
    let mut polled = on.map(|fd| libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    });
    // SAFETY: `polled` has N entries.
    let result = unsafe { libc::poll(polled.as_mut_ptr(), N as libc::nfds_t, -1) };
    if result < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(polled.map(|entry| entry.revents != 0))
}
