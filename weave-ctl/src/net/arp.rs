//! Gratuitous ARP: telling the neighbours where an address now lives (control.md 4.5).

use std::io;
use std::net::Ipv4Addr;

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use super::link::Link;
use super::{Mac, NetError, Netns};

const ETH_P_ARP: u16 = 0x0806;
const BROADCAST: Mac = [0xff; 6];

/// The frame: an ARP request by `mac` for its own address.
#[must_use]
pub fn gratuitous(mac: Mac, address: Ipv4Addr) -> [u8; 42] {
    let mut frame = [0; 42];
    let ip = address.octets();
    let parts: [&[u8]; 7] = [
        &BROADCAST,
        &mac,
        // ARP; Ethernet, IPv4, their lengths; request.
        &[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1],
        &mac,
        &ip,
        &[0; 6],
        &ip,
    ];
    for (to, from) in frame.iter_mut().zip(parts.concat()) {
        *to = from;
    }
    frame
}

/// Announces addresses out of a device, which must be up.
pub async fn announce(ns: &Netns, link: &Link, addresses: Vec<Ipv4Addr>) -> Result<(), NetError> {
    let Some(mac) = link.mac else { return Ok(()) };
    let (index, action) = (link.index, format!("announce addresses on {}", link.name));
    ns.run(move || addresses.into_iter().try_for_each(|a| send(index, mac, a)))
        .await?
        .map_err(|e| NetError::kernel(action, e))
}

fn send(index: u32, mac: Mac, address: Ipv4Addr) -> io::Result<()> {
    // Protocol 0: receive nothing.
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
    socket
        .send_to(&gratuitous(mac, address), &packet_address(index)?)
        .map(drop)
}

fn packet_address(index: u32) -> io::Result<SockAddr> {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is one of the address types that a sockaddr_storage has room and
    // alignment for, and all its bit patterns are valid.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    address.sll_protocol = ETH_P_ARP.to_be();
    address.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
    address.sll_halen = 6;
    address.sll_addr = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0];
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).map_err(io::Error::other)?;
    // SAFETY: the storage holds a complete sockaddr_ll of that length.
    Ok(unsafe { SockAddr::new(storage, length) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_layout() {
        let frame = gratuitous([2, 0, 0, 0, 0, 9], Ipv4Addr::new(10, 32, 0, 7));
        let hex: String = frame.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "ffffffffffff020000000009080600010800060400010200000000090a200007000000000000\
             0a200007"
        );
    }
}
