//! Many datagrams in one system call: the calls are most of what answering costs.
//!
//! Where a socket listens on all addresses, each answer leaves from the address that was asked.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;

/// Datagrams in one call.
pub const MOST: usize = 32;
/// The largest query read; what is longer is dropped.
const LARGEST_QUERY: usize = 2048;

/// A datagram's ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Who sent the query.
    pub asker: SocketAddrV4,
    /// The address of ours that it was sent to; `None` where the socket has only one.
    pub asked: Option<Ipv4Addr>,
}

/// One control message, `IP_PKTINFO`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Control {
    header: libc::cmsghdr,
    info: libc::in_pktinfo,
    _pad: [u8; 4],
}

/// Length of the header and what it holds, as in `cmsg_len`.
const CONTROL_LEN: usize = size_of::<libc::cmsghdr>() + size_of::<libc::in_pktinfo>();

/// Room for what arrives.
pub struct Batch {
    queries: Box<[[u8; LARGEST_QUERY]]>,
    /// Ends, buffer and length of each.
    arrived: Vec<(Ends, usize, usize)>,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            queries: vec![[0; LARGEST_QUERY]; MOST].into(),
            arrived: Vec::with_capacity(MOST),
        }
    }
}

impl Batch {
    /// Waits until something arrives and takes what is there. Datagrams that are too long for a query are left out.
    pub fn receive(&mut self, socket: &impl AsRawFd) -> io::Result<()> {
        self.arrived.clear();
        let mut headers = [const { MaybeUninit::<libc::mmsghdr>::zeroed() }; MOST];
        let mut addresses = [const { MaybeUninit::<libc::sockaddr_in>::zeroed() }; MOST];
        let mut vectors = [const { MaybeUninit::<libc::iovec>::zeroed() }; MOST];
        let mut controls = [const { MaybeUninit::<Control>::zeroed() }; MOST];
        let places = headers
            .iter_mut()
            .zip(&mut addresses)
            .zip(&mut vectors)
            .zip(&mut controls);
        for (query, (((header, address), vector), control)) in self.queries.iter_mut().zip(places) {
            let vector = vector.write(libc::iovec {
                iov_base: query.as_mut_ptr().cast(),
                iov_len: LARGEST_QUERY,
            });
            // SAFETY: zero is a value for each of its fields: integers and pointers.
            let header = &mut unsafe { header.assume_init_mut() }.msg_hdr;
            header.msg_name = address.as_mut_ptr().cast();
            header.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            header.msg_iov = vector;
            header.msg_iovlen = 1;
            header.msg_control = control.as_mut_ptr().cast();
            header.msg_controllen = size_of::<Control>() as _;
        }
        // SAFETY: all headers are filled in with pointers to, and lengths of, what lives until the call is over.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr().cast(),
                MOST as u32,
                libc::MSG_WAITFORONE,
                std::ptr::null_mut(),
            )
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        let filled = headers.iter().zip(&addresses).zip(&controls).take(count);
        for (place, ((header, address), control)) in filled.enumerate() {
            // SAFETY: all three were zeroed, which is a value for each of their fields; the kernel wrote to them.
            let (header, address, control) = unsafe {
                (
                    header.assume_init_ref(),
                    address.assume_init_ref(),
                    control.assume_init_ref(),
                )
            };
            if header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 {
                continue;
            }
            let has_info = header.msg_hdr.msg_controllen >= CONTROL_LEN as _
                && control.header.cmsg_level == libc::IPPROTO_IP
                && control.header.cmsg_type == libc::IP_PKTINFO;
            let ends = Ends {
                asker: SocketAddrV4::new(ip(address.sin_addr), u16::from_be(address.sin_port)),
                asked: has_info.then(|| ip(control.info.ipi_spec_dst)),
            };
            self.arrived.push((ends, place, header.msg_len as usize));
        }
        Ok(())
    }

    /// What arrived at the last call.
    pub fn queries(&self) -> impl Iterator<Item = (Ends, &[u8])> {
        self.arrived.iter().filter_map(|(ends, place, length)| {
            let query = self.queries.get(*place)?;
            Some((*ends, query.get(..*length)?))
        })
    }
}

fn ip(address: libc::in_addr) -> Ipv4Addr {
    Ipv4Addr::from(address.s_addr.to_ne_bytes())
}

/// Sends answers; those that cannot be sent now are lost, as datagrams may be.
pub fn send<'a>(socket: &impl AsRawFd, answers: impl Iterator<Item = (Ends, &'a [u8])>) {
    let mut headers = [const { MaybeUninit::<libc::mmsghdr>::zeroed() }; MOST];
    let mut addresses = [const { MaybeUninit::<libc::sockaddr_in>::zeroed() }; MOST];
    let mut vectors = [const { MaybeUninit::<libc::iovec>::zeroed() }; MOST];
    let mut controls = [const { MaybeUninit::<Control>::zeroed() }; MOST];
    let places = headers
        .iter_mut()
        .zip(&mut addresses)
        .zip(&mut vectors)
        .zip(&mut controls);
    let mut count = 0;
    for ((ends, answer), (((header, address), vector), control)) in answers.zip(places) {
        count += 1;
        let vector = vector.write(libc::iovec {
            iov_base: answer.as_ptr().cast_mut().cast(),
            iov_len: answer.len(),
        });
        let address = address.write(libc::sockaddr_in {
            sin_family: libc::AF_INET as libc::sa_family_t,
            sin_port: ends.asker.port().to_be(),
            sin_addr: in_addr(*ends.asker.ip()),
            sin_zero: [0; 8],
        });
        // SAFETY: zero is a value for each of its fields: integers and pointers.
        let header = &mut unsafe { header.assume_init_mut() }.msg_hdr;
        header.msg_name = std::ptr::from_mut(address).cast();
        header.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
        header.msg_iov = vector;
        header.msg_iovlen = 1;
        if let Some(asked) = ends.asked {
            let control = control.write(Control {
                header: libc::cmsghdr {
                    cmsg_len: CONTROL_LEN as _,
                    cmsg_level: libc::IPPROTO_IP,
                    cmsg_type: libc::IP_PKTINFO,
                },
                info: libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: in_addr(asked),
                    ipi_addr: in_addr(Ipv4Addr::UNSPECIFIED),
                },
                _pad: [0; 4],
            });
            header.msg_control = std::ptr::from_mut(control).cast();
            header.msg_controllen = size_of::<Control>() as _;
        }
    }
    let mut done = 0;
    while let Some(rest @ [_, ..]) = headers.get_mut(done..count) {
        // SAFETY: these headers are filled in with pointers to what lives until the call is over; the kernel only
        // reads the answers.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                rest.as_mut_ptr().cast(),
                rest.len() as u32,
                libc::MSG_DONTWAIT,
            )
        };
        // An error is about the first of them.
        done += usize::try_from(sent).map_or(1, |sent| sent.max(1));
    }
}

fn in_addr(address: Ipv4Addr) -> libc::in_addr {
    libc::in_addr {
        s_addr: u32::from_ne_bytes(address.octets()),
    }
}
