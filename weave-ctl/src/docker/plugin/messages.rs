//! The messages, field by field in the order of the original's (control.md 4.9).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What any call may have in its body; each reads what belongs to it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Request {
    /// Of the network.
    #[serde(rename = "NetworkID")]
    pub network_id: String,
    /// Of the endpoint.
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
    /// `CreateEndpoint`: what Docker has decided.
    pub interface: Option<Interface>,
    /// Options by their names; of what kind depends on the call.
    pub options: Option<Map<String, Value>>,
    /// `RequestPool`: the subnet, or empty.
    pub pool: String,
    /// `RequestPool`: the part of it to allocate from, or empty.
    pub sub_pool: String,
    /// `RequestPool`: for IPv6.
    #[serde(rename = "V6")]
    pub v6: bool,
    /// What `RequestPool` answered.
    #[serde(rename = "PoolID")]
    pub pool_id: String,
    /// `RequestAddress`: empty for any; `ReleaseAddress`: which.
    pub address: String,
}

/// Of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Interface {
    /// With the length of its subnet.
    pub address: String,
    /// Likewise.
    #[serde(rename = "AddressIPv6")]
    pub address_ipv6: String,
    /// Its Ethernet address.
    pub mac_address: String,
}

/// `/Plugin.Activate`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Activated {
    /// Kinds of plugins.
    pub implements: Vec<&'static str>,
}

/// `/NetworkDriver.GetCapabilities`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Capabilities {
    /// Always empty.
    pub err: &'static str,
    /// `global` or `local`.
    pub scope: &'static str,
    /// Always empty.
    pub connectivity_scope: &'static str,
}

/// `/NetworkDriver.AllocateNetwork`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Allocated {
    /// Always empty.
    pub err: &'static str,
    /// As they came.
    pub options: Option<Map<String, Value>>,
}

/// `/NetworkDriver.CreateEndpoint`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct EndpointCreated {
    /// Always empty.
    pub err: &'static str,
    /// What Docker has not decided itself.
    pub interface: Interface,
}

/// `/NetworkDriver.EndpointOperInfo`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct OperInfo {
    /// Always empty.
    pub err: &'static str,
    /// Always empty.
    pub value: Map<String, Value>,
}

/// `/NetworkDriver.Join`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Joined {
    /// Always empty.
    pub err: &'static str,
    /// What to move into the container.
    pub interface_name: InterfaceName,
    /// Always empty.
    pub gateway: &'static str,
    /// Always empty.
    #[serde(rename = "GatewayIPv6")]
    pub gateway_ipv6: &'static str,
    /// `null` if there are none.
    pub static_routes: Option<Vec<StaticRoute>>,
    /// False: Docker gives the container another interface, for the world outside.
    pub disable_gateway_service: bool,
}

/// The interface of an endpoint.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct InterfaceName {
    /// On the host.
    pub src_name: String,
    /// In the container; empty: the prefix with a number.
    pub dst_name: &'static str,
    /// See there.
    pub dst_prefix: &'static str,
}

/// A route in the container.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct StaticRoute {
    /// Where to.
    pub destination: &'static str,
    /// 1: through the interface itself.
    pub route_type: u8,
    /// Empty.
    pub next_hop: &'static str,
}

/// `/IpamDriver.GetCapabilities`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct IpamCapabilities {
    /// We need not know it.
    #[serde(rename = "RequiresMACAddress")]
    pub requires_mac_address: bool,
    /// We keep what we have given.
    pub requires_request_replay: bool,
}

/// `/IpamDriver.GetDefaultAddressSpaces`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct AddressSpaces {
    /// Always empty.
    pub error: &'static str,
    /// `weavelocal`.
    pub local_default_address_space: &'static str,
    /// `weaveglobal`.
    pub global_default_address_space: &'static str,
}

/// `/IpamDriver.RequestPool`.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PoolGiven {
    /// Always empty.
    pub error: &'static str,
    /// For later calls.
    #[serde(rename = "PoolID")]
    pub pool_id: String,
    /// The subnet.
    pub pool: String,
    /// More about it.
    pub data: PoolData,
}

/// More about a pool.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct PoolData {
    /// Not a gateway: the subnet itself, so that Docker takes no address for one.
    #[serde(rename = "com.docker.network.gateway")]
    pub gateway: String,
}

/// `/IpamDriver.RequestAddress`.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct AddressGiven {
    /// Always empty.
    pub error: &'static str,
    /// With the length of its subnet.
    pub address: String,
    /// Always `null`.
    pub data: Option<()>,
}

/// A refusal, of both drivers.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Refusal {
    /// Why.
    pub err: String,
}

/// `{}`.
#[derive(Debug, Serialize)]
pub struct Nothing {}
