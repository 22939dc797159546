//! `/attachment/{id}`: what `weave attach` and `weave detach` have done to a container of Docker, so that it is
//! attached again when it starts again.

use std::net::Ipv4Addr;

use axum::Router;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::put;

use super::params::Params;
use super::reply;
use crate::api::backend::{Backend, BackendError};
use crate::docker::attachment::{Attachment, Kept};
use crate::ipam::address::Address;

type Answer = Result<Response, BackendError>;

pub(super) fn routes<B: Backend>() -> Router<B> {
    Router::new().route("/attachment/{id}", put(attached::<B>).delete(detached::<B>))
}

async fn attached<B: Backend>(State(backend): State<B>, Path(id): Path<String>, params: Params) -> Answer {
    let bad = |text: &str| BackendError::BadRequest(format!("invalid address: {text}"));
    let words = |name| params.first(name).unwrap_or_default().split_whitespace();
    let addresses: Vec<Kept> = words("addr")
        .map(|text| Kept::parse(text).ok_or_else(|| bad(text)))
        .collect::<Result<_, _>>()?;
    let attachment = Attachment {
        addresses,
        multicast_route: params.is_true("multicast-route"),
        dns: params.is_true("dns"),
        rewrite_hosts: params.is_true("rewrite-hosts"),
        add_hosts: words("add-host").map(str::to_owned).collect(),
    };
    backend.attached(id, attachment).await?;
    Ok(reply::no_content())
}

async fn detached<B: Backend>(State(backend): State<B>, Path(id): Path<String>, params: Params) -> Answer {
    let given = params.first("addr").unwrap_or_default().split_whitespace();
    let addrs: Vec<Address> = given
        .filter_map(|text| Some(text.parse::<Ipv4Addr>().ok()?.into()))
        .collect();
    backend.detached(id, addrs).await?;
    Ok(reply::no_content())
}
