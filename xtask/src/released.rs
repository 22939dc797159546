//! Measuring wants release builds, of ourselves as well: we are what sends, receives and relays.

use std::process::Command;

use anyhow::Result;

use crate::shell::{cargo, run, target};
use crate::{ebpf, setup};

/// Builds everything for release, and runs this very command again with `--built`.
pub fn build_and_rerun() -> Result<()> {
    setup::run(setup::Detail::Changes)?;
    ebpf::build()?;
    run(cargo().args([
        "build",
        "--quiet",
        "--release",
        "--package",
        "weave-ctl",
        "--package",
        "xtask",
    ]))?;
    let mut released = Command::new(target().join("release/xtask"));
    released.args(std::env::args().skip(1)).arg("--built");
    run(&mut released)
}
