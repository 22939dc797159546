//! The routes of WeaveDNS (control.md 3.2). They do not exist when it is off.

use std::net::Ipv4Addr;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, put};
use serde::Serialize;

use super::params::Params;
use super::reply;
use super::routes::{Answer, internal, parse_ip};
use crate::api::backend::Backend;
use crate::dns::entry::{self, Id};
use crate::dns::names::Filter;

/// As `GET /name` shows it (control.md 2.1).
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Entry<'a> {
    #[serde(rename = "ContainerID")]
    container_id: &'a str,
    origin: u64,
    addr: Ipv4Addr,
    hostname: &'a str,
    version: u64,
    tombstone: i64,
}

impl<'a> Entry<'a> {
    fn of((id, state): &'a (Id, entry::State)) -> Self {
        Self {
            container_id: id.container(),
            origin: id.origin().as_u64(),
            addr: id.ip(),
            hostname: id.hostname(),
            version: state.version,
            tombstone: state.tombstone,
        }
    }
}

pub(super) fn routes<B: Backend>() -> Router<B> {
    Router::new()
        .route("/name", get(list::<B>).delete(remove_all::<B>))
        .route("/name/{id}", delete(remove_container::<B>))
        .route("/name/{id}/{ip}", put(add::<B>).delete(remove_address::<B>))
        .route("/domain", get(domain::<B>))
        .route("/dns-address", get(address::<B>))
        .route("/dns-address-port", get(address_and_port::<B>))
}

async fn add<B: Backend>(
    State(backend): State<B>,
    Path((id, ip)): Path<(String, String)>,
    params: Params,
) -> Answer {
    let (addr, name) = (
        parse_ip(&ip)?,
        params.first("fqdn").unwrap_or_default().to_owned(),
    );
    backend
        .add_name(id, addr, name, params.is_true("check-alive"))
        .await?;
    Ok(reply::no_content())
}

async fn remove_all<B: Backend>(State(backend): State<B>, params: Params) -> Answer {
    remove(backend, &params, Filter::default()).await
}

async fn remove_container<B: Backend>(
    State(backend): State<B>,
    Path(id): Path<String>,
    params: Params,
) -> Answer {
    let filter = Filter {
        container: Some(id),
        ..Filter::default()
    };
    remove(backend, &params, filter).await
}

async fn remove_address<B: Backend>(
    State(backend): State<B>,
    Path((id, ip)): Path<(String, String)>,
    params: Params,
) -> Answer {
    let filter = Filter {
        container: Some(id),
        addr: Some(parse_ip(&ip)?),
        name: None,
    };
    remove(backend, &params, filter).await
}

async fn remove<B: Backend>(backend: B, params: &Params, filter: Filter) -> Answer {
    let name = params.first("fqdn").filter(|name| !name.is_empty());
    let name = name.map(str::to_owned);
    backend.remove_names(Filter { name, ..filter }).await?;
    Ok(reply::no_content())
}

async fn list<B: Backend>(State(backend): State<B>, headers: HeaderMap) -> Answer {
    let wanted = |value: &header::HeaderValue| value.as_bytes() == b"application/json";
    if !headers.get_all(header::ACCEPT).iter().any(wanted) {
        return Ok(StatusCode::METHOD_NOT_ALLOWED.into_response());
    }
    let names = backend.names().await?;
    let entries: Vec<Entry<'_>> = names.iter().map(Entry::of).collect();
    let entries = (!entries.is_empty()).then_some(entries);
    Ok(match serde_json::to_string(&entries) {
        Ok(json) => reply::text(format!("{json}\n")),
        Err(e) => internal(e),
    })
}

async fn domain<B: Backend>(State(backend): State<B>) -> Response {
    match backend.dns() {
        Some(dns) => reply::text(dns.domain),
        None => reply::not_found().await,
    }
}

async fn address<B: Backend>(State(backend): State<B>) -> Response {
    match backend.dns().and_then(|dns| dns.address) {
        Some(address) => reply::text(address.ip().to_string()),
        None => reply::not_found().await,
    }
}

async fn address_and_port<B: Backend>(State(backend): State<B>) -> Response {
    match backend.dns().and_then(|dns| dns.address) {
        Some(address) => reply::text(address.to_string()),
        None => reply::not_found().await,
    }
}
