//! `cargo xtask setup`: installs what is missing, and only that.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use weave_tests::{mesh_peer, process};

use crate::shell::{as_root, ask, cargo, clean, find, heading, is_root};
use crate::toolchain::{self, BPF_LINKER_VERSION, Compiler, HOW_TO_GET_A_COMPILER};

/// How much to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Also what is there already.
    Full,
    /// Only what is done.
    Changes,
}

/// Programs and the Debian packages that have them.
const PROGRAMS: [(&str, &str); 11] = [
    ("ip", "iproute2"),
    ("ping", "iputils-ping"),
    ("iperf3", "iperf3"),
    ("bpftool", "bpftool"),
    ("nft", "nftables"),
    ("iptables", "iptables"),
    ("dig", "dnsutils"),
    ("tcpdump", "tcpdump"),
    ("sysctl", "procps"),
    ("nsenter", "util-linux"),
    ("taskset", "util-linux"),
];
/// A Docker engine, which the tests start by themselves, and what is in its images. Installing one
/// starts it, which nobody asked for on his own machine: so only where `CI` is set. Elsewhere the
/// tests that need one say so and are skipped.
const DOCKER: [(&str, &str); 5] = [
    ("dockerd", "docker.io"),
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("busybox", "busybox-static"),
    ("musl-gcc", "musl-tools"),
];
/// A client library of Docker's that is run through the proxy, and what it is told by. Where it cannot be had its test
/// is skipped.
const DOCKER_PY: (&str, &str) = (
    "/usr/lib/python3/dist-packages/docker/__init__.py",
    "python3-docker",
);
/// What only measurements need: `cargo xtask setup --bench`.
pub const BENCH: [(&str, &str); 2] = [("dnsperf", "dnsperf"), ("dnsmasq", "dnsmasq-base")];
/// The original's mesh library and a compiler for it (80 MB; about a minute), also only where `CI` is set.
/// Without them a few tests are skipped, which the summary tells: so failing to get them is no failure.
const THIRD_PARTY: [&str; 2] = ["golang-go", mesh_peer::PACKAGE];

/// Installs what is missing.
pub fn run(detail: Detail) -> Result<()> {
    if detail == Detail::Full {
        heading("Setup");
    }
    let note = |what: &str, state: &str| {
        if detail == Detail::Full {
            println!("  {what:<28} {state}");
        }
    };
    for (component, subcommand) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        rust_component(component, subcommand)?;
        note(component, "present");
    }
    let mut programs = PROGRAMS.to_vec();
    if std::env::var_os("CI").is_some() {
        programs.extend(DOCKER);
        programs.push(DOCKER_PY);
    }
    let missing = missing(&programs);
    for (program, package) in programs {
        note(
            &format!("{program} ({package})"),
            if missing.contains(&package) {
                "missing"
            } else {
                "present"
            },
        );
    }
    if !missing.is_empty() {
        install_packages(&missing)?;
    }
    let third_party = mesh_peer::can_be_built();
    note(
        &THIRD_PARTY.join(", "),
        if third_party {
            "present"
        } else {
            "missing (optional)"
        },
    );
    if !third_party
        && std::env::var_os("CI").is_some()
        && let Err(error) = install_packages(&THIRD_PARTY)
    {
        println!("  left out: {error:#}");
    }
    let compiler = compiler()?;
    note(
        "compiler for BPF",
        &format!("{}, LLVM {}", compiler.version, compiler.llvm),
    );
    let linker = match toolchain::linker(compiler.llvm) {
        Some(linker) => linker,
        None => install_linker(&compiler)?,
    };
    note("bpf-linker", &linker.display().to_string());
    Ok(())
}

/// Where programs and maps are pinned; systemd mounts it at boot.
const BPF_ROOT: &str = "/sys/fs/bpf";

/// Mounts the BPF file system, on a machine that has none.
pub fn bpf_file_system() -> Result<()> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let mounted = |line: &str| line.split(' ').nth(1) == Some(BPF_ROOT);
    if mounts.lines().any(mounted) {
        return Ok(());
    }
    println!("  mounting the BPF file system");
    let mut mount = as_root("mount")?;
    mount.args(["-t", "bpf", "bpf", BPF_ROOT]);
    crate::shell::run(&mut mount)
}

/// Installs those of the programs that are missing; each comes with the name of its package.
pub fn need(programs: &[(&str, &str)]) -> Result<()> {
    match &missing(programs)[..] {
        [] => Ok(()),
        packages => install_packages(packages),
    }
}

/// Fails, and says how to get them, unless all of these programs are there.
pub fn present(programs: &[(&str, &str)]) -> Result<()> {
    match &missing(programs)[..] {
        [] => Ok(()),
        packages => bail!("{} missing: cargo xtask setup --bench", packages.join(" and ")),
    }
}

/// Packages of the programs that are not there.
fn missing<'a>(programs: &[(&str, &'a str)]) -> Vec<&'a str> {
    let missing = programs.iter().filter(|(program, _)| find(program).is_none());
    missing.map(|(_, package)| *package).collect()
}

fn rust_component(component: &str, subcommand: &str) -> Result<()> {
    let present = cargo()
        .args([subcommand, "--version"])
        .output()
        .is_ok_and(|output| output.status.success());
    if present {
        return Ok(());
    }
    println!("  installing {component} through rustup");
    crate::shell::run(Command::new("rustup").args(["component", "add", component]))
        .with_context(|| format!("{component} is missing; install it: rustup component add {component}"))
}

fn install_packages(packages: &[&str]) -> Result<()> {
    let mut packages = packages.to_vec();
    packages.dedup();
    let list = packages.join(" ");
    if find("apt-get").is_none() {
        bail!("these programs are missing (by their Debian package names): {list}");
    }
    if !is_root() && find("sudo").is_none() {
        bail!("run as root: apt-get update && apt-get install --no-install-recommends {list}");
    }
    println!("  installing Debian packages: {list}");
    crate::shell::run(apt()?.args(["update", "-qq"]))?;
    crate::shell::run(
        apt()?
            .args(["install", "-qq", "-y", "--no-install-recommends"])
            .args(&packages),
    )
}

fn apt() -> Result<Command> {
    let mut command = as_root("apt-get")?;
    // Another apt may be running: wait for it.
    command
        .args(["-o", "DPkg::Lock::Timeout=300"])
        .env("DEBIAN_FRONTEND", "noninteractive");
    Ok(command)
}

/// A compiler for BPF; first the one there is, then through rustup, then Debian's.
fn compiler() -> Result<Compiler> {
    if let Ok(compiler) = Compiler::find() {
        return Ok(compiler);
    }
    if std::env::var_os("EBPF_RUSTC").is_some() {
        return Compiler::find();
    }
    if find("rustup").is_some() {
        println!("  installing rust-src through rustup");
        let mut command = Command::new("rustup");
        let result = process::run(
            command.args(["component", "add", "rust-src"]),
            Duration::from_secs(180),
        );
        if let (Ok(output), Ok(compiler)) = (&result, Compiler::find())
            && output.success()
        {
            return Ok(compiler);
        }
        println!("  rustup cannot provide rust-src here");
    }
    if ask("apt-cache", &["show", "rust-web-src"]).is_some_and(|text| !text.is_empty()) {
        install_packages(&["rustc-web", "rust-web-src"])?;
    }
    Compiler::find().context(HOW_TO_GET_A_COMPILER)
}

/// Builds bpf-linker against the LLVM of the compiler, whatever package that came in. Linking
/// takes one symbolic link with the name that linkers look for; no development package.
fn install_linker(compiler: &Compiler) -> Result<std::path::PathBuf> {
    println!(
        "  building bpf-linker {BPF_LINKER_VERSION} for LLVM {} (about a minute)",
        compiler.llvm
    );
    let root = toolchain::linker_root(compiler.llvm);
    let library = compiler.llvm_library()?;
    let folder = library.parent().context("the LLVM library has no folder")?;
    let prefix = root.join("llvm");
    fs::create_dir_all(prefix.join("lib"))?;
    link(&library, &prefix.join("lib/libLLVM.so"))?;
    let mut command = cargo();
    clean(&mut command)
        .args([
            "install",
            "bpf-linker",
            "--quiet",
            "--version",
            BPF_LINKER_VERSION,
            "--locked",
        ])
        .args([
            "--no-default-features",
            "--features",
            &format!("llvm-{}", compiler.llvm),
        ])
        .arg("--root")
        .arg(&root)
        .env("LLVM_PREFIX", &prefix)
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
        .env("CARGO_PROFILE_RELEASE_LTO", "off");
    if !folder.starts_with("/usr/lib") && !folder.starts_with("/lib") {
        // A library inside a toolchain is not where the loader looks.
        command.env("RUSTFLAGS", format!("-Clink-arg=-Wl,-rpath,{}", folder.display()));
    }
    crate::shell::run(&mut command).context("bpf-linker could not be built")?;
    toolchain::linker(compiler.llvm).context("bpf-linker was built but is not where it should be")
}

fn link(to: &Path, at: &Path) -> Result<()> {
    if at.symlink_metadata().is_ok() {
        fs::remove_file(at)?;
    }
    std::os::unix::fs::symlink(to, at).with_context(|| format!("cannot make {}", at.display()))
}
