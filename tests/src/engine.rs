//! Real Docker engines on hosts of the lab, one on each.
//!
//! An engine runs in namespaces of its own for processes, mounts and the host's name, inside the network
//! namespace of a lab host: with the first process everything of it is gone, the containers included. A daemon
//! that shall find the containers' processes is launched in there too: [`Engine::launch`].

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::case::Unsupported;
use crate::certificates::Certificates;
use crate::lab::{Host, netns};
use crate::process::{self, Background, LIMIT, Output, wait_for};

/// Docker's bridge.
pub const BRIDGE: &str = "docker0";
/// Its address.
pub const GATEWAY: &str = "172.17.0.1";
/// For an engine without one.
const NO_BRIDGE: &str = "none";
/// Where the lab may not have a capability that Docker gives to all privileged helpers, the runtime
/// is not asked for it.
pub(crate) const RUNTIME: &str = r#"#!/bin/sh
for arg; do
    case $last in --bundle | -b) file=$arg/config.json ;; --process | -p) file=$arg ;; esac
    last=$arg
done
[ -z "$file" ] || sed -i 's/"CAP_SYS_RESOURCE",//g; s/,"CAP_SYS_RESOURCE"//g' "$file"
exec runc "$@"
"#;

/// First process of the engine's namespaces; it only takes in what loses its parent. Shims keep their sockets
/// in /run/containerd, Docker looks for plugins in /run/docker/plugins, and what a managed plugin mounts of the
/// host must be that host's.
const INIT: &str = r#"
mkdir -p /run/containerd /run/docker "$1/plugins" "$1/lib"
mount --make-rprivate / && mount -t tmpfs tmpfs /run/containerd && mount -t tmpfs tmpfs /run/docker &&
    mkdir /run/docker/plugins && mount --bind "$1/plugins" /run/docker/plugins && mount --bind "$1/lib" /var/lib &&
    mount -t bpf bpf /sys/fs/bpf && hostname "$2" || exit 1
sleep infinity & : > "$1/ready"
while :; do wait; done
"#;

/// Makes the image `box`: busybox and the few names that are needed. `$1`: a folder for that.
pub(crate) const IMPORT: &str = r#"
cd "$1" && mkdir -p image/bin && cp "$(command -v busybox)" image/bin/busybox &&
for name in sh sleep ping ip true; do ln -s busybox image/bin/$name; done &&
tar -C image -cf image.tar . && docker import image.tar box"#;

const DOCKERD: &str = r#"
folder=$1 group=$2 bridge=$3
shift 3
exec dockerd --host "unix://$folder/docker.sock" --data-root "$folder/data" --exec-root "$folder/exec" \
    --pidfile "$folder/pid" --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/$group" --bridge "$bridge" \
    --iptables=false --ip6tables=false --ip-masq=false --add-runtime "lab=$folder/runtime" --default-runtime lab "$@"
"#;

/// A Docker engine on a host of the lab.
#[derive(Debug)]
pub struct Engine<'a> {
    host: &'a Host,
    bridge: String,
    /// Holds the namespaces.
    init: Background,
    dockerd: Option<Background>,
    /// How weave is told to reach Docker, if not at its socket.
    reach: Vec<(&'static str, String)>,
}

impl<'a> Engine<'a> {
    /// Starts one without a bridge of its own, and with the image `box`.
    ///
    /// # Errors
    /// [`Unsupported`] without its programs; else what went wrong.
    pub fn start(host: &'a Host) -> Result<Self> {
        Self::start_on(host, NO_BRIDGE)
    }

    /// The same with Docker's own bridge, [`BRIDGE`], at the address [`GATEWAY`].
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub fn start_with_bridge(host: &'a Host) -> Result<Self> {
        Self::make_bridge(host)?;
        Self::start_on(host, BRIDGE)
    }

    /// Docker's bridge, for an engine that is prepared with it.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub fn make_bridge(host: &Host) -> Result<()> {
        for words in [
            // With an address of its own, as Docker gives it one: else it changes with the ports, and packets of
            // containers get lost until they have learnt that.
            &format!("link add {BRIDGE} address 02:42:ac:11:00:01 type bridge"),
            &format!("address add {GATEWAY}/16 dev {BRIDGE}"),
            &format!("link set {BRIDGE} up"),
        ] {
            let all: Vec<&str> = ["-n", host.netns()].into_iter().chain(words.split(' ')).collect();
            netns::ip(&all)?;
        }
        Ok(())
    }

    /// The same without a bridge, where Docker is reached over TCP at `address`, with certificates of `tls`.
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub fn start_with_tls(host: &'a Host, address: &str, tls: &Certificates) -> Result<Self> {
        let options = tls.server_options();
        let mut more = vec!["--tlsverify"];
        more.extend(options.iter().map(String::as_str));
        let mut engine = Self::start_with_tcp_and(host, address, &more)?;
        engine.reach.extend([
            ("DOCKER_TLS_VERIFY", "1".to_owned()),
            ("DOCKER_CERT_PATH", tls.client_folder().display().to_string()),
        ]);
        Ok(engine)
    }

    /// The same for everybody who can connect.
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub fn start_with_tcp(host: &'a Host, address: &str) -> Result<Self> {
        // Docker 20.10 waits before it listens so, unless it is told that this is meant.
        Self::start_with_tcp_and(host, address, &["--tls=false"])
    }

    fn start_with_tcp_and(host: &'a Host, address: &str, more: &[&str]) -> Result<Self> {
        let mut engine = Self::prepare(host, NO_BRIDGE)?;
        let tcp = format!("tcp://{address}");
        engine.start_dockerd_with(&[&["--host", &tcp], more].concat())?;
        engine.import()?;
        engine.reach = vec![("DOCKER_HOST", tcp)];
        Ok(engine)
    }

    fn start_on(host: &'a Host, bridge: &str) -> Result<Self> {
        let mut engine = Self::prepare(host, bridge)?;
        engine.start_dockerd()?;
        engine.import()?;
        Ok(engine)
    }

    /// The namespaces without `dockerd`, for tests of what comes before it.
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub fn prepare(host: &'a Host, bridge: &str) -> Result<Self> {
        for program in ["dockerd", "containerd", "runc", "docker", "busybox"] {
            need(program)?;
        }
        let folder = folder(host)?;
        let runtime = folder.join("runtime");
        fs::write(&runtime, RUNTIME)?;
        fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755))?;
        let text = folder.display().to_string();
        #[rustfmt::skip]
        let init = host.spawn(&["unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc",
                                "sh", "-c", INIT, "sh", &text, &host.name()])?;
        let ready = wait_for("the namespaces of the engine", LIMIT, || {
            Ok(folder.join("ready").exists().then_some(()))
        });
        ready.with_context(|| init.printed().unwrap_or_default())?;
        Ok(Self {
            host,
            bridge: bridge.to_owned(),
            init,
            dockerd: None,
            reach: Vec::new(),
        })
    }

    /// Starts `dockerd` and waits until it answers.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start_dockerd(&mut self) -> Result<()> {
        self.start_dockerd_with(&[])
    }

    fn start_dockerd_with(&mut self, more: &[&str]) -> Result<()> {
        let folder = folder(self.host)?.display().to_string();
        let mut command = self.command("sh")?;
        command.args(["-c", DOCKERD, "sh", &folder, self.host.netns(), &self.bridge]);
        command.args(more);
        let dockerd = Background::start(&mut command)?;
        let up = wait_for("the Docker engine", LIMIT, || {
            self.docker(&["version"])?.ok().map(Some)
        });
        up.with_context(|| dockerd.printed().unwrap_or_default())?;
        self.dockerd = Some(dockerd);
        Ok(())
    }

    /// Ends `dockerd` with SIGTERM, as `systemctl stop docker` does; its containers end with it.
    ///
    /// # Errors
    /// If it does not end.
    pub fn stop_dockerd(&mut self) -> Result<()> {
        let dockerd = self.dockerd.take().context("dockerd does not run")?;
        let pid = fs::read_to_string(folder(self.host)?.join("pid"))?;
        process::run(self.command("kill")?.args(["-TERM", pid.trim()]), LIMIT)?.ok()?;
        dockerd.finish(LIMIT).map(drop)
    }

    /// What `dockerd` has logged.
    ///
    /// # Errors
    /// If it does not run.
    pub fn log(&self) -> Result<String> {
        self.dockerd.as_ref().context("dockerd does not run")?.printed()
    }

    /// A command on this host where mounts and process IDs are those of the engine.
    ///
    /// # Errors
    /// If the engine is gone.
    pub fn command(&self, program: &str) -> Result<Command> {
        let pid = self.init.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let init = children.trim();
        ensure!(!init.is_empty(), "the engine is gone: {}", self.init.printed()?);
        let mut command = self.host.command("nsenter")?;
        command.args(["--target", init, "--mount", "--uts", "--pid", "--", program]);
        Ok(command)
    }

    /// [`Host::launch`] where process IDs are those that the engine tells, and its plugin folder is in its place.
    ///
    /// # Errors
    /// As [`Host::launch`].
    pub fn launch(&self, args: &[&str]) -> Result<()> {
        self.host.launch_with(self.weave_command()?, args)
    }

    fn weave_command(&self) -> Result<Command> {
        let mut command = self.command(&self.host.binary().display().to_string())?;
        command.envs(self.reach.iter().map(|(name, value)| (name, value)));
        Ok(command)
    }

    /// The host that it is on.
    pub fn host(&self) -> &'a Host {
        self.host
    }

    fn import(&self) -> Result<()> {
        let folder = folder(self.host)?.display().to_string();
        self.host
            .exec(&["sh", "-c", IMPORT, "sh", &folder])?
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
        process::run(self.weave_command()?.args(args), LIMIT)
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
