//! The wait helper, into target/bpf/weave-wait: static, for any image.

use std::env;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::shell::{ask, cargo, run, target};

/// Builds it, if it is not up to date, and gives its path.
pub fn build() -> Result<PathBuf> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let verbose = ask(&rustc, &["-vV"]).context("rustc does not tell its version")?;
    let mut lines = verbose.lines();
    let host = lines.find_map(|line| line.strip_prefix("host: "));
    let host = host.context("rustc does not tell its host")?;
    let folder = target().join("wait");
    let mut command = cargo();
    command
        .args(["build", "--quiet", "--profile", "wait", "--package", "weave-wait"])
        // Named, so that the flags are not for the programs of the build itself.
        .args(["--target", host, "--target-dir"])
        .arg(&folder)
        .env_remove("RUSTFLAGS")
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            "-Ctarget-feature=+crt-static\x1f-Crelocation-model=static",
        );
    run(&mut command)?;
    let built = folder.join(host).join("wait/weave-wait");
    let helper = target().join("bpf/weave-wait");
    fs::create_dir_all(target().join("bpf"))?;
    let new = helper.with_extension("tmp");
    fs::copy(&built, &new).with_context(|| built.display().to_string())?;
    fs::rename(&new, &helper)?;
    println!("{}: {} bytes", helper.display(), fs::metadata(&helper)?.len());
    Ok(helper)
}
