//! What a container of ours has in it: the program, what comes with it, and the libraries of both. For the container
//! image, Docker's managed plugin, and the tests of both; all from this machine, without a registry.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::process::{self, LIMIT};

/// Where the program is in there.
pub const PROGRAM: &str = "/usr/local/bin/weave-ctl";
/// What comes with it, from `cargo xtask build-ebpf`.
const ARTIFACTS: [&str; 2] = ["weave.bpf.o", "weave-wait"];
/// Folders that the daemon or Docker expects.
const FOLDERS: [&str; 9] = [
    "dev",
    "etc",
    "host",
    "proc",
    "run/docker/plugins",
    "run/weave",
    "sys",
    "tmp",
    "var/lib/weave",
];

/// Fills the folder, which must not exist. `artifacts`: where what comes with the program is. Without the `nft`
/// program of this machine containers of the image can do all but `weave expose`.
///
/// # Errors
/// If something is missing or cannot be written.
pub fn rootfs(folder: &Path, program: &Path, artifacts: &Path) -> Result<()> {
    for name in FOLDERS {
        fs::create_dir_all(folder.join(name))?;
    }
    put(folder, program, Path::new(PROGRAM))?;
    // Symbols are for those who build it.
    let _larger = Command::new("strip")
        .arg(inside(folder, Path::new(PROGRAM)))
        .status();
    symlink(
        "weave-ctl",
        inside(folder, Path::new(PROGRAM)).with_file_name("weave"),
    )?;
    for name in ARTIFACTS {
        put(
            folder,
            &artifacts.join(name),
            &Path::new("/usr/local/lib/weave").join(name),
        )?;
    }
    let nft = ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft"].map(PathBuf::from);
    let nft = nft.into_iter().find(|path| path.is_file());
    if let Some(nft) = &nft {
        put(folder, nft, Path::new("/usr/sbin/nft"))?;
    }
    for program in [Some(program), nft.as_deref()].into_iter().flatten() {
        for library in libraries(program)? {
            put(folder, &library, &library)?;
        }
    }
    Ok(())
}

/// What the dynamic linker loads for a program, itself included; nothing for a static one.
fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let output = process::run(Command::new("ldd").arg(program), LIMIT)?;
    let found = output
        .stdout
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    if output.stdout.contains("not found") {
        bail!("a library is missing: {output}");
    }
    Ok(found.map(PathBuf::from).collect())
}

fn inside(folder: &Path, path: &Path) -> PathBuf {
    folder.join(path.strip_prefix("/").unwrap_or(path))
}

fn put(folder: &Path, from: &Path, to: &Path) -> Result<()> {
    let to = inside(folder, to);
    fs::create_dir_all(to.parent().unwrap_or(folder))?;
    fs::copy(from, &to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// Writes the folder as an image for `docker load`. `work` is a folder for what is needed on the way.
///
/// # Errors
/// If a program is missing or fails.
pub fn archive(rootfs: &Path, work: &Path, tag: &str, to: &Path) -> Result<()> {
    fs::create_dir_all(work)?;
    let layer = work.join("layer.tar");
    // The same files give the same image.
    let reproducible = [
        "--sort=name",
        "--mtime=@0",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
    ];
    let mut tar = Command::new("tar");
    tar.args(reproducible)
        .arg("-C")
        .arg(rootfs)
        .arg("-cf")
        .arg(&layer)
        .arg(".");
    process::run(&mut tar, LIMIT)?.ok()?;
    let sum = process::run(Command::new("sha256sum").arg(&layer), LIMIT)?.ok()?;
    let sum = sum
        .split_whitespace()
        .next()
        .context("sha256sum printed nothing")?;
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "Entrypoint": [PROGRAM],
            "Cmd": ["launch"],
            "Env": ["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "WEAVE_FOREGROUND=1"],
            "StopSignal": "SIGTERM",
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{sum}")]},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [tag], "Layers": ["layer.tar"]}]);
    fs::write(work.join("config.json"), config.to_string())?;
    fs::write(work.join("manifest.json"), manifest.to_string())?;
    let mut tar = Command::new("tar");
    tar.args(reproducible).arg("-C").arg(work).arg("-cf").arg(to);
    process::run(tar.args(["manifest.json", "config.json", "layer.tar"]), LIMIT)?.ok()?;
    Ok(())
}

/// `config.json` of the managed plugin (control.md 4.10). It loads no kernel modules, so it asks for no right to.
#[must_use]
pub fn plugin_config() -> Value {
    let mount = |name: &str, source: &str, destination: &str| {
        json!({"name": name, "description": format!("the host's {source}"), "source": source,
               "destination": destination, "type": "bind", "options": ["rbind", "rw"], "settable": ["source"]})
    };
    let variable = |(name, description): &(&str, &str)| json!({"name": name, "description": description, "settable": ["value"], "value": ""});
    let variables = [
        ("LOG_LEVEL", "debug, info, warning or error"),
        ("EXTRA_ARGS", "more options of weave launch"),
        ("WEAVE_PASSWORD", "encrypts what hosts send each other"),
        ("WEAVE_MTU", "in containers; as the network allows if empty"),
        ("WEAVE_MULTICAST", "1: multicast is routed in all networks"),
        ("IPALLOC_RANGE", "addresses that weave keeps free of"),
        ("WEAVE_HTTP_ADDR", "of the control interface"),
        ("WEAVE_STATUS_ADDR", "of the read-only interface"),
        ("WEAVE_NO_FASTDP", "1: everything goes through userspace"),
    ];
    json!({
        "description": "Weave networks for Docker in swarm mode",
        "documentation": "docs/docker.md",
        "interface": {"socket": "weave.sock", "types": ["docker.networkdriver/1.0"]},
        "entrypoint": [PROGRAM, "plugin-v2-launch"],
        "workdir": "/",
        "network": {"type": "host"},
        "linux": {"capabilities": ["CAP_SYS_ADMIN", "CAP_NET_ADMIN"]},
        "mounts": [
            mount("proc", "/proc", "/host/proc"),
            mount("docker", "/var/run/docker.sock", "/var/run/docker.sock"),
            mount("lib", "/var/lib", "/host/var/lib"),
            mount("etc", "/etc", "/host/etc"),
            mount("bpf", "/sys/fs/bpf", "/sys/fs/bpf"),
        ],
        "env": variables.iter().map(variable).collect::<Vec<_>>(),
    })
}

/// Lays out what `docker plugin create` takes.
///
/// # Errors
/// As [`rootfs`].
pub fn plugin(folder: &Path, program: &Path, artifacts: &Path) -> Result<()> {
    rootfs(&folder.join("rootfs"), program, artifacts)?;
    fs::write(
        folder.join("config.json"),
        serde_json::to_string_pretty(&plugin_config())?,
    )?;
    Ok(())
}
