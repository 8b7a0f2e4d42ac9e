//! Names from outside the cluster, asked of the host's resolvers.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::UdpSocket;
use tokio::sync::oneshot;

/// The wait for one resolver, as CoreDNS waits.
const PATIENCE: Duration = Duration::from_secs(2);

/// A query under way: which resolver it went to, and who waits.
struct Pending {
    resolver: SocketAddr,
    waiter: oneshot::Sender<Vec<u8>>,
}

/// Asks the resolvers in turn, over one socket; queries under way are told apart by an id of our own
/// choosing, which nobody outside can guess from the client's.
pub(super) struct Forwarder {
    socket: UdpSocket,
    resolvers: Vec<SocketAddr>,
    pending: Mutex<HashMap<u16, Pending>>,
}

impl Forwarder {
    /// Begins to listen for answers.
    pub(super) fn start(
        socket: std::net::UdpSocket,
        resolvers: Vec<SocketAddr>,
    ) -> std::io::Result<Arc<Self>> {
        socket.set_nonblocking(true)?;
        // A socket of both families knows IPv4's addresses in their mapped form.
        let is_dual = socket.local_addr()?.is_ipv6();
        let resolvers = resolvers.into_iter().map(|at| if is_dual { mapped(at) } else { at }).collect();
        let socket = UdpSocket::from_std(socket)?;
        let forwarder = Arc::new(Self { socket, resolvers, pending: Mutex::default() });
        let receiving = Arc::downgrade(&forwarder);
        tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            while let Some(forwarder) = receiving.upgrade() {
                forwarder.receive(&mut buffer).await;
            }
        });
        Ok(forwarder)
    }

    /// The answer to `query`, under the id that the query had; nothing if no resolver answers.
    pub(super) async fn ask(&self, query: &[u8]) -> Option<Vec<u8>> {
        let original = [*query.first()?, *query.get(1)?];
        for resolver in &self.resolvers {
            let (waiter, answer) = oneshot::channel();
            let id = self.reserve(Pending { resolver: *resolver, waiter })?;
            let mut asked = query.to_vec();
            asked.get_mut(..2)?.copy_from_slice(&id.to_be_bytes());
            let answered = match self.socket.send_to(&asked, resolver).await {
                Ok(_) => tokio::time::timeout(PATIENCE, answer).await.ok().and_then(Result::ok),
                Err(_) => None,
            };
            self.pending.lock().remove(&id);
            if let Some(mut bytes) = answered {
                bytes.get_mut(..2)?.copy_from_slice(&original);
                return Some(bytes);
            }
        }
        None
    }

    fn reserve(&self, pending: Pending) -> Option<u16> {
        let mut all = self.pending.lock();
        let id = (0..64).map(|_| rand::random::<u16>()).find(|id| !all.contains_key(id))?;
        all.insert(id, pending);
        Some(id)
    }

    async fn receive(&self, buffer: &mut [u8]) {
        let Ok((length, from)) = self.socket.recv_from(buffer).await else {
            // An ICMP answer; a moment, in case the socket itself is broken.
            tokio::time::sleep(Duration::from_millis(10)).await;
            return;
        };
        let Some(bytes @ [high, low, ..]) = buffer.get(..length) else { return };
        let id = u16::from_be_bytes([*high, *low]);
        let mut pending = self.pending.lock();
        if pending.get(&id).is_some_and(|asked| asked.resolver == from)
            && let Some(asked) = pending.remove(&id)
        {
            let _ = asked.waiter.send(bytes.to_vec());
        }
    }
}

fn mapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
        SocketAddr::V6(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_next_resolver_is_asked_when_one_is_silent() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
        let answering = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
        let resolvers = vec![silent.local_addr().expect("a"), answering.local_addr().expect("a")];
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = answering.recv_from(&mut buffer).await {
                let _ = answering.send_to(&buffer[..length], from).await;
            }
        });
        for own in ["127.0.0.1:0", "[::]:0"] {
            // A kernel without IPv6 has no socket of both families either.
            let Ok(socket) = std::net::UdpSocket::bind(own) else { continue };
            let forwarder = Forwarder::start(socket, resolvers.clone()).expect("start");
            assert_eq!(forwarder.ask(&[1, 2, 3, 4]).await, Some(vec![1, 2, 3, 4]), "from {own}");
            assert!(forwarder.pending.lock().is_empty());
        }
    }
}
