//! The control API of a host's daemon, spoken by hand: no command in between that could try again.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result};
use weave_ctl::api::report::Report;

use crate::lab::{Host, netns};
use crate::load::{self, CONTROL};

/// One request; the body of the answer, which must be a success.
///
/// # Errors
/// No daemon, no answer within `limit`, or another status.
pub fn ask(host: &Host, method: &'static str, path: &str, limit: Duration) -> Result<String> {
    let answer = netns::inside(host.netns(), || load::ask(CONTROL.parse()?, method, path, limit));
    answer.with_context(|| format!("{method} {path} on {}", host.name()))
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
    fn addresses() {
        assert_eq!(
            super::address_of("10.32.0.1/12\n").unwrap().octets(),
            [10, 32, 0, 1]
        );
        assert!(super::address_of("").is_err());
    }
}
