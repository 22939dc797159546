//! Targets that are not reached, and connections that do not come about.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::{Finding, Fix, View, clocks, list, ring, seconds};
use crate::api::report::{Attempt, Connection, State};

/// A handshake that takes longer than this is stuck, in seconds.
const PENDING: u64 = 10;

impl View<'_> {
    /// The target, as it was given, that leads to `address`; `None` for a peer that others told of.
    pub(super) fn target(&self, address: &str) -> Option<String> {
        let router = &self.report.router;
        let dialled: SocketAddr = address.parse().ok()?;
        let leads = |target: &&String| {
            let (host, port) = match target.parse::<SocketAddr>() {
                Ok(both) => return both == dialled,
                Err(_) => match target.rsplit_once(':') {
                    Some((host, port)) if !host.contains(':') => (host, port.parse().ok()),
                    _ => (target.as_str(), Some(router.port)),
                },
            };
            let found = self.facts.resolved.get(host).cloned();
            let ips = host.parse::<IpAddr>().map(|ip| vec![ip]).ok().or(found);
            port == Some(dialled.port()) && ips.is_some_and(|ips| ips.contains(&dialled.ip()))
        };
        router.targets.iter().find(leads).cloned()
    }
}

pub(super) fn check(view: &View<'_>) -> Vec<Finding> {
    let router = &view.report.router;
    let mut found = Vec::new();
    let mut unreached: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for connection in &router.connections {
        if let Some(attempt) = &connection.attempt {
            match refused(view, connection, attempt) {
                Some(finding) => found.extend(finding),
                None if view.target(&connection.address).is_some() => {
                    let next = match attempt.retry_seconds {
                        Some(wait) => format!("{} (next try in {})", connection.address, seconds(wait)),
                        None => connection.address.clone(),
                    };
                    unreached.entry(&attempt.error).or_default().push(next);
                }
                // Of a peer that others told of, the topology tells more.
                None => {}
            }
        }
        if let (State::Pending, Some(remote)) = (connection.state, &connection.remote)
            && remote.overlay_seconds >= PENDING
        {
            let reason = remote
                .fallback
                .as_deref()
                .unwrap_or("no heartbeat has been answered");
            found.push(
                Finding::problem(
                    "connection-pending",
                    format!(
                        "no overlay works to {} ({}) for {}: {reason}",
                        view.names.of(&remote.name),
                        connection.address,
                        seconds(remote.overlay_seconds)
                    ),
                )
                .why("the hosts talk over TCP, but no frames of containers get through directly")
                .run(udp(router.port)),
            );
        }
    }
    for (error, targets) in unreached {
        found.push(
            Finding::warning("target-unreachable", format!("{}: {error}", list(&targets)))
                .why("this host was told to connect there")
                .run("launch weave on that host, or let TCP through to it")
                .run("weave forget TARGET, if it is gone for good"),
        );
    }
    found
}

/// What to let through a firewall.
pub(super) fn udp(port: u16) -> String {
    format!(
        "let UDP {port} and {} through firewalls between the hosts, both ways",
        port.wrapping_add(1)
    )
}

fn password_differs(told: String, why: &'static str) -> Finding {
    Finding::problem("password-differs", told)
        .why(why)
        .run("launch all hosts with the same WEAVE_PASSWORD, --password or --password-file")
}

/// Somebody answered at the target, and it came to nothing. `Some(None)`: told elsewhere, or harmless.
fn refused(view: &View<'_>, connection: &Connection, attempt: &Attempt) -> Option<Option<Finding>> {
    let (address, error) = (&connection.address, attempt.error.as_str());
    let told = format!("{address}: {error}");
    let finding = if error.contains("cannot connect to ourself") {
        let Some(target) = view.target(address) else {
            return Some(None);
        };
        Finding::note(
            "target-is-ourselves",
            format!("the target {target} is this host itself"),
        )
        .why("harmless: it is not tried again")
        .run(format!("weave forget {target}"))
        .fix(Fix::Forget { target })
    } else if error.contains("peer requested an unencrypted") {
        password_differs(
            told,
            "that peer was launched without a password, this one with one",
        )
    } else if error.contains("peer requested an encrypted") {
        password_differs(told, "that peer was launched with a password, this one without")
    } else if error.contains("WEAVE_PASSWORD") || error.contains("Unable to decrypt") {
        password_differs(told, "the hosts have different passwords")
    } else if error.contains("Connection limit reached") {
        Finding::warning("connection-limit", told)
            .why("frames to that peer take a way through others, if there is one")
            .run("weave launch --conn-limit COUNT (0: any number), where the limit was reached")
    } else if error.contains("no overlays in common") {
        Finding::problem("no-common-overlay", told)
            .why("one of the two has no fast path and the other no sleeve")
            .run("weave status, on both: it tells why an overlay is missing")
    } else if [clocks::is_skew, ring::is_conflict, |e: &str| e.contains("peer names collision")]
        .iter()
        .any(|elsewhere| elsewhere(error))
        // The tie between two connections made at once; the other one stays.
        || error.contains("Multiple connections")
    {
        return Some(None);
    } else {
        return None;
    };
    Some(Some(finding))
}
