//! `cargo xtask test`: everything that must hold. `.ci/run` calls it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use weave_tests::case::SKIPS_VARIABLE;

use crate::shell::{cargo, display, find, heading, is_root, root, run as run_command, target};
use crate::{ebpf, setup};

/// What came out so far. A check that is not a test binary (format, lints, a build) counts as one.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: usize,
    failed: Vec<String>,
    skipped: Vec<String>,
}

/// Runs all checks, also after one has failed. The last line printed is the count.
pub fn run() -> ExitCode {
    let start = Instant::now();
    let mut tally = Tally::default();

    tally.check("Format", || {
        format_of(None)?;
        format_of(Some("weave-ebpf"))?;
        format_of(Some("fuzz"))
    });
    tally.check("Lints: workspace", || {
        run_command(cargo().args([
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ]))
    });
    tally.check("Lints: BPF programs", lint_ebpf);
    let ready = tally.check("Setup", || {
        setup::run(setup::Detail::Changes)?;
        setup::bpf_file_system()
    }) && tally.check("BPF programs", || ebpf::build().map(drop));
    let built = tally.check("Build", || {
        run_command(cargo().args(["build", "--quiet", "--workspace", "--bins", "--locked"]))
    });

    tally.tests(
        "Tests: unit, property, BPF programs on packets",
        &["--workspace", "--exclude", "weave-tests"],
        &[],
    );
    if ready && built {
        // One at a time: they measure nothing, but share two cores with the daemons they start.
        tally.tests(
            "Tests: end to end",
            &["--package", "weave-tests"],
            &["--test-threads=1"],
        );
    } else {
        tally
            .failed
            .push("end to end: not run, as a build failed".to_owned());
    }

    heading(&format!("Summary, after {} s", start.elapsed().as_secs()));
    tally.skipped.iter().for_each(|skip| println!("skipped: {skip}"));
    tally.failed.iter().for_each(|fail| println!("FAILED: {fail}"));
    println!(
        "{} passed, {} failed, {} skipped",
        tally.passed,
        tally.failed.len(),
        tally.skipped.len()
    );
    if tally.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

impl Tally {
    /// One check that passes or fails as a whole.
    fn check(&mut self, name: &str, check: impl FnOnce() -> Result<()>) -> bool {
        heading(name);
        match check() {
            Ok(()) => {
                println!("ok");
                self.passed += 1;
                true
            }
            Err(error) => {
                println!("FAILED: {error:#}");
                self.failed.push(format!("{name}: {error:#}"));
                false
            }
        }
    }

    /// `cargo test`, its output shown and counted.
    fn tests(&mut self, name: &str, args: &[&str], harness: &[&str]) {
        heading(name);
        if let Err(error) = self.run_tests(args, harness) {
            println!("FAILED: {error:#}");
            self.failed.push(format!("{name}: {error:#}"));
        }
    }

    fn run_tests(&mut self, args: &[&str], harness: &[&str]) -> Result<()> {
        let skips = target().join("skipped-tests.txt");
        let _absent_at_first = fs::remove_file(&skips);
        let mut command = cargo();
        command
            .args(["test", "--locked", "--no-fail-fast"])
            .args(args)
            .arg("--")
            .args(harness);
        command.env(SKIPS_VARIABLE, &skips).stdout(Stdio::piped());
        if !is_root() && find("sudo").is_some() {
            // Namespaces and BPF need root; compiling does not.
            let runner = format!(
                "CARGO_TARGET_{}_RUNNER",
                env_triple().context("rustc does not tell its host")?
            );
            command.env(runner, "sudo --preserve-env --");
        }
        let line = display(&command);
        let mut child = command.spawn().with_context(|| format!("cannot run `{line}`"))?;
        let failed_before = self.failed.len();
        for text in BufReader::new(child.stdout.take().context("no output")?).lines() {
            let text = text?;
            println!("{text}");
            self.count(&text);
        }
        let status = child.wait()?;
        for skip in fs::read_to_string(&skips).unwrap_or_default().lines() {
            // The harness knows no skipping at run time and has counted it as passed.
            self.passed = self.passed.saturating_sub(1);
            self.skipped.push(skip.to_owned());
        }
        if !status.success() && self.failed.len() == failed_before {
            bail!("`{line}` failed: {status}");
        }
        Ok(())
    }

    /// Takes a line of the test harness into account.
    fn count(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("test result: ") {
            let words: Vec<&str> = rest.split([' ', ';']).collect();
            let passed = words
                .windows(2)
                .find(|pair| pair.get(1) == Some(&"passed"))
                .and_then(|pair| pair.first());
            self.passed += passed.and_then(|n| n.parse().ok()).unwrap_or(0);
        } else if let Some(rest) = line.strip_prefix("test ")
            && let Some((name, result)) = rest.rsplit_once(" ... ")
        {
            if result == "FAILED" {
                self.failed.push(name.to_owned());
            } else if let Some(reason) = result.strip_prefix("ignored") {
                self.skipped.push(format!("{name}: ignored{reason}"));
            }
        }
    }
}

fn env_triple() -> Option<String> {
    let verbose = crate::shell::ask("rustc", &["-vV"])?;
    let host = verbose.lines().find_map(|line| line.strip_prefix("host: "))?;
    Some(host.to_uppercase().replace('-', "_"))
}

fn format_of(part: Option<&str>) -> Result<()> {
    let manifest = part.map(|part| root().join(part).join("Cargo.toml"));
    let mut command = cargo();
    match manifest {
        None => drop(command.args(["fmt", "--all", "--check"])),
        Some(path) if path.is_file() => drop(command.args(["fmt", "--check", "--manifest-path"]).arg(path)),
        Some(_) => return Ok(()),
    }
    run_command(&mut command)
}

/// The programs are linted as code for this machine: clippy of the workspace's own toolchain needs
/// no source of `core` then, and the code is the same.
fn lint_ebpf() -> Result<()> {
    let mut command: Command = cargo();
    command
        .args(["clippy", "--quiet", "--locked", "--manifest-path"])
        .arg(root().join("weave-ebpf/Cargo.toml"));
    command.arg("--target-dir").arg(target().join("ebpf"));
    command.env(
        "RUSTFLAGS",
        format!("--cfg=bpf_target_arch={:?}", std::env::consts::ARCH),
    );
    run_command(command.args(["--", "-D", "warnings"]))
}

#[cfg(test)]
mod tests {
    use super::Tally;

    #[test]
    fn counts_what_the_harness_prints() {
        let mut tally = Tally::default();
        for line in [
            "running 4 tests",
            "test mesh::name ... ok",
            "test lab::ping ... FAILED",
            "test slow ... ignored, takes an hour",
            "test result: FAILED. 12 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.06s",
            "test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.06s",
        ] {
            tally.count(line);
        }
        let expected = Tally {
            passed: 17,
            failed: vec!["lab::ping".to_owned()],
            skipped: vec!["slow: ignored, takes an hour".to_owned()],
        };
        assert_eq!(tally, expected);
    }
}
