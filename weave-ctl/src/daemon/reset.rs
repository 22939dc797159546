//! Removes exactly what we made.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::anyhow;

use super::options::Paths;
use crate::net::{Netlink, bridge};

/// Removes devices, pins, state and run-time files of a stopped daemon. Goes on after an error
/// and reports all of them; nothing there is no error. Returns what was removed.
pub async fn remove_all(paths: &Paths, bridge_name: &str) -> anyhow::Result<Vec<String>> {
    let mut removed = Vec::new();
    let mut errors = Vec::new();
    let devices = async { bridge::delete_all(&Netlink::current().await?, bridge_name).await };
    match devices.await {
        Ok(names) => removed.extend(names),
        Err(error) => errors.push(error.to_string()),
    }
    // Links first: without them the programs are gone from foreign interfaces.
    for dir in [
        paths.bpf.join("links"),
        paths.bpf.clone(),
        paths.data.clone(),
        paths.run.clone(),
    ] {
        match remove_dir(&dir) {
            Ok(true) => removed.push(dir.display().to_string()),
            Ok(false) => {}
            Err(error) => errors.push(format!("cannot remove {}: {error}", dir.display())),
        }
    }
    if errors.is_empty() {
        Ok(removed)
    } else {
        Err(anyhow!(errors.join("\n")))
    }
}

/// Removes a directory of ours. A mount point or an otherwise busy one is only emptied.
pub(super) fn remove_dir(dir: &Path) -> io::Result<bool> {
    if !dir.exists() {
        return Ok(false);
    }
    match fs::remove_dir_all(dir) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(true),
        Err(error) => Err(error),
    }
}
