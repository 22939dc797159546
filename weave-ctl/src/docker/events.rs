//! Follows the life of Docker's containers (control.md 1.12), for as long as the daemon runs.
//!
//! Docker may be absent, come later, restart, or go away: each connection starts with the list of
//! what runs, so that nothing that happened in between is missed.

use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use serde::Deserialize;
use tokio::sync::Notify;

use super::client::follow;
use super::lookup::list_running_at;

/// `{"type":["container"],"event":["start","die","destroy"]}`, as part of a URL.
const EVENTS: &str = "/events?filters=%7B%22type%22%3A%5B%22container%22%5D%2C\
                      %22event%22%3A%5B%22start%22%2C%22die%22%2C%22destroy%22%5D%7D";
/// Longer than any honest event, in bytes: it carries the container's labels.
const MAX_EVENT: usize = 4 << 20;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(20);

/// What became of containers. IDs have all 64 digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerEvent {
    /// It runs.
    Started(String),
    /// Its main process has ended.
    Died(String),
    /// It was removed.
    Destroyed(String),
    /// A connection was made; these run, and no other.
    Running {
        /// All of them.
        ids: Vec<String>,
        /// We have not been connected since our start.
        first: bool,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Told {
    action: String,
    actor: Actor,
}

#[derive(Deserialize)]
struct Actor {
    #[serde(rename = "ID")]
    id: String,
}

/// Follows the engine at `host` (`unix://…` or `tcp://…`) and never ends. `tell` may wait; the
/// engine's events then wait in the socket. `again` ends the pause before another try to connect.
pub async fn watch<F: Future<Output = ()>>(
    host: &str,
    again: &Notify,
    tell: impl FnMut(ContainerEvent) -> F,
) {
    watch_with(host, again, FIRST_PAUSE, tell).await;
}

async fn watch_with<F: Future<Output = ()>>(
    host: &str,
    again: &Notify,
    first_pause: Duration,
    mut tell: impl FnMut(ContainerEvent) -> F,
) {
    let (mut first, mut pause, mut quiet) = (true, first_pause, false);
    loop {
        let start = Instant::now();
        let (connected, reason) = follow_once(host, first, &mut tell).await;
        if connected {
            (first, quiet) = (false, false);
        }
        if !quiet {
            tracing::info!("Docker at {host} is not available, trying again from time to time: {reason}");
            quiet = true;
        }
        if connected && start.elapsed() > LONGEST_PAUSE {
            pause = first_pause;
        }
        // Cut short or not, it is the pause.
        let _ = tokio::time::timeout(pause, again.notified()).await;
        pause = (pause * 3 / 2).min(LONGEST_PAUSE);
    }
}

/// One connection, to its end: was there one, and why did it end?
async fn follow_once<F: Future<Output = ()>>(
    host: &str,
    first: bool,
    tell: &mut impl FnMut(ContainerEvent) -> F,
) -> (bool, String) {
    // Subscribed before listing: what changes during the list is told afterwards.
    let mut body = match follow(host, EVENTS).await {
        Ok(body) => body,
        Err(failure) => return (false, failure.reason()),
    };
    let ids = match list_running_at(host).await {
        Ok(ids) => ids,
        Err(error) => return (false, error.to_string()),
    };
    tracing::info!("watching {} running containers of Docker at {host}", ids.len());
    tell(ContainerEvent::Running { ids, first }).await;
    let mut buffer = Vec::new();
    loop {
        let data = match body.frame().await {
            None => return (true, "it has closed the connection".to_owned()),
            Some(Err(error)) => return (true, error.to_string()),
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
        };
        buffer.extend_from_slice(&data);
        match take_events(&mut buffer) {
            Ok(events) => {
                for event in events {
                    tell(event).await;
                }
            }
            Err(error) => return (true, format!("an event that makes no sense: {error}")),
        }
        if buffer.len() > MAX_EVENT {
            return (true, format!("an event longer than {MAX_EVENT} bytes"));
        }
    }
}

/// Takes the events that are there completely; they follow one another without a common frame.
fn take_events(buffer: &mut Vec<u8>) -> Result<Vec<ContainerEvent>, serde_json::Error> {
    let mut stream = serde_json::Deserializer::from_slice(buffer).into_iter::<Told>();
    let mut events = Vec::new();
    for told in &mut stream {
        match told {
            Ok(told) => events.extend(meaning(told)),
            Err(error) if error.is_eof() => break,
            Err(error) => return Err(error),
        }
    }
    let taken = stream.byte_offset().min(buffer.len());
    buffer.drain(..taken);
    Ok(events)
}

fn meaning(told: Told) -> Option<ContainerEvent> {
    let event = match told.action.as_str() {
        "start" => ContainerEvent::Started,
        "die" => ContainerEvent::Died,
        "destroy" => ContainerEvent::Destroyed,
        _ => return None,
    };
    Some(event(told.actor.id))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use axum::body::Body;
    use axum::routing::get;
    use axum::{Json, Router};
    use serde_json::json;
    use tokio::sync::mpsc;

    use super::*;

    fn told(action: &str, id: &str) -> String {
        // As Docker 20.10 prints it.
        format!(
            r#"{{"status":"{action}","id":"{id}","from":"box","Type":"container","Action":"{action}","Actor":{{"ID":"{id}","Attributes":{{"exitCode":"137","image":"box","name":"web"}}}},"scope":"local","time":1700000000,"timeNano":1700000000000000000}}"#
        ) + "\n"
    }

    #[test]
    fn events_in_pieces() {
        let text =
            told("start", "a") + &told("exec_create: sh", "a") + &told("die", "a") + &told("destroy", "b");
        let expected = [
            ContainerEvent::Started("a".to_owned()),
            ContainerEvent::Died("a".to_owned()),
            ContainerEvent::Destroyed("b".to_owned()),
        ];
        for size in [1, 7, 100, text.len()] {
            let (mut buffer, mut got) = (Vec::new(), Vec::new());
            for piece in text.as_bytes().chunks(size) {
                buffer.extend_from_slice(piece);
                got.extend(take_events(&mut buffer).unwrap());
            }
            assert_eq!(got, expected, "in pieces of {size}");
            assert!(buffer.len() <= 1, "left: {}", buffer.len());
        }
        for bad in ["<html>", r#"{"Action":1}"#, r#"{"message":"no"}"#] {
            assert!(take_events(&mut bad.as_bytes().to_vec()).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn reconnects_and_lists_again() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("docker.sock");
        let host = format!("unix://{}", socket.display());
        let (sender, mut receiver) = mpsc::channel(16);
        let watching = tokio::spawn(async move {
            watch_with(&host, &Notify::new(), Duration::from_millis(1), |event| {
                let sender = sender.clone();
                async move { sender.send(event).await.unwrap() }
            })
            .await;
        });
        // Docker comes later, and closes each connection after one event.
        tokio::task::yield_now().await;
        let router = Router::new()
            .route("/_ping", get(([("Api-Version", "1.41")], "OK")))
            .route("/v1.41/containers/json", get(Json(json!([{"Id": "a"}]))))
            .route("/v1.41/events", get(|| async { Body::from(told("die", "a")) }));
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let serving = tokio::spawn(async move { axum::serve(listener, router).await });
        for first in [true, false] {
            let ids = vec!["a".to_owned()];
            assert_eq!(
                receiver.recv().await,
                Some(ContainerEvent::Running { ids, first })
            );
            assert_eq!(receiver.recv().await, Some(ContainerEvent::Died("a".to_owned())));
        }
        watching.abort();
        serving.abort();
    }
}
