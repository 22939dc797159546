#![allow(clippy::unwrap_used, clippy::expect_used)]
//! The whole server on loopback addresses, with upstream servers that do what is asked of them.

use std::collections::BTreeSet;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::answer::Local;
use super::counters::Counts;
use super::server::{Config, Listen, Server};
use super::zone::{Answer, SharedZone};
use crate::mesh::name::PeerName;

/// No test should come near it.
const PATIENCE: Duration = Duration::from_secs(60);
const ANY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);

fn query(name: &str, id: u16) -> Message {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message
}

fn zone() -> SharedZone {
    let at = |addr: [u8; 4]| Answer {
        addr: addr.into(),
        origin: PeerName::from_u64(1).unwrap(),
        local: true,
        reachable: true,
    };
    let zone = SharedZone::default();
    zone.write().set("seven.weave.local.", vec![at([10, 32, 0, 7])]);
    let many = (0..50).map(|i| at([10, 32, 1, i])).collect();
    zone.write().set("many.weave.local.", many);
    zone
}

fn config(listen: SocketAddrV4) -> Config {
    Config {
        local: Local::new("weave.local.", 1).unwrap(),
        listen: Listen::At(listen),
        fallback_timeout: PATIENCE,
        resolv_conf: None,
        upstream_port: 53,
    }
}

/// On a port that is free for both transports.
fn start(config: &Config) -> Server {
    for _ in 0..100 {
        match Server::start(config.clone(), zone()) {
            Ok(server) => return server,
            Err(error) if error.to_string().contains("(os error 98)") => {}
            Err(error) => panic!("{error}"),
        }
    }
    panic!("no free port");
}

fn client(to: SocketAddrV4) -> UdpSocket {
    let socket = UdpSocket::bind(ANY).unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn receive(socket: &UdpSocket) -> Message {
    let mut buffer = [0; 65_536];
    let length = socket.recv(&mut buffer).expect("an answer");
    Message::from_vec(&buffer[..length]).unwrap()
}

fn ask(to: SocketAddrV4, query: &Message) -> Message {
    let socket = client(to);
    socket.send(&query.to_vec().unwrap()).unwrap();
    receive(&socket)
}

fn connect(to: SocketAddrV4) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn frame(message: &Message) -> Vec<u8> {
    let bytes = message.to_vec().unwrap();
    let length = u16::try_from(bytes.len()).unwrap();
    [&length.to_be_bytes()[..], &bytes].concat()
}

fn read_frame(stream: &mut TcpStream) -> io::Result<Message> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut bytes = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut bytes)?;
    Ok(Message::from_vec(&bytes).unwrap())
}

fn address(message: &Message) -> Option<Ipv4Addr> {
    match message.answers.first().map(|record| &record.data) {
        Some(RData::A(a)) => Some(a.0),
        _ => None,
    }
}

/// An upstream server that answers by `reply`: any number of messages to each query. It ends with its sockets.
struct Other {
    address: SocketAddrV4,
    udp: UdpSocket,
    tcp: TcpListener,
    /// First labels of the names asked for, with `tcp ` before those over TCP.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Other {
    fn new(
        listen: SocketAddrV4,
        reply: impl Fn(Message, bool) -> Vec<Message> + Clone + Send + 'static,
    ) -> Self {
        let (tcp, udp) = (0..100)
            .find_map(|_| {
                let tcp = TcpListener::bind(listen).unwrap();
                let udp = UdpSocket::bind(tcp.local_addr().unwrap()).ok()?;
                Some((tcp, udp))
            })
            .unwrap();
        let address = SocketAddrV4::new(*listen.ip(), tcp.local_addr().unwrap().port());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (note, socket, replies) = (asked.clone(), udp.try_clone().unwrap(), reply.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((length @ 1.., from)) = socket.recv_from(&mut buffer) {
                let query = Message::from_vec(&buffer[..length]).unwrap();
                note.lock().unwrap().push(first_label(&query));
                for answer in replies(query, false) {
                    socket.send_to(&answer.to_vec().unwrap(), from).unwrap();
                }
            }
        });
        let (note, listener) = (asked.clone(), tcp.try_clone().unwrap());
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let Ok(query) = read_frame(&mut stream) else {
                    continue;
                };
                note.lock().unwrap().push(format!("tcp {}", first_label(&query)));
                for answer in reply(query, true) {
                    let _ = stream.write_all(&frame(&answer));
                }
            }
        });
        Self {
            address,
            udp,
            tcp,
            asked,
        }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = socket2::SockRef::from(&self.udp).shutdown(Shutdown::Both);
        let _ = socket2::SockRef::from(&self.tcp).shutdown(Shutdown::Both);
    }
}

fn first_label(message: &Message) -> String {
    let name = message.queries[0].name.to_ascii();
    name.split('.').next().unwrap().to_owned()
}

/// One address for every name.
fn reply(query: &Message, addr: [u8; 4]) -> Message {
    let mut answer = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    let asked = query.queries[0].clone();
    answer.add_answer(Record::from_rdata(
        asked.name.clone(),
        60,
        RData::A(A(addr.into())),
    ));
    answer.add_query(asked);
    answer
}

fn saying(addr: [u8; 4]) -> impl Fn(Message, bool) -> Vec<Message> + Clone + Send + 'static {
    move |query, _| vec![reply(&query, addr)]
}

fn silent(_: Message, _: bool) -> Vec<Message> {
    vec![]
}

fn on(last: u8, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, last), port)
}

/// The file, changed as whole.
fn write_resolv_conf(path: &Path, others: &[&Other]) {
    let lines = others.iter().map(|o| format!("nameserver {}\n", o.address.ip()));
    let new = path.with_extension("new");
    std::fs::write(&new, lines.collect::<String>()).unwrap();
    std::fs::rename(&new, path).unwrap();
}

/// A server with these upstream servers, which have one port.
fn start_with(others: &[&Other], timeout: Duration) -> (Server, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("resolv.conf");
    write_resolv_conf(&path, others);
    let server = start(&Config {
        fallback_timeout: timeout,
        resolv_conf: Some(path),
        upstream_port: others.first().map_or(53, |o| o.address.port()),
        ..config(ANY)
    });
    (server, dir)
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_over_both_transports() {
    let server = start(&config(ANY));
    let to = server.handle().address();
    assert_eq!(
        address(&ask(to, &query("Seven.weave.local.", 1))),
        Some([10, 32, 0, 7].into())
    );

    let all: BTreeSet<Ipv4Addr> = (0..50).map(|i| [10, 32, 1, i].into()).collect();
    let got = |message: &Message| -> BTreeSet<Ipv4Addr> {
        let data = message.answers.iter().map(|record| record.data.clone());
        data.map(|data| if let RData::A(a) = data { a.0 } else { panic!() })
            .collect()
    };
    let mut asked = query("many.weave.local.", 2);
    let plain = ask(to, &asked);
    assert!(plain.metadata.truncation && got(&plain).is_subset(&all));
    let mut edns = Edns::new();
    edns.set_max_payload(700);
    asked.set_edns(edns.clone());
    let larger = ask(to, &asked);
    assert!(larger.metadata.truncation && larger.answers.len() > plain.answers.len());
    edns.set_max_payload(4096);
    asked.set_edns(edns);
    let largest = ask(to, &asked);
    assert!(!largest.metadata.truncation && got(&largest) == all);

    let mut stream = connect(to);
    stream.write_all(&frame(&query("many.weave.local.", 3))).unwrap();
    let whole = read_frame(&mut stream).unwrap();
    assert!(!whole.metadata.truncation && got(&whole) == all);

    let nowhere = ask(to, &query("example.com.", 4));
    assert_eq!(
        nowhere.metadata.response_code,
        ResponseCode::ServFail,
        "no upstream"
    );
    let counts = server.handle().counts();
    let expected = Counts {
        local: 5,
        failed: 1,
        ..Counts::default()
    };
    assert_eq!(counts, expected);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_port_is_free_after_the_end_and_not_before() {
    let server = start(&config(ANY));
    let to = server.handle().address();
    let error = Server::start(config(to), zone())
        .err()
        .expect("in use")
        .to_string();
    assert!(
        error.starts_with(&format!("cannot listen for DNS queries on TCP {to}: "))
            && error.contains("--dns-listen-address"),
        "{error}"
    );
    // With a connection open and queries on their way, too.
    let mut stream = connect(to);
    stream.write_all(&frame(&query("seven.weave.local.", 1))).unwrap();
    read_frame(&mut stream).unwrap();
    server.stop().await;
    let again = Server::start(config(to), zone()).expect("free");
    assert!(address(&ask(to, &query("seven.weave.local.", 1))).is_some());
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_addresses() {
    let server = start(&config(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)));
    let to = on(77, server.handle().address().port());
    // A connected socket takes answers only from the address that it asked.
    assert!(address(&ask(to, &query("seven.weave.local.", 1))).is_some());
    let mut stream = connect(to);
    stream.write_all(&frame(&query("seven.weave.local.", 1))).unwrap();
    assert!(address(&read_frame(&mut stream).unwrap()).is_some());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_of_the_bridge_as_they_come_and_go() {
    let (ours, others, gone) = (on(78, 0), on(79, 0), on(80, 0));
    // A port that somebody else has at one of the addresses.
    let holder = TcpListener::bind(others).unwrap();
    let port = holder.local_addr().unwrap().port();
    let subnet = |address: SocketAddrV4| (*address.ip(), Ipv4Addr::BROADCAST);
    let listening = |server: &Server| -> Vec<Ipv4Addr> {
        let all = server.handle().addresses().into_iter().map(|a| *a.ip());
        all.filter(|ip| *ip != Ipv4Addr::LOCALHOST).collect()
    };
    let config = Config {
        listen: Listen::Follow(port),
        ..config(ANY)
    };
    let server = Server::start(config, zone()).unwrap();
    assert_eq!(
        server.handle().address(),
        SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)
    );
    assert!(listening(&server).is_empty());

    server
        .handle()
        .set_addresses(None, [ours, others, gone].map(subnet).into())
        .await;
    assert_eq!(listening(&server), [*ours.ip(), *gone.ip()]);
    let to = |address: SocketAddrV4| SocketAddrV4::new(*address.ip(), port);
    for address_of_ours in [ours, gone] {
        assert!(address(&ask(to(address_of_ours), &query("seven.weave.local.", 1))).is_some());
    }
    // Anybody can have the address that is gone, and we the one that is free now.
    drop(holder);
    server
        .handle()
        .set_addresses(None, [ours, others].map(subnet).into())
        .await;
    assert_eq!(listening(&server), [*ours.ip(), *others.ip()]);
    UdpSocket::bind(to(gone)).expect("free again");
    for address_of_ours in [ours, others] {
        assert!(address(&ask(to(address_of_ours), &query("seven.weave.local.", 1))).is_some());
    }
    // Docker has come: its bridge is where containers ask, and the loopback address is somebody else's again.
    let docker = Some(*gone.ip());
    server
        .handle()
        .set_addresses(docker, [ours].map(subnet).into())
        .await;
    assert_eq!(server.handle().address(), to(gone));
    assert_eq!(server.handle().addresses(), [to(ours), to(gone)]);
    assert!(address(&ask(to(gone), &query("seven.weave.local.", 1))).is_some());
    server.stop().await;
    TcpListener::bind(to(ours)).expect("free again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_upstream_server_is_nobodys_problem() {
    let dead = Other::new(on(31, 0), silent);
    let live = Other::new(on(32, dead.address.port()), saying([192, 0, 2, 32]));
    let (server, _dir) = start_with(&[&dead, &live], PATIENCE);
    let to = server.handle().address();
    assert_eq!(server.handle().upstream().len(), 2);
    for i in 0..20 {
        let answer = ask(to, &query(&format!("a{i}.example."), i));
        assert_eq!(
            (answer.metadata.id, address(&answer)),
            (i, Some([192, 0, 2, 32].into()))
        );
    }
    let mut stream = connect(to);
    stream.write_all(&frame(&query("b.example.", 1))).unwrap();
    assert!(address(&read_frame(&mut stream).unwrap()).is_some());
    assert!(live.asked().len() >= 21 && live.asked().contains(&"tcp b".to_owned()));
    assert!(!dead.asked().is_empty(), "it was given its chance");
    assert_eq!(server.handle().counts().forwarded, 21);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_answers() {
    let dead = Other::new(on(33, 0), silent);
    let (server, _dir) = start_with(&[&dead], Duration::from_millis(300));
    let to = server.handle().address();
    let answer = ask(to, &query("Example.com.", 5));
    assert_eq!(
        (answer.metadata.id, answer.metadata.response_code),
        (5, ResponseCode::ServFail)
    );
    assert_eq!(answer.queries[0].name.to_ascii(), "Example.com.");
    assert_eq!(server.handle().counts().failed, 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_answer_is_not_the_last_word() {
    let poor = Other::new(on(34, 0), |query, _| {
        let mut answer = reply(&query, [0; 4]);
        answer.answers.clear();
        answer.metadata.response_code = ResponseCode::Refused;
        vec![answer]
    });
    let good = Other::new(on(35, poor.address.port()), saying([192, 0, 2, 35]));
    let (server, dir) = start_with(&[&poor, &good], PATIENCE);
    let answer = ask(server.handle().address(), &query("a.example.", 5));
    assert_eq!(address(&answer), Some([192, 0, 2, 35].into()));
    server.stop().await;

    write_resolv_conf(&dir.path().join("resolv.conf"), &[&poor]);
    let (server, _dir) = start_with(&[&poor], PATIENCE);
    let answer = ask(server.handle().address(), &query("a.example.", 5));
    assert_eq!(
        answer.metadata.response_code,
        ResponseCode::Refused,
        "unless it is the only one"
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_answers_are_not_believed() {
    let other = Other::new(on(36, 0), |query, _| {
        let forged = |change: &dyn Fn(&mut Message)| {
            let mut answer = reply(&query, [203, 0, 113, 1]);
            change(&mut answer);
            answer
        };
        vec![
            forged(&|m| m.metadata.id ^= 1),
            forged(&|m| m.queries[0].name = Name::from_ascii("other.example.").unwrap()),
            forged(&|m| m.queries[0].query_type = RecordType::AAAA),
            forged(&|m| m.metadata.message_type = MessageType::Query),
            reply(&query, [192, 0, 2, 36]),
        ]
    });
    let (server, _dir) = start_with(&[&other], PATIENCE);
    let answer = ask(server.handle().address(), &query("a.example.", 5));
    assert_eq!(address(&answer), Some([192, 0, 2, 36].into()));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_question_upstream_for_many_that_are_the_same() {
    let gate = Arc::new((Mutex::new(false), std::sync::Condvar::new()));
    let waiting = gate.clone();
    let other = Other::new(on(37, 0), move |query, _| {
        let open = waiting.0.lock().unwrap();
        drop(waiting.1.wait_while(open, |open| !*open).unwrap());
        vec![reply(&query, [192, 0, 2, 37])]
    });
    // One more than the askers: a lost gate would show as a second question.
    let (server, _dir) = start_with(&[&other], PATIENCE);
    let to = server.handle().address();
    let askers: Vec<_> = (0..20u16)
        .map(|i| {
            let name = if i % 2 == 0 {
                "Same.example."
            } else {
                "sAME.example."
            };
            let socket = client(to);
            socket.send(&query(name, i).to_vec().unwrap()).unwrap();
            (i, name, socket)
        })
        .collect();
    *gate.0.lock().unwrap() = true;
    gate.1.notify_all();
    for (i, name, socket) in &askers {
        let answer = receive(socket);
        assert_eq!(
            (answer.metadata.id, address(&answer)),
            (*i, Some([192, 0, 2, 37].into()))
        );
        assert_eq!(answer.queries[0].name.to_ascii(), *name);
    }
    let first = other.asked().len();
    assert!(
        first <= 3,
        "the same question was only repeated: {:?}",
        other.asked()
    );
    let cached = ask(to, &query("same.EXAMPLE.", 99));
    assert_eq!(
        (cached.metadata.id, cached.queries[0].name.to_ascii()),
        (99, "same.EXAMPLE.".to_owned())
    );
    assert_eq!(other.asked().len(), first);
    assert!(server.handle().counts().cached >= 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_answers_bring_clients_to_tcp() {
    let other = Other::new(on(38, 0), |query, tcp| {
        let mut answer = reply(&query, [192, 0, 2, 38]);
        if !tcp {
            answer.answers.clear();
            answer.metadata.truncation = true;
        }
        vec![answer]
    });
    let (server, _dir) = start_with(&[&other], PATIENCE);
    let to = server.handle().address();
    for _ in 0..2 {
        let answer = ask(to, &query("large.example.", 1));
        assert!(answer.metadata.truncation && answer.answers.is_empty());
        let mut stream = connect(to);
        stream.write_all(&frame(&query("large.example.", 1))).unwrap();
        let answer = read_frame(&mut stream).unwrap();
        assert!(!answer.metadata.truncation && address(&answer).is_some());
    }
    assert_eq!(
        other.asked(),
        ["large", "tcp large", "large"],
        "what is whole is kept, what is cut off is not"
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_upstream_servers_in_the_file() {
    let old = Other::new(on(39, 0), saying([192, 0, 2, 39]));
    let new = Other::new(on(40, old.address.port()), saying([192, 0, 2, 40]));
    let (server, dir) = start_with(&[&old], PATIENCE);
    let to = server.handle().address();
    let asked = query("a.example.", 1);
    assert_eq!(address(&ask(to, &asked)), Some([192, 0, 2, 39].into()));
    write_resolv_conf(&dir.path().join("resolv.conf"), &[&new]);
    let started = std::time::Instant::now();
    while started.elapsed() < PATIENCE && server.handle().upstream() != [new.address.to_string()] {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let answer = ask(to, &asked);
    assert_eq!(
        address(&answer),
        Some([192, 0, 2, 40].into()),
        "nor is what the old one said"
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_connections_and_queries_on_each() {
    let other = Other::new(on(41, 0), saying([192, 0, 2, 41]));
    let (server, _dir) = start_with(&[&other], PATIENCE);
    let to = server.handle().address();
    let mut streams: Vec<_> = (0..100).map(|_| connect(to)).collect();
    for (i, stream) in (0u16..).zip(&mut streams) {
        let two = [
            frame(&query(&format!("n{i}.example."), 2 * i)),
            frame(&query("seven.weave.local.", 2 * i + 1)),
        ]
        .concat();
        let (first, second) = two.split_at(usize::from(i) % two.len());
        stream.write_all(first).unwrap();
        stream.write_all(second).unwrap();
    }
    for (i, stream) in (0u16..).zip(&mut streams) {
        let answers = [read_frame(stream).unwrap(), read_frame(stream).unwrap()];
        let ids = BTreeSet::from(answers.each_ref().map(|a| a.metadata.id));
        assert_eq!(ids, [2 * i, 2 * i + 1].into());
        assert!(answers.iter().all(|answer| address(answer).is_some()));
    }
    drop(streams);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_no_trouble() {
    let server = start(&config(ANY));
    let to = server.handle().address();
    let socket = client(to);
    for length in [1, 2, 11, 12, 13, 100, 2048, 9000] {
        for byte in [0, 0x7f, 0xff] {
            socket.send(&vec![byte; length]).unwrap();
        }
    }
    let mut stream = connect(to);
    stream.write_all(&[0, 0, 0, 3, 1, 2, 3]).unwrap();
    assert_eq!(stream.read(&mut [0; 10]).unwrap(), 0, "closed");
    let mut stream = connect(to);
    stream.write_all(&[0xff; 100]).unwrap();
    let mut nonsense = query("seven.weave.local.", 9);
    nonsense.metadata.message_type = MessageType::Response;
    socket.send(&nonsense.to_vec().unwrap()).unwrap();
    socket
        .send(&query("seven.weave.local.", 10).to_vec().unwrap())
        .unwrap();
    let last = loop {
        let answer = receive(&socket);
        if answer.metadata.id != 9 && answer.metadata.response_code == ResponseCode::NoError {
            break answer;
        }
        assert_eq!(answer.metadata.response_code, ResponseCode::FormErr, "{answer:?}");
    };
    assert_eq!(
        (last.metadata.id, address(&last)),
        (10, Some([10, 32, 0, 7].into()))
    );
    server.stop().await;
}
