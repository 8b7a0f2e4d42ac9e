//! What the registry does not know, asked of the resolvers that the application would have asked.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use maille_telemetry::Registry;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::message::{advertised, answers, response_code};

/// For all resolvers together (SE-16).
const PATIENCE: Duration = Duration::from_secs(5);

/// Questions under way, each with a socket of its own.
const MOST_AT_ONCE: usize = 128;

const SERVFAIL: u8 = 2;
const REFUSED: u8 = 5;

/// How a question came, and goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// The resolvers, in their order.
pub(super) struct Upstream {
    servers: Vec<SocketAddr>,
    room: Semaphore,
    telemetry: Arc<Registry>,
}

impl Upstream {
    pub(super) fn new(servers: Vec<SocketAddr>, telemetry: Arc<Registry>) -> Self {
        Self { servers, room: Semaphore::new(MOST_AT_ONCE), telemetry }
    }

    /// The answer to `query`, under the id that the query had; nothing if no resolver answers.
    pub(super) async fn ask(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let _room = self.room.try_acquire().ok()?;
        let id: [u8; 2] = query.get(..2)?.try_into().ok()?;
        // An id of our own, random as the socket's port is, so that nobody who knows the application's can answer.
        let mut asked = query.to_vec();
        asked.get_mut(..2)?.copy_from_slice(&rand::random::<[u8; 2]>());
        let each = PATIENCE / u32::try_from(self.servers.len().max(1)).unwrap_or(1);
        let mut last = None;
        for server in &self.servers {
            self.telemetry.gauges().dns_asked();
            let exchange = async {
                match transport {
                    Transport::Udp => over_udp(*server, &asked).await,
                    Transport::Tcp => over_tcp(*server, &asked).await,
                }
            };
            match timeout(each, exchange).await {
                Ok(Ok(answer)) if matches!(response_code(&answer), SERVFAIL | REFUSED) => last = Some(answer),
                Ok(Ok(answer)) => {
                    last = Some(answer);
                    break;
                }
                Ok(Err(error)) => {
                    self.telemetry.gauges().dns_failed();
                    tracing::debug!(%server, %error, "a resolver cannot be asked");
                }
                Err(_) => self.telemetry.gauges().dns_failed(),
            }
        }
        let mut answer = last?;
        answer.get_mut(..2)?.copy_from_slice(&id);
        Some(answer)
    }
}

async fn over_udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    // The kernel hands us nothing that comes from elsewhere.
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; advertised(query)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let answer = buffer.get(..length).unwrap_or_default();
        if answers(answer, query) {
            return Ok(answer.to_vec());
        }
    }
}

async fn over_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend(query);
    stream.write_all(&framed).await?;
    let mut answer = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut answer).await?;
    if answers(&answer, query) { Ok(answer) } else { Err(io::Error::other("it answered something else")) }
}
