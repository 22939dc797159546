#![allow(clippy::unwrap_used)]

use axum::body::Body;
use axum::http::Request as HttpRequest;
use http_body_util::BodyExt;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use serde_json::json;

use super::*;
use crate::api::double::Double;
use crate::api::report::{Ipam, Report};
use crate::docker::plugin::driver::{Inner, Scope};
use crate::docker::plugin::options::Networks;
use crate::net::Netlink;

fn backend() -> Double {
    let ipam = Ipam {
        range: "10.32.0.0/12".to_owned(),
        default_subnet: "10.32.0.0/12".to_owned(),
        ..Ipam::default()
    };
    Double::new(Report {
        ipam: Some(ipam),
        ..Report::default()
    })
}

async fn plugin(backend: Double) -> Plugin<Double> {
    Plugin::new(Inner {
        backend,
        nl: Netlink::current().await.unwrap(),
        bridge: "nosuchbridge".to_owned(),
        docker: String::new(),
        drivers: vec!["weave".to_owned(), "weavemesh".to_owned()],
        networks: Networks::default(),
        v2_multicast: None,
    })
}

/// The weavemesh drivers.
async fn mesh() -> Router {
    let driver = Driver {
        name: "weavemesh".to_owned(),
        scope: Scope::Local,
        ipam: true,
    };
    router(plugin(backend()).await, driver)
}

async fn ask(router: &Router, path: &str, body: &str) -> (u16, String) {
    let request = HttpRequest::post(path).body(Body::from(body.to_owned())).unwrap();
    let response = TowerToHyperService::new(router.clone())
        .call(request)
        .await
        .unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

/// All that is answered without the host, byte for byte (control.md 4.9).
#[tokio::test]
async fn answers_of_the_original() {
    let router = mesh().await;
    for (path, body, expected) in [
        (
            "/Plugin.Activate",
            "",
            r#"{"Implements":["NetworkDriver","IpamDriver"]}"#,
        ),
        (
            "/NetworkDriver.GetCapabilities",
            "",
            r#"{"Err":"","Scope":"local","ConnectivityScope":""}"#,
        ),
        (
            "/NetworkDriver.CreateNetwork",
            r#"{"NetworkID":"n1","Options":{"com.docker.network.generic":{"works.weave.multicast":"true"}},
                "IPv4Data":[{"AddressSpace":"x","Pool":"10.32.0.0/12"}],"IPv6Data":null}"#,
            "{}",
        ),
        (
            "/NetworkDriver.CreateNetwork",
            r#"{"NetworkID":"n2","Options":null}"#,
            "{}",
        ),
        (
            "/NetworkDriver.AllocateNetwork",
            r#"{"NetworkID":"n2","Options":{"b":"1","a":"2"}}"#,
            r#"{"Err":"","Options":{"a":"2","b":"1"}}"#,
        ),
        ("/NetworkDriver.FreeNetwork", r#"{"NetworkID":"n2"}"#, "null"),
        (
            "/NetworkDriver.EndpointOperInfo",
            r#"{"NetworkID":"n2","EndpointID":"e"}"#,
            r#"{"Err":"","Value":{}}"#,
        ),
        (
            "/NetworkDriver.Join",
            r#"{"NetworkID":"n1","EndpointID":"0123456789abcdef","SandboxKey":"/s","Options":null}"#,
            r#"{"Err":"","InterfaceName":{"SrcName":"vethwg012345678","DstName":"","DstPrefix":"ethwe"},"Gateway":"","GatewayIPv6":"","StaticRoutes":[{"Destination":"224.0.0.0/4","RouteType":1,"NextHop":""}],"DisableGatewayService":false}"#,
        ),
        (
            "/NetworkDriver.Join",
            r#"{"NetworkID":"n2","EndpointID":"0123456789abcdef"}"#,
            r#"{"Err":"","InterfaceName":{"SrcName":"vethwg012345678","DstName":"","DstPrefix":"ethwe"},"Gateway":"","GatewayIPv6":"","StaticRoutes":null,"DisableGatewayService":false}"#,
        ),
        (
            "/NetworkDriver.Leave",
            r#"{"NetworkID":"n2","EndpointID":"e"}"#,
            "{}",
        ),
        ("/NetworkDriver.DeleteNetwork", r#"{"NetworkID":"n2"}"#, "{}"),
        (
            "/IpamDriver.GetCapabilities",
            "",
            r#"{"RequiresMACAddress":false,"RequiresRequestReplay":false}"#,
        ),
        (
            "/IpamDriver.GetDefaultAddressSpaces",
            "",
            r#"{"Error":"","LocalDefaultAddressSpace":"weavelocal","GlobalDefaultAddressSpace":"weaveglobal"}"#,
        ),
        (
            "/IpamDriver.RequestPool",
            r#"{"AddressSpace":"weavelocal","Pool":"","SubPool":"","Options":null,"V6":false}"#,
            r#"{"Error":"","PoolID":"weave-10.32.0.0/12-10.32.0.0/12","Pool":"10.32.0.0/12","Data":{"com.docker.network.gateway":"10.32.0.0/12"}}"#,
        ),
        ("/IpamDriver.ReleasePool", r#"{"PoolID":"x"}"#, "{}"),
    ] {
        assert_eq!(
            ask(&router, path, body).await,
            (200, expected.to_owned()),
            "{path} {body}"
        );
    }
}

#[tokio::test]
async fn addresses_are_claimed_allocated_and_released() {
    let backend = backend();
    let driver = Driver {
        name: "weavemesh".to_owned(),
        scope: Scope::Local,
        ipam: true,
    };
    let router = router(plugin(backend.clone()).await, driver);
    let pool = "weave-10.32.0.0/16-10.32.7.0/24";
    let request = |address: &str| json!({"PoolID": pool, "Address": address, "Options": {}}).to_string();
    let (status, given) = ask(&router, "/IpamDriver.RequestAddress", &request("10.32.7.9")).await;
    let expected = r#"{"Error":"","Address":"10.32.7.9/16","Data":null}"#;
    assert_eq!((status, given.as_str()), (200, expected));
    let (status, given) = ask(&router, "/IpamDriver.RequestAddress", &request("")).await;
    assert!(status == 200 && given.contains("/16\",\"Data\":null"), "{given}");
    // Asked for with the subnet's own length, by nobody in particular.
    let calls = backend.calls().join("\n");
    assert!(calls.contains("_") && calls.contains("10.32.7.9/16"), "{calls}");
    let error = ask(&router, "/IpamDriver.ReleaseAddress", &request("10.32.7.9")).await;
    let expected = r#"{"Err":"400 Bad Request: Delete: no addresses for 10.32.7.9\n"}"#;
    assert_eq!(error, (500, expected.to_owned()));
    backend.calls();
    // The placeholder for a gateway, which nobody has.
    let released = ask(&router, "/IpamDriver.ReleaseAddress", &request("10.32.0.0")).await;
    assert_eq!(released, (200, "{}".to_owned()));
    assert!(backend.calls().is_empty());
    let bad = ask(&router, "/IpamDriver.RequestAddress", r#"{"PoolID":"x"}"#).await;
    assert_eq!(bad, (500, r#"{"Err":"Unrecognized pool ID: x"}"#.to_owned()));
}

#[tokio::test]
async fn refusals() {
    let router = mesh().await;
    for (path, body, status, text) in [
        (
            "/NetworkDriver.CreateNetwork",
            r#"{"NetworkID":"n","Options":{"com.docker.network.generic":{"works.weave.multicast":"maybe"}}}"#,
            500,
            r#"{"Err":"unrecognized value \"maybe\" for option works.weave.multicast"}"#,
        ),
        (
            "/NetworkDriver.CreateEndpoint",
            r#"{"NetworkID":"n","EndpointID":"e"}"#,
            500,
            r#"{"Err":"Not supported: creating an interface from within CreateEndpoint"}"#,
        ),
        (
            "/NetworkDriver.CreateEndpoint",
            r#"{"NetworkID":"n","EndpointID":"e","Interface":{"Address":"10.32.0.1/12"}}"#,
            500,
            r#"{"Err":"bridge \"nosuchbridge\" not present; did you launch weave?"}"#,
        ),
        (
            "/NetworkDriver.Join",
            r#"{"NetworkID":"unknown","EndpointID":"e"}"#,
            500,
            r#"{"Err":"unable to find network info: Docker cannot be asked"}"#,
        ),
        ("/NetworkDriver.DiscoverNew", "{}", 404, "404 page not found\n"),
        ("/NetworkDriver.DiscoverDelete", "{}", 404, "404 page not found\n"),
        ("/IpamDriver.Other", "{}", 404, "404 page not found\n"),
        ("/", "", 404, "404 page not found\n"),
        (
            "/IpamDriver.RequestPool",
            "{",
            400,
            "Could not decode JSON encoded payload\n",
        ),
    ] {
        assert_eq!(
            ask(&router, path, body).await,
            (status, text.to_owned()),
            "{path} {body}"
        );
    }
    let (status, text) = ask(&router, "/NetworkDriver.Join", "").await;
    assert_eq!(status, 400);
    assert!(text.starts_with("Unable to decode JSON payload: "), "{text}");
}

#[tokio::test]
async fn without_addresses() {
    let driver = Driver {
        name: "weave".to_owned(),
        scope: Scope::Global,
        ipam: false,
    };
    let router = router(plugin(Double::without_ipam()).await, driver);
    let activated = ask(&router, "/Plugin.Activate", "").await;
    assert_eq!(activated.1, r#"{"Implements":["NetworkDriver"]}"#);
    let scope = ask(&router, "/NetworkDriver.GetCapabilities", "").await.1;
    assert_eq!(scope, r#"{"Err":"","Scope":"global","ConnectivityScope":""}"#);
    assert_eq!(ask(&router, "/IpamDriver.GetCapabilities", "").await.0, 404);
    let request = HttpRequest::get("/Plugin.Activate").body(Body::empty()).unwrap();
    let response = TowerToHyperService::new(router).call(request).await.unwrap();
    assert_eq!(response.status().as_u16(), 404);
}
