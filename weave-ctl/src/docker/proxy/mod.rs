//! The proxy in front of Docker's API (control.md 4.2 to 4.8): containers that are started through it are attached.
//!
//! `serve` takes connections, `forward` passes requests on through hyper, `intercept` changes those few that matter,
//! with `create`, `start`, `exec`, `inspect`, `hostname` and `rules`, which are pure.

mod answer;
mod create;
mod exec;
mod forward;
mod hijack;
mod hostname;
mod inspect;
mod intercept;
mod listen;
mod object;
mod place;
mod route;
pub mod rules;
mod serve;
mod shared;
mod start;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod upstream;

use std::net::IpAddr;
use std::path::Path;

use futures_util::future::BoxFuture;
use hyper::StatusCode;

pub use hostname::{Dns, HostnameRules};
pub use inspect::Seen;
pub use listen::{Inherited, ListenError, Listening};
pub use place::{InvalidPlace, Place};

use super::endpoint::Endpoint;
use super::keeper::Keeper;
use super::wait_folders::WaitFolders;

/// How containers are changed.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Attach also those that do not ask for it.
    pub default_ipalloc: bool,
    /// With a route for multicast.
    pub multicast: bool,
    /// WeaveDNS; `None`: leave their names and resolvers alone.
    pub dns: Option<Dns>,
    /// Their host names.
    pub hostname: HostnameRules,
    /// Of the wait helper, on the host.
    pub folders: WaitFolders,
    /// Tell the address on the network instead of Docker's.
    pub rewrite_inspect: bool,
}

impl Settings {
    /// What is mounted into containers that are attached.
    fn folder(&self) -> &Path {
        match self.multicast {
            true => &self.folders.wait,
            false => &self.folders.wait_nomcast,
        }
    }
}

/// The first address on the network of the container with that main process.
pub type Look = Box<dyn Fn(u32) -> BoxFuture<'static, Option<Seen>> + Send + Sync>;

/// Where containers can ask WeaveDNS now.
pub type Nameserver = Box<dyn Fn() -> BoxFuture<'static, Option<IpAddr>> + Send + Sync>;

/// What serves a connection.
pub struct Proxy {
    /// Docker.
    pub docker: Endpoint,
    /// How containers are changed; but for the address of WeaveDNS.
    pub settings: Settings,
    /// That address.
    pub nameserver: Nameserver,
    /// Attaches them.
    pub keeper: Keeper,
    /// For `rewrite_inspect`.
    pub look: Look,
}

/// Why a request is not passed on, or its answer not given; the text is for the client.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Docker does not know the container.
    #[error("No such container: {0}")]
    NoContainer(String),
    /// Docker does not know the image.
    #[error("No such image: {0}")]
    NoImage(String),
    /// Neither the request nor the image says what to run.
    #[error("No command specified")]
    NoCommand,
    /// The body has something unexpected.
    #[error(transparent)]
    WrongType(#[from] object::WrongType),
    /// The body, or Docker's answer to a question of ours, makes no sense.
    #[error("cannot read JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The body is longer than any honest one.
    #[error("the body is longer than {0} bytes")]
    TooLong(usize),
    /// The body has not come completely.
    #[error("the body is not complete: {0}")]
    Body(String),
    /// Docker is not there.
    #[error("Could not connect to target")]
    Connect(String),
    /// Docker has not answered.
    #[error("Could not make request to target: {0}")]
    Request(String),
    /// Docker has answered a question of ours with an error, or the container could not be attached.
    #[error("{0}")]
    Other(String),
}

impl Failure {
    fn status(&self) -> StatusCode {
        match self {
            Self::NoContainer(_) | Self::NoImage(_) => StatusCode::NOT_FOUND,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}
