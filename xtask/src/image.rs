//! `cargo xtask image` and `cargo xtask plugin`: what Docker takes, made of a release build and of this machine's
//! libraries, without a registry.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use weave_tests::image;

use crate::ebpf;
use crate::shell::{cargo, heading, run as run_command, target};

/// The image's name.
const TAG: &str = "weave:latest";

/// The program and the folder with what comes with it.
fn build() -> Result<(PathBuf, PathBuf)> {
    heading("Build");
    let object = ebpf::build()?;
    run_command(cargo().args(["build", "--release", "--package", "weave-ctl"]))?;
    let artifacts = object.parent().context("the BPF object is nowhere")?.to_owned();
    Ok((target().join("release/weave-ctl"), artifacts))
}

/// An empty place.
fn fresh(name: &str) -> Result<PathBuf> {
    let folder = target().join(name);
    match fs::remove_dir_all(&folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).context(folder.display().to_string());
        }
        _ => {}
    }
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// The container image, into target/weave-image.tar.
pub fn image() -> Result<()> {
    let (program, artifacts) = build()?;
    heading("Image");
    let folder = fresh("image")?;
    let (rootfs, to) = (folder.join("rootfs"), target().join("weave-image.tar"));
    image::rootfs(&rootfs, &program, &artifacts)?;
    if !rootfs.join("usr/sbin/nft").exists() {
        println!("  without nft, which this machine has not: containers of it cannot `expose`");
    }
    image::archive(&rootfs, &folder.join("work"), TAG, &to)?;
    println!("  {}: {} bytes", to.display(), fs::metadata(&to)?.len());
    println!(
        "  next: docker load -i {}   then as in docs/docker.md",
        to.display()
    );
    Ok(())
}

/// The managed plugin, into target/plugin.
pub fn plugin() -> Result<()> {
    let (program, artifacts) = build()?;
    heading("Plugin");
    let folder = fresh("plugin")?;
    image::plugin(&folder, &program, &artifacts)?;
    println!("  {}", folder.display());
    println!(
        "  next: docker plugin create weave {0}   and   docker plugin enable weave",
        folder.display()
    );
    Ok(())
}
