//! Addresses of the bridge: kept, restored at launch, and changed on request (control.md 7.4).

use std::sync::Arc;

use tokio::sync::Mutex;

use super::event::{Event, Events, Request};
use crate::api::backend::BackendError;
use crate::ipam::address::Cidr;
use crate::net::expose::{self, Bridges, Exposed};
use crate::net::{NetError, Netlink};

/// What is exposed, and the way to the kernel. Clones share everything.
#[derive(Clone)]
pub struct Exposure {
    nl: Netlink,
    bridges: Arc<Bridges>,
    list: Arc<Mutex<Vec<Exposed>>>,
}

impl Exposure {
    /// Brings the host to what was exposed before. What cannot be done is only logged: the daemon can do without.
    pub async fn restore(nl: Netlink, bridges: Bridges, list: Vec<Exposed>) -> Self {
        for exposed in &list {
            if let Err(error) = expose::add_address(&nl, &bridges.weave, exposed.cidr).await {
                tracing::warn!("cannot expose {} again: {error}", exposed.cidr);
            }
        }
        if !list.is_empty()
            && let Err(error) = expose::apply(nl.ns(), &bridges, &list).await
        {
            tracing::warn!("the host's addresses on weave have no rules: {error}");
        }
        Self {
            nl,
            bridges: Arc::new(bridges),
            list: Arc::new(Mutex::new(list)),
        }
    }

    /// Gives the bridge an address with its rules. Repeating is harmless, but for another choice of masquerading.
    ///
    /// # Errors
    /// What the kernel, or the disk, did not do; the address is then as it was.
    pub async fn expose(&self, exposed: Exposed, events: &Events) -> Result<(), BackendError> {
        let mut list = self.list.lock().await;
        let mut new: Vec<Exposed> = list.clone();
        match new.iter_mut().find(|e| e.cidr == exposed.cidr) {
            Some(known) => *known = exposed,
            None => new.push(exposed),
        }
        // First what fails where a program is missing.
        self.apply(&new).await?;
        if let Err(error) = expose::add_address(&self.nl, &self.bridges.weave, exposed.cidr).await {
            // The first error is the one to tell.
            let _ = self.apply(&list).await;
            return Err(internal(error));
        }
        save(&new, events).await?;
        *list = new;
        Ok(())
    }

    /// Takes an address from the bridge, and the rules of its subnet unless another address needs them.
    ///
    /// # Errors
    /// As [`Exposure::expose`].
    pub async fn hide(&self, cidr: Cidr, events: &Events) -> Result<(), BackendError> {
        let mut list = self.list.lock().await;
        let new: Vec<Exposed> = list.iter().copied().filter(|e| e.cidr != cidr).collect();
        let hidden = expose::remove_address(&self.nl, &self.bridges.weave, cidr).await;
        hidden.map_err(internal)?;
        if new != *list {
            self.apply(&new).await?;
            save(&new, events).await?;
            *list = new;
        }
        Ok(())
    }

    async fn apply(&self, list: &[Exposed]) -> Result<(), BackendError> {
        let applied = expose::apply(self.nl.ns(), &self.bridges, list).await;
        applied.map_err(internal)
    }
}

fn internal(error: NetError) -> BackendError {
    BackendError::Internal(error.to_string())
}

/// The loop has the disk.
async fn save(list: &[Exposed], events: &Events) -> Result<(), BackendError> {
    let (answer, saved) = tokio::sync::oneshot::channel();
    let request = Request::SaveExposed(list.to_vec(), answer);
    events.send(Event::Request(request)).await;
    saved.await.unwrap_or(Err(BackendError::Stopping))
}
