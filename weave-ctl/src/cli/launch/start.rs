//! Checks before the start, the daemon in a session of its own, and the wait until it answers.

use std::fs::{self, File};
use std::io::{self, IsTerminal as _, Read as _, Seek as _, SeekFrom};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::flags::LaunchArgs;
use super::options::LaunchOptions;
use super::password;
use crate::api::report::Report;
use crate::cli::client::Client;
use crate::cli::env::{PASSWORD, absolute};
use crate::cli::lock::{Lock, LockError};
use crate::cli::{Context, Failure, Outcome, block_on, need_root, note, out};
use crate::docker::tls::CERTIFICATES;
use crate::net::{NetError, Netlink, overlap};

/// Exit status when the daemon runs already.
const RUNNING: u8 = 3;
/// Set for the daemon that a command starts.
const DETACHED: &str = "WEAVE_DETACHED";
/// How often the daemon is asked whether it is ready.
const POLL: Duration = Duration::from_millis(50);
/// How long a daemon that was killed may take to be gone.
const AFTER_KILL: Duration = Duration::from_secs(10);
/// How long somebody else's control address may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// After this long a person is told what we wait for.
const TALK_AFTER: Duration = Duration::from_secs(1);
/// How much of the log of a daemon that died is shown, in bytes and in lines.
const TAIL: u64 = 16 * 1024;
const TAIL_LINES: usize = 20;

/// `weave launch`. `words` are the arguments from `launch` on.
pub fn launch(args: LaunchArgs, context: &Context, words: &[String]) -> Outcome {
    // The variable, too, so that no combination of flags can make daemons start daemons.
    let detached = std::env::var_os(DETACHED).is_some();
    let foreground = args.foreground.unwrap_or(context.env.foreground) || detached;
    let notes = args.other.notes.clone();
    let mut options = LaunchOptions::new(args, &context.env)?;
    options.managed = foreground && !detached;
    need_root()?;
    if foreground && !detached && password::exposed(words) {
        let error = daemon_command(&options, words)?.exec();
        return Err(Failure::new(1, format!("cannot start the daemon: {error}")));
    }
    if !detached {
        notes
            .iter()
            .chain(&options.proxy.notes)
            .for_each(|line| note(line));
        options.password.as_ref().and_then(password::weakness).map(note);
    }
    await_predecessor(&options.paths.run_dir);
    if foreground {
        return run_here(options);
    }
    if Lock::holder(&options.paths.run_dir).is_some() {
        return Err(already_running());
    }
    let client = Client::new(&options.http_addr, &options.paths.run_dir);
    block_on(async {
        if !options.http_addr.is_empty() && answers(&client).await {
            return Err(Failure::new(1, "Weave Net is already running"));
        }
        check_range(&options).await
    })?;
    let mut child = spawn(&options, words)?;
    block_on(async {
        wait_until_ready(&mut child, &options, &client).await?;
        tell_fallback(&options, &client).await;
        Ok(())
    })?;
    out(&format!("{}\n", child.id()));
    Ok(())
}

/// A daemon that was killed a moment ago is not in the way for long.
fn await_predecessor(run_dir: &Path) {
    let until = Instant::now() + AFTER_KILL;
    while Instant::now() < until && Lock::dying(run_dir).is_some() {
        std::thread::sleep(POLL);
    }
}

/// Does a Weave Net answer at the control address? Whatever else listens there may never answer.
async fn answers(client: &Client) -> bool {
    let asked = tokio::time::timeout(PATIENCE, client.ask("GET", "/status", &[])).await;
    asked.is_ok_and(|answer| answer.is_ok_and(|reply| reply.status / 100 == 2))
}

fn already_running() -> Failure {
    Failure::new(
        RUNNING,
        "weave is already running; you can stop it with 'weave stop'.",
    )
}

/// Being the daemon.
fn run_here(options: LaunchOptions) -> Outcome {
    let lock = Lock::acquire(&options.paths.run_dir).map_err(|e| match e {
        LockError::Held(_) => already_running(),
        LockError::File { .. } => Failure::new(1, e.to_string()),
    })?;
    if std::env::var_os(DETACHED).is_some() {
        // All paths are absolute by now; do not keep a file system busy.
        let _ = std::env::set_current_dir("/");
    }
    let ended = crate::daemon::run(options);
    drop(lock);
    ended.map_err(|e| Failure::new(1, format!("FATA: {e:#}")))
}

/// The allocation range and the host's routes (cli.md 4.3, step 7).
async fn check_range(options: &LaunchOptions) -> Outcome {
    let Some(ipam) = &options.ipam else { return Ok(()) };
    let checked = async {
        let nl = Netlink::current().await?;
        overlap::check_network(&nl, ipam.range, &[&options.bridge]).await
    };
    range_outcome(
        checked.await,
        ipam.range_is_default,
        &ipam.range.to_string(),
        note,
    )
}

pub(super) fn range_outcome(
    checked: Result<(), NetError>,
    is_default: bool,
    range: &str,
    warn: impl Fn(&str),
) -> Outcome {
    match checked {
        Ok(()) => Ok(()),
        Err(e @ NetError::NetworkOverlap { .. }) if is_default => Err(Failure::new(
            1,
            format!(
                "{e}\nERROR: Default --ipalloc-range {range} overlaps with existing route on host.\n\
                 You must pick another range and set it on all hosts."
            ),
        )),
        Err(NetError::NetworkOverlap { .. }) => {
            warn(&format!(
                "WARNING: Specified --ipalloc-range {range} overlaps with existing route on host."
            ));
            warn("Unless this is deliberate, you must pick another range and set it on all hosts.");
            Ok(())
        }
        Err(e) => Err(e.into()),
    }
}

fn spawn(options: &LaunchOptions, words: &[String]) -> Result<Child, Failure> {
    let log_path = options.paths.log();
    let failed = |what: &str, e: io::Error| Failure::new(1, format!("cannot {what}: {e}"));
    fs::create_dir_all(&options.paths.run_dir)
        .map_err(|e| failed(&format!("make {}", options.paths.run_dir.display()), e))?;
    // The log of the last run is kept, so that a relaunch does not destroy what explains a death.
    let _ = fs::rename(&log_path, log_path.with_extension("log.old"));
    let open = || File::options().create(true).append(true).open(&log_path);
    let log = open().and_then(|log| Ok((log.try_clone()?, log)));
    let (stdout, stderr) = log.map_err(|e| failed(&format!("write {}", log_path.display()), e))?;
    let mut command = daemon_command(options, words)?;
    command.env(DETACHED, "1").stdout(stdout).stderr(stderr);
    if options.password.is_none() {
        command.stdin(Stdio::null());
    }
    // SAFETY: setsid may be called between fork and exec; the closure touches no memory of ours.
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(io::Error::from));
    }
    command.spawn().map_err(|e| failed("start the daemon", e))
}

/// This program as the daemon, with the same arguments but for the password: that it reads from its
/// standard input, so that it shows neither in the list of processes nor in `/proc/PID/environ`.
fn daemon_command(options: &LaunchOptions, words: &[String]) -> Result<Command, Failure> {
    let failed = |what: &str, e: io::Error| Failure::new(1, format!("cannot {what}: {e}"));
    let program = std::env::current_exe().map_err(|e| failed("find this program", e))?;
    let mut command = Command::new(program);
    command.arg("launch").arg("--foreground");
    if let Some(password) = &options.password {
        let pipe = password::pipe(password).map_err(|e| failed("hand over the password", e))?;
        command.arg("--password-file").arg(password::STDIN).stdin(pipe);
    }
    command
        .args(password::without(words.get(1..).unwrap_or_default()))
        .env_remove(PASSWORD);
    if let Some(folder) = std::env::var_os(CERTIFICATES).filter(|folder| !folder.is_empty()) {
        // It changes its working directory.
        command.env(CERTIFICATES, absolute(Path::new(&folder)));
    }
    Ok(command)
}

async fn wait_until_ready(child: &mut Child, options: &LaunchOptions, client: &Client) -> Outcome {
    let started = Instant::now();
    let mut told = !io::stderr().is_terminal();
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Err(died(&options.paths.log(), status));
        }
        if is_ready(child, options, client).await {
            return Ok(());
        }
        if !told && started.elapsed() > TALK_AFTER {
            told = true;
            note("Waiting for the weave daemon to become ready...");
        }
        tokio::time::sleep(POLL).await;
    }
}

/// A host that cannot have the fast path works, but slower than its user expects: never silently.
async fn tell_fallback(options: &LaunchOptions, client: &Client) {
    if options.no_fastdp || options.http_addr.is_empty() {
        return;
    }
    let Ok(reply) = client.ask("GET", "/report", &[]).await else {
        return;
    };
    let report = serde_json::from_str::<Report>(&reply.body);
    if let Some(fastdp) = report.ok().and_then(|report| report.fast_datapath)
        && !fastdp.program.loaded
    {
        let why = fastdp.program.version;
        note(&format!(
            "NOTE: no fast path on this host ({why}): frames go by sleeve, through userspace."
        ));
    }
}

async fn is_ready(child: &Child, options: &LaunchOptions, client: &Client) -> bool {
    // Somebody else's answer would say nothing about our daemon.
    let holder = Lock::holder(&options.paths.run_dir);
    if holder.and_then(|pid| u32::try_from(pid).ok()) != Some(child.id()) {
        return false;
    }
    if options.http_addr.is_empty() {
        return true;
    }
    // Somebody else may have the port, and never answer.
    let answer = tokio::time::timeout(PATIENCE, client.ask("GET", "/status", &[])).await;
    matches!(answer, Ok(Ok(reply)) if reply.status / 100 == 2)
}

fn died(log: &Path, status: std::process::ExitStatus) -> Failure {
    let tail = tail(log).unwrap_or_default();
    let text = format!(
        "{tail}The weave daemon has died. Consult {} for further details.",
        log.display()
    );
    // The daemon that lost a race for the lock knows better.
    let code = if status.code() == Some(RUNNING.into()) {
        RUNNING
    } else {
        1
    };
    Failure::new(code, text)
}

fn tail(log: &Path) -> io::Result<String> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    Ok(last.iter().map(|line| format!("{line}\n")).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn the_end_of_the_log_of_a_daemon_that_died() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("weave.log");
        let lines: Vec<String> = (0..5000).map(|i| format!("line {i}")).collect();
        fs::write(&log, lines.join("\n")).unwrap();
        let failure = died(&log, std::process::ExitStatus::from_raw(1 << 8));
        assert_eq!(failure.code, 1);
        let shown: Vec<&str> = failure.text.lines().collect();
        assert_eq!((shown.len(), shown[0], shown[19]), (21, "line 4980", "line 4999"));
        let path = log.display();
        assert_eq!(
            shown[20],
            format!("The weave daemon has died. Consult {path} for further details.")
        );
        assert_eq!(
            died(
                &dir.path().join("none"),
                std::process::ExitStatus::from_raw(3 << 8)
            )
            .code,
            3
        );
    }
}
