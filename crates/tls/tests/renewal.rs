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
