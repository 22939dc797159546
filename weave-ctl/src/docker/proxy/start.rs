//! Rewrites the host configuration that old clients send when they start a container (control.md 4.3, "start"). Pure.

use super::create::mount;
use super::hostname::resolve_with;
use super::object::Object;
use super::rules::{LeftAlone, wanted};
use super::{Failure, Settings};

const HOST_CONFIG: &str = "HostConfig";

/// The body as Docker gets it; `None`: unchanged. `hostname` is the container's own.
pub fn rewrite(mut body: Object, hostname: &str, settings: &Settings) -> Result<Option<Object>, Failure> {
    // The configuration is in the body, or is the body.
    let (mut host_config, whole) = match body.object(HOST_CONFIG)? {
        Some(inside) => (inside, false),
        None if body.is_empty() || body.has(HOST_CONFIG) => return Ok(None),
        None => (body.clone(), true),
    };
    let mode = host_config.text("NetworkMode")?;
    if matches!(wanted(&mode, &[], true), Err(LeftAlone::Network(_))) {
        // It will not be attached.
        mount(&mut host_config, &settings.folders.noop)?;
    } else {
        mount(&mut host_config, settings.folder())?;
        if let Some(dns) = &settings.dns {
            resolve_with(&mut host_config, dns, !hostname.is_empty())?;
        }
    }
    if whole {
        return Ok(Some(host_config));
    }
    body.set(HOST_CONFIG, &host_config)?;
    Ok(Some(body))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tests::settings;
    use super::*;

    #[test]
    fn bodies() {
        for (sent, hostname, expected) in [
            (r"{}", "h", None),
            (r#"{"HostConfig":null}"#, "h", None),
            (
                r#"{"HostConfig":{}}"#,
                "h",
                Some(r#"{"HostConfig":{"Binds":["/vols/w:/w:ro"],"Dns":["172.17.0.1"],"DnsSearch":["."]}}"#),
            ),
            (
                r#"{"HostConfig":{"Binds":["/a:/w"],"DnsSearch":["x"]},"Other":1}"#,
                "",
                Some(
                    r#"{"HostConfig":{"Binds":["/vols/w:/w:ro"],"DnsSearch":["x"],"Dns":["172.17.0.1"]},"Other":1}"#,
                ),
            ),
            (
                r#"{"Privileged":true}"#,
                "",
                Some(
                    r#"{"Privileged":true,"Binds":["/vols/w:/w:ro"],"Dns":["172.17.0.1"],"DnsSearch":["weave.local."]}"#,
                ),
            ),
            (
                r#"{"HostConfig":{"NetworkMode":"host"}}"#,
                "h",
                Some(r#"{"HostConfig":{"NetworkMode":"host","Binds":["/vols/w-noop:/w:ro"]}}"#),
            ),
            (
                r#"{"NetworkMode":"container:x","Binds":["/y:/z"]}"#,
                "h",
                Some(r#"{"NetworkMode":"container:x","Binds":["/y:/z","/vols/w-noop:/w:ro"]}"#),
            ),
        ] {
            let body = Object::parse(sent.as_bytes()).unwrap().unwrap();
            let got = rewrite(body, hostname, &settings()).unwrap();
            let got = got.map(|body| serde_json::to_string(&body).unwrap());
            assert_eq!(got.as_deref(), expected, "{sent}");
        }
        let body = Object::parse(br#"{"HostConfig":7}"#).unwrap().unwrap();
        assert!(rewrite(body, "", &settings()).is_err());
    }
}
