//! Flags, their errors, and what the options become.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::super::tests::{env, words};
use super::super::{Command, parse};
use super::start::range_outcome;
use super::*;
use crate::cli::Failure;
use crate::ipam::mode::InitMode;
use crate::mesh::crypto::Password;
use crate::net::NetError;
use crate::overlay::fastdp::xdp::Wanted;

fn args(text: &str) -> Result<LaunchArgs, Failure> {
    match parse(&words(&format!("launch {text}")))? {
        Command::Launch(args) => Ok(*args),
        other => panic!("{other:?}"),
    }
}

fn options_with(text: &str, vars: &[(&str, &str)]) -> Result<LaunchOptions, Failure> {
    LaunchOptions::new(args(text)?, &env(vars))
}

fn options(text: &str) -> LaunchOptions {
    options_with(text, &[]).unwrap_or_else(|e| panic!("{text}: {e:?}"))
}

#[test]
fn defaults() {
    let o = options("");
    assert_eq!(
        (o.name, o.port, o.min_protocol_version, o.conn_limit),
        (None, 6783, 1, 200)
    );
    assert_eq!(
        (o.discovery, o.resume, o.host, o.mtu, o.xdp),
        (true, false, None, Mtu::Auto, Wanted::Auto)
    );
    assert_eq!(
        (o.bridge.as_str(), o.docker_api.as_str()),
        ("weave", "unix:///var/run/docker.sock")
    );
    assert_eq!(
        (
            o.http_addr.as_str(),
            o.status_addr.as_str(),
            o.metrics_addr.as_str()
        ),
        ("127.0.0.1:6784", "127.0.0.1:6782", "")
    );
    assert!(o.peers.is_empty() && !o.nickname.is_empty());
    let ipam = o.ipam.unwrap_or_else(|| panic!("on by default"));
    assert_eq!(
        (ipam.range.to_string().as_str(), ipam.range_is_default),
        ("10.32.0.0/12", true)
    );
    assert_eq!(
        (ipam.default_subnet, ipam.init),
        (ipam.range, InitMode::Consensus(None))
    );
    assert_eq!(o.paths.data_dir, Path::new("/var/lib/weave"));
}

#[test]
fn values() {
    let o = options(
        "--name ::1 --nickname=n --port 7000 --host 192.0.2.1 --no-discovery --conn-limit=0 --mtu 1400 --xdp off \
         --ipalloc-range 10.2.0.0/16 --ipalloc-default-subnet=10.2.3.0/24 --ipalloc-init seed=::1,::2 \
         --http-addr /run/x.sock --status-addr= --metrics-addr :9 --log-level warning --docker-api= \
         --weave-bridge w --data-dir /d --min-protocol-version 2 a b:1 --no-discovery=false",
    );
    assert_eq!(
        o.name.map(|n| n.to_string()).as_deref(),
        Some("00:00:00:00:00:01")
    );
    assert_eq!(
        (o.nickname.as_str(), o.port, o.conn_limit, o.discovery),
        ("n", 7000, 0, false)
    );
    assert_eq!(
        (o.mtu, o.xdp, o.min_protocol_version),
        (Mtu::Bytes(1400), Wanted::Off, 2)
    );
    assert_eq!(
        (
            o.http_addr.as_str(),
            o.status_addr.as_str(),
            o.metrics_addr.as_str()
        ),
        ("/run/x.sock", "", ":9")
    );
    assert_eq!((o.docker_api.as_str(), o.bridge.as_str()), ("", "w"));
    assert_eq!(o.paths.data_dir, Path::new("/d"));
    assert_eq!(
        o.peers,
        ["a", "b:1", "--no-discovery=false"],
        "options end at the first peer"
    );
    let ipam = o.ipam.unwrap_or_else(|| panic!("on"));
    assert_eq!(
        (ipam.range.to_string().as_str(), ipam.range_is_default),
        ("10.2.0.0/16", false)
    );
    assert_eq!(ipam.default_subnet.to_string(), "10.2.3.0/24");
    assert!(matches!(ipam.init, InitMode::Seed(seeds) if seeds.len() == 2));
}

#[test]
fn forms_of_flags() {
    assert!(!options("--no-discovery=t").discovery);
    assert!(options("--no-discovery=0").discovery);
    assert!(
        options("--no-discovery --no-discovery=false").discovery,
        "the last one counts"
    );
    assert_eq!(options("--port 1 --port=2").port, 2);
    assert_eq!(options("-port=2").port, 2);
    assert_eq!(options("-iprange 10.2.0.0/16 --nickname=\"a\"").nickname, "a");
    assert_eq!(options("-- -port").peers, ["-port"]);
    assert_eq!(options("--no-discovery peer").peers, ["peer"]);
    assert!(options("--ipalloc-range=").ipam.is_none());
}

#[test]
fn wrong_flags() {
    for (text, error) in [
        ("--nope", "flag provided but not defined: --nope"),
        ("--nope=1 a", "flag provided but not defined: --nope"),
        ("--port", "flag needs an argument: --port"),
        (
            "--port x",
            "invalid value \"x\" for flag --port: invalid digit found in string",
        ),
        (
            "--port 65535",
            "invalid value \"65535\" for flag --port: 65535 is not in 1..=65534",
        ),
        (
            "--mtu 5",
            "invalid value \"5\" for flag --mtu: auto, or a number of bytes from 576 to 65535",
        ),
        (
            "--xdp fast",
            "invalid value \"fast\" for flag --xdp: unknown XDP mode \"fast\": use auto, native, generic or off",
        ),
        (
            "--no-discovery=maybe",
            "invalid boolean value \"maybe\" for  --no-discovery: invalid syntax",
        ),
        (
            "--no-dns=maybe",
            "invalid boolean value \"maybe\" for  --no-dns: invalid syntax",
        ),
        ("--dns-domain", "flag needs an argument: --dns-domain"),
        (
            "--dns-ttl -1",
            "invalid value \"-1\" for flag --dns-ttl: -1 is not in 0..=2147483647",
        ),
        (
            "--dns-fallback-timeout 5",
            "invalid value \"5\" for flag --dns-fallback-timeout: time: invalid duration 5",
        ),
    ] {
        let failure = args(text).err().unwrap_or_else(|| panic!("{text}"));
        assert_eq!(
            failure,
            Failure::new(125, format!("{error}\nSee 'weave --help'.")),
            "{text}"
        );
    }
}

#[test]
fn start_up_errors() {
    for (text, error) in [
        ("--name zz", "invalid peer name format: \"zz\""),
        (
            "--resume a",
            "You must not specify an initial peer list in conjunction with --resume",
        ),
        ("--log-level loud", "not a valid logrus Level: \"loud\""),
        (
            "--min-protocol-version 3",
            "--min-protocol-version must be in range [1,2]",
        ),
        (
            "--ipalloc-range= --ipalloc-init observer",
            "--ipalloc-init specified without --ipalloc-range.",
        ),
        (
            "--ipalloc-range= --ipalloc-default-subnet 10.0.0.0/8",
            "--ipalloc-default-subnet specified without --ipalloc-range.",
        ),
        (
            "--ipalloc-init what",
            "Unable to parse --ipalloc-init: unknown mode: what",
        ),
        (
            "--ipalloc-init seed",
            "Unable to parse --ipalloc-init: seed mode requires peer name list",
        ),
        (
            "--ipalloc-init seed=x",
            "Unable to parse --ipalloc-init: bad seed parameter: error parsing peer names: invalid peer name format: \"x\"",
        ),
        (
            "--ipalloc-init observer=1",
            "Unable to parse --ipalloc-init: observer mode takes no parameter",
        ),
        (
            "--ipalloc-range 10.2.3.4/16",
            "invalid subnet - bits after network prefix are not all zero: 10.2.3.4/16",
        ),
        (
            "--ipalloc-range 10.2.3.4/31",
            "invalid subnet - smaller than minimum size 4: 10.2.3.4/31",
        ),
        (
            "--ipalloc-default-subnet 10.2.0.0/16",
            "IP address allocation default subnet 10.2.0.0/16 does not overlap with allocation range 10.32.0.0/12",
        ),
        (
            "--dns-listen-address 172.17.0.1",
            "Unable to start dns server: invalid DNS listen address \"172.17.0.1\": an IPv4 address and a port are \
             wanted, like 172.17.0.1:53",
        ),
        (
            "--dns-domain a..b",
            "Unable to start dns server: invalid DNS domain \"a..b.\"",
        ),
        // Several at once: the first of the list is told.
        (
            "--name zz --log-level loud --ipalloc-init what",
            "invalid peer name format: \"zz\"",
        ),
    ] {
        assert_eq!(
            options_with(text, &[]),
            Err(Failure::new(1, format!("FATA: {error}"))),
            "{text}"
        );
    }
}

#[test]
fn dns_options() {
    let dns = |text: &str| options(text).dns.unwrap_or_else(|| panic!("{text}"));
    let default = dns("");
    assert_eq!((default.domain.as_str(), default.ttl), ("weave.local.", 1));
    assert_eq!((default.listen, default.fallback_timeout.as_secs()), (None, 5));
    assert_eq!(options("").docker_bridge, "docker0");
    assert_eq!(
        default.resolv_conf.as_deref(),
        Some(Path::new("/etc/resolv.conf"))
    );
    let given = dns(
        "--dns-domain Corp.example --dns-ttl 30 --dns-listen-address=:5353 --dns-fallback-timeout 1m30s \
         --resolv-conf=",
    );
    assert_eq!((given.domain.as_str(), given.ttl), ("Corp.example.", 30));
    assert_eq!(
        given.listen.map(|a| a.to_string()).as_deref(),
        Some("0.0.0.0:5353")
    );
    assert_eq!((given.fallback_timeout.as_secs(), given.resolv_conf), (90, None));
    assert_eq!(options("--docker-bridge br0").docker_bridge, "br0");
    assert!(options("--no-dns").dns.is_none() && options("--no-dns=false").dns.is_some());
}

fn password(text: &str, variable: &str) -> Option<Password> {
    let options = options_with(text, &[("WEAVE_PASSWORD", variable)]);
    options.unwrap_or_else(|e| panic!("{text}: {e:?}")).password
}

fn refusal(text: &str) -> String {
    let failure = options_with(text, &[]).err().unwrap_or_else(|| panic!("{text}"));
    assert_eq!(failure.code, 1, "{text}");
    failure.text
}

#[test]
fn passwords() {
    for (text, variable, expected) in [
        ("--password geheim", "", "geheim"),
        ("--password geheim --port 1 a", "variable", "geheim"),
        ("-password=geheim", "", "geheim"),
        ("--password=\"geheim\"", "", "geheim"),
        ("--password -x", "", "-x"),
        ("--password a --password geheim", "", "geheim"),
        ("", "geheim", "geheim"),
        ("a b", "geheim ", "geheim "),
        ("--password=", "variable", ""),
        ("", "", ""),
    ] {
        let given = password(text, variable);
        let bytes = given.as_ref().map(Password::as_bytes);
        let expected = Some(expected.as_bytes()).filter(|e| !e.is_empty());
        assert_eq!(bytes, expected, "{text} {variable}");
    }
    assert!(refusal("--password x --password-file y").contains("both given"));
    assert!(refusal("--password \u{fffd}x").contains("UTF-8"));
    assert!(refusal(&format!("--password {}", "x".repeat(4096))).contains("longer than 4095 bytes"));
    for text in ["host2 --password geheim", "host2 -password=geheim"] {
        let told = refusal(text);
        assert!(
            told.contains("before the peers") && !told.contains("geheim"),
            "{told}"
        );
    }
}

#[test]
fn password_files() {
    let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
    let path = dir.path().join("password");
    let option = format!("--password-file {}", path.display());
    let write = |bytes: &[u8]| {
        let written = std::fs::write(&path, bytes);
        written
            .and_then(|()| std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)))
            .unwrap_or_else(|e| panic!("{e}"));
    };

    assert!(refusal(&option).starts_with("FATA: cannot read the password from "));
    assert!(refusal(&format!("--password-file {}", dir.path().display())).contains("Is a directory"));
    for empty in [b"".as_slice(), b"\n"] {
        write(empty);
        assert!(refusal(&option).contains(" is empty: "));
    }
    for (content, expected) in [
        (b"geheim".as_slice(), b"geheim".as_slice()),
        (b"geheim\n", b"geheim"),
        (b"geheim\n\n", b"geheim\n"),
        (b" ge\xff\0heim\r\n", b" ge\xff\0heim\r"),
        (&[b'x'; 4095], &[b'x'; 4095]),
    ] {
        write(content);
        let given = password(&option, "variable");
        assert_eq!(given.as_ref().map(Password::as_bytes), Some(expected));
    }
    write(&[b'x'; 10_000]);
    assert!(refusal(&option).contains("longer than 4095 bytes"));
}

#[test]
fn nothing_prints_a_password() {
    let args = args("--password geheim").unwrap_or_else(|e| panic!("{e:?}"));
    let env = env(&[("WEAVE_PASSWORD", "geheim")]);
    let options = LaunchOptions::new(args.clone(), &env);
    for printed in [format!("{args:?}"), format!("{env:?}"), format!("{options:?}")] {
        assert!(
            printed.contains("Password(..)") && !printed.contains("geheim"),
            "{printed}"
        );
    }
}

#[test]
fn trusted_subnets_and_no_fastdp() {
    let texts = |o: LaunchOptions| o.trusted_subnets.texts().collect::<Vec<_>>();
    assert_eq!(texts(options("")), [""; 0]);
    assert_eq!(texts(options("--trusted-subnets=")), [""; 0]);
    assert_eq!(
        texts(options("--trusted-subnets 10.0.1.2/24,192.0.2.0/25")),
        ["10.0.1.0/24", "192.0.2.0/25"]
    );
    assert_eq!(
        refusal("--trusted-subnets 10.0.0.0/8,10.0.0.0"),
        "FATA: Unable to parse trusted subnets: invalid CIDR address: 10.0.0.0. Give --trusted-subnets as \
         10.0.1.0/24,10.0.2.0/24."
    );
    for (text, variable, expected) in [
        ("", "", false),
        ("--no-fastdp", "", true),
        ("--no-fastdp=true a", "", true),
        ("", "false", true),
        ("--no-fastdp=false", "1", false),
    ] {
        let o = options_with(text, &[("WEAVE_NO_FASTDP", variable)]);
        assert_eq!(
            o.map(|o| o.no_fastdp),
            Ok(expected),
            "{text} WEAVE_NO_FASTDP={variable}"
        );
    }
}

#[test]
fn flags_of_other_parts() {
    for text in ["--awsvpc", "--expect-npc", "--token x"] {
        let failure = options_with(text, &[]).err().unwrap_or_else(|| panic!("{text}"));
        let flag = text.split([' ', '=']).next().unwrap_or_default();
        assert!(
            failure.code == 1 && failure.text.starts_with(&format!("FATA: {flag}: ")),
            "{failure:?}"
        );
    }
    let notes = |text: &str| {
        args(text)
            .map(|a| a.other.notes)
            .unwrap_or_else(|e| panic!("{text}: {e:?}"))
    };
    assert_eq!(notes("--plugin=false --proxy=false --awsvpc=false"), [""; 0]);
    assert_eq!(notes("--datapath datapath --no-restart").len(), 2);
}

#[test]
fn environment() {
    let vars = [
        ("WEAVE_PORT", "7000"),
        ("WEAVE_MTU", "1300"),
        ("WEAVE_HTTP_ADDR", "127.0.0.1:1"),
        ("WEAVE_STATUS_ADDR", ""),
        ("WEAVE_DATA_DIR", "/d"),
        ("WEAVE_RUN_DIR", "/r"),
        ("WEAVE_BPF_DIR", "/b"),
        ("DOCKER_HOST", "tcp://x"),
    ];
    let o = options_with("", &vars).unwrap_or_else(|e| panic!("{e:?}"));
    assert_eq!(
        (o.port, o.mtu, o.http_addr.as_str(), o.status_addr.as_str()),
        (7000, Mtu::Bytes(1300), "127.0.0.1:1", "")
    );
    assert_eq!(o.docker_api, "tcp://x");
    let paths =
        [&o.paths.data_dir, &o.paths.run_dir, &o.paths.bpf_dir].map(|p| p.to_string_lossy().into_owned());
    assert_eq!(paths, ["/d", "/r", "/b"]);
    let o = options_with("--port 1 --mtu auto --data-dir /e", &vars).unwrap_or_else(|e| panic!("{e:?}"));
    assert_eq!(
        (o.port, o.mtu, o.paths.data_dir.as_path()),
        (1, Mtu::Auto, Path::new("/e"))
    );
    assert_eq!(
        options_with("", &[("WEAVE_PORT", "x")]).err().map(|f| f.code),
        Some(1)
    );
}

#[test]
fn overlapping_ranges() {
    let overlap = || {
        let cidr = |t: &str| t.parse().unwrap_or_else(|e| panic!("{e}"));
        Err(NetError::NetworkOverlap {
            network: cidr("10.32.0.0/12"),
            route: cidr("10.40.0.0/16"),
        })
    };
    let never = |line: &str| panic!("{line}");
    assert_eq!(range_outcome(Ok(()), true, "10.32.0.0/12", never), Ok(()));
    assert_eq!(
        range_outcome(overlap(), true, "10.32.0.0/12", never),
        Err(Failure::new(
            1,
            "Network 10.32.0.0/12 overlaps with existing route 10.40.0.0/16 on host\n\
             ERROR: Default --ipalloc-range 10.32.0.0/12 overlaps with existing route on host.\n\
             You must pick another range and set it on all hosts."
        ))
    );
    let told = std::cell::RefCell::new(Vec::new());
    let warn = |line: &str| told.borrow_mut().push(line.to_owned());
    assert_eq!(range_outcome(overlap(), false, "10.32.0.0/12", warn), Ok(()));
    assert_eq!(
        *told.borrow(),
        [
            "WARNING: Specified --ipalloc-range 10.32.0.0/12 overlaps with existing route on host.",
            "Unless this is deliberate, you must pick another range and set it on all hosts.",
        ]
    );
}
