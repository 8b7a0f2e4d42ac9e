//! TLS towards servers outside of the mesh (reference mtls DR-3), in memory.

mod common;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::handshake_with;
use maille_testkit::identity::rogue_server;
use maille_testkit::{Credential, Flaw, TestAuthority};
use maille_tls::{ClientCertificate, HandshakeError, Origin, OriginRequest, Proof, ServerRoots};
use rustls::ServerConnection;

fn request(proof: Proof) -> OriginRequest {
    OriginRequest { proof, http2: false, sends_name: true }
}

fn origin(trusted: &TestAuthority, own: Option<&Credential>) -> Origin {
    let own = own.map(|own| ClientCertificate::from_pem(&own.chain_pem(), &own.key_pem()).expect("a pair"));
    let roots =
        ServerRoots::from_pem(&trusted.roots_pem(), "caCertificates /etc/certs/ca.pem").expect("roots");
    Origin::new(own, Some(roots))
}

fn one_of(names: &[&str]) -> Proof {
    Proof::OneOf(names.iter().map(ToString::to_string).collect())
}

/// The client's side of a handshake with a server that shows `server`.
fn handshake(
    origin: &Origin,
    request: &OriginRequest,
    name: &str,
    server: &Credential,
) -> Result<ServerConnection, HandshakeError> {
    let config = origin.client_config(request).expect("a configuration");
    let ends = handshake_with(name, config, rogue_server(server));
    match ends.client_error {
        Some(error) => Err(error),
        None => Ok(ends.server),
    }
}

#[test]
fn the_name_that_was_dialled_counts_with_wildcards_and_addresses() {
    let authority = TestAuthority::new();
    let origin = origin(&authority, Some(&authority.client("payment", None)));
    let server = authority.server(&["*.example.com"], &["192.0.2.7".parse().expect("an address")]);
    let dialled = request(Proof::DialledName);
    for name in ["api.example.com", "API.example.com", "192.0.2.7"] {
        assert!(handshake(&origin, &dialled, name, &server).is_ok(), "{name}");
    }
    for name in ["example.com", "a.b.example.com", "192.0.2.8", "api.example.org"] {
        let error = handshake(&origin, &dialled, name, &server).err().map(|e| e.to_string());
        assert!(error.is_some_and(|e| e.contains("*.example.com") && e.contains(name)), "{name}");
    }
    assert!(handshake(&origin, &request(Proof::Chain), "whatever.test", &server).is_ok());
    for (names, fits) in [
        (&["api.example.com"][..], true),
        (&["*.example.com"], true),
        (&["x.test", "192.0.2.7"], true),
        (&["x.test"], false),
    ] {
        let outcome = handshake(&origin, &request(one_of(names)), "whatever.test", &server);
        assert_eq!(outcome.is_ok(), fits, "{names:?}");
    }
}

#[test]
fn a_chain_that_does_not_verify_is_refused_with_the_source_of_the_roots() {
    let (authority, other) = (TestAuthority::new(), TestAuthority::new());
    let origin = origin(&authority, Some(&authority.client("payment", None)));
    let stranger = other.server(&["api.example.com"], &[]);
    for proof in [Proof::Chain, Proof::DialledName, one_of(&["api.example.com"])] {
        let error = handshake(&origin, &request(proof), "api.example.com", &stranger).err();
        let text = error.map(|e| e.to_string()).unwrap_or_default();
        assert!(text.contains("/etc/certs/ca.pem"), "{text}");
    }
    assert!(handshake(&origin, &request(Proof::Nothing), "api.example.com", &stranger).is_ok());
    let expired = authority.flawed(Flaw::Expired, "shop", "cart");
    let error = handshake(&origin, &request(Proof::Chain), "api.example.com", &expired).err();
    assert!(error.is_some_and(|e| e.to_string().contains("expired")));
    // Without roots nothing but nothing can be asked for.
    let rootless = Origin::new(None, None);
    assert!(rootless.client_config(&request(Proof::Chain)).is_err());
    assert!(rootless.client_config(&request(Proof::Nothing)).is_ok());
}

#[test]
fn the_certificate_is_shown_and_its_key_must_fit() {
    let authority = TestAuthority::new();
    let (own, other) = (authority.client("payment", None), authority.client("other", None));
    let server = authority.server(&["api.example.com"], &[]);
    let with = origin(&authority, Some(&own));
    let connection =
        handshake(&with, &request(Proof::DialledName), "api.example.com", &server).expect("accepted");
    assert_eq!(connection.peer_certificates().map(<[_]>::to_vec), Some(own.chain.clone()));
    let mixed = ClientCertificate::from_pem(&own.chain_pem(), &other.key_pem()).expect_err("refused");
    assert!(mixed.to_string().contains("do not belong together"), "{mixed}");

    let certificate = ClientCertificate::from_pem(&own.chain_pem(), &own.key_pem()).expect("a pair");
    let now = SystemTime::now();
    assert!(certificate.check(now).is_ok());
    let late = certificate.check(certificate.not_after()).expect_err("expired");
    assert!(late.contains("expired at"), "{late}");
    assert!(certificate.check(now - Duration::from_secs(1 << 30)).is_err());
}

#[test]
fn configurations_are_kept_and_bounded() {
    let authority = TestAuthority::new();
    let origin = origin(&authority, None);
    let one = origin.client_config(&request(Proof::Chain)).expect("a configuration");
    let same = origin.client_config(&request(Proof::Chain)).expect("a configuration");
    assert!(Arc::ptr_eq(&one, &same));
    for n in 0..1000 {
        let proof = one_of(&[&format!("n{n}.example.com")]);
        assert!(origin.client_config(&request(proof)).is_ok());
    }
}
