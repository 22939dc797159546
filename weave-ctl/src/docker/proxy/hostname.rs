//! What a container is called, and whom it asks for names (control.md 4.3, "create", steps 3 and 4).

use std::collections::BTreeMap;
use std::net::IpAddr;

use regex::Regex;

use super::Failure;
use super::object::Object;

/// Longest name with its domain, in bytes: the kernel's limit for host names.
const LONGEST: usize = 64;

/// WeaveDNS, as containers are told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// Where containers can ask; `None`: nowhere now.
    pub address: Option<IpAddr>,
    /// The local domain, with its final dot.
    pub domain: String,
}

/// How the host name comes out of the container's name.
#[derive(Debug, Clone)]
pub struct HostnameRules {
    /// The label whose value counts instead of the name; empty: none.
    pub label: String,
    /// What is replaced in it, wherever it is found.
    pub pattern: Regex,
    /// By what; `$1` and `${name}` are groups of the pattern.
    pub replacement: String,
}

impl HostnameRules {
    fn derive(&self, name: &str, labels: &BTreeMap<String, String>) -> String {
        let label = labels.get(&self.label).filter(|value| !value.is_empty());
        let name = label.map_or(name, String::as_str);
        self.pattern
            .replace_all(name, self.replacement.as_str())
            .into_owned()
    }
}

/// Gives the container a host name, if it has none; `name` is what the request calls it. True if it did.
pub(super) fn name_it(
    container: &mut Object,
    name: &str,
    rules: &HostnameRules,
    dns: &Dns,
) -> Result<bool, Failure> {
    let labels = match rules.label.as_str() {
        "" => BTreeMap::new(),
        _ => container.labels("Labels")?,
    };
    let hostname = rules.derive(name.trim_start_matches('/'), &labels);
    if hostname.is_empty() || !container.text("Hostname")?.is_empty() {
        return Ok(false);
    }
    let domain = dns.domain.trim_end_matches('.');
    if hostname.len() + 1 + domain.len() > LONGEST {
        tracing::warn!("Container name [{hostname}] too long to be used as hostname");
        return Ok(false);
    }
    container.set("Hostname", &hostname)?;
    container.set("Domainname", &domain)?;
    Ok(true)
}

/// Makes the container ask WeaveDNS, after what it asks already. `named`: its host name has the local domain.
pub(super) fn resolve_with(host_config: &mut Object, dns: &Dns, named: bool) -> Result<(), Failure> {
    let Some(address) = dns.address else { return Ok(()) };
    let mut servers = host_config.texts("Dns")?;
    servers.push(address.to_string());
    host_config.set("Dns", &servers)?;
    if host_config.texts("DnsSearch")?.is_empty() {
        // With a domain of its own, that is searched without being told.
        let search = if named { "." } else { dns.domain.as_str() };
        host_config.set("DnsSearch", &[search])?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn rules(label: &str, pattern: &str, replacement: &str) -> HostnameRules {
        HostnameRules {
            label: label.to_owned(),
            pattern: Regex::new(pattern).unwrap(),
            replacement: replacement.to_owned(),
        }
    }

    #[test]
    fn derived() {
        let labels = BTreeMap::from([
            ("l".to_owned(), "from-label".to_owned()),
            ("empty".to_owned(), String::new()),
        ]);
        for (label, pattern, replacement, name, expected) in [
            ("", "(.*)", "$1", "foo", "foo"),
            ("", "(.*)", "$1", "", ""),
            (
                "",
                "^aws-[0-9]+-(.*)$",
                "my-app-$1",
                "aws-12798186823-foo",
                "my-app-foo",
            ),
            ("", "(?P<x>o+)", "<${x}>", "foobaroo", "f<oo>bar<oo>"),
            ("", "o", "", "foo", "f"),
            ("", "x", "y", "foo", "foo"),
            ("l", "(.*)", "$1", "foo", "from-label"),
            ("l", "^from-(.*)$", "my-$1", "foo", "my-label"),
            ("empty", "(.*)", "$1", "foo", "foo"),
            ("other", "(.*)", "$1", "foo", "foo"),
        ] {
            let rules = rules(label, pattern, replacement);
            assert_eq!(rules.derive(name, &labels), expected, "{label} {pattern} {name}");
        }
    }

    #[test]
    fn as_long_as_the_kernel_allows() {
        let dns = Dns {
            address: None,
            domain: "weave.local.".to_owned(),
        };
        let rules = rules("", "(.*)", "$1");
        for (length, fits) in [(52, true), (53, false)] {
            let mut container = Object::default();
            let named = name_it(&mut container, &"n".repeat(length), &rules, &dns).unwrap();
            assert_eq!((named, container.is_empty()), (fits, !fits), "{length}");
        }
    }
}
