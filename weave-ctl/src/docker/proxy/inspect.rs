//! What is told of a container, by Docker to us and by us to a client (control.md 4.3, "inspect"). Pure.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::Failure;
use super::create::{HELPER, MOUNT};
use super::object::Object;
use super::rules::{LeftAlone, Words, wanted, wants_dns};

/// A container, as Docker tells. Old engines list volumes, newer ones mounts.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Container {
    /// All 64 digits.
    pub id: String,
    config: Config,
    host_config: HostConfig,
    mounts: Option<Vec<Mount>>,
    volumes: Option<std::collections::BTreeMap<String, Box<RawValue>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    hostname: String,
    entrypoint: Option<Vec<String>>,
    env: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct HostConfig {
    network_mode: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Mount {
    destination: String,
}

impl Container {
    /// Does the wait helper run first in it?
    #[must_use]
    pub fn waits(&self) -> bool {
        let first = self.config.entrypoint.iter().flatten().next();
        first.is_some_and(|first| first == HELPER)
    }

    /// Is the wait helper there?
    #[must_use]
    pub fn has_helper(&self) -> bool {
        let mut mounts = self.mounts.iter().flatten();
        mounts.any(|mount| mount.destination == MOUNT)
            || self.volumes.as_ref().is_some_and(|v| v.contains_key(MOUNT))
    }

    /// `Hostname`.
    #[must_use]
    pub fn hostname(&self) -> &str {
        &self.config.hostname
    }

    /// Does it want names and nameserver?
    #[must_use]
    pub fn wants_dns(&self) -> bool {
        wants_dns(self.config.env.as_deref().unwrap_or_default())
    }

    /// With which words it is attached, if it is.
    ///
    /// # Errors
    /// Why it is left alone.
    pub fn wanted(&self, default_ipalloc: bool) -> Result<Words, LeftAlone> {
        let env = self.config.env.as_deref().unwrap_or_default();
        wanted(&self.host_config.network_mode, env, default_ipalloc)
    }
}

/// The first address of a container on the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// `xx:xx:xx:xx:xx:xx`
    pub mac: String,
    /// Without prefix length.
    pub address: String,
    /// Length of the prefix, in bits.
    pub prefix_len: u8,
}

/// The container that an answer is about: all of it, or its object `Container`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Within {
    /// `/containers/ID/json`
    Whole,
    /// `/exec/ID/json`
    Container,
}

const CONTAINER: &str = "Container";
const NETWORK_SETTINGS: &str = "NetworkSettings";

impl Within {
    fn of(self, answer: &Object) -> Result<Option<Object>, Failure> {
        Ok(match self {
            Self::Whole => Some(answer.clone()),
            Self::Container => answer.object(CONTAINER)?,
        })
    }

    /// ID and main process of the container, if it runs.
    pub fn process(self, answer: &Object) -> Result<Option<(String, u32)>, Failure> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct State {
            #[serde(default)]
            pid: i64,
        }
        let Some(container) = self.of(answer)? else {
            return Ok(None);
        };
        let Some(state) = container.raw("State") else {
            return Ok(None);
        };
        let state: State = serde_json::from_str(state.get())?;
        // It may have been told before its start was over; who asks for the process later asks again.
        let pid = u32::try_from(state.pid).unwrap_or_default();
        Ok(Some((container.text("Id")?, pid)))
    }

    /// The answer with the address in it.
    pub fn rewrite(self, mut answer: Object, seen: &Seen) -> Result<Option<Object>, Failure> {
        let Some(mut container) = self.of(&answer)? else {
            return Ok(None);
        };
        let mut network = container.object(NETWORK_SETTINGS)?.unwrap_or_default();
        network.set("MacAddress", &seen.mac)?;
        network.set("IPAddress", &seen.address)?;
        network.set("IPPrefixLen", &seen.prefix_len)?;
        container.set(NETWORK_SETTINGS, &network)?;
        if self == Self::Whole {
            return Ok(Some(container));
        }
        answer.set(CONTAINER, &container)?;
        Ok(Some(answer))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"{"Id":"abc","State":{"Pid":4711},"NetworkSettings":{"IPAddress":"172.17.0.2","IPPrefixLen":16,"MacAddress":"02:42:ac:11:00:02","Networks":{"bridge":{"IPPrefixLen":16}}},"Size":12345678901234567890}"#;

    fn seen() -> Seen {
        Seen {
            mac: "02:00:00:00:00:01".to_owned(),
            address: "10.32.0.1".to_owned(),
            prefix_len: 12,
        }
    }

    #[test]
    fn addresses() {
        let expected = r#"{"Id":"abc","State":{"Pid":4711},"NetworkSettings":{"IPAddress":"10.32.0.1","IPPrefixLen":12,"MacAddress":"02:00:00:00:00:01","Networks":{"bridge":{"IPPrefixLen":16}}},"Size":12345678901234567890}"#;
        let exec = |inside: &str| format!(r#"{{"ID":"e","ExitCode":null,"Container":{inside}}}"#);
        for (within, sent, expected) in [
            (Within::Whole, WHOLE.to_owned(), expected.to_owned()),
            (Within::Container, exec(WHOLE), exec(expected)),
        ] {
            let answer = Object::parse(sent.as_bytes()).unwrap().unwrap();
            assert_eq!(within.process(&answer).unwrap(), Some(("abc".to_owned(), 4711)));
            let got = within.rewrite(answer, &seen()).unwrap().unwrap();
            assert_eq!(serde_json::to_string(&got).unwrap(), expected);
        }
        let exec = Object::parse(br#"{"ID":"e","Pid":7}"#).unwrap().unwrap();
        assert_eq!(Within::Container.process(&exec).unwrap(), None);
        assert!(Within::Container.rewrite(exec, &seen()).unwrap().is_none());
    }

    #[test]
    fn containers_that_wait() {
        let text = r#"{"Id":"a","Config":{"Hostname":"h","Entrypoint":["/w/w","x"],"Env":["WEAVE_CIDR=none"]},
            "HostConfig":{"NetworkMode":"default"},"Mounts":[{"Type":"bind","Destination":"/w"}],"Other":[1]}"#;
        let container: Container = serde_json::from_str(text).unwrap();
        assert!(container.waits() && container.has_helper());
        assert_eq!(container.hostname(), "h");
        assert_eq!(container.wanted(true).unwrap_err(), LeftAlone::Unwanted);
        let old =
            r#"{"Id":"a","Config":{"Entrypoint":null,"Env":null},"HostConfig":{},"Volumes":{"/w":"/x"}}"#;
        let old: Container = serde_json::from_str(old).unwrap();
        assert!(!old.waits() && old.has_helper() && old.wanted(true).is_ok());
        let none: Container = serde_json::from_str(r#"{"Id":"a","Volumes":null,"Mounts":[]}"#).unwrap();
        assert!(!none.has_helper() && none.wanted(false).is_err());
    }
}
