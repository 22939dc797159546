//! A process that was killed and is not gone yet.
//!
//! The kernel closes its files one by one: locks may be free while ports and the database are not,
//! and a thread in the middle of a write holds all of them. Somebody who takes the place of a killed
//! daemon has to wait for that.

use std::fs;
use std::path::Path;

const PF_EXITING: u64 = 0x4;
const SIGKILL_BIT: u64 = 1 << (libc::SIGKILL - 1);

/// Is the process on its way out? Not any more when only its number is left (a zombie).
pub(super) fn is_dying(pid: i32) -> bool {
    is_dying_in(Path::new("/proc"), pid)
}

fn is_dying_in(proc: &Path, pid: i32) -> bool {
    let process = proc.join(pid.to_string());
    let Some(leader) = Task::read(&process) else {
        return false;
    };
    if leader.is_zombie {
        return leader.threads > 1;
    }
    leader.is_exiting || leader.is_killed || threads(&process).any(|task| task.is_killed)
}

fn threads(process: &Path) -> impl Iterator<Item = Task> {
    let tasks = fs::read_dir(process.join("task"));
    let tasks = tasks.into_iter().flatten().flatten();
    tasks.filter_map(|task| Task::read(&task.path()))
}

/// One thread, from proc(5).
struct Task {
    is_zombie: bool,
    is_exiting: bool,
    is_killed: bool,
    threads: u64,
}

impl Task {
    fn read(folder: &Path) -> Option<Self> {
        let status = fs::read_to_string(folder.join("status")).ok()?;
        let stat = fs::read_to_string(folder.join("stat")).ok()?;
        // The name before the last bracket may hold anything. Then: state, ppid, pgrp, session,
        // tty_nr, tpgid, flags.
        let flags = stat.rsplit(')').next()?.split_whitespace().nth(6);
        Some(Self {
            is_zombie: field(&status, "State")?.starts_with(['Z', 'X']),
            is_exiting: flags?.parse::<u64>().ok()? & PF_EXITING != 0,
            is_killed: ["SigPnd", "ShdPnd"].iter().any(|name| {
                let pending = field(&status, name).and_then(|set| u64::from_str_radix(set, 16).ok());
                pending.is_some_and(|set| set & SIGKILL_BIT != 0)
            }),
            threads: field(&status, "Threads")?.parse().ok()?,
        })
    }
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = status.lines();
    lines.find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn who_lives_is_not_dying() {
        assert!(!is_dying(i32::try_from(std::process::id()).unwrap()));
    }

    #[test]
    fn a_zombie_and_nobody_are_gone() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        child.kill().unwrap();
        while Task::read(Path::new(&format!("/proc/{pid}"))).is_some_and(|task| !task.is_zombie) {
            std::thread::yield_now();
        }
        assert!(!is_dying(pid), "a zombie that was not waited for");
        child.wait().unwrap();
        assert!(!is_dying(pid), "nobody");
    }

    /// A process of three threads as proc(5) shows it.
    fn shown(state: &str, flags: u64, pending: [u64; 3], threads: usize) -> bool {
        let proc = tempfile::tempdir().unwrap();
        let process = proc.path().join("7");
        let write = |folder: &Path, pending: u64| {
            fs::create_dir_all(folder).unwrap();
            let status = format!(
                "State:\t{state} (x)\nThreads:\t{threads}\nSigPnd:\t{pending:016x}\nShdPnd:\t{:016x}\n",
                0
            );
            fs::write(folder.join("status"), status).unwrap();
            let stat = format!("7 (a) b) {state} 1 7 7 0 -1 {flags} 1 2 3\n");
            fs::write(folder.join("stat"), stat).unwrap();
        };
        write(&process, pending[0]);
        for (thread, pending) in (7..).zip(pending).take(threads) {
            write(&process.join("task").join(thread.to_string()), pending);
        }
        is_dying_in(proc.path(), 7)
    }

    #[test]
    fn killed_but_not_gone() {
        let (kill, term) = (1 << 8, 1 << 14);
        assert!(!shown("S", 0x40_0000, [0, term, 0], 3), "asked to end");
        assert!(shown("D", 0x40_0000, [kill, 0, 0], 3), "has not noticed");
        assert!(
            shown("S", 0x40_0000, [0, 0, kill], 3),
            "one thread has not noticed"
        );
        assert!(shown("R", 0x40_0004, [0, 0, 0], 3), "closes its files");
        assert!(shown("Z", 0x40_0004, [0, 0, 0], 3), "other threads still run");
        assert!(!shown("Z", 0x40_0004, [0, 0, 0], 1), "a zombie");
    }
}
