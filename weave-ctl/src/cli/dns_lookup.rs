//! `weave dns-lookup` and `weave dns-args` (cli.md 4.6, 4.11).

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, Query};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

use super::client::DISABLED;
use super::{Context, Failure, Outcome, note, out};
use crate::net::{Netlink, bridge};

/// How long an answer may take, and how often it is asked for.
const PATIENCE: Duration = Duration::from_secs(5);
const ATTEMPTS: usize = 3;
/// Longest answer over UDP, in bytes.
const UDP_LIMIT: usize = 4096;
/// Where WeaveDNS is, where only an address is given.
const PORT: u16 = 53;

/// Print the addresses that a name has in WeaveDNS, one a line
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  weave dns-lookup web\n  weave dns-lookup web.weave.local")]
pub(crate) struct DnsLookupArgs {
    /// With or without the domain
    #[arg(value_name = "NAME")]
    name: String,
}

/// Print the options that make a container of Docker use WeaveDNS
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  docker run $(weave dns-args) --hostname web.weave.local IMAGE")]
pub(crate) struct DnsArgsArgs {}

pub(super) async fn dns_lookup(args: DnsLookupArgs, context: &Context) -> Outcome {
    let failure = |text: String| Failure::new(1, text);
    let server = match &context.env.dns_address {
        Some(given) => given.clone(),
        None => context.env.client().call("GET", "/dns-address-port", &[]).await?,
    };
    let mut server = endpoint(server.trim())
        .ok_or_else(|| failure(format!("\"{server}\" is no address of a DNS server")))?;
    if server.ip().is_unspecified() {
        // At the loopback address may be another server.
        let exposed = reachable("0.0.0.0", context).await.and_then(|ip| ip.parse().ok());
        server.set_ip(exposed.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }
    let mut name =
        Name::from_utf8(&args.name).map_err(|e| failure(format!("\"{}\" is no name: {e}", args.name)))?;
    name.set_fqdn(true);
    let addresses = lookup(server, &name).await;
    let addresses = addresses.map_err(|e| failure(format!("no answer from WeaveDNS at {server}: {e}")))?;
    out(&addresses.iter().map(|a| format!("{a}\n")).collect::<String>());
    Ok(())
}

/// An address, or an address and port.
fn endpoint(text: &str) -> Option<SocketAddr> {
    let address = || text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, PORT));
    text.parse().ok().or_else(address)
}

/// As `dig` asks: over UDP, and over TCP if the answer was cut. None for names that do not exist.
async fn lookup(server: SocketAddr, name: &Name) -> io::Result<Vec<Ipv4Addr>> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name.clone(), RecordType::A));
    let question = message.to_vec().map_err(io::Error::other)?;
    let mut answer = Err(io::ErrorKind::TimedOut.into());
    for _ in 0..ATTEMPTS {
        let asked = tokio::time::timeout(PATIENCE, over_udp(server, &message, &question)).await;
        answer = asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        if answer.is_ok() {
            break;
        }
    }
    let mut answer = answer?;
    if answer.metadata.truncation {
        answer = tokio::time::timeout(PATIENCE, over_tcp(server, &message, &question)).await??;
    }
    let addresses = answer
        .answers
        .iter()
        .filter_map(|record| match record.data.ip_addr() {
            Some(IpAddr::V4(address)) => Some(address),
            _ => None,
        });
    Ok(addresses.collect())
}

async fn over_udp(server: SocketAddr, asked: &Message, question: &[u8]) -> io::Result<Message> {
    let here: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((here, 0)).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; UDP_LIMIT];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(answer) = answer_to(asked, buffer.get(..length).unwrap_or_default()) {
            return Ok(answer);
        }
    }
}

async fn over_tcp(server: SocketAddr, asked: &Message, question: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream
        .write_all(&[&length.to_be_bytes(), question].concat())
        .await?;
    let mut buffer = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut buffer).await?;
    answer_to(asked, &buffer).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Anything else is not from whom we asked.
fn answer_to(asked: &Message, bytes: &[u8]) -> Option<Message> {
    let answer = Message::from_vec(bytes).ok()?;
    let ours =
        answer.metadata.id == asked.metadata.id && answer.metadata.message_type == MessageType::Response;
    ours.then_some(answer)
}

pub(super) async fn dns_args(context: &Context) -> Outcome {
    let client = context.env.client();
    let ask = async |given: &Option<String>, path| match given {
        Some(given) => Ok(given.clone()),
        None => client.call("GET", path, &[]).await,
    };
    let both = async {
        let domain = ask(&context.env.dns_domain, "/domain").await?;
        Ok((ask(&context.env.dns_address, "/dns-address").await?, domain))
    };
    match both.await {
        Ok((address, domain)) => {
            match reachable(address.trim(), context).await {
                Some(address) => out(&format!("--dns={address} --dns-search={}", domain.trim())),
                None => note(
                    "WeaveDNS answers at the addresses of this host on weave: 'weave expose' gives it one",
                ),
            }
            Ok(())
        }
        Err(Failure { code: DISABLED, .. }) => Ok(()),
        // For use within another command: nothing but the options.
        Err(failure) => Err(Failure::silent(failure.code)),
    }
}

/// What a container can ask. Where WeaveDNS listens everywhere: at an address of the bridge.
async fn reachable(address: &str, context: &Context) -> Option<String> {
    if !address.parse().is_ok_and(|a: IpAddr| a.is_unspecified()) {
        return Some(address.to_owned());
    }
    let nl = Netlink::current().await.ok()?;
    let (_, exposed) = bridge::exposed(&nl, &context.env.bridge).await.ok()?;
    exposed.first().map(|cidr| Ipv4Addr::from(cidr.addr).to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{RData, Record};
    use tokio::net::TcpListener;

    use super::*;

    /// Three addresses, of which one fits over UDP.
    fn reply(question: &[u8], whole: bool) -> Vec<u8> {
        let asked = Message::from_vec(question).unwrap();
        let query = asked.queries.first().unwrap();
        let mut answer = Message::response(asked.metadata.id, asked.metadata.op_code);
        answer.add_query(query.clone());
        answer.metadata.truncation = !whole;
        for last in 1..=if whole { 3 } else { 1 } {
            let data = RData::A(A::new(10, 32, 0, last));
            answer.add_answer(Record::from_rdata(query.name().clone(), 1, data));
        }
        answer.to_vec().unwrap()
    }

    #[tokio::test]
    async fn a_cut_answer_is_asked_for_again() {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let server = udp.local_addr().unwrap();
        let tcp = TcpListener::bind(server).await.unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
            // Somebody else's, first.
            udp.send_to(b"noise", from).await.unwrap();
            udp.send_to(&reply(&buffer[..length], false), from).await.unwrap();
        });
        tokio::spawn(async move {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let mut question = vec![0; stream.read_u16().await.unwrap().into()];
            stream.read_exact(&mut question).await.unwrap();
            let answer = reply(&question, true);
            stream.write_u16(answer.len().try_into().unwrap()).await.unwrap();
            stream.write_all(&answer).await.unwrap();
        });
        let found = lookup(server, &Name::from_ascii("web.").unwrap()).await.unwrap();
        assert_eq!(found, [1, 2, 3].map(|last| Ipv4Addr::new(10, 32, 0, last)));
    }

    #[test]
    fn endpoints() {
        for (text, endpoint) in [
            ("172.17.0.1", Some("172.17.0.1:53")),
            ("172.17.0.1:5353", Some("172.17.0.1:5353")),
            ("fd00::1", Some("[fd00::1]:53")),
            ("dns", None),
        ] {
            assert_eq!(super::endpoint(text), endpoint.map(|e| e.parse().unwrap()));
        }
    }
}
