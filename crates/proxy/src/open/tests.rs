use std::sync::Arc;
use std::time::Duration;

use maille_policy::{PolicySet, TrustContext};
use maille_testkit::TestAuthority;
use maille_tls::TlsContext;

use super::proof::LAST_MOMENTS;
use super::*;

/// A connection for requests, opened by `web` with a certificate that lives for so long.
fn open(authority: &TestAuthority, tls: &TlsContext, ttl: Duration) -> Open {
    let svid = authority.svid_for(&authority.identity("shop", "web"), ttl);
    let valid = Validity::of(&svid.chain()[0]).expect("a certificate");
    let address = SocketAddr::from(([127, 0, 0, 1], 80));
    let facts = Facts {
        identity: Some(svid.identity().clone()),
        peer: address,
        destination: address,
        sni: None,
        agreed: Some(Negotiated { key_exchange: "X25519", version: "TLSv1.2" }),
        proof: Some(Proof::new(svid.chain().into(), valid, tls.generation())),
    };
    let trust = TrustContext {
        trust_domain: authority.trust_domain().clone(),
        aliases: Vec::new(),
        root_namespace: "istio-system".to_owned(),
    };
    let policy = Arc::new(PolicySet::compile(&[], &trust).0).on_connection(&facts.attributes());
    Open::new(facts, Carries::Http, policy)
}

fn reason(open: &Open, tls: &TlsContext) -> Option<String> {
    open.closed_to_requests(tls).map(|refused| refused.reason().to_owned())
}

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn no_request_passes_after_the_end_of_its_callers_certificate() {
    let authority = TestAuthority::new();
    let tls = authority.context("shop", "cart");
    let open = open(&authority, &tls, Duration::from_secs(1));
    let end = open.facts.proof.as_ref().expect("there is one").valid().not_after;
    while SystemTime::now() < end {
        std::thread::yield_now();
    }
    assert!(reason(&open, &tls).is_some_and(|reason| reason.contains("expired")));
    assert!(open.is_leaving());
}

#[test]
fn no_request_passes_once_trust_is_withdrawn_whoever_looks_after_connections() {
    let authority = TestAuthority::new();
    let tls = authority.context("shop", "cart");
    let open = open(&authority, &tls, HOUR);
    assert_eq!(reason(&open, &tls), None);
    tls.replace_svid(authority.svid("shop", "cart")).expect("another certificate of our own");
    assert_eq!(reason(&open, &tls), None, "a renewal of our own is no reason");
    tls.replace_trust(TestAuthority::new().trust()).expect("other roots");
    assert!(reason(&open, &tls).is_some_and(|reason| reason.contains("root")));
    assert!(open.is_leaving());
}

#[test]
fn a_request_in_the_last_moments_passes_and_its_connection_leaves_with_the_answer() {
    let authority = TestAuthority::new();
    let tls = authority.context("shop", "cart");
    let (mut late, early) = (open(&authority, &tls, LAST_MOMENTS), open(&authority, &tls, HOUR));
    assert_eq!((reason(&late, &tls), reason(&early, &tls)), (None, None));
    assert!(!late.is_leaving() && !early.is_leaving(), "callers would need a connection for each request");
    late.since -= HOUR;
    assert_eq!(reason(&late, &tls), None);
    assert!(late.is_leaving());
}
