//! How one authority follows another: renewed roots, new intermediates, trust distributed beside the own.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use maille_core::{Identity, TrustDomain};
use maille_pki::{
    Authority, CertificateDer, CertificateRequest, Error, KeyPair, ROOT_TTL, Svid, create_csr, fingerprint,
    generate_key, root_is_due,
};

mod common;
use common::Openssl;

const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);

fn domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").expect("valid")
}

fn svid(authority: &Authority, now: SystemTime) -> Svid {
    let cart = Identity::parse_uri("spiffe://cluster.local/ns/shop/sa/cart").expect("valid");
    let key = generate_key().expect("key");
    let csr = CertificateRequest::parse_pem(&create_csr(&key, &cart).expect("csr")).expect("own csr");
    let issued = authority.issue(&csr, &cart, HOUR, now).expect("issued");
    assert_eq!(issued.signer, authority.signer());
    let key = KeyPair::from_pem(&key.to_pem()).expect("key");
    let (svid, roots) = Svid::from_ca_response(&issued.into_response(), key).expect("an SVID");
    assert_eq!(roots, authority.roots());
    svid
}

fn entries(authority: &Authority) -> BTreeMap<String, Vec<u8>> {
    authority
        .to_secret()
        .into_iter()
        .map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec()))
        .collect()
}

fn restored(authority: &Authority) -> Authority {
    let secret = entries(authority);
    Authority::from_secret(|name| secret.get(name).map(Vec::as_slice)).expect("own Secret")
}

#[test]
fn fingerprints_are_those_of_openssl() {
    let openssl = Openssl::new();
    let root = Authority::self_signed(&domain(), SystemTime::now(), ROOT_TTL).expect("root");
    openssl.write("root.pem", &root.cert_pem());
    let shown = openssl.run(&["x509", "-in", "root.pem", "-noout", "-fingerprint", "-sha256"]);
    let shown = shown.trim().rsplit('=').next().expect("a value").replace(':', "").to_lowercase();
    assert_eq!(fingerprint(root.certificate()), shown);
    assert_eq!(root.signer(), shown);
}

/// CA-16: same key, same name, new serial number and dates; what either signed verifies under either.
#[test]
fn ca_16_a_renewed_root_is_the_same_key_and_name() {
    let openssl = Openssl::new();
    let now = SystemTime::now();
    let old = Authority::self_signed(&domain(), now - 8 * HOUR, 10 * HOUR).expect("root");
    let new = old.renew_root(now, ROOT_TTL).expect("renewed");
    for (name, authority) in [("old", &old), ("new", &new)] {
        openssl.write(&format!("{name}.pem"), &authority.cert_pem());
        openssl.write(&format!("{name}-leaf.pem"), &svid(authority, now).chain_pem().concat());
    }
    let shown = |file: &str, what: &str| openssl.run(&["x509", "-in", file, "-noout", what]);
    for same in ["-pubkey", "-subject", "-issuer"] {
        assert_eq!(shown("old.pem", same), shown("new.pem", same), "{same}");
    }
    for other in ["-serial", "-startdate", "-enddate"] {
        assert_ne!(shown("old.pem", other), shown("new.pem", other), "{other}");
    }
    let key_id = |file: &str| openssl.run(&["x509", "-in", file, "-noout", "-ext", "subjectKeyIdentifier"]);
    assert_eq!(key_id("old.pem"), key_id("new.pem"), "openssl finds the issuer by it");
    for root in ["old.pem", "new.pem"] {
        for leaf in ["old-leaf.pem", "new-leaf.pem"] {
            openssl.run(&["verify", "-x509_strict", "-CAfile", root, leaf]);
        }
    }
    assert_eq!(new.roots(), [new.certificate().clone()], "the old one is distributed no more");
    assert_ne!(new.signer(), old.signer());
    assert_eq!(restored(&new).signer(), new.signer());
    assert_eq!(new.key_pem(), old.key_pem());

    // Neither needs to be renewed for it: of two roots with one key, the newer stands for both.
    let both: Vec<CertificateDer<'_>> = vec![old.certificate().clone(), new.certificate().clone()];
    for authority in [&old, &new] {
        assert_eq!(svid(authority, now).signer(&both).as_deref(), Some(new.signer()));
    }
}

/// Roots as Istio and openssl make them, with names and key identifiers of other kinds.
#[test]
fn ca_16_roots_of_others_are_renewed_too() {
    let openssl = Openssl::new();
    for (kind, subject) in [
        (["-newkey", "rsa:2048"].as_slice(), "/O=cluster.local"),
        (
            &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"],
            "/C=NO/O=Corp/OU=Security/CN=Corp Root \u{e6}",
        ),
        (&["-newkey", "ed25519"], "/CN=root"),
    ] {
        let arguments =
            ["req", "-x509", "-nodes", "-utf8", "-keyout", "k.pem", "-out", "old.pem", "-days", "2"];
        openssl.run(&[&arguments, kind, &["-subj", subject]].concat());
        let (pem, key) = (openssl.read("old.pem"), openssl.read("k.pem"));
        let old = Authority::from_pem(&pem, &key, "", &pem).expect("a root");
        // Openssl's start now, and not two minutes ago.
        let now = SystemTime::now().max(old.not_before());
        let new = old.renew_root(now, ROOT_TTL).unwrap_or_else(|e| panic!("{subject}: {e}"));
        openssl.write("new.pem", &new.cert_pem());
        openssl.write("leaf.pem", &svid(&old, now).chain_pem().concat());
        openssl.run(&["verify", "-CAfile", "new.pem", "leaf.pem"]);
        openssl.write("leaf.pem", &svid(&new, now).chain_pem().concat());
        openssl.run(&["verify", "-CAfile", "old.pem", "leaf.pem"]);
    }
}

/// CA-16, CA-17: due in the last fifth of its life.
#[test]
fn ca_17_a_root_is_due_in_the_last_fifth_of_its_life() {
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let end = start + 10 * HOUR;
    let due = |left: Duration| root_is_due(start, end, end - left, 20);
    assert!(due(2 * HOUR - MINUTE), "1 h 59 m are left");
    assert!(!due(2 * HOUR + MINUTE), "2 h 01 m are left");
    assert!(root_is_due(start, end, end + HOUR, 20), "past its end");
    assert!(!root_is_due(start, end, start - HOUR, 20), "before its start");
}

#[test]
fn an_intermediate_leads_to_the_same_roots() {
    let openssl = Openssl::new();
    let now = SystemTime::now();
    let root = Authority::self_signed(&domain(), now, 48 * HOUR).expect("root");
    let first = root.intermediate("cluster.local intermediate", now, 24 * HOUR).expect("signed");
    let second = root.intermediate("cluster.local intermediate", now, ROOT_TTL).expect("signed");
    assert!(root.is_root() && !first.is_root());
    assert_eq!(second.not_after(), root.not_after(), "it ends with its root");
    assert_eq!(
        (first.roots(), first.intermediates()),
        (root.roots(), [first.certificate().clone()].as_slice())
    );
    openssl.write("root.pem", &root.cert_pem());
    for authority in [&first, &second] {
        let authority = restored(authority);
        let svid = svid(&authority, now);
        assert_eq!(svid.chain().len(), 2);
        assert_eq!(svid.signer(authority.roots()).as_deref(), Some(authority.signer()));
        let [leaf, link] = svid.chain_pem().try_into().expect("two");
        openssl.write("leaf.pem", &leaf);
        openssl.write("link.pem", &link);
        openssl.run(&["verify", "-x509_strict", "-CAfile", "root.pem", "-untrusted", "link.pem", "leaf.pem"]);
        let refused = authority.renew_root(now, ROOT_TTL);
        assert!(matches!(refused, Err(Error::NotARoot(_))), "{refused:?}");
        let refused = authority.intermediate("below", now, HOUR);
        assert!(refused.is_err(), "its path length says that it signs leaves only");
    }
    assert_ne!(first.signer(), second.signer());
}

/// CA-6 for the chain: what outlives its intermediate or its root is of no use to anyone.
#[test]
fn nothing_outlives_the_chain() {
    let openssl = Openssl::new();
    let now = SystemTime::now();
    openssl.authority("root", None, &["-newkey", "rsa:2048"], 1);
    openssl.authority("int", Some("root"), &["-newkey", "rsa:2048"], 30);
    let (cert, key) = (openssl.read("int.pem"), openssl.read("int.key"));
    let authority = Authority::from_pem(&cert, &key, "", &openssl.read("root.pem")).expect("a CA");
    assert!(authority.chain_end() < authority.not_after());
    assert!(authority.chain_end() < now + 25 * HOUR);
    assert_eq!(svid(&authority, now + 24 * HOUR - 2 * MINUTE).not_after(), authority.chain_end());
}

#[test]
fn distributed_trust_holds_the_own_roots_always() {
    let now = SystemTime::now();
    let [old, new] = [0, 1].map(|_| Authority::self_signed(&domain(), now, ROOT_TTL).expect("root"));
    let both = old.with_trust(new.roots().to_vec()).expect("roots");
    assert_eq!(both.roots(), [old.certificate().clone(), new.certificate().clone()]);
    assert_eq!(both.own_roots(), old.roots());
    assert_eq!(both.signer(), old.signer());
    // Repeated, in another order, and taken back.
    let again = both.with_trust([new.certificate().clone(), old.certificate().clone()]).expect("roots");
    assert_eq!(again.roots(), both.roots());
    assert_eq!(both.with_trust([]).expect("roots").roots(), old.roots());
    let leaf = svid(&new, now).chain()[0].clone();
    assert!(matches!(old.with_trust([leaf]), Err(Error::NotAnAuthority { .. })));
    // What is kept in the Secret is the authority, not the state of a rotation.
    assert_eq!(restored(&both).roots(), old.roots());
    let ours = svid(&old, now);
    assert_eq!(ours.signer(both.roots()).as_deref(), Some(old.signer()));
    assert_eq!(ours.signer(new.roots()), None);
}
