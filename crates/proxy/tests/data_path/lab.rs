//! Two static sidecars, an echo application behind one of them, and callers of every kind.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use maille_proxy::StaticProxy;
use maille_testkit::{PemFiles, TestAuthority};

pub(crate) const HOST: &str = "cart.shop.svc.cluster.local";
/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// ALLOW `web` and nobody else, in the YAML of AuthorizationPolicy.
pub(crate) const ALLOW_WEB: &str =
    "{action: ALLOW, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]}";

pub(crate) struct Lab {
    dir: tempfile::TempDir,
    pub(crate) authority: TestAuthority,
    /// How long certificates live that are issued from now on.
    pub(crate) ttl: Duration,
}

/// What differs between servers.
pub(crate) struct Server<'a> {
    pub(crate) mode: &'a str,
    pub(crate) protocol: &'a str,
    pub(crate) policy: Option<&'a str>,
    pub(crate) backend: SocketAddr,
    pub(crate) extra: &'a str,
}

impl Default for Server<'_> {
    fn default() -> Self {
        let backend = SocketAddr::from(([127, 0, 0, 1], 9));
        Self { mode: "STRICT", protocol: "HTTP", policy: Some(ALLOW_WEB), backend, extra: "" }
    }
}

impl Lab {
    pub(crate) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("a directory"),
            authority: TestAuthority::new(),
            ttl: Duration::from_secs(3600),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn pem(&self, account: &str) -> PemFiles {
        let svid = self.authority.svid_for(&self.authority.identity("shop", account), self.ttl);
        self.authority.write_svid(self.dir.path(), account, &svid)
    }

    pub(crate) fn header(&self, account: &str) -> String {
        let files = self.pem(account);
        let show = |path: &Path| path.display().to_string();
        format!(
            "identity: {{certificate: {}, key: {}}}\ntrust: {{cluster.local: {}}}\n",
            show(&files.chain),
            show(&files.key),
            show(&files.roots)
        )
    }

    pub(crate) fn server_file(&self, server: &Server<'_>) -> PathBuf {
        let Server { mode, protocol, policy, backend, extra } = server;
        let mut text = self.header("cart");
        let _ = write!(
            text,
            "inbound:\n  mode: {mode}\n  workload: {{uid: shop/cart-1, namespace: shop, workloadName: cart}}\n  ports:\n  \
             - {{port: {}, protocol: {protocol}, serviceHostname: {HOST}, serviceName: cart, serviceNamespace: shop}}\n\
             listeners:\n- {{direction: inbound, listen: '127.0.0.1:0', standsFor: '{backend}'}}\n\
             deliverFrom: 127.0.0.6\n{extra}\n",
            backend.port()
        );
        if let Some(policy) = policy {
            let _ = writeln!(text, "authorizations: [{{namespace: shop, name: only, spec: {policy}}}]");
        }
        let path = self.path("server.yaml");
        std::fs::write(&path, text).expect("writable");
        path
    }

    pub(crate) fn server(&self, server: &Server<'_>) -> StaticProxy {
        StaticProxy::start(&self.server_file(server)).expect("the inbound proxy starts")
    }

    /// An outbound proxy whose listener stands for the service's port 80 at `endpoint`.
    pub(crate) fn client(
        &self,
        account: &str,
        endpoint: SocketAddr,
        protocol: &str,
        tls: &str,
    ) -> StaticProxy {
        self.client_expecting(account, endpoint, protocol, tls, "spiffe://cluster.local/ns/shop/sa/cart")
    }

    pub(crate) fn client_expecting(
        &self,
        account: &str,
        endpoint: SocketAddr,
        protocol: &str,
        tls: &str,
        expected: &str,
    ) -> StaticProxy {
        let mut text = self.header(account);
        let _ = write!(
            text,
            "inbound: {{mode: STRICT, workload: {{uid: shop/{account}-1, namespace: shop, workloadName: {account}}}}}\n\
             destinations:\n  10.96.0.9: &cart\n    service:\n      namespace: shop\n      name: cart\n      \
             hostname: {HOST}\n      addresses: [10.96.0.9]\n      ports: [{{number: 80, protocol: {protocol}}}]\n      \
             subjectAltNames: ['{expected}']\n      endpoints:\n      - address: {}\n        \
             ports: [{{servicePort: 80, targetPort: {}, tls: {tls}}}]\n  {HOST}: *cart\n\
             listeners:\n- {{direction: outbound, listen: '127.0.0.1:0', standsFor: '10.96.0.9:80'}}\n",
            endpoint.ip(),
            endpoint.port()
        );
        let path = self.path(&format!("client-{account}.yaml"));
        std::fs::write(&path, text).expect("writable");
        StaticProxy::start(&path).expect("the outbound proxy starts")
    }
}

impl Lab {
    /// An outbound proxy that does not know the address for which its listener stands, but somebody elsewhere who takes
    /// requests on that port.
    pub(crate) fn stranger(&self, address: SocketAddr, policy: &str) -> StaticProxy {
        StaticProxy::start(&self.stranger_file(address, policy)).expect("the outbound proxy starts")
    }

    pub(crate) fn stranger_file(&self, address: SocketAddr, policy: &str) -> PathBuf {
        let port = address.port();
        let known = format!(
            "  other.shop: {{service: {{namespace: shop, name: other, hostname: other.shop.svc.cluster.local, ports: \
             [{{number: {port}, protocol: HTTP}}]}}}}\n"
        );
        self.stranger_file_knowing(&known, address, policy)
    }

    /// The same with these entries of `destinations`.
    pub(crate) fn stranger_knowing(&self, known: &str, address: SocketAddr, policy: &str) -> StaticProxy {
        let file = self.stranger_file_knowing(known, address, policy);
        StaticProxy::start(&file).expect("the outbound proxy starts")
    }

    fn stranger_file_knowing(&self, known: &str, address: SocketAddr, policy: &str) -> PathBuf {
        let mut text = self.header("web");
        let _ = write!(
            text,
            "settings: {{outboundPolicy: {policy}}}\ninbound: {{mode: STRICT, workload: {{uid: shop/web-1, namespace: \
             shop}}}}\ndestinations:\n{known}listeners:\n- {{direction: outbound, listen: '127.0.0.1:0', standsFor: \
             '{address}'}}\n"
        );
        let path = self.path("stranger.yaml");
        std::fs::write(&path, text).expect("writable");
        path
    }
}

pub(crate) fn at(proxy: &StaticProxy) -> SocketAddr {
    proxy.workers().addresses()[0]
}

/// An application: `/big/N` answers N bytes, anything else says what arrived and echoes the body.
pub(crate) fn http_backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    listener.set_nonblocking(true).expect("a socket");
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(answer);
                    let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                        .serve_connection_with_upgrades(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
    });
    address
}

async fn answer(
    mut request: Request<Incoming>,
) -> Result<Response<BoxBody<Bytes, hyper::Error>>, Infallible> {
    let full = |text: Vec<u8>| Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed();
    if let Some(size) = request.uri().path().strip_prefix("/big/") {
        return Ok(Response::new(full(vec![b'x'; size.parse().unwrap_or(0)])));
    }
    if request.headers().contains_key("upgrade") {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let Ok(upgraded) = upgrade.await else { return };
            let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
            let _ = tokio::io::copy(&mut read, &mut write).await;
        });
        let response =
            Response::builder().status(101).header("connection", "upgrade").header("upgrade", "echo");
        return Ok(response.body(full(Vec::new())).expect("a response"));
    }
    if request.uri().path() == "/echo" {
        return Ok(Response::new(request.into_body().boxed()));
    }
    let mut text = format!("{} {} {:?}\n", request.method(), request.uri(), request.version());
    for (name, value) in request.headers() {
        let _ = writeln!(text, "{name}: {}", value.to_str().unwrap_or("?"));
    }
    let body = request.into_body().collect().await.map(|b| b.to_bytes().len()).unwrap_or(0);
    let _ = writeln!(text, "body {body}");
    Ok(Response::builder().header("server", "backend").body(full(text.into_bytes())).expect("a response"))
}

/// An application that reads to the end and then sends everything back, prefixed by a greeting at once.
pub(crate) fn tcp_backend(greeting: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut stream = stream;
                let _ = stream.write_all(greeting);
                let mut all = Vec::new();
                let _ = stream.read_to_end(&mut all);
                let _ = stream.write_all(&all);
            });
        }
    });
    address
}

/// An application that echoes line by line.
pub(crate) fn line_backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut read = stream.try_clone().expect("a socket");
                let mut write = stream;
                let _ = std::io::copy(&mut read, &mut write);
            });
        }
    });
    address
}

pub(crate) fn dial(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address, PATIENCE).expect("the proxy listens");
    stream.set_nodelay(true).expect("a socket");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream
}

/// Sends bytes and reads to the end; a reset counts as an end.
pub(crate) fn exchange(address: SocketAddr, bytes: &[u8]) -> String {
    talk(address, bytes, false)
}

/// The same, closing the sending half first.
pub(crate) fn exchange_half_closed(address: SocketAddr, bytes: &[u8]) -> String {
    talk(address, bytes, true)
}

fn talk(address: SocketAddr, bytes: &[u8], half_close: bool) -> String {
    let mut stream = dial(address);
    // A proxy that refuses may close before it has read everything.
    let _ = stream.write_all(bytes);
    if half_close {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// One request on an own connection.
pub(crate) fn get(address: SocketAddr, path: &str) -> String {
    exchange(address, format!("GET {path} HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n").as_bytes())
}

/// Reads until `end` has been seen.
pub(crate) fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    while !all.windows(end.len()).any(|window| window == end.as_bytes()) {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => all.extend_from_slice(&buffer[..count]),
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// Waits until the peer has closed; false if it has not in time.
pub(crate) fn is_closed_soon(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 4096];
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != std::io::ErrorKind::WouldBlock,
        }
    }
    false
}

/// Runs a program to its end and gives back standard output and error together.
pub(crate) fn run(program: &str, arguments: &[&str], input: &str) -> String {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{program} is needed: {e}"));
    let mut stdin = child.stdin.take().expect("piped");
    let _ = stdin.write_all(input.as_bytes());
    let sender = thread::spawn(move || {
        // openssl ends the connection when its input ends; give the answer time to arrive.
        thread::sleep(Duration::from_millis(700));
        drop(stdin);
    });
    let output = child.wait_with_output().expect("the program ends");
    sender.join().expect("no panic");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}
