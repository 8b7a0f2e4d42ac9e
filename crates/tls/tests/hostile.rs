//! Every bad certificate is refused by both sides, each for its own reason, and the other end is
//! told nothing but that it is refused.

mod common;

use common::{Ends, handshake, names};
use maille_pki::LeafRule;
use maille_testkit::identity::{rogue_client, rogue_server};
use maille_testkit::{Flaw, TestAuthority};
use maille_tls::{ClientAlpn, HandshakeError, Presenter, Reason, ServerAlpn};
use rustls::AlertDescription;

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

/// Shows a flawed certificate as a client to a good server, or as a server to a good client; the
/// good end's verdict.
fn show(authority: &TestAuthority, flaw: Flaw, presenter: Presenter) -> Ends {
    let flawed = authority.flawed(flaw, "shop", "cart");
    let good = authority.context("shop", "web").current();
    match presenter {
        Presenter::Client => {
            handshake(rogue_client(Some(&flawed), &[]), good.server_config(ServerAlpn::None))
        }
        Presenter::Server => {
            let config = good.client_config(ClientAlpn::Tcp, &names([CART])).expect("config");
            handshake(config, rogue_server(&flawed))
        }
    }
}

fn is_expected(flaw: Flaw, presenter: Presenter, reason: &Reason) -> bool {
    match flaw {
        Flaw::None | Flaw::WrongKey => false,
        Flaw::Expired => matches!(reason, Reason::Expired { .. }),
        Flaw::NotYetValid => matches!(reason, Reason::NotYetValid { .. }),
        Flaw::OtherRoot | Flaw::SelfSigned => matches!(reason, Reason::UnknownIssuer { .. }),
        Flaw::SignedByLeaf => matches!(reason, Reason::Path(why) if why == "EndEntityUsedAsCa"),
        // No roots are known for it; a server checks first that it is a domain it accepts at all.
        Flaw::ForeignTrustDomain => match presenter {
            Presenter::Client => matches!(reason, Reason::TrustDomain { .. }),
            Presenter::Server => matches!(reason, Reason::NoBundle(_)),
        },
        Flaw::TwoUris => matches!(reason, Reason::Leaf(LeafRule::OneUri { found: 2 })),
        // A server may go by DNS names only (SN-5), but then it is not the one that was expected.
        Flaw::NoUri => match presenter {
            Presenter::Client => matches!(reason, Reason::Leaf(LeafRule::OneUri { found: 0 })),
            Presenter::Server => matches!(reason, Reason::Name { .. }),
        },
        Flaw::NotAnIdentity | Flaw::EncodedPath => matches!(reason, Reason::Leaf(LeafRule::Identity(_))),
        Flaw::NoClientAuth => matches!(reason, Reason::Leaf(LeafRule::ExtendedUsage("clientAuth"))),
        Flaw::NoServerAuth => matches!(reason, Reason::Leaf(LeafRule::ExtendedUsage("serverAuth"))),
        Flaw::IsAuthority => matches!(reason, Reason::Leaf(LeafRule::IsAuthority)),
        Flaw::SigningUsage => matches!(reason, Reason::Leaf(LeafRule::SigningUsage("keyCertSign"))),
        Flaw::NoDigitalSignature => matches!(reason, Reason::Leaf(LeafRule::NoDigitalSignature)),
    }
}

#[test]
fn every_bad_certificate_is_refused_for_its_own_reason() {
    let authority = TestAuthority::new();
    for presenter in [Presenter::Client, Presenter::Server] {
        show(&authority, Flaw::None, presenter).established();
        for flaw in Flaw::ALL {
            let ends = show(&authority, flaw, presenter);
            let (verdict, told) = match presenter {
                Presenter::Client => (ends.server_error, ends.client_error),
                Presenter::Server => (ends.client_error, ends.server_error),
            };
            let verdict = verdict.unwrap_or_else(|| panic!("{flaw:?} of a {presenter} was let in"));
            println!("{flaw:?}: {verdict}");
            if flaw == Flaw::WrongKey {
                // Refused by the signature over the handshake, after the certificate was found good.
                assert!(matches!(verdict, HandshakeError::BadSignature), "{verdict:?}");
                continue;
            }
            let refusal =
                verdict.refusal().unwrap_or_else(|| panic!("{flaw:?} of a {presenter}: {verdict:?}"));
            assert_eq!(refusal.presenter, presenter);
            assert!(is_expected(flaw, presenter, &refusal.reason), "{flaw:?} of a {presenter}: {refusal}");
            assert!(
                matches!(told, Some(HandshakeError::RefusedByPeer(AlertDescription::CertificateUnknown))),
                "{flaw:?}: the other end was told {told:?}"
            );
        }
    }
}

#[test]
fn refusals_say_whose_certificate_what_was_expected_and_what_to_do() {
    let authority = TestAuthority::new();
    let message = |flaw, presenter| {
        let ends = show(&authority, flaw, presenter);
        ends.server_error.or(ends.client_error).expect("refused").to_string()
    };
    let expired = message(Flaw::Expired, Presenter::Client);
    for part in ["certificate of the client that claims to be", CART, "(serial ", "expired at 2", "clock"] {
        assert!(expired.contains(part), "'{part}' is missing: {expired}");
    }
    let early = message(Flaw::NotYetValid, Presenter::Client);
    assert!(
        early.contains("not valid before") && early.contains("clock of this machine may be late"),
        "{early}"
    );
    let two = message(Flaw::TwoUris, Presenter::Client);
    assert!(two.contains("2 URI names, and exactly 1 is required"), "{two}");
}
