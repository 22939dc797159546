//! Running other programs, and where things are.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The repository.
pub fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// Cargo's target folder.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// The cargo that runs us, started in the repository.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Says what comes now.
pub fn heading(text: &str) {
    println!("\n=== {text}");
}

/// Runs a command to its end; its output goes to ours.
pub fn run(command: &mut Command) -> Result<()> {
    let line = display(command);
    let status = command.status().with_context(|| format!("cannot run `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

/// Standard output of a command, nothing if it fails or does not exist.
pub fn ask(program: impl AsRef<Path>, args: &[&str]) -> Option<String> {
    let output = clean(&mut Command::new(program.as_ref()))
        .args(args)
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Takes away what `cargo run` put into our environment: it names the compiler and the libraries
/// of the workspace, which are not those of the BPF build.
pub fn clean(command: &mut Command) -> &mut Command {
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let kept = [
            "CARGO_HOME",
            "CARGO_NET",
            "CARGO_HTTP",
            "CARGO_REGISTR",
            "CARGO_BUILD_JOBS",
        ];
        let of_cargo = text.starts_with("CARGO") && !kept.iter().any(|prefix| text.starts_with(prefix));
        if of_cargo
            || text.starts_with("RUSTC")
            || ["RUSTFLAGS", "RUSTUP_TOOLCHAIN", "LD_LIBRARY_PATH"].contains(&&*text)
        {
            command.env_remove(name);
        }
    }
    command
}

/// Where a program is: in the path, or where only root's path leads.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let admin = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(admin)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// Are we root?
pub fn is_root() -> bool {
    // SAFETY: geteuid has no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// A command that runs `program` as root: directly, or through sudo.
pub fn as_root(program: impl AsRef<Path>) -> Result<Command> {
    let program = program.as_ref();
    if is_root() {
        return Ok(Command::new(program));
    }
    let sudo = find("sudo").context("this needs root, and there is no sudo")?;
    let mut command = Command::new(sudo);
    command.arg("--").arg(program);
    Ok(command)
}

/// Runs this program again as root with other arguments, when we are not; `false` if we are.
pub fn became_root(args: &[String]) -> Result<bool> {
    if is_root() {
        return Ok(false);
    }
    println!("Network namespaces need root: going on with sudo");
    run(as_root(env::current_exe()?)?.args(args))?;
    Ok(true)
}

/// The command line, for messages.
pub fn display(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}
