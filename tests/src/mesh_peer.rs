//! A peer that is not ours: the program in `go/mesh-peer`, on the original's mesh library as Debian packages it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use weave_ctl::api::report::Peer;

use crate::case::Unsupported;
use crate::lab::Host;
use crate::process::{self, LIMIT, wait_for};

/// Debian's package of the library.
pub const PACKAGE: &str = "golang-github-weaveworks-mesh-dev";
/// Where it puts it.
const LIBRARY: &str = "/usr/share/gocode/src/github.com/weaveworks/mesh";

/// Something that the program has told us.
#[derive(Debug, Clone, Deserialize)]
pub struct Event {
    /// `started`, `topology`, `unicast`, `broadcast`, `gossip` or `error`.
    pub event: String,
    /// Channel of a message.
    #[serde(default)]
    pub channel: String,
    /// Who sent it first, if that is known.
    #[serde(default)]
    pub source: String,
    /// Payload of a message as hex; of an error, the text.
    #[serde(default)]
    data: String,
    status: Option<Status>,
}

impl Event {
    /// The payload; empty if it is no hex.
    pub fn payload(&self) -> Vec<u8> {
        let digits = self.data.as_bytes().chunks(2);
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        digits.map(byte).collect::<Option<_>>().unwrap_or_default()
    }

    /// The payload as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload()).into_owned()
    }
}

/// What the peer thinks of the network.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Status {
    /// Everybody it knows, itself included.
    pub peers: Vec<Peer>,
    /// Its own connections and attempts.
    pub connections: Option<Vec<Attempt>>,
}

/// A connection of the peer itself, or an attempt at one.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Attempt {
    /// `established`, `pending`, `failed`, …
    pub state: String,
    /// With whom, or why not.
    pub info: String,
}

impl Status {
    /// The peer of this name.
    pub fn peer(&self, name: &str) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.name == name)
    }
}

/// With how many others is the peer connected, and both have heard each other?
pub fn established(peer: &Peer) -> usize {
    let connections = peer.connections.iter();
    connections.filter(|c| c.established).count()
}

/// The running program; killed when this is dropped.
#[derive(Debug)]
pub struct MeshPeer {
    child: Child,
    commands: ChildStdin,
    events: Arc<Mutex<Vec<Event>>>,
    name: String,
}

impl MeshPeer {
    /// Starts it on a host (on which none of our daemons runs), with the host's own peer name and nickname.
    ///
    /// # Errors
    /// [`Unsupported`] where Go or the library is missing; else what failed.
    pub fn start(host: &Host, args: &[&str]) -> Result<Self> {
        let mut command = host.command(&build()?.to_string_lossy())?;
        let (name, nickname) = (host.peer_name(), host.name());
        let log = File::options()
            .create(true)
            .append(true)
            .open(host.run_dir().join("mesh-peer.log"))?;
        command
            .args(["-name", &name, "-nickname", &nickname])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log);
        let mut child = command.spawn().context("cannot start mesh-peer")?;
        let commands = child.stdin.take().context("no pipe")?;
        let output = child.stdout.take().context("no pipe")?;
        let events: Arc<Mutex<Vec<Event>>> = Arc::default();
        let sink = events.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Ok(event) = serde_json::from_str(&line) {
                    sink.lock().unwrap_or_else(PoisonError::into_inner).push(event);
                }
            }
        });
        let peer = Self {
            child,
            commands,
            events,
            name,
        };
        wait_for("the mesh peer to start", LIMIT, || {
            Ok(peer.events().iter().any(|e| e.event == "started").then_some(()))
        })?;
        Ok(peer)
    }

    /// Its peer name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All that it has told so far.
    pub fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What it has received on a channel, in one way (`gossip`, `unicast`, `broadcast`) or, if that is empty, any.
    pub fn received(&self, channel: &str, how: &str) -> Vec<Event> {
        let mut events = self.events();
        events.retain(|e| e.channel == channel && (how.is_empty() || e.event == how));
        events
    }

    /// Gives it a command; the program's first comment lists them.
    ///
    /// # Errors
    /// If it has ended.
    pub fn tell(&mut self, command: &str) -> Result<()> {
        writeln!(self.commands, "{command}").context("the mesh peer has ended")
    }

    /// Asks what it thinks of the network.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn status(&mut self) -> Result<Status> {
        let answers =
            |peer: &Self| -> Vec<Status> { peer.events().into_iter().filter_map(|e| e.status).collect() };
        let before = answers(self).len();
        self.tell("topology")?;
        wait_for("the mesh peer's topology", LIMIT, || {
            Ok(answers(self).into_iter().nth(before))
        })
    }

    /// Waits until `holds` of its status.
    ///
    /// # Errors
    /// If that does not come about.
    pub fn wait(&mut self, what: &str, holds: impl Fn(&Status) -> bool) -> Result<Status> {
        wait_for(what, LIMIT, || {
            let status = self.status()?;
            ensure!(holds(&status), "{status:?}");
            Ok(Some(status))
        })
    }

    /// Lets it leave, and waits for its end.
    ///
    /// # Errors
    /// If it does not end.
    pub fn quit(mut self) -> Result<()> {
        self.tell("quit")?;
        wait_for("the mesh peer to end", LIMIT, || {
            Ok(self.child.try_wait()?.map(drop))
        })
    }
}

impl Drop for MeshPeer {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Are compiler and library there?
pub fn can_be_built() -> bool {
    Path::new(LIBRARY).is_dir()
        && Command::new("go")
            .arg("version")
            .output()
            .is_ok_and(|o| o.status.success())
}

/// Builds the program with Debian's Go, without network; the result is kept in `target/mesh-peer/`.
fn build() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    if !can_be_built() {
        let what = format!("has no Go compiler with the mesh library (Debian: golang-go, {PACKAGE})");
        return Err(Unsupported::new(what).into());
    }
    let built = BUILT.get_or_init(|| compile().map_err(|error| format!("{error:#}")));
    built.clone().map_err(anyhow::Error::msg)
}

fn compile() -> Result<PathBuf> {
    // target/PROFILE/deps/TEST
    let me = std::env::current_exe()?;
    let target = me.ancestors().nth(3).context("no target folder")?;
    let folder = target.join("mesh-peer");
    fs::create_dir_all(&folder)?;
    let program = folder.join("mesh-peer");
    let mut command = Command::new("go");
    command
        .args(["build", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("go/mesh-peer"))
        .env("GO111MODULE", "off")
        .env("GOPATH", "/usr/share/gocode")
        .env("GOFLAGS", "")
        .env("GOCACHE", folder.join("cache"));
    process::run(&mut command, 3 * LIMIT)?.ok()?;
    Ok(program)
}
