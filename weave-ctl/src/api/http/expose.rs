//! `/expose`: addresses of the bridge (control.md 7.4).

use axum::Router;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::post;

use super::params::Params;
use super::reply;
use crate::api::backend::{Backend, BackendError};
use crate::ipam::address::Cidr;

type Answer = Result<Response, BackendError>;

pub(super) fn routes<B: Backend>() -> Router<B> {
    Router::new().route("/expose/{ip}/{len}", post(expose::<B>).delete(hide::<B>))
}

async fn expose<B: Backend>(
    State(backend): State<B>,
    Path((ip, len)): Path<(String, String)>,
    params: Params,
) -> Answer {
    let cidr = address(&ip, &len)?;
    // Before anything is exposed in another way than meant.
    let skip_nat = match params.first("skipNAT") {
        None | Some("") => false,
        Some(text) => boolean(text).ok_or_else(|| {
            BackendError::BadRequest(format!(
                "unable to parse skipNAT option: strconv.ParseBool: parsing {text:?}: invalid syntax"
            ))
        })?,
    };
    let exposed = backend.expose(cidr, !skip_nat).await;
    exposed.map_err(|error| match error {
        BackendError::Internal(why) => BackendError::Internal(format!("unable to expose: {why}")),
        other => other,
    })?;
    Ok(reply::no_content())
}

async fn hide<B: Backend>(State(backend): State<B>, Path((ip, len)): Path<(String, String)>) -> Answer {
    backend.hide(address(&ip, &len)?).await?;
    Ok(reply::no_content())
}

fn address(ip: &str, len: &str) -> Result<Cidr, BackendError> {
    let parsed = format!("{ip}/{len}").parse();
    parsed.map_err(|e| BackendError::BadRequest(format!("unable to parse ip addr: {e}")))
}

/// As Go reads it.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}
