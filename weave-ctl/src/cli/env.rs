//! What the environment says (cli.md 2).

use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use super::client::Client;
use crate::docker::tls;
use crate::mesh::crypto::Password;

/// The variable with the password.
pub(super) const PASSWORD: &str = "WEAVE_PASSWORD";

/// Settings from environment variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Env {
    /// `WEAVE_HTTP_ADDR`: control API.
    pub http_addr: String,
    /// `WEAVE_STATUS_ADDR`: read-only API; empty disables it.
    pub status_addr: String,
    /// `WEAVE_PORT`.
    pub port: Option<String>,
    /// `WEAVE_MTU`.
    pub mtu: Option<String>,
    /// `WEAVE_PASSWORD`; empty: none.
    pub password: Password,
    /// `WEAVE_NO_FASTDP` is not empty.
    pub no_fastdp: bool,
    /// `DOCKER_HOST`.
    pub docker_host: Option<String>,
    /// How the client reaches Docker.
    pub docker: DockerEnv,
    /// `DNS_ADDRESS`: where WeaveDNS is, instead of where the daemon says.
    pub dns_address: Option<String>,
    /// `DNS_DOMAIN`: its domain, likewise.
    pub dns_domain: Option<String>,
    /// `DOCKER_BRIDGE`: Docker's bridge.
    pub docker_bridge: String,
    /// `WEAVE_FOREGROUND` is not empty: `launch` is the daemon itself, as in our image.
    pub foreground: bool,
    /// `WEAVE_PLUGIN_DIR`: where Docker looks for plugins.
    pub plugin_dir: PathBuf,
    /// `WEAVE_BRIDGE`: the bridge, where it has another name.
    pub bridge: String,
    /// Where things are kept.
    pub paths: Paths,
}

/// Where the daemon keeps things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// `WEAVE_DATA_DIR`: what survives a restart of the host.
    pub data_dir: PathBuf,
    /// `WEAVE_RUN_DIR`: lock and log.
    pub run_dir: PathBuf,
    /// `WEAVE_BPF_DIR`: pinned programs and maps.
    pub bpf_dir: PathBuf,
}

/// How the client reaches Docker, for the proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DockerEnv {
    /// `-H` in `DOCKER_CLIENT_ARGS`, `DOCKER_CLIENT_HOST` or `DOCKER_HOST`.
    pub client: Option<String>,
    /// `PROXY_HOST`: the host that proxy addresses name.
    pub given_proxy_host: Option<String>,
    /// `ORIG_DOCKER_HOST`: what `weave env` has replaced; may be empty.
    pub original: Option<String>,
    /// `DOCKER_CERT_PATH`, or `~/.docker`.
    pub cert_dir: PathBuf,
}

impl DockerEnv {
    fn from_lookup(lookup: &impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| lookup(name).filter(|v| !v.is_empty());
        let words = set("DOCKER_CLIENT_ARGS").unwrap_or_default();
        let client = given_host(&words)
            .or_else(|| set("DOCKER_CLIENT_HOST"))
            .or_else(|| set("DOCKER_HOST"));
        Self {
            client,
            given_proxy_host: set("PROXY_HOST"),
            original: lookup("ORIG_DOCKER_HOST"),
            cert_dir: tls::client_folder(lookup),
        }
    }

    /// Does the client reach Docker over a Unix socket?
    #[must_use]
    pub fn client_is_local(&self) -> bool {
        let client = self.client.as_deref().unwrap_or_default();
        client.is_empty() || client.starts_with("unix://") || client.starts_with('/')
    }

    /// The host that a proxy which listens everywhere is reached at.
    #[must_use]
    pub fn proxy_host(&self) -> String {
        let of_docker = || {
            let client = self.client.as_deref().filter(|_| !self.client_is_local())?;
            let address = client.split_once("://").map_or(client, |(_, address)| address);
            let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
            Some(host.to_owned()).filter(|host| !host.is_empty())
        };
        let given = self.given_proxy_host.clone();
        given.or_else(of_docker).unwrap_or_else(|| "127.0.0.1".to_owned())
    }
}

/// `-H X`, `-H=X`, `-HX` or `--host` in the words for a Docker client.
fn given_host(words: &str) -> Option<String> {
    let mut words = words.split_whitespace();
    while let Some(word) = words.next() {
        if matches!(word, "-H" | "--host") {
            return words.next().map(str::to_owned);
        }
        let attached = word.strip_prefix("--host=").or_else(|| word.strip_prefix("-H"));
        if let Some(host) = attached {
            return Some(host.strip_prefix('=').unwrap_or(host).to_owned());
        }
    }
    None
}

impl Paths {
    /// The daemon's log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.run_dir.join("weave.log")
    }
}

impl Env {
    /// The environment of this process.
    #[must_use]
    pub fn of_process() -> Self {
        // The password may be any bytes, not only text.
        let password = std::env::var_os(PASSWORD).unwrap_or_default().into_vec();
        Self {
            password: Password::new(password),
            ..Self::from_lookup(|name| std::env::var(name).ok())
        }
    }

    /// Reads variables through `lookup`; an empty one counts as not set, but for the status address.
    #[must_use]
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| lookup(name).filter(|v| !v.is_empty());
        let or = |name: &str, default: &str| set(name).unwrap_or_else(|| default.to_owned());
        let path = |name: &str, default: &str| absolute(Path::new(&or(name, default)));
        Self {
            http_addr: or("WEAVE_HTTP_ADDR", "127.0.0.1:6784"),
            status_addr: lookup("WEAVE_STATUS_ADDR").unwrap_or_else(|| "127.0.0.1:6782".to_owned()),
            port: set("WEAVE_PORT"),
            mtu: set("WEAVE_MTU"),
            password: Password::new(or(PASSWORD, "").into_bytes()),
            no_fastdp: set("WEAVE_NO_FASTDP").is_some(),
            docker_host: set("DOCKER_HOST"),
            docker: DockerEnv::from_lookup(&lookup),
            dns_address: set("DNS_ADDRESS"),
            dns_domain: set("DNS_DOMAIN"),
            docker_bridge: or("DOCKER_BRIDGE", "docker0"),
            foreground: set("WEAVE_FOREGROUND").is_some(),
            plugin_dir: path("WEAVE_PLUGIN_DIR", "/run/docker/plugins"),
            bridge: or("WEAVE_BRIDGE", "weave"),
            paths: Paths {
                data_dir: path("WEAVE_DATA_DIR", "/var/lib/weave"),
                run_dir: path("WEAVE_RUN_DIR", "/run/weave"),
                bpf_dir: path("WEAVE_BPF_DIR", "/sys/fs/bpf/weave"),
            },
        }
    }

    /// For asking the daemon.
    pub(super) fn client(&self) -> Client {
        Client::new(&self.http_addr, &self.paths.run_dir)
    }
}

/// The daemon changes its working directory.
pub(in crate::cli) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
