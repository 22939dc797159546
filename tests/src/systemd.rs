//! The machine's systemd as the first process of a host of the lab, with weave installed as `cargo xtask install` does
//! it, and with a Docker engine as one of its services.
//!
//! It sees the machine's files, and what it changes is in memory: with the first process everything is gone. Of the
//! kernel it may change what belongs to its namespaces only.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::case::Unsupported;
use crate::engine::{IMPORT, RUNTIME, need};
use crate::lab::Host;
use crate::process::{self, Background, LIMIT, Output, wait_for};

const PROGRAM: &str = "/lib/systemd/systemd";
/// Where things are for all who look from inside.
const BINARY: &str = "/usr/local/bin/weave-ctl";

/// Control groups of its own, in each hierarchy, named as the sweep of the lab expects. `$1`: the host's folder; `$2`:
/// its name; the rest is for [`BOOT`].
const GROUPS: &str = r#"
for hierarchy in /sys/fs/cgroup/*/ /sys/fs/cgroup/; do
    [ -e "$hierarchy/cgroup.procs" ] || continue
    mkdir -p "$hierarchy/$2" || exit 1
    for file in cpuset.cpus cpuset.mems; do
        [ ! -e "$hierarchy/$2/$file" ] || cat "$hierarchy/$file" > "$hierarchy/$2/$file"
    done
    echo $$ > "$hierarchy/$2/cgroup.procs" || exit 1
done
exec unshare --mount --uts --ipc --pid --cgroup --fork --kill-child sh -c "$3" sh "$@"
"#;

/// The root. `$1`: the host's folder; `$4`: the program; `$5`: what comes with it; `$6`: units.
const BOOT: &str = r#"
set -e
mount --make-rprivate /
mkdir -p "$1/systemd" && cd "$1/systemd"
mount -t tmpfs tmpfs . && cd "$PWD"
mkdir up work root proc
mount -t overlay overlay -o lowerdir=/,upperdir=up,workdir=work root
mount -t proc proc proc
mount -t proc proc root/proc
mount --bind root/proc/sys root/proc/sys
mount -o remount,bind,ro root/proc/sys
mount --bind proc/sys/net root/proc/sys/net
mount -t sysfs -o ro sysfs root/sys
mount -t bpf bpf root/sys/fs/bpf
mount -t tmpfs tmpfs root/sys/fs/cgroup
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mount -t cgroup2 cgroup2 root/sys/fs/cgroup
else
    for hierarchy in $(cut -d: -f2 /proc/self/cgroup); do
        name=${hierarchy#name=}
        mkdir "root/sys/fs/cgroup/$name"
        [ "$name" = "$hierarchy" ] || hierarchy=none,$hierarchy
        mount -t cgroup -o "$hierarchy" cgroup "root/sys/fs/cgroup/$name"
    done
fi
for folder in run tmp var/lib; do mount -t tmpfs tmpfs "root/$folder"; done
mount -t tmpfs -o mode=755 tmpfs root/dev
mkdir root/dev/pts root/dev/shm root/dev/net
mount -t devpts -o newinstance,ptmxmode=666 devpts root/dev/pts
node() { mknod -m 666 "root/dev/$1" c "$2" "$3"; }
node null 1 3; node zero 1 5; node full 1 7; node random 1 8; node urandom 1 9; node tty 5 0; node net/tun 10 200
ln -s pts/ptmx root/dev/ptmx
ln -s /proc/self/fd root/dev/fd

install -D -m 755 "$4" root/usr/local/bin/weave-ctl
install -D -m 644 "$5/weave.bpf.o" root/usr/local/lib/weave/weave.bpf.o
install -D -m 755 "$5/weave-wait" root/usr/local/lib/weave/weave-wait
install -D -m 755 "$1/docker/runtime" root/usr/local/bin/lab-runtime
rm -rf root/etc/systemd/system root/etc/default/weave root/etc/fstab root/lib/systemd/system/docker.*
mkdir -p root/etc/systemd/system
cp "$6"/*.service "$6"/*.socket "$1"/units/* root/etc/systemd/system
echo "$2" > root/etc/hostname
cd root && mkdir -p outside && pivot_root . outside
exec chroot . sh -c 'umount -l /outside && rmdir /outside; exec env -i container=lab PATH="$PATH" "$@"' sh \
    /lib/systemd/systemd --unit=lab.target --log-target=null --show-status=0
"#;

/// What it boots into: nothing.
const TARGET: &str = "[Unit]\nDescription=A host of the lab\nDefaultDependencies=no\n";

/// Docker as a service, within what the lab has.
const DOCKER: &str = "[Unit]\nDescription=Docker\n[Service]\nType=notify\nDelegate=yes\nKillMode=process\n\
    ExecStart=/usr/sbin/dockerd --bridge none --iptables=false --ip6tables=false --ip-masq=false \
    --exec-opt native.cgroupdriver=cgroupfs --add-runtime lab=/usr/local/bin/lab-runtime --default-runtime lab\n";

/// A running systemd.
#[derive(Debug)]
pub struct Systemd<'a> {
    host: &'a Host,
    init: Background,
}

impl<'a> Systemd<'a> {
    /// Boots it; no service is started. `units`: those of weave.
    ///
    /// # Errors
    /// [`Unsupported`] without its programs; else what went wrong.
    pub fn boot(host: &'a Host, units: &Path) -> Result<Self> {
        if !Path::new(PROGRAM).exists() {
            return Err(Unsupported::new("needs systemd").into());
        }
        for program in ["dockerd", "containerd", "runc", "docker", "busybox"] {
            need(program)?;
        }
        let docker = crate::engine::folder(host)?;
        let folder = docker.parent().context("no folder")?;
        fs::write(docker.join("runtime"), RUNTIME)?;
        fs::create_dir_all(folder.join("units"))?;
        fs::write(folder.join("units/lab.target"), TARGET)?;
        fs::write(folder.join("units/docker.service"), DOCKER)?;
        let text = |path: &Path| path.display().to_string();
        let artifacts = host.artifacts()?;
        #[rustfmt::skip]
        let init = host.spawn(&["sh", "-c", GROUPS, "sh", &text(folder), host.netns(), BOOT,
                                &text(host.binary()), &text(&artifacts), &text(units)])?;
        let systemd = Self { host, init };
        let up = wait_for("systemd", LIMIT, || {
            let state = systemd.run(&["systemctl", "is-system-running"])?;
            Ok((state.stdout.trim() == "running").then_some(()))
        });
        up.with_context(|| systemd.init.printed().unwrap_or_default())?;
        Ok(systemd)
    }

    /// A command in all its namespaces, with an environment as after a login.
    ///
    /// # Errors
    /// If systemd is gone.
    pub fn command(&self, program: &str) -> Result<Command> {
        let pid = self.init.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let first = children.trim();
        ensure!(!first.is_empty(), "systemd is gone: {}", self.init.printed()?);
        let mut command = Command::new("nsenter");
        command.env_clear();
        command.env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        );
        command.args(["--target", first, "--all", "--", program]);
        Ok(command)
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// If it cannot be started or hangs; a failing program is no error here.
    pub fn run(&self, args: &[&str]) -> Result<Output> {
        let (program, args) = args.split_first().context("no command given")?;
        process::run(self.command(program)?.args(args), LIMIT)
    }

    /// `systemctl ARGS…`.
    ///
    /// # Errors
    /// If it fails; with what the service has logged.
    pub fn systemctl(&self, args: &[&str]) -> Result<String> {
        let done = self.run(&[&["systemctl"], args].concat())?.ok();
        done.with_context(|| self.log().unwrap_or_default())
    }

    /// `weave-ctl ARGS…`, as installed.
    ///
    /// # Errors
    /// As [`Systemd::run`].
    pub fn weave(&self, args: &[&str]) -> Result<Output> {
        self.run(&[&[BINARY], args].concat())
    }

    /// One property of a unit.
    ///
    /// # Errors
    /// As [`Systemd::systemctl`].
    pub fn property(&self, unit: &str, name: &str) -> Result<String> {
        let value = self.systemctl(&["show", "--value", "--property", name, unit])?;
        Ok(value.trim().to_owned())
    }

    /// Starts Docker, and gives it the image `box`.
    ///
    /// # Errors
    /// As [`Systemd::systemctl`].
    pub fn start_docker(&self) -> Result<()> {
        self.systemctl(&["start", "docker"])?;
        self.run(&["sh", "-c", IMPORT, "sh", "/tmp"])?.ok().map(drop)
    }

    /// What weave has logged.
    ///
    /// # Errors
    /// If there is none.
    pub fn log(&self) -> Result<String> {
        Ok(self
            .run(&["journalctl", "--no-pager", "--output=cat", "--unit=weave"])?
            .stdout)
    }

    /// The host that it is on.
    #[must_use]
    pub fn host(&self) -> &'a Host {
        self.host
    }
}
