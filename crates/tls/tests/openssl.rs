//! openssl at the other end of the mesh's TLS, over real sockets.

mod common;

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use common::names;
use maille_core::Identity;
use maille_pki::{CertificateRequest, KeyPair, Svid, certificates_from_pem, leaf_facts};
use maille_testkit::{Flaw, PemFiles, TestAuthority};
use maille_tls::{
    ClientAlpn, HandshakeError, ServerAlpn, Sniff, TlsContext, outbound_sni, peer_of_client, peer_of_server,
    sniff,
};
use rustls::{ClientConnection, ProtocolVersion, ServerConnection, StreamOwned};

/// Nothing here takes longer, unless it hangs.
const BOUND: Duration = Duration::from_secs(20);

/// A child process that does not outlive the test.
struct Openssl(Child);

impl Openssl {
    fn start(arguments: &[&str]) -> Self {
        let child = Command::new("openssl")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("openssl is installed");
        Self(child)
    }
}

impl Drop for Openssl {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

struct Served {
    peer: Result<Identity, HandshakeError>,
    version: Option<ProtocolVersion>,
    alpn: Option<Vec<u8>>,
    sniffed: Sniff,
    heard: String,
}

/// Serves one connection as a proxy does: peek, choose, handshake, read a line, answer, close.
fn serve(listener: &TcpListener, context: &TlsContext) -> Result<Served, HandshakeError> {
    let deadline = Instant::now() + BOUND;
    let wait = || {
        assert!(Instant::now() < deadline, "openssl did not come");
        std::thread::sleep(Duration::from_millis(2));
    };
    listener.set_nonblocking(true)?;
    let socket = loop {
        match listener.accept() {
            Ok((socket, _)) => break socket,
            Err(error) if error.kind() == ErrorKind::WouldBlock => wait(),
            Err(error) => return Err(error.into()),
        }
    };
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(BOUND))?;
    let mut prefix = [0; 4096];
    let (sniffed, offered) = loop {
        let length = socket.peek(&mut prefix)?;
        match sniff(&prefix[..length]) {
            Sniff::NeedMore => wait(),
            Sniff::ClientHello { sni, alpn } => break (Sniff::ClientHello { sni, alpn: alpn.clone() }, alpn),
            other => panic!("openssl sent {other:?}"),
        }
    };
    let config = context.current().server_config(ServerAlpn::choose(&offered));
    let mut stream = StreamOwned::new(ServerConnection::new(config)?, socket);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    let mut heard = [0; 6];
    stream.read_exact(&mut heard)?;
    stream.write_all(b"answer\n")?;
    stream.conn.send_close_notify();
    stream.flush()?;
    Ok(Served {
        peer: peer_of_server(&stream.conn),
        version: stream.conn.protocol_version(),
        alpn: stream.conn.alpn_protocol().map(<[u8]>::to_vec),
        sniffed,
        heard: String::from_utf8_lossy(&heard).into_owned(),
    })
}

/// `openssl s_client` against a server of ours; what each of them saw.
fn s_client(
    authority: &TestAuthority,
    own: Option<&PemFiles>,
    extra: &[&str],
) -> (Result<Served, HandshakeError>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("bound").to_string();
    let directory = tempfile::tempdir().expect("directory");
    let roots = directory.path().join("roots.pem");
    std::fs::write(&roots, authority.roots_pem()).expect("write");
    let context = authority.context("shop", "cart");
    let mut arguments =
        vec!["s_client", "-connect", &address, "-CAfile", path(&roots), "-verify_return_error"];
    arguments.extend(["-showcerts", "-servername", "outbound_.80_._.cart.shop.svc.cluster.local"]);
    if let Some(own) = own {
        arguments.extend(["-cert", path(&own.chain), "-key", path(&own.key)]);
    }
    arguments.extend(extra);
    let mut client = Openssl::start(&arguments);
    client.0.stdin.as_mut().expect("piped").write_all(b"hello\n").expect("write");
    let served = serve(&listener, &context);
    let mut output = String::new();
    client.0.stdout.take().expect("piped").read_to_string(&mut output).expect("text");
    (served, output)
}

#[test]
fn openssl_client_with_an_svid_is_served_and_sees_ours() {
    let authority = TestAuthority::new();
    let directory = tempfile::tempdir().expect("directory");
    let own = authority.write_svid(directory.path(), "web", &authority.svid("shop", "web"));
    for (flag, version) in [("-tls1_3", ProtocolVersion::TLSv1_3), ("-tls1_2", ProtocolVersion::TLSv1_2)] {
        let (served, output) =
            s_client(&authority, Some(&own), &[flag, "-alpn", "istio-http/1.1,istio,http/1.1"]);
        let served = served.unwrap_or_else(|e| panic!("{flag}: {e}\n{output}"));
        assert_eq!(served.peer.expect("identity"), authority.identity("shop", "web"));
        assert_eq!((served.version, served.heard.as_str()), (Some(version), "hello\n"));
        assert_eq!(served.alpn.as_deref(), Some(b"http/1.1".as_slice()));
        let Sniff::ClientHello { sni, alpn } = served.sniffed else { panic!("not sniffed") };
        assert_eq!(sni.as_deref(), Some("outbound_.80_._.cart.shop.svc.cluster.local"));
        assert_eq!(alpn, [b"istio-http/1.1".to_vec(), b"istio".to_vec(), b"http/1.1".to_vec()]);

        assert!(output.contains("answer") && output.contains("Verify return code: 0 (ok)"), "{output}");
        let seen = certificates_from_pem("s_client's output", &output).expect("showcerts");
        let facts = leaf_facts(&seen[0]).expect("readable");
        assert_eq!(facts.uris, ["spiffe://cluster.local/ns/shop/sa/cart"]);
    }
    // No overlap, and no ALPN at all: the handshake goes on without.
    for extra in [["-alpn", "istio"].as_slice(), &["-alpn", "istio-peer-exchange,istio"], &[]] {
        let (served, output) = s_client(&authority, Some(&own), extra);
        assert_eq!(served.unwrap_or_else(|e| panic!("{extra:?}: {e}\n{output}")).alpn, None);
    }
}

#[test]
fn openssl_client_without_a_good_certificate_is_refused() {
    let authority = TestAuthority::new();
    let directory = tempfile::tempdir().expect("directory");
    for flag in ["-tls1_3", "-tls1_2"] {
        let (served, _) = s_client(&authority, None, &[flag]);
        assert!(matches!(served, Err(HandshakeError::NoCertificate)), "{flag}");
        for flaw in [Flaw::OtherRoot, Flaw::Expired, Flaw::ForeignTrustDomain] {
            let bad = authority.flawed(flaw, "shop", "web");
            let bad = authority.write_credential(directory.path(), "bad", &bad);
            let (served, output) = s_client(&authority, Some(&bad), &[flag]);
            assert!(matches!(served, Err(HandshakeError::Refused(_))), "{flag} {flaw:?}");
            assert!(!output.contains("answer"), "{output}");
        }
    }
}

/// Istio's agent makes RSA keys unless told otherwise (reference mtls 9.1).
#[test]
fn peers_with_rsa_and_p384_keys_are_understood() {
    let authority = TestAuthority::new();
    let directory = tempfile::tempdir().expect("directory");
    let at = directory.path();
    let identity = authority.identity("shop", "web");
    for kind in [["rsa:2048"].as_slice(), &["ec", "-pkeyopt", "ec_paramgen_curve:P-384"]] {
        let made = Command::new("openssl")
            .args(["req", "-new", "-nodes", "-subj", "/", "-keyout", "k.pem", "-out", "csr.pem", "-newkey"])
            .args(kind)
            .current_dir(at)
            .output()
            .expect("openssl is installed");
        assert!(made.status.success());
        let read = |name: &str| std::fs::read_to_string(at.join(name)).expect("read");
        let request = CertificateRequest::parse_pem(&read("csr.pem")).expect("good");
        let hour = Duration::from_secs(3600);
        let issued =
            authority.authority().issue(&request, &identity, hour, SystemTime::now()).expect("issued");
        let svid =
            Svid::from_pem(&issued.chain_pem, KeyPair::from_pem(&read("k.pem")).expect("key")).expect("svid");
        let own = authority.write_svid(at, "peer", &svid);
        for flag in ["-tls1_3", "-tls1_2"] {
            let (served, output) = s_client(&authority, Some(&own), &[flag]);
            let served = served.unwrap_or_else(|e| panic!("{kind:?} {flag}: {e}\n{output}"));
            assert_eq!(served.peer.expect("identity"), identity);
        }
        // The same, used by our own side.
        let (served, _) = s_client(&authority, Some(&own), &[]);
        served.expect("served");
        let context = TlsContext::new(svid, authority.trust()).expect("context");
        s_server(&authority, &context, "cart", &["-tls1_3"]).expect("our RSA client");
    }
}

/// A client of ours against `openssl s_server`, which shows the SVID of `account`; the negotiated
/// version and the line that came back.
fn s_server(
    authority: &TestAuthority,
    context: &TlsContext,
    account: &str,
    extra: &[&str],
) -> Result<(Option<ProtocolVersion>, Identity, String), HandshakeError> {
    let directory = tempfile::tempdir().expect("directory");
    let own = authority.write_svid(directory.path(), account, &authority.svid("shop", account));
    let mut arguments = vec!["s_server", "-accept", "127.0.0.1:0", "-naccept", "1", "-rev"];
    arguments.extend(["-cert", path(&own.chain), "-key", path(&own.key), "-CAfile", path(&own.roots)]);
    arguments.extend(["-Verify", "1", "-verify_return_error", "-alpn", "h2,http/1.1"]);
    arguments.extend(extra);
    let mut server = Openssl::start(&arguments);
    let mut output = BufReader::new(server.0.stdout.take().expect("piped"));
    let address = loop {
        let mut line = String::new();
        assert_ne!(output.read_line(&mut line).expect("text"), 0, "s_server ended early");
        if let Some(address) = line.trim().strip_prefix("ACCEPT ") {
            break address.to_owned();
        }
    };
    let config = context
        .current()
        .client_config(ClientAlpn::Http2, &names(["spiffe://cluster.local/ns/shop/sa/cart"]))
        .expect("config");
    let socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(BOUND))?;
    let name = outbound_sni(80, "", "cart.shop.svc.cluster.local").expect("a name");
    let mut stream = StreamOwned::new(ClientConnection::new(config, name)?, socket);
    stream.write_all(b"hello\n")?;
    let mut line = String::new();
    BufReader::new(&mut stream).read_line(&mut line)?;
    Ok((stream.conn.protocol_version(), peer_of_client(&stream.conn)?, line))
}

#[test]
fn openssl_server_is_verified_by_identity() {
    let authority = TestAuthority::new();
    let web = authority.context("shop", "web");
    for (flag, version) in [("-tls1_3", ProtocolVersion::TLSv1_3), ("-tls1_2", ProtocolVersion::TLSv1_2)] {
        let (seen, peer, line) =
            s_server(&authority, &web, "cart", &[flag]).unwrap_or_else(|e| panic!("{flag}: {e}"));
        assert_eq!((seen, peer), (Some(version), authority.identity("shop", "cart")));
        assert_eq!(line, "olleh\n");
        let refused = s_server(&authority, &web, "impostor", &[flag]).expect_err("another account");
        assert!(matches!(refused, HandshakeError::Refused(_)), "{refused}");
    }
}
