//! The sockets.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::answer::{Reply, answer, failure};
use super::forward::Forwarder;
use super::zone::Zone;

/// Queries that are asked elsewhere, and TCP connections, at the same time.
const MOST_AT_ONCE: usize = 256;

/// A TCP client that says nothing for this long is done (RFC 7766 section 6.2.3).
const IDLE: Duration = Duration::from_secs(10);

pub(super) struct Server {
    pub(super) zone: Arc<ArcSwap<Zone>>,
    pub(super) forwarder: Option<Arc<Forwarder>>,
}

impl Server {
    /// Answers datagrams for ever.
    pub(super) async fn udp(&self, socket: std::net::UdpSocket) -> std::io::Result<()> {
        socket.set_nonblocking(true)?;
        let socket = Arc::new(UdpSocket::from_std(socket)?);
        let elsewhere = Arc::new(Semaphore::new(MOST_AT_ONCE));
        let mut buffer = vec![0; 4096];
        loop {
            // An ICMP answer to an earlier datagram shows up here; it ends nothing.
            let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
            let query = buffer.get(..length).unwrap_or_default();
            match answer(query, &self.zone.load(), false) {
                Reply::Answer(bytes) => {
                    let _ = socket.send_to(&bytes, client).await;
                }
                Reply::Nothing => {}
                Reply::Elsewhere => {
                    // Beyond the bound nothing is said: the client asks again.
                    let Ok(permit) = elsewhere.clone().try_acquire_owned() else { continue };
                    let (socket, forwarder, query) = (socket.clone(), self.forwarder.clone(), query.to_vec());
                    tokio::spawn(async move {
                        if let Some(bytes) = ask_elsewhere(forwarder, &query).await {
                            let _ = socket.send_to(&bytes, client).await;
                        }
                        drop(permit);
                    });
                }
            }
        }
    }

    /// Answers connections for ever.
    pub(super) async fn tcp(&self, listener: std::net::TcpListener) -> std::io::Result<()> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let open = Arc::new(Semaphore::new(MOST_AT_ONCE));
        loop {
            let Ok(permit) = open.clone().acquire_owned().await else { return Ok(()) };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (zone, forwarder) = (self.zone.clone(), self.forwarder.clone());
                    tokio::spawn(async move {
                        let _ = converse(stream, &zone, forwarder).await;
                        drop(permit);
                    });
                }
                // Out of descriptors, most likely.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

/// Queries and answers, each behind its length in two bytes (RFC 1035 section 4.2.2).
async fn converse(
    mut stream: TcpStream,
    zone: &ArcSwap<Zone>,
    forwarder: Option<Arc<Forwarder>>,
) -> std::io::Result<()> {
    loop {
        let length = timeout(IDLE, stream.read_u16()).await??;
        let mut query = vec![0; usize::from(length)];
        timeout(IDLE, stream.read_exact(&mut query)).await??;
        let reply = match answer(&query, &zone.load(), true) {
            Reply::Answer(bytes) => Some(bytes),
            Reply::Elsewhere => ask_elsewhere(forwarder.clone(), &query).await,
            Reply::Nothing => None,
        };
        let Some(bytes) = reply else { return Ok(()) };
        let Ok(length) = u16::try_from(bytes.len()) else { return Ok(()) };
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend(bytes);
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}

async fn ask_elsewhere(forwarder: Option<Arc<Forwarder>>, query: &[u8]) -> Option<Vec<u8>> {
    let answered = match forwarder {
        Some(forwarder) => forwarder.ask(query).await,
        None => None,
    };
    answered.or_else(|| failure(query))
}
