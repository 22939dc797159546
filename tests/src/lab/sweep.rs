//! Nothing of a lab is left behind: not after a panic, Ctrl-C, or a killed test process.
//!
//! Everything a lab makes outside its process carries one prefix in its name: namespaces, folders
//! of the BPF file system, folders for state. Removing a lab is removing what has its prefix.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use anyhow::Result;

use super::netns;
use crate::process::wait_for;

pub(super) const BPF_ROOT: &str = "/sys/fs/bpf";

/// Where labs keep the folders of their hosts.
pub(super) fn state_root() -> PathBuf {
    std::env::temp_dir()
}

/// The prefix of all labs of the process `pid`.
pub(super) fn process_prefix(pid: u32) -> String {
    format!("wl{pid}-")
}

/// Removes everything that starts with `prefix`; goes on after errors and gives the first.
///
/// # Errors
/// The first thing that could not be removed.
pub(super) fn remove(prefix: &str) -> Result<()> {
    let mut result = Ok(());
    for name in netns::list(prefix) {
        result = result.and(netns::destroy(&name));
    }
    result = result.and(remove_cgroups(prefix));
    for root in [Path::new(BPF_ROOT), &state_root()] {
        for path in entries(root, prefix) {
            result = result.and(fs::remove_dir_all(path).map_err(Into::into));
        }
    }
    result
}

/// Control groups of containers whose engine was killed. Each hierarchy has its own.
fn remove_cgroups(prefix: &str) -> Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = entries(root, "").map(|path| path.canonicalize().unwrap_or(path));
    let hierarchies: BTreeSet<PathBuf> = hierarchies.chain([root.to_owned()]).collect();
    let mut result = Ok(());
    for path in hierarchies
        .iter()
        .flat_map(|hierarchy| entries(hierarchy, prefix))
    {
        // Processes in it may still be ending.
        let what = format!("{} to be removed", path.display());
        result = result.and(wait_for(&what, Duration::from_secs(20), || {
            Ok(Some(remove_cgroup(&path)?))
        }));
    }
    result
}

/// Only folders can be removed there; the files go with them.
fn remove_cgroup(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

/// Removes what labs of dead processes left.
pub(super) fn sweep_dead() {
    let mut names = netns::list("wl");
    for root in [Path::new(BPF_ROOT), &state_root()] {
        names.extend(entries(root, "wl").filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())));
    }
    let pids = names.iter().filter_map(|name| owner(name));
    let dead: BTreeSet<u32> = pids
        .filter(|pid| !Path::new(&format!("/proc/{pid}")).exists())
        .collect();
    for pid in dead {
        if let Err(error) = remove(&process_prefix(pid)) {
            eprintln!("lab: left over from process {pid}: {error:#}");
        }
    }
}

/// The process that made `wl<pid>-…`; kept labs (`wlk<pid>-…`) have no owner.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix("wl")?.split_once('-')?.0.parse().ok()
}

fn entries(root: &Path, prefix: &str) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    entries
        .filter(move |e| e.file_name().to_string_lossy().starts_with(prefix))
        .map(|e| e.path())
}

static SIGNAL_PIPE: AtomicI32 = AtomicI32::new(-1);

/// From now on SIGINT, SIGTERM and SIGHUP remove this process's labs before it ends.
pub(super) fn on_signal() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let mut ends = [0; 2];
        // SAFETY: `ends` has room for the two descriptors.
        if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
            return;
        }
        let [read_end, write_end] = ends;
        SIGNAL_PIPE.store(write_end, Ordering::SeqCst);
        std::thread::spawn(move || {
            let mut number = [0u8; 1];
            // SAFETY: reads at most one byte into `number`; the descriptor is never closed.
            while unsafe { libc::read(read_end, number.as_mut_ptr().cast(), 1) } != 1 {}
            let _nobody_to_tell = remove(&process_prefix(std::process::id()));
            std::process::exit(128 + i32::from(number[0]));
        });
        for number in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            // SAFETY: the handler only writes to a pipe, which is async-signal-safe.
            unsafe { libc::signal(number, forward as *const () as libc::sighandler_t) };
        }
    });
}

extern "C" fn forward(number: libc::c_int) {
    let number = [u8::try_from(number).unwrap_or(0)];
    // SAFETY: writes one byte from a valid buffer; write is async-signal-safe.
    unsafe { libc::write(SIGNAL_PIPE.load(Ordering::SeqCst), number.as_ptr().cast(), 1) };
}

#[cfg(test)]
mod tests {
    use super::owner;

    #[test]
    fn owner_of_a_name() {
        assert_eq!(owner("wl123-ping-h1"), Some(123));
        assert_eq!(owner("wlk123-h1"), None, "kept labs stay");
        assert_eq!(owner("wlan0"), None);
        assert_eq!(owner("wl-x"), None);
    }
}
