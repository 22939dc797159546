//! Where the proxy is asked to listen: the values of `-H` (control.md 4.2).

use std::path::{Path, PathBuf};
use std::str::FromStr;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// `ADDRESS:PORT`.
    Tcp(String),
    /// Absolute.
    Unix(PathBuf),
    /// Sockets that a service manager has opened: all, or the one with this name or number.
    Inherited(Option<String>),
}

/// Not one of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPlace {
    /// Another scheme.
    #[error("Invalid protocol format: \"{0}\"")]
    Scheme(String),
    /// A relative path.
    #[error("When launching the proxy, unix sockets must be specified as an absolute path.")]
    Relative,
}

impl FromStr for Place {
    type Err = InvalidPlace;

    fn from_str(text: &str) -> Result<Self, InvalidPlace> {
        let unix = |path: &str| match Path::new(path).is_absolute() {
            true => Ok(Self::Unix(path.into())),
            false => Err(InvalidPlace::Relative),
        };
        let tcp = |address: &str| match address.rsplit_once(':') {
            Some(("", port)) => Self::Tcp(format!("0.0.0.0:{port}")),
            _ => Self::Tcp(address.to_owned()),
        };
        match text.split_once("://") {
            Some(("tcp", address)) => Ok(tcp(address)),
            Some(("unix", path)) => unix(path),
            Some(("fd", "" | "*")) => Ok(Self::Inherited(None)),
            Some(("fd", name)) => Ok(Self::Inherited(Some(name.to_owned()))),
            Some(_) => Err(InvalidPlace::Scheme(text.to_owned())),
            None if text.starts_with('/') => unix(text),
            None => Ok(tcp(text)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let tcp = |t: &str| Ok(Place::Tcp(t.to_owned()));
        let fd = |t: &str| Ok(Place::Inherited(Some(t.to_owned())));
        for (text, place) in [
            ("tcp://1.2.3.4:5", tcp("1.2.3.4:5")),
            ("1.2.3.4:5", tcp("1.2.3.4:5")),
            ("[::1]:5", tcp("[::1]:5")),
            (":12375", tcp("0.0.0.0:12375")),
            ("tcp://:12375", tcp("0.0.0.0:12375")),
            ("unix:///a/b", Ok(Place::Unix("/a/b".into()))),
            ("/a/b", Ok(Place::Unix("/a/b".into()))),
            ("unix://a/b", Err(InvalidPlace::Relative)),
            ("fd://", Ok(Place::Inherited(None))),
            ("fd://3", fd("3")),
            ("fd://docker", fd("docker")),
            ("ssh://x", Err(InvalidPlace::Scheme("ssh://x".to_owned()))),
        ] {
            assert_eq!(text.parse(), place, "{text}");
        }
        let error = "foo://bar".parse::<Place>().unwrap_err().to_string();
        assert_eq!(error, "Invalid protocol format: \"foo://bar\"");
    }
}
