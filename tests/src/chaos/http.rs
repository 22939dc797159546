//! The control API of a host's daemon, spoken by hand: no command in between that could try again.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weave_ctl::api::report::Report;

use crate::lab::{Host, netns};

/// Where the daemon listens.
const CONTROL: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 6784);

/// One request; the body of the answer, which must be a success.
///
/// # Errors
/// No daemon, no answer within `limit`, or another status.
pub fn ask(host: &Host, method: &str, path: &str, limit: Duration) -> Result<String> {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: weave\r\nAccept: application/json\r\nConnection: close\r\n\r\n"
    );
    let answer = netns::inside(host.netns(), || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from(CONTROL), limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })
    .with_context(|| format!("{method} {path} on {}", host.name()))?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    ensure!(
        status.starts_with('2'),
        "{method} {path} on {}: {status} {}",
        host.name(),
        body.trim_end()
    );
    Ok(
        if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            unchunked(body)
        } else {
            body.to_owned()
        },
    )
}

fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let length = usize::from_str_radix(length.trim(), 16).unwrap_or(0);
        let Some(chunk) = rest.get(..length).filter(|_| length > 0) else {
            break;
        };
        whole.push_str(chunk);
        body = rest.get(length + 2..).unwrap_or_default();
    }
    whole
}

/// What the daemon tells about itself.
///
/// # Errors
/// As [`ask`].
pub fn report(host: &Host) -> Result<Report> {
    let text = ask(host, "GET", "/report", Duration::from_secs(20))?;
    serde_json::from_str(&text).with_context(|| format!("the report of {}", host.name()))
}

/// All addresses that the daemon says are in use on its host.
///
/// # Errors
/// As [`ask`].
pub fn owned(host: &Host) -> Result<Vec<(String, Ipv4Addr)>> {
    let text = ask(host, "GET", "/ip", Duration::from_secs(20))?;
    let page: serde_json::Value = serde_json::from_str(&text)?;
    let owners = page.get("owned").and_then(|owned| owned.as_array());
    let mut found = Vec::new();
    for owner in owners.into_iter().flatten() {
        let id = owner
            .get("containerid")
            .and_then(|id| id.as_str())
            .unwrap_or_default();
        let addresses = owner.get("addrs").and_then(|all| all.as_array());
        for address in addresses.into_iter().flatten() {
            found.push((id.to_owned(), address_of(address.as_str().unwrap_or_default())?));
        }
    }
    Ok(found)
}

/// The address in `10.32.0.1/12`.
///
/// # Errors
/// If there is none.
pub fn address_of(cidr: &str) -> Result<Ipv4Addr> {
    let address = cidr.trim().split('/').next().unwrap_or_default();
    address.parse().with_context(|| format!("no address: {cidr:?}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    #[test]
    fn chunks_and_addresses() {
        assert_eq!(super::unchunked("4\r\nabcd\r\n2\r\nef\r\n0\r\n\r\n"), "abcdef");
        assert_eq!(
            super::address_of("10.32.0.1/12\n").unwrap().octets(),
            [10, 32, 0, 1]
        );
        assert!(super::address_of("").is_err());
    }
}
