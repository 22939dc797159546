//! `weave reset` (cli.md 4.16): leaves the cluster and removes everything that is ours.

use std::path::Path;
use std::time::Duration;

use super::lock::Lock;
use super::{Context, Failure, Outcome, Paths, end_standby, has_standby, need_root, note, stop};
use crate::docker::plugin::record::{Record, is_held};
use crate::docker::wait_folders::WaitFolders;
use crate::net::{Netlink, bridge, expose};
use crate::overlay::fastdp::attach;

/// Time for the heir to learn of its inheritance.
const HANDOVER: Duration = Duration::from_millis(500);
/// Time for an orderly end.
const GRACE: Duration = Duration::from_secs(10);

/// Leave the cluster for good and remove everything: daemon, data, bridge, fast path
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Running containers lose the network. The peer's addresses go to another peer.\n\n\
    Examples:\n  weave reset\n  weave reset --force"
)]
pub(crate) struct ResetArgs {
    /// Also when the daemon does not run and its addresses cannot be handed over
    #[arg(long)]
    force: bool,
}

pub(super) async fn reset(args: &ResetArgs, context: &Context) -> Outcome {
    need_root()?;
    let paths = &context.env.paths;
    let running = Lock::holder(&paths.run_dir).is_some();
    if !running && !args.force && has_data(paths) {
        let text = "ERROR: weave is not running; unable to remove from cluster.\n\
                    Re-launch weave before reset or use --force to override.";
        return Err(Failure::new(1, text));
    }
    if running && context.env.client().ask("DELETE", "/peer", &[]).await.is_ok() {
        tokio::time::sleep(HANDOVER).await;
    }
    // Docker asks somebody whether it may go.
    if running || has_standby(&paths.run_dir) {
        stop::remove_network(context).await;
    }
    stop::stop_daemon(&paths.run_dir, GRACE).await?;
    end_standby(&paths.run_dir);
    let recorded = Record::read(&paths.run_dir).map_or_else(Vec::new, |record| record.sockets);
    for socket in recorded.into_iter().chain(stop::plugin_sockets(context)) {
        // Those that systemd listens at are its own.
        if !is_held(&socket) {
            report(remove(&socket));
        }
    }
    // Nobody may launch while we remove.
    let lock = Lock::acquire(&paths.run_dir).map_err(|e| Failure::new(1, e.to_string()))?;
    remove_all(paths, &context.env.bridge).await;
    drop(lock);
    Ok(())
}

/// Removes what a daemon leaves. Each step goes on when the one before fails, so that a half-built
/// state can be cleared.
async fn remove_all(paths: &Paths, bridge: &str) {
    let network = async {
        let nl = Netlink::current().await?;
        for link in nl.links().await? {
            attach::remove_filter(&link.name);
        }
        let rules = expose::clear(nl.ns()).await;
        bridge::delete_all(&nl, bridge).await?;
        rules
    };
    if let Err(e) = network.await {
        note(&format!("WARNING: {e}"));
    }
    remove_files(paths);
}

/// The pins hold the programs on the interfaces: without them the kernel lets go.
fn remove_files(paths: &Paths) {
    report(remove(&paths.bpf_dir));
    report(remove(&WaitFolders::root(&paths.data_dir)));
    for dir in [&paths.data_dir, &paths.run_dir] {
        for file in our_files(dir) {
            report(remove(&file));
        }
    }
}

fn report(removed: std::io::Result<()>) {
    if let Err(e) = removed {
        note(&format!("WARNING: {e}"));
    }
}

fn remove(path: &Path) -> std::io::Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(std::io::Error::other(format!(
            "cannot remove {}: {e}",
            path.display()
        ))),
        _ => Ok(()),
    }
}

/// Has a daemon been here that still owns addresses?
fn has_data(paths: &Paths) -> bool {
    !our_files(&paths.data_dir).is_empty()
}

/// Data, log, lock and sockets all begin with `weave`.
fn our_files(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|e| e.path())
        .filter(|p| {
            p.file_name()
                .is_some_and(|n| n.as_encoded_bytes().starts_with(b"weave"))
        })
        .filter(|p| !p.is_dir())
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ours_goes_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let [data_dir, run_dir, bpf_dir] = ["data", "run", "bpf"].map(|d| dir.path().join(d));
        let paths = Paths {
            data_dir: data_dir.clone(),
            run_dir: run_dir.clone(),
            bpf_dir: bpf_dir.clone(),
        };
        assert!(!has_data(&paths));
        for path in [
            "data/weave.redb",
            "data/weavedata.db",
            "data/other",
            "data/wait/w/w",
            "run/weave.log",
            "bpf/maps/peers",
        ] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        assert!(has_data(&paths));
        remove_files(&paths);
        assert!(!has_data(&paths) && !bpf_dir.exists());
        assert_eq!(std::fs::read_dir(&run_dir).unwrap().count(), 0);
        assert!(data_dir.join("other").exists() && !data_dir.join("wait").exists());
    }
}
