//! One host of a lab.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{Container, Options, address, netns, sweep};
use crate::process::{self, Background, LIMIT, Output};

/// A host: a network namespace with its own run, data and BPF folders.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Host {
    number: u8,
    netns: String,
    state: PathBuf,
    pins: PathBuf,
    binary: PathBuf,
    segments: Vec<u8>,
    #[serde(default)]
    options: Options,
}

impl Host {
    pub(super) fn create(prefix: &str, number: u8, binary: &Path, options: Options) -> Result<Self> {
        let netns = format!("{prefix}h{number}");
        let state = sweep::state_root().join(&netns);
        let pins = Path::new(sweep::BPF_ROOT).join(&netns);
        netns::create(&netns)?;
        for folder in ["run", "data", "docker/plugins"] {
            fs::create_dir_all(state.join(folder))?;
        }
        Ok(Self {
            number,
            netns,
            state,
            pins,
            binary: binary.to_owned(),
            segments: Vec::new(),
            options,
        })
    }

    /// A veth pair: `ethK` here, `pN-S` on the bridge of the segment.
    pub(super) fn plug_in(&mut self, underlay: &str, segment: u8, mtu: u32) -> Result<()> {
        let device = format!("eth{}", self.segments.len());
        self.segments.push(segment);
        let port = format!("p{}-{segment}", self.number);
        let (bridge, mtu) = (format!("s{segment}"), mtu.to_string());
        let cidr = format!("{}/24", address(segment, self.number));
        let here = self.netns.as_str();
        #[rustfmt::skip]
        netns::ip(&["-n", underlay, "link", "add", &port, "mtu", &mtu, "type", "veth",
                    "peer", "name", &device, "mtu", &mtu, "netns", here])?;
        netns::ip(&["-n", underlay, "link", "set", &port, "master", &bridge, "up"])?;
        netns::ip(&["-n", here, "address", "add", &cidr, "dev", &device])?;
        netns::ip(&["-n", here, "link", "set", &device, "up"])?;
        Ok(())
    }

    /// `h1`, `h2`, …
    pub fn name(&self) -> String {
        format!("h{}", self.number)
    }

    /// The peer name that [`Host::launch`] gives: the hosts share one machine ID, from which all
    /// would else derive the same.
    pub fn peer_name(&self) -> String {
        format!("7a:00:00:00:00:{:02x}", self.number)
    }

    /// Name of the network namespace.
    pub fn netns(&self) -> &str {
        &self.netns
    }

    /// Address on the first segment that this host is plugged into.
    pub fn address(&self) -> Ipv4Addr {
        address(self.segments.first().copied().unwrap_or(0), self.number)
    }

    /// Address of this host on a segment that `other` is plugged into too.
    ///
    /// # Errors
    /// If they share none.
    pub fn address_towards(&self, other: &Self) -> Result<Ipv4Addr> {
        let shared = self
            .segments
            .iter()
            .find(|segment| other.segments.contains(segment));
        let segment = shared.with_context(|| format!("{} cannot reach {}", other.name(), self.name()))?;
        Ok(address(*segment, self.number))
    }

    /// The underlay devices: `eth0`, `eth1`, …
    pub(crate) fn devices(&self) -> impl Iterator<Item = String> {
        (0..self.segments.len()).map(|index| format!("eth{index}"))
    }

    /// This host's ports on the underlay's bridges.
    pub(crate) fn ports(&self) -> impl Iterator<Item = String> {
        self.segments
            .iter()
            .map(|segment| format!("p{}-{segment}", self.number))
    }

    /// `WEAVE_RUN_DIR` of this host.
    pub fn run_dir(&self) -> PathBuf {
        self.state.join("run")
    }

    /// `WEAVE_DATA_DIR` of this host.
    pub fn data_dir(&self) -> PathBuf {
        self.state.join("data")
    }

    /// `WEAVE_BPF_DIR` of this host.
    pub fn bpf_dir(&self) -> &Path {
        &self.pins
    }

    /// The `weave-ctl` of this host.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Where `cargo xtask build-ebpf` has put what comes with that program.
    ///
    /// # Errors
    /// If the program is not in a target folder.
    pub fn artifacts(&self) -> Result<PathBuf> {
        let target = self.binary.ancestors().nth(2).context("no target folder")?;
        Ok(target.join("bpf"))
    }

    /// A command that will run on this host, with `weave-ctl` in the path and its own folders in
    /// the environment.
    ///
    /// # Errors
    /// If the namespace is gone.
    pub fn command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new(self.resolve(program));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("WEAVE_") {
                command.env_remove(name);
            }
        }
        let mut path = self
            .binary
            .parent()
            .unwrap_or(Path::new("/"))
            .as_os_str()
            .to_owned();
        path.push(":/usr/sbin:/sbin:");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        command
            .env("PATH", path)
            .env("WEAVE_RUN_DIR", self.run_dir())
            .env("WEAVE_DATA_DIR", self.data_dir())
            .env("WEAVE_BPF_DIR", &self.pins)
            .env("WEAVE_PLUGIN_DIR", self.state.join("docker/plugins"))
            // The machine's own Docker is not this host's.
            .env(
                "DOCKER_HOST",
                format!("unix://{}", self.state.join("docker/docker.sock").display()),
            );
        netns::enter(&mut command, &self.netns)?;
        Ok(command)
    }

    fn resolve(&self, program: &str) -> PathBuf {
        // `Command` looks in our path, not in the one that the child gets.
        if program == "weave-ctl" || program == "weave" {
            self.binary.clone()
        } else {
            program.into()
        }
    }

    /// Runs a program on this host to its end.
    ///
    /// # Errors
    /// If it cannot be started or hangs; a failing program is no error here.
    pub fn exec(&self, args: &[&str]) -> Result<Output> {
        let (program, args) = args.split_first().context("no command given")?;
        process::run(self.command(program)?.args(args), LIMIT)
    }

    /// Starts a program on this host in the background.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(&self, args: &[&str]) -> Result<Background> {
        let (program, args) = args.split_first().context("no command given")?;
        Background::start(self.command(program)?.args(args))
    }

    /// Runs `weave-ctl ARGS…` on this host.
    ///
    /// # Errors
    /// As [`Host::exec`].
    pub fn weave(&self, args: &[&str]) -> Result<Output> {
        let mut all = vec!["weave-ctl"];
        all.extend(args);
        self.exec(&all)
    }

    /// `weave-ctl launch` with this host's own peer name and nickname, its [`Options`], then `args`.
    ///
    /// # Errors
    /// If it does not succeed.
    pub fn launch(&self, args: &[&str]) -> Result<()> {
        self.launch_with(self.command("weave-ctl")?, args)
    }

    /// The same with another way to run `weave-ctl`.
    pub(crate) fn launch_with(&self, mut command: Command, args: &[&str]) -> Result<()> {
        let (peer, nick) = (self.peer_name(), self.name());
        command.args(["launch", "--name", &peer, "--nickname", &nick]);
        self.options.apply(&mut command);
        process::run(command.args(args), LIMIT)?.ok().map(drop)
    }

    /// The line of `status connections` about another host, its columns separated by one space;
    /// `None` while there is none.
    ///
    /// # Errors
    /// If the daemon does not answer.
    pub fn connection_to(&self, other: &Self) -> Result<Option<String>> {
        let page = self.weave(&["status", "connections"])?.ok()?;
        let nick = format!("({})", other.name());
        let line = page.lines().find(|line| line.contains(&nick));
        Ok(line.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")))
    }

    /// Waits until the line of `status connections` about another host has all these parts; the line.
    ///
    /// # Errors
    /// If that does not come about.
    pub fn wait_connection_to(&self, other: &Self, parts: &[&str]) -> Result<String> {
        let what = format!(
            "{parts:?} in the connection from {} to {}",
            self.name(),
            other.name()
        );
        process::wait_for(&what, LIMIT, || {
            let line = self
                .connection_to(other)?
                .with_context(|| format!("no connection to {}", other.name()))?;
            ensure!(parts.iter().all(|part| line.contains(part)), "{line}");
            Ok(Some(line))
        })
    }

    /// All that the daemon has logged on this host.
    pub fn log(&self) -> String {
        let logs = self.log_files().into_iter();
        logs.map(|path| fs::read_to_string(path).unwrap_or_default())
            .collect()
    }

    fn log_files(&self) -> Vec<PathBuf> {
        let folders = [self.run_dir(), self.data_dir()];
        let entries = folders
            .iter()
            .flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten());
        entries
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|ext| ext == "log"))
            .collect()
    }

    /// Process IDs of the `weave-ctl` daemon (and of commands that are running).
    pub fn daemon_pids(&self) -> Vec<i32> {
        let is_weave =
            |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c == "weave-ctl\n");
        netns::pids(&self.netns).into_iter().filter(is_weave).collect()
    }

    /// Kills the daemon with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    /// If there was none, or it stays.
    pub fn kill_daemon(&self) -> Result<()> {
        let pids = self.daemon_pids();
        ensure!(!pids.is_empty(), "no daemon runs on {}", self.name());
        pids.iter().for_each(|pid| process::signal(*pid, libc::SIGKILL));
        process::wait_for("the killed daemon to be gone", Duration::from_secs(20), || {
            Ok(self.daemon_pids().is_empty().then_some(()))
        })
    }

    /// Makes a container (a network namespace with nothing in it) on this host.
    ///
    /// # Errors
    /// If the name is taken.
    pub fn container(&self, name: &str) -> Result<Container> {
        let container = self.container_named(name);
        netns::create(container.netns())?;
        Ok(container)
    }

    /// A container that was made before.
    pub fn container_named(&self, name: &str) -> Container {
        Container::new(format!("{}-{name}", self.netns))
    }

    /// `weave-ctl attach ADDRESSES… netns:CONTAINER`; the addresses that it printed.
    ///
    /// # Errors
    /// If it fails or prints something else.
    pub fn attach(&self, container: &Container, addresses: &[&str]) -> Result<Vec<Ipv4Addr>> {
        let id = container.id();
        let mut args = vec!["attach"];
        args.extend(addresses);
        args.push(&id);
        parse_addresses(&self.weave(&args)?.ok()?)
    }

    /// `weave-ctl detach ADDRESSES… netns:CONTAINER`; the addresses that it printed.
    ///
    /// # Errors
    /// If it fails or prints something else.
    pub fn detach(&self, container: &Container, addresses: &[&str]) -> Result<Vec<Ipv4Addr>> {
        let id = container.id();
        let mut args = vec!["detach"];
        args.extend(addresses);
        args.push(&id);
        parse_addresses(&self.weave(&args)?.ok()?)
    }

    /// Makes a container and attaches it with an address from the default subnet.
    ///
    /// # Errors
    /// If one of both fails.
    pub fn attached(&self, name: &str) -> Result<(Container, Ipv4Addr)> {
        let container = self.container(name)?;
        let addresses = self.attach(&container, &[])?;
        ensure!(addresses.len() == 1, "attach printed {addresses:?}");
        let address = addresses.first().copied().context("attach printed no address")?;
        Ok((container, address))
    }

    /// Waits until `status connections` shows this many connections in this state and overlay,
    /// such as `established fastdp`.
    ///
    /// # Errors
    /// If that does not come about.
    pub fn wait_connections(&self, count: usize, state: &str) -> Result<()> {
        let what = format!("{count} connections {state} on {}", self.name());
        process::wait_for(&what, Duration::from_secs(60), || {
            let page = self.weave(&["status", "connections"])?.ok()?;
            let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
            let found = page.lines().filter(|line| words(line).contains(state)).count();
            ensure!(found == count, "{}", page.trim_end());
            Ok(Some(()))
        })
    }

    /// Status and the end of the log, for the message of a failed test.
    pub(super) fn diagnose(&self) -> String {
        let mut text = format!("---- {} ----\n", self.name());
        for args in [["status", "connections"], ["status", "peers"], ["status", "ipam"]] {
            let _infallible = match self.weave(&args) {
                Ok(output) => writeln!(text, "{output}"),
                Err(error) => writeln!(text, "{error:#}"),
            };
        }
        for path in self.log_files() {
            let log = fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines.get(lines.len().saturating_sub(30)..).unwrap_or_default();
            let _infallible = writeln!(text, "{}:\n{}", path.display(), tail.join("\n"));
        }
        text
    }
}

fn parse_addresses(line: &str) -> Result<Vec<Ipv4Addr>> {
    let parse = |word: &str| {
        word.parse()
            .with_context(|| format!("not a list of addresses: {line:?}"))
    };
    line.split_whitespace().map(parse).collect()
}
