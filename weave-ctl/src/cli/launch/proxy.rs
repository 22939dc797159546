//! The options of the Docker API proxy, and how its containers are attached (cli.md 4.3 step 9, 5).

use std::path::{Path, PathBuf};

use regex::Regex;

use super::flags::boolean;
use super::options::fatal;
use crate::cli::env::{DockerEnv, absolute};
use crate::cli::{Env, Failure};
use crate::docker::proxy::{HostnameRules, Place};
use crate::docker::tls::{self, TlsOptions};

/// The socket in the run directory, which is /var/run/weave as a rule.
const SOCKET: &str = "weave.sock";
const TCP: &str = "tcp://0.0.0.0:12375";

/// Flags.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ProxyArgs {
    /// Serve Docker's API, attaching what is started through it [default: whenever there is Docker]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    proxy: Option<bool>,
    /// Where: tcp://ADDRESS:PORT, unix:///PATH or fd://NAME; may be repeated [default: unix:///var/run/weave/weave.sock,
    /// or tcp://0.0.0.0:12375 if Docker is reached over TCP]
    #[arg(short = 'H', value_name = "ENDPOINT")]
    endpoints: Vec<String>,
    /// TLS at TCP endpoints
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    tls: Option<bool>,
    /// TLS, for clients with a certificate of the authority only
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    tlsverify: Option<bool>,
    /// Certificate of the authority [default: ca.pem in DOCKER_CERT_PATH or ~/.docker]
    #[arg(long, value_name = "FILE")]
    tlscacert: Option<PathBuf>,
    /// Certificate of the proxy [default: cert.pem there]
    #[arg(long, value_name = "FILE")]
    tlscert: Option<PathBuf>,
    /// Its key [default: key.pem there]
    #[arg(long, value_name = "FILE")]
    tlskey: Option<PathBuf>,
    /// Do not take the TLS options of the Docker daemon for TCP endpoints
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    no_detect_tls: Option<bool>,
    /// Host names of containers come from this label, if they have it, instead of their names
    #[arg(long, value_name = "LABEL")]
    hostname_from_label: Option<String>,
    /// What is replaced in it: a regular expression [default: (.*)]
    #[arg(long, value_name = "REGEXP", allow_hyphen_values = true)]
    hostname_match: Option<String>,
    /// By what [default: $1]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    hostname_replacement: Option<String>,
    /// 'docker inspect' tells the address on the network
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    rewrite_inspect: Option<bool>,
    /// Attach only containers with WEAVE_CIDR
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    no_default_ipalloc: Option<bool>,
    /// Leave hosts files of containers alone
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    no_rewrite_hosts: Option<bool>,
    /// No route for multicast in containers
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    no_multicast_route: Option<bool>,
    /// Leave names and nameservers of containers alone
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    without_dns: Option<bool>,
}

/// Is a part of the daemon to run?
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Run {
    /// No.
    #[default]
    Off,
    /// Nobody asked: as soon as it can.
    IfPossible,
    /// The user asked for it: what keeps it from running ends the daemon.
    Asked,
}

/// The proxy, as the daemon is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyOptions {
    /// Is it to run?
    pub run: Run,
    /// Where to listen, each as given.
    pub places: Vec<(String, Place)>,
    /// For TCP.
    pub tls: Option<TlsOptions>,
    /// `--hostname-from-label`; empty: none.
    pub hostname_label: String,
    /// `--hostname-match`, which compiles.
    pub hostname_match: String,
    /// `--hostname-replacement`
    pub hostname_replacement: String,
    /// Answers tell the address on the network.
    pub rewrite_inspect: bool,
    /// Attach also what does not ask for it.
    pub default_ipalloc: bool,
    /// Hosts files get the addresses.
    pub rewrite_hosts: bool,
    /// With a route for multicast.
    pub multicast_route: bool,
    /// With names and nameservers.
    pub dns: bool,
    /// What the user should hear.
    pub notes: Vec<String>,
}

impl ProxyOptions {
    /// `docker_api`: empty without Docker. `daemons`: the command lines of the Docker daemons that run here.
    pub(super) fn new(
        args: &ProxyArgs,
        docker_api: &str,
        env: &DockerEnv,
        run_dir: &Path,
        daemons: impl FnOnce() -> Vec<Vec<String>>,
    ) -> Result<Self, Failure> {
        let run = match (args.proxy, docker_api) {
            (Some(false), _) | (None, "") => Run::Off,
            (Some(true), "") => {
                return Err(fatal(
                    "Could not start proxy: there is no Docker, as --docker-api is empty",
                ));
            }
            (Some(true), _) => Run::Asked,
            (None, _) if args.endpoints.is_empty() => Run::IfPossible,
            (None, _) => Run::Asked,
        };
        let mut texts = args.endpoints.clone();
        if texts.is_empty() {
            let unix = || format!("unix://{}", run_dir.join(SOCKET).display());
            texts.push(if env.client_is_local() {
                unix()
            } else {
                TCP.to_owned()
            });
        }
        let place = |text: String| match text.parse() {
            Ok(place) => Ok((text, place)),
            Err(error @ crate::docker::proxy::InvalidPlace::Relative) => {
                Err(Failure::new(1, error.to_string()))
            }
            Err(error) => Err(fatal(error)),
        };
        let places: Vec<(String, Place)> = texts.into_iter().map(place).collect::<Result<_, _>>()?;
        let hostname_match = args.hostname_match.clone().unwrap_or_else(|| "(.*)".to_owned());
        if let Err(error) = Regex::new(&hostname_match) {
            return Err(fatal(format!(
                "Could not start proxy: Incorrect hostname match '{hostname_match}': {error}"
            )));
        }
        // What a service manager passes may be TCP.
        let is_tcp = |(_, place): &(String, Place)| matches!(place, Place::Tcp(_) | Place::Inherited(_));
        let (tls, notes) = if run != Run::Off && places.iter().any(is_tcp) {
            tls(args, env, daemons)
        } else {
            (given(args, env), Vec::new())
        };
        let on = |flag: Option<bool>| flag.unwrap_or(false);
        Ok(Self {
            run,
            places,
            tls,
            hostname_label: args.hostname_from_label.clone().unwrap_or_default(),
            hostname_match,
            hostname_replacement: args
                .hostname_replacement
                .clone()
                .unwrap_or_else(|| "$1".to_owned()),
            rewrite_inspect: on(args.rewrite_inspect),
            default_ipalloc: !on(args.no_default_ipalloc),
            rewrite_hosts: !on(args.no_rewrite_hosts),
            multicast_route: !on(args.no_multicast_route),
            dns: !on(args.without_dns),
            notes,
        })
    }

    /// How host names come about.
    ///
    /// # Errors
    /// If the expression does not compile, which was checked.
    pub fn hostname_rules(&self) -> Result<HostnameRules, regex::Error> {
        Ok(HostnameRules {
            label: self.hostname_label.clone(),
            pattern: Regex::new(&self.hostname_match)?,
            replacement: self.hostname_replacement.clone(),
        })
    }
}

/// `DOCKER_HOST`, where that is Docker. Who has run `eval "$(weave env)"` in this shell means the proxy by it, and
/// Docker is where it was before; `None`: at its usual place.
pub(super) fn engine(args: &ProxyArgs, env: &Env) -> Option<String> {
    let host = env.docker_host.clone()?;
    match is_ours(args, &host, &env.paths.run_dir) {
        true => env.docker.original.clone().filter(|before| !before.is_empty()),
        false => Some(host),
    }
}

/// Is that an address of the proxy?
fn is_ours(args: &ProxyArgs, host: &str, run_dir: &Path) -> bool {
    let port = |address: &str| address.rsplit_once(':').map(|(_, port)| port.to_owned());
    let given: Vec<Place> = args
        .endpoints
        .iter()
        .filter_map(|text| text.parse().ok())
        .collect();
    match host.parse() {
        Ok(Place::Unix(path)) => {
            let real = |folder: &Path| folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
            let socket = path.file_name().is_some_and(|name| name == SOCKET);
            let here = path.parent().is_some_and(|folder| real(folder) == real(run_dir));
            socket && here || given.contains(&Place::Unix(path))
        }
        Ok(Place::Tcp(address)) if given.is_empty() => port(&address) == port(TCP),
        Ok(Place::Tcp(address)) => given
            .iter()
            .any(|place| matches!(place, Place::Tcp(ours) if port(ours) == port(&address))),
        _ => false,
    }
}

/// TLS as the flags say.
fn given(args: &ProxyArgs, env: &DockerEnv) -> Option<TlsOptions> {
    let verify = args.tlsverify.unwrap_or(false);
    let file = |given: &Option<PathBuf>, name| match given {
        Some(path) => absolute(path),
        None => absolute(&env.cert_dir.join(name)),
    };
    (verify || args.tls.unwrap_or(false)).then(|| TlsOptions {
        verify,
        ca: file(&args.tlscacert, tls::CA),
        cert: file(&args.tlscert, tls::CERT),
        key: file(&args.tlskey, tls::KEY),
    })
}

/// Without a word about TLS, as the Docker daemon has it: who protects the one must not open the other.
fn tls(
    args: &ProxyArgs,
    env: &DockerEnv,
    daemons: impl FnOnce() -> Vec<Vec<String>>,
) -> (Option<TlsOptions>, Vec<String>) {
    let said = args.tls.is_some()
        || args.tlsverify.is_some()
        || [&args.tlscacert, &args.tlscert, &args.tlskey]
            .iter()
            .any(|file| file.is_some());
    if said || args.no_detect_tls.unwrap_or(false) {
        return (given(args, env), Vec::new());
    }
    match daemons().into_iter().next() {
        Some(words) => (given(&of_docker(&words), env), Vec::new()),
        None => {
            let note = "Warning: unable to detect proxy TLS configuration. To enable TLS, launch the proxy with \
                        'weave launch' and supply TLS options. To suppress this warning, supply the '--no-detect-tls' \
                        option.";
            (None, vec![note.to_owned()])
        }
    }
}

/// What a Docker daemon was told about TLS.
fn of_docker(words: &[String]) -> ProxyArgs {
    let mut args = ProxyArgs::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (word.as_str(), None),
        };
        let flag = |value: Option<String>| Some(value.is_none_or(|value| boolean(&value).unwrap_or(false)));
        match name.trim_start_matches('-') {
            "tls" => args.tls = flag(value),
            "tlsverify" => args.tlsverify = flag(value),
            "tlscacert" => args.tlscacert = value.or_else(|| words.next().cloned()).map(Into::into),
            "tlscert" => args.tlscert = value.or_else(|| words.next().cloned()).map(Into::into),
            "tlskey" => args.tlskey = value.or_else(|| words.next().cloned()).map(Into::into),
            _ => {}
        }
    }
    args
}

/// The command lines of all Docker daemons here.
pub(super) fn docker_daemons() -> Vec<Vec<String>> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let words = |process: std::fs::DirEntry| {
        let line = std::fs::read(process.path().join("cmdline")).ok()?;
        let words: Vec<String> = line
            .split(|byte| *byte == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        let program = Path::new(words.first()?).file_name()?.to_str()?;
        let old = || words.iter().any(|word| word == "daemon" || word == "-d");
        (program == "dockerd" || program == "docker" && old()).then_some(words)
    };
    processes.filter_map(words).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: ProxyArgs,
    }

    fn env(client: Option<&str>) -> DockerEnv {
        DockerEnv {
            client: client.map(str::to_owned),
            cert_dir: "/certs".into(),
            ..DockerEnv::default()
        }
    }

    fn options(
        line: &str,
        api: &str,
        client: Option<&str>,
        daemon: Option<&str>,
    ) -> Result<ProxyOptions, Failure> {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let line = Line::try_parse_from(words(&format!("weave {line}"))).unwrap_or_else(|e| panic!("{e}"));
        ProxyOptions::new(&line.args, api, &env(client), Path::new("/run/weave"), || {
            daemon.map(words).into_iter().collect()
        })
    }

    #[test]
    fn wanted_or_not() {
        for (line, api, run) in [
            ("", "unix:///x", Run::IfPossible),
            ("", "", Run::Off),
            ("--proxy=false -H /x", "unix:///x", Run::Off),
            ("--proxy", "unix:///x", Run::Asked),
            ("--proxy=true", "unix:///x", Run::Asked),
            ("-H /x", "unix:///x", Run::Asked),
            ("-H=/x", "", Run::Off),
        ] {
            assert_eq!(options(line, api, None, None).unwrap().run, run, "{line} {api}");
        }
        let error = options("--proxy", "", None, None).unwrap_err();
        assert!(
            error.text.starts_with("FATA: Could not start proxy: "),
            "{error:?}"
        );
    }

    #[test]
    fn the_proxy_is_not_the_docker_behind_it() {
        let docker = |flags: &str, host: &str, before: Option<&str>| {
            let words = format!("weave {flags}");
            let line = Line::try_parse_from(words.split_whitespace()).unwrap_or_else(|e| panic!("{e}"));
            let env = Env::from_lookup(|name| match name {
                "DOCKER_HOST" => Some(host.to_owned()),
                "ORIG_DOCKER_HOST" => before.map(str::to_owned),
                "WEAVE_RUN_DIR" => Some("/none/run".to_owned()),
                _ => None,
            });
            engine(&line.args, &env)
        };
        for (flags, host, before, expected) in [
            (
                "",
                "unix:///none/run/weave.sock",
                Some("tcp://a:2375"),
                Some("tcp://a:2375"),
            ),
            ("", "unix:///none/run/weave.sock", Some(""), None),
            ("", "unix:///none/run/weave.sock", None, None),
            ("-H /l.sock", "unix:///l.sock", None, None),
            (
                "",
                "unix:///none/docker.sock",
                Some("x"),
                Some("unix:///none/docker.sock"),
            ),
            ("", "tcp://a:12375", Some("tcp://a:2375"), Some("tcp://a:2375")),
            ("", "tcp://a:2375", Some("x"), Some("tcp://a:2375")),
            ("-H :99", "tcp://a:99", Some("unix:///d"), Some("unix:///d")),
            ("-H :99", "tcp://a:12375", None, Some("tcp://a:12375")),
            ("", "", None, None),
        ] {
            let found = docker(flags, host, before);
            assert_eq!(found.as_deref(), expected, "{flags} {host} {before:?}");
        }
    }

    #[test]
    fn places() {
        let texts = |line: &str, client| {
            let options = options(line, "x", client, None).unwrap();
            options
                .places
                .into_iter()
                .map(|(text, _)| text)
                .collect::<Vec<_>>()
        };
        assert_eq!(texts("", None), ["unix:///run/weave/weave.sock"]);
        assert_eq!(texts("", Some("unix:///y")), ["unix:///run/weave/weave.sock"]);
        assert_eq!(texts("", Some("tcp://1.2.3.4:2375")), [TCP]);
        assert_eq!(
            texts("-H tcp://:1 -H /x", Some("tcp://1.2.3.4:2375")),
            ["tcp://:1", "/x"]
        );
        for (line, text) in [
            ("-H foo://bar", "FATA: Invalid protocol format: \"foo://bar\""),
            (
                "-H unix://x",
                "When launching the proxy, unix sockets must be specified as an absolute path.",
            ),
        ] {
            assert_eq!(options(line, "x", None, None).unwrap_err(), Failure::new(1, text));
        }
        let error = options("--hostname-match (", "x", None, None).unwrap_err().text;
        assert!(
            error.starts_with("FATA: Could not start proxy: Incorrect hostname match '(': "),
            "{error}"
        );
    }

    #[test]
    fn tls_of_the_flags_or_of_docker() {
        let tls = |verify, names: [&str; 3]| {
            let [ca, cert, key] = names.map(PathBuf::from);
            Some(TlsOptions {
                verify,
                ca,
                cert,
                key,
            })
        };
        let usual = ["/certs/ca.pem", "/certs/cert.pem", "/certs/key.pem"];
        for (line, daemon, expected, notes) in [
            ("-H :1 --tls", None, tls(false, usual), 0),
            (
                "-H :1 --tlsverify --tlskey /k",
                None,
                tls(true, [usual[0], usual[1], "/k"]),
                0,
            ),
            ("-H :1 --tls=false", Some("dockerd --tls"), None, 0),
            (
                "-H :1",
                Some("dockerd --tlsverify --tlscacert=/a --tlscert /b --tlskey=/c -H x"),
                tls(true, ["/a", "/b", "/c"]),
                0,
            ),
            ("-H :1", Some("dockerd --tls=true"), tls(false, usual), 0),
            ("-H :1", Some("dockerd -H unix:///x"), None, 0),
            ("-H :1 --no-detect-tls", Some("dockerd --tls"), None, 0),
            ("-H :1 --no-detect-tls", None, None, 0),
            ("-H :1", None, None, 1),
            // Nobody can listen in on a Unix socket.
            ("-H /x", None, None, 0),
            ("", None, None, 0),
        ] {
            let options = options(line, "x", None, daemon).unwrap();
            assert_eq!(
                (options.tls, options.notes.len()),
                (expected, notes),
                "{line} {daemon:?}"
            );
        }
    }
}
