//! Should this container be attached, and with which addresses? (control.md 4.3, cli.md 3.2)

use crate::ipam::address::{Cidr, CidrError};

/// The variable that says it.
const VARIABLE: &str = "WEAVE_CIDR=";
/// The whole value: not attached.
const NONE: &str = "none";
/// What stands for no word at all.
const DEFAULT: &str = "net:default";

/// The words of `WEAVE_CIDR`, in order; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words(Vec<String>);

/// What a word asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Exactly this address.
    Plain(Cidr),
    /// One in this subnet; `None`: in the default subnet.
    Net(Option<Cidr>),
}

/// A word that asks for nothing that there is, or what became of it: `for "WORD": …`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("for \"{word}\": {reason}")]
pub struct WordError {
    /// As the user wrote it.
    pub word: String,
    /// Why.
    pub reason: String,
}

/// Why a container is not attached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeftAlone {
    /// Its network is not Docker's bridge.
    #[error("the container has '--net={0}'")]
    Network(String),
    /// It does not want to.
    #[error("the container was created with the '-e WEAVE_CIDR=none' option")]
    Unwanted,
    /// Nobody asked.
    #[error(
        "the container was created without specifying an IP address with '-e WEAVE_CIDR=...' and the proxy was \
         started with the '--no-default-ipalloc' option"
    )]
    NotAsked,
}

impl Words {
    /// What the words ask for, each with its text.
    ///
    /// # Errors
    /// The first word that is none.
    pub fn asks(&self) -> Result<Vec<(&str, Ask)>, WordError> {
        self.0
            .iter()
            .map(|word| match ask(word) {
                Ok(ask) => Ok((word.as_str(), ask)),
                Err(error) => Err(WordError {
                    word: word.clone(),
                    reason: error.to_string(),
                }),
            })
            .collect()
    }
}

/// With which words of `WEAVE_CIDR` a container is attached, given its network mode and its environment, or why it is
/// left alone. `default_ipalloc`: also if there is no such variable.
///
/// # Errors
/// The reason to leave it alone.
pub fn wanted(network_mode: &str, env: &[String], default_ipalloc: bool) -> Result<Words, LeftAlone> {
    if !matches!(network_mode, "" | "none" | "default" | "bridge") {
        return Err(LeftAlone::Network(network_mode.to_owned()));
    }
    let words = match env.iter().find_map(|entry| entry.strip_prefix(VARIABLE)) {
        Some(NONE) => return Err(LeftAlone::Unwanted),
        None if !default_ipalloc => return Err(LeftAlone::NotAsked),
        value => value.unwrap_or_default(),
    };
    let mut words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
    if words.is_empty() {
        words.push(DEFAULT.to_owned());
    }
    Ok(Words(words))
}

/// Do names and nameservers of a container with this environment concern us? Not with `WEAVE_DNS=none`, which
/// `weave run --without-dns` gives it.
#[must_use]
pub fn wants_dns(env: &[String]) -> bool {
    let first = env.iter().find_map(|entry| entry.strip_prefix("WEAVE_DNS="));
    first != Some(NONE)
}

/// A subnet with host bits is masked.
fn ask(word: &str) -> Result<Ask, CidrError> {
    match word.strip_prefix("net:") {
        _ if word == DEFAULT => Ok(Ask::Net(None)),
        Some(subnet) => Ok(Ask::Net(Some(subnet.parse::<Cidr>()?.network()))),
        None => Ok(Ask::Plain(word.strip_prefix("ip:").unwrap_or(word).parse()?)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn env(entries: &[&str]) -> Vec<String> {
        entries.iter().map(|entry| (*entry).to_owned()).collect()
    }

    #[test]
    fn network_modes() {
        for mode in ["", "none", "default", "bridge"] {
            assert!(wanted(mode, &[], true).is_ok(), "{mode}");
        }
        for mode in ["host", "container:abc", "mynet"] {
            let error = wanted(mode, &env(&["WEAVE_CIDR=net:default"]), true).unwrap_err();
            assert_eq!(error.to_string(), format!("the container has '--net={mode}'"));
        }
    }

    #[test]
    fn variables() {
        let default = || Ok(Words(vec!["net:default".to_owned()]));
        for (entries, by_default, expected) in [
            (&[][..], true, default()),
            (&["A=1"], true, default()),
            (&[], false, Err(LeftAlone::NotAsked)),
            (&["WEAVE_CIDR"], false, Err(LeftAlone::NotAsked)),
            (&["WEAVE_CIDR="], false, default()),
            (&["WEAVE_CIDR= \t"], false, default()),
            (&["WEAVE_CIDR=none"], true, Err(LeftAlone::Unwanted)),
            (
                &["WEAVE_CIDR=none", "WEAVE_CIDR="],
                true,
                Err(LeftAlone::Unwanted),
            ),
            (&["WEAVE_CIDR=", "WEAVE_CIDR=none"], true, default()),
            (&["WEAVE_CIDR= none"], true, Ok(Words(vec!["none".to_owned()]))),
        ] {
            assert_eq!(wanted("", &env(entries), by_default), expected, "{entries:?}");
        }
    }

    #[test]
    fn names_are_left_alone_on_request() {
        assert!(wants_dns(&env(&["WEAVE_DNSX=none", "WEAVE_DNS="])));
        assert!(!wants_dns(&env(&["A=1", "WEAVE_DNS=none"])));
    }

    #[test]
    fn words() {
        let cidr = |text: &str| text.parse::<Cidr>().unwrap();
        let words = |text: &str| wanted("", &env(&[&format!("WEAVE_CIDR={text}")]), true).unwrap();
        let several = words("net:default  net:10.2.2.0/24\tip:10.3.9.1/24 10.4.0.1/8 net:10.2.3.7/24");
        assert_eq!(
            several.asks().unwrap(),
            [
                ("net:default", Ask::Net(None)),
                ("net:10.2.2.0/24", Ask::Net(Some(cidr("10.2.2.0/24")))),
                ("ip:10.3.9.1/24", Ask::Plain(cidr("10.3.9.1/24"))),
                ("10.4.0.1/8", Ask::Plain(cidr("10.4.0.1/8"))),
                ("net:10.2.3.7/24", Ask::Net(Some(cidr("10.2.3.0/24")))),
            ]
        );
        for (text, error) in [
            ("10.0.0.1", "for \"10.0.0.1\": invalid CIDR address: 10.0.0.1"),
            ("10.0.0.1/8 none", "for \"none\": invalid CIDR address: none"),
            ("net:x", "for \"net:x\": invalid CIDR address: x"),
            (
                "net:::1/64",
                "for \"net:::1/64\": invalid Non-IPv4 address not supported: ::1/64",
            ),
        ] {
            assert_eq!(words(text).asks().unwrap_err().to_string(), error);
        }
    }
}
