//! Network namespaces: opening them, telling them apart, running code inside.

use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;

use super::NetError;

/// Where `ip netns add` puts its names.
pub const NAMED: [&str; 2] = ["/run/netns", "/var/run/netns"];

/// What makes two handles the same namespace: the file's device and inode.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NetnsId {
    /// Device number of the kernel's namespace file system.
    pub dev: u64,
    /// Inode number, as in `net:[4026531840]`.
    pub ino: u64,
}

/// How long a lock is waited for, and how often it is tried.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
const LOCK_STEP: Duration = Duration::from_millis(5);

/// An open network namespace. It lives at least as long as this handle.
#[derive(Clone, Debug)]
pub struct Netns {
    file: Arc<File>,
    id: NetnsId,
}

impl Netns {
    /// The namespace of the calling thread.
    pub fn current() -> Result<Self, NetError> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// From a file such as `/run/netns/NAME` or `/proc/PID/ns/net`.
    pub fn open(path: &Path) -> Result<Self, NetError> {
        let missing = |source| NetError::NoNamespace {
            path: path.display().to_string(),
            source,
        };
        let file = File::open(path).map_err(missing)?;
        let meta = file.metadata().map_err(missing)?;
        // SAFETY: the request takes no argument, and the descriptor is open for the whole call.
        let kind = unsafe { libc::ioctl(file.as_raw_fd(), libc::NS_GET_NSTYPE) };
        if kind != libc::CLONE_NEWNET {
            return Err(missing(io::Error::other("the file is not a network namespace")));
        }
        let id = NetnsId {
            dev: meta.dev(),
            ino: meta.ino(),
        };
        Ok(Self {
            file: Arc::new(file),
            id,
        })
    }

    /// The namespace of a process.
    pub fn of_pid(pid: u32) -> Result<Self, NetError> {
        Self::open(&PathBuf::from(format!("/proc/{pid}/ns/net")))
    }

    /// A namespace made by `ip netns add NAME`.
    pub fn named(name: &str) -> Result<Self, NetError> {
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return Err(NetError::NoNamespace {
                path: name.to_owned(),
                source: io::Error::from(io::ErrorKind::InvalidInput),
            });
        }
        let [first, second] = NAMED.map(|dir| Path::new(dir).join(name));
        if !first.exists() && second.exists() {
            return Self::open(&second);
        }
        Self::open(&first)
    }

    /// The namespace's identity on this host, until it or the host ends.
    #[must_use]
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// Runs `work` inside the namespace, on a thread that ends with it, so that no other code ever
    /// finds itself in the wrong namespace. Child processes inherit the namespace.
    pub async fn run<T, F>(&self, work: F) -> Result<T, NetError>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let (done, result) = oneshot::channel();
        let (file, id) = (Arc::clone(&self.file), self.id);
        thread::Builder::new()
            .name("netns".to_owned())
            .spawn(move || {
                // Where we are already no right is needed: entering takes CAP_SYS_ADMIN.
                let entered = match Self::current() {
                    Ok(own) if own.id == id => Ok(()),
                    _ => setns(file.as_fd(), CloneFlags::CLONE_NEWNET),
                };
                let value = entered.map(|()| work());
                // Nobody waits any more when the caller was cancelled.
                let _ = done.send(value);
            })
            .map_err(|e| NetError::kernel("start a thread for a network namespace", e))?;
        match result.await {
            Ok(value) => {
                value.map_err(|e| NetError::kernel(format!("enter network namespace {}", self.id.ino), e))
            }
            Err(_) => Err(NetError::kernel(
                "work in a network namespace",
                io::Error::other("the thread died"),
            )),
        }
    }

    /// As [`Netns::run`] for a future, driven by a runtime of its own on that thread.
    pub async fn run_future<T, F, Fut>(&self, make: F) -> Result<T, NetError>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = T>,
        T: Send + 'static,
    {
        self.run(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            Ok(runtime.block_on(async { make().await }))
        })
        .await?
        .map_err(|e: io::Error| NetError::kernel("start a runtime in a network namespace", e))
    }

    /// Waits until nobody else who asks for it works on the namespace, in this process or another. The lock ends with
    /// what is returned. Who holds it for too long, or cannot be seen, is not waited for: a container can take the
    /// lock as well.
    pub async fn lock(&self) -> Option<Flock<File>> {
        // Another opening of the same file: a lock belongs to that.
        let mut file = File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd())).ok()?;
        let trying = async {
            loop {
                match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                    Ok(lock) => return Some(lock),
                    Err((again, nix::errno::Errno::EWOULDBLOCK)) => file = again,
                    Err(_) => return None,
                }
                tokio::time::sleep(LOCK_STEP).await;
            }
        };
        tokio::time::timeout(LOCK_PATIENCE, trying).await.unwrap_or(None)
    }

    /// Writes kernel settings, given as paths below `/proc/sys/`. A missing file is no error: IPv6
    /// may be off, and names come and go with kernel versions.
    pub async fn sysctl(&self, settings: Vec<(String, &'static str)>) -> Result<(), NetError> {
        self.run(move || {
            for (path, value) in settings {
                match std::fs::write(format!("/proc/sys/{path}"), value) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => {
                        return Err(NetError::kernel(format!("set {path} to {value}"), e));
                    }
                    _ => {}
                }
            }
            Ok(())
        })
        .await?
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::net::testing::new_netns;

    #[tokio::test]
    async fn work_happens_inside_and_the_caller_stays_outside() {
        let Some(ns) = new_netns() else { return };
        let before = Netns::current().unwrap().id();
        let inside = ns.run(|| Netns::current().unwrap().id()).await.unwrap();
        let future = ns
            .run_future(|| async { Netns::current().unwrap().id() })
            .await
            .unwrap();
        assert_eq!(inside, ns.id());
        assert_eq!(future, ns.id());
        assert_ne!(inside, before);
        assert_eq!(Netns::current().unwrap().id(), before);
    }

    #[tokio::test]
    async fn one_at_a_time() {
        let Some(ns) = new_netns() else { return };
        let first = ns.lock().await.unwrap();
        let other = Netns::open(Path::new(&format!("/proc/self/fd/{}", ns.file.as_raw_fd()))).unwrap();
        let second = tokio::spawn(async move { other.lock().await.is_some() });
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        drop(first);
        assert!(second.await.unwrap(), "given up instead of waited");
    }

    #[test]
    fn only_network_namespaces_open() {
        for path in ["/proc/self/ns/mnt", "/proc/self/status", "/nowhere"] {
            let error = Netns::open(Path::new(path)).unwrap_err().to_string();
            assert!(error.contains(path), "{error}");
        }
        for name in ["", "..", "a/b"] {
            assert!(Netns::named(name).is_err());
        }
    }
}
