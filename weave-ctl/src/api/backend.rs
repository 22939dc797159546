//! What the HTTP API asks of the daemon. The daemon implements it; tests of the API use a double.

use std::future::Future;
use std::net::SocketAddr;

use super::report::Report;
use crate::dns::entry::{Id, State};
use crate::dns::names::Filter;
use crate::docker::attachment::Attachment;
use crate::ipam::address::{Address, Cidr};
use crate::ipam::adopt::Adopted;

/// A request that failed, with the text that the client gets in the body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// Answered with status 400.
    #[error("{0}")]
    BadRequest(String),
    /// The host did not do it: status 500.
    #[error("{0}")]
    Internal(String),
    /// Answered with status 200 and the body `cancelled` (control.md 1.10).
    #[error("cancelled")]
    Cancelled,
    /// The daemon is stopping: status 503.
    #[error("weave is stopping")]
    Stopping,
}

/// How much of a report is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Everything.
    All,
    /// Without what no metric is made from, and what grows with the square of the peers or with the containers of
    /// all: connections of other peers, routes, MAC addresses, names.
    Metrics,
}

/// Address owners with what they own, in order of allocation.
pub type OwnedList = Vec<(String, Vec<Cidr>)>;

/// WeaveDNS as its users need to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsFacts {
    /// The local domain, with its final dot.
    pub domain: String,
    /// Where questions are answered now; 0.0.0.0: at addresses of the weave bridge. `None`: nowhere.
    pub address: Option<SocketAddr>,
}

/// Everything the routes of control.md 3.2 need. Dropping a returned future cancels the request.
pub trait Backend: Clone + Send + Sync + 'static {
    /// Is IP allocation enabled? If not, its routes do not exist (404).
    fn ipam_enabled(&self) -> bool;
    /// `POST /ip/{id}[/{subnet}]`; `None` means the default subnet.
    fn allocate(
        &self,
        id: String,
        subnet: Option<Cidr>,
        check_alive: bool,
    ) -> impl Future<Output = Result<Cidr, BackendError>> + Send;
    /// `PUT /ip/{id}/{cidr}`. The route puts `Unable to claim: ` before the text of a `BadRequest`.
    fn claim(
        &self,
        id: String,
        cidr: Cidr,
        check_alive: bool,
        no_error_on_unknown: bool,
    ) -> impl Future<Output = Result<(), BackendError>> + Send;
    /// `GET /ip/{id}[/{subnet}]`: what the ID owns inside the subnet.
    fn lookup(
        &self,
        id: String,
        subnet: Option<Cidr>,
    ) -> impl Future<Output = Result<Vec<Cidr>, BackendError>> + Send;
    /// `GET /ip`.
    fn owned(&self) -> impl Future<Output = Result<OwnedList, BackendError>> + Send;
    /// `DELETE /ip/{id}/{ip}`. The route puts `Unable to free: ` before the text of a `BadRequest`.
    fn free(&self, id: String, addr: Address) -> impl Future<Output = Result<(), BackendError>> + Send;
    /// `DELETE /ip/{id}`.
    fn free_all(&self, id: String) -> impl Future<Output = Result<(), BackendError>> + Send;
    /// `GET /ring`: returns once a ring exists.
    fn prime(&self) -> impl Future<Output = Result<(), BackendError>> + Send;
    /// `POST /ipam/adopt`: gives up our address ring for the other side's in a conflict.
    fn adopt(&self, peer: Option<String>) -> impl Future<Output = Result<Adopted, BackendError>> + Send;
    /// `GET /ipinfo/defaultsubnet`.
    fn default_subnet(&self) -> Option<Cidr>;
    /// Where the Docker API proxy listens; `None`: it does not.
    fn proxy_addresses(&self) -> Option<Vec<String>>;
    /// WeaveDNS; if `None`, its routes do not exist (404).
    fn dns(&self) -> Option<DnsFacts>;
    /// `PUT /name/{id}/{ip}`. `check_alive`: taken back if Docker says that the container does not run.
    fn add_name(
        &self,
        id: String,
        addr: Address,
        name: String,
        check_alive: bool,
    ) -> impl Future<Output = Result<(), BackendError>> + Send;
    /// `DELETE /name[/{id}[/{ip}]]`: names registered here that agree with the filter.
    fn remove_names(&self, filter: Filter) -> impl Future<Output = Result<(), BackendError>> + Send;
    /// `GET /name`: all entries in storage order, tombstones included.
    fn names(&self) -> impl Future<Output = Result<Vec<(Id, State)>, BackendError>> + Send;
    /// `POST /connect`. One error line per bad peer; the good ones are applied.
    fn connect(
        &self,
        peers: Vec<String>,
        replace: bool,
    ) -> impl Future<Output = Result<(), BackendError>> + Send;
    /// `POST /forget`.
    fn forget(&self, peers: Vec<String>) -> impl Future<Output = Result<(), BackendError>> + Send;
    /// `DELETE /peer`: hand our address space over before we leave for good.
    fn depart(&self) -> impl Future<Output = Result<(), BackendError>> + Send;
    /// `DELETE /peer/{id}`: how many addresses were taken over; `None` without IPAM. `force`: also when the
    /// peer is still there.
    fn remove_peer(
        &self,
        peer: String,
        force: bool,
    ) -> impl Future<Output = Result<Option<u32>, BackendError>> + Send;
    /// `POST /expose/{cidr}`: gives the bridge an address. The route puts `unable to expose: ` before the text of
    /// an `Internal`.
    fn expose(&self, cidr: Cidr, masquerade: bool) -> impl Future<Output = Result<(), BackendError>> + Send;
    /// `DELETE /expose/{ip}/{len}`: takes it away; not having it is fine.
    fn hide(&self, cidr: Cidr) -> impl Future<Output = Result<(), BackendError>> + Send;
    /// `PUT /attachment/{id}`: a container of Docker was attached, and is to be again after a restart.
    fn attached(
        &self,
        id: String,
        attachment: Attachment,
    ) -> impl Future<Output = Result<(), BackendError>> + Send;
    /// `DELETE /attachment/{id}`: these addresses were taken from it.
    fn detached(
        &self,
        id: String,
        addrs: Vec<Address>,
    ) -> impl Future<Output = Result<(), BackendError>> + Send;
    /// Everything shown by `/status*`, `/report`, `/metrics`.
    fn report(&self, detail: Detail) -> impl Future<Output = Result<Report, BackendError>> + Send;
    /// May `/status` answer 200 yet?
    fn ready(&self) -> bool;
}
