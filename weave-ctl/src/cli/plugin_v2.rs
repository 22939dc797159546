//! `weave plugin-v2-launch`: the entrypoint of the managed plugin (control.md 4.10). It finds out what the daemon
//! must be told, and then is the daemon.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::Deserialize;

use super::launch::DEFAULT_RANGE;
use super::{Failure, Outcome, block_on, need_root, note};
use crate::docker;
use crate::ipam::address::Cidr;
use crate::net::{Netlink, overlap};

/// Its name; only for the entrypoint, so no help names it.
pub(super) const COMMAND: &str = "plugin-v2-launch";
/// Its presence says that this plugin has run with the peers that Docker told: while Docker restarts, it cannot be
/// asked.
const SENTINEL: &str = "/restart.sentinel";
/// Tells the daemon to write that file.
const VARIABLE: &str = "WEAVE_RESTART_SENTINEL";
/// How long Docker may take to tell of the swarm.
const PATIENCE: Duration = Duration::from_secs(5);

/// What Docker tells of itself.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Info {
    name: String,
    swarm: Swarm,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Swarm {
    node_addr: String,
    remote_managers: Option<Vec<Manager>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Manager {
    addr: String,
}

impl Info {
    /// The swarm's managers on other hosts.
    fn peers(&self) -> Vec<String> {
        let managers = self.swarm.remote_managers.iter().flatten();
        let hosts = managers.filter_map(|manager| manager.addr.rsplit_once(':').map(|(host, _)| host));
        let others = hosts.filter(|host| *host != self.swarm.node_addr && !host.is_empty());
        others.map(str::to_owned).collect()
    }
}

pub(crate) fn launch() -> Outcome {
    need_root()?;
    let lookup = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let root = PathBuf::from(lookup("HOST_ROOT").unwrap_or_else(|| "/host".to_owned()));
    let range = lookup("IPALLOC_RANGE").unwrap_or_else(|| DEFAULT_RANGE.to_owned());
    writable_settings(&root);
    let again = Path::new(SENTINEL).exists();
    let info = block_on(async {
        check_range(&range).await?;
        Ok(if again {
            Some(Info::default())
        } else {
            info().await
        })
    })?;
    let told = info.is_some();
    let args = arguments(&root, &range, again, &info.unwrap_or_default(), lookup);
    let failed = |error: std::io::Error| Failure::new(1, format!("cannot start the daemon: {error}"));
    let program = std::env::current_exe().map_err(failed)?;
    let mut daemon = Command::new(program);
    if told {
        daemon.env(VARIABLE, SENTINEL);
    }
    Err(failed(daemon.args(args).exec()))
}

/// The daemon is up, and knows its peers.
pub(crate) fn is_up() {
    let Some(sentinel) = std::env::var_os(VARIABLE) else {
        return;
    };
    if let Err(error) = std::fs::write(&sentinel, "") {
        tracing::warn!("cannot write {}: {error}", Path::new(&sentinel).display());
    }
}

/// Docker mounts `/proc/sys` read-only into plugins; the host's, which we are given, is not.
fn writable_settings(root: &Path) {
    let (from, none) = (root.join("proc/sys"), None::<&str>);
    let mounted = nix::mount::mount(Some(&from), "/proc/sys", none, nix::mount::MsFlags::MS_BIND, none);
    if let Err(error) = mounted {
        note(&format!(
            "WARNING: cannot mount {} over /proc/sys: {error}",
            from.display()
        ));
    }
}

async fn check_range(range: &str) -> Outcome {
    let range = Cidr::parse_subnet(range).map_err(|e| Failure::new(1, e.to_string()))?;
    let nl = Netlink::current().await?;
    Ok(overlap::check_network(&nl, range, &["weave"]).await?)
}

async fn info() -> Option<Info> {
    let asked = tokio::time::timeout(PATIENCE, docker::ask_default("/info")).await;
    let why = match asked {
        Ok(Ok(info)) => return Some(info),
        Ok(Err(why)) => why,
        Err(_) => "no answer".to_owned(),
    };
    note(&format!(
        "WARNING: Docker does not tell of its swarm, so there are no peers: {why}"
    ));
    None
}

fn arguments(
    root: &Path,
    range: &str,
    again: bool,
    info: &Info,
    lookup: impl Fn(&str) -> Option<String>,
) -> Vec<String> {
    let or = |name: &str, default: &str| lookup(name).unwrap_or_else(|| default.to_owned());
    let nickname = std::fs::read_to_string(root.join("etc/hostname")).unwrap_or_default();
    let nickname = [info.name.as_str(), nickname.trim()]
        .into_iter()
        .find(|name| !name.is_empty());
    let mut args = vec!["launch".to_owned(), "--foreground".to_owned()];
    let mut set = |name: &str, value: &str| args.push(format!("--{name}={value}"));
    set("port", "6783");
    set("http-addr", &or("WEAVE_HTTP_ADDR", "127.0.0.1:6784"));
    set("status-addr", &or("WEAVE_STATUS_ADDR", "0.0.0.0:6782"));
    set("log-level", &or("LOG_LEVEL", "info"));
    set("ipalloc-range", range);
    set("data-dir", &root.join("var/lib/weave").display().to_string());
    set("docker-api", "");
    set("plugin-v2", "true");
    set("plugin-mesh-socket", "");
    if let Some(nickname) = nickname {
        set("nickname", nickname);
    }
    if lookup("WEAVE_MULTICAST").is_some() {
        set("plugin-v2-multicast", "true");
    }
    args.push("--no-dns".to_owned());
    // The peers of the last run are kept with the addresses.
    if again {
        args.push("--resume".to_owned());
    }
    args.extend(or("EXTRA_ARGS", "").split_whitespace().map(str::to_owned));
    args.extend(info.peers());
    args
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_daemon_is_told() {
        // As Docker 20.10 tells it on a worker.
        let info: Info = serde_json::from_value(json!({"Name": "h2", "Swarm": {"NodeAddr": "172.30.0.2",
            "RemoteManagers": [{"NodeID": "x", "Addr": "172.30.0.1:2377"}, {"NodeID": "y", "Addr": "172.30.0.2:2377"}]}}))
        .unwrap();
        let vars = |name: &str| match name {
            "WEAVE_MULTICAST" => Some("1".to_owned()),
            "EXTRA_ARGS" => Some("--conn-limit 3  --no-discovery".to_owned()),
            _ => None,
        };
        let root = Path::new("/nowhere");
        let args = arguments(root, "10.40.0.0/16", false, &info, vars);
        let line = args.join(" ");
        for part in [
            "launch --foreground --port=6783 ",
            " --data-dir=/nowhere/var/lib/weave ",
            " --ipalloc-range=10.40.0.0/16 ",
            " --nickname=h2 --plugin-v2-multicast=true --no-dns --conn-limit 3 --no-discovery 172.30.0.1",
        ] {
            assert!(line.contains(part), "{line}");
        }
        let again = arguments(root, "10.40.0.0/16", true, &Info::default(), |_| None).join(" ");
        assert!(again.ends_with(" --no-dns --resume"), "{again}");
        let none: Info = serde_json::from_value(json!({"Swarm": {"RemoteManagers": null}})).unwrap();
        assert!(none.peers().is_empty());
    }
}
