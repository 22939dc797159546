//! From what a person wrote to the container that is meant (cli.md 4.8).

use std::path::Path;

use sha2::{Digest, Sha256};

use super::{NetError, Netns, ps, scan};
use crate::docker::{self, DockerContainer};

/// Something with a network namespace that can be attached.
#[derive(Clone, Debug)]
pub struct Container {
    /// How IPAM and DNS know it: the full Docker ID, `netns:NAME`, `netns:/path`, or
    /// `netns-INODE` for a namespace without a name.
    pub id: String,
    /// For the lines of `weave ps`: a Docker name or ID as given, cut to 12 characters; other
    /// forms as given.
    pub display: String,
    /// At most seven characters for the names of interfaces on the host.
    pub id7: String,
    /// Its namespace.
    pub ns: Netns,
    /// Its main process, where there is one.
    pub pid: Option<u32>,
    /// What Docker tells, of a container of Docker.
    pub docker: Option<DockerContainer>,
}

/// Finds a running container from a Docker name or ID, `netns:NAME`, `netns:/path` or `pid:N`.
pub async fn resolve(text: &str) -> Result<Container, NetError> {
    if let Some(name) = text.strip_prefix("netns:") {
        return of_netns(text, name);
    }
    if let Some(pid) = text.strip_prefix("pid:") {
        return of_pid(text, pid);
    }
    of_docker_here(text, docker::resolve(text).await?)
}

/// The same from what Docker has told; `text` is what the user calls it.
///
/// # Errors
/// If it does not run, or not on this host.
pub fn of_docker_here(text: &str, found: DockerContainer) -> Result<Container, NetError> {
    let container = of_docker(text, found)?;
    match container.pid {
        // Asked after its namespace was opened: a number that means another process by now is noticed.
        Some(pid) if !scan::is_of(pid, &container.id) => Err(NetError::Elsewhere {
            name: text.to_owned(),
            pid,
        }),
        _ => Ok(container),
    }
}

fn of_docker(text: &str, found: DockerContainer) -> Result<Container, NetError> {
    let pid = match found.pid {
        Some(pid) if found.running => pid,
        _ => return Err(NetError::NotRunning(text.to_owned())),
    };
    Ok(Container {
        id: found.id.clone(),
        display: text.chars().take(12).collect(),
        id7: id7_of_pid(pid),
        ns: Netns::of_pid(pid).map_err(|_| NetError::Died(text.to_owned()))?,
        pid: Some(pid),
        docker: Some(found),
    })
}

fn of_netns(text: &str, name: &str) -> Result<Container, NetError> {
    let ns = if name.starts_with('/') {
        Netns::open(Path::new(name))?
    } else {
        Netns::named(name)?
    };
    // A path to a named namespace is that name, so that both spellings mean one owner.
    let dir_and_name = Path::new(name).parent().zip(Path::new(name).file_name());
    let short = dir_and_name
        .filter(|(dir, _)| super::netns::NAMED.iter().any(|n| Path::new(n) == *dir))
        .and_then(|(_, file)| file.to_str());
    Ok(Container {
        id: format!("netns:{}", short.unwrap_or(name)),
        display: text.to_owned(),
        id7: id7_of_netns(&ns),
        ns,
        pid: None,
        docker: None,
    })
}

fn of_pid(text: &str, pid: &str) -> Result<Container, NetError> {
    let missing = || NetError::NoProcess(pid.to_owned());
    let number: u32 = pid.parse().map_err(|_| missing())?;
    let ns = Netns::of_pid(number).map_err(|_| missing())?;
    let id = name_of(&ns).unwrap_or_else(|| ps::anonymous_id(ns.id()));
    Ok(Container {
        id,
        display: text.to_owned(),
        id7: id7_of_pid(number),
        ns,
        pid: Some(number),
        docker: None,
    })
}

/// The namespace's owner under another form, so that an address is owned once.
fn name_of(ns: &Netns) -> Option<String> {
    scan::name_of(ns.id()).map(|name| format!("netns:{name}"))
}

fn id7_of_pid(pid: u32) -> String {
    pid.to_string().chars().take(7).collect()
}

/// Seven hex digits that stay the same as long as the namespace lives.
fn id7_of_netns(ns: &Netns) -> String {
    let id = ns.id();
    let digest = Sha256::digest(format!("{}:{}", id.dev, id.ino));
    let hex: String = digest.iter().take(4).map(|b| format!("{b:02x}")).collect();
    hex.chars().take(7).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::net::testing::{Sleeper, new_netns};

    #[tokio::test]
    async fn by_process_and_by_path() {
        let Some(ns) = new_netns() else { return };
        let holder = Sleeper::in_ns(&ns).await;
        let pid = holder.pid();
        let by_pid = resolve(&format!("pid:{pid}")).await.unwrap();
        assert_eq!(by_pid.ns.id(), ns.id());
        assert_eq!(by_pid.id, format!("netns-{}", ns.id().ino));
        assert_eq!(
            (by_pid.display, by_pid.id7),
            (format!("pid:{pid}"), pid.to_string())
        );

        let text = format!("netns:/proc/{pid}/ns/net");
        let by_path = resolve(&text).await.unwrap();
        assert_eq!(by_path.ns.id(), ns.id());
        assert_eq!((by_path.id, by_path.display), (text.clone(), text.clone()));
        assert_eq!(by_path.id7.len(), 7);
        assert_eq!(by_path.id7, resolve(&text).await.unwrap().id7);
    }

    #[test]
    fn docker_containers_that_run_ended_or_died() {
        let found = DockerContainer {
            id: "0123456789abcdef".repeat(4),
            running: true,
            pid: Some(std::process::id()),
            hostname: Some("web".to_owned()),
            ..DockerContainer::default()
        };
        let web = of_docker("web-frontend-of-shop", found.clone()).unwrap();
        assert_eq!((web.id, web.display.as_str()), (found.id.clone(), "web-frontend"));
        assert_eq!(web.ns.id(), Netns::current().unwrap().id());
        let text = |found| of_docker("web", found).unwrap_err().to_string();
        let ended = DockerContainer {
            running: false,
            pid: None,
            ..found.clone()
        };
        assert_eq!(text(ended), "container web not running");
        let died = DockerContainer {
            pid: Some(u32::MAX),
            ..found
        };
        assert_eq!(text(died), "Container web died");
    }

    #[tokio::test]
    async fn what_does_not_exist_is_named() {
        for (text, error) in [
            ("pid:0x", "no process 0x: nothing to attach"),
            ("pid:4294967295", "no process 4294967295: nothing to attach"),
        ] {
            assert_eq!(resolve(text).await.unwrap_err().to_string(), error);
        }
        let error = resolve("netns:no-such-one").await.unwrap_err().to_string();
        assert!(
            error.starts_with("no network namespace at /run/netns/no-such-one"),
            "{error}"
        );
    }
}
