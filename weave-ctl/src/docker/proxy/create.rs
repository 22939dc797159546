//! Rewrites what creates a container that is to be attached (control.md 4.3, "create"). Pure.

use serde::Deserialize;

use super::hostname::{name_it, resolve_with};
use super::object::Object;
use super::rules::{LeftAlone, wanted};
use super::{Failure, Settings};

/// Where the wait helper is in containers.
pub(super) const MOUNT: &str = "/w";
/// It runs first in those that are attached.
pub(super) const HELPER: &str = "/w/w";

/// What a request says of the container itself.
const CONTAINER_FIELDS: [&str; 26] = [
    "Hostname",
    "Domainname",
    "User",
    "AttachStdin",
    "AttachStdout",
    "AttachStderr",
    "ExposedPorts",
    "Tty",
    "OpenStdin",
    "StdinOnce",
    "Env",
    "Cmd",
    "Healthcheck",
    "ArgsEscaped",
    "Image",
    "Volumes",
    "WorkingDir",
    "Entrypoint",
    "NetworkDisabled",
    "MacAddress",
    "OnBuild",
    "Labels",
    "StopSignal",
    "StopTimeout",
    "HostConfig",
    "NetworkingConfig",
];

/// What counts of an image's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Image {
    /// What runs in its containers.
    pub entrypoint: Option<Vec<String>>,
    /// Its arguments, or what runs.
    pub cmd: Option<Vec<String>>,
    /// Variables, `NAME=VALUE`.
    pub env: Option<Vec<String>>,
}

/// Why the request is passed on unchanged, if that does not depend on the image.
pub fn left_alone(request: &Object, default_ipalloc: bool) -> Result<Option<LeftAlone>, Failure> {
    let refused = wanted(&network_mode(request)?, &request.texts("Env")?, default_ipalloc).err();
    // The image may ask, too.
    Ok(refused.filter(|why| *why != LeftAlone::NotAsked))
}

/// The request as Docker gets it; `None`: unchanged. `name` is that of the query.
pub fn rewrite(
    mut request: Object,
    name: &str,
    image: &Image,
    settings: &Settings,
) -> Result<Option<Object>, Failure> {
    let mut env = request.texts("Env")?;
    env.extend(image.env.iter().flatten().cloned());
    if wanted(&network_mode(&request)?, &env, settings.default_ipalloc).is_err() {
        return Ok(None);
    }
    wait_first(&mut request, image)?;
    let mut host_config = host_config(&request)?;
    mount(&mut host_config, settings.folder())?;
    if let Some(dns) = &settings.dns {
        let named = name_it(&mut request, name, &settings.hostname, dns)?;
        resolve_with(&mut host_config, dns, named)?;
    }
    request.set("HostConfig", &host_config)?;
    Ok(Some(request))
}

fn network_mode(request: &Object) -> Result<String, Failure> {
    Ok(host_config(request)?.text("NetworkMode")?)
}

/// Docker takes the fields beside those of the container for its host configuration, as long as there is none.
fn host_config(request: &Object) -> Result<Object, Failure> {
    let inside = request.object("HostConfig")?;
    Ok(inside.unwrap_or_else(|| request.without(&CONTAINER_FIELDS)))
}

/// The wait helper runs what would have run.
fn wait_first(request: &mut Object, image: &Image) -> Result<(), Failure> {
    let mut entrypoint = request.one_or_more("Entrypoint")?;
    let mut cmd = request.one_or_more("Cmd")?;
    if entrypoint.is_empty() {
        if cmd.is_empty() {
            cmd = image.cmd.clone().unwrap_or_default();
            request.set("Cmd", &cmd)?;
        }
        // An empty list is the wish for none.
        if request.raw("Entrypoint").is_none() {
            entrypoint = image.entrypoint.clone().unwrap_or_default();
        }
    }
    if entrypoint.is_empty() && cmd.is_empty() {
        return Err(Failure::NoCommand);
    }
    if entrypoint.first().is_none_or(|first| first != HELPER) {
        entrypoint.insert(0, HELPER.to_owned());
    }
    request.set("Entrypoint", &entrypoint)?;
    Ok(())
}

/// Puts that folder of the host at the place of the wait helper, and nothing else.
pub(super) fn mount(host_config: &mut Object, folder: &std::path::Path) -> Result<(), Failure> {
    let mut binds = host_config.texts("Binds")?;
    binds.retain(|bind| bind.split(':').nth(1) != Some(MOUNT));
    binds.push(format!("{}:{MOUNT}:ro", folder.display()));
    host_config.set("Binds", &binds)?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tests::settings;
    use super::*;

    fn image() -> Image {
        Image {
            entrypoint: Some(vec!["imgentry".to_owned()]),
            cmd: Some(vec!["imgcmd".to_owned()]),
            env: None,
        }
    }

    fn forwarded(name: &str, sent: &str, image: &Image, settings: &Settings) -> Option<String> {
        let request = Object::parse(sent.as_bytes()).unwrap().unwrap();
        if left_alone(&request, settings.default_ipalloc).unwrap().is_some() {
            return None;
        }
        let request = rewrite(request, name, image, settings).unwrap();
        request.map(|request| serde_json::to_string(&request).unwrap())
    }

    #[test]
    fn examples_of_the_specification() {
        for (name, sent, expected) in [
            (
                "foo",
                r#"{"Cmd":["ls"],"HostConfig":{"Binds":["/x:/w:rw","/y:/z"]}}"#,
                r#"{"Cmd":["ls"],"HostConfig":{"Binds":["/y:/z","/vols/w:/w:ro"],"Dns":["172.17.0.1"],"DnsSearch":["."]},"Entrypoint":["/w/w","imgentry"],"Hostname":"foo","Domainname":"weave.local"}"#,
            ),
            (
                "",
                r#"{"Entrypoint":[],"Cmd":["x"]}"#,
                r#"{"Entrypoint":["/w/w"],"Cmd":["x"],"HostConfig":{"Binds":["/vols/w:/w:ro"],"Dns":["172.17.0.1"],"DnsSearch":["weave.local."]}}"#,
            ),
            (
                "h",
                r#"{"Hostname":"hh","Domainname":"dd","HostConfig":{"Dns":["1.1.1.1"],"DnsSearch":["foo.com"]}}"#,
                r#"{"Hostname":"hh","Domainname":"dd","HostConfig":{"Dns":["1.1.1.1","172.17.0.1"],"DnsSearch":["foo.com"],"Binds":["/vols/w:/w:ro"]},"Cmd":["imgcmd"],"Entrypoint":["/w/w","imgentry"]}"#,
            ),
            (
                "",
                r#"{"Entrypoint":"/bin/sh","Cmd":"-c"}"#,
                r#"{"Entrypoint":["/w/w","/bin/sh"],"Cmd":"-c","HostConfig":{"Binds":["/vols/w:/w:ro"],"Dns":["172.17.0.1"],"DnsSearch":["weave.local."]}}"#,
            ),
        ] {
            let got = forwarded(name, sent, &image(), &settings());
            assert_eq!(got.as_deref(), Some(expected), "{sent}");
        }
        for sent in [
            r#"{"Env":["WEAVE_CIDR=none"],"Cmd":["x"]}"#,
            r#"{"Cmd":["x"],"HostConfig":{"NetworkMode":"host"}}"#,
            r#"{"Cmd":["x"],"HostConfig":{"NetworkMode":"container:a"}}"#,
        ] {
            assert_eq!(forwarded("n", sent, &image(), &settings()), None, "{sent}");
        }
    }

    #[test]
    fn entrypoints_and_commands() {
        let only = |entrypoint: Option<&str>, cmd: Option<&str>| Image {
            entrypoint: entrypoint.map(|e| vec![e.to_owned()]),
            cmd: cmd.map(|c| vec![c.to_owned()]),
            env: None,
        };
        for (sent, image, expected) in [
            (
                r"{}",
                only(Some("E"), Some("C")),
                Ok((r#"["/w/w","E"]"#, r#"["C"]"#)),
            ),
            (r"{}", only(None, Some("C")), Ok((r#"["/w/w"]"#, r#"["C"]"#))),
            (r"{}", only(Some("E"), None), Ok((r#"["/w/w","E"]"#, "[]"))),
            (r"{}", only(None, None), Err(())),
            // One that was committed.
            (
                r"{}",
                only(Some("/w/w"), Some("C")),
                Ok((r#"["/w/w"]"#, r#"["C"]"#)),
            ),
            (
                r#"{"Entrypoint":null,"Cmd":null}"#,
                only(Some("E"), Some("C")),
                Ok((r#"["/w/w","E"]"#, r#"["C"]"#)),
            ),
            (
                r#"{"Entrypoint":[]}"#,
                only(Some("E"), Some("C")),
                Ok((r#"["/w/w"]"#, r#"["C"]"#)),
            ),
            (r#"{"Entrypoint":[]}"#, only(Some("E"), None), Err(())),
            (
                r#"{"Entrypoint":"e","Cmd":["c", "d"]}"#,
                only(Some("E"), Some("C")),
                Ok((r#"["/w/w","e"]"#, r#"["c", "d"]"#)),
            ),
            (
                r#"{"Cmd":"c"}"#,
                only(Some("E"), Some("C")),
                Ok((r#"["/w/w","E"]"#, r#""c""#)),
            ),
        ] {
            let mut request = Object::parse(sent.as_bytes()).unwrap().unwrap();
            let result = wait_first(&mut request, &image).map_err(|_| ()).map(|()| {
                let raw = |key| request.raw(key).map_or("", |value| value.get());
                (raw("Entrypoint").to_owned(), raw("Cmd").to_owned())
            });
            let expected = expected.map(|(e, c): (&str, &str)| (e.to_owned(), c.to_owned()));
            assert_eq!(result, expected, "{sent} {image:?}");
        }
        assert_eq!(Failure::NoCommand.to_string(), "No command specified");
    }

    #[test]
    fn what_decides() {
        let asked = Settings {
            default_ipalloc: false,
            ..settings()
        };
        let with_env = |env: &str| Image {
            env: Some(vec![env.to_owned()]),
            ..image()
        };
        assert_eq!(forwarded("", r#"{"Cmd":["x"]}"#, &image(), &asked), None);
        let sent = r#"{"Cmd":["x"],"Env":["WEAVE_CIDR="]}"#;
        assert!(forwarded("", sent, &image(), &asked).is_some());
        // Docker merges both; the request's own comes first.
        assert!(forwarded("", r"{}", &with_env("WEAVE_CIDR=10.2.0.1/24"), &asked).is_some());
        assert_eq!(
            forwarded("", r"{}", &with_env("WEAVE_CIDR=none"), &settings()),
            None
        );
        assert!(forwarded("", sent, &with_env("WEAVE_CIDR=none"), &settings()).is_some());
    }

    #[test]
    fn without_dns_and_without_multicast() {
        let plain = Settings {
            dns: None,
            multicast: false,
            ..settings()
        };
        for (name, sent, expected) in [
            (
                "foo",
                r#"{"Cmd":["x"],"HostConfig":{"Big":123456789012345678901}}"#,
                r#"{"Cmd":["x"],"HostConfig":{"Big":123456789012345678901,"Binds":["/vols/w-nomcast:/w:ro"]},"Entrypoint":["/w/w","imgentry"]}"#,
            ),
            // Without a host configuration, Docker looks for it beside the rest.
            (
                "",
                r#"{"Cmd":["x"],"HostConfig":null,"Runtime":"r","User":"u"}"#,
                r#"{"Cmd":["x"],"HostConfig":{"Runtime":"r","Binds":["/vols/w-nomcast:/w:ro"]},"Runtime":"r","User":"u","Entrypoint":["/w/w","imgentry"]}"#,
            ),
        ] {
            let got = forwarded(name, sent, &image(), &plain);
            assert_eq!(got.as_deref(), Some(expected));
        }
        assert_eq!(
            forwarded("", r#"{"Cmd":["x"],"NetworkMode":"host"}"#, &image(), &plain),
            None
        );
    }

    #[test]
    fn wrong_types() {
        for (sent, text) in [
            (
                r#"{"HostConfig":[]}"#,
                "Wrong type for HostConfig field, expected object, but got array",
            ),
            (
                r#"{"Env":"A=1"}"#,
                "Wrong type for Env field, expected array of strings, but got string",
            ),
            (
                r#"{"HostConfig":{"NetworkMode":7}}"#,
                "Wrong type for NetworkMode field, expected string, but got number",
            ),
        ] {
            let request = Object::parse(sent.as_bytes()).unwrap().unwrap();
            assert_eq!(left_alone(&request, true).unwrap_err().to_string(), text);
        }
    }
}
