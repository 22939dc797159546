//! Runs a program to its end with a time limit, and keeps what it printed.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Longer than any step takes on a slow, busy machine; only a hang reaches it.
pub const LIMIT: Duration = Duration::from_secs(120);

/// What a finished program left behind.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// Exit status, or 128 + signal number as shells count it.
    pub code: i32,
    /// Standard output; bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// Standard error; bytes that are not UTF-8 are replaced.
    pub stderr: String,
}

impl Output {
    /// Did it exit with status 0?
    pub fn success(&self) -> bool {
        self.code == 0
    }

    /// Standard output of a program that succeeded.
    ///
    /// # Errors
    /// The whole output, if the exit status was not 0.
    pub fn ok(self) -> Result<String> {
        if self.success() {
            Ok(self.stdout)
        } else {
            bail!("{self}")
        }
    }

    /// Standard error of a program that failed with `code`.
    ///
    /// # Errors
    /// The whole output, if the exit status was another.
    pub fn fails_with(self, code: i32) -> Result<String> {
        if self.code == code {
            Ok(self.stderr)
        } else {
            bail!("expected exit status {code}: {self}")
        }
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` ended with status {}", self.command, self.code)?;
        for (name, text) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !text.trim().is_empty() {
                write!(f, "\n  {name}: {}", text.trim_end().replace('\n', "\n          "))?;
            }
        }
        Ok(())
    }
}

/// Runs `command` without standard input and waits for its end.
///
/// Its output goes to files in memory, not to pipes: a daemon that it leaves behind may keep
/// them open without holding us up.
///
/// # Errors
/// If it cannot be started, or is still running after `limit` (it is then killed).
pub fn run(command: &mut Command, limit: Duration) -> Result<Output> {
    let line = line(command);
    let (out, err) = (memory_file()?, memory_file()?);
    command
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(err.try_clone()?);
    let mut child = command.spawn().with_context(|| format!("cannot run `{line}`"))?;
    let status = wait(&mut child, limit)?;
    let output = Output {
        command: line,
        code: status.map_or(-1, exit_code),
        stdout: contents(&out)?,
        stderr: contents(&err)?,
    };
    if status.is_none() {
        bail!("still running after {} s and killed: {output}", limit.as_secs());
    }
    Ok(output)
}

/// A program in the background, killed when this is dropped.
#[derive(Debug)]
pub struct Background {
    child: Child,
    command: String,
    out: File,
}

impl Background {
    /// Starts `command`, output and errors both kept for [`Background::finish`].
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let line = line(command);
        let out = memory_file()?;
        command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out.try_clone()?);
        let child = command.spawn().with_context(|| format!("cannot run `{line}`"))?;
        Ok(Self {
            child,
            command: line,
            out,
        })
    }

    /// Process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far, errors included.
    ///
    /// # Errors
    /// If the output cannot be read.
    pub fn printed(&self) -> Result<String> {
        contents(&self.out)
    }

    /// Sends SIGINT, so that programs like ping print their summary, and waits for the end.
    ///
    /// # Errors
    /// If it does not end within `limit`.
    pub fn interrupt(self, limit: Duration) -> Result<Output> {
        signal(self.child.id().cast_signed(), libc::SIGINT);
        self.finish(limit)
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// If it does not end within `limit`.
    pub fn finish(mut self, limit: Duration) -> Result<Output> {
        let status = wait(&mut self.child, limit)?;
        let output = Output {
            command: self.command.clone(),
            code: status.map_or(-1, exit_code),
            stdout: contents(&self.out)?,
            stderr: String::new(),
        };
        if status.is_none() {
            bail!("still running after {} s and killed: {output}", limit.as_secs());
        }
        Ok(output)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Calls `probe` until it gives something.
///
/// # Errors
/// If that has not happened within `limit`; the last error of `probe` is attached.
pub fn wait_for<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        let last = match probe() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if start.elapsed() > limit {
            let text = format!("waited {} s in vain: {what}", limit.as_secs());
            return Err(last.map_or_else(|| anyhow::anyhow!("{text}"), |e| e.context(text.clone())));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sends `number` to the process `pid`; a process that is gone is no error.
pub fn signal(pid: i32, number: i32) {
    // SAFETY: kill has no memory effects.
    unsafe { libc::kill(pid, number) };
}

/// Makes `command` start with these sockets as its descriptors 3, 4, …, as a service manager passes them. The
/// variables that say so are up to the caller: only the new process knows its ID.
///
/// # Errors
/// If there are too many descriptors.
pub fn pass_sockets(command: &mut Command, sockets: &[BorrowedFd<'_>]) -> Result<()> {
    let mut high = Vec::new();
    for socket in sockets {
        // Above all places that they will take, so that none overwrites another.
        // SAFETY: the descriptor is open; the new one is checked, and owned here.
        let fd = unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 32) };
        ensure!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: nobody else has it.
        high.push(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    // SAFETY: between fork and exec only dup2 is called.
    unsafe {
        command.pre_exec(move || {
            for (to, from) in (3..).zip(&high) {
                if libc::dup2(from.as_raw_fd(), to) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    Ok(())
}

fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn exit_code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

fn line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line
}

fn memory_file() -> io::Result<File> {
    // SAFETY: the name is a NUL-terminated constant; the result is checked.
    let fd = unsafe { libc::memfd_create(c"output".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is fresh, valid, and owned by nobody else.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Reads from the start without moving the offset that a writer shares with us.
fn contents(file: &File) -> Result<String> {
    let bytes = std::fs::read(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn keeps_output_and_status() {
        let output = run(
            Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]),
            LIMIT,
        )
        .unwrap();
        assert_eq!(
            (output.code, output.stdout.as_str(), output.stderr.as_str()),
            (3, "out\n", "err\n")
        );
        assert!(output.clone().ok().is_err());
        assert_eq!(output.fails_with(3).unwrap(), "err\n");
    }

    #[test]
    fn a_background_process_that_keeps_the_output_open_does_not_hold_us_up() {
        let output = run(Command::new("sh").args(["-c", "sleep 300 & echo $!"]), LIMIT).unwrap();
        signal(output.stdout.trim().parse().unwrap(), libc::SIGKILL);
        assert!(output.success());
    }

    #[test]
    fn what_hangs_is_killed() {
        let error = run(Command::new("sleep").arg("300"), Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("killed: `sleep 300`"), "{error}");
    }

    #[test]
    fn waiting_in_vain_tells_the_last_reason() {
        let error = wait_for::<()>("the moon", Duration::ZERO, || bail!("still dark")).unwrap_err();
        assert_eq!(format!("{error:#}"), "waited 0 s in vain: the moon: still dark");
    }
}
