//! The container's hosts file, with its addresses on the network (control.md 4.6).

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use super::container_file;

/// Follows our lines.
const LOCALHOST: &str = "
# default localhost entries
127.0.0.1       localhost
::1             ip6-localhost ip6-loopback
fe00::0         ip6-localnet
ff00::0         ip6-mcastprefix
ff02::1         ip6-allnodes
ff02::2         ip6-allrouters
# created by Weave - END
";

/// A name with an address of its own, as given by `--add-host NAME:ADDR`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticHost {
    /// The name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
}

impl std::str::FromStr for StaticHost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // An IPv6 address has colons of its own.
        let parts = text.split_once(':');
        let (name, address) = parts.ok_or_else(|| "should be NAME:ADDRESS".to_owned())?;
        let plain = |c: char| c.is_ascii_graphic() && c != '#';
        if name.is_empty() || !name.chars().all(plain) {
            return Err(format!("\"{name}\" is no name of a host"));
        }
        let address = address
            .parse()
            .map_err(|_| format!("\"{address}\" is no IP address"))?;
        Ok(Self {
            name: name.to_owned(),
            address,
        })
    }
}

/// The whole file: `fqdn` is without trailing dot, `hostname` its first part.
#[must_use]
pub fn text(addresses: &[Ipv4Addr], fqdn: Option<&str>, hostname: &str, hosts: &[StaticHost]) -> String {
    let mut text = "# created by Weave - BEGIN\n# container hostname\n".to_owned();
    let names = match fqdn {
        Some(fqdn) if fqdn != hostname => format!("{fqdn} {hostname}"),
        _ => hostname.to_owned(),
    };
    for address in addresses {
        let _ = writeln!(text, "{:<15} {names}", address.to_string());
    }
    text.push_str("\n# static names added with --add-host\n");
    for host in hosts {
        let _ = writeln!(text, "{:<15}  {}", host.address.to_string(), host.name);
    }
    text.push_str(LOCALHOST);
    text
}

/// The first address that a hosts file gives a name.
#[must_use]
pub fn address_of(text: &str, name: &str) -> Option<IpAddr> {
    text.lines().find_map(|line| {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|word| word == name).then_some(address)
    })
}

/// Puts the text into the file that Docker shows to the container, and into a new one under the same name: so
/// the container sees it, and Docker, which writes under the name, no longer changes what the container sees.
///
/// # Errors
/// If the file is not a plain one, or cannot be written.
pub fn rewrite(path: &Path, text: &str) -> io::Result<()> {
    let mode = container_file::write(path, text)?.permissions().mode();
    fs::remove_file(path)?;
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode & 0o777)
        .open(path)?
        .write_all(text.as_bytes())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn as_the_original_writes_it() {
        let addresses = ["10.32.0.5", "192.168.100.200"].map(|a| a.parse().unwrap());
        let hosts = ["db:10.0.0.7", "six:fd00::7"].map(|h| h.parse().unwrap());
        let whole = text(&addresses, Some("web.weave.local"), "web", &hosts);
        let expected = "# created by Weave - BEGIN
# container hostname
10.32.0.5       web.weave.local web
192.168.100.200 web.weave.local web

# static names added with --add-host
10.0.0.7         db
fd00::7          six

# default localhost entries
127.0.0.1       localhost
";
        assert!(whole.starts_with(expected), "{whole}");
        assert!(whole.ends_with("ff02::2         ip6-allrouters\n# created by Weave - END\n"));
        assert!(text(&addresses, None, "web", &[]).contains("10.32.0.5       web\n"));
    }

    #[test]
    fn addresses_of_names() {
        let text =
            "# 10.0.0.1 a\n127.0.0.1\tlocalhost\n172.17.0.1 host.docker.internal b # c\nx b\n10.0.0.2 b\n";
        for (name, address) in [
            ("host.docker.internal", Some("172.17.0.1")),
            ("b", Some("172.17.0.1")),
            ("a", None),
            ("c", None),
        ] {
            let found = address_of(text, name).map(|a| a.to_string());
            assert_eq!(found.as_deref(), address, "{name}");
        }
    }

    #[test]
    fn static_hosts() {
        for bad in [
            "db",
            ":10.0.0.1",
            "db:",
            "db:host-gateway",
            "d b:10.0.0.1",
            "d\nb:10.0.0.1",
            "#:::1",
        ] {
            assert!(bad.parse::<StaticHost>().is_err(), "{bad}");
        }
    }

    #[test]
    fn who_has_the_file_open_sees_it_and_docker_gets_another() {
        use std::io::Read as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        fs::write(&path, "127.0.0.1 a much longer text than what is to come\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let mut seen = fs::File::open(&path).unwrap();
        rewrite(&path, "new\n").unwrap();
        OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"docker\n")
            .unwrap();
        let mut text = String::new();
        seen.read_to_string(&mut text).unwrap();
        assert_eq!(text, "new\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "new\ndocker\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    }
}
