//! Requests of the API, as the loop handles them.

use std::collections::BTreeMap;

use tokio::sync::oneshot;

use super::core::Daemon;
use super::event::{Answer, Request};
use crate::api::backend::BackendError;
use crate::ipam::address::Cidr;
use crate::ipam::adopt::Adopted;
use crate::ipam::operations::{ClaimOptions, IpamError, Reply, RequestId};
use crate::mesh::core::Input;

/// Claims of addresses found at start: nobody waits for the answer.
const NOBODY: RequestId = 0;

enum Waiter {
    Allocate(Answer<Cidr>),
    Adopt(Answer<Adopted>),
    Remove(Answer<Option<u32>>),
    Other(Answer<()>),
}

/// Requests that wait for IPAM.
#[derive(Default)]
pub struct Waiting(BTreeMap<RequestId, Waiter>);

/// All 64 digits, as Docker's events have it.
fn is_docker_id(id: &str) -> bool {
    id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit())
}

fn disabled() -> BackendError {
    BackendError::BadRequest("IP address allocation is disabled".to_owned())
}

fn bad(error: IpamError) -> BackendError {
    BackendError::BadRequest(error.to_string())
}

/// The client may have gone away meanwhile.
fn send<T>(answer: Answer<T>, result: Result<T, BackendError>) {
    let _: Result<(), _> = oneshot::Sender::send(answer, result);
}

impl Daemon {
    pub(super) fn on_request(&mut self, request: Request) {
        match request {
            Request::Allocate {
                request,
                id,
                subnet,
                is_container,
                answer,
            } => {
                self.waiting.0.insert(request, Waiter::Allocate(answer));
                self.with_ipam(|ipam, out| {
                    let subnet = subnet.unwrap_or(ipam.default_subnet());
                    ipam.allocate(out, request, &id, subnet, is_container);
                });
            }
            Request::Claim {
                request,
                id,
                cidr,
                is_container,
                no_error_on_unknown,
                answer,
            } => {
                self.waiting.0.insert(request, Waiter::Other(answer));
                let options = ClaimOptions {
                    is_container,
                    no_error_on_unknown,
                };
                self.with_ipam(|ipam, out| ipam.claim(out, request, &id, cidr, options));
            }
            Request::Prime { request, answer } => {
                self.waiting.0.insert(request, Waiter::Other(answer));
                self.with_ipam(|ipam, out| ipam.prime(out, request));
            }
            Request::Adopt {
                request,
                peer,
                answer,
            } => {
                self.waiting.0.insert(request, Waiter::Adopt(answer));
                self.with_ipam(|ipam, out| ipam.adopt(out, request, peer.as_deref()));
            }
            Request::Cancel(request) => {
                self.waiting.0.remove(&request);
                self.with_ipam(|ipam, _| ipam.cancel(request));
            }
            Request::Lookup(id, subnet, answer) => {
                send(
                    answer,
                    self.with_ipam(|ipam, _| ipam.lookup(&id, subnet))
                        .ok_or_else(disabled),
                );
            }
            Request::Owned(answer) => send(
                answer,
                self.with_ipam(|ipam, _| ipam.owned()).ok_or_else(disabled),
            ),
            Request::Free(id, addr, answer) => {
                let result = self.with_ipam(|ipam, _| ipam.free(&id, addr));
                send(answer, result.ok_or_else(disabled).and_then(|r| r.map_err(bad)));
            }
            Request::FreeAll(id, answer) => {
                let result = self.with_ipam(|ipam, _| ipam.free_all(&id));
                send(answer, result.ok_or_else(disabled).and_then(|r| r.map_err(bad)));
            }
            Request::Connect(peers, replace, answer) => {
                self.mesh_input(Input::Connect { peers, replace });
                send(answer, self.save_targets());
            }
            Request::Forget(peers, answer) => {
                self.mesh_input(Input::Forget { peers });
                send(answer, self.save_targets());
            }
            Request::Depart(answer) => {
                self.with_ipam(|ipam, out| ipam.depart(out));
                send(answer, Ok(()));
            }
            Request::RemovePeer {
                request,
                peer,
                force,
                answer,
            } => {
                if self.channels.ipam.is_none() {
                    return send(answer, Ok(None));
                }
                self.waiting.0.insert(request, Waiter::Remove(answer));
                self.with_ipam(|ipam, out| ipam.remove_peer(out, request, &peer, force));
            }
            Request::Report(answer) => {
                let report = self.report();
                send(answer, Ok(Box::new(report)));
            }
        }
    }

    fn save_targets(&mut self) -> Result<(), BackendError> {
        let targets: Vec<String> = self.mesh.targets().map(str::to_owned).collect();
        self.store.save_direct_peers(&targets).map_err(|error| {
            tracing::error!("{error}");
            BackendError::BadRequest(error.to_string())
        })
    }

    /// Claims what containers already have. Records of ours make this a no-op.
    pub(super) fn claim_found(&mut self, containers: Vec<(String, Vec<Cidr>)>) {
        for (id, cidrs) in containers {
            for cidr in cidrs {
                let options = ClaimOptions {
                    // Else what is recovered like this would never be given back (control.md 1.12).
                    is_container: is_docker_id(&id),
                    no_error_on_unknown: true,
                };
                self.with_ipam(|ipam, out| ipam.claim(out, NOBODY, &id, cidr, options));
            }
        }
    }

    /// Hands out what IPAM has answered.
    pub(super) fn answer(&mut self) {
        let Some(ipam) = &mut self.channels.ipam else {
            return;
        };
        for (request, reply) in ipam.take_replies() {
            match (self.waiting.0.remove(&request), reply) {
                (Some(Waiter::Allocate(answer)), Reply::Allocated(cidr)) => send(answer, Ok(cidr)),
                (Some(Waiter::Allocate(answer)), Reply::Failed(error)) => send(answer, Err(bad(error))),
                (Some(Waiter::Other(answer)), Reply::Failed(error)) => send(answer, Err(bad(error))),
                (Some(Waiter::Remove(answer)), Reply::Removed(count)) => send(answer, Ok(Some(count))),
                (Some(Waiter::Remove(answer)), Reply::Failed(error)) => send(answer, Err(bad(error))),
                (Some(Waiter::Remove(answer)), _) => send(answer, Err(BackendError::Cancelled)),
                (Some(Waiter::Adopt(answer)), Reply::Adopted(adopted)) => send(answer, Ok(adopted)),
                (Some(Waiter::Adopt(answer)), Reply::Failed(error)) => send(answer, Err(bad(error))),
                (Some(Waiter::Adopt(answer)), _) => send(answer, Err(BackendError::Cancelled)),
                (Some(Waiter::Other(answer)), Reply::Done) => send(answer, Ok(())),
                (Some(Waiter::Allocate(answer)), _) => send(answer, Err(BackendError::Cancelled)),
                (Some(Waiter::Other(answer)), _) => send(answer, Err(BackendError::Cancelled)),
                (None, Reply::Failed(error)) if request == NOBODY => {
                    tracing::warn!("address of an attached container: {error}");
                }
                (None, _) => {}
            }
        }
    }
}
