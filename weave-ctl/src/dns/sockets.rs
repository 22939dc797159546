//! Sockets for questions to other servers: each at a port that nobody can guess (RFC 5452).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;

/// So long after it was made a socket may be used again: under load most of the work of a question would be its
/// socket's, and one at a time it has a port of its own.
const FRESH: Duration = Duration::from_secs(1);
/// Sockets that wait to be used again.
const MOST: usize = 64;

/// A socket that takes messages of one server only.
pub struct Connected {
    pub socket: UdpSocket,
    server: SocketAddr,
    made: Instant,
}

/// Those that are not in use, the last used at the end.
#[derive(Default)]
pub struct Sockets(Mutex<Vec<Connected>>);

impl Sockets {
    /// One for a question to that server. It may hold answers to earlier ones.
    pub async fn get(&self, server: SocketAddr) -> io::Result<Connected> {
        if let Some(found) = self.take(server) {
            return Ok(found);
        }
        let any: IpAddr = match server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(server).await?;
        let made = Instant::now();
        Ok(Connected { socket, server, made })
    }

    fn take(&self, server: SocketAddr) -> Option<Connected> {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|known| known.made.elapsed() < FRESH);
        let place = idle.iter().rposition(|known| known.server == server)?;
        Some(idle.swap_remove(place))
    }

    /// It has done its work.
    pub fn put_back(&self, used: Connected) {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MOST && used.made.elapsed() < FRESH {
            idle.push(used);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn used_again_for_the_same_server_and_not_for_long() {
        let sockets = Sockets::default();
        let (one, two) = ("127.0.0.1:9".parse().unwrap(), "127.0.0.2:9".parse().unwrap());
        let port = |c: &Connected| c.socket.local_addr().unwrap().port();
        let first = sockets.get(one).await.unwrap();
        let used = port(&first);
        sockets.put_back(first);
        let other = sockets.get(two).await.unwrap();
        assert_eq!(other.socket.peer_addr().unwrap(), two);
        sockets.put_back(Connected {
            made: Instant::now().checked_sub(FRESH).unwrap(),
            ..other
        });
        assert_eq!(sockets.0.lock().unwrap().len(), 1, "too old to be kept");
        let again = sockets.take(one).unwrap();
        assert_eq!(port(&again), used);
        sockets.0.lock().unwrap().push(Connected {
            made: Instant::now().checked_sub(FRESH).unwrap(),
            ..again
        });
        assert!(sockets.take(one).is_none(), "its port could be known by now");
        let mut many = Vec::new();
        for _ in 0..=MOST {
            many.push(sockets.get(two).await.unwrap());
        }
        many.into_iter().for_each(|used| sockets.put_back(used));
        assert!(sockets.0.lock().unwrap().len() <= MOST);
    }
}
