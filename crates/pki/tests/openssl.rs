//! What openssl says about the certificates of the authority, and what the authority says about
//! requests made by openssl.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use maille_core::{Identity, TrustDomain};
use maille_pki::{Authority, CertificateRequest, Error, KeyPair, ROOT_TTL, Svid, create_csr, generate_key};

const HOUR: Duration = Duration::from_secs(3600);

fn domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").expect("valid")
}

fn cart() -> Identity {
    Identity::parse_uri("spiffe://cluster.local/ns/shop/sa/cart").expect("valid")
}

fn root() -> Authority {
    Authority::self_signed(&domain(), SystemTime::now(), ROOT_TTL).expect("root")
}

/// Runs openssl in a directory; its standard output, or what it complains about.
fn openssl(directory: &Path, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("openssl")
        .args(arguments)
        .current_dir(directory)
        .output()
        .expect("openssl is installed");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// Reference mtls 5.4, row by row.
#[test]
fn workload_certificates_are_as_the_table_says() {
    let directory = tempfile::tempdir().expect("directory");
    let at = directory.path();
    let authority = root();
    let key = generate_key().expect("key");
    let request = CertificateRequest::parse_pem(&create_csr(&key, &cart()).expect("csr")).expect("own csr");
    let issued = authority.issue(&request, &cart(), 24 * HOUR, SystemTime::now()).expect("issued");
    std::fs::write(at.join("leaf.pem"), issued.chain_text()).expect("write");
    std::fs::write(at.join("root.pem"), authority.roots_pem()).expect("write");

    for purpose in ["sslclient", "sslserver"] {
        openssl(at, &["verify", "-x509_strict", "-purpose", purpose, "-CAfile", "root.pem", "leaf.pem"])
            .unwrap_or_else(|e| panic!("chain does not verify for {purpose}: {e}"));
    }
    let text = openssl(at, &["x509", "-in", "leaf.pem", "-noout", "-text"]).expect("readable");
    let squeezed = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for expected in [
        "Version: 3",
        "Subject: Subject Public Key Info",
        "X509v3 Subject Alternative Name: critical URI:spiffe://cluster.local/ns/shop/sa/cart",
        "X509v3 Key Usage: critical Digital Signature, Key Encipherment",
        "X509v3 Extended Key Usage: TLS Web Server Authentication, TLS Web Client Authentication",
        "X509v3 Basic Constraints: critical CA:FALSE",
        "Issuer: O = cluster.local",
        "NIST CURVE: P-256",
    ] {
        assert!(squeezed.contains(expected), "missing '{expected}' in\n{text}");
    }

    let lifetime = issued.not_after.duration_since(issued.not_before).expect("ordered");
    assert_eq!(lifetime, 24 * HOUR + Duration::from_secs(120), "TTL + 2 min");
    let backdated = SystemTime::now().duration_since(issued.not_before).expect("in the past").as_secs();
    assert!((119..=180).contains(&backdated), "started {backdated} s ago");

    let serial = openssl(at, &["x509", "-in", "leaf.pem", "-noout", "-serial"]).expect("readable");
    let serial = serial.trim().trim_start_matches("serial=").to_lowercase();
    assert!(serial.len() <= 32, "serial {serial} is not below 2^128");
    assert_eq!(serial, issued.serial);

    let svid = Svid::from_pem(&issued.chain_pem, key).expect("an SVID");
    assert_eq!(svid.identity(), &cart());
    assert_eq!((svid.not_before(), svid.not_after()), (issued.not_before, issued.not_after));
}

/// Reference mtls 5.5.
#[test]
fn root_is_an_authority_of_the_trust_domain() {
    let directory = tempfile::tempdir().expect("directory");
    let at = directory.path();
    std::fs::write(at.join("root.pem"), root().roots_pem()).expect("write");
    let text = openssl(at, &["x509", "-in", "root.pem", "-noout", "-text"]).expect("readable");
    let squeezed = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for expected in [
        "Issuer: O = cluster.local",
        "Subject: O = cluster.local",
        "X509v3 Basic Constraints: critical CA:TRUE",
        "X509v3 Key Usage: critical Certificate Sign, CRL Sign",
    ] {
        assert!(squeezed.contains(expected), "missing '{expected}' in\n{text}");
    }
    // 3650 days, less the two minutes or so that have passed of it.
    let days = |n: u64| (n * 86_400).to_string();
    openssl(at, &["x509", "-in", "root.pem", "-noout", "-checkend", &days(3649)]).expect("lives on");
    assert!(openssl(at, &["x509", "-in", "root.pem", "-noout", "-checkend", &days(3651)]).is_err());
}

/// CA-1, CA-12: the names, the subject and the extensions that a request asks for go nowhere.
#[test]
fn ca_1_ca_12_nothing_of_a_request_but_its_key_reaches_the_certificate() {
    let directory = tempfile::tempdir().expect("directory");
    let at = directory.path();
    std::fs::write(
        at.join("evil.cnf"),
        "[req]\ndistinguished_name=dn\nreq_extensions=ext\nprompt=no\n[dn]\nO=system:masters\nCN=admin\n[ext]\n\
         subjectAltName=critical,URI:spiffe://cluster.local/ns/shop/sa/admin,DNS:istiod.istio-system.svc\n\
         basicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign\n1.2.3.4=ASN1:UTF8String:anything\n",
    )
    .expect("write");
    openssl(
        at,
        &[
            "req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", "k.pem", "-config", "evil.cnf",
            "-out", "csr.pem",
        ],
    )
    .expect("request");
    let csr = std::fs::read_to_string(at.join("csr.pem")).expect("read");
    let request = CertificateRequest::parse_pem(&csr).expect("names are ignored, not refused");
    let issued = root().issue(&request, &cart(), HOUR, SystemTime::now()).expect("issued");
    std::fs::write(at.join("leaf.pem"), issued.chain_text()).expect("write");
    let text = openssl(at, &["x509", "-in", "leaf.pem", "-noout", "-text"]).expect("readable");
    for absent in ["admin", "system:masters", "istiod", "CA:TRUE", "Certificate Sign", "1.2.3.4"] {
        assert!(!text.contains(absent), "'{absent}' got into\n{text}");
    }
    let key = KeyPair::from_pem(&std::fs::read_to_string(at.join("k.pem")).expect("read")).expect("RSA key");
    assert_eq!(Svid::from_pem(&issued.chain_pem, key).expect("an SVID").identity(), &cart());
}

/// Reference mtls 5.4: a common name in the request gives one in the certificate, and it is the identity.
#[test]
fn a_common_name_is_the_identity_if_it_fits() {
    let directory = tempfile::tempdir().expect("directory");
    let at = directory.path();
    let key =
        ["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "k.pem"];
    openssl(at, &[&key[..], &["-subj", "/O=corp/CN=admin", "-out", "csr.pem"]].concat()).expect("request");
    let csr = std::fs::read_to_string(at.join("csr.pem")).expect("read");
    let request = CertificateRequest::parse_pem(&csr).expect("a request");
    let authority = root();
    std::fs::write(at.join("root.pem"), authority.roots_pem()).expect("write");
    let long = format!("spiffe://cluster.local/ns/shop/sa/{}", "x".repeat(40));
    for (uri, subject) in [
        (cart().uri(), format!("Subject: CN = {} ", cart().uri())),
        (long, "Subject: Subject Public Key".to_owned()),
    ] {
        let identity = Identity::parse_uri(&uri).expect("valid");
        let issued = authority.issue(&request, &identity, HOUR, SystemTime::now()).expect("issued");
        std::fs::write(at.join("leaf.pem"), issued.chain_text()).expect("write");
        openssl(at, &["verify", "-x509_strict", "-CAfile", "root.pem", "leaf.pem"]).expect("verifies");
        let text = openssl(at, &["x509", "-in", "leaf.pem", "-noout", "-text"]).expect("readable");
        let squeezed = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let name = format!("X509v3 Subject Alternative Name: critical URI:{uri} ");
        assert!(squeezed.contains(&subject) && squeezed.contains(&name), "{text}");
        let own = KeyPair::from_pem(&std::fs::read_to_string(at.join("k.pem")).expect("read")).expect("key");
        assert_eq!(Svid::from_pem(&issued.chain_pem, own).expect("an SVID").identity(), &identity);
    }
}

#[test]
fn keys_of_every_accepted_kind_get_certificates() {
    let directory = tempfile::tempdir().expect("directory");
    let at = directory.path();
    let authority = root();
    std::fs::write(at.join("root.pem"), authority.roots_pem()).expect("write");
    for (name, arguments) in [
        ("rsa2048", vec!["-newkey", "rsa:2048"]),
        ("p256", vec!["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]),
        ("p384", vec!["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"]),
        // Signed with another digest than the curve's usual one.
        ("p256-sha384", vec!["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-sha384"]),
        ("ed25519", vec!["-newkey", "ed25519"]),
    ] {
        let mut all = vec!["req", "-new", "-nodes", "-subj", "/", "-keyout", "k.pem", "-out", "csr.pem"];
        all.extend(arguments);
        openssl(at, &all).expect("request");
        let csr = std::fs::read_to_string(at.join("csr.pem")).expect("read");
        let request = CertificateRequest::parse_pem(&csr).unwrap_or_else(|e| panic!("{name}: {e}"));
        let issued = authority.issue(&request, &cart(), HOUR, SystemTime::now()).expect("issued");
        std::fs::write(at.join("leaf.pem"), issued.chain_text()).expect("write");
        openssl(at, &["verify", "-x509_strict", "-CAfile", "root.pem", "leaf.pem"])
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let key = KeyPair::from_pem(&std::fs::read_to_string(at.join("k.pem")).expect("read")).expect(name);
        Svid::from_pem(&issued.chain_pem, key).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

/// PKCS#8, SEC1 (with its parameters before it) and PKCS#1, as files on disk have them.
#[test]
fn private_keys_are_read_in_every_form_and_keep_it() {
    let directory = tempfile::tempdir().expect("directory");
    let at = directory.path();
    for (arguments, label) in [
        (["genrsa", "-traditional", "-out", "k.pem", "2048"].as_slice(), "RSA PRIVATE KEY"),
        (["ecparam", "-genkey", "-name", "prime256v1", "-out", "k.pem"].as_slice(), "EC PRIVATE KEY"),
        (["genpkey", "-algorithm", "ed25519", "-out", "k.pem"].as_slice(), "PRIVATE KEY"),
    ] {
        openssl(at, arguments).expect("key");
        let key = KeyPair::from_pem(&std::fs::read_to_string(at.join("k.pem")).expect("read")).expect(label);
        assert!(key.to_pem().starts_with(&format!("-----BEGIN {label}-----")), "{label}");
        std::fs::write(at.join("again.pem"), key.to_pem().as_bytes()).expect("write");
        let public = |file| openssl(at, &["pkey", "-pubout", "-in", file]).expect("openssl reads it");
        assert_eq!(public("k.pem"), public("again.pem"), "{label}");
    }
}

/// CA-3.
#[test]
fn ca_3_requests_without_proof_or_with_weak_keys_are_refused() {
    let directory = tempfile::tempdir().expect("directory");
    let at = directory.path();
    let request = |arguments: &[&str]| {
        let mut all = vec!["req", "-new", "-nodes", "-subj", "/", "-keyout", "k.pem", "-out", "csr.pem"];
        all.extend(arguments);
        openssl(at, &all).expect("request");
        let pem = std::fs::read_to_string(at.join("csr.pem")).expect("read");
        CertificateRequest::parse_pem(&pem)
    };
    for weak in [
        ["-newkey", "rsa:1024"].as_slice(),
        &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-521"],
        &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp256k1"],
    ] {
        let refused = request(weak);
        assert!(matches!(refused, Err(Error::PublicKey(_))), "{weak:?}: {refused:?}");
    }
    // A request signed with SHA-1 proves nothing any more.
    let refused = request(&["-newkey", "rsa:2048", "-sha1"]);
    assert!(refused.is_err(), "{refused:?}");

    let key = generate_key().expect("key");
    let pem = create_csr(&key, &cart()).expect("csr");
    for bad in ["", "no PEM", &pem.replace("CERTIFICATE REQUEST", "CERTIFICATE"), &pem[..pem.len() / 2]] {
        let refused = CertificateRequest::parse_pem(bad);
        assert!(matches!(refused, Err(Error::RequestMalformed(_))), "{refused:?}");
    }
    // Each byte that is signed counts: CertificationRequestInfo (RFC 2986 section 4.1), the first
    // member of the outer sequence.
    let request = pem_bytes(&pem);
    let (start, _) = der_header(&request);
    let (header, length) = der_header(&request[start..]);
    let signed = 0..start + header + length;
    let mut accepted = Vec::new();
    for position in signed {
        let mut changed = request.clone();
        changed[position] ^= 1;
        if CertificateRequest::parse_der(&changed).is_ok() {
            accepted.push(position);
        }
    }
    assert!(accepted.is_empty(), "changed bytes {accepted:?} went unnoticed");
}

fn pem_bytes(pem: &str) -> Vec<u8> {
    use base64::Engine as _;
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    base64::engine::general_purpose::STANDARD.decode(&body).expect("base64")
}

/// Length of a DER header, and of what follows it.
fn der_header(der: &[u8]) -> (usize, usize) {
    match der[1] {
        short @ 0..=127 => (2, short.into()),
        0x81 => (3, der[2].into()),
        _ => (4, usize::from(der[2]) << 8 | usize::from(der[3])),
    }
}
