//! Two workloads of the mesh with each other.

mod common;

use std::sync::Arc;

use common::{handshake, names};
use maille_core::{Identity, TrustDomain};
use maille_testkit::{Flaw, TestAuthority, identity::rogue_client};
use maille_tls::{
    ClientAlpn, Current, HandshakeError, Reason, ServerAlpn, TlsContext, Trust, peer_of_client,
    peer_of_server,
};
use rustls::{NamedGroup, ProtocolVersion};

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

fn parse(uri: &str) -> Identity {
    Identity::parse_uri(uri).expect("valid")
}

/// How the server ends of a proxy choose their protocol list.
fn accept(server: &Current, alpn: ClientAlpn) -> Arc<rustls::ServerConfig> {
    let offered: Vec<_> = alpn.protocols().iter().map(|protocol| protocol.to_vec()).collect();
    server.server_config(ServerAlpn::choose(&offered))
}

#[test]
fn workloads_know_each_other_and_agree_post_quantum() {
    let authority = TestAuthority::new();
    let (web, cart) =
        (authority.context("shop", "web").current(), authority.context("shop", "cart").current());
    let config = web.client_config(ClientAlpn::Tcp, &names([CART])).expect("config");
    let (client, server) = handshake(config, accept(&cart, ClientAlpn::Tcp)).established();
    assert_eq!(peer_of_server(&server).expect("identity"), parse(WEB));
    assert_eq!(peer_of_client(&client).expect("identity"), parse(CART));
    for group in [client.negotiated_key_exchange_group(), server.negotiated_key_exchange_group()] {
        assert_eq!(group.expect("negotiated").name(), NamedGroup::X25519MLKEM768);
    }
    assert_eq!(server.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(server.server_name(), Some("outbound_.80_._.web.shop.svc.cluster.local"));
}

/// Reference mtls 8.1, PA-9: `istio…` is offered and matched, never negotiated; without overlap the
/// handshake goes on.
#[test]
fn protocols_are_negotiated_as_the_table_says() {
    let authority = TestAuthority::new();
    let (web, cart) =
        (authority.context("shop", "web").current(), authority.context("shop", "cart").current());
    for (alpn, negotiated) in [
        (ClientAlpn::Tcp, None),
        (ClientAlpn::Http1, Some(b"http/1.1".as_slice())),
        (ClientAlpn::Http2, Some(b"h2".as_slice())),
    ] {
        let config = web.client_config(alpn, &names([CART])).expect("config");
        let (client, server) = handshake(config, accept(&cart, alpn)).established();
        assert_eq!((client.alpn_protocol(), server.alpn_protocol()), (negotiated, negotiated), "{alpn:?}");
    }
}

/// SN-2, SN-3, SN-5.
#[test]
fn client_expects_one_of_the_services_identities() {
    let authority = TestAuthority::new();
    let (web, cart) =
        (authority.context("shop", "web").current(), authority.context("shop", "cart").current());
    let attempt = |expected| {
        let config = web.client_config(ClientAlpn::Tcp, &expected).expect("config");
        handshake(config, accept(&cart, ClientAlpn::Tcp))
    };
    attempt(names([CART])).established();
    attempt(names([WEB, CART])).established();
    attempt(names([])).established();

    let other = "spiffe://cluster.local/ns/shop/sa/other";
    for expected in [
        names([other]),
        names([other, WEB, "cart.shop.svc"]),
        names(["spiffe://cluster.local/ns/shop/sa/car"]),
    ] {
        let ends = attempt(expected.clone());
        let error = ends.client_error.expect("an impostor");
        let refusal = error.refusal().expect("refused by us");
        assert_eq!(refusal.reason, Reason::Name { expected });
        assert_eq!(refusal.claimed, [CART]);
        assert!(error.to_string().contains(CART), "{error}");
        assert!(
            matches!(ends.server_error, Some(HandshakeError::RefusedByPeer(_))),
            "{:?}",
            ends.server_error
        );
    }
}

/// SN-9, SN-12, fixture of reference mtls 3.2.
#[test]
fn aliases_are_accepted_and_foreign_trust_domains_are_not() {
    let authority = TestAuthority::of("new.td");
    let domain = |text: &str| TrustDomain::parse(text).expect("valid");
    let trust = Trust::of_mesh(authority.bundles(), &domain("new.td"), &[domain("old.td")]).expect("trust");
    let server = TlsContext::new(authority.svid("a", "server"), trust).expect("context").current();
    let attempt = |client: &str| {
        let svid = authority.svid_for(&parse(client), std::time::Duration::from_secs(60));
        let trust = Trust::of_mesh(authority.bundles(), &domain("new.td"), &[]).expect("trust");
        let client = TlsContext::new(svid, trust).expect("context").current();
        let config = client.client_config(ClientAlpn::Tcp, &names([])).expect("config");
        handshake(config, accept(&server, ClientAlpn::Tcp))
    };
    for good in ["spiffe://new.td/ns/a/sa/a", "spiffe://old.td/ns/a/sa/a"] {
        let (_, server) = attempt(good).established();
        assert_eq!(peer_of_server(&server).expect("identity"), parse(good));
    }
    let error = attempt("spiffe://evil.td/ns/a/sa/a").server_error.expect("refused");
    let reason = &error.refusal().expect("by us").reason;
    let accepted = vec![domain("new.td"), domain("old.td")];
    assert_eq!(reason, &Reason::TrustDomain { found: domain("evil.td"), accepted });
    assert!(error.to_string().contains("accepted: new.td, old.td"), "{error}");
}

/// Each trust domain is verified by its own roots only, whichever side it is on.
#[test]
fn federated_domain_cannot_speak_for_ours() {
    let (ours, theirs) = (TestAuthority::of("our.td"), TestAuthority::of("their.td"));
    let mut bundles = ours.bundles();
    bundles.insert(theirs.trust_domain().clone(), theirs.authority().roots().to_vec()).expect("roots");
    let trust = Trust::of_mesh(bundles, ours.trust_domain(), &[]).expect("trust");
    let server = TlsContext::new(ours.svid("a", "server"), trust.clone()).expect("context").current();
    let attempt = |svid| {
        let client = TlsContext::new(svid, trust.clone()).expect("context").current();
        let config = client.client_config(ClientAlpn::Tcp, &names([])).expect("config");
        handshake(config, accept(&server, ClientAlpn::Tcp))
    };
    attempt(theirs.svid("b", "friend")).established();
    let forged = theirs.svid_for(&ours.identity("a", "admin"), std::time::Duration::from_secs(60));
    let error = attempt(forged).server_error.expect("refused");
    let reason = &error.refusal().expect("by us").reason;
    assert_eq!(reason, &Reason::UnknownIssuer { trust_domain: ours.trust_domain().clone(), roots: 1 });
}

/// SN-8.
#[test]
fn client_without_certificate_is_refused() {
    let authority = TestAuthority::new();
    let cart = authority.context("shop", "cart").current();
    let ends = handshake(rogue_client(None, &[]), accept(&cart, ClientAlpn::Tcp));
    assert!(matches!(ends.server_error, Some(HandshakeError::NoCertificate)), "{:?}", ends.server_error);
    let told = ends.client_error.expect("an alert").to_string();
    assert!(told.contains("requires a client certificate"), "{told}");
    // WR-2: with a good one and no ALPN at all it is let in.
    let naked = authority.flawed(Flaw::None, "shop", "naked");
    handshake(rogue_client(Some(&naked), &[]), accept(&cart, ClientAlpn::Tcp)).established();
}

#[test]
fn client_configurations_are_made_once() {
    let authority = TestAuthority::new();
    let web = authority.context("shop", "web").current();
    let config = |alpn, expected| web.client_config(alpn, &expected).expect("config");
    let first = config(ClientAlpn::Http1, names([CART]));
    assert!(Arc::ptr_eq(&first, &config(ClientAlpn::Http1, names([CART]))));
    assert!(!Arc::ptr_eq(&first, &config(ClientAlpn::Http2, names([CART]))));
    assert!(!Arc::ptr_eq(&first, &config(ClientAlpn::Http1, names([WEB]))));
    for service in 0..5000 {
        config(ClientAlpn::Http1, names([&format!("spiffe://cluster.local/ns/shop/sa/s{service}")]));
    }
}
