//! Killing the first process of a container, and no other that has its number by now.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

/// Kills the process, if `is_it` says so while the process is held on to: meanwhile its number cannot mean another.
/// A process that is gone is fine.
///
/// # Errors
/// What the kernel says.
pub async fn kill_if<F: Future<Output = bool>>(pid: u32, is_it: impl FnOnce() -> F) -> io::Result<()> {
    // SAFETY: no pointers are passed.
    let opened = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let process = match i32::try_from(opened) {
        // SAFETY: the descriptor is new, and nobody else's.
        Ok(fd) if fd >= 0 => unsafe { OwnedFd::from_raw_fd(fd) },
        _ => return gone_is_fine(io::Error::last_os_error()),
    };
    if !is_it().await {
        return Ok(());
    }
    let none: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: the descriptor is open; the null pointer asks for the usual information.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            libc::SIGKILL,
            none,
            0,
        )
    };
    if sent == 0 {
        return Ok(());
    }
    gone_is_fine(io::Error::last_os_error())
}

fn gone_is_fine(error: io::Error) -> io::Result<()> {
    if error.raw_os_error() == Some(libc::ESRCH) {
        return Ok(());
    }
    Err(error)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;

    use super::*;

    #[tokio::test]
    async fn only_who_is_meant() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        kill_if(child.id(), || async { false }).await.unwrap();
        assert_eq!(child.try_wait().unwrap(), None);
        kill_if(child.id(), || async { true }).await.unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        kill_if(child.id(), || async { true }).await.unwrap();
    }
}
