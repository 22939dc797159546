//! Finding the network namespaces of this host and whose they are.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::netns::{NAMED, NetnsId};
use super::{NetError, Netlink, Netns};

/// A namespace and the traces of its owner.
#[derive(Debug)]
pub(super) struct Found {
    pub ns: Netns,
    /// Name given by `ip netns add`.
    pub name: Option<String>,
    /// Lowest process in it.
    pub pid: Option<u32>,
    /// 64 hex digits of the cgroup of one of its processes: the full ID of a Docker (or CRI)
    /// container.
    pub runtime_id: Option<String>,
}

/// All namespaces that have a name or a process.
pub(super) fn namespaces() -> Vec<Found> {
    let mut found: BTreeMap<NetnsId, Found> = BTreeMap::new();
    for dir in NAMED {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if let (Ok(ns), Ok(name)) = (Netns::open(&entry.path()), entry.file_name().into_string()) {
                entry_of(&mut found, ns).name.get_or_insert(name);
            }
        }
    }
    let own = runtime_id("self");
    for pid in pids() {
        let path = format!("/proc/{pid}/ns/net");
        // Only unseen ones are opened: there may be thousands of processes in few namespaces.
        let Ok(meta) = fs::metadata(&path) else { continue };
        let id = NetnsId {
            dev: meta.dev(),
            ino: meta.ino(),
        };
        if !found.contains_key(&id) {
            let Ok(ns) = Netns::open(Path::new(&path)) else {
                continue;
            };
            entry_of(&mut found, ns);
        }
        if let Some(entry) = found.get_mut(&id) {
            entry.pid.get_or_insert(pid);
            if entry.runtime_id.is_none() {
                // What we are in ourselves says nothing about what runs in us.
                entry.runtime_id = runtime_id(&pid.to_string()).filter(|id| Some(id) != own.as_ref());
            }
        }
    }
    found.into_values().collect()
}

/// The name that a namespace has from `ip netns add`.
pub(super) fn name_of(id: NetnsId) -> Option<String> {
    let entries = NAMED
        .iter()
        .flat_map(|dir| fs::read_dir(dir).into_iter().flatten());
    let mut named = entries.flatten().filter_map(|entry| {
        let meta = fs::metadata(entry.path()).ok()?;
        let same = meta.dev() == id.dev && meta.ino() == id.ino;
        same.then(|| entry.file_name().into_string().ok()).flatten()
    });
    named.next()
}

fn entry_of(found: &mut BTreeMap<NetnsId, Found>, ns: Netns) -> &mut Found {
    found.entry(ns.id()).or_insert_with(|| Found {
        ns,
        name: None,
        pid: None,
        runtime_id: None,
    })
}

fn pids() -> Vec<u32> {
    let mut pids: Vec<u32> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    pids
}

fn runtime_id(pid: &str) -> Option<String> {
    id_in_cgroup(&fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?)
}

/// Does the process belong to the container of that full ID? Numbers of processes that another PID namespace, or
/// another machine, tells mean other processes here.
pub(super) fn is_of(pid: u32, id: &str) -> bool {
    runtime_id(&pid.to_string()).is_some_and(|of| of == id)
}

/// The last container ID in the text of `/proc/PID/cgroup`: `/docker/ID`,
/// `/system.slice/docker-ID.scope`, `.../cri-containerd-ID.scope`.
fn id_in_cgroup(text: &str) -> Option<String> {
    text.lines().find_map(|line| {
        line.rsplit(|c: char| !c.is_ascii_alphanumeric())
            .find(|word| word.len() == 64 && word.bytes().all(|b| b.is_ascii_hexdigit()))
            .map(str::to_owned)
    })
}

/// The namespaces by the number that `nl` knows them by; those without a link to it are left out.
pub(super) async fn by_nsid(nl: &Netlink) -> Result<HashMap<i32, Found>, NetError> {
    let all = tokio::task::spawn_blocking(namespaces)
        .await
        .map_err(|e| NetError::kernel("look for network namespaces", std::io::Error::other(e)))?;
    let mut known = HashMap::new();
    for found in all {
        // It may be gone since.
        if let Ok(Some(nsid)) = nl.nsid_of(&found.ns).await {
            known.insert(nsid, found);
        }
    }
    Ok(known)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::net::testing::{Sleeper, new_netns};

    #[test]
    fn container_ids_in_cgroups() {
        let id = "0123456789abcdef".repeat(4);
        let other = "f".repeat(64);
        for text in [
            format!("12:pids:/docker/{id}\n"),
            format!("0::/system.slice/docker-{id}.scope\n"),
            format!("0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{id}.scope\n"),
            format!("9:name=systemd:/\n8:cpu:/docker/{other}/docker/{id}\n"),
        ] {
            assert_eq!(id_in_cgroup(&text), Some(id.clone()), "{text}");
        }
        assert_eq!(id_in_cgroup("0::/user.slice/session-1.scope\n"), None);
        assert_eq!(id_in_cgroup(&format!("0::/a{id}\n")), None);
    }

    #[tokio::test]
    async fn a_process_makes_its_namespace_visible() {
        let Some(ns) = new_netns() else { return };
        let holder = Sleeper::in_ns(&ns).await;
        let found = namespaces().into_iter().find(|f| f.ns.id() == ns.id()).unwrap();
        assert_eq!(found.pid, Some(holder.pid()));
        assert_eq!((found.name, found.runtime_id), (None, None));
    }
}
