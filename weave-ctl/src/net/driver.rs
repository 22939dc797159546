//! The driver of an interface (ethtool's `ETHTOOL_GDRVINFO`). Unlike sysfs, this answers for the
//! caller's own network namespace.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

const ETHTOOL_GDRVINFO: u32 = 3;

/// `struct ethtool_drvinfo` of linux/ethtool.h, as far as it is of interest.
#[repr(C)]
struct DriverInfo {
    cmd: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

/// Name of the driver: `veth`, `virtio_net`, `mlx5_core`. `None` when the device does not tell.
#[must_use]
pub fn driver(interface: &str) -> Option<String> {
    let info = query(interface).ok()?;
    let name = info.driver.split(|b| *b == 0).next()?;
    String::from_utf8(name.to_vec())
        .ok()
        .filter(|name| !name.is_empty())
}

fn query(interface: &str) -> io::Result<DriverInfo> {
    // SAFETY: all-zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (slot, byte) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *slot = byte as libc::c_char;
    }
    let mut info = DriverInfo {
        cmd: ETHTOOL_GDRVINFO,
        driver: [0; 32],
        rest: [0; 160],
    };
    request.ifr_ifru.ifru_data = std::ptr::from_mut(&mut info).cast();
    let socket = UdpSocket::bind("127.0.0.1:0").or_else(|_| UdpSocket::bind("0.0.0.0:0"))?;
    // SAFETY: the request names an interface and points to a structure of the size that this
    // command fills; both live until the call returns.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &mut request) };
    if result == 0 {
        Ok(info)
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn no_such_interface_has_no_driver() {
        assert_eq!(driver("weave-none"), None);
        assert_eq!(driver("a-name-that-is-far-too-long"), None);
    }

    #[test]
    fn the_structure_has_the_kernels_size() {
        assert_eq!(size_of::<DriverInfo>(), 196);
    }
}
