//! The options of Docker's network plugins (cli.md 5).

use std::path::{Path, PathBuf};

use super::flags::boolean;
use crate::cli::Env;
use crate::cli::env::absolute;

/// Below the folder where Docker looks for plugins.
const SOCKET: &str = "weave.sock";
const MESH_SOCKET: &str = "weavemesh.sock";

/// Options of `weave launch`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct PluginArgs {
    /// Network plugin for Docker: `docker run --net=weave` [default: on, with Docker]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    plugin: Option<bool>,
    /// Where Docker finds the driver `weave`; empty for none [default: /run/docker/plugins/weave.sock]
    #[arg(long, value_name = "PATH")]
    plugin_socket: Option<String>,
    /// Where Docker finds the drivers `weavemesh`; empty for none [default: /run/docker/plugins/weavemesh.sock]
    #[arg(long, value_name = "PATH")]
    plugin_mesh_socket: Option<String>,
    /// Be a managed plugin of Docker, for swarm mode
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    plugin_v2: Option<bool>,
    /// With --plugin-v2: route multicast in all its networks
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    plugin_v2_multicast: Option<bool>,
}

/// A plugin, as the daemon is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginOptions {
    /// Somebody wants it; else it is on because it mostly is.
    pub asked: bool,
    /// Of the driver `weave`, or of the managed plugin.
    pub socket: Option<PathBuf>,
    /// Of the drivers `weavemesh`.
    pub mesh_socket: Option<PathBuf>,
    /// As a managed plugin; is multicast routed?
    pub v2_multicast: Option<bool>,
}

impl PluginOptions {
    /// `None`: no plugin.
    pub(super) fn new(args: &PluginArgs, docker_api: &str, env: &Env) -> Option<Self> {
        let v2 = args.plugin_v2.unwrap_or(false);
        if !v2 && !args.plugin.unwrap_or(!docker_api.is_empty()) {
            return None;
        }
        let path = |given: &Option<String>, default: &str| match given.as_deref() {
            Some("") => None,
            Some(given) => Some(absolute(Path::new(given))),
            None => Some(env.plugin_dir.join(default)),
        };
        let options = Self {
            asked: v2 || args.plugin == Some(true),
            socket: path(&args.plugin_socket, SOCKET),
            mesh_socket: path(&args.plugin_mesh_socket, MESH_SOCKET).filter(|_| !v2),
            v2_multicast: v2.then(|| args.plugin_v2_multicast.unwrap_or(false)),
        };
        (options.socket.is_some() || options.mesh_socket.is_some()).then_some(options)
    }
}

/// A driver's name: that of its socket.
#[must_use]
pub fn driver_name(socket: Option<&Path>) -> String {
    let stem = socket.and_then(Path::file_stem);
    stem.map(|stem| stem.to_string_lossy().into_owned())
        .unwrap_or_default()
}
