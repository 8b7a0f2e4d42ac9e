//! The sockets, and the road of a question: registry, else resolvers, else SERVFAIL.

use std::sync::Arc;
use std::time::Duration;

use maille_telemetry::Registry;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::message::{Received, failure, read};
use super::names::{Known, RegistryNames};
use super::upstream::{Transport, Upstream};

/// Datagrams being answered at a time. Beyond, nothing is said: the client asks again.
const MOST_DATAGRAMS: usize = 256;
/// Connections at a time; further ones wait.
const MOST_CONNECTIONS: usize = 64;
/// A question is short: a name has 255 bytes at most.
const LONGEST_QUESTION: usize = 4096;
/// A TCP client that says nothing for this long is done (RFC 7766 section 6.2.3).
const IDLE: Duration = Duration::from_secs(10);

pub(super) struct Server {
    pub(super) names: RegistryNames,
    pub(super) upstream: Upstream,
    pub(super) telemetry: Arc<Registry>,
}

impl Server {
    /// Answers datagrams for ever.
    pub(super) async fn udp(self: Arc<Self>, socket: UdpSocket) {
        let socket = Arc::new(socket);
        let room = Arc::new(Semaphore::new(MOST_DATAGRAMS));
        let mut buffer = vec![0; LONGEST_QUESTION];
        loop {
            // An ICMP answer to an earlier datagram shows up here; it ends nothing.
            let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
            let Ok(place) = room.clone().try_acquire_owned() else { continue };
            let query = buffer.get(..length).unwrap_or_default().to_vec();
            let (this, socket) = (self.clone(), socket.clone());
            tokio::spawn(async move {
                if let Some(answer) = this.answer(&query, Transport::Udp).await {
                    let _ = socket.send_to(&answer, client).await;
                }
                drop(place);
            });
        }
    }

    /// Answers connections for ever.
    pub(super) async fn tcp(self: Arc<Self>, listener: TcpListener) {
        let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        loop {
            let Ok(place) = room.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let this = self.clone();
                    tokio::spawn(async move {
                        let _ = this.converse(stream).await;
                        drop(place);
                    });
                }
                // Out of descriptors, most likely.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Questions and answers, each behind its length in two bytes (RFC 1035 section 4.2.2).
    async fn converse(&self, mut stream: TcpStream) -> std::io::Result<()> {
        loop {
            let length = usize::from(timeout(IDLE, stream.read_u16()).await??);
            if length > LONGEST_QUESTION {
                return Ok(());
            }
            let mut query = vec![0; length];
            timeout(IDLE, stream.read_exact(&mut query)).await??;
            let Some(answer) = self.answer(&query, Transport::Tcp).await else { return Ok(()) };
            let Ok(length) = u16::try_from(answer.len()) else { return Ok(()) };
            let mut framed = length.to_be_bytes().to_vec();
            framed.extend(answer);
            timeout(IDLE, stream.write_all(&framed)).await??;
        }
    }

    /// What goes back; nothing to what is no question.
    async fn answer(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let limit = (transport == Transport::Tcp).then_some(usize::from(u16::MAX));
        let received = read(query, limit);
        if !matches!(received, Received::Nothing) {
            self.telemetry.gauges().dns_received();
        }
        let known = match &received {
            Received::Address(question) => self.names.find(&question.name).await,
            Received::Other => Known::Elsewhere,
            Received::Refused(answer) => return Some(answer.clone()),
            Received::Nothing => return None,
        };
        match (known, received) {
            (Known::Addresses { alias, addresses, may_have_more }, Received::Address(question))
                if !may_have_more || addresses.iter().any(|address| question.wants(address)) =>
            {
                question.answer(alias.as_deref(), addresses)
            }
            (Known::Addresses { .. } | Known::Elsewhere, _) => {
                let answer = self.upstream.ask(query, transport).await;
                answer.or_else(|| failure(query))
            }
            _ => failure(query),
        }
    }
}
