//! Reference mtls section 3, row by row, as far as handshakes decide: SN-2, SN-3, SN-5 and SN-7 to SN-12. SN-1, SN-4 and
//! SN-6 are of the control plane (facts), SN-13 of identities and policies.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Ends, handshake, names};
use maille_core::{Identity, TrustDomain};
use maille_testkit::identity::{rogue_client, rogue_server};
use maille_testkit::{Flaw, TestAuthority};
use maille_tls::{
    ClientAlpn, HandshakeError, Presenter, Reason, ServerAlpn, TlsContext, Trust, peer_of_client,
    peer_of_server,
};

const A: &str = "spiffe://cluster.local/ns/shop/sa/sa-a";
const B: &str = "spiffe://cluster.local/ns/shop/sa/sa-b";

fn domain(text: &str) -> TrustDomain {
    TrustDomain::parse(text).expect("valid")
}

fn identity(uri: &str) -> Identity {
    Identity::parse_uri(uri).expect("valid")
}

fn call(client: &TlsContext, server: &TlsContext, expected: Arc<[String]>) -> Ends {
    let config = client.current().client_config(ClientAlpn::Tcp, &expected).expect("config");
    handshake(config, server.current().server_config(ServerAlpn::None))
}

fn refusal(error: Option<HandshakeError>, presenter: Presenter) -> Reason {
    let error = error.expect("a refusal");
    let refusal = error.refusal().unwrap_or_else(|| panic!("not by us: {error}"));
    assert_eq!(refusal.presenter, presenter);
    refusal.reason.clone()
}

#[test]
fn sn_2_any_identity_of_the_service_is_accepted_from_any_endpoint_and_no_other() {
    let authority = TestAuthority::new();
    let client = authority.context("shop", "web");
    for account in ["sa-a", "sa-b"] {
        call(&client, &authority.context("shop", account), names([A, B])).established();
    }
    for evil in ["sa-evil", "sa", "sa-ab"] {
        let ends = call(&client, &authority.context("shop", evil), names([A, B]));
        assert_eq!(refusal(ends.client_error, Presenter::Server), Reason::Name { expected: names([A, B]) });
    }
    // The right name alone is not enough.
    let other = TestAuthority::new();
    let ends = call(&client, &other.context("shop", "sa-a"), names([A]));
    assert!(matches!(refusal(ends.client_error, Presenter::Server), Reason::UnknownIssuer { .. }));
}

#[test]
fn sn_3_an_empty_list_accepts_whomever_the_roots_of_the_mesh_vouch_for() {
    let (authority, other) = (TestAuthority::new(), TestAuthority::new());
    let client = authority.context("shop", "web");
    call(&client, &authority.context("else", "where"), names([])).established();
    let ends = call(&client, &other.context("shop", "web"), names([]));
    assert!(matches!(refusal(ends.client_error, Presenter::Server), Reason::UnknownIssuer { .. }));
}

#[test]
fn sn_5_names_that_are_no_spiffe_ids_are_matched_with_names_of_any_type() {
    let authority = TestAuthority::new();
    let client = authority.context("shop", "web");
    let server = authority.server(&["legacy.example.com"], &["192.0.2.7".parse().expect("an address")]);
    let attempt = |expected| {
        let config = client.current().client_config(ClientAlpn::Tcp, &expected).expect("config");
        handshake(config, rogue_server(&server))
    };
    attempt(names(["legacy.example.com"])).established();
    attempt(names([A, "192.0.2.7"])).established();
    let ends = attempt(names([A, "other.example.com"]));
    assert!(matches!(refusal(ends.client_error, Presenter::Server), Reason::Name { .. }));
}

/// HBONE is not spoken here; what is called as a workload of its own (headless services, Pod addresses) is expected as in
/// ztunnel: its own identity and what the service lists, nobody else of the service.
#[test]
fn sn_7_a_workload_that_is_called_itself_must_prove_its_own_identity() {
    let authority = TestAuthority::new();
    let client = authority.context("shop", "web");
    call(&client, &authority.context("shop", "sa-a"), names([A])).established();
    let ends = call(&client, &authority.context("shop", "sa-b"), names([A]));
    assert_eq!(refusal(ends.client_error, Presenter::Server), Reason::Name { expected: names([A]) });
    // What is no name matches nobody, and costs the others nothing.
    call(&client, &authority.context("shop", "sa-a"), names(["::no name::", A])).established();
}

#[test]
fn sn_8_a_client_must_show_a_certificate_by_the_roots_of_the_mesh() {
    let (authority, other) = (TestAuthority::new(), TestAuthority::new());
    let server = authority.context("shop", "cart");
    let accept = || server.current().server_config(ServerAlpn::None);
    let none = handshake(rogue_client(None, &[]), accept());
    assert!(matches!(none.server_error, Some(HandshakeError::NoCertificate)), "{:?}", none.server_error);
    let stranger = other.flawed(Flaw::None, "shop", "web");
    let ends = handshake(rogue_client(Some(&stranger), &[]), accept());
    assert!(matches!(refusal(ends.server_error, Presenter::Client), Reason::UnknownIssuer { .. }));
    let good = authority.flawed(Flaw::None, "shop", "web");
    handshake(rogue_client(Some(&good), &[]), accept()).established();
}

/// The fixture of reference mtls 3.2: one root, certificates of three trust domains; what becomes of each.
fn fixture(alpn: ServerAlpn, aliases: &[&str]) -> [bool; 3] {
    let authority = TestAuthority::of("new.td");
    let aliases: Vec<_> = aliases.iter().map(|alias| domain(alias)).collect();
    let trust = Trust::of_mesh(authority.bundles(), &domain("new.td"), &aliases).expect("trust");
    let server = TlsContext::new(authority.svid("a", "server"), trust).expect("context");
    ["new.td", "old.td", "evil.td"].map(|td| {
        let own = identity(&format!("spiffe://{td}/ns/a/sa/a"));
        let svid = authority.svid_for(&own, Duration::from_secs(60));
        let trust = Trust::of_mesh(authority.bundles(), &domain("new.td"), &[]).expect("trust");
        let client = TlsContext::new(svid, trust).expect("context").current();
        let offered = if alpn == ServerAlpn::Many { ClientAlpn::ManyTcp } else { ClientAlpn::Tcp };
        let config = client.client_config(offered, &names([])).expect("config");
        let ends = handshake(config, server.current().server_config(alpn));
        match ends.server_error {
            None => {
                assert_eq!(peer_of_server(&ends.established().1).expect("identity"), own);
                true
            }
            Some(error) => {
                let reason = refusal(Some(error), Presenter::Client);
                assert!(
                    matches!(&reason, Reason::TrustDomain { found, .. } if *found == domain(td)),
                    "{reason}"
                );
                false
            }
        }
    })
}

#[test]
fn sn_9_a_clients_trust_domain_is_the_meshs_or_an_alias() {
    assert_eq!(fixture(ServerAlpn::None, &["old.td"]), [true, true, false]);
    assert_eq!(fixture(ServerAlpn::None, &[]), [true, false, false]);
}

#[test]
fn sn_10_handshakes_know_no_list_of_identities() {
    let authority = TestAuthority::new();
    let server = authority.context("shop", "cart");
    for (namespace, account) in [("shop", "web"), ("else", "anybody"), ("a-b", "c.d")] {
        call(&authority.context(namespace, account), &server, names([])).established();
    }
}

/// What carries the streams of other proxies judges as everything else does, aliases included: ztunnel, which does not
/// consult them, is not copied here (gotcha G-25).
#[test]
fn sn_11_shared_connections_accept_aliases_as_all_others_do() {
    assert_eq!(fixture(ServerAlpn::Many, &["old.td"]), [true, true, false]);
}

#[test]
fn sn_12_while_a_trust_domain_is_renamed_both_names_are_believed_on_both_sides() {
    let authority = TestAuthority::of("new.td");
    let trust = Trust::of_mesh(authority.bundles(), &domain("new.td"), &[domain("old.td")]).expect("trust");
    let context = |uri: &str| {
        let svid = authority.svid_for(&identity(uri), Duration::from_secs(60));
        TlsContext::new(svid, trust.clone()).expect("context")
    };
    let (old, new) = ("spiffe://old.td/ns/shop/sa/cart", "spiffe://new.td/ns/shop/sa/cart");
    // As the control plane lists them (SN-1).
    let expected = || names([new, old]);
    for (client, server) in [(old, new), (new, old), (new, new), (old, old)] {
        let (client_end, server_end) = call(&context(client), &context(server), expected()).established();
        assert_eq!(peer_of_client(&client_end).expect("identity"), identity(server));
        assert_eq!(peer_of_server(&server_end).expect("identity"), identity(client));
    }
}
