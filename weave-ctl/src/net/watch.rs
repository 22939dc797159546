//! A stream of changes to links, addresses, routes and neighbours.

use std::collections::VecDeque;
use std::io;
use std::net::Ipv4Addr;

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rtnetlink::MulticastGroup;
use tokio::io::unix::AsyncFd;

use super::link::Link;
use super::{Mac, NetError, Netns, underlay};

const GROUPS: [MulticastGroup; 4] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
];
/// Asked of the kernel for bursts, in bytes; it may give less.
const BUFFER: usize = 1 << 20;

/// No notification of the kernel is larger, in bytes.
const DATAGRAM: usize = 1 << 16;

/// Something changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A device appeared, changed or went.
    Link {
        /// Interface index.
        index: u32,
        /// Name.
        name: String,
        /// Set up by the administrator.
        up: bool,
        /// It no longer exists here.
        gone: bool,
        /// Index of the bridge it is a port of.
        master: Option<u32>,
        /// What somebody has noted beside its name.
        alias: Option<String>,
    },
    /// IPv4 addresses changed.
    Address,
    /// IPv4 routes changed.
    Route,
    /// An IPv4 neighbour was resolved, changed, or lost.
    Neighbour {
        /// Its address.
        ip: Ipv4Addr,
        /// Index of the device.
        oif: u32,
        /// Its Ethernet address, if it may be used.
        mac: Option<Mac>,
    },
    /// Changes were lost because they were not read fast enough: look at everything again.
    Lost,
}

/// Reads changes in one namespace. Holds no more than one datagram of them; the kernel's buffer
/// bounds the rest.
pub struct Watcher {
    socket: AsyncFd<Socket>,
    buffer: Vec<u8>,
    ready: VecDeque<Change>,
}

impl Watcher {
    /// Begins to watch; nothing that happens after the return is missed.
    pub async fn open(ns: &Netns) -> Result<Self, NetError> {
        let failed = |e| NetError::kernel("watch network changes", e);
        let socket = ns.run(subscribe).await?.map_err(failed)?;
        // SAFETY: the socket owns its descriptor and is neither replaced nor closed before it is
        // dropped together with the registration.
        let socket = unsafe { AsyncFd::register(socket) }.map_err(|e| failed(e.into()))?;
        Ok(Self {
            socket,
            buffer: Vec::with_capacity(DATAGRAM),
            ready: VecDeque::new(),
        })
    }

    /// The next change. Safe to cancel: nothing is lost.
    pub async fn next(&mut self) -> Result<Change, NetError> {
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Ok(change);
            }
            let failed = |e| NetError::kernel("read network changes", e);
            let mut guard = self.socket.readable().await.map_err(failed)?;
            self.buffer.clear();
            match guard.try_io(|socket| socket.get_ref().recv_from(&mut self.buffer, 0)) {
                Ok(Ok((_, from))) if from.port_number() == 0 => read(&self.buffer, &mut self.ready),
                // Only the kernel is believed.
                Ok(Ok(_)) | Err(_) => {}
                Ok(Err(e)) if e.raw_os_error() == Some(libc::ENOBUFS) => return Ok(Change::Lost),
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(e)) => return Err(failed(e)),
            }
        }
    }
}

fn subscribe() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.set_non_blocking(true)?;
    socket.set_rx_buf_sz(BUFFER)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    for group in GROUPS {
        socket.add_membership(group as u32)?;
    }
    Ok(socket)
}

fn read(mut datagram: &[u8], into: &mut VecDeque<Change>) {
    while let Some(header) = datagram.first_chunk::<4>() {
        let length = usize::try_from(u32::from_ne_bytes(*header)).unwrap_or(usize::MAX);
        if let Ok(message) = NetlinkMessage::<Message>::deserialize(datagram)
            && let NetlinkPayload::InnerMessage(message) = message.payload
        {
            into.extend(change(&message));
        }
        // Messages begin at multiples of four bytes.
        let step = length.saturating_add(3) & !3;
        match datagram.get(step.max(4)..) {
            Some(rest) => datagram = rest,
            None => return,
        }
    }
}

fn change(message: &Message) -> Option<Change> {
    match message {
        Message::NewLink(link) | Message::DelLink(link) => {
            // In the bridge's family the same messages speak of ports, and "deleted" is a port that
            // left its bridge.
            if link.header.interface_family != AddressFamily::Unspec {
                return None;
            }
            let gone = matches!(message, Message::DelLink(_));
            let link = Link::from_message(link);
            Some(Change::Link {
                index: link.index,
                name: link.name,
                up: link.up,
                gone,
                master: link.master,
                alias: link.alias,
            })
        }
        Message::NewAddress(_) | Message::DelAddress(_) => Some(Change::Address),
        Message::NewRoute(_) | Message::DelRoute(_) => Some(Change::Route),
        Message::NewNeighbour(neighbour) => {
            let now = underlay::read(neighbour);
            neighbour_change(neighbour, now.mac.filter(|_| now.usable))
        }
        Message::DelNeighbour(neighbour) => neighbour_change(neighbour, None),
        _ => None,
    }
}

fn neighbour_change(message: &NeighbourMessage, mac: Option<Mac>) -> Option<Change> {
    let ip = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(*ip),
        _ => None,
    })?;
    Some(Change::Neighbour {
        ip,
        oif: message.header.ifindex,
        mac,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::net::testing::{ip, new_host};

    /// Reads until the change is there.
    async fn expect(watcher: &mut Watcher, wanted: impl Fn(&Change) -> bool, what: &str) {
        let reading = async { while !wanted(&watcher.next().await.unwrap()) {} };
        assert!(
            tokio::time::timeout(Duration::from_secs(20), reading)
                .await
                .is_ok(),
            "{what}"
        );
    }

    #[tokio::test]
    async fn changes_arrive() {
        let Some(nl) = new_host().await else { return };
        let mut watcher = Watcher::open(nl.ns()).await.unwrap();
        ip(nl.ns(), "link add br0 type bridge").await;
        ip(nl.ns(), "link add eth0 type veth peer name x").await;
        let (br, eth) = (nl.link("br0").await.unwrap(), nl.link("eth0").await.unwrap());
        ip(nl.ns(), "link set eth0 up master br0").await;
        let port = |c: &Change| {
            matches!(c, Change::Link { name, up: true, gone: false, master, .. }
                if name == "eth0" && *master == Some(br.index))
        };
        expect(&mut watcher, port, "a port").await;

        // Leaving the bridge is no end of the device.
        ip(nl.ns(), "link set eth0 nomaster").await;
        ip(nl.ns(), "link set x up").await;
        let free = |c: &Change| {
            assert!(!matches!(c, Change::Link { name, gone: true, .. } if name == "eth0"));
            matches!(c, Change::Link { name, master: None, .. } if name == "eth0")
        };
        expect(&mut watcher, free, "out of the bridge").await;

        ip(nl.ns(), "addr add 192.168.7.2/24 dev eth0").await;
        expect(&mut watcher, |c| *c == Change::Address, "an address").await;
        ip(nl.ns(), "route add 10.0.0.0/8 via 192.168.7.1").await;
        expect(&mut watcher, |c| *c == Change::Route, "a route").await;

        let neighbour = |mac| Change::Neighbour {
            ip: Ipv4Addr::new(192, 168, 7, 1),
            oif: eth.index,
            mac,
        };
        let add = "neigh add 192.168.7.1 lladdr 02:00:00:00:00:99 dev eth0";
        ip(nl.ns(), add).await;
        let known = neighbour(Some([2, 0, 0, 0, 0, 0x99]));
        expect(&mut watcher, |c| *c == known, "a neighbour").await;
        ip(nl.ns(), "neigh del 192.168.7.1 dev eth0").await;
        expect(&mut watcher, |c| *c == neighbour(None), "no neighbour").await;

        ip(nl.ns(), "link del eth0").await;
        let gone = |c: &Change| matches!(c, Change::Link { index, gone: true, .. } if *index == eth.index);
        expect(&mut watcher, gone, "gone").await;
    }

    #[tokio::test]
    async fn a_slow_reader_is_told_that_it_missed_something() {
        let Some(nl) = new_host().await else { return };
        let mut watcher = Watcher::open(nl.ns()).await.unwrap();
        let lo = nl.link("lo").await.unwrap();
        watcher.socket.get_ref().set_rx_buf_sz(1024_usize).unwrap();
        for mtu in 1000..1100 {
            nl.set_mtu(&lo, mtu).await.unwrap();
        }
        expect(&mut watcher, |c| *c == Change::Lost, "lost").await;
    }

    #[test]
    fn broken_datagrams_end_quietly() {
        let mut changes = VecDeque::new();
        for datagram in [&[][..], &[0; 3], &[0; 64], &[255; 64], &[16, 0, 0, 0, 16, 0]] {
            read(datagram, &mut changes);
        }
        assert!(changes.is_empty());
    }
}
