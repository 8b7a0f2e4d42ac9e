//! Bytes between Pods and the outside.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ipnet::IpNet;
use maille_net::egress::is_outside;
use maille_net::original_dst::original_dst;
use parking_lot::Mutex;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep_until, timeout};

/// Connections at the same time: of one Pod, so that none can take all; and of all, with their buffers the bound
/// on memory (128 MiB).
const MOST_OF_A_POD: usize = 512;
const MOST_IN_ALL: usize = 4096;

/// Bytes on their way, in each direction.
const BUFFER: usize = 16 * 1024;

/// How long the outside may take to accept; a Pod's own patience is usually longer.
const CONNECT: Duration = Duration::from_secs(10);

/// A connection on which nothing moves for this long is ended, as Istio ends idle TCP by default.
const IDLE: Duration = Duration::from_secs(3600);

/// When a silent peer is asked whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Connects for Pods.
pub(super) struct Relay {
    /// The mesh's own networks.
    own: Vec<IpNet>,
    open: Mutex<Open>,
    idle: Duration,
}

#[derive(Default)]
struct Open {
    all: usize,
    by_pod: HashMap<IpAddr, usize>,
}

/// A connection's place among those that may be open; it is given back when dropped.
struct Place {
    relay: Arc<Relay>,
    pod: IpAddr,
}

impl Relay {
    pub(super) fn new(own: Vec<IpNet>) -> Arc<Self> {
        Arc::new(Self { own, open: Mutex::default(), idle: IDLE })
    }

    /// Serves for ever.
    pub(super) async fn serve(self: Arc<Self>, listener: TcpListener) {
        let is_v6 = listener.local_addr().is_ok_and(|at| at.is_ipv6());
        let (nobodys, sysctl) = if is_v6 { (NOBODYS_V6, "ipv6") } else { (NOBODYS, "ipv4") };
        if is_of_this_machine(nobodys) {
            tracing::warn!(
                "the sysctl net.{sysctl}.ip_nonlocal_bind hides which addresses are this machine's own, which Pods must not \
                 reach: they reach nothing outside; set it to 0 and start the mesh again"
            );
        }
        loop {
            let Ok((stream, from)) = listener.accept().await else {
                // Out of descriptors, most likely: give connections time to end.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let destination = self.destination(&stream);
            let (Some(destination), Some(place)) = (destination, self.clone().enter(from.ip())) else {
                tracing::debug!(pod = %from.ip(), ?destination, "refused");
                reset(&stream);
                continue;
            };
            let relay = self.clone();
            tokio::spawn(async move {
                let result = match is_of_this_machine(destination.ip()) {
                    true => {
                        reset(&stream);
                        Err(io::Error::other("an address of this machine"))
                    }
                    false => relay.connect(stream, destination).await,
                };
                if let Err(error) = result {
                    tracing::debug!(pod = %from.ip(), %destination, %error, "ended");
                }
                drop(place);
            });
        }
    }

    /// Where the Pod wanted to go; `None` if it was not redirected here, or may not go there.
    fn destination(&self, stream: &TcpStream) -> Option<SocketAddr> {
        let wanted = original_dst(stream).ok().flatten()?;
        self.allows(wanted.ip()).then_some(wanted)
    }

    fn allows(&self, address: IpAddr) -> bool {
        is_outside(address, &self.own)
    }

    /// A place for one more connection of `pod`.
    fn enter(self: Arc<Self>, pod: IpAddr) -> Option<Place> {
        let mut open = self.open.lock();
        if open.all >= MOST_IN_ALL {
            return None;
        }
        let of_pod = open.by_pod.entry(pod).or_default();
        if *of_pod >= MOST_OF_A_POD {
            return None;
        }
        *of_pod += 1;
        open.all += 1;
        drop(open);
        Some(Place { relay: self, pod })
    }

    async fn connect(&self, mut inside: TcpStream, destination: SocketAddr) -> io::Result<()> {
        let connected = timeout(CONNECT, TcpStream::connect(destination)).await;
        let result = match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(mut outside) => {
                let result = self.copy(&mut inside, &mut outside).await;
                if result.is_err() {
                    reset(&outside);
                }
                result
            }
            Err(error) => Err(error),
        };
        // What ended badly must not look complete.
        if result.is_err() {
            reset(&inside);
        }
        result
    }

    /// Until both directions have ended, each on its own.
    async fn copy(&self, inside: &mut TcpStream, outside: &mut TcpStream) -> io::Result<()> {
        for stream in [&*inside, &*outside] {
            stream.set_nodelay(true)?;
            SockRef::from(stream)
                .set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))?;
        }
        let moved = Moved { since: Instant::now(), at_ms: AtomicU64::new(0) };
        let (from_inside, to_inside) = inside.split();
        let (from_outside, to_outside) = outside.split();
        let both = async {
            tokio::try_join!(pump(from_inside, to_outside, &moved), pump(from_outside, to_inside, &moved))
        };
        tokio::select! {
            result = both => result.map(|_| ()),
            () = still(&moved, self.idle) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.relay.open.lock();
        open.all = open.all.saturating_sub(1);
        if let Some(of_pod) = open.by_pod.get_mut(&self.pod) {
            *of_pod = of_pod.saturating_sub(1);
            if *of_pod == 0 {
                open.by_pod.remove(&self.pod);
            }
        }
    }
}

/// When bytes moved last.
struct Moved {
    since: Instant,
    at_ms: AtomicU64,
}

impl Moved {
    fn now(&self) {
        let elapsed = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.at_ms.store(elapsed, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.since + Duration::from_millis(self.at_ms.load(Ordering::Relaxed))
    }
}

/// One direction, with its end passed on.
async fn pump(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, moved: &Moved) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = from.read(&mut buffer).await?;
        moved.now();
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(buffer.get(..length).unwrap_or_default()).await?;
        moved.now();
    }
}

/// Comes back when nothing has moved for `idle`.
async fn still(moved: &Moved, idle: Duration) {
    loop {
        let until = moved.last() + idle;
        if until <= Instant::now() {
            return;
        }
        sleep_until(until).await;
    }
}

/// An address that no machine has (RFC 1112 section 4).
const NOBODYS: IpAddr = IpAddr::V4(Ipv4Addr::new(240, 0, 0, 1));
/// The same in IPv6: what is sent there is thrown away (RFC 6666).
const NOBODYS_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1));

/// Whether a connection to `address` would stay within this machine, and come from it: only such addresses can be bound.
/// Asked anew each time, as addresses come and go; when in doubt it is.
fn is_of_this_machine(address: IpAddr) -> bool {
    match UdpSocket::bind((address, 0)) {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::AddrNotAvailable,
    }
}

/// Makes the stream's end a reset.
fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, server) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (client.unwrap(), server.unwrap().0)
    }

    #[tokio::test]
    async fn an_end_of_one_direction_leaves_the_other_open() {
        let outside = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (mut pod, inside) = pair().await;
        let relay = Relay::new(Vec::new());
        let destination = outside.local_addr().unwrap();
        let work = tokio::spawn(async move { relay.connect(inside, destination).await });
        let (mut server, _) = outside.accept().await.unwrap();
        pod.write_all(b"all of it").await.unwrap();
        pod.shutdown().await.unwrap();
        let mut got = String::new();
        server.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "all of it");
        server.write_all(b"answer").await.unwrap();
        drop(server);
        let mut got = String::new();
        pod.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "answer");
        work.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_broken_or_missing_outside_shows_as_a_reset() {
        let outside = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let destination = outside.local_addr().unwrap();
        let (mut pod, inside) = pair().await;
        let relay = Relay::new(Vec::new());
        let work = tokio::spawn({
            let relay = relay.clone();
            async move { relay.connect(inside, destination).await }
        });
        let (server, _) = outside.accept().await.unwrap();
        reset(&server);
        drop(server);
        assert_eq!(pod.read(&mut [0; 1]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        work.await.unwrap().unwrap_err();

        drop(outside);
        let (mut pod, inside) = pair().await;
        relay.connect(inside, destination).await.unwrap_err();
        assert_eq!(pod.read(&mut [0; 1]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn what_does_not_move_is_ended() {
        let outside = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (_pod, inside) = pair().await;
        let idle = Duration::from_millis(20);
        let relay = Relay { own: Vec::new(), open: Mutex::default(), idle };
        let error = relay.connect(inside, outside.local_addr().unwrap()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_pod_cannot_take_all_places_and_places_come_back() {
        let relay = Relay::new(Vec::new());
        let [one, other]: [IpAddr; 2] = ["10.244.1.1", "10.244.1.2"].map(|a| a.parse().unwrap());
        let mut places: Vec<Place> = (0..MOST_OF_A_POD).map(|_| relay.clone().enter(one).unwrap()).collect();
        assert!(relay.clone().enter(one).is_none());
        assert!(relay.clone().enter(other).is_some());
        places.pop();
        places.push(relay.clone().enter(one).unwrap());
        for pod in 0..u8::MAX {
            let pod = IpAddr::from([10, 244, 2, pod]);
            places.extend((0..MOST_OF_A_POD).map_while(|_| relay.clone().enter(pod)));
        }
        assert_eq!(places.len(), MOST_IN_ALL);
        assert!(relay.clone().enter(other).is_none());
        places.clear();
        assert!(relay.open.lock().by_pod.is_empty() && relay.open.lock().all == 0);
    }
}
