//! Asking the daemon, over TCP or a Unix socket (cli.md 1.2).

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::failure::Failure;
use super::lock::Lock;

/// Time limit for connecting; there is none for the answer.
const CONNECT_TIME: Duration = Duration::from_secs(3);
/// Longest answer, in bytes.
const BODY_LIMIT: usize = 64 * 1024 * 1024;
/// Exit status of a call to a part that is switched off.
pub const DISABLED: u8 = 4;

/// The daemon's control interface.
#[derive(Debug, Clone)]
pub struct Client {
    address: String,
    run_dir: PathBuf,
}

/// An answer of any status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Body.
    pub body: String,
}

/// The daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No connection.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Address of the control interface.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The connection broke, or what came was no answer.
    #[error("no answer from {address}: {reason}")]
    Answer {
        /// Address of the control interface.
        address: String,
        /// Why.
        reason: String,
    },
}

impl AskError {
    /// The exit status that `curl`, and so the original, gives.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::TimedOut => 28,
            Self::Connect { .. } => 7,
            Self::Answer { .. } => 1,
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Client {
    /// `address` is `host:port` or the path of a Unix socket, or the first of several with commas between them;
    /// `run_dir` tells whether a daemon runs.
    #[must_use]
    pub fn new(address: &str, run_dir: &Path) -> Self {
        let mut given = address.split(',').map(str::trim);
        let address = given.find(|address| !address.is_empty()).unwrap_or(address);
        let address = match address.strip_prefix(':') {
            Some(port) => format!("127.0.0.1:{port}"),
            None => address.to_owned(),
        };
        Self {
            address,
            run_dir: run_dir.to_owned(),
        }
    }

    /// One request; `form` becomes the body.
    pub async fn ask(&self, method: &str, path: &str, form: &[(&str, &str)]) -> Result<Reply, AskError> {
        self.ask_accepting(method, path, form, None).await
    }

    /// Likewise with an `Accept` header.
    pub async fn ask_accepting(
        &self,
        method: &str,
        path: &str,
        form: &[(&str, &str)],
        accept: Option<&'static str>,
    ) -> Result<Reply, AskError> {
        let fail = |reason: String| AskError::Answer {
            address: self.address.clone(),
            reason,
        };
        let stream = self.connect().await.map_err(|source| AskError::Connect {
            address: self.address.clone(),
            source,
        })?;
        let mut request = Request::new(Full::new(Bytes::from(form_body(form))));
        *request.method_mut() = method.parse().map_err(|_| fail("bad method".to_owned()))?;
        *request.uri_mut() = path.parse().map_err(|e| fail(format!("bad path: {e}")))?;
        let headers = request.headers_mut();
        headers.insert(HOST, HeaderValue::from_static("weave"));
        if !form.is_empty() {
            headers.insert(
                CONTENT_TYPE,
                HeaderValue::from_static("application/x-www-form-urlencoded"),
            );
        }
        if let Some(accept) = accept {
            headers.insert(hyper::header::ACCEPT, HeaderValue::from_static(accept));
        }
        let exchange = async {
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            let answer = async {
                let answer = sender.send_request(request).await?;
                let status = answer.status().as_u16();
                let body = Limited::new(answer.into_body(), BODY_LIMIT)
                    .collect()
                    .await?
                    .to_bytes();
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Reply {
                    status,
                    body: String::from_utf8_lossy(&body).into_owned(),
                })
            };
            tokio::pin!(answer);
            tokio::select! {
                answer = &mut answer => answer,
                ended = connection => {
                    ended?;
                    answer.await
                }
            }
        };
        exchange
            .await
            .map_err(|e: Box<dyn std::error::Error + Send + Sync>| fail(e.to_string()))
    }

    async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        let connecting = async {
            Ok::<Box<dyn Stream>, io::Error>(if self.address.starts_with('/') {
                Box::new(UnixStream::connect(&self.address).await?)
            } else {
                Box::new(TcpStream::connect(&self.address).await?)
            })
        };
        match tokio::time::timeout(CONNECT_TIME, connecting).await {
            Ok(stream) => stream,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "no connection within 3 seconds",
            )),
        }
    }

    /// A request as commands make it: the body on success, else what the table of cli.md 1.2 says.
    pub async fn call(&self, method: &str, path: &str, form: &[(&str, &str)]) -> Result<String, Failure> {
        self.outcome(self.ask(method, path, form).await)
    }

    /// The table of cli.md 1.2.
    pub fn outcome(&self, asked: Result<Reply, AskError>) -> Result<String, Failure> {
        match asked {
            Ok(Reply {
                status: 200..=299,
                body,
            }) => Ok(body),
            Ok(Reply { status: 404, .. }) => Err(Failure::silent(DISABLED)),
            Ok(Reply { body, .. }) => Err(Failure::new(1, body)),
            Err(e) if Lock::holder(&self.run_dir).is_none() => {
                let text = format!("weave container is not present. Have you launched it?\n({e})");
                Err(Failure::new(e.code(), text))
            }
            Err(e) => Err(Failure::new(e.code(), e.to_string())),
        }
    }
}

/// One segment of a path, with everything escaped that is not plain.
#[must_use]
pub fn segment(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b':' => {
                out.push(byte.into())
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn form_body(form: &[(&str, &str)]) -> String {
    let pairs: Vec<String> = form
        .iter()
        .map(|(name, value)| format!("{}={}", segment(name), segment(value)))
        .collect();
    pairs.join("&")
}
