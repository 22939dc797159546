//! How a peer comes by its first ring: `--ipalloc-init` (control.md 1.11, cli.md section 6).

use crate::mesh::name::{InvalidPeerName, PeerName};

/// The parsed value of `--ipalloc-init`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InitMode {
    /// A vote among the expected number of peers; `None`: guessed from the targets given.
    Consensus(Option<usize>),
    /// No vote: the universe is divided among these.
    Seed(Vec<PeerName>),
    /// Never votes, waits for a ring from others.
    Observer,
}

/// The texts that follow `Unable to parse --ipalloc-init: `.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InitModeError {
    /// None of the three.
    #[error("unknown mode: {0}")]
    UnknownMode(String),
    /// `seed` alone.
    #[error("seed mode requires peer name list")]
    SeedWithoutList,
    /// A seed is no peer name.
    #[error("bad seed parameter: error parsing peer names: {0}")]
    BadSeed(InvalidPeerName),
    /// The number of peers is no number.
    #[error("bad consensus parameter: \"{0}\" is not a number of peers")]
    BadCount(String),
    /// `observer=…`.
    #[error("observer mode takes no parameter")]
    ObserverParameter,
}

impl Default for InitMode {
    fn default() -> Self {
        Self::Consensus(None)
    }
}

impl InitMode {
    /// Parses `consensus[=N]`, `seed=P1,P2,…` or `observer`; the empty text is the default.
    pub fn parse(text: &str) -> Result<Self, InitModeError> {
        let (mode, parameter) = match text.split_once('=') {
            Some((mode, parameter)) => (mode, Some(parameter)),
            None => (text, None),
        };
        match (mode, parameter) {
            ("", None) | ("consensus", None) => Ok(Self::Consensus(None)),
            ("consensus", Some(count)) => match count.parse::<u32>() {
                Ok(0) => Ok(Self::Consensus(None)),
                Ok(n) => Ok(Self::Consensus(Some(n as usize))),
                Err(_) => Err(InitModeError::BadCount(count.to_owned())),
            },
            ("seed", None) => Err(InitModeError::SeedWithoutList),
            ("seed", Some("")) => Ok(Self::Consensus(None)),
            ("seed", Some(list)) => {
                let peers: Result<Vec<PeerName>, _> = list.split(',').map(str::parse).collect();
                peers.map(Self::Seed).map_err(InitModeError::BadSeed)
            }
            ("observer", None) => Ok(Self::Observer),
            ("observer", Some(_)) => Err(InitModeError::ObserverParameter),
            _ => Err(InitModeError::UnknownMode(mode.to_owned())),
        }
    }
}

/// Votes needed among that many voters.
#[must_use]
pub fn quorum(peers: usize) -> usize {
    peers / 2 + 1
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn modes() {
        let ok = |text| InitMode::parse(text).unwrap();
        assert_eq!(ok(""), InitMode::Consensus(None));
        assert_eq!(ok("consensus"), InitMode::Consensus(None));
        assert_eq!(ok("consensus=3"), InitMode::Consensus(Some(3)));
        assert_eq!(ok("seed="), InitMode::Consensus(None));
        assert_eq!(ok("observer"), InitMode::Observer);
        let peers = ["::1", "::2"].map(|t| t.parse().unwrap()).to_vec();
        assert_eq!(ok("seed=::1,::2"), InitMode::Seed(peers));
    }

    #[test]
    fn errors() {
        for (text, error) in [
            ("foo", "unknown mode: foo"),
            ("foo=1", "unknown mode: foo"),
            ("seed", "seed mode requires peer name list"),
            (
                "seed=::1,x",
                "bad seed parameter: error parsing peer names: invalid peer name format: \"x\"",
            ),
            (
                "seed=::1,",
                "bad seed parameter: error parsing peer names: invalid peer name format: \"\"",
            ),
            (
                "consensus=",
                "bad consensus parameter: \"\" is not a number of peers",
            ),
            (
                "consensus=-1",
                "bad consensus parameter: \"-1\" is not a number of peers",
            ),
            ("observer=1", "observer mode takes no parameter"),
        ] {
            assert_eq!(InitMode::parse(text).unwrap_err().to_string(), error);
        }
    }

    #[test]
    fn quorums() {
        assert_eq!([1, 2, 3, 4, 5].map(quorum), [1, 2, 2, 3, 3]);
    }
}
