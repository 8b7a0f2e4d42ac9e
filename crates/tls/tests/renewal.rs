//! A renewed certificate shown inside an open connection.

mod common;

use std::time::Duration;

use common::handshake;
use maille_testkit::TestAuthority;
use maille_tls::{Binding, ClientAlpn, RenewalError, ServerAlpn, TlsContext};
use rustls_pki_types::UnixTime;

const DAY: Duration = Duration::from_secs(86_400);

/// Both ends' bindings of one connection of `client`.
fn bindings(client: &TlsContext, server: &TlsContext) -> (Binding, Binding) {
    let config = client.current().client_config(ClientAlpn::ManyTcp, &Vec::new().into()).expect("config");
    let (client, server) = handshake(config, server.current().server_config(ServerAlpn::Many)).established();
    (Binding::of_client(&client).expect("TLS 1.3"), Binding::of_server(&server).expect("TLS 1.3"))
}

#[test]
fn a_renewed_certificate_of_the_same_identity_is_accepted() {
    let authority = TestAuthority::new();
    let (web, cart) = (authority.context("shop", "web"), authority.context("shop", "cart"));
    let (near, far) = bindings(&web, &cart);
    let identity = authority.identity("shop", "web");
    let renewed = authority.svid_for(&identity, DAY);
    let message = near.renew(&renewed).expect("signed");
    assert!(message.len() < maille_tls::MAX_RENEWAL);
    let chain = cart.current().accept_renewal(&far, &message, &identity, UnixTime::now()).expect("accepted");
    assert_eq!(chain, renewed.chain());
}

#[test]
fn a_renewal_is_good_on_its_own_connection_and_for_its_own_identity_only() {
    let authority = TestAuthority::new();
    let (web, cart) = (authority.context("shop", "web"), authority.context("shop", "cart"));
    let (near, far) = bindings(&web, &cart);
    let (_, other) = bindings(&web, &cart);
    let identity = authority.identity("shop", "web");
    let judge = |binding: &Binding, message: &[u8]| {
        cart.current().accept_renewal(binding, message, &identity, UnixTime::now())
    };
    let message = near.renew(&authority.svid_for(&identity, DAY)).expect("signed");
    assert!(matches!(judge(&other, &message), Err(RenewalError::Signature)), "taken on another connection");

    let thief = near.renew(&authority.svid_for(&authority.identity("shop", "thief"), DAY)).expect("signed");
    assert!(matches!(judge(&far, &thief), Err(RenewalError::OtherIdentity { .. })));

    let strange = near.renew(&TestAuthority::new().svid_for(&identity, DAY)).expect("signed");
    assert!(matches!(judge(&far, &strange), Err(RenewalError::Refused(_))), "taken from another authority");

    // The chain of one who has the right to it, signed by one who has not its key.
    let own = authority.svid_for(&identity, DAY);
    let stolen = near.renew(&own).expect("signed");
    let mut forged = near.renew(&authority.svid_for(&identity, DAY)).expect("signed");
    let chain_at = |message: &[u8]| 6 + u32::from_be_bytes(message[2..6].try_into().expect("four")) as usize;
    forged.truncate(chain_at(&forged));
    forged.extend_from_slice(&stolen[chain_at(&stolen)..]);
    assert!(matches!(judge(&far, &forged), Err(RenewalError::Signature)));

    let late = UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs()) + 2 * DAY);
    let expired = cart.current().accept_renewal(&far, &message, &identity, late);
    assert!(matches!(expired, Err(RenewalError::Refused(_))));

    for cut in 0..message.len() {
        assert!(judge(&far, &message[..cut]).is_err(), "{cut} bytes of {}", message.len());
    }
    for at in 0..message.len() {
        let mut changed = message.clone();
        changed[at] ^= 1;
        assert!(judge(&far, &changed).is_err(), "byte {at} does not matter");
    }
}

#[test]
fn a_server_proves_its_renewed_certificate_to_its_caller_only() {
    let authority = TestAuthority::new();
    let (web, cart) = (authority.context("shop", "web"), authority.context("shop", "cart"));
    let (near, far) = bindings(&web, &cart);
    let (other, _) = bindings(&web, &cart);
    let identity = authority.identity("shop", "cart");
    let judge = |binding: &Binding, message: &[u8], now: UnixTime| {
        web.current().accept_server_renewal(binding, message, &identity, now)
    };
    let now = UnixTime::now();
    let renewed = authority.svid_for(&identity, DAY);
    let message = far.renew_server(&renewed).expect("signed");
    assert_eq!(judge(&near, &message, now).expect("accepted"), renewed.chain());
    assert!(matches!(judge(&other, &message, now), Err(RenewalError::Signature)), "of another connection");
    let late = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()) + 2 * DAY);
    assert!(matches!(judge(&near, &message, late), Err(RenewalError::Refused(_))), "expired");
    let somebody = far.renew_server(&authority.svid_for(&authority.identity("shop", "thief"), DAY));
    assert!(matches!(judge(&near, &somebody.expect("signed"), now), Err(RenewalError::Refused(_))));
    let strange = far.renew_server(&TestAuthority::new().svid_for(&identity, DAY)).expect("signed");
    assert!(matches!(judge(&near, &strange, now), Err(RenewalError::Refused(_))), "of another authority");

    // What one end has signed cannot be sent back to it as the other's.
    let own = near.renew(&renewed).expect("signed");
    assert!(matches!(judge(&near, &own, now), Err(RenewalError::Signature)));
    let reflected = cart.current().accept_renewal(&far, &message, &identity, now);
    assert!(matches!(reflected, Err(RenewalError::Signature)));
}
