//! What `weave stop` and `weave reset` must know of the plugin, also when its daemon has crashed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// In the run directory.
const FILE_NAME: &str = "weave-plugin.json";

/// A daemon's plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Docker's endpoint; empty: none.
    pub docker: String,
    /// The driver of the network `weave`; empty: none.
    pub driver: String,
    /// Sockets that the daemon has made.
    pub sockets: Vec<PathBuf>,
}

impl Record {
    /// Of the last daemon; `None`: it had no plugin, or nobody knows.
    #[must_use]
    pub fn read(run_dir: &Path) -> Option<Self> {
        let text = fs::read(run_dir.join(FILE_NAME)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// For [`Record::read`].
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, run_dir: &Path) -> io::Result<()> {
        let new = run_dir.join(FILE_NAME).with_extension("new");
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(new, run_dir.join(FILE_NAME))
    }
}

/// Does somebody hold the socket at that path, so that it can be connected to? Asked without connecting, which would
/// start a service that waits for it.
#[must_use]
pub fn is_held(path: &Path) -> bool {
    let Some(path) = path.to_str() else { return false };
    let sockets = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    // The path is the eighth word, if there is one.
    sockets
        .lines()
        .any(|line| line.split_whitespace().nth(7) == Some(path))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn kept_in_a_file() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(dir.path()), None);
        let record = Record {
            docker: "unix:///d".to_owned(),
            driver: "weavemesh".to_owned(),
            sockets: vec!["/s".into()],
        };
        record.write(dir.path()).unwrap();
        assert_eq!(Record::read(dir.path()), Some(record));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        fs::write(dir.path().join(FILE_NAME), "{}").unwrap();
        assert_eq!(Record::read(dir.path()), None);
    }

    #[test]
    fn held_or_left_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        assert!(!is_held(&path));
        let listener = UnixListener::bind(&path).unwrap();
        assert!(is_held(&path));
        drop(listener);
        assert!(path.exists() && !is_held(&path));
    }
}
