//! Where Docker listens, and a connection to it.

use std::io;
use std::path::PathBuf;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::tls;

/// Any connection.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Where Docker listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// `unix://PATH`
    Unix(PathBuf),
    /// `tcp://ADDRESS:PORT`, or without scheme.
    Tcp(String),
}

impl Endpoint {
    /// As `DOCKER_HOST` and `--docker-api` have it. `None`: no such scheme.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text.split_once("://") {
            Some(("unix", path)) => Some(Self::Unix(path.into())),
            Some(("tcp" | "http", address)) => Some(Self::Tcp(address.trim_end_matches('/').to_owned())),
            Some(_) => None,
            None => Some(Self::Tcp(text.to_owned())),
        }
    }

    /// Connects; over TCP with TLS, if `DOCKER_TLS_VERIFY` is set as for Docker's own client.
    pub(super) async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        match self {
            Self::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                match tls::of_client() {
                    None => Ok(Box::new(stream)),
                    Some(folder) => tls::connect(&folder, address, stream).await,
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        for (text, endpoint) in [
            ("unix:///a/b.sock", Some(Endpoint::Unix("/a/b.sock".into()))),
            ("tcp://1.2.3.4:5/", Some(Endpoint::Tcp("1.2.3.4:5".to_owned()))),
            ("host:2375", Some(Endpoint::Tcp("host:2375".to_owned()))),
            ("ssh://host", None),
        ] {
            assert_eq!(Endpoint::parse(text), endpoint, "{text}");
        }
    }
}
