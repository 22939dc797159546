//! The routes of control.md 3.2, over whatever implements [`Backend`].

use std::net::Ipv4Addr;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, post};
use serde::Serialize;

use super::params::Params;
use super::{attachments, expose, names, reply};
use crate::api::backend::{Backend, BackendError, Detail};
use crate::api::status::Page;
use crate::api::{metrics, template};
use crate::ipam::address::{Address, Cidr};
use crate::ipam::adopt::Adopted;

/// Longest form accepted, in bytes.
const BODY_LIMIT: usize = 64 * 1024;

pub(super) type Answer = Result<Response, BackendError>;

/// Every route: for the control listener.
pub fn control_router<B: Backend>(backend: B) -> Router {
    let mut router = status_routes::<B>()
        .route("/connect", post(connect::<B>))
        .route("/forget", post(forget::<B>))
        .route("/peer", delete(depart::<B>))
        .route("/peer/{id}", delete(remove_peer::<B>))
        .route("/proxyaddrs", get(proxy_addresses::<B>))
        .merge(expose::routes())
        .merge(attachments::routes());
    if backend.ipam_enabled() {
        router = router.merge(ipam_routes());
    }
    if backend.dns().is_some() {
        router = router.merge(names::routes());
    }
    finish(router, backend)
}

/// `/report`, `/status*` and `/metrics`: for the status listener.
pub fn status_router<B: Backend>(backend: B) -> Router {
    finish(status_routes(), backend)
}

/// `/metrics` alone: for the metrics listener.
pub fn metrics_router<B: Backend>(backend: B) -> Router {
    finish(Router::new().route("/metrics", get(metrics::<B>)), backend)
}

fn finish<B: Backend>(router: Router<B>, backend: B) -> Router {
    router
        .route_layer(from_fn(not_head))
        .fallback(reply::not_found)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(backend)
}

/// HEAD is another method than GET (control.md 3.1): what blocks would block, without an answer to show for it.
async fn not_head(request: Request, next: Next) -> Response {
    if request.method() == Method::HEAD {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }
    next.run(request).await
}

fn status_routes<B: Backend>() -> Router<B> {
    let mut router = Router::new()
        .route("/report", get(report::<B>))
        .route("/metrics", get(metrics::<B>));
    for (path, page) in Page::ALL {
        let answer = move |State(backend): State<B>, headers: HeaderMap, params: Params| async move {
            status(backend, page, wants_json(&headers), params.is_true("aligned")).await
        };
        router = router.route(path, get(answer));
    }
    router
}

fn ipam_routes<B: Backend>() -> Router<B> {
    Router::new()
        .route("/ip", get(owned::<B>))
        .route(
            "/ip/{id}",
            get(lookup::<B>).post(allocate::<B>).delete(free_all::<B>),
        )
        .route("/ip/{id}/{ip}", delete(free::<B>))
        .route(
            "/ip/{id}/{ip}/{len}",
            get(lookup_in::<B>).post(allocate_in::<B>).put(claim::<B>),
        )
        .route("/ring", get(prime::<B>))
        .route("/ipam/adopt", post(adopt::<B>))
        .route("/ipinfo/defaultsubnet", get(default_subnet::<B>))
        .route("/ipinfo/tracker", get(|| async { reply::text("\n") }))
}

async fn allocate<B: Backend>(State(backend): State<B>, Path(id): Path<String>, params: Params) -> Answer {
    let cidr = backend.allocate(id, None, params.is_true("check-alive")).await?;
    Ok(reply::text(cidr.to_string()))
}

async fn allocate_in<B: Backend>(
    State(backend): State<B>,
    Path((id, ip, len)): Path<(String, String, String)>,
    params: Params,
) -> Answer {
    let subnet = subnet(&ip, &len)?;
    let cidr = backend
        .allocate(id, Some(subnet), params.is_true("check-alive"))
        .await?;
    Ok(reply::text(cidr.to_string()))
}

async fn claim<B: Backend>(
    State(backend): State<B>,
    Path((id, ip, len)): Path<(String, String, String)>,
    params: Params,
) -> Answer {
    let cidr: Cidr = format!("{ip}/{len}").parse().map_err(bad_request)?;
    let (check_alive, lenient) = (params.is_true("check-alive"), params.is_true("noErrorOnUnknown"));
    backend
        .claim(id, cidr, check_alive, lenient)
        .await
        .map_err(|e| prefixed("Unable to claim: ", e))?;
    Ok(reply::no_content())
}

async fn lookup<B: Backend>(State(backend): State<B>, Path(id): Path<String>) -> Answer {
    Ok(cidrs(&backend.lookup(id, None).await?))
}

async fn lookup_in<B: Backend>(
    State(backend): State<B>,
    Path((id, ip, len)): Path<(String, String, String)>,
) -> Answer {
    let subnet = subnet(&ip, &len)?;
    Ok(cidrs(&backend.lookup(id, Some(subnet)).await?))
}

async fn owned<B: Backend>(State(backend): State<B>) -> Answer {
    #[derive(Serialize)]
    struct Owner {
        containerid: String,
        addrs: Vec<Cidr>,
    }
    #[derive(Serialize)]
    struct Body {
        owned: Option<Vec<Owner>>,
    }
    let owners: Vec<Owner> = backend
        .owned()
        .await?
        .into_iter()
        .map(|(containerid, addrs)| Owner { containerid, addrs })
        .collect();
    let body = Body {
        owned: (!owners.is_empty()).then_some(owners),
    };
    Ok(match serde_json::to_string(&body) {
        Ok(json) => reply::body(StatusCode::OK, reply::JSON, format!("{json}\n")),
        Err(e) => internal(e),
    })
}

async fn proxy_addresses<B: Backend>(State(backend): State<B>) -> Response {
    match backend.proxy_addresses() {
        Some(addresses) => reply::text(addresses.iter().map(|a| format!("{a}\n")).collect::<String>()),
        None => reply::not_found().await,
    }
}

async fn free<B: Backend>(State(backend): State<B>, Path((id, ip)): Path<(String, String)>) -> Answer {
    let addr = parse_ip(&ip)?;
    backend
        .free(id, addr)
        .await
        .map_err(|e| prefixed("Unable to free: ", e))?;
    Ok(reply::no_content())
}

async fn free_all<B: Backend>(State(backend): State<B>, Path(id): Path<String>) -> Answer {
    backend.free_all(id).await?;
    Ok(reply::no_content())
}

async fn prime<B: Backend>(State(backend): State<B>) -> Answer {
    backend.prime().await?;
    Ok(reply::text(""))
}

/// One line for each address in use here: `kept`, `lost` or `waiting`, whose it is, and the address.
async fn adopt<B: Backend>(State(backend): State<B>, params: Params) -> Answer {
    let adopted = backend.adopt(params.all("peer").into_iter().next()).await?;
    let Adopted { kept, lost, waiting } = adopted;
    let lists = [("kept", kept), ("lost", lost), ("waiting", waiting)];
    let lines = lists.into_iter().flat_map(|(what, list)| {
        list.into_iter()
            .map(move |(id, cidr)| format!("{what} {id} {cidr}\n"))
    });
    Ok(reply::text(lines.collect::<String>()))
}

async fn default_subnet<B: Backend>(State(backend): State<B>) -> Response {
    match backend.default_subnet() {
        Some(subnet) => reply::text(subnet.to_string()),
        None => reply::not_found().await,
    }
}

async fn connect<B: Backend>(State(backend): State<B>, params: Params) -> Answer {
    let replace = params.is_true("replace");
    backend.connect(params.all("peer"), replace).await?;
    Ok(reply::text(""))
}

async fn forget<B: Backend>(State(backend): State<B>, params: Params) -> Answer {
    backend.forget(params.all("peer")).await?;
    Ok(reply::text(""))
}

async fn depart<B: Backend>(State(backend): State<B>) -> Answer {
    backend.depart().await?;
    Ok(reply::no_content())
}

async fn remove_peer<B: Backend>(
    State(backend): State<B>,
    Path(peer): Path<String>,
    params: Params,
) -> Answer {
    Ok(
        match backend.remove_peer(peer.clone(), params.is_true("force")).await? {
            Some(count) => reply::text(format!("{count} IPs taken over from {peer}\n")),
            None => reply::text(""),
        },
    )
}

/// Does the client ask for JSON, and for nothing else? The original takes no other form either.
fn wants_json(headers: &HeaderMap) -> bool {
    let mut accepted = headers.get_all(header::ACCEPT).iter();
    accepted.any(|v| v.as_bytes() == b"application/json")
}

async fn status<B: Backend>(backend: B, page: Page, json: bool, aligned: bool) -> Answer {
    let report = backend.report(Detail::All).await?;
    let (kind, text) = if json {
        let value = page.json(&report).map(|value| format!("{value:#}\n"));
        (reply::JSON, value)
    } else {
        (reply::TEXT, page.render(&report, aligned))
    };
    let Some(text) = text else {
        return Ok(template_failed());
    };
    let code = if backend.ready() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    Ok(reply::body(code, kind, text))
}

async fn report<B: Backend>(State(backend): State<B>, headers: HeaderMap, params: Params) -> Answer {
    if wants_json(&headers) {
        return Ok(match backend.report(Detail::All).await?.to_json() {
            Ok(json) => reply::body(StatusCode::OK, reply::JSON, json),
            Err(e) => internal(e),
        });
    }
    let [format] = &params.all("format")[..] else {
        return Err(bad_request("error: must supply one format parameter"));
    };
    let template = template::Template::parse(format).map_err(bad_request)?;
    let report = backend.report(Detail::All).await?;
    // A template may loop for long: not on a thread that serves the mesh.
    let rendered = tokio::task::spawn_blocking(move || template.render(&report)).await;
    Ok(match rendered {
        Ok(Ok(text)) => reply::text(text),
        Ok(Err(e)) if e.is_unsupported() => reply::bad_request(e),
        Ok(Err(e)) => {
            tracing::info!("report template: {e}");
            template_failed()
        }
        Err(e) => internal(e),
    })
}

async fn metrics<B: Backend>(State(backend): State<B>) -> Answer {
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    Ok(reply::body(
        StatusCode::OK,
        kind,
        metrics::render(&backend.report(Detail::Metrics).await?),
    ))
}

pub(super) fn parse_ip(ip: &str) -> Result<Address, BackendError> {
    let addr: Result<Ipv4Addr, _> = ip.parse();
    addr.map(Address::from)
        .map_err(|_| bad_request(format!("invalid IP Address: {ip}")))
}

fn subnet(ip: &str, len: &str) -> Result<Cidr, BackendError> {
    Cidr::parse_subnet(&format!("{ip}/{len}")).map_err(bad_request)
}

fn cidrs(list: &[Cidr]) -> Response {
    reply::text(list.iter().map(Cidr::to_string).collect::<Vec<_>>().join(" "))
}

pub(super) fn bad_request(error: impl std::fmt::Display) -> BackendError {
    BackendError::BadRequest(error.to_string())
}

fn prefixed(prefix: &str, error: BackendError) -> BackendError {
    match error {
        BackendError::BadRequest(text) => BackendError::BadRequest(format!("{prefix}{text}")),
        other => other,
    }
}

fn template_failed() -> Response {
    reply::error(
        StatusCode::INTERNAL_SERVER_ERROR,
        "error during template execution",
    )
}

pub(super) fn internal(error: impl std::fmt::Display) -> Response {
    reply::error(StatusCode::INTERNAL_SERVER_ERROR, error)
}
