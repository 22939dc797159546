//! `weave stop` (cli.md 4.15): ends the daemon; bridge, addresses and fast path stay.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::Instant;

use super::dying::is_dying;
use super::lock::Lock;
use super::proxy_env::addresses as proxy_addresses;
use super::{Context, Failure, Outcome, has_standby, need_root, note, out};
use crate::docker::plugin::network;
use crate::docker::plugin::record::{Record, is_held};

/// In Docker's folder for plugins, unless the daemon was told otherwise.
const PLUGIN_SOCKETS: [&str; 2] = ["weave.sock", "weavemesh.sock"];
/// Ends the daemon but not the traffic.
const KEEP_TRAFFIC: Signal = Signal::SIGUSR1;
/// Where Docker is unless DOCKER_HOST says otherwise.
const DOCKER: &str = "unix:///var/run/docker.sock";
/// The driver of its network.
const MESH_DRIVER: &str = "weavemesh";
/// Time for an orderly end.
const GRACE: Duration = Duration::from_secs(10);
/// Time for the kernel to clear up after a kill.
const AFTER_KILL: Duration = Duration::from_secs(5);
/// How often we look.
const PAUSE: Duration = Duration::from_millis(20);

/// Stop the daemon; containers of this host go on talking to each other
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  weave stop\n\nUpgrade without losing a packet:\n  \
    weave-ctl stop --keep-traffic && cargo xtask install && weave-ctl launch ..."
)]
pub(crate) struct StopArgs {
    /// Also let the kernel go on with traffic to other hosts, for about a minute, until the next launch
    #[arg(long)]
    keep_traffic: bool,
}

pub(super) async fn stop(args: &StopArgs, context: &Context) -> Outcome {
    need_root()?;
    let first = if args.keep_traffic {
        KEEP_TRAFFIC
    } else {
        Signal::SIGTERM
    };
    let run_dir = &context.env.paths.run_dir;
    if first == Signal::SIGTERM && Lock::holder(run_dir).is_some() {
        remove_network(context).await;
        warn_of_proxy(context).await;
    }
    if !end_daemon(run_dir, first, GRACE).await? {
        note("Weave is not running (ignore on Kubernetes).");
    } else if !has_standby(run_dir) && plugin_sockets(context).iter().any(|socket| is_held(socket)) {
        note("NOTE: systemd starts weave again when Docker calls it. Against that:");
        note("  systemctl stop weave-plugin.socket");
    }
    Ok(())
}

/// Where Docker finds our plugins.
pub(super) fn plugin_sockets(context: &Context) -> [PathBuf; 2] {
    PLUGIN_SOCKETS.map(|name| context.env.plugin_dir.join(name))
}

/// Who has run `eval "$(weave env)"` in this shell has no Docker any more.
async fn warn_of_proxy(context: &Context) {
    let docker = &context.env.docker;
    let Ok(Some(addresses)) = proxy_addresses(context).await else {
        return;
    };
    if docker
        .client
        .as_ref()
        .is_some_and(|client| addresses.contains(client))
    {
        out(
            "WARNING: It appears that your environment is configured to use the Weave Docker API proxy. Stopping it \
             will break this and subsequent docker invocations. To restore your environment, run 'eval $(weave env \
             --restore)'.\n",
        );
    }
}

/// Docker's network `weave` is there as long as we are.
pub(super) async fn remove_network(context: &Context) {
    let record = Record::read(&context.env.paths.run_dir).unwrap_or_else(|| Record {
        docker: context
            .env
            .docker_host
            .clone()
            .unwrap_or_else(|| DOCKER.to_owned()),
        driver: MESH_DRIVER.to_owned(),
        sockets: Vec::new(),
    });
    if record.docker.is_empty() || record.driver.is_empty() {
        return;
    }
    let removing = network::remove(&record.docker, &record.driver);
    let removed = tokio::time::timeout(GRACE, removing).await;
    let attached = match removed.unwrap_or_else(|_| Err("no answer".to_owned())) {
        Ok(attached) if attached.is_empty() => return,
        Ok(attached) => attached,
        Err(why) => {
            return note(&format!(
                "WARNING: Docker keeps its network \"{}\": {why}",
                network::NAME
            ));
        }
    };
    note(&format!(
        "WARNING: the following containers are still attached to network \"{}\":",
        network::NAME
    ));
    for id in attached {
        note(&format!("  {}", id.chars().take(12).collect::<String>()));
    }
    note("Docker operations involving those containers may pause or fail");
    note("while Weave is not running");
}

/// Ends the daemon and the overlay, if there is one; tells whether there was.
pub(super) async fn stop_daemon(run_dir: &Path, grace: Duration) -> Result<bool, Failure> {
    end_daemon(run_dir, Signal::SIGTERM, grace).await
}

async fn end_daemon(run_dir: &Path, first: Signal, grace: Duration) -> Result<bool, Failure> {
    let Some(pid) = Lock::holder(run_dir) else {
        return Ok(false);
    };
    for (signal, patience) in [(first, grace), (Signal::SIGKILL, AFTER_KILL)] {
        match kill(Pid::from_raw(pid), signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(e) => {
                return Err(Failure::new(
                    1,
                    format!("cannot stop the daemon (process {pid}): {e}"),
                ));
            }
        }
        let until = Instant::now() + patience;
        while Instant::now() < until {
            if Lock::holder(run_dir) != Some(pid) && !is_dying(pid) {
                return Ok(true);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
    Err(Failure::new(
        1,
        format!("the daemon (process {pid}) does not end"),
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A process that holds the lock as a daemon would.
    fn daemon(run_dir: &Path, script: &str) -> Child {
        let lock = Lock::acquire(run_dir).unwrap();
        let child = Command::new("sh")
            .args(["-c", script])
            .stdin(lock.share().unwrap())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        std::fs::write(run_dir.join("weave.lock"), format!("{}\n", child.id())).unwrap();
        child
    }

    #[tokio::test]
    async fn in_order_or_by_force() {
        for script in ["echo; exec sleep 600", "trap '' TERM; echo; exec sleep 600"] {
            let dir = tempfile::tempdir().unwrap();
            let mut child = daemon(dir.path(), script);
            // Its line says that the trap is set.
            let mut line = [0];
            std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
            let stopped = stop_daemon(dir.path(), Duration::from_millis(200)).await;
            let _ = child.kill();
            child.wait().unwrap();
            assert_eq!(stopped, Ok(true), "{script}");
            assert_eq!(stop_daemon(dir.path(), GRACE).await, Ok(false));
        }
    }
}
