//! Renewal and change of roots while connections are open.

mod common;

use std::io::{Read as _, Write as _};
use std::time::{Duration, SystemTime};

use common::{Ends, exchange, handshake, names};
use maille_pki::TrustBundles;
use maille_testkit::TestAuthority;
use maille_tls::{ClientAlpn, Reason, ServerAlpn, TlsContext, Trust, peer_of_client};
use rustls::pki_types::UnixTime;

fn connect(client: &TlsContext, server: &TlsContext) -> Ends {
    let config = client.current().client_config(ClientAlpn::Tcp, &names([])).expect("config");
    handshake(config, server.current().server_config(ServerAlpn::None))
}

fn say(ends: &mut Ends, text: &str) {
    ends.client.writer().write_all(text.as_bytes()).expect("buffered");
    exchange(ends);
    let mut heard = vec![0; text.len()];
    ends.server.reader().read_exact(&mut heard).expect("arrived");
    assert_eq!(heard, text.as_bytes());
}

fn serial_seen_by_client(ends: &Ends) -> String {
    let chain = ends.client.peer_certificates().expect("a server");
    maille_pki::leaf_facts(&chain[0]).expect("readable").serial
}

#[test]
fn renewed_svid_serves_new_connections_and_leaves_old_ones_alone() {
    let authority = TestAuthority::new();
    let (web, cart) = (authority.context("shop", "web"), authority.context("shop", "cart"));
    let mut old = connect(&web, &cart);
    say(&mut old, "before");
    let first = cart.current().svid().serial().to_owned();
    assert_eq!((serial_seen_by_client(&old), cart.generation()), (first.clone(), 1));

    cart.replace_svid(authority.svid("shop", "cart")).expect("good SVID");
    assert_eq!(cart.generation(), 2);
    let second = cart.current().svid().serial().to_owned();
    assert_ne!(first, second);
    say(&mut old, "after");
    let new = connect(&web, &cart);
    assert_eq!(serial_seen_by_client(&new), second);
    assert_eq!(peer_of_client(&new.client).expect("identity"), authority.identity("shop", "cart"));
}

/// A root rotation as issue order has it: add the new root, renew, withdraw the old one.
#[test]
fn roots_change_without_an_outage_and_the_old_root_ends() {
    let (old, new) = (TestAuthority::new(), TestAuthority::new());
    let (web, cart) = (old.context("shop", "web"), old.context("shop", "cart"));
    let trust = |authorities: &[&TestAuthority]| {
        let roots = authorities.iter().flat_map(|a| a.authority().roots().to_vec()).collect();
        let mut bundles = TrustBundles::new();
        bundles.insert(old.trust_domain().clone(), roots).expect("roots");
        Trust::of_mesh(bundles, old.trust_domain(), &[]).expect("trust")
    };
    let mut open = connect(&web, &cart);
    for side in [&web, &cart] {
        side.replace_trust(trust(&[&old, &new])).expect("both roots");
    }
    connect(&web, &cart).established();
    web.replace_svid(new.svid("shop", "web")).expect("renewed");
    connect(&web, &cart).established();
    cart.replace_svid(new.svid("shop", "cart")).expect("renewed");
    connect(&web, &cart).established();
    let late = TlsContext::new(old.svid("shop", "late"), trust(&[&old, &new])).expect("context");
    connect(&late, &cart).established();
    for side in [&web, &cart] {
        side.replace_trust(trust(&[&new])).expect("new root");
    }
    connect(&web, &cart).established();

    let error = connect(&late, &cart).server_error.expect("its root is withdrawn");
    let reason = &error.refusal().expect("by us").reason;
    assert_eq!(reason, &Reason::UnknownIssuer { trust_domain: old.trust_domain().clone(), roots: 1 });

    // The old connection still works, and can be judged again by the new state.
    say(&mut open, "still here");
    let chain = open.server.peer_certificates().expect("a client").to_vec();
    let refused = cart.current().recheck_client(&chain, UnixTime::now()).expect_err("its root is withdrawn");
    assert!(matches!(refused.reason, Reason::UnknownIssuer { .. }), "{refused}");
    let chain = open.client.peer_certificates().expect("a server").to_vec();
    assert!(web.current().recheck_server(&chain, &names([]), UnixTime::now()).is_err());
}

#[test]
fn open_connections_are_judged_by_the_time_of_now() {
    let authority = TestAuthority::new();
    let (web, cart) = (authority.context("shop", "web"), authority.context("shop", "cart"));
    let (_, server) = connect(&web, &cart).established();
    let chain = server.peer_certificates().expect("a client");
    let at = |time: SystemTime| {
        UnixTime::since_unix_epoch(time.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970"))
    };
    let now = SystemTime::now();
    assert_eq!(cart.current().recheck_client(chain, at(now)), Ok(authority.identity("shop", "web")));
    let refused =
        cart.current().recheck_client(chain, at(now + Duration::from_secs(7200))).expect_err("expired");
    assert!(matches!(refused.reason, Reason::Expired { .. }), "{refused}");
    assert!(cart.current().recheck_client(&[], at(now)).is_err());
}

#[test]
fn failed_replacement_leaves_the_old_state_in_force() {
    let authority = TestAuthority::new();
    let (web, cart) = (authority.context("shop", "web"), authority.context("shop", "cart"));
    let refused = Trust::of_mesh(TrustBundles::new(), authority.trust_domain(), &[]).expect_err("no roots");
    assert!(refused.to_string().contains("cluster.local"), "{refused}");
    assert_eq!(cart.generation(), 1);
    connect(&web, &cart).established();
}

/// A resumed session would carry an identity past its certificate: no end keeps or gives tickets.
#[test]
fn sessions_are_never_resumed() {
    let authority = TestAuthority::new();
    let (web, cart) = (authority.context("shop", "web"), authority.context("shop", "cart"));
    for _ in 0..3 {
        let mut ends = connect(&web, &cart);
        say(&mut ends, "hello");
        assert_eq!(ends.client.tls13_tickets_received(), 0);
        for kind in [ends.client.handshake_kind(), ends.server.handshake_kind()] {
            assert_eq!(kind, Some(rustls::HandshakeKind::Full));
        }
    }
}

/// Replacements from several threads do not lose each other's part.
#[test]
fn concurrent_replacements_all_count() {
    let authority = TestAuthority::new();
    let context = authority.context("shop", "cart");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5 {
                    context.replace_svid(authority.svid("shop", "cart")).expect("good");
                    context.replace_trust(authority.trust()).expect("good");
                }
            });
        }
    });
    assert_eq!(context.generation(), 41);
}
