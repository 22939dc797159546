//! A real Docker engine on a host of the lab.
//!
//! The engine runs in namespaces of its own for processes and mounts, inside the network namespace
//! of a lab host: with the first process everything of it is gone, the containers included.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::case::Unsupported;
use crate::lab::{Host, netns};
use crate::process::{self, Background, LIMIT, Output, wait_for};

/// Where the lab may not have a capability that Docker gives to all privileged helpers, the runtime
/// is not asked for it.
const RUNTIME: &str = r#"#!/bin/sh
for arg; do
    case $last in --bundle | -b) file=$arg/config.json ;; --process | -p) file=$arg ;; esac
    last=$arg
done
[ -z "$file" ] || sed -i 's/"CAP_SYS_RESOURCE",//g; s/,"CAP_SYS_RESOURCE"//g' "$file"
exec runc "$@"
"#;

/// First process of the engine's namespaces. Shims keep their sockets in /run/containerd.
const INIT: &str = r#"
mkdir -p /run/containerd
mount --make-rprivate / && mount -t tmpfs tmpfs /run/containerd || exit 1
exec dockerd --host "unix://$1/docker.sock" --data-root "$1/data" --exec-root "$1/exec" \
    --pidfile "$1/pid" --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/$2" --bridge "$3" \
    --iptables=false --ip6tables=false --ip-masq=false --add-runtime "lab=$1/runtime" --default-runtime lab
"#;

/// A Docker engine on a host of the lab.
#[derive(Debug)]
pub struct Engine<'a> {
    host: &'a Host,
    process: Background,
}

impl<'a> Engine<'a> {
    /// Starts one without a bridge of its own, and with the image `box`.
    ///
    /// # Errors
    /// [`Unsupported`] without its programs; else what went wrong.
    pub fn start(host: &'a Host) -> Result<Self> {
        Self::start_on(host, "none")
    }

    /// The same with a bridge, which exists already.
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub fn start_on(host: &'a Host, bridge: &str) -> Result<Self> {
        for program in ["dockerd", "containerd", "runc", "docker", "busybox"] {
            need(program)?;
        }
        let folder = folder(host)?;
        let runtime = folder.join("runtime");
        fs::write(&runtime, RUNTIME)?;
        fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755))?;
        let folder = folder.display().to_string();
        #[rustfmt::skip]
        let process = host.spawn(&["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
                                   "sh", "-c", INIT, "sh", &folder, host.netns(), bridge])?;
        let engine = Self { host, process };
        let up = wait_for("the Docker engine", LIMIT, || {
            engine.docker(&["version"])?.ok().map(Some)
        });
        up.with_context(|| engine.process.printed().unwrap_or_default())?;
        engine.import()?;
        Ok(engine)
    }

    /// The image `box`: busybox and the few names that are needed.
    fn import(&self) -> Result<()> {
        let script = r#"cd "$1" && mkdir -p image/bin && cp "$(command -v busybox)" image/bin/busybox &&
            for name in sh sleep ping ip; do ln -s busybox image/bin/$name; done &&
            tar -C image -cf image.tar . && docker import image.tar box"#;
        let folder = folder(self.host)?.display().to_string();
        self.host
            .exec(&["sh", "-c", script, "sh", &folder])?
            .ok()
            .map(drop)
    }

    /// `docker ARGS…`.
    ///
    /// # Errors
    /// As [`Host::exec`].
    pub fn docker(&self, args: &[&str]) -> Result<Output> {
        let mut all = vec!["docker"];
        all.extend(args);
        self.host.exec(&all)
    }

    /// `docker run --detach --network NETWORK --name NAME`; the full ID.
    ///
    /// # Errors
    /// If it does not start.
    pub fn run(&self, name: &str, network: &str) -> Result<String> {
        self.run_with("box", &["--network", network, "--name", name])
    }

    /// `docker run --detach OPTIONS… IMAGE`; the full ID.
    ///
    /// # Errors
    /// If it does not start.
    pub fn run_with(&self, image: &str, options: &[&str]) -> Result<String> {
        let mut args = vec!["run", "--detach"];
        args.extend(options);
        args.extend([image, "sleep", "100000"]);
        let id = self.docker(&args)?.ok()?;
        Ok(id.trim().to_owned())
    }

    /// `weave-ctl ARGS…` where process IDs are those that the engine tells.
    ///
    /// # Errors
    /// As [`Host::exec`].
    pub fn weave(&self, args: &[&str]) -> Result<Output> {
        let pid = self.process.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let init = children.trim();
        let mut command = self.host.command("nsenter")?;
        command.args(["--target", init, "--mount", "--pid", "--"]);
        process::run(command.arg(self.host.binary()).args(args), LIMIT)
    }

    /// Attaches a container; its address.
    ///
    /// # Errors
    /// If that fails.
    pub fn attach(&self, name: &str) -> Result<Ipv4Addr> {
        let printed = self.weave(&["attach", name])?.ok()?;
        printed
            .trim()
            .parse()
            .with_context(|| format!("attach printed {printed:?}"))
    }

    /// Owners and addresses, as the daemon tells them.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn owned(&self) -> Result<String> {
        netns::inside(self.host.netns(), || {
            let mut stream = TcpStream::connect("127.0.0.1:6784")?;
            stream.write_all(b"GET /ip HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
            ensure!(head.contains(" 200 "), "{answer}");
            Ok(body.to_owned())
        })
    }
}

/// Fails with [`Unsupported`] unless the program is installed.
///
/// # Errors
/// As said.
pub fn need(program: &str) -> Result<()> {
    let found = process::run(
        Command::new("sh").args(["-c", &format!("command -v {program}")]),
        LIMIT,
    )?;
    if found.success() {
        Ok(())
    } else {
        Err(Unsupported::new(format!("needs {program}")).into())
    }
}

/// Where the host keeps what belongs to its engine.
///
/// # Errors
/// If there is no such folder.
pub fn folder(host: &Host) -> Result<PathBuf> {
    let folder = host.run_dir().with_file_name("docker");
    ensure!(folder.is_dir(), "the lab has no folder for Docker");
    Ok(folder)
}
