//! Encrypted control connections: ours among themselves, and those that originals have held.
#![allow(clippy::unwrap_used)]

use tokio::net::TcpStream;
use zeroize::Zeroizing;

use super::super::capture::{self, Secret};
use super::super::crypto::{KeyPair, Password, SessionKey};
use super::super::gob::{Decoder, Value};
use super::super::handshake::{FLAG_ENCRYPTED, Features, HEADER};
use super::introduction::Introduction;
use super::tests::{features, pair};
use super::*;

const SAME: &str = "(WEAVE_PASSWORD or --password must be the same on all hosts)";

/// What comes of introducing two, the first of whom was dialled; and the addresses of both.
async fn between(
    password: Option<&str>,
    dialler: Option<&str>,
) -> [(Result<(Connected, Features), IntroError>, String); 2] {
    let (a, b) = pair().await;
    let addresses = [&a, &b].map(|stream| stream.local_addr().unwrap().to_string());
    let [a, b] =
        [(a, 1, password, false), (b, 2, dialler, true)].map(async |(stream, number, password, outbound)| {
            let password: Option<Password> = password.map(|text| text.parse().unwrap());
            introduce(stream, &features(number), password.as_ref(), outbound).await
        });
    let (a, b) = tokio::join!(a, b);
    let [accepted, dialled] = addresses;
    [(a, accepted), (b, dialled)]
}

#[tokio::test]
async fn with_the_same_password() {
    let [(a, _), (b, _)] = between(Some("wombat"), Some("wombat")).await;
    let ((mut a, of_b), (mut b, of_a)) = (a.unwrap(), b.unwrap());
    assert_eq!((of_a, of_b), (features(1), features(2)));
    assert!(a.session.is_some() && a.session == b.session);
    let message = Message::OverlayControl {
        index: 1,
        tag: 3,
        data: vec![9; 200_000],
    };
    let body = message.encode();
    for _ in 0..3 {
        let (sent, received) = tokio::join!(a.writer.send(&body), b.reader.next());
        assert_eq!((sent, received), (Ok(()), Ok(message.clone())));
        b.writer.send(&Message::Heartbeat.encode()).await.unwrap();
        assert_eq!(a.reader.next().await, Ok(Message::Heartbeat));
    }
    // Blank, and larger than the limit only because it is sealed.
    b.writer.send(&[]).await.unwrap();
    b.writer.send(&Message::Heartbeat.encode()).await.unwrap();
    assert_eq!(a.reader.next().await, Ok(Message::Heartbeat));
    assert_eq!(a.reader.skipped(), 1);
    let error = a.writer.send(&vec![0; MAX_BODY - 15]).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "outgoing message exceeds maximum size: 10485761 > 10485760"
    );
    // What is not sealed, or too short for that, ends it.
    a.writer.write(&[0, 0, 0, 1, 0]).await.unwrap();
    let error = b.reader.next().await.unwrap_err();
    assert_eq!(error.to_string(), "Unable to decrypt TCP msg");
    b.writer
        .write(&[&[0, 0, 0, 17][..], &[0; 17]].concat())
        .await
        .unwrap();
    let error = a.reader.next().await.unwrap_err();
    assert_eq!(error.to_string(), "Unable to decrypt TCP msg");
}

#[tokio::test]
async fn every_connection_has_its_own_key() {
    let [(first, _), _] = between(Some("p"), Some("p")).await;
    let [(second, _), _] = between(Some("p"), Some("p")).await;
    assert!(first.unwrap().0.session != second.unwrap().0.session);
}

#[tokio::test]
async fn a_call_given_up_loses_nothing_of_a_sealed_message() {
    let [(a, _), (b, _)] = between(Some("wombat"), Some("wombat")).await;
    let (mut a, mut b) = (a.unwrap().0, b.unwrap().0);
    let mut sealed = Message::Heartbeat.encode();
    let tag = a.writer.sealer.as_mut().unwrap().seal(&mut sealed).unwrap();
    let size = u32::try_from(TAG + sealed.len()).unwrap();
    for byte in [&size.to_be_bytes(), tag.as_slice(), &sealed].concat() {
        assert!(futures_util::FutureExt::now_or_never(b.reader.next()).is_none());
        a.writer.write(&[byte]).await.unwrap();
    }
    assert_eq!(b.reader.next().await, Ok(Message::Heartbeat));
}

#[tokio::test]
async fn both_sides_learn_that_the_passwords_differ() {
    const UNPLAIN: &str = "no password specificed, but peer requested an encrypted connection";
    const UNSEALED: &str = "password specified, but peer requested an unencrypted connection";
    const UNDECRYPTABLE: &str = "Unable to decrypt TCP msg";
    const HAS: &str = "has a password, but this host has none";
    const NONE: &str = "has no password, but this host has one";
    const OTHER: &str = "has another password";
    // More than once: which side is first must make no difference.
    for _ in 0..20 {
        for (ours, dialler, ours_told, dialler_told) in [
            (
                Some("a"),
                Some("b"),
                (UNDECRYPTABLE, OTHER),
                (UNDECRYPTABLE, OTHER),
            ),
            (Some("a"), None, (UNSEALED, NONE), (UNPLAIN, HAS)),
            (None, Some("b"), (UNPLAIN, HAS), (UNSEALED, NONE)),
        ] {
            let [(a, accepted), (b, dialled)] = between(ours, dialler).await;
            let text = |(cause, theirs): (&str, &str), remote: &str| {
                format!("{cause}: the peer at {remote} {theirs} {SAME}")
            };
            assert_eq!(a.unwrap_err().to_string(), text(ours_told, &dialled));
            assert_eq!(b.unwrap_err().to_string(), text(dialler_told, &accepted));
        }
    }
}

/// What an introduction makes of a remote that sends `bytes`, and then resets or says that it is done.
async fn against(bytes: &[u8], password: Option<&str>, reset: bool) -> String {
    let (stream, mut remote) = pair().await;
    let address = remote.local_addr().unwrap().to_string();
    remote.write_all(bytes).await.unwrap();
    if reset {
        // As originals do it, with what we have sent still unread.
        socket2::SockRef::from(&remote)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    } else {
        remote.shutdown().await.unwrap();
    }
    let password: Option<Password> = password.map(|text| text.parse().unwrap());
    let ours = features(1);
    let introduced = introduce(stream, &ours, password.as_ref(), false);
    let error = if reset {
        let reset = async {
            // Header and flag, at least.
            let mut ours = [0; 8];
            remote.read_exact(&mut ours).await.unwrap();
            drop(remote);
        };
        tokio::join!(introduced, reset).0
    } else {
        introduced.await
    };
    error.unwrap_err().to_string().replace(&address, "THEM")
}

#[tokio::test]
async fn remotes_that_go_without_a_word() {
    let probably = |theirs: &str| format!(": the peer at THEM probably {theirs} {SAME}");
    let (has, none) = (
        "has a password, but this host has none",
        "has no password, but this host has one",
    );
    assert_eq!(
        against(&HEADER, None, false).await,
        format!("EOF{}", probably(has))
    );
    assert_eq!(
        against(&HEADER, Some("p"), false).await,
        format!("EOF{}", probably(none))
    );
    let key = KeyPair::new(Zeroizing::new([5; 32])).public();
    let hello = [&HEADER, [FLAG_ENCRYPTED].as_slice(), &key].concat();
    assert_eq!(
        against(&hello, Some("p"), false).await,
        format!("EOF{}", probably("has another password"))
    );
    let part = [&hello, [0, 0, 0, 99, 1, 2, 3].as_slice()].concat();
    assert_eq!(
        against(&part, Some("p"), false).await,
        format!("unexpected EOF{}", probably("has another password"))
    );
    let told = against(&hello, Some("p"), true).await;
    assert!(told.ends_with(&probably("has another password")), "{told}");
    let told = against(&HEADER, None, true).await;
    assert!(told.ends_with(&probably(has)), "{told}");
}

#[tokio::test]
async fn keys_of_low_order_are_refused() {
    let hello = [&HEADER, [FLAG_ENCRYPTED].as_slice(), &[0; 32], &[0; 100]].concat();
    assert_eq!(
        against(&hello, Some("p"), false).await,
        "the peer at THEM cannot be spoken to in secret: the remote's public key is of low order and gives no \
         secret"
    );
}

/// Header, flag and key that an original has sent, its sealed messages, and what has opened them.
fn captured(pcap: &[u8], secret: &Secret, from_remote: bool) -> (Vec<u8>, TcpCipher) {
    let mut flow = (secret.local, secret.remote);
    if from_remote {
        flow = (flow.1, flow.0);
    }
    let stream = capture::streams(pcap).remove(&flow).unwrap();
    let key = SessionKey::new(secret.session_key);
    (stream, TcpCipher::new(&key, secret.outbound != from_remote))
}

fn key_pair(secret: &Secret) -> KeyPair {
    KeyPair::new(Zeroizing::new(secret.local_private))
}

#[test]
fn session_keys_of_originals() {
    let logs = [
        capture::ENCRYPTED_KEYS,
        capture::WRONG_PASSWORD_KEYS,
        capture::RELAY_KEYS,
        capture::VERSION_1_KEYS,
    ];
    let secrets: Vec<_> = logs.into_iter().flat_map(capture::secrets).collect();
    assert_eq!(secrets.len(), 8);
    for secret in secrets {
        let password = secret.password.parse().unwrap();
        let key = SessionKey::derive(&key_pair(&secret), secret.remote_public, &password).unwrap();
        assert_eq!(key.as_bytes(), &secret.session_key);
    }
}

/// In the place of each end in turn: we say what it had said, and open all that came.
#[tokio::test]
async fn connections_of_originals() {
    let mut messages = 0;
    for (pcap, keys) in [
        (capture::ENCRYPTED, capture::ENCRYPTED_KEYS),
        (capture::RELAY, capture::RELAY_KEYS),
    ] {
        // The relay's other ends have written nothing down, but what the relay sent can be opened.
        let from_local = pcap == capture::RELAY;
        for secret in capture::secrets(keys) {
            let (stream, mut remote) = pair().await;
            let (bytes, _) = captured(pcap, &secret, true);
            let (ours, password) = (features(1), secret.password.parse().unwrap());
            let introduction = Introduction {
                ours: &ours,
                secret: Some((key_pair(&secret), &password)),
                outbound: secret.outbound,
                header_timeout: Duration::from_secs(60),
                read_timeout: Duration::from_secs(60),
            };
            let reply = tokio::spawn(async move {
                remote.write_all(&bytes).await.unwrap();
                remote.shutdown().await.unwrap();
                remote
            });
            let (mut connected, theirs) = introduction.with(stream).await.unwrap();
            let host = secret.remote.ip().octets()[3];
            assert_eq!(theirs.name.to_bytes(), [0x7a, 0, 0, 0, 0, host]);
            assert_eq!(theirs.nickname, format!("host{host}"));
            let end = loop {
                match connected.reader.next().await {
                    Ok(_) => messages += 1,
                    Err(error) => break error,
                }
            };
            assert_eq!((end.to_string().as_str(), connected.reader.skipped()), ("EOF", 0));
            drop(reply.await.unwrap());

            if from_local {
                let (bytes, mut opener) = captured(pcap, &secret, false);
                let mut sealed = sealed_messages(&bytes).into_iter();
                let features = Features::decode(&open(&mut opener, sealed.next().unwrap()).unwrap()).unwrap();
                assert_eq!(features.nickname, "host2");
                for message in sealed {
                    let opened = open(&mut opener, message).unwrap();
                    assert!(Message::decode(&opened).unwrap().is_some());
                    messages += 1;
                }
            }
        }
    }
    // As counted by another decoder.
    assert_eq!(messages, 27 + 41);
}

/// After header, flag and key.
fn sealed_messages(stream: &[u8]) -> Vec<&[u8]> {
    let (hello, mut rest) = stream.split_at(HEADER.len() + 33);
    assert_eq!(hello[HEADER.len()], FLAG_ENCRYPTED);
    let mut messages = Vec::new();
    while let Some((size, tail)) = rest.split_first_chunk::<4>() {
        let (message, tail) = tail.split_at(u32::from_be_bytes(*size) as usize);
        messages.push(message);
        rest = tail;
    }
    assert!(rest.is_empty());
    messages
}

fn open(opener: &mut TcpCipher, sealed: &[u8]) -> Result<Vec<u8>, Undecryptable> {
    let (tag, message) = sealed.split_first_chunk().unwrap();
    let mut message = message.to_vec();
    opener.open(tag, &mut message).map(|()| message)
}

/// We are host1, whose password is another than that of host2.
#[tokio::test]
async fn an_original_with_another_password() {
    let secrets = capture::secrets(capture::WRONG_PASSWORD_KEYS);
    let mut told = Vec::new();
    for secret in &secrets {
        let (bytes, mut opener) = captured(capture::WRONG_PASSWORD, secret, false);
        let own = open(&mut opener, sealed_messages(&bytes)[0]).unwrap();
        assert_eq!(Features::decode(&own).unwrap().nickname, "host1");

        let (bytes, mut opener) = captured(capture::WRONG_PASSWORD, secret, true);
        for message in sealed_messages(&bytes) {
            assert_eq!(open(&mut opener, message), Err(Undecryptable));
        }
        told.push(against(&bytes, Some(&secret.password), false).await);
    }
    told.sort();
    assert_eq!(
        told,
        [
            format!("EOF: the peer at THEM probably has another password {SAME}"),
            format!("Unable to decrypt TCP msg: the peer at THEM has another password {SAME}"),
        ]
    );
}

/// host2 has a password and dials host1, which has none.
#[tokio::test]
async fn an_original_with_a_password_and_one_without() {
    let streams = capture::streams(capture::PASSWORD_OR_NONE);
    assert_eq!(streams.len(), 4);
    for ((from, _), stream) in streams {
        if from.port() == 6783 {
            let told = against(&stream, Some("p"), false).await;
            let text = "password specified, but peer requested an unencrypted connection: the peer at THEM has \
                        no password, but this host has one";
            assert_eq!(told, format!("{text} {SAME}"));
        } else {
            // It has seen host1's flag and has gone before it sent its own.
            let told = against(&stream, None, true).await;
            let text = ": the peer at THEM probably has a password, but this host has none";
            assert!(told.ends_with(&format!("{text} {SAME}")), "{told}");
        }
    }
}

/// Version 1 seals the same way, in byte strings of one gob stream (wire.md 2.9).
#[test]
fn version_1() {
    let mut messages = 0;
    for secret in capture::secrets(capture::VERSION_1_KEYS) {
        for from_remote in [false, true] {
            let (stream, mut opener) = captured(capture::VERSION_1, &secret, from_remote);
            let mut decoder = Decoder::new(&stream[HEADER.len()..]);
            let features = decoder.next_value().unwrap().unwrap();
            let keys = features.as_map("features").unwrap();
            assert!(keys.iter().any(|(key, _)| key.as_str("key") == Ok("PublicKey")));
            while let Some(value) = decoder.next_value().unwrap() {
                let Value::Bytes(sealed) = value else {
                    panic!("{value:?}");
                };
                let opened = open(&mut opener, &sealed).unwrap();
                // Sleeve's own tags are for peers without `Overlays` only; we always send it.
                let known = Message::decode(&opened).unwrap().is_some();
                assert!(known != matches!(opened[0], 1..=3));
                messages += 1;
            }
        }
    }
    // The same ones with what either end knew.
    assert_eq!(messages, 2 * 20);
}

#[tokio::test]
async fn trust_is_told_and_kept() {
    let (a, b): (TcpStream, TcpStream) = pair().await;
    let password: Password = "p".parse().unwrap();
    let trusting = Features {
        trusted: true,
        ..features(1)
    };
    let (ours, theirs) = (features(2), Some(&password));
    let (a, b) = tokio::join!(
        introduce(a, &trusting, theirs, false),
        introduce(b, &ours, theirs, true)
    );
    let ((a, of_b), (b, of_a)) = (a.unwrap(), b.unwrap());
    assert_eq!((a.trusted_by_us, of_b.trusted), (true, false));
    assert_eq!((b.trusted_by_us, of_a.trusted), (false, true));
    // The control connection is sealed all the same.
    assert!(a.session.is_some() && b.session.is_some());
}
