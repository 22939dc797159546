//! Containers of a real Docker engine: attach, traffic, `ps`, and what their end means.
//!
//! The engine runs in namespaces of its own for processes and mounts, inside the network namespace
//! of a lab host: with the first process everything of it is gone, the containers included.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weave_tests::case::Unsupported;
use weave_tests::lab::{Host, Lab, Plan, netns};
use weave_tests::process::{self, Background, LIMIT, Output, wait_for};

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
    --pidfile "$1/pid" --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/$2" --bridge none \
    --iptables=false --ip6tables=false --ip-masq=false --add-runtime "lab=$1/runtime" --default-runtime lab
"#;

/// A Docker engine on a host of the lab.
struct Engine<'a> {
    host: &'a Host,
    process: Background,
}

impl<'a> Engine<'a> {
    fn start(host: &'a Host) -> Result<Self> {
        for program in ["dockerd", "containerd", "runc", "docker", "busybox"] {
            let found = process::run(
                Command::new("sh").args(["-c", &format!("command -v {program}")]),
                LIMIT,
            )?;
            if !found.success() {
                return Err(Unsupported::new(format!("needs {program}")).into());
            }
        }
        let folder = folder(host)?;
        let runtime = folder.join("runtime");
        fs::write(&runtime, RUNTIME)?;
        fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755))?;
        let folder = folder.display().to_string();
        #[rustfmt::skip]
        let process = host.spawn(&["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
                                   "sh", "-c", INIT, "sh", &folder, host.netns()])?;
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
    fn docker(&self, args: &[&str]) -> Result<Output> {
        let mut all = vec!["docker"];
        all.extend(args);
        self.host.exec(&all)
    }

    /// `docker run --detach --network NETWORK --name NAME`; the full ID.
    fn run(&self, name: &str, network: &str) -> Result<String> {
        #[rustfmt::skip]
        let id = self.docker(&["run", "--detach", "--network", network, "--name", name,
                               "box", "sleep", "100000"])?.ok()?;
        Ok(id.trim().to_owned())
    }

    /// `weave-ctl ARGS…` where process IDs are those that the engine tells.
    fn weave(&self, args: &[&str]) -> Result<Output> {
        let pid = self.process.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let init = children.trim();
        let mut command = self.host.command("nsenter")?;
        command.args(["--target", init, "--mount", "--pid", "--"]);
        process::run(command.arg(self.host.binary()).args(args), LIMIT)
    }

    fn attach(&self, name: &str) -> Result<Ipv4Addr> {
        let printed = self.weave(&["attach", name])?.ok()?;
        printed
            .trim()
            .parse()
            .with_context(|| format!("attach printed {printed:?}"))
    }

    /// Owners and addresses, as the daemon tells them.
    fn owned(&self) -> Result<String> {
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

fn folder(host: &Host) -> Result<PathBuf> {
    let folder = host.run_dir().with_file_name("docker");
    ensure!(folder.is_dir(), "the lab has no folder for Docker");
    Ok(folder)
}

#[test]
fn containers_of_docker() {
    Plan::mesh(2).test("docker", |lab: &Lab| {
        let engine = Engine::start(lab.host(1)?)?;
        lab.launch_all(&[])?;
        let (other, other_address) = lab.host(2)?.attached("other")?;

        let id = engine.run("web", "none")?;
        let address = engine.attach("web")?;
        ensure!(engine.attach(&id)? == address, "another address by ID");
        other.wait_ping(address)?;
        let target = other_address.to_string();
        engine
            .docker(&["exec", "web", "ping", "-c", "1", &target])?
            .ok()?;

        // Listed by the beginning of the ID, or as asked for.
        let short = id.get(..12).context("a short ID")?;
        let all = engine.weave(&["ps"])?.ok()?;
        ensure!(
            all.lines()
                .any(|line| line.starts_with(&format!("{short} "))
                    && line.ends_with(&format!(" {address}/12"))),
            "ps printed {all:?}"
        );
        let one = engine.weave(&["ps", "web"])?.ok()?;
        ensure!(
            one.starts_with("web ") && one.lines().count() == 1,
            "ps web printed {one:?}"
        );

        let detached = engine.weave(&["detach", "web"])?.ok()?;
        ensure!(
            detached.trim() == address.to_string(),
            "detach printed {detached:?}"
        );
        other.no_ping(address)
    });
}

#[test]
fn docker_containers_that_cannot_be_attached() {
    Plan::mesh(1).test("nodocker", |lab: &Lab| {
        let host = lab.host(1)?;
        host.launch(&[])?;
        let message = host.weave(&["attach", "web"])?.fails_with(1)?;
        ensure!(message.starts_with("cannot reach Docker at unix://"), "{message}");

        let engine = Engine::start(host)?;
        engine.run("hosty", "host")?;
        engine
            .docker(&["create", "--network", "none", "--name", "stopped", "box", "sh"])?
            .ok()?;
        for (name, text) in [
            (
                "nope",
                "unable to inspect container nope: No such container: nope\n",
            ),
            ("stopped", "container stopped not running\n"),
            (
                "hosty",
                "Container is running in the host network namespace, and therefore cannot be\n\
                 connected to weave - perhaps the container was started with --net=host\n",
            ),
        ] {
            let message = engine.weave(&["attach", name])?.fails_with(1)?;
            ensure!(message == text, "attach {name}: {message}");
            ensure!(
                engine.weave(&["ps", name])?.ok()? == "\n",
                "ps {name} printed something"
            );
        }
        let owned = engine.owned()?;
        ensure!(
            !owned.contains("/12"),
            "a refused container has an address: {owned}"
        );
        Ok(())
    });
}

#[test]
fn a_removed_container_gives_its_address_back() {
    Plan::mesh(1).test("removed", |lab: &Lab| {
        let host = lab.host(1)?;
        // The daemon is there first: it must find Docker when that comes.
        host.launch(&[])?;
        let engine = Engine::start(host)?;
        let id = engine.run("web", "none")?;
        let address = engine.attach("web")?;
        ensure!(engine.owned()?.contains(&id), "no record of {id}");

        // A restarted container finds its address again.
        engine.docker(&["kill", "web"])?.ok()?;
        engine.docker(&["start", "web"])?.ok()?;
        ensure!(
            engine.attach("web")? == address,
            "another address after a restart"
        );

        engine.docker(&["rm", "--force", "web"])?.ok()?;
        wait_for("the address to be released", Duration::from_secs(20), || {
            let owned = engine.owned()?;
            Ok((!owned.contains(&id)).then_some(()))
        })?;
        engine.run("next", "none")?;
        ensure!(
            engine.attach("next")? == address,
            "the address is not given out again"
        );
        Ok(())
    });
}
