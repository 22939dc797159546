//! `cargo xtask install`: the release build where a user expects it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::shell::{as_root, cargo, display, find, heading, root, run as run_command, target};
use crate::{ebpf, setup};

/// Builds and installs into `prefix`.
pub fn run(prefix: &Path) -> Result<()> {
    setup::run(setup::Detail::Changes)?;
    heading("Build");
    let object = ebpf::build()?;
    run_command(cargo().args(["build", "--release", "--package", "weave-ctl"]))?;

    heading(&format!("Install into {}", prefix.display()));
    copy(
        "755",
        &target().join("release/weave-ctl"),
        &prefix.join("bin/weave-ctl"),
    )?;
    copy("644", &object, &prefix.join("lib/weave/weave.bpf.o"))?;
    copy(
        "755",
        &object.with_file_name("weave-wait"),
        &prefix.join("lib/weave/weave-wait"),
    )?;
    for unit in UNITS {
        install_unit(unit, prefix)?;
    }
    short_name(&prefix.join("bin/weave"))?;
    pages(&prefix.join("share"))?;
    println!("  next: weave-ctl launch [PEER…]   or   systemctl enable --now weave");
    Ok(())
}

/// Services and sockets of systemd.
const UNITS: [&str; 2] = ["weave.service", "weave-plugin.socket"];

fn install_unit(name: &str, prefix: &Path) -> Result<()> {
    let (template, unit) = (root().join("contrib/systemd").join(name), target().join(name));
    let text = fs::read_to_string(&template).with_context(|| template.display().to_string())?;
    let prefix_text = prefix.to_str().context("the prefix is not UTF-8")?;
    fs::write(&unit, text.replace("/usr/local", prefix_text))?;
    copy("644", &unit, &prefix.join("lib/systemd/system").join(name))
}

/// Where each shell looks for the completions of a command.
const COMPLETIONS: [(&str, &[&str]); 3] = [
    (
        "bash",
        &[
            "bash-completion/completions/weave",
            "bash-completion/completions/weave-ctl",
        ],
    ),
    ("zsh", &["zsh/site-functions/_weave"]),
    (
        "fish",
        &[
            "fish/vendor_completions.d/weave.fish",
            "fish/vendor_completions.d/weave-ctl.fish",
        ],
    ),
];

/// Manual pages and completions, as the new program makes them itself.
fn pages(share: &Path) -> Result<()> {
    let (program, made) = (target().join("release/weave-ctl"), target().join("pages"));
    let _left_over = fs::remove_dir_all(&made);
    fs::create_dir_all(&made).with_context(|| made.display().to_string())?;
    run_command(Command::new(&program).arg("man").arg(&made))?;
    let mut manual: Vec<_> = fs::read_dir(&made)?.collect::<Result<_, _>>()?;
    manual.sort_by_key(fs::DirEntry::file_name);
    for page in manual {
        copy(
            "644",
            &page.path(),
            &share.join("man/man1").join(page.file_name()),
        )?;
    }
    for (shell, files) in COMPLETIONS {
        let output = Command::new(&program).args(["completion", shell]).output()?;
        anyhow::ensure!(output.status.success(), "weave-ctl completion {shell} failed");
        let script = made.join(shell);
        fs::write(&script, output.stdout)?;
        for file in files {
            copy("644", &script, &share.join(file))?;
        }
    }
    Ok(())
}

/// `install` replaces the file as a whole, so a running daemon keeps its own.
fn copy(mode: &str, from: &Path, to: &Path) -> Result<()> {
    let program = find("install").context("the program `install` (coreutils) is missing")?;
    let owned = to.ancestors().skip(1).find(|dir| dir.exists());
    let mut command = if owned.is_some_and(writable) {
        Command::new(program)
    } else {
        as_root(program)?
    };
    command.args(["-D", "-m", mode]).arg(from).arg(to);
    run_command(&mut command).with_context(|| display(&command))?;
    println!("  {}", to.display());
    Ok(())
}

fn writable(dir: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let Ok(path) = std::ffi::CString::new(dir.as_os_str().as_bytes()) else {
        return false;
    };
    // SAFETY: the path is NUL-terminated and lives through the call.
    unsafe { libc::access(path.as_ptr(), libc::W_OK) == 0 }
}

/// `weave`, as the original is called, unless that name is taken.
fn short_name(link: &Path) -> Result<()> {
    if link.symlink_metadata().is_ok() {
        let ours = fs::read_link(link).is_ok_and(|to| to == Path::new("weave-ctl"));
        println!(
            "  {} {}",
            link.display(),
            if ours {
                "(was there)"
            } else {
                "is something else and stays"
            }
        );
        return Ok(());
    }
    if link.parent().is_some_and(writable) {
        symlink("weave-ctl", link)?;
    } else {
        run_command(as_root("ln")?.args(["-s", "weave-ctl"]).arg(link))?;
    }
    println!("  {} -> weave-ctl", link.display());
    Ok(())
}
