//! Finds a compiler that can build for BPF: one whose sysroot has the source of `core`.
//!
//! The target has no prebuilt `core`, so it is built along (`-Z build-std`), and compiler and
//! source must belong together: another version fails inside `core`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell::{ask, clean, find, target};

/// The version of bpf-linker that `setup` installs.
pub const BPF_LINKER_VERSION: &str = "0.13.0";

/// What to do when no compiler was found.
pub const HOW_TO_GET_A_COMPILER: &str = "\
no Rust compiler with the source of its library was found. One of these provides it:
    rustup component add rust-src
    apt-get install --no-install-recommends rustc-web rust-web-src      (Debian 12)
or set EBPF_RUSTC to a compiler that has lib/rustlib/src/rust in its sysroot.";

/// A compiler that can build for BPF.
#[derive(Debug, Clone)]
pub struct Compiler {
    /// The compiler itself, not a rustup proxy.
    pub rustc: PathBuf,
    /// Its `--print sysroot`.
    pub sysroot: PathBuf,
    /// First line of its version.
    pub version: String,
    /// Host triple.
    pub host: String,
    /// Major version of its LLVM, which bpf-linker must share.
    pub llvm: u32,
}

impl Compiler {
    /// The first usable one of: `$EBPF_RUSTC`, rustup's nightly and stable, `rustc`, Debian's.
    pub fn find() -> Result<Self> {
        if let Some(wanted) = env::var_os("EBPF_RUSTC") {
            let wanted = Path::new(&wanted);
            return Self::inspect(wanted).with_context(|| {
                format!(
                    "EBPF_RUSTC={} cannot build for BPF:\n{HOW_TO_GET_A_COMPILER}",
                    wanted.display()
                )
            });
        }
        let toolchains = ["nightly", "stable"];
        let rustup = toolchains
            .iter()
            .filter_map(|t| ask("rustup", &["which", "--toolchain", t, "rustc"]));
        let candidates = rustup
            .chain(["rustc".to_owned(), "/usr/bin/rustc".to_owned()])
            .map(PathBuf::from);
        let found = candidates.filter_map(|rustc| Self::inspect(&rustc)).next();
        found.context(HOW_TO_GET_A_COMPILER)
    }

    fn inspect(rustc: &Path) -> Option<Self> {
        let sysroot = PathBuf::from(ask(rustc, &["--print", "sysroot"])?);
        if !sysroot.join("lib/rustlib/src/rust/library/Cargo.lock").is_file() {
            return None;
        }
        let verbose = ask(rustc, &["-vV"])?;
        let (version, host, llvm) = parse_version(&verbose)?;
        let own = sysroot.join("bin/rustc");
        let rustc = if own.is_file() {
            own
        } else {
            find(rustc.to_str()?).unwrap_or_else(|| rustc.to_owned())
        };
        Some(Self {
            rustc,
            sysroot,
            version,
            host,
            llvm,
        })
    }

    /// The source of the library, and where links in its path lead.
    pub fn source(&self) -> Vec<PathBuf> {
        let path = self.sysroot.join("lib/rustlib/src/rust");
        let real = path.canonicalize().ok().filter(|real| *real != path);
        std::iter::once(path).chain(real).collect()
    }

    /// The cargo of the same toolchain, else the one that runs us.
    pub fn cargo(&self) -> Command {
        let own = self.sysroot.join("bin/cargo");
        let program = if own.is_file() {
            own.into_os_string()
        } else {
            env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
        };
        let mut command = Command::new(program);
        clean(&mut command);
        command
    }

    /// The LLVM library that this compiler is linked to.
    pub fn llvm_library(&self) -> Result<PathBuf> {
        let libraries = ask("ldd", &[self.rustc.to_str().context("odd path of rustc")?]).unwrap_or_default();
        let line = libraries
            .lines()
            .find(|line| line.trim_start().starts_with("libLLVM"));
        let path = line
            .and_then(|line| line.split_whitespace().nth(2))
            .map(PathBuf::from);
        match path {
            Some(path) => Ok(path.canonicalize()?),
            None => bail!(
                "{} is not linked to a shared LLVM, so bpf-linker cannot use the same; set BPF_LINKER to a bpf-linker for LLVM {}",
                self.rustc.display(),
                self.llvm
            ),
        }
    }
}

fn parse_version(verbose: &str) -> Option<(String, String, u32)> {
    let field = |name: &str| {
        verbose
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    let llvm = field("LLVM version:")?.split('.').next()?.parse().ok()?;
    Some((
        verbose.lines().next()?.to_owned(),
        field("host:")?.to_owned(),
        llvm,
    ))
}

/// Where `setup` installs bpf-linker for this LLVM.
pub fn linker_root(llvm: u32) -> PathBuf {
    target().join(format!("tools/bpf-linker-{BPF_LINKER_VERSION}-llvm-{llvm}"))
}

/// bpf-linker for this LLVM: `$BPF_LINKER`, else what `setup` installed. One that does not start does
/// not count: the toolchain whose LLVM it used may have been updated.
pub fn linker(llvm: u32) -> Option<PathBuf> {
    let path =
        env::var_os("BPF_LINKER").map_or_else(|| linker_root(llvm).join("bin/bpf-linker"), PathBuf::from);
    ask(&path, &["--version"]).map(|_| path)
}

/// A command that strips objects for BPF, if there is one: rustc brings one along, LLVM has one.
pub fn objcopy(compiler: &Compiler) -> Option<Command> {
    let default = ask("rustc", &["--print", "sysroot"]).map(PathBuf::from);
    for sysroot in std::iter::once(compiler.sysroot.clone()).chain(default) {
        let program = sysroot
            .join("lib/rustlib")
            .join(&compiler.host)
            .join("bin/rust-objcopy");
        if program.is_file() {
            let mut command = Command::new(program);
            clean(&mut command).env("LD_LIBRARY_PATH", sysroot.join("lib"));
            return Some(command);
        }
    }
    let mut names = vec!["llvm-objcopy".to_owned()];
    names.extend(
        (14..=compiler.llvm)
            .rev()
            .map(|version| format!("llvm-objcopy-{version}")),
    );
    names.iter().find_map(|name| find(name)).map(Command::new)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::parse_version;

    #[test]
    fn version_of_debian() {
        let text = "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)\nbinary: rustc\n\
                    host: x86_64-unknown-linux-gnu\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        let (version, host, llvm) = parse_version(text).unwrap();
        assert!(version.starts_with("rustc 1.96.0"));
        assert_eq!((host.as_str(), llvm), ("x86_64-unknown-linux-gnu", 22));
        assert!(parse_version("rustc 1.96.0\n").is_none());
    }
}
