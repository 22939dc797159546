//! Which containers of Docker were attached while they ran, and how: kept on disk, so that they are attached again
//! when they start again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::Mutex;

use super::event::{Event, Events, Request};
use crate::api::backend::BackendError;
use crate::docker::attachment::Attachment;
use crate::ipam::address::Address;

/// Most containers that are remembered.
const MAX_CONTAINERS: usize = 65_536;

/// All of them, by the container's full ID. Clones share everything.
#[derive(Clone)]
pub struct Attachments {
    events: Events,
    all: Arc<Mutex<BTreeMap<String, Attachment>>>,
}

impl Attachments {
    /// With those of an earlier run.
    #[must_use]
    pub fn restore(all: BTreeMap<String, Attachment>, events: Events) -> Self {
        Self {
            events,
            all: Arc::new(Mutex::new(all)),
        }
    }

    /// How a container was attached, if it was.
    pub async fn get(&self, id: &str) -> Option<Attachment> {
        self.all.lock().await.get(id).cloned()
    }

    /// It was attached like this now.
    ///
    /// # Errors
    /// If that cannot be kept; then it was not. So for all of these.
    pub async fn remember(&self, id: String, attachment: Attachment) -> Result<(), BackendError> {
        let mut all = self.all.lock().await;
        let known = all.get(&id).cloned();
        if known.is_none() && all.len() >= MAX_CONTAINERS {
            let text = format!("{MAX_CONTAINERS} attached containers are remembered already");
            return Err(BackendError::BadRequest(text));
        }
        let joined = match &known {
            Some(known) => known.clone().joined(attachment),
            None => attachment,
        };
        if known.as_ref() != Some(&joined) {
            self.save(&id, Some(joined.clone())).await?;
            all.insert(id, joined);
        }
        Ok(())
    }

    /// These addresses were taken from it.
    pub async fn detached(&self, id: &str, addrs: &[Address]) -> Result<(), BackendError> {
        let mut all = self.all.lock().await;
        let Some(known) = all.get(id).cloned() else {
            return Ok(());
        };
        let left = known.without(addrs);
        self.save(id, left.clone()).await?;
        match left {
            Some(left) => all.insert(id.to_owned(), left),
            None => all.remove(id),
        };
        Ok(())
    }

    /// There is no such container any more.
    pub async fn forget(&self, id: &str) -> Result<(), BackendError> {
        let mut all = self.all.lock().await;
        if all.contains_key(id) {
            self.save(id, None).await?;
            all.remove(id);
        }
        Ok(())
    }

    /// There are these containers, and no other.
    pub async fn retain(&self, ids: &BTreeSet<&str>) -> Result<(), BackendError> {
        let gone: Vec<String> = {
            let all = self.all.lock().await;
            let gone = all.keys().filter(|id| !ids.contains(id.as_str()));
            gone.cloned().collect()
        };
        for id in gone {
            self.forget(&id).await?;
        }
        Ok(())
    }

    /// The loop has the disk.
    async fn save(&self, id: &str, attachment: Option<Attachment>) -> Result<(), BackendError> {
        let (answer, saved) = tokio::sync::oneshot::channel();
        let request = Request::SaveAttachment(id.to_owned(), attachment.map(Box::new), answer);
        self.events.send(Event::Request(request)).await;
        saved.await.unwrap_or(Err(BackendError::Stopping))
    }
}
