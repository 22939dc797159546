//! One daemon on a host: `weave.lock` in the run directory, locked for as long as the daemon lives.
//!
//! The kernel drops the locks with the process, however it ends, so nothing stale can be mistaken
//! for a running daemon. Two bytes are locked: the second keeps others out, the first says that the
//! number in the file is that of the process which holds it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use super::dying::is_dying;

const PID_VALID: libc::off_t = 0;
const EXCLUSION: libc::off_t = 1;

/// The lock, held until dropped.
#[derive(Debug)]
pub struct Lock {
    /// Closing it drops the locks.
    #[cfg_attr(not(test), expect(dead_code, reason = "held, not read"))]
    file: File,
}

/// The lock was not to be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody holds it: this process, if it has said so yet.
    #[error("weave is already running; you can stop it with 'weave stop'.")]
    Held(Option<i32>),
    /// The file cannot be used.
    #[error("cannot use {path}: {source}")]
    File {
        /// The lock file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Lock {
    /// Takes the lock, and writes this process's number into the file. Makes the directory.
    pub fn acquire(run_dir: &Path) -> Result<Self, LockError> {
        let path = file_in(run_dir);
        let failed = |source| LockError::File {
            path: path.clone(),
            source,
        };
        fs::create_dir_all(run_dir).map_err(failed)?;
        loop {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o644)
                .open(&path)
                .map_err(failed)?;
            match fcntl(&file, FcntlArg::F_OFD_SETLK(&byte(EXCLUSION))) {
                Ok(_) => {}
                Err(Errno::EAGAIN | Errno::EACCES) => return Err(LockError::Held(Self::holder(run_dir))),
                Err(e) => return Err(failed(e.into())),
            }
            // `weave reset` may have removed the file since we opened it.
            let same = match (fs::metadata(&path), file.metadata()) {
                (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
                _ => false,
            };
            if !same {
                continue;
            }
            file.set_len(0).map_err(failed)?;
            writeln!(file, "{}", std::process::id()).map_err(failed)?;
            fcntl(&file, FcntlArg::F_OFD_SETLK(&byte(PID_VALID))).map_err(|e| failed(e.into()))?;
            return Ok(Self { file });
        }
    }

    /// Another handle of the same lock: it is held until all are closed.
    #[cfg(test)]
    pub(super) fn share(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// The process that holds the lock.
    #[must_use]
    pub fn holder(run_dir: &Path) -> Option<i32> {
        let file = File::open(file_in(run_dir)).ok()?;
        if !is_locked(&file, PID_VALID) {
            return None;
        }
        number_in(file)
    }

    /// The process that holds or held the lock, if it was killed and is not gone yet. It may hold
    /// ports and the database for longer than the lock.
    #[must_use]
    pub fn dying(run_dir: &Path) -> Option<i32> {
        let last = number_in(File::open(file_in(run_dir)).ok()?);
        last.filter(|pid| is_dying(*pid))
    }
}

fn number_in(file: File) -> Option<i32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok().filter(|pid| *pid > 0)
}

fn file_in(run_dir: &Path) -> PathBuf {
    run_dir.join("weave.lock")
}

fn byte(at: libc::off_t) -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: at,
        l_len: 1,
        l_pid: 0,
    }
}

fn is_locked(file: impl AsFd, at: libc::off_t) -> bool {
    // Asked as for a read lock, since the file is open for reading only.
    let mut lock = libc::flock {
        l_type: libc::F_RDLCK as libc::c_short,
        ..byte(at)
    };
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock)).is_ok() && lock.l_type != libc::F_UNLCK as libc::c_short
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn held_until_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        assert_eq!(Lock::holder(&run), None);
        let lock = Lock::acquire(&run).unwrap();
        let ours = i32::try_from(std::process::id()).unwrap();
        assert_eq!(Lock::holder(&run), Some(ours));
        assert!(matches!(Lock::acquire(&run), Err(LockError::Held(Some(pid))) if pid == ours));
        drop(lock);
        assert_eq!(Lock::holder(&run), None);
        drop(Lock::acquire(&run).unwrap());
    }

    #[test]
    fn a_number_left_behind_is_nobody() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("weave.lock"), "1\n").unwrap();
        assert_eq!(Lock::holder(dir.path()), None);
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Lock::acquire(&file).unwrap_err().to_string();
        assert!(error.contains("weave.lock"), "{error}");
    }
}
