//! The proxy's sockets (control.md 4.2), and their files, which are gone when it ends.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{TcpListener, UnixListener};

use super::place::Place;
use crate::docker::endpoint::Endpoint;
use crate::docker::endpoint::Stream;

/// Connections that wait to be taken.
const BACKLOG: i32 = 1024;
/// Where Docker's socket is not there to be copied from.
const SOCKET_MODE: u32 = 0o660;
/// File name in the run directory.
const SOCKET: &str = "weave.sock";
/// Where clients expect that directory.
const USUAL: &str = "/var/run/weave";

/// The proxy cannot listen there.
#[derive(Debug, thiserror::Error)]
#[error("Cannot listen on {place}: {source}")]
pub struct ListenError {
    place: String,
    source: io::Error,
}

/// A socket that a service manager has opened.
#[derive(Debug)]
pub struct Inherited {
    /// What the service manager calls it.
    pub name: String,
    /// Its number.
    pub number: i32,
    /// Itself.
    pub fd: OwnedFd,
}

impl Inherited {
    /// Is it a Unix socket at that path?
    #[must_use]
    pub fn is_at(&self, path: &Path) -> bool {
        let address = socket2::SockRef::from(&self.fd).local_addr();
        address.is_ok_and(|address| address.as_pathname() == Some(path))
    }

    /// The same once more.
    ///
    /// # Errors
    /// If there are too many descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            name: self.name.clone(),
            number: self.number,
            fd: self.fd.try_clone()?,
        })
    }
}

/// One listening socket.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// All listening sockets. Files of ours are removed when this is dropped.
#[derive(Debug, Default)]
pub struct Listening {
    pub(super) listeners: Vec<Listener>,
    /// How clients reach them, in the form of `DOCKER_HOST`.
    pub addresses: Vec<String>,
    made: Vec<Made>,
}

/// A file that we have made.
#[derive(Debug)]
enum Made {
    Socket { path: PathBuf, inode: u64 },
    Link { path: PathBuf, to: PathBuf },
}

impl Drop for Made {
    fn drop(&mut self) {
        // Somebody else may have put something in its place.
        let (path, ours) = match self {
            Self::Socket { path, inode } => {
                let ours = fs::symlink_metadata(&*path).is_ok_and(|meta| meta.ino() == *inode);
                (path, ours)
            }
            Self::Link { path, to } => {
                let ours = fs::read_link(&*path).is_ok_and(|target| target == *to);
                (path, ours)
            }
        };
        if ours {
            let _ = fs::remove_file(path);
        }
    }
}

impl Listener {
    /// The next connection, and whether it comes over TCP.
    pub(super) async fn accept(&self) -> io::Result<(Box<dyn Stream>, bool)> {
        Ok(match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                (Box::new(stream), true)
            }
            Self::Unix(listener) => (Box::new(listener.accept().await?.0), false),
        })
    }
}

impl Listening {
    /// Listens at all places; `inherited` are taken for those that say so. A Unix socket is made below `run_dir`, and
    /// every other path leads there; it belongs to whom `docker` belongs.
    ///
    /// # Errors
    /// The first place where that is not possible.
    pub async fn at(
        places: &[(String, Place)],
        inherited: Vec<Inherited>,
        run_dir: &Path,
        docker: &Endpoint,
    ) -> Result<Self, ListenError> {
        let mut listening = Self::default();
        let mut inherited = inherited;
        let mut unix = Vec::new();
        for (text, place) in places {
            let failed = |source| ListenError {
                place: text.clone(),
                source,
            };
            match place {
                Place::Tcp(address) => listening.tcp(address).await.map_err(failed)?,
                Place::Inherited(name) => {
                    listening
                        .inherit(name.as_deref(), &mut inherited)
                        .map_err(failed)?;
                }
                Place::Unix(path) => unix.push((text, path)),
            }
        }
        if unix.is_empty() {
            return Ok(listening);
        }
        let owner = Owner::of(docker);
        let socket = run_dir.join(SOCKET);
        listening.unix(&socket, &owner).map_err(|source| ListenError {
            place: socket.display().to_string(),
            source,
        })?;
        for (text, path) in unix {
            if !same_place(path, &socket) {
                let link = link(path, &socket, &owner, docker);
                listening.made.push(link.map_err(|source| ListenError {
                    place: text.clone(),
                    source,
                })?);
                listening.addresses.push(format!("unix://{}", path.display()));
            }
        }
        let usual = Path::new(USUAL).join(SOCKET);
        let shown = if same_place(&usual, &socket) {
            usual
        } else {
            socket
        };
        listening.addresses.push(format!("unix://{}", shown.display()));
        Ok(listening)
    }

    async fn tcp(&mut self, address: &str) -> io::Result<()> {
        let listener = TcpListener::bind(address).await?;
        self.addresses.push(format!("tcp://{}", listener.local_addr()?));
        self.listeners.push(Listener::Tcp(listener));
        Ok(())
    }

    fn inherit(&mut self, wanted: Option<&str>, sockets: &mut Vec<Inherited>) -> io::Result<()> {
        let is_wanted = |socket: &Inherited| {
            wanted.is_none_or(|wanted| wanted == socket.name || wanted == socket.number.to_string())
        };
        let (taken, left): (Vec<_>, Vec<_>) = sockets.drain(..).partition(is_wanted);
        *sockets = left;
        if taken.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "no such socket was passed to us",
            ));
        }
        for Inherited { fd, .. } in taken {
            let socket = Socket::from(fd);
            socket.set_nonblocking(true)?;
            let address = socket.local_addr()?;
            if let Some(address) = address.as_socket() {
                self.addresses.push(format!("tcp://{address}"));
                self.listeners
                    .push(Listener::Tcp(TcpListener::from_std(socket.into())?));
            } else {
                let path = address.as_pathname().unwrap_or(Path::new(""));
                self.addresses.push(format!("unix://{}", path.display()));
                self.listeners
                    .push(Listener::Unix(UnixListener::from_std(socket.into())?));
            }
        }
        Ok(())
    }

    fn unix(&mut self, path: &Path, owner: &Owner) -> io::Result<()> {
        remove_old(path)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.bind(&SockAddr::unix(path)?)?;
        let inode = fs::symlink_metadata(path)?.ino();
        self.made.push(Made::Socket {
            path: path.to_owned(),
            inode,
        });
        // Nobody can connect before we listen.
        std::os::unix::fs::chown(path, Some(owner.user), Some(owner.group))?;
        fs::set_permissions(path, Permissions::from_mode(owner.mode))?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        self.listeners
            .push(Listener::Unix(UnixListener::from_std(socket.into())?));
        Ok(())
    }
}

/// To whom a socket belongs.
struct Owner {
    user: u32,
    group: u32,
    mode: u32,
}

impl Owner {
    /// As Docker's own socket.
    fn of(docker: &Endpoint) -> Self {
        let found = match docker {
            Endpoint::Unix(path) => fs::metadata(path).ok(),
            Endpoint::Tcp(_) => None,
        };
        found.map_or(
            Self {
                user: 0,
                group: 0,
                mode: SOCKET_MODE,
            },
            |meta| Self {
                user: meta.uid(),
                group: meta.gid(),
                mode: meta.permissions().mode() & 0o777,
            },
        )
    }
}

/// Do both paths mean the same file, whether it exists or not?
fn same_place(a: &Path, b: &Path) -> bool {
    let real = |path: &Path| Some((path.parent()?.canonicalize().ok()?, path.file_name()?.to_owned()));
    a == b || real(a).is_some_and(|a| real(b) == Some(a))
}

/// Only sockets and links give way.
fn remove_old(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(old) if old.file_type().is_socket() || old.is_symlink() => fs::remove_file(path),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "exists and is no socket",
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn link(path: &Path, socket: &Path, owner: &Owner, docker: &Endpoint) -> io::Result<Made> {
    if matches!(docker, Endpoint::Unix(docker) if same_place(docker, path)) {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "Docker itself listens there",
        ));
    }
    remove_old(path)?;
    std::os::unix::fs::symlink(socket, path)?;
    let made = Made::Link {
        path: path.to_owned(),
        to: socket.to_owned(),
    };
    std::os::unix::fs::lchown(path, Some(owner.user), Some(owner.group))?;
    Ok(made)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn places(texts: &[&str]) -> Vec<(String, Place)> {
        texts
            .iter()
            .map(|t| ((*t).to_owned(), t.parse().unwrap()))
            .collect()
    }

    #[tokio::test]
    async fn one_socket_and_links_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        fs::create_dir(&run).unwrap();
        let docker = dir.path().join("docker.sock");
        let _docker = UnixListener::bind(&docker).unwrap();
        fs::set_permissions(&docker, Permissions::from_mode(0o640)).unwrap();
        let endpoint = Endpoint::Unix(docker.clone());
        let (link, socket) = (dir.path().join("other.sock"), run.join("weave.sock"));
        fs::write(&link, "").unwrap();
        let asked = places(&[
            "tcp://127.0.0.1:0",
            socket.to_str().unwrap(),
            &format!("unix://{}", link.display()),
        ]);
        let error = Listening::at(&asked, Vec::new(), &run, &endpoint)
            .await
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            format!(
                "Cannot listen on unix://{}: exists and is no socket",
                link.display()
            )
        );
        assert!(!socket.exists(), "left behind");
        fs::remove_file(&link).unwrap();
        // What a killed daemon has left.
        std::os::unix::fs::symlink("/nowhere", &link).unwrap();
        drop(UnixListener::bind(&socket).unwrap());
        let listening = Listening::at(&asked, Vec::new(), &run, &endpoint).await.unwrap();
        assert_eq!(listening.listeners.len(), 2);
        assert!(listening.addresses[0].starts_with("tcp://127.0.0.1:"));
        assert_eq!(
            listening.addresses[1..],
            [link.as_path(), &socket].map(|path| format!("unix://{}", path.display()))
        );
        assert_eq!(fs::read_link(&link).unwrap(), socket);
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o640);
        drop(listening);
        assert!(fs::symlink_metadata(&link).is_err() && !socket.exists());
        assert!(docker.exists());
        for (place, text) in [
            (docker.to_str().unwrap(), "Docker itself listens there"),
            ("fd://", "no such socket was passed to us"),
            ("tcp://192.0.2.1:1", ""),
        ] {
            let error = Listening::at(&places(&[place]), Vec::new(), &run, &endpoint)
                .await
                .unwrap_err();
            let expected = format!("Cannot listen on {place}: {text}");
            assert!(error.to_string().starts_with(&expected), "{error}");
        }
        assert!(docker.exists() && !socket.exists());
    }

    #[tokio::test]
    async fn what_took_our_place_stays() {
        let dir = tempfile::tempdir().unwrap();
        let endpoint = Endpoint::Unix(dir.path().join("none"));
        let socket = dir.path().join("weave.sock");
        let asked = places(&[socket.to_str().unwrap()]);
        let listening = Listening::at(&asked, Vec::new(), dir.path(), &endpoint)
            .await
            .unwrap();
        let moved = dir.path().join("moved.sock");
        fs::rename(&socket, &moved).unwrap();
        let _other = UnixListener::bind(&socket).unwrap();
        drop(listening);
        assert!(socket.exists(), "it was somebody else's");
    }

    #[tokio::test]
    async fn sockets_of_a_service_manager() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let passed = || {
            let socket = |name: &str, number, fd| Inherited {
                name: name.to_owned(),
                number,
                fd,
            };
            vec![
                socket("docker", 3, OwnedFd::from(unix.try_clone().unwrap())),
                socket("web", 4, OwnedFd::from(tcp.try_clone().unwrap())),
            ]
        };
        let (a, b) = (format!("unix://{}", path.display()), format!("tcp://{address}"));
        let endpoint = Endpoint::Tcp(String::new());
        for (place, addresses) in [
            ("fd://", vec![a.clone(), b.clone()]),
            ("fd://docker", vec![a]),
            ("fd://4", vec![b]),
        ] {
            let listening = Listening::at(&places(&[place]), passed(), dir.path(), &endpoint)
                .await
                .unwrap();
            assert_eq!(listening.addresses, addresses, "{place}");
        }
        assert!(path.exists(), "it is not ours");
    }
}
