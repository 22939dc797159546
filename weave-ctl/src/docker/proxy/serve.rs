//! Connections to the proxy.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::Proxy;
use super::forward::Client;
use super::listen::{Listener, Listening};
use super::shared::Shared;
use crate::docker::endpoint::Stream;

/// A TLS handshake must be over after this long.
const HANDSHAKE_TIME: Duration = Duration::from_secs(30);
/// How long requests may go on after the stop signal.
const GRACE: Duration = Duration::from_secs(1);
/// Pause after a failed accept, so that running out of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl Proxy {
    /// Serves until `stop` completes, then lets running requests end for a second at most. TCP connections are TLS, if
    /// there is an acceptor.
    pub async fn serve(
        self: Arc<Self>,
        mut listening: Listening,
        tls: Option<TlsAcceptor>,
        stop: impl Future<Output = ()> + Send,
    ) {
        let (stopping, stopped) = watch::channel(());
        let mut accepting = JoinSet::new();
        for listener in std::mem::take(&mut listening.listeners) {
            accepting.spawn(accept(self.clone(), listener, tls.clone(), stopped.clone()));
        }
        stop.await;
        // No new connections, and no files of sockets.
        drop(listening);
        let _ = stopping.send(());
        while accepting.join_next().await.is_some() {}
    }
}

async fn accept(
    proxy: Arc<Proxy>,
    listener: Listener,
    tls: Option<TlsAcceptor>,
    stopped: watch::Receiver<()>,
) {
    let mut connections = JoinSet::new();
    let mut stop = stopped.clone();
    loop {
        tokio::select! {
            _ = stop.changed() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, is_tcp)) => {
                    let tls = tls.clone().filter(|_| is_tcp);
                    connections.spawn(connection(proxy.clone(), stream, tls, stopped.clone()));
                }
                Err(error) => {
                    tracing::warn!("cannot accept a connection to the Docker proxy: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
    drop(listener);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(GRACE, all_ended).await;
}

async fn connection(
    proxy: Arc<Proxy>,
    stream: Box<dyn Stream>,
    tls: Option<TlsAcceptor>,
    stopped: watch::Receiver<()>,
) {
    let stream: Box<dyn Stream> = match tls {
        None => stream,
        Some(tls) => match tokio::time::timeout(HANDSHAKE_TIME, tls.accept(stream)).await {
            Ok(Ok(stream)) => Box::new(stream),
            Ok(Err(error)) => return tracing::info!("TLS handshake with a client of the proxy: {error}"),
            Err(_) => return,
        },
    };
    if let Err(error) = speak(proxy, Shared::new(stream), stopped).await {
        tracing::debug!("connection to the Docker proxy: {error}");
    }
}

/// HTTP, until the connection ends or becomes something else.
async fn speak(proxy: Arc<Proxy>, stream: Shared, mut stopped: watch::Receiver<()>) -> io::Result<()> {
    let (hijacks, mut hijacked) = mpsc::channel(1);
    let client = Client {
        stream: stream.clone(),
        hijacks,
    };
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = proxy.clone().answer(client.clone(), request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut connection = http1::Builder::new()
        .half_close(true)
        .preserve_header_case(true)
        .title_case_headers(true)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream.clone()), service);
    let hijack = {
        let mut connection = std::pin::Pin::new(&mut connection);
        let mut stopping = false;
        loop {
            tokio::select! {
                ended = &mut connection => return ended.map_err(io::Error::other),
                Some(hijack) = hijacked.recv() => break hijack,
                _ = stopped.changed(), if !stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    };
    // What hyper has read is the beginning of the stream.
    let parts = connection.into_parts();
    stream.unread(parts.read_buf);
    // The service has a way to send more of them.
    drop((parts.service, parts.io));
    hijack.run(stream).await
}
