//! Listening sockets, limits on what a client may hold, and an orderly end.

use std::fs::Permissions;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use super::guard::{self, Guard};

/// A client must have sent its request line and headers after this long.
const HEADER_TIME: Duration = Duration::from_secs(30);
/// Longest request line and headers, in bytes. Templates travel in the request line.
const HEADER_LIMIT: usize = 64 * 1024;
/// Connections at a time; more wait in the kernel's queue.
const CONNECTIONS: usize = 1024;
/// How long requests may go on after the stop signal.
const GRACE: Duration = Duration::from_secs(2);
/// Pause after a failed accept, so that running out of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The listener could not be made. Fatal (cli.md 6).
#[derive(Debug, thiserror::Error)]
#[error("Unable to create http listener socket: listen {address}: {source}")]
pub struct BindError {
    address: String,
    source: io::Error,
}

/// Who may use a Unix socket: root, and the group that an administrator gives it to.
const SOCKET_MODE: u32 = 0o660;

/// A listening socket. A Unix socket's file is removed when this is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    guard: Option<Guard>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    /// With its file, if that is ours to remove.
    Unix(UnixListener, Option<PathBuf>),
}

impl Listener {
    /// Listens on `host:port`, on `:port` (all addresses), or, when the text starts with `/`, on a
    /// Unix socket, whose old file is removed. `None` for a blank text.
    pub async fn bind(address: &str) -> Result<Option<Self>, BindError> {
        let address = address.trim();
        if address.is_empty() {
            return Ok(None);
        }
        let socket = if address.starts_with('/') {
            bind_unix(Path::new(address))
        } else {
            let all = address.strip_prefix(':').map(|port| format!("0.0.0.0:{port}"));
            TcpListener::bind(all.as_deref().unwrap_or(address))
                .await
                .map(Socket::Tcp)
        };
        let listener = |socket| Some(Self { socket, guard: None });
        socket.map(listener).map_err(|source| BindError {
            address: address.to_owned(),
            source,
        })
    }

    /// Listens on all addresses of a list with commas between them; blank ones are left out.
    pub async fn bind_all(addresses: &str) -> Result<Vec<Self>, BindError> {
        let mut listeners = Vec::new();
        for address in addresses.split(',') {
            listeners.extend(Self::bind(address).await?);
        }
        Ok(listeners)
    }

    /// A Unix socket that somebody else has made, and whose file is theirs.
    ///
    /// # Errors
    /// If it is no socket to accept from.
    pub fn inherited(listener: std::os::unix::net::UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let socket = Socket::Unix(UnixListener::from_std(listener)?, None);
        Ok(Self { socket, guard: None })
    }

    /// Refuses containers.
    #[must_use]
    pub fn guarded(mut self, guard: Guard) -> Self {
        self.guard = Some(guard);
        self
    }

    /// The TCP address, if it is one.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().ok(),
            Socket::Unix(..) => None,
        }
    }

    /// The next connection, and whether it is one of a container, which gets nothing.
    async fn accept(&self) -> io::Result<(Box<dyn Stream>, bool)> {
        Ok(match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, remote) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let refused = self.guard.as_ref().is_some_and(|g| g.refuses(&stream, remote));
                (Box::new(stream), refused)
            }
            Socket::Unix(listener, _) => (Box::new(listener.accept().await?.0), false),
        })
    }
}

fn bind_unix(path: &Path) -> io::Result<Socket> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path)?,
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "exists and is no socket",
            ));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))?;
    Ok(Socket::Unix(listener, Some(path.to_owned())))
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Socket::Unix(_, Some(path)) = &self.socket {
            let _ = std::fs::remove_file(path);
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Serves until `stop` completes, then lets running requests end for two seconds at most. A request
/// whose client goes away is dropped, and with it the future that the backend gave.
pub async fn serve(listener: Listener, router: Router, stop: impl Future<Output = ()> + Send) {
    let loopback = listener.local_addr().is_some_and(|addr| addr.ip().is_loopback());
    let (router, closed) = (guard::without_browsers(router, loopback), guard::closed());
    let (stopping, stopped) = watch::channel(());
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let next = async {
            let slot = slots.clone().acquire_owned().await.map_err(io::Error::other)?;
            Ok::<_, io::Error>((listener.accept().await?, slot))
        };
        tokio::select! {
            () = &mut stop => break,
            Some(_) = connections.join_next() => {}
            accepted = next => match accepted {
                Ok(((stream, refused), slot)) => {
                    let router = if refused { &closed } else { &router };
                    connections.spawn(connection(stream, router.clone(), stopped.clone(), slot));
                }
                Err(e) => {
                    tracing::warn!("cannot accept a connection to the HTTP interface: {e}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
    drop(listener);
    let _ = stopping.send(());
    let all_ended = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(GRACE, all_ended).await;
}

async fn connection(
    stream: Box<dyn Stream>,
    router: Router,
    mut stopped: watch::Receiver<()>,
    _slot: OwnedSemaphorePermit,
) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_buf_size(HEADER_LIMIT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        _ = stopped.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(e) = ended {
        tracing::debug!("HTTP connection: {e}");
    }
}
