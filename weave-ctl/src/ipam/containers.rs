//! What the life of containers means for their addresses (control.md 1.12).

use std::collections::HashSet;
use std::time::Duration;

use tracing::info;

use super::allocator::Allocator;
use crate::mesh::Now;
use crate::mesh::channel::Outlet;

/// How long a dead container keeps its addresses, so that it finds them again when quickly restarted.
const GRACE: Duration = Duration::from_secs(30);

impl Allocator {
    /// Docker: the container has died. It keeps its addresses for 30 s.
    pub fn container_died(&mut self, out: &dyn Outlet, id: &str) {
        if self.owned.is_container(id) {
            self.dead.insert(id.to_owned(), out.now());
        }
        self.cancel_pending(|pending| pending == id);
    }

    /// Docker: the container runs.
    pub fn container_started(&mut self, id: &str) {
        self.dead.remove(id);
    }

    /// Docker: the container is gone for good.
    pub fn container_destroyed(&mut self, id: &str) {
        self.forget_lost(id);
        if self.owned.is_container(id) {
            // It owns something, so this cannot fail.
            let _ = self.free_all(id);
        }
    }

    /// At start, with Docker: releases what belongs to containers that do not run.
    pub fn retain_containers(&mut self, running: &[String]) {
        for id in self.containers_except(running) {
            info!(
                "[allocator {}] releasing addresses of {id}, which does not run",
                self.config.name
            );
            let _ = self.free_all(&id);
        }
    }

    /// After a time without Docker: those that do not run any more died in the meantime. They keep
    /// their addresses for as long as any dead container, for Docker itself may have restarted and be
    /// about to start them again.
    pub fn containers_died_except(&mut self, out: &dyn Outlet, running: &[String]) {
        for id in self.containers_except(running) {
            if !self.dead.contains_key(&id) {
                self.container_died(out, &id);
            }
        }
    }

    fn containers_except(&self, running: &[String]) -> Vec<String> {
        let running: HashSet<&str> = running.iter().map(String::as_str).collect();
        let records = self.owned.records();
        let gone = records.filter(|r| r.is_container && !running.contains(r.id.as_str()));
        gone.map(|r| r.id.clone()).collect()
    }

    pub(super) fn release_dead(&mut self, now: Now) {
        let expired = self.dead.extract_if(|_, died| now.saturating_sub(*died) > GRACE);
        let expired: Vec<String> = expired.map(|(id, _)| id).collect();
        for id in expired {
            let _ = self.free_all(&id);
        }
    }
}
