//! The proxy between a client that is written down byte by byte and an engine that is, too.

use std::path::Path;
use std::sync::Arc;

use regex::Regex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;

/// As the examples of the specification have them.
pub(super) fn settings() -> Settings {
    let folder = |name: &str| Path::new("/vols").join(name);
    Settings {
        default_ipalloc: true,
        multicast: true,
        dns: Some(Dns {
            address: Some("172.17.0.1".parse().unwrap()),
            domain: "weave.local.".to_owned(),
        }),
        hostname: HostnameRules {
            label: String::new(),
            pattern: Regex::new("(.*)").unwrap(),
            replacement: "$1".to_owned(),
        },
        folders: WaitFolders {
            wait: folder("w"),
            wait_nomcast: folder("w-nomcast"),
            noop: folder("w-noop"),
        },
        rewrite_inspect: true,
    }
}

struct World {
    _folder: tempfile::TempDir,
    engine: UnixListener,
    socket: std::path::PathBuf,
    keeper: Keeper,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<()>,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let docker = Endpoint::Unix(folder.path().join("docker.sock"));
        let engine = UnixListener::bind(folder.path().join("docker.sock")).unwrap();
        let socket = folder.path().join("weave.sock");
        let place = socket.to_str().unwrap().to_owned();
        let places = [(place.clone(), place.parse().unwrap())];
        let listening = Listening::at(&places, Vec::new(), folder.path(), &docker)
            .await
            .unwrap();
        let keeper = Keeper::default();
        let seen = || Seen {
            mac: "02:00:00:00:00:01".to_owned(),
            address: "10.32.0.1".to_owned(),
            prefix_len: 12,
        };
        let proxy = Arc::new(Proxy {
            docker,
            settings: Settings {
                dns: Some(Dns {
                    address: None,
                    domain: "weave.local.".to_owned(),
                }),
                ..settings()
            },
            nameserver: Box::new(|| Box::pin(std::future::ready(settings().dns.unwrap().address))),
            keeper: keeper.clone(),
            look: Box::new(move |pid| Box::pin(std::future::ready((pid == 4711).then(seen)))),
        });
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(proxy.serve(listening, None, async { drop(stopped.await) }));
        Self {
            _folder: folder,
            engine,
            socket,
            keeper,
            stop: Some(stop),
            serving,
        }
    }

    async fn client(&self) -> UnixStream {
        UnixStream::connect(&self.socket).await.unwrap()
    }

    /// The next connection to the engine.
    async fn accept(&self) -> UnixStream {
        self.engine.accept().await.unwrap().0
    }

    /// One request to the engine, with this answer.
    async fn serve(&self, answer: &str) -> String {
        let mut stream = self.accept().await;
        let request = read_request(&mut stream).await;
        stream.write_all(answer.as_bytes()).await.unwrap();
        request
    }

    async fn end(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        self.serving.await.unwrap();
        assert!(!self.socket.exists());
    }
}

/// Exactly this comes next.
async fn expect(stream: &mut UnixStream, text: &str) {
    let mut got = vec![0; text.len()];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&got), text);
}

async fn read_head(stream: &mut UnixStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = stream.read_u8().await;
        head.push(byte.unwrap_or_else(|e| panic!("{e} after {:?}", String::from_utf8_lossy(&head))));
    }
    String::from_utf8(head).unwrap()
}

/// Head and body, by its length.
async fn read_request(stream: &mut UnixStream) -> String {
    let head = read_head(stream).await;
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).await.unwrap();
    head + &String::from_utf8(body).unwrap()
}

fn json(status: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}")
}

#[tokio::test]
async fn heads_and_bodies_as_they_came() {
    let world = World::new().await;
    let mut client = world.client().await;
    for _ in 0..2 {
        // Twice on one connection.
        let request = "POST /v1.41/build?t=a%2Fb&x=%7B%22a%22%7D HTTP/1.1\r\nHost: docker\r\nX-Registry-CONFIG: e30=\r\n\
                       x-a: 1\r\nX-A: 2\r\nContent-Length: 5\r\n\r\nhello";
        client.write_all(request.as_bytes()).await.unwrap();
        let mut engine = world.accept().await;
        expect(&mut engine, request).await;
        let answer = "HTTP/1.1 207 Whatever It Is\r\nApi-Version: 1.41\r\nDocker-EXPERIMENTAL: false\r\n\
                      Transfer-Encoding: chunked\r\n\r\n";
        engine.write_all(answer.as_bytes()).await.unwrap();
        // The head goes on at once, and so does each piece.
        expect(&mut client, answer).await;
        for _ in 0..2 {
            engine.write_all(b"3\r\nabc\r\n").await.unwrap();
            expect(&mut client, "3\r\nabc\r\n").await;
        }
        // More than 64 KiB in one.
        let large = format!("20000\r\n{}\r\n0\r\n\r\n", "x".repeat(0x20000));
        engine.write_all(large.as_bytes()).await.unwrap();
        let (mut got, mut body) = (Vec::new(), 0);
        while !got.ends_with(b"\r\n0\r\n\r\n") {
            assert!(client.read_buf(&mut got).await.unwrap() > 0);
        }
        for line in String::from_utf8(got).unwrap().split("\r\n") {
            body += if line.starts_with('x') { line.len() } else { 0 };
        }
        assert_eq!(body, 0x20000);
    }
    world.end().await;
}

#[tokio::test]
async fn old_clients() {
    let world = World::new().await;
    let mut client = world.client().await;
    client
        .write_all(b"GET /info HTTP/1.1\r\nHost: /var/run/docker.sock\r\n\r\n")
        .await
        .unwrap();
    let got = world.serve(&json("200 OK", "{}")).await;
    assert_eq!(got, "GET /info HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n");
    expect(&mut client, "HTTP/1.1 200 OK\r\n").await;

    // Without keep-alive and chunks, the client's sending side closed.
    let mut client = world.client().await;
    client.write_all(b"GET /info HTTP/1.0\r\n\r\n").await.unwrap();
    client.shutdown().await.unwrap();
    let mut engine = world.accept().await;
    assert!(read_head(&mut engine).await.starts_with("GET /info HTTP/1.0\r\n"));
    assert_eq!(engine.read(&mut [0]).await.unwrap(), 0, "the end is passed on");
    engine
        .write_all(b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{\"a\":1}")
        .await
        .unwrap();
    drop(engine);
    let mut all = String::new();
    client.read_to_string(&mut all).await.unwrap();
    assert!(
        all.starts_with("HTTP/1.0 200 OK\r\n") && all.ends_with("\r\n\r\n{\"a\":1}"),
        "{all}"
    );

    // The end is passed on after the request, never before.
    for _ in 0..20 {
        let mut client = world.client().await;
        let request = "POST /auth HTTP/1.1\r\nHost: docker\r\nContent-Length: 5\r\n\r\nhello";
        client.write_all(request.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let mut engine = world.accept().await;
        let mut got = String::new();
        engine.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, request);
    }

    // With the host before the path.
    let mut client = world.client().await;
    client
        .write_all(b"GET http://docker/info?x=1 HTTP/1.1\r\nHost: docker\r\n\r\n")
        .await
        .unwrap();
    let got = world.serve(&json("200 OK", "{}")).await;
    assert_eq!(got, "GET /info?x=1 HTTP/1.1\r\nHost: docker\r\n\r\n");
    world.end().await;
}

#[tokio::test]
async fn clients_that_go_away() {
    let world = World::new().await;
    let mut client = world.client().await;
    client
        .write_all(b"GET /events HTTP/1.1\r\nHost: docker\r\n\r\n")
        .await
        .unwrap();
    let mut engine = world.accept().await;
    read_head(&mut engine).await;
    engine
        .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        .await
        .unwrap();
    read_head(&mut client).await;
    drop(client);
    assert_eq!(engine.read(&mut [0]).await.unwrap(), 0);
    // In the middle of what it sends.
    let mut client = world.client().await;
    client
        .write_all(b"POST /load HTTP/1.1\r\nHost: docker\r\nContent-Length: 10\r\n\r\nabc")
        .await
        .unwrap();
    let mut engine = world.accept().await;
    let mut head = read_head(&mut engine).await.into_bytes();
    drop(client);
    engine.read_to_end(&mut head).await.unwrap();
    assert!(head.ends_with(b"\r\n\r\nabc"));
    world.end().await;
}

#[tokio::test]
async fn without_docker() {
    let mut world = World::new().await;
    let nowhere = world.socket.with_file_name("none");
    world.engine = UnixListener::bind(&nowhere).unwrap();
    let mut client = world.client().await;
    client
        .write_all(b"GET /info HTTP/1.1\r\nHost: docker\r\n\r\n")
        .await
        .unwrap();
    let head = read_head(&mut client).await;
    assert!(
        head.starts_with("HTTP/1.1 500 Internal Server Error\r\n"),
        "{head}"
    );
    assert!(
        head.contains("Content-Type: text/plain; charset=utf-8\r\n"),
        "{head}"
    );
    expect(&mut client, "Could not connect to target\n").await;
    world.end().await;
}

#[tokio::test]
async fn an_engine_that_goes_away() {
    let world = World::new().await;
    let mut client = world.client().await;
    client
        .write_all(b"GET /info HTTP/1.1\r\nHost: docker\r\n\r\n")
        .await
        .unwrap();
    drop(world.accept().await);
    let head = read_head(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 500 "), "{head}");
    expect(&mut client, "Could not make request to target: ").await;
    world.end().await;
}

#[tokio::test]
async fn streams_in_both_directions() {
    let world = World::new().await;
    for (request, answer) in [
        (
            "POST /containers/a/attach?stream=1 HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\
             Content-Length: 0\r\n\r\n",
            "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\n\
             Upgrade: tcp\r\n\r\n",
        ),
        (
            "POST /v1.12/exec/a/start HTTP/1.1\r\nHost: docker\r\nContent-Length: 2\r\n\r\n{}",
            "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n",
        ),
        (
            "POST /session HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        ),
    ] {
        let mut client = world.client().await;
        // Some do not wait for the answer.
        client.write_all(request.as_bytes()).await.unwrap();
        client.write_all(b"early ").await.unwrap();
        let mut engine = world.accept().await;
        expect(&mut engine, request).await;
        engine.write_all(answer.as_bytes()).await.unwrap();
        engine.write_all(b"first").await.unwrap();
        expect(&mut client, answer).await;
        expect(&mut client, "first").await;
        expect(&mut engine, "early ").await;
        client.write_all(b"hello").await.unwrap();
        expect(&mut engine, "hello").await;
        // The end of one direction, then of the other.
        client.shutdown().await.unwrap();
        assert_eq!(engine.read(&mut [0]).await.unwrap(), 0, "{request}");
        engine.write_all(b"last").await.unwrap();
        drop(engine);
        let mut rest = String::new();
        client.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "last");
    }
    world.end().await;
}

#[tokio::test]
async fn creation() {
    let world = World::new().await;
    let create = async |body: &str| {
        let mut client = world.client().await;
        let length = body.len();
        let request = format!(
            "POST /v1.41/containers/create?name=web HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        );
        client.write_all(request.as_bytes()).await.unwrap();
        client
    };
    let image = json(
        "200 OK",
        r#"{"Id":"sha256:0","Config":{"Entrypoint":["e"],"Cmd":["c"],"Env":null}}"#,
    );
    let mut client = create(r#"{"Image":"reg:5000/a b","Cmd":["x"],"Memory":9007199254740993}"#).await;
    assert!(
        world
            .serve(&image)
            .await
            .starts_with("GET /images/reg:5000/a%20b/json HTTP/1.1\r\n")
    );
    let sent = world.serve(&json("201 Created", r#"{"Id":"abc"}"#)).await;
    let (head, body) = sent.split_once("\r\n\r\n").unwrap();
    assert!(
        head.starts_with("POST /v1.41/containers/create?name=web HTTP/1.1\r\n"),
        "{head}"
    );
    assert_eq!(
        body,
        r#"{"Image":"reg:5000/a b","Cmd":["x"],"Memory":9007199254740993,"Entrypoint":["/w/w","e"],"Hostname":"web","Domainname":"weave.local","HostConfig":{"Memory":9007199254740993,"Binds":["/vols/w:/w:ro"],"Dns":["172.17.0.1"],"DnsSearch":["."]}}"#
    );
    assert!(
        read_head(&mut client)
            .await
            .starts_with("HTTP/1.1 201 Created\r\n")
    );
    expect(&mut client, r#"{"Id":"abc"}"#).await;

    // Left alone: every byte, and no questions.
    for body in [
        r#"{"Image":"i", "Env":["WEAVE_CIDR=none"] }"#,
        r#"{"HostConfig":{"NetworkMode":"host"}}"#,
        "no JSON",
        "[]",
        "",
    ] {
        let _client = create(body).await;
        let sent = world.serve(&json("201 Created", "{}")).await;
        assert_eq!(sent.split_once("\r\n\r\n").unwrap().1, body);
    }

    for (image, status, text) in [
        (
            json("404 Not Found", r#"{"message":"nope"}"#),
            "404 Not Found",
            "No such image: i\n",
        ),
        (
            json("500 Internal Server Error", r#"{"message":"broken"}"#),
            "500 Internal Server Error",
            "broken\n",
        ),
        (
            json("200 OK", "{}"),
            "500 Internal Server Error",
            "No command specified\n",
        ),
    ] {
        let mut client = create(r#"{"Image":"i"}"#).await;
        world.serve(&image).await;
        let head = read_head(&mut client).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{head}");
        expect(&mut client, text).await;
    }
    let mut client = create(r#"{"Image":7}"#).await;
    read_head(&mut client).await;
    expect(
        &mut client,
        "Wrong type for Image field, expected string, but got number\n",
    )
    .await;
    world.end().await;
}

const WAITING: &str = r#"{"Id":"abc","Config":{"Entrypoint":["/w/w","e"],"Hostname":"h"},"HostConfig":{"NetworkMode":"default"},"Mounts":[{"Destination":"/w"}]}"#;

#[tokio::test]
async fn starts_are_held_until_the_attachment() {
    let world = World::new().await;
    for (outcome, status) in [
        (Ok(()), "204 No Content"),
        (Err("for \"x\": no".to_owned()), "500 Internal Server Error"),
    ] {
        let mut client = world.client().await;
        client
            .write_all(
                b"POST /v1.41/containers/ab/start HTTP/1.1\r\nHost: docker\r\nContent-Length: 0\r\n\r\n",
            )
            .await
            .unwrap();
        assert!(
            world
                .serve(&json("200 OK", WAITING))
                .await
                .starts_with("GET /containers/ab/json ")
        );
        world.serve("HTTP/1.1 204 No Content\r\n\r\n").await;
        let mut byte = [0];
        let mut answered = Box::pin(client.read(&mut byte));
        // Docker's event comes, and the attempt ends.
        while world.keeper.waiters().overdue() != ["abc"] {
            assert!(futures_util::poll!(answered.as_mut()).is_pending());
            tokio::task::yield_now().await;
        }
        drop(answered);
        assert!(world.keeper.waiters().begin("abc").is_some());
        let taken = world.keeper.waiters().take("abc");
        world.keeper.waiters().end("abc", taken, &outcome);
        let head = read_head(&mut client).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{head}");
        if let Err(text) = outcome {
            expect(&mut client, &format!("{text}\n")).await;
        }
    }
    // Docker says no: nobody waits.
    let mut client = world.client().await;
    client
        .write_all(b"POST /containers/ab/restart HTTP/1.1\r\nHost: docker\r\n\r\n")
        .await
        .unwrap();
    world.serve(&json("200 OK", WAITING)).await;
    world.serve("HTTP/1.1 304 Not Modified\r\n\r\n").await;
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 304 "));
    world.keeper.settled("abc").await;

    let mut client = world.client().await;
    client
        .write_all(b"POST /containers/ab/start HTTP/1.1\r\nHost: docker\r\n\r\n")
        .await
        .unwrap();
    world.serve(&json("404 Not Found", "{}")).await;
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 404 "));
    expect(&mut client, "No such container: ab\n").await;
    world.end().await;
}

#[tokio::test]
async fn bodies_of_starts_and_execs() {
    let world = World::new().await;
    let own = r#"{"Id":"abc","Config":{"Entrypoint":["e"]}}"#;
    for (path, kind, container, body, expected) in [
        ("start", "application/json", own, r#"{"HostConfig":{}}"#, None),
        ("start", "text/plain", WAITING, r#"{"HostConfig":{}}"#, None),
        ("start", "application/json", WAITING, "null", None),
        ("start", "application/json", WAITING, "{}", None),
        (
            "start",
            "application/json",
            WAITING,
            r#"{"HostConfig":{}}"#,
            Some(r#"{"HostConfig":{"Binds":["/vols/w:/w:ro"],"Dns":["172.17.0.1"],"DnsSearch":["."]}}"#),
        ),
        ("exec", "application/json", own, r#"{"Cmd":["ls"]}"#, None),
        (
            "exec",
            "application/json",
            WAITING,
            r#"{"Cmd":["ls"]}"#,
            Some(r#"{"Cmd":["/w/w","ls"]}"#),
        ),
    ] {
        let mut client = world.client().await;
        let request = format!(
            "POST /containers/ab/{path} HTTP/1.1\r\nHost: docker\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n\
             {body}",
            body.len()
        );
        client.write_all(request.as_bytes()).await.unwrap();
        world.serve(&json("200 OK", container)).await;
        let sent = world.serve(&json("409 Conflict", "{}")).await;
        assert_eq!(
            sent.split_once("\r\n\r\n").unwrap().1,
            expected.unwrap_or(body),
            "{path} {body}"
        );
        assert!(read_head(&mut client).await.starts_with("HTTP/1.1 409 "));
    }
    world.end().await;
}

#[tokio::test]
async fn inspection_tells_our_address() {
    let world = World::new().await;
    let ours = r#"{"Id":"abc","State":{"Pid":4711},"NetworkSettings":{}}"#;
    let other = r#"{"Id":"abc", "State":{"Pid":4712},"NetworkSettings":{}}"#;
    for (answer, expected) in [
        (
            json("200 OK", ours),
            r#"{"Id":"abc","State":{"Pid":4711},"NetworkSettings":{"MacAddress":"02:00:00:00:00:01","IPAddress":"10.32.0.1","IPPrefixLen":12}}"#,
        ),
        (json("200 OK", other), other),
        (json("200 OK", "no JSON"), "no JSON"),
        (json("404 Not Found", ours), ours),
        (
            format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{other}\r\n0\r\n\r\n",
                other.len()
            ),
            other,
        ),
    ] {
        let mut client = world.client().await;
        client
            .write_all(b"GET /v1.41/containers/ab/json HTTP/1.1\r\nHost: docker\r\n\r\n")
            .await
            .unwrap();
        world.serve(&answer).await;
        let got = read_request(&mut client).await;
        let (head, body) = got.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, expected);
        assert!(!head.contains("chunked"), "{head}");
    }
    world.end().await;
}
