//! The IPAM driver: pools and addresses of Docker's networks, from our allocator (control.md 4.9).

use std::net::Ipv4Addr;
use std::time::Duration;

use super::messages::{AddressGiven, PoolData, PoolGiven, Request};
use crate::api::backend::{Backend, BackendError};
use crate::ipam::address::{Address, Cidr};
use crate::ipam::operations::ANONYMOUS;

/// Before release 1.2 there was one pool.
const OLD_POOL: &str = "weavepool";
/// How long Docker, and everybody who wants something of it, may wait for an address.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where addresses come from: the allocator, as long as there is one. They are Docker's, not of containers that we
/// know.
pub trait Addresses: Clone + Send + Sync + 'static {
    /// Nobody allocates, and no interfaces are made.
    const AWAY: bool = false;
    /// For networks without a subnet of their own; `None`: there are none.
    fn default_subnet(&self) -> Option<Cidr>;
    /// That address.
    fn claim(&self, cidr: Cidr) -> impl Future<Output = Result<(), BackendError>> + Send;
    /// Any one of a range.
    fn allocate(&self, range: Cidr) -> impl Future<Output = Result<Cidr, BackendError>> + Send;
    /// Gives one back.
    fn release(&self, addr: Address) -> impl Future<Output = Result<(), BackendError>> + Send;
}

impl<B: Backend> Addresses for B {
    fn default_subnet(&self) -> Option<Cidr> {
        Backend::default_subnet(self)
    }

    async fn claim(&self, cidr: Cidr) -> Result<(), BackendError> {
        Backend::claim(self, ANONYMOUS.to_owned(), cidr, false, false).await
    }

    async fn allocate(&self, range: Cidr) -> Result<Cidr, BackendError> {
        Backend::allocate(self, ANONYMOUS.to_owned(), Some(range), false).await
    }

    async fn release(&self, addr: Address) -> Result<(), BackendError> {
        self.free_all(Ipv4Addr::from(addr).to_string()).await
    }
}

/// The subnet of a network, and the part of it to allocate from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    subnet: Cidr,
    range: Cidr,
}

impl Pool {
    /// From a request; `default` where it says nothing.
    ///
    /// # Errors
    /// If one is no subnet.
    pub fn of_request(request: &Request, default: Cidr) -> Result<Self, String> {
        if request.v6 {
            return Err("Weave networks have no IPv6 addresses".to_owned());
        }
        let parse = |text: &str, default| match text {
            "" => Ok(default),
            text => Cidr::parse_subnet(text).map_err(|e| e.to_string()),
        };
        let subnet = parse(&request.pool, default)?;
        let range = parse(&request.sub_pool, subnet)?;
        Ok(Self { subnet, range })
    }

    /// From [`Pool::id`].
    ///
    /// # Errors
    /// If it is none.
    pub fn of_id(id: &str, default: Cidr) -> Result<Self, String> {
        if id == OLD_POOL {
            return Ok(Self {
                subnet: default,
                range: default,
            });
        }
        let parts = id.strip_prefix("weave-").and_then(|rest| rest.split_once('-'));
        let parsed = parts.and_then(|(subnet, range)| {
            Some(Self {
                subnet: subnet.parse().ok()?,
                range: range.parse().ok()?,
            })
        });
        parsed.ok_or_else(|| format!("Unrecognized pool ID: {id}"))
    }

    /// What Docker remembers it by.
    #[must_use]
    pub fn id(&self) -> String {
        format!("weave-{}-{}", self.subnet, self.range)
    }

    /// The answer to `RequestPool`.
    #[must_use]
    pub fn given(&self) -> PoolGiven {
        PoolGiven {
            error: "",
            pool_id: self.id(),
            pool: self.subnet.to_string(),
            data: PoolData {
                gateway: self.subnet.to_string(),
            },
        }
    }
}

/// `RequestAddress`.
///
/// # Errors
/// If there is none, or not that one.
pub async fn request<A: Addresses>(backend: &A, request: &Request) -> Result<AddressGiven, String> {
    let pool = Pool::of_id(&request.pool_id, default_subnet(backend)?)?;
    let wanted = address(&request.address)?;
    let prefix_len = pool.subnet.prefix_len;
    let taking = async {
        match wanted {
            Some(addr) => {
                let addr = addr.into();
                let cidr = Cidr { addr, prefix_len };
                let claimed = backend.claim(cidr).await;
                claimed
                    .map(|()| cidr)
                    .map_err(|e| over_http("Unable to claim: ", &e))
            }
            None => {
                let allocated = backend.allocate(pool.range);
                let allocated = allocated.await.map_err(|e| over_http("", &e))?;
                Ok(Cidr {
                    prefix_len,
                    ..allocated
                })
            }
        }
    };
    let taken = tokio::time::timeout(PATIENCE, taking).await;
    let taken = taken.map_err(|_| {
        let seconds = PATIENCE.as_secs();
        format!(
            "no address of {} within {seconds} s; see 'weave status ipam'",
            pool.range
        )
    })??;
    Ok(AddressGiven {
        error: "",
        address: taken.to_string(),
        data: None,
    })
}

/// `ReleaseAddress`.
///
/// # Errors
/// If it was not given.
pub async fn release<A: Addresses>(backend: &A, request: &Request) -> Result<(), String> {
    let pool = Pool::of_id(&request.pool_id, default_subnet(backend)?)?;
    let released = address(&request.address)?;
    let placeholder = Ipv4Addr::from(pool.subnet.addr);
    match released {
        Some(addr) if addr != placeholder => {
            let freed = backend.release(addr.into()).await;
            freed.map_err(|e| over_http("", &e))
        }
        _ => Ok(()),
    }
}

/// The default subnet.
///
/// # Errors
/// If IP address allocation is off.
pub fn default_subnet<A: Addresses>(backend: &A) -> Result<Cidr, String> {
    let subnet = backend.default_subnet();
    subnet.ok_or_else(|| "IP address allocation is disabled".to_owned())
}

/// Docker may add the length of the subnet.
fn address(text: &str) -> Result<Option<Ipv4Addr>, String> {
    let bare = text.split('/').next().unwrap_or_default();
    match bare {
        "" => Ok(None),
        bare => bare
            .parse()
            .map(Some)
            .map_err(|_| format!("invalid IP address: {text}")),
    }
}

/// As the original, which asks over HTTP, passes it on.
fn over_http(before: &str, error: &BackendError) -> String {
    match error {
        BackendError::BadRequest(text) => format!("400 Bad Request: {before}{text}\n"),
        other => other.to_string(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    fn pool(pool: &str, sub_pool: &str) -> Result<String, String> {
        let request = Request {
            pool: pool.to_owned(),
            sub_pool: sub_pool.to_owned(),
            ..Request::default()
        };
        Pool::of_request(&request, cidr("10.32.0.0/12")).map(|pool| pool.id())
    }

    #[test]
    fn pools_and_their_ids() {
        for (given, sub, id) in [
            ("", "", "weave-10.32.0.0/12-10.32.0.0/12"),
            ("10.40.0.0/24", "", "weave-10.40.0.0/24-10.40.0.0/24"),
            (
                "10.40.0.0/24",
                "10.40.0.128/25",
                "weave-10.40.0.0/24-10.40.0.128/25",
            ),
        ] {
            assert_eq!(pool(given, sub).as_deref(), Ok(id));
            assert_eq!(Pool::of_id(id, cidr("10.0.0.0/8")).unwrap().id(), id);
        }
        assert!(pool("10.40.0.1/24", "").is_err());
        assert!(pool("fd00::/64", "").is_err());
        let old = Pool::of_id("weavepool", cidr("10.32.0.0/12")).unwrap();
        assert_eq!(old.range, cidr("10.32.0.0/12"));
        for bad in ["", "weave-", "weave-10.0.0.0/8", "weave-x-10.0.0.0/8", "other"] {
            let error = Pool::of_id(bad, cidr("10.32.0.0/12")).unwrap_err();
            assert_eq!(error, format!("Unrecognized pool ID: {bad}"));
        }
    }
}
