//! A Docker engine with weave's proxy in front of it, and what users do there.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::engine::{Engine, GATEWAY, folder};
use crate::lab::Host;
use crate::process::{self, LIMIT, Output};

/// A container that stays.
pub const SLEEP: [&str; 3] = ["box", "sleep", "100000"];
/// A command that shows a container's address on the network.
pub const INTERFACE: [&str; 7] = ["ip", "-4", "-o", "address", "show", "dev", "ethwe"];

/// An engine, and the proxy in front of it.
#[derive(Debug)]
pub struct World<'a> {
    /// The engine itself: what goes around the proxy.
    pub engine: Engine<'a>,
}

impl<'a> World<'a> {
    /// Starts an engine with Docker's bridge; no proxy yet.
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub fn start(host: &'a Host) -> Result<Self> {
        Engine::start_with_bridge(host).map(|engine| Self { engine })
    }

    /// Launches the daemon with the proxy, and with WeaveDNS where containers can ask it.
    ///
    /// # Errors
    /// If it does not start.
    pub fn launch(&self, args: &[&str]) -> Result<()> {
        let listen = format!("--dns-listen-address={GATEWAY}:53");
        let all = [&[listen.as_str(), "--resolv-conf=/dev/null"], args].concat();
        self.engine.launch(&all)
    }

    /// Stops the daemon, and its socket is gone.
    ///
    /// # Errors
    /// If one of both fails.
    pub fn stop(&self) -> Result<()> {
        self.engine.weave(&["stop"])?.ok()?;
        ensure!(!self.socket().exists(), "the proxy's socket stays");
        Ok(())
    }

    /// The proxy's socket.
    pub fn socket(&self) -> PathBuf {
        self.engine.host().run_dir().join("weave.sock")
    }

    /// A folder for what a test needs beside the engine.
    ///
    /// # Errors
    /// If it is gone.
    pub fn files(&self) -> Result<PathBuf> {
        folder(self.engine.host())
    }

    /// A program on the host, in whose environment Docker is behind the proxy.
    ///
    /// # Errors
    /// If the host is gone.
    pub fn through(&self, program: &str) -> Result<Command> {
        let mut command = self.engine.host().command(program)?;
        command
            .env("DOCKER_HOST", format!("unix://{}", self.socket().display()))
            // The builder that needs nothing but the engine.
            .env("DOCKER_BUILDKIT", "0");
        Ok(command)
    }

    /// `docker ARGS…` through the proxy, to be started.
    ///
    /// # Errors
    /// If the host is gone.
    pub fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = self.through("docker")?;
        command.args(args);
        Ok(command)
    }

    /// `docker ARGS…` through the proxy.
    ///
    /// # Errors
    /// If it cannot be started or hangs; a failing program is no error here.
    pub fn docker(&self, args: &[&str]) -> Result<Output> {
        process::run(&mut self.command(args)?, LIMIT)
    }

    /// The same with something at its standard input.
    ///
    /// # Errors
    /// As [`World::docker`].
    pub fn with_input(&self, args: &[&str], input: &str) -> Result<Output> {
        let file = self.files()?.join("input");
        fs::write(&file, input)?;
        let mut command = self.through("sh")?;
        command
            .args(["-c", r#"exec docker "$@" < "$0""#])
            .arg(file)
            .args(args);
        process::run(&mut command, LIMIT)
    }

    /// What a container prints that runs `args` of the image `box`.
    ///
    /// # Errors
    /// If it fails.
    pub fn run(&self, options: &[&str], args: &[&str]) -> Result<String> {
        self.docker(&[&["run", "--rm"], options, &["box"], args].concat())?
            .ok()
    }

    /// `docker run --detach --name NAME OPTIONS…` of [`SLEEP`].
    ///
    /// # Errors
    /// If it does not start.
    pub fn run_detached(&self, name: &str, options: &[&str]) -> Result<()> {
        let all = [&["run", "--detach", "--name", name], options, &SLEEP].concat();
        self.docker(&all)?.ok().map(drop)
    }

    /// `docker inspect --format FORMAT NAME` through the proxy.
    ///
    /// # Errors
    /// If it fails.
    pub fn inspect(&self, name: &str, format: &str) -> Result<String> {
        let shown = self.docker(&["inspect", "--format", format, name])?.ok()?;
        Ok(shown.trim().to_owned())
    }

    /// The container's addresses, with prefix lengths, in order.
    ///
    /// # Errors
    /// If `weave ps` fails.
    pub fn cidrs(&self, name: &str) -> Result<Vec<String>> {
        let line = self.engine.weave(&["ps", name])?.ok()?;
        Ok(line.split_whitespace().skip(2).map(str::to_owned).collect())
    }

    /// The only one of [`World::cidrs`].
    ///
    /// # Errors
    /// If there is none, or more.
    pub fn cidr(&self, name: &str) -> Result<String> {
        let cidrs = self.cidrs(name)?;
        ensure!(cidrs.len() == 1, "{name} has {cidrs:?}");
        cidrs.into_iter().next().context("just counted")
    }

    /// [`raw`] through the proxy.
    ///
    /// # Errors
    /// As there.
    pub fn raw(&self, request: impl AsRef<[u8]>) -> Result<String> {
        raw(&self.socket(), request)
    }

    /// A request with a JSON body; the answer's status and body.
    ///
    /// # Errors
    /// As [`World::raw`].
    pub fn post(&self, path: &str, body: &str) -> Result<(u16, String)> {
        let length = body.len();
        let request = format!(
            "POST {path} HTTP/1.0\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n\
             {body}"
        );
        let answer = self.raw(request)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        let status = head.split(' ').nth(1).context("no status")?;
        Ok((status.parse()?, body.to_owned()))
    }
}

/// Sends a request as it is written; the answer until the connection is closed.
///
/// # Errors
/// If there is no answer, or one that does not end.
pub fn raw(socket: &Path, request: impl AsRef<[u8]>) -> Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(request.as_ref())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
