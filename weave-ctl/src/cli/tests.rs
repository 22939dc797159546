//! What scripts see: arguments, texts, exit statuses; with a double of the daemon.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use tokio::sync::oneshot;

use super::*;
use crate::api::double::Double;
use crate::api::golden;
use crate::api::http::{Listener, control_router, serve};
use crate::api::status::Page;

thread_local! {
    /// What was printed on standard output by this test.
    pub static PRINTED: std::cell::RefCell<String> = const { std::cell::RefCell::new(String::new()) };
}

fn printed() -> String {
    PRINTED.take()
}

/// A control interface; it ends with this.
pub struct Control {
    pub address: String,
    _stop: oneshot::Sender<()>,
    run_dir: tempfile::TempDir,
}

pub async fn control(double: &Double) -> Control {
    let listener = Listener::bind("127.0.0.1:0").await.unwrap().unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (stop, stopped) = oneshot::channel::<()>();
    tokio::spawn(serve(listener, control_router(double.clone()), async {
        let _ = stopped.await;
    }));
    Control {
        address,
        _stop: stop,
        run_dir: tempfile::tempdir().unwrap(),
    }
}

impl Control {
    pub fn client(&self) -> client::Client {
        client::Client::new(&self.address, self.run_dir.path())
    }

    fn context(&self) -> Context {
        let vars = [("WEAVE_HTTP_ADDR", self.address.as_str())];
        Context {
            env: env(&vars),
            local: false,
        }
    }
}

pub fn env(vars: &[(&str, &str)]) -> Env {
    let vars: HashMap<&str, &str> = vars.iter().copied().collect();
    Env::from_lookup(|name| vars.get(name).map(|v| (*v).to_owned()))
}

pub fn words(text: &str) -> Vec<String> {
    text.split(' ')
        .filter(|w| !w.is_empty())
        .map(str::to_owned)
        .collect()
}

fn failure(args: &str) -> Failure {
    run(&words(args), env(&[])).unwrap_err()
}

#[test]
fn usage_and_unknown_commands() {
    assert_eq!(failure(""), Failure::new(1, usage::TEXT));
    for help in ["help", "--help", "--local help"] {
        assert_eq!(failure(help), Failure::new(0, usage::TEXT), "{help}");
    }
    let unknown = failure("no-such-thing x");
    assert_eq!(
        unknown,
        Failure::new(
            1,
            format!("Unknown weave command 'no-such-thing'\n{}", usage::TEXT)
        )
    );
    for wrong in [
        "connect",
        "forget",
        "rmpeer",
        "attach",
        "detach",
        "stop now",
        "prime x",
        "report x",
        "report -f",
        "reset --hard",
        "version x",
        "connect --replaces a",
    ] {
        let failure = failure(wrong);
        assert_eq!(failure.code, 1, "{wrong}");
        assert!(failure.text.ends_with(usage::TEXT), "{wrong}: {}", failure.text);
    }
}

#[test]
fn commands_that_went_and_that_will_come() {
    for name in REMOVED {
        let text = format!(
            "The 'weave {name}' command has been removed as of Weave Net version 2.0\n\
             Please see release notes for further information"
        );
        assert_eq!(failure(&format!("{name} -x y")), Failure::new(1, text));
    }
    for (name, _) in LATER {
        let failure = failure(name);
        assert_eq!(failure.code, 1);
        let first = format!("The 'weave {name}' command is not available in this version.\n");
        assert!(failure.text.starts_with(&first), "{}", failure.text);
    }
}

#[test]
fn the_usage_text_names_every_command() {
    for command in Command::command().get_subcommands() {
        assert!(usage::TEXT.contains(command.get_name()), "{}", command.get_name());
    }
    Command::command()
        .mut_subcommand("launch", launch::with_other_flags)
        .debug_assert();
}

#[tokio::test]
async fn outcomes_of_calls() {
    let double = Double::new(golden::report("04-three-dns.h1"));
    let control = control(&double).await;
    let client = control.client();
    assert_eq!(
        client.call("GET", "/ipinfo/defaultsubnet", &[]).await.unwrap(),
        "10.32.0.0/12"
    );
    assert_eq!(
        client.call("GET", "/proxyaddrs", &[]).await.unwrap_err(),
        Failure::silent(4)
    );
    let bad = client
        .call("POST", "/connect", &[("peer", "a.invalid")])
        .await
        .unwrap_err();
    assert_eq!(bad, Failure::new(1, "unknown host a.invalid\n"));

    let address = control.address.clone();
    let run_dir = tempfile::tempdir().unwrap();
    drop(control);
    // The listener closes with its server, a moment later.
    let refused = loop {
        let asked = client::Client::new(&address, run_dir.path())
            .call("GET", "/ring", &[])
            .await;
        match asked {
            Err(failure) if failure.code == 7 => break failure,
            _ => tokio::task::yield_now().await,
        }
    };
    let first = refused.text.lines().next().unwrap();
    assert_eq!(first, "weave container is not present. Have you launched it?");
    let _lock = lock::Lock::acquire(run_dir.path()).unwrap();
    let refused = client::Client::new(&address, run_dir.path())
        .call("GET", "/ring", &[])
        .await
        .unwrap_err();
    assert!(
        refused.code == 7 && refused.text.starts_with("cannot connect to "),
        "{refused:?}"
    );
}

#[tokio::test]
async fn over_a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s").to_str().unwrap().to_owned();
    let listener = Listener::bind(&path).await.unwrap().unwrap();
    let double = Double::new(golden::report("04-three-dns.h1"));
    tokio::spawn(serve(listener, control_router(double), std::future::pending()));
    let client = client::Client::new(&path, dir.path());
    assert_eq!(
        client.call("GET", "/ipinfo/defaultsubnet", &[]).await.unwrap(),
        "10.32.0.0/12"
    );
}

async fn run_in(control: &Control, args: &str) -> Outcome {
    let context = control.context();
    match parse(&words(args)).unwrap() {
        Command::Connect(args) => targets::connect(args, &context).await,
        Command::Forget(args) => targets::forget(args, &context).await,
        Command::Rmpeer(args) => targets::rmpeer(args, &context).await,
        Command::Prime(_) => targets::prime(&context).await,
        Command::Status(args) => query::status(&args, &context).await,
        Command::Report(args) => query::report(&args, &context).await,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn targets_and_peers() {
    let double = Double::new(golden::report("04-three-dns.h1"));
    let control = control(&double).await;
    for args in [
        "connect a b:1",
        "connect --replace c&d=",
        "connect --replace",
        "forget a b",
        "rmpeer host3 x/y",
        "prime",
    ] {
        assert_eq!(run_in(&control, args).await, Ok(()), "{args}");
    }
    assert_eq!(
        printed(),
        "65536 IPs taken over from host3\n0 IPs taken over from x/y\n"
    );
    assert_eq!(
        double.calls(),
        [
            "connect [\"a\", \"b:1\"] false",
            "connect [\"c&d=\"] true",
            "connect [] true",
            "forget [\"a\", \"b\"]",
            "remove host3",
            "remove x/y",
        ]
    );
}

#[tokio::test]
async fn status_and_report() {
    let control = control(&Double::new(golden::report("04-three-dns.h1"))).await;
    for (args, shown) in [
        (
            "status",
            format!("\n{}\n", golden::text("04-three-dns.h1_status.txt")),
        ),
        (
            "status connections",
            golden::text("04-three-dns.h1_status_connections.txt"),
        ),
        ("report", golden::text("04-three-dns.h1.report.json")),
        ("report -f {{.Ready}}", "true".to_owned()),
        ("prime", String::new()),
    ] {
        assert_eq!(run_in(&control, args).await, Ok(()), "{args}");
        assert_eq!(printed(), shown, "{args}");
    }
    let unknown = run_in(&control, "status nope").await.unwrap_err();
    assert_eq!(
        unknown,
        Failure::new(
            1,
            format!("Invalid 'weave status' sub-command: nope\n{}", usage::TEXT)
        )
    );
    let bad = run_in(&control, "report -f {{").await.unwrap_err();
    assert_eq!(bad, Failure::new(1, "template: format:1: unclosed action\n"));
}

#[tokio::test]
async fn parts_that_are_off() {
    let control = control(&Double::without_ipam()).await;
    assert_eq!(run_in(&control, "prime").await, Err(Failure::silent(4)));
    let disabled = run_in(&control, "status ipam").await.unwrap_err();
    assert_eq!(disabled, Failure::new(1, "error during template execution\n"));
}

#[tokio::test]
async fn a_failed_summary_is_two_empty_lines() {
    let double = Double::without_ipam();
    double.ready.store(false, std::sync::atomic::Ordering::SeqCst);
    let control = control(&double).await;
    let early = run_in(&control, "status").await.unwrap_err();
    assert_eq!(early.code, 1);
    assert!(early.text.contains("Service: router"));
    assert_eq!(printed(), "\n\n");
}

#[test]
fn what_was_probably_meant() {
    for (typed, hint) in [
        (
            "stauts",
            "Unknown weave command 'stauts'\nDid you mean 'status'?\n",
        ),
        (
            "atach web",
            "Unknown weave command 'atach'\nDid you mean 'attach'?\n",
        ),
        (
            "connect --replaces a",
            "unexpected argument '--replaces' found\nDid you mean '--replace'?\n\n",
        ),
    ] {
        let failure = failure(typed);
        assert_eq!(failure.code, 1);
        assert_eq!(failure.text, format!("{hint}{}", usage::TEXT), "{typed}");
    }
    let flag = failure("launch --ipaloc-range 10.0.0.0/8");
    assert_eq!(
        flag,
        Failure::new(
            125,
            "flag provided but not defined: --ipaloc-range\nDid you mean '--ipalloc-range'?\nSee 'weave --help'."
        )
    );
}

#[test]
fn every_command_has_examples() {
    for command in Command::command().get_subcommands() {
        let after = command
            .get_after_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        assert!(after.contains("Example"), "{}", command.get_name());
    }
}

#[tokio::test]
async fn pages_as_json() {
    let report = golden::report("04-three-dns.h1");
    let control = control(&Double::new(report.clone())).await;
    for (args, page) in [
        ("status -o json", Page::Summary),
        ("status connections --output json", Page::Connections),
        ("status --output=json ipam", Page::Ipam),
    ] {
        assert_eq!(run_in(&control, args).await, Ok(()), "{args}");
        let value: serde_json::Value = serde_json::from_str(&printed()).unwrap();
        assert_eq!(Some(value), page.json(&report), "{args}");
    }
    for wrong in ["status -o yaml", "status --watch=0", "status --watch=x"] {
        assert_eq!(failure(wrong).code, 1, "{wrong}");
    }
    let near = run_in(&control, "status connection").await.unwrap_err();
    let text = "Invalid 'weave status' sub-command: connection\nDid you mean 'connections'?\n";
    assert!(near.code == 1 && near.text.starts_with(text), "{near:?}");
}
