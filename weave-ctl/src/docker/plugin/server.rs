//! The HTTP side of a driver: which call, what it says, and how the answer is written (control.md 4.9).

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::driver::{Driver, Plugin};
use super::ipam::{self, Addresses, Pool};
use super::messages::{
    Activated, AddressSpaces, Allocated, Capabilities, IpamCapabilities, Nothing, OperInfo, Refusal, Request,
};
use super::standby::AWAY;

const CONTENT_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";
const NETWORK: &str = "/NetworkDriver.";
const IPAM: &str = "/IpamDriver.";

/// The calls of one driver.
pub fn router<A: Addresses>(plugin: Plugin<A>, driver: Driver) -> Router {
    Router::new().fallback(serve::<A>).with_state((plugin, driver))
}

async fn serve<A: Addresses>(
    State((plugin, driver)): State<(Plugin<A>, Driver)>,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> Response {
    if method != Method::POST {
        return unknown();
    }
    let path = uri.path();
    tracing::debug!(
        "Docker asks {}: {path} {}",
        driver.name,
        String::from_utf8_lossy(&body)
    );
    if let Some(call) = path.strip_prefix(NETWORK) {
        network(&plugin, &driver, call, &body).await
    } else if let Some(call) = path.strip_prefix(IPAM).filter(|_| driver.ipam) {
        addresses(&plugin, call, &body).await
    } else if path == "/Plugin.Activate" {
        let ipam = driver.ipam.then_some("IpamDriver");
        let implements = ["NetworkDriver"].into_iter().chain(ipam).collect();
        json(&Activated { implements })
    } else {
        unknown()
    }
}

async fn network<A: Addresses>(plugin: &Plugin<A>, driver: &Driver, call: &str, body: &Bytes) -> Response {
    if call == "GetCapabilities" {
        return json(&Capabilities {
            err: "",
            scope: driver.scope.as_str(),
            connectivity_scope: "",
        });
    }
    let known = [
        "CreateNetwork",
        "DeleteNetwork",
        "AllocateNetwork",
        "FreeNetwork",
        "CreateEndpoint",
        "DeleteEndpoint",
        "EndpointOperInfo",
        "Join",
        "Leave",
    ];
    if !known.contains(&call) {
        return unknown();
    }
    let request: Request = match serde_json::from_slice(body) {
        Ok(request) => request,
        Err(error) => return malformed(format!("Unable to decode JSON payload: {error}")),
    };
    if A::AWAY && ["CreateNetwork", "CreateEndpoint", "Join"].contains(&call) {
        return answer::<()>(Err(AWAY.to_owned()));
    }
    match call {
        "CreateNetwork" => answer(
            plugin
                .create_network(&request.network_id, request.options.as_ref())
                .map(|()| Nothing {}),
        ),
        "DeleteNetwork" => {
            plugin.delete_network(&request.network_id);
            json(&Nothing {})
        }
        "AllocateNetwork" => json(&Allocated {
            err: "",
            options: request.options,
        }),
        "FreeNetwork" => json(&()),
        "CreateEndpoint" => answer(plugin.create_endpoint(&request).await),
        "DeleteEndpoint" => {
            plugin.delete_endpoint(&request.endpoint_id).await;
            json(&Nothing {})
        }
        "EndpointOperInfo" => json(&OperInfo {
            err: "",
            value: serde_json::Map::new(),
        }),
        "Join" => answer(plugin.join(&request).await),
        // Leave
        _ => json(&Nothing {}),
    }
}

async fn addresses<A: Addresses>(plugin: &Plugin<A>, call: &str, body: &Bytes) -> Response {
    match call {
        "GetCapabilities" => {
            return json(&IpamCapabilities {
                requires_mac_address: false,
                requires_request_replay: false,
            });
        }
        "GetDefaultAddressSpaces" => {
            return json(&AddressSpaces {
                error: "",
                local_default_address_space: "weavelocal",
                global_default_address_space: "weaveglobal",
            });
        }
        "RequestPool" | "ReleasePool" | "RequestAddress" | "ReleaseAddress" => {}
        _ => return unknown(),
    }
    let Ok(request) = serde_json::from_slice::<Request>(body) else {
        return malformed("Could not decode JSON encoded payload".to_owned());
    };
    let backend = &plugin.inner().backend;
    match call {
        "RequestPool" => {
            let default = ipam::default_subnet(backend);
            let pool = default.and_then(|default| Pool::of_request(&request, default));
            answer(pool.map(|pool| pool.given()))
        }
        "RequestAddress" => answer(ipam::request(backend, &request).await),
        "ReleaseAddress" => answer(ipam::release(backend, &request).await.map(|()| Nothing {})),
        // ReleasePool
        _ => json(&Nothing {}),
    }
}

fn json<T: Serialize>(value: &T) -> Response {
    written(StatusCode::OK, value)
}

fn answer<T: Serialize>(result: Result<T, String>) -> Response {
    match result {
        Ok(value) => json(&value),
        Err(err) => {
            tracing::warn!("Docker is told: {}", err.trim_end());
            written(StatusCode::INTERNAL_SERVER_ERROR, &Refusal { err })
        }
    }
}

fn written<T: Serialize>(status: StatusCode, value: &T) -> Response {
    match serde_json::to_string(value) {
        Ok(text) => (status, [(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn malformed(text: String) -> Response {
    (StatusCode::BAD_REQUEST, format!("{text}\n")).into_response()
}

fn unknown() -> Response {
    (StatusCode::NOT_FOUND, "404 page not found\n").into_response()
}

#[cfg(test)]
mod tests;
