//! Who listens on a port, from `/proc`.

use std::collections::BTreeMap;
use std::fs;

/// `LISTEN` of TCP, and an unconnected UDP socket, in `/proc/net`.
const LISTEN: &str = "0A";
const UNCONNECTED: &str = "07";

/// Ports out of `ports` with a listener, and which process that is, if that can be told.
pub(super) fn tcp(ports: impl IntoIterator<Item = u16>) -> BTreeMap<u16, Option<String>> {
    held(ports, &["/proc/net/tcp", "/proc/net/tcp6"], LISTEN)
}

/// Likewise of UDP.
pub(super) fn udp(ports: impl IntoIterator<Item = u16>) -> BTreeMap<u16, Option<String>> {
    held(ports, &["/proc/net/udp", "/proc/net/udp6"], UNCONNECTED)
}

fn held(ports: impl IntoIterator<Item = u16>, tables: &[&str], state: &str) -> BTreeMap<u16, Option<String>> {
    let text: String = tables
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .collect();
    let found: BTreeMap<u16, u64> = text.lines().filter_map(|line| socket(line, state)).collect();
    let wanted = ports.into_iter();
    wanted
        .filter_map(|port| Some((port, owner(*found.get(&port)?))))
        .collect()
}

/// Local port and inode of a line in that state.
fn socket(line: &str, state: &str) -> Option<(u16, u64)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (_, port) = words.get(1)?.rsplit_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let same = *words.get(3)? == state;
    same.then_some((port, words.get(9)?.parse().ok()?))
}

fn owner(inode: u64) -> Option<String> {
    let wanted = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?.flatten();
    for process in processes {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let files = fs::read_dir(process.path().join("fd"))
            .into_iter()
            .flatten()
            .flatten();
        for file in files {
            if fs::read_link(file.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str()) {
                let comm = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                return Some(format!("process {pid} ({})", comm.trim()));
            }
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_found_with_its_process() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let (tcp_port, udp_port) = (
            listener.local_addr().unwrap().port(),
            socket.local_addr().unwrap().port(),
        );
        let us = format!("process {} (", std::process::id());
        for (found, port) in [(tcp([tcp_port]), tcp_port), (udp([udp_port]), udp_port)] {
            let who = found.get(&port).cloned().flatten().unwrap();
            assert!(who.starts_with(&us), "{who}");
        }
        drop(listener);
        assert_eq!(tcp([tcp_port]), BTreeMap::new());
    }

    #[test]
    fn lines_of_proc() {
        let line = "   0: 0100007F:1A7F 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1";
        assert_eq!(socket(line, LISTEN), Some((6783, 4711)));
        assert_eq!(socket(line, UNCONNECTED), None);
        assert_eq!(socket("  sl  local_address rem_address   st", LISTEN), None);
        assert_eq!(socket("", LISTEN), None);
    }
}
