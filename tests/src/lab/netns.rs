//! Network namespaces: make, enter, look inside, remove with everything that runs in them.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use crate::process::{self, LIMIT, Output};

const NETNS_DIR: &str = "/run/netns";

/// Where `ip netns` keeps the namespace `name`.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from(NETNS_DIR).join(name)
}

/// Makes the namespace `name` with its loopback device up and no IPv4 forwarding.
///
/// # Errors
/// If `ip` fails, for example because the name is taken.
pub fn create(name: &str) -> Result<()> {
    ip(&["netns", "add", name])?;
    ip(&["-n", name, "link", "set", "lo", "up"])?;
    // A new namespace may inherit this from the machine (Docker switches it on).
    run_in(name, &["sysctl", "-qw", "net.ipv4.ip_forward=0"])?.ok()?;
    Ok(())
}

/// Runs `ip ARGS…` and gives its output.
///
/// # Errors
/// If `ip` fails.
pub fn ip(args: &[&str]) -> Result<String> {
    process::run(Command::new("ip").args(args), LIMIT)?.ok()
}

/// Makes `command` run in the network namespace `name`, in our mount namespace: `ip netns exec`
/// would remount /sys and so hide the BPF file system.
///
/// # Errors
/// If there is no such namespace.
pub fn enter(command: &mut Command, name: &str) -> Result<()> {
    let file = File::open(path(name)).with_context(|| format!("no network namespace {name}"))?;
    // SAFETY: between fork and exec only the setns system call is made.
    unsafe {
        command.pre_exec(move || match libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    Ok(())
}

/// Runs a program in the namespace to its end.
///
/// # Errors
/// If it cannot be started or hangs.
pub fn run_in(name: &str, args: &[&str]) -> Result<Output> {
    let (program, args) = args.split_first().context("no command given")?;
    let mut command = Command::new(program);
    command.args(args);
    enter(&mut command, name)?;
    process::run(&mut command, LIMIT)
}

/// Calls `f` on a thread inside the namespace: sockets it makes belong there.
///
/// # Errors
/// If there is no such namespace, or `f` fails or panics.
pub fn inside<T: Send>(name: &str, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let file = File::open(path(name)).with_context(|| format!("no network namespace {name}"))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            // SAFETY: changes the network namespace of this thread only, which ends with `f`.
            if unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
                return Err(io::Error::last_os_error()).context("cannot enter the network namespace");
            }
            f()
        });
        thread
            .join()
            .map_err(|_| anyhow!("panicked inside the network namespace"))?
    })
}

/// Names of all namespaces that start with `prefix`.
pub fn list(prefix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(NETNS_DIR) else {
        return Vec::new();
    };
    let names = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(prefix)).collect()
}

/// Process IDs of everything that runs in the namespace.
pub fn pids(name: &str) -> Vec<i32> {
    let Ok(wanted) = fs::metadata(path(name)) else {
        return Vec::new();
    };
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        fs::metadata(format!("/proc/{pid}/ns/net"))
            .is_ok_and(|found| (found.ino(), found.dev()) == (wanted.ino(), wanted.dev()))
    })
    .collect()
}

/// Removes the namespace: kills what runs in it, waits until that is gone, deletes it.
///
/// # Errors
/// If a process survives SIGKILL or `ip` fails.
pub fn destroy(name: &str) -> Result<()> {
    let gone = process::wait_for(
        &format!("processes in {name} to end"),
        Duration::from_secs(20),
        || {
            let pids = pids(name);
            pids.iter().for_each(|pid| process::signal(*pid, libc::SIGKILL));
            Ok(pids.is_empty().then_some(()))
        },
    );
    let deleted = ip(&["netns", "del", name]);
    gone.and(deleted.map(drop))
}

/// Does anything listen on TCP `port` in the network namespace of process `pid`?
pub fn listens(pid: u32, port: u16) -> bool {
    let suffix = format!(":{port:04X}");
    let listens = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.get(1).is_some_and(|local| local.ends_with(&suffix)) && words.get(3) == Some(&"0A")
    };
    ["tcp", "tcp6"].iter().any(|table| {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        text.lines().any(listens)
    })
}
