//! Sends heartbeats: ordinary UDP packets with DF set and no checksum (wire.md 8.1, 8.6).

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};

use crate::overlay::sockopt::set;

/// One socket for each local address, as the source must be that of the TCP connection.
#[derive(Debug, Default)]
pub struct Sender {
    sockets: BTreeMap<Ipv4Addr, UdpSocket>,
}

/// Local addresses kept at most: peers may make us use any address we have, but no more than that.
const MAX_SOCKETS: usize = 64;

impl Sender {
    /// Sends `payload` from `local` to UDP port `port` of `remote`. `EMSGSIZE` means that the path
    /// is too narrow for it.
    pub fn send(&mut self, local: Ipv4Addr, remote: Ipv4Addr, port: u16, payload: &[u8]) -> io::Result<()> {
        if !self.sockets.contains_key(&local) {
            if self.sockets.len() >= MAX_SOCKETS {
                self.sockets.clear();
            }
            self.sockets.insert(local, open(local)?);
        }
        let socket = self.sockets.get(&local).ok_or(io::ErrorKind::NotFound)?;
        match socket.send_to(payload, SocketAddrV4::new(remote, port)) {
            // Of an earlier datagram: nobody listens there yet.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            // The address may have gone and come back: the next attempt opens a new socket.
            Err(error) if error.raw_os_error() != Some(libc::EMSGSIZE) => {
                self.sockets.remove(&local);
                Err(error)
            }
            other => other.map(drop),
        }
    }
}

fn open(local: Ipv4Addr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(SocketAddrV4::new(local, 0))?;
    socket.set_nonblocking(true)?;
    set(
        &socket,
        libc::IPPROTO_IP,
        libc::IP_MTU_DISCOVER,
        libc::IP_PMTUDISC_DO,
    )?;
    set(&socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1)?;
    Ok(socket)
}
