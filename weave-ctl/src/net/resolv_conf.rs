//! The container's `resolv.conf`, with our DNS server in it (issue 5).
//!
//! Ours becomes the first nameserver, and the domain the first to search in; what was there stays behind it. So
//! names outside the domain are resolved also while the daemon is away: the resolver then goes on to the next
//! nameserver at once, as nobody listens on our port. Our lines are marked, and the search list that ours
//! replaces becomes a comment, so that everything can be undone.

use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use super::container_file;

const BEGIN: &str = "# WeaveDNS - BEGIN (added by 'weave attach', removed by 'weave detach')";
const END: &str = "# WeaveDNS - END";
/// Before a line that ours replaces.
const REPLACED: &str = "#weave# ";
/// Docker's own server inside containers on networks with names.
const EMBEDDED: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11));

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has our server.
    Ours,
    /// It names Docker's own server, which alone knows the names of Docker's networks.
    Embedded,
}

/// Writes our server into the file.
///
/// # Errors
/// If the file is not a plain one, or cannot be read or written.
pub fn add(path: &Path, server: Ipv4Addr, domain: &str) -> io::Result<Outcome> {
    let text = container_file::read(path)?;
    let before = without(&text);
    if nameservers(&before).any(|server| server == EMBEDDED) {
        return Ok(Outcome::Embedded);
    }
    change(path, &text, &with(&before, server, domain))?;
    Ok(Outcome::Ours)
}

/// Takes our server out again. Nothing happens if it is not there.
///
/// # Errors
/// As [`add`].
pub fn remove(path: &Path) -> io::Result<()> {
    let text = container_file::read(path)?;
    change(path, &text, &without(&text))
}

fn change(path: &Path, from: &str, to: &str) -> io::Result<()> {
    if from == to {
        return Ok(());
    }
    container_file::write(path, to).map(drop)
}

/// `line` without the keyword, if it begins with one of these.
fn value<'a>(line: &'a str, keywords: &[&str]) -> Option<&'a str> {
    let (word, rest) = line.trim_start().split_once([' ', '\t'])?;
    keywords.contains(&word).then_some(rest)
}

fn nameservers(text: &str) -> impl Iterator<Item = IpAddr> {
    text.lines()
        .filter_map(|line| value(line, &["nameserver"])?.trim().parse().ok())
}

/// The last `search` or `domain` line counts, for resolvers; so theirs goes, and its domains follow ours.
fn with(text: &str, server: Ipv4Addr, domain: &str) -> String {
    let same = |a: &str, b: &str| {
        a.trim_end_matches('.')
            .eq_ignore_ascii_case(b.trim_end_matches('.'))
    };
    let searches = ["search", "domain"];
    let theirs = text.lines().filter_map(|line| value(line, &searches)).next_back();
    let mut search = format!("search {}", domain.trim_end_matches('.'));
    for other in theirs.unwrap_or_default().split_whitespace() {
        if !same(other, domain) {
            let _ = write!(search, " {other}");
        }
    }
    let mut new = format!("{BEGIN}\n{search}\nnameserver {server}\n{END}\n");
    for line in text.lines() {
        let ours = value(line, &["nameserver"]).is_some_and(|t| t.trim() == server.to_string());
        let replaced = ours || value(line, &searches).is_some();
        let mark = if replaced { REPLACED } else { "" };
        let _ = writeln!(new, "{mark}{line}");
    }
    new
}

fn without(text: &str) -> String {
    let (mut old, mut ours) = (String::new(), false);
    for line in text.split_inclusive('\n') {
        match line.trim_end() {
            BEGIN => ours = true,
            END => ours = false,
            _ if ours => {}
            _ => old.push_str(line.strip_prefix(REPLACED).unwrap_or(line)),
        }
    }
    old
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SERVER: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 1);

    #[test]
    fn ours_comes_first_and_goes_without_a_trace() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let old = "# by Docker\ndomain old.example\nsearch corp.example WEAVE.local b.example\n\
                   nameserver 8.8.8.8\nnameserver 172.17.0.1\noptions ndots:2\n";
        std::fs::write(&path, old).unwrap();
        // The second time with another domain: the daemon was launched anew.
        for domain in ["other.", "weave.local."] {
            assert_eq!(add(&path, SERVER, domain).unwrap(), Outcome::Ours);
        }
        let new = std::fs::read_to_string(&path).unwrap();
        let effective: Vec<&str> = new.lines().filter(|l| !l.starts_with('#')).collect();
        assert_eq!(
            effective,
            [
                "search weave.local corp.example b.example",
                "nameserver 172.17.0.1",
                "nameserver 8.8.8.8",
                "options ndots:2"
            ]
        );
        for _ in 0..2 {
            remove(&path).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), old);
        }
    }

    #[test]
    fn an_empty_file_gets_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        std::fs::write(&path, "").unwrap();
        add(&path, SERVER, "weave.local.").unwrap();
        let new = std::fs::read_to_string(&path).unwrap();
        assert!(
            new.contains("search weave.local\nnameserver 172.17.0.1\n"),
            "{new}"
        );
        remove(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
    }

    #[test]
    fn what_must_not_be_touched() {
        let dir = tempfile::tempdir().unwrap();
        let [path, link] = ["resolv.conf", "link"].map(|name| dir.path().join(name));
        let embedded = "nameserver 127.0.0.11\noptions ndots:0\n";
        std::fs::write(&path, embedded).unwrap();
        assert_eq!(add(&path, SERVER, "weave.local.").unwrap(), Outcome::Embedded);
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(add(&link, SERVER, "weave.local.").is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), embedded);
        std::fs::write(&path, "x".repeat(65_537)).unwrap();
        assert!(add(&path, SERVER, "weave.local.").is_err());
        assert!(add(dir.path(), SERVER, "weave.local.").is_err());
    }
}
