//! Measuring wants release builds, of ourselves as well: we are what sends, receives and relays.

use std::process::Command;

use anyhow::Result;

use crate::shell::{became_root, cargo, run, target};
use crate::{ebpf, setup};

/// Is this the release build, and root? If not, this very command has been run again as such meanwhile.
pub fn is_released_and_root(built: bool) -> Result<bool> {
    if !built {
        return build_and_rerun().map(|()| false);
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    became_root(&args).map(|became| !became)
}

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
