use std::sync::Arc;

use proptest::collection::vec as bytes_of;
use proptest::prelude::*;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::*;
use crate::provider;

/// What rustls itself sends.
fn real_hello(sni: Option<&str>, alpn: &[&[u8]]) -> Vec<u8> {
    let mut config = ClientConfig::builder_with_provider(provider::provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.enable_sni = sni.is_some();
    let name = sni.unwrap_or("unused").to_owned().try_into().expect("a name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut hello = Vec::new();
    client.write_tls(&mut hello).expect("writes to memory");
    hello
}

/// Spreads the handshake message of one record over records of at most `size` bytes.
fn in_records(hello: &[u8], size: usize) -> Vec<u8> {
    let mut records = Vec::new();
    for part in hello[5..].chunks(size) {
        records.extend([22, 3, 1]);
        records.extend(u16::try_from(part.len()).expect("short").to_be_bytes());
        records.extend(part);
    }
    records
}

const SNI: &str = "outbound_.80_._.web.shop.svc.cluster.local";
const ALPN: &[&[u8]] = &[b"istio-http/1.1", b"istio", b"http/1.1"];

fn expected() -> Sniff {
    Sniff::ClientHello { sni: Some(SNI.to_owned()), alpn: ALPN.iter().map(|p| p.to_vec()).collect() }
}

#[test]
fn post_quantum_hello_is_read_however_it_is_cut() {
    let hello = real_hello(Some(SNI), ALPN);
    assert!(hello.len() > 1300, "a post-quantum hello does not fit one segment: {} bytes", hello.len());
    for records in [hello.clone(), in_records(&hello, 1000), in_records(&hello, 100), in_records(&hello, 1)] {
        for end in 0..records.len() {
            assert_eq!(sniff(&records[..end]), Sniff::NeedMore, "{end} of {} bytes", records.len());
        }
        assert_eq!(sniff(&records), expected());
        let mut followed = records;
        followed.extend(b"\x17\x03\x03 early data or whatever");
        assert_eq!(sniff(&followed), expected());
    }
}

#[test]
fn hello_without_names_or_protocols_is_a_hello() {
    assert_eq!(sniff(&real_hello(None, &[])), Sniff::ClientHello { sni: None, alpn: Vec::new() });
    // RFC 5246: no extensions at all.
    let mut body = vec![3, 3];
    body.extend([0; 32]);
    body.extend([0, 0, 2, 0x13, 1, 1, 0]);
    let mut hello = vec![22, 3, 1, 0, body.len() as u8 + 4, 1, 0, 0, body.len() as u8];
    hello.extend(body);
    assert_eq!(sniff(&hello), Sniff::ClientHello { sni: None, alpn: Vec::new() });
}

#[test]
fn other_protocols_are_told_from_their_first_bytes() {
    for first in ["GET / HTTP/1.1\r\n", "P", "PRI * HTTP/2.0", "\x00", "SSH-2.0", "\x16\x02", "\x16\x03\x09"]
    {
        assert_eq!(sniff(first.as_bytes()), Sniff::NotTls, "{first:?}");
    }
    // A TLS record, but a server's message or an alert.
    assert_eq!(sniff(b"\x16\x03\x03\x00\x10\x02"), Sniff::NotTls);
    assert_eq!(sniff(b"\x15\x03\x03"), Sniff::NotTls);
    assert_eq!(sniff(b""), Sniff::NeedMore);
    assert_eq!(sniff(b"\x16"), Sniff::NeedMore);
    assert_eq!(sniff(b"\x16\x03\x01\x02\x00"), Sniff::NeedMore);
}

#[test]
fn hellos_that_cannot_be_are_malformed() {
    let hello = real_hello(Some(SNI), ALPN);
    // An empty record, a record too long, another content type in between, a message too long.
    assert_eq!(sniff(b"\x16\x03\x01\x00\x00\x01"), Sniff::Malformed);
    assert_eq!(sniff(b"\x16\x03\x01\x40\x01\x01"), Sniff::Malformed);
    assert_eq!(sniff(b"\x16\x03\x01\x00\x04\x01\xff\xff\xff"), Sniff::Malformed);
    let mut interleaved = in_records(&hello, 100);
    interleaved[105] = 23;
    assert_eq!(sniff(&interleaved), Sniff::Malformed);
    // The lengths inside say more than there is.
    let mut body = vec![3, 3];
    body.extend([0; 32]);
    body.extend([0, 0, 2, 0x13, 1, 1, 0, 0, 9, 0, 16]);
    let mut cut = vec![22, 3, 1, 0, body.len() as u8 + 4, 1, 0, 0, body.len() as u8];
    cut.extend(body);
    assert_eq!(sniff(&cut), Sniff::Malformed);
}

#[test]
fn no_prefix_keeps_anyone_reading_for_ever() {
    let mut endless = vec![22, 3, 1, 0, 4, 1, 0, 0x3f, 0];
    while endless.len() < MAX_HELLO_PREFIX {
        endless.extend([22, 3, 1, 0, 1, 0]);
    }
    assert_eq!(sniff(&endless), Sniff::Malformed);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(prefix in bytes_of(any::<u8>(), 0..400)) {
        let _ = sniff(&prefix);
    }

    /// Bytes that get past the record layer.
    #[test]
    fn arbitrary_hellos_never_panic(body in bytes_of(any::<u8>(), 0..300), size in 1usize..50) {
        let mut message = vec![22, 3, 1, 0, 0, 1, 0];
        message.extend((body.len() as u16).to_be_bytes());
        message.extend(&body);
        prop_assert_ne!(sniff(&in_records(&message, size)), Sniff::NeedMore);
    }

    /// Mutations of a real hello: an answer, once given, stands when more bytes come.
    #[test]
    fn answers_stand_when_more_bytes_come(
        changes in bytes_of((0usize..2000, any::<u8>()), 0..6),
        size in 20usize..2000,
    ) {
        let mut records = in_records(&real_hello(Some(SNI), ALPN), size);
        for (position, value) in changes {
            let length = records.len();
            records[position % length] = value;
        }
        let mut answer = Sniff::NeedMore;
        for end in 0..=records.len() {
            let next = sniff(&records[..end]);
            if answer != Sniff::NeedMore {
                prop_assert_eq!(&next, &answer, "changed at {} bytes", end);
            }
            answer = next;
        }
    }
}
