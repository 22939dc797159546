//! The Docker network `weave`, which is there as long as we are (control.md 4.9, cli.md 4.15).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::options::{self, MULTICAST};
use crate::docker::client::{Failure, ask, call};
use crate::ipam::address::Cidr;

/// Its name.
pub const NAME: &str = "weave";

/// What Docker tells of a network.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Network {
    driver: String,
    options: Option<BTreeMap<String, String>>,
    containers: Option<BTreeMap<String, Value>>,
}

/// Does the engine answer?
///
/// # Errors
/// What it is that keeps it from it.
pub async fn check(host: &str) -> Result<(), String> {
    ask::<Value>(host, "/version")
        .await
        .map(drop)
        .map_err(Failure::reason)
}

/// Has a network of ours, whose ID is given, a route for multicast?
///
/// # Errors
/// If Docker does not know it, or it belongs to another driver.
pub async fn multicast(host: &str, id: &str, ours: &[&str]) -> Result<bool, String> {
    if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(format!("no such network: {id}"));
    }
    let network: Network = ask(host, &format!("/networks/{id}"))
        .await
        .map_err(Failure::reason)?;
    if !ours.contains(&network.driver.as_str()) {
        return Err(format!("its driver is {}", network.driver));
    }
    let all = network.options.iter().flatten();
    options::of_options(all.map(|(name, value)| (name.as_str(), value.clone()))).map_err(|e| e.to_string())
}

/// Makes the network `weave` unless there is one. `driver` is that for networks and for addresses.
///
/// # Errors
/// What Docker says.
pub async fn ensure(host: &str, driver: &str, subnet: Cidr) -> Result<(), String> {
    match ask::<Network>(host, &format!("/networks/{NAME}")).await {
        Ok(found) if found.driver == driver => return Ok(()),
        Ok(found) => return Err(format!("there is one already, with the driver {}", found.driver)),
        Err(Failure::NotFound(_)) => {}
        Err(failure) => return Err(failure.reason()),
    }
    let network = json!({
        "Name": NAME,
        "CheckDuplicate": true,
        "Driver": driver,
        "IPAM": {"Driver": driver, "Config": [{"Subnet": subnet.to_string()}]},
        "Options": {MULTICAST: "true"},
    });
    call(host, hyper::Method::POST, "/networks/create", Some(&network))
        .await
        .map_err(Failure::reason)
}

/// Removes the network `weave` if it is that driver's. Full IDs of the containers that keep it from being removed.
/// Without Docker there is nothing to do.
///
/// # Errors
/// What Docker says.
pub async fn remove(host: &str, driver: &str) -> Result<Vec<String>, String> {
    match ask::<Network>(host, &format!("/networks/{NAME}")).await {
        Ok(found) if found.driver == driver => {
            let attached: Vec<String> = found.containers.into_iter().flatten().map(|(id, _)| id).collect();
            if !attached.is_empty() {
                return Ok(attached);
            }
        }
        Ok(_) | Err(Failure::NotFound(_) | Failure::Unreachable(_)) => return Ok(Vec::new()),
        Err(Failure::Refused(reason)) => return Err(reason),
    }
    let removed = call(host, hyper::Method::DELETE, &format!("/networks/{NAME}"), None).await;
    removed.map(|()| Vec::new()).map_err(Failure::reason)
}
