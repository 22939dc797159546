//! Stands in for the daemon while that is away, so that Docker neither waits nor fails where it need not (control.md
//! 9, 23): what ends is ended, what begins is refused with the reason.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ipam::Addresses;
use crate::api::backend::BackendError;
use crate::ipam::address::{Address, Cidr};

/// In the data directory: addresses that Docker gave back meanwhile, one a line.
pub const RELEASED: &str = "weave-released";
/// What Docker is told.
pub const AWAY: &str = "weave is not running on this host; start it with 'weave launch'";

/// Addresses while nobody allocates.
#[derive(Clone, Debug)]
pub struct Away(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    subnet: Option<Cidr>,
    released: PathBuf,
}

impl Away {
    /// `subnet`: the default one, without IPAM none.
    #[must_use]
    pub fn new(subnet: Option<Cidr>, data_dir: &Path) -> Self {
        Self(Arc::new(Inner {
            subnet,
            released: data_dir.join(RELEASED),
        }))
    }
}

fn away<T>() -> Result<T, BackendError> {
    Err(BackendError::Internal(AWAY.to_owned()))
}

impl Addresses for Away {
    const AWAY: bool = true;

    fn default_subnet(&self) -> Option<Cidr> {
        self.0.subnet
    }

    async fn claim(&self, _: Cidr) -> Result<(), BackendError> {
        away()
    }

    async fn allocate(&self, _: Cidr) -> Result<Cidr, BackendError> {
        away()
    }

    /// Written down for the daemon.
    async fn release(&self, addr: Address) -> Result<(), BackendError> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.0.released);
        let written = file.and_then(|mut file| writeln!(file, "{}", Ipv4Addr::from(addr)));
        written
            .map_err(|e| BackendError::Internal(format!("cannot write {}: {e}", self.0.released.display())))
    }
}

/// Takes what was written down.
#[must_use]
pub fn take_released(data_dir: &Path) -> Vec<Address> {
    let path = data_dir.join(RELEASED);
    let Ok(text) = std::fs::read_to_string(&path) else {
        return Vec::new();
    };
    if let Err(error) = std::fs::remove_file(&path) {
        tracing::warn!("cannot remove {}: {error}", path.display());
    }
    let addrs = text.lines().filter_map(|line| line.parse::<Ipv4Addr>().ok());
    addrs.map(Into::into).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_given_back_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let away = Away::new(Some("10.32.0.0/12".parse().unwrap()), dir.path());
        let addr = |text: &str| Address::from(text.parse::<Ipv4Addr>().unwrap());
        assert!(take_released(dir.path()).is_empty());
        away.release(addr("10.32.0.1")).await.unwrap();
        away.release(addr("10.32.0.2")).await.unwrap();
        assert_eq!(take_released(dir.path()), [addr("10.32.0.1"), addr("10.32.0.2")]);
        assert!(take_released(dir.path()).is_empty());
        let refused = away.allocate("10.32.0.0/12".parse().unwrap()).await;
        assert_eq!(refused.unwrap_err().to_string(), AWAY);
    }
}
