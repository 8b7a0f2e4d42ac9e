//! The authority's rules: what it signs with, for how long, and what it refuses to start from.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use maille_core::{Identity, TrustDomain};
use maille_pki::{
    Authority, CertificateRequest, Error, Issued, ROOT_TTL, Svid, TrustBundles, certificates_from_pem,
    client_subject, create_csr, generate_key, leaf_facts, peer_identity,
};

const HOUR: Duration = Duration::from_secs(3600);

fn domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").expect("valid")
}

fn cart() -> Identity {
    Identity::parse_uri("spiffe://cluster.local/ns/shop/sa/cart").expect("valid")
}

fn request() -> CertificateRequest {
    let key = generate_key().expect("key");
    CertificateRequest::parse_pem(&create_csr(&key, &cart()).expect("csr")).expect("own csr")
}

/// CA-6, CA-7.
#[test]
fn ca_6_ca_7_nothing_outlives_the_signing_certificate() {
    let start = SystemTime::now();
    let authority = Authority::self_signed(&domain(), start, 10 * HOUR).expect("root");
    let ask = |ttl, now| authority.issue(&request(), &cart(), ttl, now);
    assert!(ask(HOUR, start).expect("issued").not_after < authority.not_after());
    assert_eq!(ask(24 * HOUR, start).expect("issued").not_after, authority.not_after());
    assert_eq!(ask(Duration::MAX, start + 9 * HOUR).expect("issued").not_after, authority.not_after());
    for now in [start + 11 * HOUR, start - HOUR] {
        let refused = ask(HOUR, now);
        assert!(matches!(refused, Err(Error::SignerValidity { .. })), "{refused:?}");
    }
    assert_eq!(ask(Duration::ZERO, start), Err(Error::Time));
}

#[test]
fn secret_restores_the_same_authority() {
    let authority = Authority::self_signed(&domain(), SystemTime::now(), ROOT_TTL).expect("root");
    let secret: BTreeMap<String, Vec<u8>> = authority
        .to_secret()
        .into_iter()
        .map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec()))
        .collect();
    assert_eq!(
        secret.keys().map(String::as_str).collect::<Vec<_>>(),
        ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "key.pem", "root-cert.pem"]
    );
    let again = Authority::from_secret(|name| secret.get(name).map(Vec::as_slice)).expect("own Secret");
    assert_eq!(again.roots(), authority.roots());
    assert_eq!(again.key_pem(), authority.key_pem());
    assert_eq!(again.not_after(), authority.not_after());
    let issued = again.issue(&request(), &cart(), HOUR, SystemTime::now()).expect("issued");
    assert_eq!(issued.into_response().len(), 2, "leaf and root bundle");
}

/// CA-20, and every other entry that counts, in either form.
#[test]
fn ca_20_a_secret_without_one_of_its_parts_is_refused_by_name() {
    let authority = Authority::self_signed(&domain(), SystemTime::now(), ROOT_TTL).expect("root");
    let opaque: BTreeMap<&str, Vec<u8>> =
        authority.to_secret().into_iter().map(|(name, text)| (name, text.as_bytes().to_vec())).collect();
    let tls: BTreeMap<&str, Vec<u8>> = [
        ("tls.crt", opaque["ca-cert.pem"].clone()),
        ("tls.key", opaque["ca-key.pem"].clone()),
        ("ca.crt", opaque["root-cert.pem"].clone()),
    ]
    .into();
    let load = |secret: &BTreeMap<&str, Vec<u8>>, missing: &str| {
        Authority::from_secret(|name| secret.get(name).filter(|_| name != missing).map(Vec::as_slice))
    };
    for (secret, parts) in
        [(&opaque, ["ca-cert.pem", "ca-key.pem", "root-cert.pem"]), (&tls, ["tls.key", "ca.crt", "tls.key"])]
    {
        assert_eq!(load(secret, "nothing").expect("whole").signer(), authority.signer());
        for missing in parts {
            let message = load(secret, missing).expect_err("incomplete").to_string();
            assert!(message.contains(missing), "{message}");
        }
    }
    // `tls.crt` selects the second form, whatever else is there.
    let other = Authority::self_signed(&domain(), SystemTime::now(), ROOT_TTL).expect("root");
    let mut both: BTreeMap<&str, Vec<u8>> =
        other.to_secret().into_iter().map(|(name, text)| (name, text.as_bytes().to_vec())).collect();
    both.extend(tls);
    assert_eq!(load(&both, "nothing").expect("whole").signer(), authority.signer());
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let now = SystemTime::now();
    let one = Authority::self_signed(&domain(), now, ROOT_TTL).expect("root");
    let two = Authority::self_signed(&domain(), now, ROOT_TTL).expect("root");
    let load = |cert: &str, key: &str, roots: &str| Authority::from_pem(cert, key, "", roots);
    let (cert, key, roots) = (one.cert_pem(), one.key_pem(), one.roots_pem());
    load(&cert, &key, &roots).expect("its own parts");
    let refused = load(&cert, &two.key_pem(), &roots);
    assert!(matches!(refused, Err(Error::KeyMismatch { .. })), "{refused:?}");
    let refused = load(&cert, &key, &two.roots_pem());
    assert!(matches!(refused, Err(Error::Unanchored(_))), "{refused:?}");

    let server_key = generate_key().expect("key");
    let leaf = one
        .issue_server(&server_key.public_key().expect("key"), &["istiod"], &[], HOUR, now)
        .expect("issued");
    let refused = load(&leaf.chain_text(), &server_key.to_pem(), &roots);
    assert!(matches!(refused, Err(Error::NotAnAuthority { .. })), "{refused:?}");
}

/// CA-19: leaf → int2 → int1 → root gives [leaf, int2, int1, root], with the keys and tools of a
/// real plugged-in CA, whether or not its files repeat the signing certificate.
#[test]
fn ca_19_plugged_in_intermediates_travel_with_the_leaf() {
    let directory = tempfile::tempdir().expect("directory");
    let at = directory.path();
    let run = |arguments: &str| {
        let status = Command::new("openssl")
            .args(arguments.split_whitespace())
            .current_dir(at)
            .output()
            .expect("openssl is installed");
        assert!(status.status.success(), "{arguments}: {}", String::from_utf8_lossy(&status.stderr));
    };
    std::fs::write(
        at.join("ca.ext"),
        "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\nsubjectKeyIdentifier=hash\n",
    )
    .expect("write");
    run(
        "req -x509 -newkey rsa:2048 -nodes -keyout root.key -out root.pem -subj /O=Corp/OU=Security/CN=Corp-Root -days 30",
    );
    for (name, signer, kind) in
        [("int1", "root", "rsa:2048"), ("int2", "int1", "ec -pkeyopt ec_paramgen_curve:P-384")]
    {
        run(&format!(
            "req -new -newkey {kind} -nodes -keyout {name}.key -out {name}.csr -subj /O=Corp/CN={name}"
        ));
        run(&format!(
            "x509 -req -in {name}.csr -CA {signer}.pem -CAkey {signer}.key -CAcreateserial -days 20 -extfile ca.ext -out {name}.pem"
        ));
    }
    let read = |name: &str| std::fs::read_to_string(at.join(name)).expect("read");
    let (int1, int2, root) = (read("int1.pem"), read("int2.pem"), read("root.pem"));
    for chain in [int1.clone(), format!("{int2}{int1}"), format!("{int2}{int1}{root}")] {
        let authority = Authority::from_pem(&int2, &read("int2.key"), &chain, &root).expect("a CA");
        let issued = authority.issue(&request(), &cart(), HOUR, SystemTime::now()).expect("issued");
        let response = issued.into_response();
        let certificates = |pems: &[String]| {
            pems.iter().flat_map(|pem| certificates_from_pem("t", pem).expect("PEM")).collect::<Vec<_>>()
        };
        assert_eq!(certificates(&response[1..]), certificates(&[int2.clone(), int1.clone(), root.clone()]));
        verify(at, &response);
    }
    // Istio's own root is RSA by default; an existing Secret must go on working.
    for (certificate, key) in [(&int1, "int1.key"), (&root, "root.key")] {
        let authority = Authority::from_pem(certificate, &read(key), "", &root).expect("an RSA authority");
        let issued = authority.issue(&request(), &cart(), HOUR, SystemTime::now()).expect("issued");
        verify(at, &issued.into_response());
    }
    let broken = Authority::from_pem(&int2, &read("int2.key"), "", &root);
    assert!(matches!(broken, Err(Error::Unanchored(_))), "{broken:?}");
}

fn verify(at: &Path, response: &[String]) {
    std::fs::write(at.join("leaf.pem"), &response[0]).expect("write");
    // Roots among them are harmless: untrusted they prove nothing.
    std::fs::write(at.join("mid.pem"), response[1..].concat()).expect("write");
    let output = Command::new("openssl")
        .args(["verify", "-CAfile", "root.pem", "-untrusted", "mid.pem", "leaf.pem"])
        .current_dir(at)
        .output()
        .expect("openssl is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn answer_without_roots_or_with_a_foreign_key_is_no_svid() {
    let authority = Authority::self_signed(&domain(), SystemTime::now(), ROOT_TTL).expect("root");
    let key = generate_key().expect("key");
    let csr = CertificateRequest::parse_pem(&create_csr(&key, &cart()).expect("csr")).expect("own csr");
    let issued = authority.issue(&csr, &cart(), HOUR, SystemTime::now()).expect("issued");
    let response = issued.clone().into_response();

    let other = generate_key().expect("key");
    let refused = Svid::from_ca_response(&response, other).expect_err("not its key");
    assert!(matches!(refused, Error::KeyMismatch { .. }), "{refused}");
    let key_again = || maille_pki::KeyPair::from_pem(&key.to_pem()).expect("own PEM");
    assert!(Svid::from_ca_response(&response[..1], key_again()).is_err());
    assert!(Svid::from_ca_response(&[], key_again()).is_err());
    let (svid, roots) = Svid::from_ca_response(&response, key_again()).expect("good");
    assert_eq!((svid.identity(), roots.as_slice()), (&cart(), authority.roots()));
    assert_eq!(svid.serial(), issued.serial);
}

#[test]
fn server_and_user_certificates_are_no_workloads() {
    let now = SystemTime::now();
    let authority = Authority::self_signed(&domain(), now, ROOT_TTL).expect("root");
    let key = generate_key().expect("key").public_key().expect("key");
    let leaf = |issued: Issued| certificates_from_pem("leaf", &issued.chain_pem[0]).expect("PEM").remove(0);

    let address = "10.96.0.1".parse().expect("address");
    let server = authority
        .issue_server(&key, &["istiod.istio-system.svc", "istiod"], &[address], HOUR, now)
        .map(leaf)
        .expect("issued");
    assert!(peer_identity(&server).is_err());
    let facts = leaf_facts(&server).expect("readable");
    assert!(facts.is_named("istiod.istio-system.svc") && facts.is_named("10.96.0.1"));
    assert!(!facts.is_named("istio") && !facts.is_named("10.96.0.2"));
    assert!(matches!(authority.issue_server(&key, &[], &[], HOUR, now), Err(Error::Name(_))));
    assert!(matches!(authority.issue_server(&key, &["n\u{e4}me"], &[], HOUR, now), Err(Error::Name(_))));

    let user =
        authority.issue_client(&key, "admin", Some("system:masters"), HOUR, now).map(leaf).expect("issued");
    assert!(peer_identity(&user).is_err());
    let subject = client_subject(&user).expect("a user");
    assert_eq!(
        (subject.common_name.as_str(), subject.organizations),
        ("admin", vec!["system:masters".to_owned()])
    );
}

#[test]
fn trust_never_becomes_empty_by_accident() {
    let authority = Authority::self_signed(&domain(), SystemTime::now(), ROOT_TTL).expect("root");
    let mut bundles = TrustBundles::from_pem(domain(), &authority.roots_pem().repeat(2)).expect("roots");
    assert_eq!(bundles.roots(&domain()).len(), 1, "duplicates are dropped");
    assert_eq!(bundles.insert(domain(), Vec::new()), Err(Error::Empty("root bundle")));
    let issued = authority.issue(&request(), &cart(), HOUR, SystemTime::now()).expect("issued");
    let leaf = certificates_from_pem("leaf", &issued.chain_pem[0]).expect("PEM");
    let refused = bundles.insert(domain(), leaf);
    assert!(matches!(refused, Err(Error::NotAnAuthority { .. })), "{refused:?}");
    assert_eq!(bundles.roots(&domain()).len(), 1, "the last good roots stay");
}
