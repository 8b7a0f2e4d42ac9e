//! The control plane's port, the API server, and their clients.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Ends, handshake_with};
use maille_pki::client_subject;
use maille_testkit::identity::rogue_client;
use maille_testkit::{Flaw, TestAuthority};
use maille_tls::control::{Credential, discovery_client, discovery_server, https_client, https_server};
use maille_tls::{HandshakeError, Reason, peer_of_server};
use rustls::ServerConfig;

const ISTIOD: &str = "istiod.istio-system.svc";

fn istiod(authority: &TestAuthority) -> Arc<ServerConfig> {
    let own = authority.server(&[ISTIOD, "istiod"], &[]);
    let own = Credential::from_pem(&own.chain_pem(), &own.key_pem()).expect("good");
    discovery_server(&own, &authority.trust()).expect("config")
}

#[test]
fn proxy_reaches_its_control_plane_with_and_without_an_svid() {
    let authority = TestAuthority::new();
    let without = discovery_client(&authority.roots_pem(), None).expect("config");
    let (client, server) = handshake_with(ISTIOD, without, istiod(&authority)).established();
    assert!(matches!(peer_of_server(&server), Err(HandshakeError::NoCertificate)));
    assert_eq!(client.alpn_protocol(), Some(b"h2".as_slice()));

    let own = Credential::from_svid(&authority.svid("shop", "cart")).expect("good");
    let with = discovery_client(&authority.roots_pem(), Some(&own)).expect("config");
    let (_, server) = handshake_with(ISTIOD, with, istiod(&authority)).established();
    assert_eq!(peer_of_server(&server).expect("identity"), authority.identity("shop", "cart"));
}

/// Optional does not mean unchecked.
#[test]
fn bad_client_certificate_is_refused_by_the_control_plane() {
    let authority = TestAuthority::new();
    for flaw in Flaw::ALL {
        let client = rogue_client(Some(&authority.flawed(flaw, "shop", "cart")), &[b"h2"]);
        let ends = handshake_with(ISTIOD, client, istiod(&authority));
        assert!(ends.server_error.is_some(), "{flaw:?} was let in");
    }
    let client = rogue_client(Some(&authority.flawed(Flaw::Expired, "shop", "cart")), &[b"h2"]);
    let error = handshake_with(ISTIOD, client, istiod(&authority)).server_error.expect("refused");
    assert!(matches!(error.refusal().map(|r| &r.reason), Some(Reason::Expired { .. })), "{error}");
}

#[test]
fn impostor_of_the_control_plane_is_refused() {
    let (authority, other) = (TestAuthority::new(), TestAuthority::new());
    let client = discovery_client(&authority.roots_pem(), None).expect("config");
    let refused = |ends: Ends| ends.client_error.expect("refused").to_string();
    let message = refused(handshake_with(ISTIOD, client.clone(), istiod(&other)));
    assert!(message.contains("another root of the same name"), "{message}");
    let message = refused(handshake_with("other.istio-system.svc", client.clone(), istiod(&authority)));
    assert!(message.contains("other.istio-system.svc") && message.contains(ISTIOD), "{message}");
    // A workload's SVID names no host: no workload can pose as the control plane.
    let svid = Credential::from_svid(&authority.svid("istio-system", "istiod")).expect("good");
    let posing = discovery_server(&svid, &authority.trust()).expect("config");
    assert!(handshake_with(ISTIOD, client, posing).client_error.is_some());
}

#[test]
fn api_server_knows_its_users_by_certificate() {
    let authority = TestAuthority::of("kubernetes");
    let own = authority.server(&["kubernetes.default.svc"], &["10.96.0.1".parse().expect("address")]);
    let own = Credential::from_pem(&own.chain_pem(), &own.key_pem()).expect("good");
    let server = || https_server(&own, Some(&authority.roots_pem())).expect("config");
    let admin = authority.client("admin", Some("system:masters"));
    let admin = Credential::from_pem(&admin.chain_pem(), &admin.key_pem()).expect("good");
    for dialled in ["kubernetes.default.svc", "10.96.0.1"] {
        let client = https_client(&authority.roots_pem(), Some(&admin)).expect("config");
        let (_, connection) = handshake_with(dialled, client, server()).established();
        let chain = connection.peer_certificates().expect("a user");
        let user = client_subject(&chain[0]).expect("a user");
        assert_eq!((user.common_name.as_str(), user.organizations[0].as_str()), ("admin", "system:masters"));
    }
    // Without a certificate, with a token say, a client is let in to be asked further.
    let client = https_client(&authority.roots_pem(), None).expect("config");
    handshake_with("kubernetes.default.svc", client, server()).established();
    // A certificate of another root is not the same as none.
    let forged = TestAuthority::of("kubernetes").client("admin", Some("system:masters"));
    let forged = Credential::from_pem(&forged.chain_pem(), &forged.key_pem()).expect("good");
    let client = https_client(&authority.roots_pem(), Some(&forged)).expect("config");
    assert!(handshake_with("kubernetes.default.svc", client, server()).server_error.is_some());
    // A server certificate is no user.
    let client = https_client(&authority.roots_pem(), Some(&own)).expect("config");
    let error = handshake_with("kubernetes.default.svc", client, server()).server_error.expect("refused");
    assert!(error.to_string().contains("client authentication"), "{error}");
}

#[test]
fn credential_of_two_halves_is_refused() {
    let authority = TestAuthority::new();
    let (one, two) = (authority.server(&["a"], &[]), authority.server(&["b"], &[]));
    assert!(Credential::from_pem(&one.chain_pem(), &two.key_pem()).is_err());
    assert!(Credential::from_pem("", &one.key_pem()).is_err());
    let short = authority.svid_for(&authority.identity("shop", "cart"), Duration::from_secs(1));
    assert!(Credential::from_svid(&short).is_ok());
}
