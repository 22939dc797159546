//! Control connections over the loopback interface.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;

use tokio::net::TcpStream;

use super::super::gob::tests::unhex;
use super::super::handshake::{Features, HEADER};
use super::super::message::Envelope;
use super::super::name::ShortId;
use super::super::{capture, name::PeerName};
use super::introduction::Introduction;
use super::*;

pub(super) fn features(number: u64) -> Features {
    Features {
        name: PeerName::from_u64(number).unwrap(),
        nickname: format!("host{number}"),
        uid: number << 8,
        conn_id: number << 16,
        short_id: ShortId::new(number),
        trusted: false,
        overlays: Some(vec!["fastdp".into(), "sleeve".into()]),
        extra: BTreeMap::from([("MTU".into(), "1410".into())]),
    }
}

/// Both ends of a connection: accepted, dialled.
pub(super) async fn pair() -> (TcpStream, TcpStream) {
    let listener = listen(Some("127.0.0.1".parse().unwrap()), 0).unwrap();
    let dialled = dial(listener.local_addr().unwrap(), None).await.unwrap();
    (listener.accept().await.unwrap().0, dialled)
}

async fn connected() -> (Connected, Connected) {
    let (a, b) = pair().await;
    let (ours, theirs) = (features(1), features(2));
    let (a, b) = tokio::join!(
        introduce(a, &ours, None, false),
        introduce(b, &theirs, None, true)
    );
    let ((a, from_a), (b, from_b)) = (a.unwrap(), b.unwrap());
    assert_eq!((from_a, from_b), (theirs, ours));
    assert_eq!((a.local, a.remote), (b.remote, b.local));
    (a, b)
}

/// What `introduce` makes of a remote that sends `bytes` and then nothing more; and what it sent.
async fn against(bytes: &[u8]) -> (Result<(Connected, Features), IntroError>, TcpStream) {
    let (stream, mut remote) = pair().await;
    remote.write_all(bytes).await.unwrap();
    remote.shutdown().await.unwrap();
    (introduce(stream, &features(1), None, false).await, remote)
}

async fn failure(bytes: &[u8]) -> String {
    against(bytes).await.0.unwrap_err().to_string()
}

#[tokio::test]
async fn two_of_ours_talk() {
    let (mut a, mut b) = connected().await;
    let gossip = Message::Gossip(Envelope {
        channel: "topology".into(),
        source: PeerName::from_u64(1).unwrap(),
        payload: vec![7; 300_000],
    });
    let body = gossip.encode();
    let (sent, received) = tokio::join!(a.writer.send(&body), b.reader.next());
    assert_eq!((sent, received), (Ok(()), Ok(gossip)));
    b.writer.send(&Message::Heartbeat.encode()).await.unwrap();
    assert_eq!(a.reader.next().await, Ok(Message::Heartbeat));

    let too_large = a.writer.send(&vec![0; MAX_BODY + 1]).await.unwrap_err();
    assert_eq!(
        too_large.to_string(),
        "outgoing message exceeds maximum size: 10485761 > 10485760"
    );
    drop(a.writer);
    assert_eq!(b.reader.next().await.unwrap_err().to_string(), "EOF");
}

#[tokio::test]
async fn closing_resets() {
    let (a, mut b) = connected().await;
    let text = format!(
        "read tcp {}->{}: read: connection reset by peer",
        b.local, b.remote
    );
    a.writer.half.forget();
    drop(a.reader);
    assert_eq!(b.reader.next().await.unwrap_err().to_string(), text);
    let error = b.writer.send(&[0]).await.unwrap_err().to_string();
    assert_eq!(
        error,
        format!("write tcp {}->{}: write: broken pipe", b.local, b.remote)
    );
}

/// wire.md Appendix A: beta dialled us.
#[tokio::test]
async fn captured_session() {
    let (stream, mut beta) = pair().await;
    let session = unhex(
        "77656176650102 00 000000b4 0eff81040102ff8200010c010c0000 ffa3 ff82 00 08
         08 4f7665726c617973 0d 6661737464702073 6c65657665
         0f 506565724e616d65466c61766f7572 03 6d6163 04 4e616d65 11 30323a30303a30303a30303a30303a3062
         08 4e69636b4e616d65 04 62657461 07 53686f72744944 03 343934
         03 554944 14 3132343530383233333231373938373834353632
         06 436f6e6e4944 14 3137353735343338363836393935373833333136 07 54727573746564 05 66616c7365
         00000001 00  00000000  00000003 08 01 02  00000003 07 01 01",
    );
    beta.write_all(&session).await.unwrap();
    let ours = features(1);
    let (mut connected, theirs) = introduce(stream, &ours, None, false).await.unwrap();
    assert_eq!(theirs.name.to_string(), "02:00:00:00:00:0b");
    assert_eq!(theirs.conn_id, 17_575_438_686_995_783_316);
    assert_eq!(connected.reader.next().await, Ok(Message::Heartbeat));
    assert_eq!(connected.reader.skipped(), 0);
    let control = Message::OverlayControl {
        index: 1,
        tag: 1,
        data: vec![],
    };
    assert_eq!(connected.reader.next().await, Ok(control));
    assert_eq!(connected.reader.skipped(), 2);

    connected.writer.send(&Message::Heartbeat.encode()).await.unwrap();
    drop(connected.writer);
    let mut sent = Vec::new();
    beta.read_to_end(&mut sent).await.unwrap();
    let body = ours.encode();
    let expected = [
        b"weave\x02\x02\x00".as_slice(),
        &(body.len() as u32).to_be_bytes(),
        &body,
        &[0, 0, 0, 1, 0],
    ];
    assert_eq!(sent, expected.concat());
}

/// Whole connections of original peers, up to the point where the capture ends.
#[tokio::test]
async fn captures() {
    let mut messages = 0;
    for pcap in [capture::PLAIN, capture::IPAM] {
        for (flow, stream) in capture::streams(pcap) {
            let (result, _remote) = against(&stream).await;
            let (mut connected, theirs) = result.unwrap();
            let host = flow.0.ip().octets()[3];
            assert_eq!(theirs.name.to_bytes(), [0x7a, 0, 0, 0, 0, host]);
            assert_eq!(theirs.nickname, format!("host{host}"));
            assert_eq!(theirs.overlays, Some(vec!["sleeve".to_owned()]));
            let end = loop {
                match connected.reader.next().await {
                    Ok(_) => messages += 1,
                    Err(error) => break error,
                }
            };
            assert_eq!(end.to_string(), "EOF");
            assert_eq!(connected.reader.skipped(), 0);
        }
    }
    // As counted by another decoder.
    assert_eq!(messages, 27 + 68);
}

#[tokio::test]
async fn introductions_that_fail() {
    let hello = b"weave\x01\x02".as_slice();
    assert_eq!(
        failure(b"").await,
        "failed to receive remote protocol header: EOF"
    );
    assert_eq!(
        failure(b"wea").await,
        "received incomplete remote protocol header (3 octets instead of 7): [119 101 97]; error: \
         unexpected EOF"
    );
    assert_eq!(
        failure(b"GET / HTTP/1.1\r\n").await,
        "remote protocol header not recognised: [71 69 84 32 47]"
    );
    assert_eq!(
        failure(b"weave\x01\x01").await,
        "remote version range [1,1] is incompatible with ours [2,2]"
    );
    let with = |rest: &[u8]| [hello, rest].concat();
    assert_eq!(failure(&with(&[7])).await, "Bad encryption flag 7");
    assert_eq!(
        failure(&with(&[0, 0, 1, 0, 1])).await,
        "incoming message exceeds maximum size: 65537 > 65536"
    );
    assert_eq!(failure(&with(&[0, 0, 0, 0, 5, 1])).await, "unexpected EOF");
    assert_eq!(failure(&with(&[0, 0, 0, 0, 0])).await, "gob: features is missing");
}

#[tokio::test]
async fn silence_ends_in_time() {
    let soon = Duration::from_millis(20);
    let late = Duration::from_secs(600);
    let ours = features(1);
    let within = |header_timeout, read_timeout| Introduction {
        ours: &ours,
        secret: None,
        outbound: false,
        header_timeout,
        read_timeout,
    };
    let (stream, mut remote) = pair().await;
    let ends = format!(
        "read tcp {}->{}: i/o timeout",
        stream.local_addr().unwrap(),
        remote.local_addr().unwrap()
    );
    let error = within(soon, late).with(stream).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("failed to receive remote protocol header: {ends}")
    );
    drop(remote);

    let (stream, second) = pair().await;
    remote = second;
    let ends = format!(
        "read tcp {}->{}: i/o timeout",
        stream.local_addr().unwrap(),
        remote.local_addr().unwrap()
    );
    remote.write_all(&HEADER).await.unwrap();
    let error = within(late, soon).with(stream).await.unwrap_err();
    assert_eq!(error.to_string(), ends);

    // A message that begins but does not end; giving up a call does not begin a new term.
    let (mut a, mut b) = connected().await;
    b.reader.timeout = soon;
    a.writer.write(&[0, 0, 0, 2, 0]).await.unwrap();
    let error = loop {
        let brief = tokio::time::timeout(Duration::from_millis(5), b.reader.next());
        if let Ok(result) = brief.await {
            break result.unwrap_err();
        }
    };
    assert_eq!(
        error.to_string(),
        format!("read tcp {}->{}: i/o timeout", b.local, b.remote)
    );
}

#[tokio::test]
async fn a_call_given_up_loses_nothing() {
    let (mut a, mut b) = connected().await;
    let message = Message::OverlayControl {
        index: 0,
        tag: 1,
        data: vec![5; 20],
    };
    let body = message.encode();
    let wire = [&(body.len() as u32).to_be_bytes(), body.as_slice()].concat();
    for byte in wire {
        assert!(futures_util::FutureExt::now_or_never(b.reader.next()).is_none());
        a.writer.write(&[byte]).await.unwrap();
    }
    assert_eq!(b.reader.next().await, Ok(message));
}

#[tokio::test]
async fn an_announcement_alone_takes_no_memory() {
    let (mut a, mut b) = connected().await;
    a.writer.write(&(MAX_BODY as u32).to_be_bytes()).await.unwrap();
    a.writer.write(&[0; 1000]).await.unwrap();
    while b.reader.buffer.len() < 1004 {
        let _ = tokio::time::timeout(Duration::from_millis(1), b.reader.next()).await;
    }
    assert!(b.reader.buffer.capacity() < 64 * 1024);

    let (mut a, mut b) = connected().await;
    a.writer
        .write(&(MAX_BODY as u32 + 1).to_be_bytes())
        .await
        .unwrap();
    assert_eq!(
        b.reader.next().await.unwrap_err().to_string(),
        "incoming message exceeds maximum size: 10485761 > 10485760"
    );
}

#[tokio::test]
async fn socket_options() {
    let (a, _b) = connected().await;
    let stream = a.reader.half.reunite(a.writer.half).unwrap();
    let socket = socket2::SockRef::from(&stream);
    assert_eq!(socket.linger().unwrap(), Some(Duration::ZERO));
    assert!(socket.tcp_nodelay().unwrap());
    assert_eq!(socket.tcp_user_timeout().unwrap(), Some(socket::USER_TIMEOUT));
    assert!(socket.keepalive().unwrap());
    assert_eq!(socket.tcp_keepalive_time().unwrap(), socket::PROBE_AFTER);
}
