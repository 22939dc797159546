//! Names in WeaveDNS, as commands add and remove them.

use std::net::Ipv4Addr;

use super::Context;
use super::client::{Client, segment};
use super::owner::check_alive;
use crate::net::container::Container;

/// Whose names these are.
pub(super) struct Names {
    client: Client,
    path: String,
    in_docker: bool,
}

impl Names {
    /// A container's.
    pub fn of(context: &Context, container: &Container) -> Self {
        Self::new(context, &container.id, container.docker.is_some())
    }

    /// Those of `weave:extern` or `weave:expose`.
    pub fn of_no_container(context: &Context, id: &str) -> Self {
        Self::new(context, id, false)
    }

    fn new(context: &Context, id: &str, in_docker: bool) -> Self {
        Self {
            client: context.env.client(),
            path: format!("/name/{}", segment(id)),
            in_docker,
        }
    }

    /// DNS may be off, or refuse: neither is worth a word (cli.md 4.8, 4.11).
    pub async fn add(&self, address: Ipv4Addr, fqdn: &str) {
        let mut form = vec![("fqdn", fqdn)];
        form.extend(check_alive(self.in_docker));
        let path = format!("{}/{address}", self.path);
        let _ = self.client.ask("PUT", &path, &form).await;
    }

    /// All names at that address if none is given. Errors are ignored likewise.
    pub async fn remove(&self, address: Ipv4Addr, fqdn: Option<&str>) {
        let query = fqdn.map_or_else(String::new, |fqdn| format!("?fqdn={}", segment(fqdn)));
        let path = format!("{}/{address}{query}", self.path);
        let _ = self.client.ask("DELETE", &path, &[]).await;
    }
}
