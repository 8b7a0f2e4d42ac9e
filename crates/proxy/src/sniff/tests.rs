use super::*;

const BOTH: Inspectors = Inspectors { tls: true, http: true };

/// Feeds `bytes` one at a time, as the slowest peer would.
async fn detect_slowly(bytes: &[u8], wanted: Inspectors) -> (Detected, Vec<u8>) {
    let (mut peer, mut io) = tokio::io::duplex(1);
    let sent = bytes.to_vec();
    let writer = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        let _ = peer.write_all(&sent).await;
    });
    let mut prefix = BytesMut::new();
    let detected = detect(&mut io, &mut prefix, wanted, None).await.expect("readable");
    let mut all = Vec::new();
    Prefixed::new(prefix, io).read_to_end(&mut all).await.expect("readable");
    writer.await.expect("no panic");
    (detected, all)
}

fn client_hello(alpn: &[&[u8]]) -> Vec<u8> {
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|a| a.to_vec()).collect();
    let name = "outbound_.80_._.cart.shop.svc.cluster.local".try_into().expect("a name");
    let mut client = rustls::ClientConnection::new(std::sync::Arc::new(config), name).expect("a client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("memory");
    bytes
}

#[tokio::test]
async fn a_client_hello_in_single_bytes_yields_alpn_and_sni_and_loses_nothing() {
    let hello = client_hello(&[b"istio-h2", b"istio"]);
    let (detected, all) = detect_slowly(&hello, BOTH).await;
    let alpn = vec![b"istio-h2".to_vec(), b"istio".to_vec()];
    let sni = Some("outbound_.80_._.cart.shop.svc.cluster.local".to_owned());
    assert_eq!(detected, Detected::Tls { alpn, sni });
    assert_eq!(all, hello);
}

#[tokio::test]
async fn plaintext_falls_back_and_loses_nothing() {
    for (bytes, expected) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], Detected::Http),
        (b"\r\nPOST /x HTTP/1.1\r\n", Detected::Http),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n....", Detected::Http),
        (b"GET / HTTP/1.0\r\n\r\n", Detected::Raw),
        (b"hello", Detected::Raw),
        (b"GET\x00 / HTTP/1.1\r\n", Detected::Raw),
        (b"PRI * HTTP/1.1\r\n", Detected::Raw),
        (b"\x16\x03\x01\x00\x05hello", Detected::Raw),
        (b"\x16\x04\x01", Detected::Raw),
        (b"GET /half", Detected::Raw),
        (b"", Detected::Closed),
    ] {
        let (detected, all) = detect_slowly(bytes, BOTH).await;
        assert_eq!(detected, expected, "{:?}", String::from_utf8_lossy(bytes));
        assert_eq!(all, bytes);
    }
}

#[tokio::test]
async fn nothing_is_read_where_no_inspector_is_wanted() {
    let (detected, all) = detect_slowly(b"GET / HTTP/1.1\r\n", Inspectors { tls: false, http: false }).await;
    assert_eq!((detected, all.len()), (Detected::Raw, 16));
}

#[test]
fn an_opaque_protocol_is_known_at_its_first_impossible_byte() {
    assert_eq!(inspect_http(b"h"), Finding::No);
    assert_eq!(inspect_http(b"G"), Finding::More);
    assert_eq!(inspect_http(b"GX"), Finding::No);
    assert_eq!(inspect_http(b"GET /long"), Finding::More);
    assert_eq!(inspect_http(b"GET /\x01"), Finding::No);
    assert_eq!(inspect_http(b"GET  HTTP/1.1\r\n"), Finding::No);
}

#[tokio::test]
async fn the_http2_preface_is_told_from_http1() {
    for (bytes, expected) in
        [(&b"GET / HTTP/1.1"[..], false), (H2_PREFACE, true), (b"PRI *", false), (b"", false)]
    {
        let mut prefix = BytesMut::new();
        let mut io = bytes;
        assert_eq!(is_http2(&mut io, &mut prefix).await.expect("memory"), expected);
        assert_eq!(&prefix[..], bytes);
    }
}

proptest::proptest! {
    #[test]
    fn inspectors_never_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
        let _ = inspect_http(&bytes);
    }
}

#[tokio::test]
async fn the_host_of_a_request_is_found_and_nothing_is_lost() {
    for (head, expected) in [
        ("GET / HTTP/1.1\r\nHost: a.example.com:443\r\n", Some("a.example.com:443")),
        ("\r\nGET / HTTP/1.1\r\nx: host: no\r\nhOsT:b\r\n\r\n", Some("b")),
        ("GET / HTTP/1.1\nhost:\tc \n", Some("c")),
        ("GET / HTTP/1.1\r\naccept: */*\r\n\r\nhost: body\r\n", None),
        ("host: request-line\r\n\r\n", None),
        ("GET / HTTP/1.1\r\nhost: cut", None),
    ] {
        let mut io = head.as_bytes();
        let mut prefix = BytesMut::new();
        let found = host(&mut io, &mut prefix).await.expect("readable");
        assert_eq!(found.as_deref(), expected, "{head:?}");
        assert_eq!([&prefix[..], io].concat(), head.as_bytes());
    }
}
