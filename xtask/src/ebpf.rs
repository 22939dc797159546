//! `cargo xtask build-ebpf`: the BPF programs into target/bpf/weave.bpf.o, and what else is found beside them.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::shell::{clean, root, run, target};
use crate::toolchain::{self, Compiler};
use crate::wait;

/// Builds the wait helper and the object, if they are not up to date, and gives the object's path.
pub fn build() -> Result<PathBuf> {
    wait::build()?;
    let compiler = Compiler::find()?;
    let linker = toolchain::linker(compiler.llvm).with_context(|| {
        format!(
            "no bpf-linker for LLVM {}, the one of {}; run: cargo xtask setup",
            compiler.llvm, compiler.version
        )
    })?;
    run(&mut command(&compiler, &linker))?;

    let built = target().join("ebpf/bpfel-unknown-none/release/weave-ebpf");
    let object = target().join("bpf/weave.bpf.o");
    place(&compiler, &built, &object)?;
    println!(
        "{}: {} bytes, by {}",
        object.display(),
        fs::metadata(&object)?.len(),
        compiler.version
    );
    Ok(object)
}

fn command(compiler: &Compiler, linker: &Path) -> Command {
    let mut command = compiler.cargo();
    command
        .args([
            "build",
            "--quiet",
            "--release",
            "--locked",
            "-Z",
            "build-std=core",
            "--target",
            "bpfel-unknown-none",
        ])
        .arg("--target-dir")
        .arg(target().join("ebpf"))
        .current_dir(root().join("weave-ebpf"))
        .env("RUSTC", &compiler.rustc)
        // Unstable flags from a compiler of any channel.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags(compiler, linker).join("\x1f"));
    command
}

fn flags(compiler: &Compiler, linker: &Path) -> Vec<String> {
    let mut flags = vec![
        format!("--cfg=bpf_target_arch={:?}", env::consts::ARCH),
        // BTF, and with it named fields in `bpftool map dump`, is made from the debug info.
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("-Clinker={}", linker.display()),
    ];
    // The same object from any folder.
    let mut remap =
        |from: &Path, to: &str| flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    if let Some(home) = home {
        remap(&home, "/cargo");
    }
    for source in compiler.source() {
        remap(&source, "/rust");
    }
    remap(root(), "/weave");
    flags
}

/// Copies the object without DWARF, which only BTF was made from. It loads with DWARF too, so a
/// machine without objcopy gets it as it is.
fn place(compiler: &Compiler, built: &Path, object: &Path) -> Result<()> {
    fs::create_dir_all(object.parent().context("the object has no folder")?)?;
    let stripped = object.with_extension("tmp");
    match toolchain::objcopy(compiler) {
        Some(mut objcopy) => run(clean_objcopy(&mut objcopy)
            .arg("--strip-debug")
            .arg(built)
            .arg(&stripped))?,
        None => drop(fs::copy(built, &stripped)?),
    }
    fs::rename(&stripped, object)?;
    Ok(())
}

fn clean_objcopy(command: &mut Command) -> &mut Command {
    // rust-objcopy comes with the library path it needs; others must not see cargo's.
    let has_own = command
        .get_envs()
        .any(|(name, value)| name == "LD_LIBRARY_PATH" && value.is_some());
    if has_own { command } else { clean(command) }
}
