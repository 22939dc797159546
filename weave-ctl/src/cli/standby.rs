//! `weave plugin-standby`: the process that stands in for the daemon at Docker's plugin sockets while that is away. The
//! daemon starts it, with the sockets; it sleeps until the daemon's end closes its standard input.

use std::fs;
use std::io::Read as _;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Failure, Outcome, block_on};
use crate::api::http::{Listener, serve};
use crate::docker::plugin::driver::{Driver, Inner, Plugin, Scope};
use crate::docker::plugin::options::{FILE_NAME, Networks};
use crate::docker::plugin::server;
use crate::docker::plugin::standby::Away;
use crate::ipam::address::Cidr;
use crate::net::Netlink;

/// Its name; nobody but the daemon calls it.
pub(super) const COMMAND: &str = "plugin-standby";
/// What it is called in lists of processes, and how it is told from others.
const PROCESS: &std::ffi::CStr = c"weave-standby";
/// In the run directory: its number.
const PID_FILE: &str = "weave-standby.pid";
/// How long it may take to end.
const PATIENCE: Duration = Duration::from_secs(2);

/// Starts it, with copies of the sockets. It ends when the daemon's end of its standard input is closed and
/// [`end`] is called.
///
/// # Errors
/// If it cannot be started.
pub(crate) fn start(
    sockets: &[(OwnedFd, Driver)],
    subnet: Option<Cidr>,
    run_dir: &Path,
    data_dir: &Path,
) -> std::io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    let subnet = subnet.map(|subnet| subnet.to_string()).unwrap_or_default();
    command.arg(COMMAND).arg(subnet).arg(data_dir);
    let mut inherited: Vec<RawFd> = Vec::new();
    for (socket, driver) in sockets {
        let fd = socket.as_raw_fd();
        let stored = driver.scope == Scope::Stored;
        command.arg(format!(
            "{fd}:{}:{}:{}",
            u8::from(stored),
            u8::from(driver.ipam),
            driver.name
        ));
        inherited.push(fd);
    }
    // SAFETY: between fork and exec only setsid and fcntl are called.
    unsafe {
        command.pre_exec(move || {
            nix::unistd::setsid()?;
            for fd in &inherited {
                if libc::fcntl(*fd, libc::F_SETFD, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    let child = command.stdin(Stdio::piped()).spawn()?;
    fs::write(run_dir.join(PID_FILE), format!("{}\n", child.id()))?;
    Ok(child)
}

/// The one that a daemon has left, or has beside it.
fn noted(run_dir: &Path) -> Option<i32> {
    let text = fs::read_to_string(run_dir.join(PID_FILE)).ok()?;
    text.trim().parse().ok()
}

fn is_one(pid: i32) -> bool {
    let name = fs::read(format!("/proc/{pid}/comm"));
    name.is_ok_and(|name| name.trim_ascii_end() == PROCESS.to_bytes())
}

/// Is one there?
pub(crate) fn is_there(run_dir: &Path) -> bool {
    noted(run_dir).is_some_and(is_one)
}

/// Ends the one that an earlier daemon has left, if any.
pub(crate) fn end(run_dir: &Path) {
    let Some(pid) = noted(run_dir) else { return };
    let is_ours = || is_one(pid);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let until = Instant::now() + PATIENCE;
        if is_ours() {
            // It may have ended since.
            let _ = kill(Pid::from_raw(pid), signal);
        }
        while is_ours() && Instant::now() < until {
            // Ours to wait for if we are the daemon that started it.
            let _ = nix::sys::wait::waitpid(Pid::from_raw(pid), Some(nix::sys::wait::WaitPidFlag::WNOHANG));
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let _ = fs::remove_file(run_dir.join(PID_FILE));
}

/// Being it.
pub(super) fn run(args: &[String]) -> Outcome {
    let failed = |what: &str| Failure::new(1, format!("{COMMAND}: {what}; the daemon starts this by itself"));
    // SAFETY: the name is a NUL-terminated constant.
    unsafe { libc::prctl(libc::PR_SET_NAME, PROCESS.as_ptr()) };
    let [_, subnet, data_dir, sockets @ ..] = args else {
        return Err(failed("too few arguments"));
    };
    let sockets: Option<Vec<(RawFd, Driver)>> = sockets.iter().map(|text| socket(text)).collect();
    let sockets = sockets.ok_or_else(|| failed("arguments that make no sense"))?;
    // Until the daemon has ended, however.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    let data_dir = Path::new(data_dir);
    block_on(async {
        let plugin = Plugin::new(Inner {
            backend: Away::new(subnet.parse().ok(), data_dir),
            nl: Netlink::current().await?,
            bridge: String::new(),
            docker: String::new(),
            drivers: Vec::new(),
            networks: Networks::load(data_dir.join(FILE_NAME)),
            v2_multicast: None,
        });
        let mut serving = Vec::new();
        for (fd, driver) in sockets {
            // SAFETY: the daemon has passed it for us alone.
            let listener = unsafe { OwnedFd::from_raw_fd(fd) };
            let listener = Listener::inherited(listener.into()).map_err(|e| failed(&e.to_string()))?;
            let router = server::router(plugin.clone(), driver);
            serving.push(tokio::spawn(serve(listener, router, std::future::pending())));
        }
        for task in serving {
            let _ = task.await;
        }
        Ok(())
    })
}

/// `FD:STORED:IPAM:NAME`.
fn socket(text: &str) -> Option<(RawFd, Driver)> {
    let mut parts = text.splitn(4, ':');
    let mut next = || parts.next();
    let (fd, stored, ipam, name) = (next()?.parse().ok()?, next()?, next()?, next()?);
    let scope = if stored == "1" {
        Scope::Stored
    } else {
        Scope::Local
    };
    let driver = Driver {
        name: name.to_owned(),
        scope,
        ipam: ipam == "1",
    };
    Some((fd, driver))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sockets_as_arguments() {
        let (fd, driver) = socket("7:0:1:weavemesh").unwrap();
        assert_eq!((fd, driver.scope, driver.ipam), (7, Scope::Local, true));
        assert_eq!(driver.name, "weavemesh");
        assert_eq!(socket("7:1:0:a:b").unwrap().1.name, "a:b");
        assert!(socket("7:1:0").is_none() && socket("x:1:0:a").is_none());
    }

    #[test]
    fn nobody_else_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        end(dir.path());
        let mut other = Command::new("sleep").arg("600").spawn().unwrap();
        fs::write(dir.path().join(PID_FILE), other.id().to_string()).unwrap();
        end(dir.path());
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
