//! Questions to the Docker daemon: what is this container, which ones run?
//!
//! Two plain requests. Answers are read leniently, so that neither newer engines nor lookalikes
//! (Podman) can break it with a field more or less.

use std::path::PathBuf;

use hyper::Method;
use serde::Deserialize;

use super::client::{Failure, ask, call, default_host};
use crate::net::NetError;

/// What Docker tells of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DockerContainer {
    /// All 64 digits.
    pub id: String,
    /// Does it run?
    pub running: bool,
    /// Its main process, while it runs.
    pub pid: Option<u32>,
    /// `Hostname`.
    pub hostname: Option<String>,
    /// `Domainname`.
    pub domain: Option<String>,
    /// The file on the host that is the container's `/etc/hosts`.
    pub hosts_file: Option<PathBuf>,
    /// The file on the host that is the container's `/etc/resolv.conf`.
    pub resolv_conf: Option<PathBuf>,
    /// `--add-host`, as `name:address`.
    pub extra_hosts: Vec<String>,
    /// `--dns`.
    pub dns: Vec<String>,
    /// `--network`, as Docker has noted it.
    pub network_mode: String,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// The program that is run, with its first arguments.
    pub entrypoint: Vec<String>,
}

/// What waits for the interface, as the first word of the entrypoint (control.md 4.4).
pub const WAIT_PROGRAM: &str = "/w/w";

/// Is a container alive?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It runs, with this main process; 0 while Docker does not tell.
    Runs(u32),
    /// It has ended, and may be started again.
    Ended,
    /// There is no such container.
    Gone,
    /// Nobody can tell now.
    Unknown,
}

impl DockerContainer {
    /// Was it made through our proxy: does its command wait for the interface?
    #[must_use]
    pub fn waits(&self) -> bool {
        self.entrypoint
            .first()
            .is_some_and(|program| program == WAIT_PROGRAM)
    }

    /// `Hostname.Domainname`, if it has a domain part (cli.md 4.8).
    #[must_use]
    pub fn fqdn(&self) -> Option<String> {
        let host = self.hostname.as_deref().unwrap_or_default();
        let whole = match &self.domain {
            Some(domain) => format!("{host}.{domain}"),
            // Docker leaves a full name that it was given whole.
            None => host.to_owned(),
        };
        let name = whole.trim_end_matches('.');
        let (host, domain) = name.split_once('.')?;
        (!host.is_empty() && !domain.is_empty()).then(|| name.to_owned())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    id: String,
    #[serde(default)]
    state: State,
    #[serde(default)]
    config: Config,
    #[serde(default)]
    host_config: HostConfig,
    #[serde(default)]
    hosts_path: String,
    #[serde(default)]
    resolv_conf_path: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct State {
    running: bool,
    restarting: bool,
    pid: i64,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    hostname: String,
    domainname: String,
    env: Option<Vec<String>>,
    entrypoint: Option<Words>,
}

/// A command, as old images have it or as all others do.
#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    One(String),
    Several(Vec<String>),
}

/// Both are `null` where nothing was given.
#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct HostConfig {
    extra_hosts: Option<Vec<String>>,
    dns: Option<Vec<String>>,
    network_mode: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
}

/// Asks for a container by name, ID or beginning of an ID, at `DOCKER_HOST` or the usual socket.
pub async fn resolve(name_or_id: &str) -> Result<DockerContainer, NetError> {
    resolve_at(&default_host(), name_or_id).await
}

/// Full IDs of the running containers.
pub async fn list_running() -> Result<Vec<String>, NetError> {
    list_running_at(&default_host()).await
}

/// Asks the engine at `DOCKER_HOST` or the usual socket; `path` is without the version.
///
/// # Errors
/// Its words, or why there is no answer.
pub async fn ask_default<T: serde::de::DeserializeOwned>(path: &str) -> Result<T, String> {
    let asked = ask(&default_host(), path).await;
    asked.map_err(Failure::reason)
}

/// Does Docker at that endpoint say that there is no such container, or that it does not run? An endpoint that
/// gives no answer says nothing.
pub async fn is_gone(host: &str, id: &str) -> bool {
    matches!(life(host, id).await, Life::Ended | Life::Gone)
}

/// What Docker at that endpoint says of a container's life.
pub async fn life(host: &str, id: &str) -> Life {
    match inspect(host, id).await {
        Ok(found) if found.state.running && !found.state.restarting => {
            Life::Runs(u32::try_from(found.state.pid).unwrap_or_default())
        }
        Ok(_) => Life::Ended,
        Err(Failure::NotFound(_)) => Life::Gone,
        Err(Failure::Refused(_) | Failure::Unreachable(_)) => Life::Unknown,
    }
}

/// Kills a container so that Docker's restart policy leaves it as it is.
pub async fn kill(host: &str, id: &str) -> Result<(), NetError> {
    match call(host, Method::POST, &format!("/containers/{id}/kill"), None).await {
        Ok(()) => Ok(()),
        Err(failure) => Err(failed(host, id, failure)),
    }
}

/// The name becomes part of a URL: nothing that Docker would not accept as a name goes there.
async fn inspect(host: &str, name_or_id: &str) -> Result<Inspected, Failure> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if name_or_id.bytes().all(|b| b == b'.') || !name_or_id.bytes().all(plain) {
        return Err(Failure::NotFound("no such container".to_owned()));
    }
    ask(host, &format!("/containers/{name_or_id}/json")).await
}

/// The same at another endpoint.
pub async fn resolve_at(host: &str, name_or_id: &str) -> Result<DockerContainer, NetError> {
    let found = inspect(host, name_or_id).await;
    found
        .map(known)
        .map_err(|failure| failed(host, name_or_id, failure))
}

/// The same where a container that is not there is no error: `None`.
pub async fn find_at(host: &str, name_or_id: &str) -> Result<Option<DockerContainer>, NetError> {
    match inspect(host, name_or_id).await {
        Ok(found) => Ok(Some(known(found))),
        Err(Failure::NotFound(_)) => Ok(None),
        Err(failure) => Err(failed(host, name_or_id, failure)),
    }
}

fn failed(host: &str, name_or_id: &str, failure: Failure) -> NetError {
    match failure {
        Failure::NotFound(reason) | Failure::Refused(reason) => NetError::Inspect {
            name: name_or_id.to_owned(),
            reason,
        },
        Failure::Unreachable(reason) => unreachable(host, reason),
    }
}

fn known(found: Inspected) -> DockerContainer {
    let text = |t: String| Some(t).filter(|t| !t.is_empty());
    let path = |t: String| Some(PathBuf::from(t)).filter(|p| p.is_absolute());
    DockerContainer {
        id: found.id,
        running: found.state.running && !found.state.restarting,
        pid: u32::try_from(found.state.pid).ok().filter(|pid| *pid != 0),
        hostname: text(found.config.hostname),
        domain: text(found.config.domainname),
        hosts_file: path(found.hosts_path),
        resolv_conf: path(found.resolv_conf_path),
        extra_hosts: found.host_config.extra_hosts.unwrap_or_default(),
        dns: found.host_config.dns.unwrap_or_default(),
        network_mode: found.host_config.network_mode.unwrap_or_default(),
        env: found.config.env.unwrap_or_default(),
        entrypoint: match found.config.entrypoint {
            Some(Words::Several(words)) => words,
            Some(Words::One(word)) => vec![word],
            None => Vec::new(),
        },
    }
}

/// The same at another endpoint.
pub(super) async fn list_running_at(host: &str) -> Result<Vec<String>, NetError> {
    list(host, "/containers/json").await
}

/// Full IDs of all containers, also of those that do not run.
pub async fn list_all_at(host: &str) -> Result<Vec<String>, NetError> {
    list(host, "/containers/json?all=1").await
}

async fn list(host: &str, path: &str) -> Result<Vec<String>, NetError> {
    let listed = ask(host, path).await;
    let all: Vec<Listed> = listed.map_err(|failure| unreachable(host, failure.reason()))?;
    Ok(all.into_iter().map(|c| c.id).collect())
}

fn unreachable(host: &str, reason: String) -> NetError {
    NetError::NoDocker {
        host: host.to_owned(),
        reason,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use axum::http::StatusCode;
    use axum::response::IntoResponse;
    use axum::{Json, Router, extract::Path, routing::get};
    use serde_json::json;

    use super::*;

    /// An engine that knows one running container, `web`, and one that ended, `done`.
    fn engine(folder: &std::path::Path) -> String {
        let inspect = |Path(name): Path<String>| async move {
            let id = "0123456789abcdef".repeat(4);
            let answer = match name.as_str() {
                "web" => json!({"Id": id, "State": {"Running": true, "Pid": 4711},
                    "Config": {"Hostname": "web", "Domainname": "weave.local", "Env": ["WEAVE_CIDR=none"],
                        "Entrypoint": ["/w/w", "sh"]},
                    "HostConfig": {"NetworkMode": "bridge", "ExtraHosts": ["db:10.0.0.1"], "Dns": null},
                    "HostsPath": "/d/hosts", "ResolvConfPath": ""}),
                "again" => json!({"Id": id, "State": {"Running": true, "Restarting": true, "Pid": 0}}),
                "done" => json!({"Id": id, "State": {"Running": false, "Pid": 0},
                    "Config": {"Hostname": "done", "Domainname": "", "Env": null, "Entrypoint": "sh"}}),
                _ => {
                    let text = json!({"message": format!("No such container: {name}")});
                    return (StatusCode::NOT_FOUND, Json(text)).into_response();
                }
            };
            Json(answer).into_response()
        };
        let ping = ([("Api-Version", "1.41")], "OK");
        let list = Json(json!([{"Id": "a".repeat(64)}, {"Id": "b".repeat(64)}]));
        let router = Router::new()
            .route("/_ping", get(ping))
            .route("/v1.41/containers/{name}/json", get(inspect))
            .route("/v1.41/containers/json", get(list));
        let socket = folder.join("docker.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        format!("unix://{}", socket.display())
    }

    #[tokio::test]
    async fn answers_of_an_older_engine() {
        let folder = tempfile::tempdir().unwrap();
        let host = engine(folder.path());
        let web = resolve_at(&host, "web").await.unwrap();
        assert_eq!(web.id.len(), 64);
        assert_eq!((web.running, web.pid), (true, Some(4711)));
        assert!(web.waits());
        assert_eq!(web.hostname.as_deref(), Some("web"));
        assert_eq!(web.domain.as_deref(), Some("weave.local"));
        assert_eq!(web.fqdn().as_deref(), Some("web.weave.local"));
        assert_eq!((web.hosts_file, web.resolv_conf), (Some("/d/hosts".into()), None));
        assert_eq!(
            (web.network_mode.as_str(), web.env),
            ("bridge", vec!["WEAVE_CIDR=none".to_owned()])
        );
        assert_eq!(
            (web.extra_hosts, web.dns),
            (vec!["db:10.0.0.1".to_owned()], vec![])
        );
        let done = resolve_at(&host, "done").await.unwrap();
        assert_eq!((done.running, done.pid, &done.domain), (false, None, &None));
        assert!(!done.waits() && done.entrypoint == ["sh"]);
        assert_eq!(list_running_at(&host).await.unwrap().len(), 2);
        for (name, gone) in [
            ("web", false),
            ("again", true),
            ("done", true),
            ("nope", true),
            ("a/../b", true),
        ] {
            assert_eq!(is_gone(&host, name).await, gone, "{name}");
            if name == "done" {
                assert_eq!(life(&host, name).await, Life::Ended);
            }
        }
        for (name, text) in [
            (
                "nope",
                "unable to inspect container nope: No such container: nope",
            ),
            ("a/../b", "unable to inspect container a/../b: no such container"),
        ] {
            assert_eq!(resolve_at(&host, name).await.unwrap_err().to_string(), text);
        }
    }

    #[test]
    fn names_with_a_domain() {
        for (hostname, domain, fqdn) in [
            ("web", "weave.local", Some("web.weave.local")),
            ("web.sub", "weave.local.", Some("web.sub.weave.local")),
            ("web.weave.local", "", Some("web.weave.local")),
            ("web", "", None),
            ("web.", "", None),
            ("", "weave.local", None),
            ("", "", None),
        ] {
            let text = |t: &str| Some(t.to_owned()).filter(|t| !t.is_empty());
            let container = DockerContainer {
                hostname: text(hostname),
                domain: text(domain),
                ..DockerContainer::default()
            };
            assert_eq!(container.fqdn().as_deref(), fqdn, "{hostname:?} {domain:?}");
        }
    }

    #[tokio::test]
    async fn without_docker_the_alternatives_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let host = format!("unix://{}/none.sock", folder.path().display());
        assert!(!is_gone(&host, "web").await, "nobody knows");
        let error = resolve_at(&host, "web").await.unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("cannot reach Docker at {host}: ")),
            "{error}"
        );
        assert!(error.ends_with("netns:NAME, netns:/path or pid:N"), "{error}");
    }
}
