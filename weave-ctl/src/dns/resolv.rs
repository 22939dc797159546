//! Upstream servers from resolv.conf(5), read again when the file changes (control.md 2.4).

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

/// How long a list is good without a look at the file.
const CHECK_EVERY: Duration = Duration::from_secs(5);
/// More servers than this are of no use.
const MOST: usize = 8;
/// More of the file than this is not read, in bytes.
const MOST_BYTES: u64 = 64 * 1024;

/// The servers of a text in its order, without those for which `ours` says that they are we.
pub fn parse(text: &str, port: u16, ours: impl Fn(IpAddr) -> bool) -> Vec<SocketAddr> {
    let mut servers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let server = words.next().and_then(|word| server(word, port));
        if let Some(server) = server.filter(|s| !ours(s.ip()) && !servers.contains(s)) {
            servers.push(server);
        }
    }
    servers.truncate(MOST);
    servers
}

/// An address; a link-local one has its interface after a `%`.
fn server(text: &str, port: u16) -> Option<SocketAddr> {
    if let Some((address, interface)) = text.split_once('%') {
        let address: Ipv6Addr = address.parse().ok()?;
        let number = interface.parse();
        let scope = number
            .or_else(|_| nix::net::if_::if_nametoindex(interface))
            .ok()?;
        return Some(SocketAddrV6::new(address, port, 0, scope).into());
    }
    Some(SocketAddr::new(text.parse().ok()?, port))
}

/// What is seen of a file without reading it: replacing it counts as a change as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    device_and_inode: (u64, u64),
    bytes: u64,
}

/// The list as the file has it.
#[derive(Debug)]
pub struct Resolv {
    path: Option<PathBuf>,
    port: u16,
    own: Vec<IpAddr>,
    servers: Vec<SocketAddr>,
    stamp: Option<Stamp>,
    checked: Option<Instant>,
}

impl Resolv {
    /// Of a file; `None`: there are no servers.
    pub fn new(path: Option<PathBuf>, port: u16) -> Self {
        Self {
            path,
            port,
            own: Vec::new(),
            servers: Vec::new(),
            stamp: None,
            checked: None,
        }
    }

    /// Our addresses, where we would only ask ourselves: if one is all addresses, all of this host count.
    pub fn set_own(&mut self, own: Vec<IpAddr>) {
        if own != self.own {
            self.own = own;
            (self.stamp, self.checked) = (None, None);
        }
    }

    /// The present servers, in the file's order, and whether they are others than at the last call. While the file
    /// cannot be read they stay what they were.
    pub fn servers(&mut self, now: Instant) -> (&[SocketAddr], bool) {
        let fresh = |at: Instant| now.saturating_duration_since(at) < CHECK_EVERY;
        let mut changed = false;
        if !self.checked.is_some_and(fresh) {
            self.checked = Some(now);
            changed = self.check();
        }
        (&self.servers, changed)
    }

    fn check(&mut self) -> bool {
        let Some((stamp, text)) = self.read() else {
            return false;
        };
        self.stamp = Some(stamp);
        let all = self.own.iter().any(IpAddr::is_unspecified);
        let host = if all { host_addresses() } else { Vec::new() };
        let ours = |ip: IpAddr| self.own.contains(&ip) || host.contains(&ip) || all && ip.is_loopback();
        let servers = parse(&text, self.port, ours);
        let changed = servers != self.servers;
        self.servers = servers;
        changed
    }

    /// The file, if it is another than the last one.
    fn read(&self) -> Option<(Stamp, String)> {
        use std::io::Read as _;
        use std::os::unix::fs::MetadataExt as _;

        let path = self.path.as_ref()?;
        let metadata = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
        let stamp = Stamp {
            modified: metadata.modified().ok()?,
            device_and_inode: (metadata.dev(), metadata.ino()),
            bytes: metadata.len(),
        };
        if self.stamp == Some(stamp) {
            return None;
        }
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).ok()?;
        file.take(MOST_BYTES).read_to_end(&mut bytes).ok()?;
        Some((stamp, String::from_utf8_lossy(&bytes).into_owned()))
    }
}

/// All addresses of this host; none if it does not tell.
fn host_addresses() -> Vec<IpAddr> {
    let all = nix::ifaddrs::getifaddrs().into_iter().flatten();
    all.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn texts(servers: &[SocketAddr]) -> Vec<String> {
        servers.iter().map(|s| s.ip().to_string()).collect()
    }

    #[test]
    fn lines() {
        let text = "# nameserver 192.0.2.9\nsearch a b\n nameserver\t192.0.2.1 # first\nnameserver\nnameserver x\n\
                    nameserver 172.17.0.1\nnameserver ::1\nnameserver fe80::1%1\nnameserver 192.0.2.1\n\
                    nameservers 192.0.2.8\noptions rotate";
        let ours: IpAddr = "172.17.0.1".parse().unwrap();
        let servers = parse(text, 53, |ip| ip == ours);
        assert_eq!(texts(&servers), ["192.0.2.1", "::1", "fe80::1"]);
        assert!(matches!(servers[2], SocketAddr::V6(v6) if v6.scope_id() == 1));
    }

    #[test]
    fn a_file_that_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let mut resolv = Resolv::new(Some(path.clone()), 53);
        resolv.set_own(vec!["172.17.0.1".parse().unwrap()]);
        let start = Instant::now();
        let later = |checks: u32| start + checks * CHECK_EVERY;
        assert_eq!(resolv.servers(start), (&[][..], false), "no file");

        std::fs::write(&path, "nameserver 192.0.2.1\nnameserver 172.17.0.1\n").unwrap();
        assert!(
            resolv.servers(start).0.is_empty(),
            "no look at the file before its time"
        );
        let (servers, changed) = resolv.servers(later(1));
        assert_eq!((texts(servers), changed), (vec!["192.0.2.1".to_owned()], true));

        let new = dir.path().join("new");
        std::fs::write(&new, "nameserver 192.0.2.2\nnameserver 172.17.0.1\n").unwrap();
        std::fs::rename(&new, &path).unwrap();
        let (servers, changed) = resolv.servers(later(2));
        assert_eq!((texts(servers), changed), (vec!["192.0.2.2".to_owned()], true));

        std::fs::remove_file(&path).unwrap();
        let (servers, changed) = resolv.servers(later(3));
        assert_eq!((texts(servers), changed), (vec!["192.0.2.2".to_owned()], false));
        std::fs::write(&path, "").unwrap();
        assert_eq!(
            resolv.servers(later(4)),
            (&[][..], true),
            "an empty file has none"
        );
    }

    #[test]
    fn listening_on_all_addresses() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        std::fs::write(&path, "nameserver 127.0.0.53\nnameserver 192.0.2.1\n").unwrap();
        let mut resolv = Resolv::new(Some(path), 53);
        for (own, servers) in [
            ("0.0.0.0", &["192.0.2.1"][..]),
            ("172.17.0.1", &["127.0.0.53", "192.0.2.1"]),
        ] {
            resolv.set_own(vec![own.parse().unwrap()]);
            assert_eq!(texts(resolv.servers(Instant::now()).0), servers);
        }
    }
}
