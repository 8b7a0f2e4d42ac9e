//! The proxy's own small HTTP/1.1 servers: bounded in connections, header size and time.

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tracing::warn;

use super::peer_user::peer_user;

/// Open connections per server: a kubelet, a scraper or two, a person.
const CONNECTIONS: usize = 128;
/// Open connections per server and caller, so that one cannot keep the kubelet out.
const CONNECTIONS_PER_CALLER: usize = 16;
/// From accept, or the end of the previous request, to the end of a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest life of a connection; scrapers reconnect.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(300);
/// Largest request head.
const MAX_HEAD: usize = 16 << 10;
/// Largest request body; none of the paths needs one.
const MAX_BODY: usize = 4 << 10;

/// A request, with what the handlers look at.
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
}

/// An answer.
pub(crate) type Answer = Response<Full<Bytes>>;

/// What answers requests of one server.
pub(crate) trait Pages: Send + Sync + 'static {
    /// Answers one request.
    fn answer(&self, asked: Asked) -> Pin<Box<dyn Future<Output = Answer> + Send + '_>>;
}

/// Binds a listener; an unspecified IPv6 address takes IPv4 too, and where there is no IPv6 it falls
/// back to IPv4 alone.
pub(crate) fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let open = |address: SocketAddr| -> std::io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() && address.ip().is_unspecified() {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(64)?;
        TcpListener::from_std(socket.into())
    };
    match open(address) {
        Err(e) if address.is_ipv6() && address.ip().is_unspecified() && is_no_ipv6(&e) => {
            open(SocketAddr::from(([0, 0, 0, 0], address.port())))
        }
        outcome => outcome,
    }
}

/// EAFNOSUPPORT or EADDRNOTAVAIL: IPv6 is compiled out or disabled.
fn is_no_ipv6(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let codes = [Errno::AFNOSUPPORT.raw_os_error(), Errno::ADDRNOTAVAIL.raw_os_error()];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// Serves until dropped.
pub(crate) async fn serve(listener: TcpListener, pages: Arc<dyn Pages>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let callers = Callers::default();
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "cannot accept a status connection");
                // Out of file descriptors, most likely; spinning would not make it better.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(caller) = callers.admit(peer.ip()) else { continue };
        let pages = pages.clone();
        tokio::spawn(async move {
            let _held = (permit, caller);
            serve_connection(stream, peer, pages).await;
        });
    }
}

/// Open connections by caller.
#[derive(Debug, Clone, Default)]
struct Callers(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One connection's place; dropping it frees it.
#[derive(Debug)]
struct Place {
    callers: Callers,
    address: IpAddr,
}

impl Callers {
    fn admit(&self, address: IpAddr) -> Option<Place> {
        let mut open = self.0.lock();
        let count = open.entry(address).or_default();
        if *count >= CONNECTIONS_PER_CALLER {
            return None;
        }
        *count += 1;
        Some(Place { callers: self.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.callers.0.lock();
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, peer: SocketAddr, pages: Arc<dyn Pages>) {
    let Ok(local) = stream.local_addr() else { return };
    let service = service_fn(move |request: Request<Incoming>| {
        let pages = pages.clone();
        async move { Ok::<_, std::convert::Infallible>(handle(&*pages, request, peer, local).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    // Broken connections are the scraper's business.
    let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
}

async fn handle(
    pages: &dyn Pages,
    request: Request<Incoming>,
    peer: SocketAddr,
    local: SocketAddr,
) -> Answer {
    let (head, body) = request.into_parts();
    let drained = tokio::time::timeout(HEAD_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await;
    if !matches!(drained, Ok(Ok(_))) {
        return text(StatusCode::PAYLOAD_TOO_LARGE, "this server takes no request bodies\n");
    }
    let is_head = head.method == Method::HEAD;
    let asked = Asked {
        method: if is_head { Method::GET } else { head.method },
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers: head.headers,
        peer,
        local,
    };
    pages.answer(asked).await
}

/// A plain text answer.
pub(crate) fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    with_type(status, "text/plain; charset=utf-8", body)
}

/// An answer of some type; never cached.
pub(crate) fn with_type(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// The page of all metrics of this process.
pub(crate) fn metrics(page: String) -> Answer {
    with_type(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", page)
}

impl Asked {
    /// Whether the caller is a process of this Pod that addresses this host, so that neither another Pod nor a web page
    /// with a rebound name in somebody's browser gets in. 127.0.0.6 is not such a caller: the data path delivers
    /// from there what came over the network.
    pub(crate) fn is_local(&self) -> bool {
        let peer = self.peer.ip().to_canonical();
        let is_loopback =
            peer == IpAddr::from(Ipv4Addr::LOCALHOST) || peer == IpAddr::from(Ipv6Addr::LOCALHOST);
        let host = self.headers.get(HOST).and_then(|h| h.to_str().ok()).unwrap_or_default();
        is_loopback && is_local_host(host)
    }

    /// Whether the caller is root or the proxy's own user on this host: not the application.
    pub(crate) async fn is_operator(&self) -> bool {
        let own = rustix::process::geteuid().as_raw();
        self.is_local() && peer_user(self.local, self.peer).await.is_some_and(|user| user == 0 || user == own)
    }

    /// The value of a query parameter.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, v)| v)
    }
}

fn is_local_host(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    matches!(name, "localhost" | "127.0.0.1" | "::1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_host_by_its_own_names_is_local() {
        let asked = |peer: &str, host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_str(host).expect("a header value"));
            let peer = SocketAddr::new(peer.parse().expect("an address"), 1);
            let local = SocketAddr::from(([127, 0, 0, 1], 2));
            Asked { method: Method::GET, path: "/".into(), query: "level=debug".into(), headers, peer, local }
        };
        for (peer, host) in
            [("127.0.0.1", "localhost:15000"), ("127.0.0.1", "127.0.0.1"), ("::1", "[::1]:15000")]
        {
            assert!(asked(peer, host).is_local(), "{peer} {host}");
        }
        for (peer, host) in [
            ("127.0.0.1", "evil.example:15000"),
            ("127.0.0.1", ""),
            ("127.0.0.6", "localhost"),
            ("10.0.0.1", "localhost"),
        ] {
            assert!(!asked(peer, host).is_local(), "{peer} {host}");
        }
        assert_eq!(asked("::1", "").parameter("level"), Some("debug"));
    }

    #[test]
    fn one_caller_cannot_take_every_place() {
        let callers = Callers::default();
        let (greedy, kubelet) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let held: Vec<_> = std::iter::from_fn(|| callers.admit(greedy)).collect();
        assert_eq!(held.len(), CONNECTIONS_PER_CALLER);
        assert!(callers.admit(kubelet).is_some());
        drop(held);
        assert!(callers.admit(greedy).is_some() && callers.0.lock().is_empty());
    }
}
