//! What the kernel says of the container's network.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

/// The interface that weave gives a container, with a final zero.
const INTERFACE: &[u8] = b"ethwe\0";
/// 224.0.0.0, as it is on the wire.
const MULTICAST: [u8; 4] = [224, 0, 0, 0];
/// More than the kernel puts into one message, in bytes.
const BUFFER: usize = 64 * 1024;
/// Messages of netlink and their attributes begin at multiples of this.
const ALIGN: usize = 4;

/// Told of every change of interfaces and routes.
pub(crate) struct Network(OwnedFd);

impl Network {
    /// From now on no change is missed.
    pub(crate) fn subscribe() -> io::Result<Self> {
        let groups = libc::RTMGRP_LINK | libc::RTMGRP_IPV4_ROUTE;
        netlink(u32::try_from(groups).unwrap_or_default()).map(Self)
    }

    /// Waits for a change.
    pub(crate) fn changed(&self) -> Result<(), String> {
        let mut buffer = vec![0; BUFFER];
        loop {
            match receive(&self.0, &mut buffer) {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // Some were lost: as good as one.
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => return Ok(()),
                Err(e) => return Err(format!("cannot watch the network: {e}")),
            }
        }
    }

    /// Is there an IPv4 route to 224.0.0.0 with whatever length?
    pub(crate) fn has_multicast_route(&self) -> Result<bool, String> {
        multicast_route().map_err(|e| format!("cannot read the routes: {e}"))
    }
}

/// Is the interface there, and up?
pub(crate) fn is_up() -> bool {
    // SAFETY: `socket` and `ioctl` get valid arguments: `ifreq` is plain data, for which zeros are valid, and lives
    // through the call.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        if socket < 0 {
            return false;
        }
        let socket = OwnedFd::from_raw_fd(socket);
        let mut request: libc::ifreq = zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(INTERFACE) {
            *to = *from as libc::c_char;
        }
        let asked = libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request);
        asked == 0 && i32::from(request.ifr_ifru.ifru_flags) & libc::IFF_UP != 0
    }
}

fn netlink(groups: u32) -> io::Result<OwnedFd> {
    // SAFETY: `sockaddr_nl` is plain data, for which zeros are valid, and lives through the call.
    unsafe {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        let socket = libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE);
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(socket);
        let mut address: libc::sockaddr_nl = zeroed();
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        address.nl_groups = groups;
        let length = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
        match libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) {
            0 => Ok(socket),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer has that length and lives through the call.
    let got = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

fn multicast_route() -> io::Result<bool> {
    let socket = netlink(0)?;
    // A header of 16 bytes, then a route message of 12 of which only the family is set.
    let mut request = [0; 28];
    let length = u32::try_from(request.len()).unwrap_or_default();
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    put(&mut request, 0, &length.to_ne_bytes());
    put(&mut request, 4, &libc::RTM_GETROUTE.to_ne_bytes());
    put(&mut request, 6, &flags.to_ne_bytes());
    put(&mut request, 16, &[libc::AF_INET as u8]);
    // SAFETY: the request has that length and lives through the call.
    let sent = unsafe { libc::send(socket.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let (mut buffer, mut found) = (vec![0; BUFFER], false);
    loop {
        let got = match receive(&socket, &mut buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            got => got?,
        };
        let mut rest = buffer.get(..got).unwrap_or_default();
        while let Some((kind, message, after)) = next_message(rest) {
            rest = after;
            match i32::from(kind) {
                libc::NLMSG_DONE | libc::NLMSG_ERROR => return Ok(found),
                _ if kind == libc::RTM_NEWROUTE => found |= leads_to_multicast(message),
                _ => {}
            }
        }
        if got == 0 {
            return Ok(found);
        }
    }
}

fn put(to: &mut [u8], at: usize, bytes: &[u8]) {
    for (to, from) in to.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

/// Type and body of the first message, and what follows it.
fn next_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?);
    let length = usize::try_from(length).ok()?;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(16..length)?;
    let next = length.next_multiple_of(ALIGN).min(bytes.len());
    Some((kind, body, bytes.get(next..)?))
}

fn leads_to_multicast(route: &[u8]) -> bool {
    let mut rest = route.get(12..).unwrap_or_default();
    while let Some((kind, value, after)) = next_attribute(rest) {
        if kind == libc::RTA_DST && value == MULTICAST {
            return true;
        }
        rest = after;
    }
    false
}

fn next_attribute(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
    let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
    let value = bytes.get(4..length)?;
    let next = length.next_multiple_of(ALIGN).min(bytes.len());
    Some((kind, value, bytes.get(next..)?))
}
