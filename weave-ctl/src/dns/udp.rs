//! Queries over UDP: a thread of its own answers what it can at once, the rest goes to tasks that wait for others.

use std::io;
use std::net::{SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::answer::{Answerer, Asker, Verdict, failure};
use super::batch::{Batch, Ends, MOST, send};
use super::cache::{put_answer, put_key};
use super::counters::Passed;
use super::server::Shared;
use crate::overlay::sockopt;

/// Queries that wait for others, at most; more are dropped, and asked again by who wants to know.
const MOST_WAITING: usize = 1000;
/// After an error that is not about one datagram.
const PAUSE: Duration = Duration::from_millis(20);

/// A query that others have to answer.
pub struct Job {
    ends: Ends,
    key: Box<[u8]>,
    request: Box<[u8]>,
}

/// The address; where it is all of them, each answer leaves from the one that was asked.
pub fn bind(listen: SocketAddrV4) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    if listen.ip().is_unspecified() {
        sockopt::set(&socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
    }
    socket.bind(&listen.into())?;
    Ok(socket.into())
}

/// Answers until `stopped` is set and the socket shut down.
pub fn serve(shared: &Shared, socket: &UdpSocket, stopped: &AtomicBool, jobs: &mpsc::Sender<Job>) {
    let mut answerer = Answerer::new(shared.local.clone(), StdRng::seed_from_u64(rand::random()));
    let mut batch = Batch::default();
    let mut outs = vec![Vec::new(); MOST];
    let mut ends = Vec::with_capacity(MOST);
    let mut key = Vec::new();
    loop {
        let received = batch.receive(socket);
        if stopped.load(Ordering::Acquire) {
            return;
        }
        if let Err(error) = received {
            // A device that is down, say. What is permanent must not take the whole processor.
            tracing::debug!("DNS: {error}");
            std::thread::sleep(PAUSE);
            continue;
        }
        ends.clear();
        let mut places = outs.iter_mut();
        let mut place = places.next();
        let zone = shared.zone.read();
        for (from, request) in batch.queries() {
            let Some(out) = place.as_deref_mut() else { break };
            let asker = Asker {
                tcp: false,
                subnet: shared.subnet_of(*from.asker.ip()),
            };
            let verdict = answerer.answer(request, &zone, asker, out);
            shared.counters.count(verdict);
            if verdict == Verdict::Forward && put_key(request, false, &mut key) {
                match shared.upstream.cached(&key) {
                    Some((answer, age)) => {
                        put_answer(&answer, request, age, out);
                        shared.counters.passed(Passed::Cached);
                    }
                    None => {
                        let job = Job {
                            ends: from,
                            key: key.as_slice().into(),
                            request: request.into(),
                        };
                        if jobs.try_send(job).is_err() {
                            shared.counters.passed(Passed::Dropped);
                        }
                    }
                }
            }
            if !out.is_empty() {
                ends.push(from);
                place = places.next();
            }
        }
        drop(zone);
        send(socket, ends.iter().copied().zip(outs.iter().map(Vec::as_slice)));
    }
}

/// Has the others asked, and passes on what they say.
pub async fn pass_on(shared: Arc<Shared>, socket: Arc<UdpSocket>, mut jobs: mpsc::Receiver<Job>) {
    let mut waiting = JoinSet::new();
    loop {
        tokio::select! {
            job = jobs.recv(), if waiting.len() < MOST_WAITING => {
                let Some(job) = job else { return };
                let (shared, socket) = (shared.clone(), socket.clone());
                waiting.spawn(async move {
                    let mut out = Vec::new();
                    pass_one_on(&shared, job.key, &job.request, false, &mut out).await;
                    send(&*socket, std::iter::once((job.ends, out.as_slice())));
                });
            }
            Some(_) = waiting.join_next() => {}
        }
    }
}

/// Writes what others say, or that they say nothing.
pub async fn pass_one_on(shared: &Shared, key: Box<[u8]>, request: &[u8], tcp: bool, out: &mut Vec<u8>) {
    match shared.upstream.ask(key, request, tcp).await {
        Some(answer) => {
            put_answer(&answer, request, 0, out);
            shared.counters.passed(Passed::Forwarded);
        }
        None => {
            failure(request, out);
            shared.counters.passed(Passed::Failed);
        }
    }
}
