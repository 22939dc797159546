//! Requests over real sockets, answers compared with an original's.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;

use super::*;
use crate::api::double::Double;
use crate::api::golden;

const PATIENCE: Duration = Duration::from_secs(20);

struct Server {
    addr: SocketAddr,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

async fn server(router: axum::Router) -> Server {
    let listener = Listener::bind("127.0.0.1:0").await.unwrap().unwrap();
    let addr = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(serve(listener, router, async {
        let _ = stopped.await;
    }));
    Server { addr, stop, task }
}

#[derive(Debug, PartialEq)]
struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Answer {
    /// Without what may differ: the date, how the connection goes on, and hints for 405.
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\n\n").unwrap_or((text.trim_end(), ""));
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers: BTreeMap<String, String> = lines
            .map(|l| l.split_once(": ").unwrap())
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        for name in ["date", "connection", "allow"] {
            headers.remove(name);
        }
        let length = headers.remove("content-length").map_or(0, |l| l.parse().unwrap());
        Self {
            status,
            headers,
            body: body
                .get(..length)
                .unwrap_or_else(|| panic!("short: {text:?}"))
                .to_owned(),
        }
    }
}

async fn ask_on(
    mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    request: &str,
) -> Answer {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut text))
        .await
        .unwrap()
        .unwrap();
    Answer::parse(&text.replace("\r\n", "\n"))
}

async fn ask(server: &Server, method: &str, path: &str, headers: &str, body: &str) -> Answer {
    let stream = TcpStream::connect(server.addr).await.unwrap();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: weave\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    );
    ask_on(stream, &request).await
}

const FORM: &str = "Content-Type: application/x-www-form-urlencoded\r\n";

fn double() -> Double {
    let double = Double::new(golden::report("04-three-dns.h1"));
    double.own("x1", "10.32.0.2/12");
    double.own("c1", "10.32.0.1/12");
    double
}

#[tokio::test]
async fn answers_are_the_originals() {
    let server = server(control_router(double())).await;
    let text = golden::text("05-http-codes.txt").replace("\r\n", "\n");
    let mut asked = 0;
    for record in text.split("\n### ") {
        let (request, answer) = record.trim_start_matches("### ").split_once('\n').unwrap();
        let (method, rest) = request.split_once(' ').unwrap();
        let (path, options) = rest.split_once(' ').unwrap_or((rest, ""));
        if options.contains("invalid") {
            continue; // the text of a resolver's error is the resolver's own
        }
        let form: Vec<&str> = options
            .split("--data-urlencode ")
            .skip(1)
            .map(str::trim)
            .collect();
        let headers = match options.strip_prefix("-H ") {
            Some(header) => format!("{header}\r\n"),
            None if form.is_empty() => String::new(),
            None => FORM.to_owned(),
        };
        let ours = ask(&server, method, path, &headers, &form.join("&")).await;
        assert_eq!(ours, Answer::parse(answer), "{request}");
        asked += 1;
    }
    assert_eq!(asked, 51);
}

#[tokio::test]
async fn what_is_remembered_of_attach() {
    let double = double();
    let server = server(control_router(double.clone())).await;
    for (method, path, status) in [
        (
            "PUT",
            "/attachment/c1?addr=net:10.32.0.1/12+10.2.0.1/24&dns=true&rewrite-hosts=false&add-host=db:10.0.0.7",
            204,
        ),
        ("PUT", "/attachment/c1?addr=10.32.0.1", 400),
        ("DELETE", "/attachment/c1?addr=10.2.0.1+10.2.0.2", 204),
    ] {
        assert_eq!(ask(&server, method, path, "", "").await.status, status, "{path}");
    }
    assert_eq!(
        double.calls(),
        [
            "attached c1 net:10.32.0.1/12 10.2.0.1/24 false true false [db:10.0.0.7]",
            "detached c1 10.2.0.1 10.2.0.2",
        ]
    );
}

#[tokio::test]
async fn names_by_container_address_and_name() {
    let double = double();
    let server = server(control_router(double.clone())).await;
    for (method, path, status) in [
        (
            "PUT",
            "/name/c1/10.32.0.1?fqdn=a.weave.local&check-alive=true",
            204,
        ),
        ("DELETE", "/name/c1/10.32.0.1?fqdn=a", 204),
        ("DELETE", "/name/weave:extern/bad", 400),
        ("DELETE", "/name/weave:extern", 204),
        ("DELETE", "/name?fqdn=a", 204),
        ("DELETE", "/name?fqdn=", 204),
    ] {
        assert_eq!(ask(&server, method, path, "", "").await.status, status, "{path}");
    }
    let filter = |container: &str, addr: &str, name: &str| {
        format!("no name Filter {{ container: {container}, addr: {addr}, name: {name} }}")
    };
    assert_eq!(
        double.calls(),
        [
            "name c1 10.32.0.1 a.weave.local true".to_owned(),
            filter(r#"Some("c1")"#, "Some(169869313)", r#"Some("a")"#),
            filter(r#"Some("weave:extern")"#, "None", "None"),
            filter("None", "None", r#"Some("a")"#),
            filter("None", "None", "None"),
        ]
    );
    let port = ask(&server, "GET", "/dns-address-port", "", "").await;
    assert_eq!((port.status, port.body.as_str()), (200, "172.17.0.1:53"));
}

#[tokio::test]
async fn parameters_come_from_query_and_form() {
    let double = double();
    let server = server(control_router(double.clone())).await;
    let answer = ask(
        &server,
        "POST",
        "/connect?peer=c",
        FORM,
        "peer=a&replace=true&peer=b%3A1",
    )
    .await;
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));
    ask(&server, "POST", "/connect", "", "peer=not-a-form").await;
    ask(&server, "DELETE", "/ip/x1?peer=c", FORM, "").await;
    ask(&server, "POST", "/ip/a%2Fb?check-alive=true", "", "").await;
    ask(
        &server,
        "PUT",
        "/ip/a:b/10.0.0.1/8?noErrorOnUnknown=true",
        FORM,
        "check-alive=true",
    )
    .await;
    assert_eq!(
        double.calls(),
        [
            "connect [\"a\", \"b:1\", \"c\"] true",
            "connect [] false",
            "free x1",
            "allocate a/b None true",
            "claim a:b 10.0.0.1/8 true true",
        ]
    );
}

#[tokio::test]
async fn errors_of_the_backend() {
    let server = server(control_router(double())).await;
    let answer = ask(&server, "POST", "/connect", FORM, "peer=a.invalid&peer=b.invalid").await;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (400, "unknown host a.invalid\nunknown host b.invalid\n")
    );
    let answer = ask(&server, "POST", "/ip/cancelled", "", "").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "cancelled"));
    let answer = ask(&server, "POST", "/connect", FORM, &"peer=x&".repeat(20_000)).await;
    assert_eq!(answer.status, 413);
    let answer = ask(&server, "PUT", "/status", "", "").await;
    assert_eq!((answer.status, answer.body.as_str()), (405, ""));
    for path in ["/status", "/report", "/metrics", "/ring", "/domain"] {
        let answer = ask(&server, "HEAD", path, "", "").await;
        assert_eq!((answer.status, answer.body.as_str()), (405, ""), "{path}");
    }
}

#[tokio::test]
async fn report_as_json_and_by_format() {
    let server = server(control_router(double())).await;
    let json = ask(&server, "GET", "/report", "Accept: application/json\r\n", "").await;
    assert_eq!(json.body, golden::text("04-three-dns.h1.report.json"));
    assert_eq!(json.headers["content-type"], "application/json");
    let other = ask(&server, "GET", "/report", "Accept: application/json, */*\r\n", "").await;
    assert_eq!(other.status, 400);
    let text = ask(
        &server,
        "GET",
        "/report?format=%7B%7Blen+.DNS.Entries%7D%7D%0A",
        "",
        "",
    )
    .await;
    assert_eq!((text.status, text.body.as_str()), (200, "3\n"));
    let two = ask(&server, "GET", "/report?format=a&format=b", "", "").await;
    assert_eq!(
        (two.status, two.body.as_str()),
        (400, "error: must supply one format parameter\n")
    );
}

#[tokio::test]
async fn without_ipam_and_dns_their_routes_do_not_exist() {
    let server = server(control_router(Double::without_ipam())).await;
    for (method, path) in [
        ("GET", "/ip"),
        ("POST", "/ip/c"),
        ("GET", "/ring"),
        ("GET", "/ipinfo/defaultsubnet"),
        ("GET", "/ipinfo/tracker"),
        ("GET", "/name"),
        ("PUT", "/name/c/10.32.0.1"),
        ("GET", "/domain"),
        ("GET", "/dns-address"),
    ] {
        let answer = ask(&server, method, path, "", "").await;
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (404, "404 page not found\n"),
            "{path}"
        );
        assert_eq!(answer.headers["x-content-type-options"], "nosniff");
    }
    let page = ask(&server, "GET", "/status/ipam", "", "").await;
    assert_eq!(
        (page.status, page.body.as_str()),
        (500, "error during template execution\n")
    );
    assert_eq!(ask(&server, "GET", "/metrics", "", "").await.status, 200);
    let gone = ask(&server, "DELETE", "/peer/host2", "", "").await;
    assert_eq!((gone.status, gone.body.as_str()), (200, ""));
}

#[tokio::test]
async fn nothing_owned_is_null() {
    let server = server(control_router(Double::new(golden::report(
        "15-consensus-wait.h1",
    ))))
    .await;
    let answer = ask(&server, "GET", "/ip", "", "").await;
    assert_eq!(answer.body, "{\"owned\":null}\n");
}

#[tokio::test]
async fn not_ready_is_503_with_the_body() {
    let double = double();
    double.ready.store(false, Ordering::SeqCst);
    let server = server(status_router(double.clone())).await;
    for page in ["", "/targets", "/connections", "/peers", "/ipam"] {
        let early = ask(&server, "GET", &format!("/status{page}"), "", "").await;
        double.ready.store(true, Ordering::SeqCst);
        let late = ask(&server, "GET", &format!("/status{page}"), "", "").await;
        double.ready.store(false, Ordering::SeqCst);
        assert_eq!((early.status, late.status), (503, 200));
        assert_eq!(early.body, late.body);
    }
    assert_eq!(ask(&server, "GET", "/report?format=x", "", "").await.status, 200);
}

#[tokio::test]
async fn the_lesser_listeners_serve_less() {
    let status = server(status_router(double())).await;
    let metrics = server(metrics_router(double())).await;
    assert_eq!(ask(&status, "POST", "/connect", FORM, "peer=a").await.status, 404);
    assert_eq!(ask(&status, "GET", "/ip", "", "").await.status, 404);
    assert_eq!(ask(&status, "GET", "/metrics", "", "").await.status, 200);
    assert_eq!(ask(&metrics, "GET", "/status", "", "").await.status, 404);
    let answer = ask(&metrics, "GET", "/metrics", "", "").await;
    assert_eq!(
        answer.headers["content-type"],
        "text/plain; version=0.0.4; charset=utf-8"
    );
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_its_request() {
    let double = double();
    let server = server(control_router(double.clone())).await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    stream
        .write_all(b"POST /ip/forever HTTP/1.1\r\nHost: weave\r\n\r\n")
        .await
        .unwrap();
    tokio::time::timeout(PATIENCE, double.waiting.notified())
        .await
        .unwrap();
    drop(stream);
    tokio::time::timeout(PATIENCE, double.dropped.notified())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_running_request_may_end_after_the_stop_signal() {
    let double = double();
    let server = server(control_router(double.clone())).await;
    let request = "POST /ip/forever HTTP/1.1\r\nHost: weave\r\n\r\n";
    let stream = TcpStream::connect(server.addr).await.unwrap();
    let asked = tokio::spawn(async move { ask_on(stream, request).await });
    tokio::time::timeout(PATIENCE, double.waiting.notified())
        .await
        .unwrap();
    server.stop.send(()).unwrap();
    double.gate.notify_one();
    assert_eq!(asked.await.unwrap().body, "10.32.0.9/12");
    tokio::time::timeout(PATIENCE, server.task)
        .await
        .unwrap()
        .unwrap();
    assert!(TcpStream::connect(server.addr).await.is_err());
}

#[tokio::test]
async fn unix_sockets() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    let name = path.to_str().unwrap();
    // What a killed daemon leaves behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let listener = Listener::bind(name).await.unwrap().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(serve(listener, control_router(double()), async {
        let _ = stopped.await;
    }));
    let stream = UnixStream::connect(&path).await.unwrap();
    let request = "GET /ipinfo/defaultsubnet HTTP/1.1\r\nHost: weave\r\nConnection: close\r\n\r\n";
    assert_eq!(ask_on(stream, request).await.body, "10.32.0.0/12");
    stop.send(()).unwrap();
    tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
    assert!(!path.exists());

    std::fs::write(&path, "precious").unwrap();
    assert!(Listener::bind(name).await.is_err());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[tokio::test]
async fn bad_and_blank_addresses() {
    assert!(Listener::bind(" ").await.unwrap().is_none());
    let taken = Listener::bind("127.0.0.1:0").await.unwrap().unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let error = Listener::bind(&addr).await.unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("Unable to create http listener socket: listen {addr}: ")),
        "{error}"
    );
}

#[tokio::test]
async fn pages_as_json_and_for_terminals() {
    let server = server(control_router(double())).await;
    let json = "Accept: application/json\r\n";
    let report = golden::report("04-three-dns.h1");
    for (path, page) in crate::api::status::Page::ALL {
        let answer = ask(&server, "GET", path, json, "").await;
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(answer.headers["content-type"], "application/json");
        let value: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(Some(value), page.json(&report), "{path}");
        let aligned = ask(&server, "GET", &format!("{path}?aligned=true"), "", "").await;
        assert_eq!(Some(aligned.body), page.render(&report, true), "{path}");
        let other = ask(&server, "GET", path, "Accept: application/json, */*\r\n", "").await;
        assert_eq!(Some(other.body), page.render(&report, false), "{path}");
    }
    let server = self::server(control_router(Double::without_ipam())).await;
    let off = ask(&server, "GET", "/status/ipam", json, "").await;
    assert_eq!(
        (off.status, off.body.as_str()),
        (500, "error during template execution\n")
    );
}

#[tokio::test]
async fn web_pages_are_refused() {
    let double = double();
    let server = server(control_router(double.clone())).await;
    let refused = (403, "web pages may not use this interface\n");
    for (method, path, headers) in [
        ("POST", "/connect?peer=a", "Origin: http://evil.example\r\n"),
        ("POST", "/forget", "Origin: null\r\n"),
        ("GET", "/report?format=x", "Origin: http://127.0.0.1:6784\r\n"),
    ] {
        let answer = ask(&server, method, path, headers, "").await;
        assert_eq!((answer.status, answer.body.as_str()), refused, "{headers}");
    }
    // A page whose own name leads to the loopback interface.
    let stream = TcpStream::connect(server.addr).await.unwrap();
    let request = "GET /status HTTP/1.1\r\nHost: evil.example:6784\r\nConnection: close\r\n\r\n";
    let answer = ask_on(stream, request).await;
    assert_eq!((answer.status, answer.body.as_str()), refused);
    assert!(double.calls().is_empty());
}

#[tokio::test]
async fn several_addresses() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let list = format!("127.0.0.1:0, ,{}", path.display());
    let listeners = Listener::bind_all(&list).await.unwrap();
    let tcp: Vec<bool> = listeners.iter().map(|l| l.local_addr().is_some()).collect();
    assert_eq!(tcp, [true, false]);
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    drop(listeners);
    assert!(!path.exists());
    assert!(Listener::bind_all("").await.unwrap().is_empty());
    assert!(Listener::bind_all("127.0.0.1:0,/no/such/folder/s").await.is_err());
}
