//! Sockets that a service manager has opened, each for the part of the daemon that it is for.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::Context;

use crate::docker::proxy::Inherited;

/// Those that nobody has taken yet.
#[derive(Default)]
pub(super) struct Sockets(Vec<Inherited>);

impl Sockets {
    /// All that were passed to this process. They are duplicated: a daemon that starts anew needs them again.
    pub(super) fn passed() -> anyhow::Result<Self> {
        let passed = sd_notify::listen_fds_with_names().context("sockets of the service manager")?;
        let sockets = passed.map(|(number, name)| {
            // SAFETY: the service manager says that this number is an open descriptor, and nobody here closes it.
            let fd = unsafe { BorrowedFd::borrow_raw(number) };
            Ok(Inherited {
                name,
                number,
                fd: fd.try_clone_to_owned()?,
            })
        });
        sockets.collect::<anyhow::Result<_>>().map(Self)
    }

    /// Those at these paths, if they are there, apart from the others.
    pub(super) fn split_off(&mut self, paths: &[&Path]) -> Self {
        let wanted = |socket: &mut Inherited| paths.iter().any(|path| socket.is_at(path));
        Self(self.0.extract_if(.., wanted).collect())
    }

    /// The Unix socket at that path, unless its file is gone: then nobody can find it.
    pub(super) fn take_at(&mut self, path: &Path) -> Option<OwnedFd> {
        let index = self.0.iter().position(|socket| socket.is_at(path))?;
        let socket = self.0.swap_remove(index);
        if path.exists() {
            return Some(socket.fd);
        }
        tracing::warn!(
            "the service manager's socket {} is gone, so there is another one: restart its socket unit to have it back",
            path.display()
        );
        None
    }

    /// The others.
    pub(super) fn rest(self) -> Vec<Inherited> {
        self.0
    }
}

/// Does a service manager wait until we say that we are ready? Docker may wait for us then, as it does at boot, and
/// we must not wait for Docker.
pub(super) fn is_awaited() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn to_each_his_own() {
        let dir = tempfile::tempdir().unwrap();
        let socket = |name: &str, number| Inherited {
            name: name.to_owned(),
            number,
            fd: UnixListener::bind(dir.path().join(name)).unwrap().into(),
        };
        let mut sockets = Sockets(vec![socket("plugin", 3), socket("gone", 4), socket("proxy", 5)]);
        let path = |name: &str| dir.path().join(name);
        let mut ours = sockets.split_off(&[&path("plugin"), &path("gone"), &path("other")]);
        let rest: Vec<i32> = sockets.rest().iter().map(|socket| socket.number).collect();
        assert_eq!(rest, [5]);
        std::fs::remove_file(path("gone")).unwrap();
        assert!(ours.take_at(&path("plugin")).is_some());
        assert!(ours.take_at(&path("plugin")).is_none(), "twice");
        assert!(ours.take_at(&path("gone")).is_none());
    }
}
