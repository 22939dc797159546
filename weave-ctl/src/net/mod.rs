//! Links, addresses, routes and namespaces through netlink.
//!
//! Everything works on a [`netlink::Netlink`], which belongs to one network namespace: no function
//! here depends on the namespace of the thread that calls it.

pub mod arp;
pub mod attach;
pub mod bridge;
pub mod container;
mod container_file;
pub mod driver;
pub mod endpoint;
pub mod error;
pub mod expose;
pub mod hosts_file;
pub mod identity;
pub mod link;
mod multicast;
pub mod netlink;
pub mod netns;
mod nft;
pub mod overlap;
pub mod ps;
pub mod resolv_conf;
mod scan;
#[cfg(test)]
pub(crate) mod testing;
pub mod underlay;
pub mod watch;

pub use error::NetError;
pub use netlink::Netlink;
pub use netns::Netns;

/// An Ethernet address, first byte first.
pub type Mac = [u8; 6];

/// Reads `aa:bb:cc:dd:ee:ff`; `None`: it is no Ethernet address.
#[must_use]
pub fn parse_mac(text: &str) -> Option<Mac> {
    let parts = text.split(':').map(|part| u8::from_str_radix(part, 16).ok());
    let bytes: Option<Vec<u8>> = parts.collect();
    bytes?.try_into().ok()
}

/// `aa:bb:cc:dd:ee:ff`.
#[must_use]
pub fn mac_text(mac: Mac) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}
