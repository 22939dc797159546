//! Requests of the API, as the loop handles them.

use std::collections::BTreeMap;

use tokio::sync::oneshot;

use super::core::Daemon;
use super::event::{Answer, Request};
use super::saver::Answering;
use crate::api::backend::BackendError;
use crate::ipam::address::Cidr;
use crate::ipam::adopt::Adopted;
use crate::ipam::allocator::Allocator;
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

/// Requests that wait.
#[derive(Default)]
pub struct Waiting {
    /// For IPAM.
    ipam: BTreeMap<RequestId, Waiter>,
    /// For the disk.
    answers: Vec<Answering>,
}

/// All 64 digits, as Docker's events have it.
pub(super) fn is_docker_id(id: &str) -> bool {
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

impl Waiting {
    /// Answers when all that has happened so far is on disk.
    fn answer<T: Send + 'static>(&mut self, answer: Answer<T>, result: Result<T, BackendError>) {
        self.answers.push(Box::new(move || send(answer, result)));
    }
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
                self.waiting.ipam.insert(request, Waiter::Allocate(answer));
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
                self.waiting.ipam.insert(request, Waiter::Other(answer));
                let options = ClaimOptions {
                    is_container,
                    no_error_on_unknown,
                };
                self.with_ipam(|ipam, out| ipam.claim(out, request, &id, cidr, options));
            }
            Request::Prime { request, answer } => {
                self.waiting.ipam.insert(request, Waiter::Other(answer));
                self.with_ipam(|ipam, out| ipam.prime(out, request));
            }
            Request::Adopt {
                request,
                peer,
                answer,
            } => {
                self.waiting.ipam.insert(request, Waiter::Adopt(answer));
                self.with_ipam(|ipam, out| ipam.adopt(out, request, peer.as_deref()));
            }
            Request::Cancel(request) => {
                self.waiting.ipam.remove(&request);
                self.with_ipam(|ipam, _| ipam.cancel(request));
            }
            Request::Lookup(id, subnet, answer) => {
                let found = self.with_ipam(|ipam, _| ipam.lookup(&id, subnet));
                self.waiting.answer(answer, found.ok_or_else(disabled));
            }
            Request::Owned(answer) => {
                let owned = self.with_ipam(|ipam, _| ipam.owned());
                self.waiting.answer(answer, owned.ok_or_else(disabled));
            }
            Request::Free(id, addr, answer) => {
                let result = self.with_ipam(|ipam, _| ipam.free(&id, addr));
                let result = result.ok_or_else(disabled).and_then(|r| r.map_err(bad));
                self.waiting.answer(answer, result);
            }
            Request::FreeAll(id, answer) => {
                let result = self.with_ipam(|ipam, _| ipam.free_all(&id));
                let result = result.ok_or_else(disabled).and_then(|r| r.map_err(bad));
                self.waiting.answer(answer, result);
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
                self.waiting.answer(answer, Ok(()));
            }
            Request::RemovePeer {
                request,
                peer,
                force,
                answer,
            } => {
                if self.channels.ipam.is_none() {
                    return self.waiting.answer(answer, Ok(None));
                }
                self.waiting.ipam.insert(request, Waiter::Remove(answer));
                self.with_ipam(|ipam, out| ipam.remove_peer(out, request, &peer, force));
            }
            Request::SaveExposed(exposed, answer) => {
                let saved = self.store.save_exposed(&exposed);
                send(answer, saved.map_err(|e| BackendError::Internal(e.to_string())));
            }
            Request::SaveAttachment(id, attachment, answer) => {
                let saved = self.store.save_attachment(&id, attachment.as_deref());
                send(answer, saved.map_err(|e| BackendError::Internal(e.to_string())));
            }
            Request::AddName {
                id,
                addr,
                name,
                answer,
            } => {
                let result = self.add_name(&id, addr, &name);
                send(answer, result);
            }
            Request::RemoveNames(filter, answer) => {
                self.with_names(|names, out| names.remove(out, &filter));
                self.feed_zone();
                send(answer, Ok(()));
            }
            Request::Names(answer) => {
                let all = self
                    .with_names(|names, _| names.entries().map(|(id, state)| (id.clone(), state)).collect());
                send(answer, Ok(all.unwrap_or_default()));
            }
            Request::Report(detail, answer) => {
                let report = self.report(detail);
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

    /// The answers to all that has been asked and done so far, for when it is on disk.
    pub(super) fn answers(&mut self) -> Vec<Answering> {
        let replies = self.channels.ipam.as_mut().map(Allocator::take_replies);
        let waiting = &mut self.waiting;
        for (request, reply) in replies.into_iter().flatten() {
            match (waiting.ipam.remove(&request), reply) {
                (Some(Waiter::Allocate(answer)), Reply::Allocated(cidr)) => waiting.answer(answer, Ok(cidr)),
                (Some(Waiter::Allocate(answer)), Reply::Failed(error)) => {
                    waiting.answer(answer, Err(bad(error)));
                }
                (Some(Waiter::Other(answer)), Reply::Failed(error)) => {
                    waiting.answer(answer, Err(bad(error)))
                }
                (Some(Waiter::Remove(answer)), Reply::Removed(count)) => {
                    waiting.answer(answer, Ok(Some(count)))
                }
                (Some(Waiter::Remove(answer)), Reply::Failed(error)) => {
                    waiting.answer(answer, Err(bad(error)));
                }
                (Some(Waiter::Remove(answer)), _) => waiting.answer(answer, Err(BackendError::Cancelled)),
                (Some(Waiter::Adopt(answer)), Reply::Adopted(adopted)) => waiting.answer(answer, Ok(adopted)),
                (Some(Waiter::Adopt(answer)), Reply::Failed(error)) => {
                    waiting.answer(answer, Err(bad(error)));
                }
                (Some(Waiter::Adopt(answer)), _) => waiting.answer(answer, Err(BackendError::Cancelled)),
                (Some(Waiter::Other(answer)), Reply::Done) => waiting.answer(answer, Ok(())),
                (Some(Waiter::Allocate(answer)), _) => waiting.answer(answer, Err(BackendError::Cancelled)),
                (Some(Waiter::Other(answer)), _) => waiting.answer(answer, Err(BackendError::Cancelled)),
                // Docker has it from us, for a container on a network of our plugin.
                (None, Reply::Failed(IpamError::InUse(_))) if request == NOBODY => {}
                (None, Reply::Failed(error)) if request == NOBODY => {
                    tracing::warn!("address of an attached container: {error}");
                }
                (None, _) => {}
            }
        }
        std::mem::take(&mut waiting.answers)
    }
}
