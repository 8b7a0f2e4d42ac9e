//! Every kind of key that authorities and workloads may have, as openssl sees what comes of it; and revocation lists.

use std::time::{Duration, SystemTime};

use maille_core::Identity;
use maille_pki::{
    Authority, CertificateRequest, Error, KeyPair, RevocationList, Svid, certificates_from_pem, fingerprint,
};

mod common;
use common::Openssl;

const HOUR: Duration = Duration::from_secs(3600);

const KINDS: [(&str, &[&str]); 5] = [
    ("rsa2048", &["-newkey", "rsa:2048"]),
    ("rsa3072", &["-newkey", "rsa:3072"]),
    ("p256", &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]),
    ("p384", &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"]),
    ("ed25519", &["-newkey", "ed25519"]),
];

fn cart() -> Identity {
    Identity::parse_uri("spiffe://cluster.local/ns/shop/sa/cart").expect("valid")
}

/// Reference mtls 5.4 and 5.5, for each kind of authority and each kind of workload key.
#[test]
fn every_kind_of_authority_signs_every_kind_of_key() {
    let openssl = Openssl::new();
    let mut requests = Vec::new();
    for (name, kind) in KINDS {
        let arguments =
            ["req", "-new", "-nodes", "-subj", "/O=system:masters", "-keyout", "w.key", "-out", "w.csr"];
        openssl.run(&[&arguments, kind].concat());
        let request = CertificateRequest::parse_pem(&openssl.read("w.csr")).expect(name);
        requests.push((name, request, openssl.read("w.key")));
    }
    for (authority_kind, kind) in KINDS {
        openssl.authority("root", None, kind, 30);
        openssl.authority("int", Some("root"), kind, 20);
        let read = |name: &str| openssl.read(name);
        let authority = Authority::from_pem(&read("int.pem"), &read("int.key"), "", &read("root.pem"));
        let authority = authority.unwrap_or_else(|e| panic!("{authority_kind}: {e}"));
        for (name, request, key) in &requests {
            let what = format!("{name} by {authority_kind}");
            // Openssl's certificates begin now, and not two minutes ago.
            let now = SystemTime::now().max(authority.not_before());
            let issued = authority.issue(request, &cart(), HOUR, now).expect(&what);
            assert_eq!(now.duration_since(issued.not_before).expect("backdated").as_secs(), 120, "{what}");
            openssl.write("leaf.pem", &issued.chain_pem[0]);
            for purpose in ["sslclient", "sslserver"] {
                let arguments = [
                    "verify",
                    "-x509_strict",
                    "-purpose",
                    purpose,
                    "-CAfile",
                    "root.pem",
                    "-untrusted",
                    "int.pem",
                    "leaf.pem",
                ];
                openssl.try_run(&arguments).unwrap_or_else(|e| panic!("{what}, {purpose}: {e}"));
            }
            let text = openssl.run(&["x509", "-in", "leaf.pem", "-noout", "-text"]);
            let squeezed = text.split_whitespace().collect::<Vec<_>>().join(" ");
            for expected in [
                "Subject: Subject Public Key Info",
                "X509v3 Subject Alternative Name: critical URI:spiffe://cluster.local/ns/shop/sa/cart",
                "X509v3 Key Usage: critical Digital Signature, Key Encipherment",
                "X509v3 Extended Key Usage: TLS Web Server Authentication, TLS Web Client Authentication",
                "X509v3 Basic Constraints: critical CA:FALSE",
            ] {
                assert!(squeezed.contains(expected), "{what}: missing '{expected}' in\n{text}");
            }
            let key = KeyPair::from_pem(key).expect("key");
            let svid = Svid::from_pem(&issued.chain_pem, key).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(svid.signer(authority.roots()).as_deref(), Some(authority.signer()), "{what}");
        }
    }
}

#[test]
fn authorities_with_keys_of_other_kinds_are_refused() {
    let openssl = Openssl::new();
    for kind in
        [["-newkey", "rsa:1024"].as_slice(), &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp256k1"]]
    {
        openssl.authority("root", None, kind, 30);
        let pem = openssl.read("root.pem");
        Authority::from_pem(&pem, &openssl.read("root.key"), "", &pem).expect_err("weak or unknown");
    }
}

/// A CA of openssl's with a list of what it has revoked.
fn with_list(openssl: &Openssl, name: &str, serials: &[&str]) -> String {
    let index: String = serials
        .iter()
        .map(|serial| format!("R\t351231235959Z\t260101000000Z\t{serial}\tunknown\t/CN=x\n"))
        .collect();
    openssl.write("index.txt", &index);
    openssl.write(
        "ca.cnf",
        "[ca]\ndefault_ca=one\n[one]\ndatabase=index.txt\ndefault_md=sha256\ndefault_crl_days=30\n",
    );
    let (pem, key) = (format!("{name}.pem"), format!("{name}.key"));
    openssl.run(&["ca", "-config", "ca.cnf", "-gencrl", "-cert", &pem, "-keyfile", &key, "-out", "crl.pem"]);
    openssl.read("crl.pem")
}

#[test]
fn revocation_lists_of_the_own_chain_are_read() {
    let openssl = Openssl::new();
    let ec = KINDS[2].1;
    openssl.authority("root", None, KINDS[0].1, 30);
    openssl.authority("int", Some("root"), ec, 30);
    let of_root = with_list(&openssl, "root", &[]);
    let of_int = with_list(&openssl, "int", &["00AB12", "7F"]);
    let certificate = |name: &str| certificates_from_pem("t", &openssl.read(name)).expect("PEM").remove(0);
    let secret = |list: &str| {
        let entries: std::collections::BTreeMap<&str, String> = [
            ("ca-cert.pem", openssl.read("int.pem")),
            ("ca-key.pem", openssl.read("int.key")),
            ("root-cert.pem", openssl.read("root.pem")),
            ("cert-chain.pem", String::new()),
            ("ca-crl.pem", list.to_owned()),
        ]
        .into();
        Authority::from_secret(|name| entries.get(name).map(String::as_bytes))
    };
    assert!(secret("").expect("none is fine").crl().is_empty());
    let authority = secret(&format!("{of_int}{of_root}")).expect("both");
    let [int, root] = authority.crl() else { panic!("two lists") };
    assert_eq!(
        (int.signer(), root.signer()),
        (authority.signer(), fingerprint(&certificate("root.pem")).as_str())
    );
    let revoked: Vec<_> = int.revoked().map(|(_, serial)| serial.to_owned()).collect();
    assert_eq!(revoked, ["7f", "ab12"]);
    assert!(int.revokes(int.issuer(), "ab12") && !int.revokes(root.issuer(), "ab12"));
    assert_eq!(root.revoked().count(), 0);
    assert!(int.next_update().is_some_and(|next| next > int.this_update()));
    // What follows goes on with them.
    let more = authority.with_trust([]).expect("roots");
    assert_eq!(more.crl(), authority.crl());

    // Another CA's, one whose bytes were changed, and no list at all.
    openssl.authority("other", None, ec, 30);
    let foreign = with_list(&openssl, "other", &["01"]);
    let mut changed = int.der().as_ref().to_vec();
    let at = changed.windows(2).position(|two| two == [0xAB, 0x12]).expect("the serial");
    changed[at + 1] = 0x13;
    let forged = RevocationList::from_der(changed.into(), &[certificate("int.pem")]);
    assert!(matches!(forged, Err(Error::RevocationList(_))), "{forged:?}");
    for wrong in [foreign.as_str(), "nonsense", "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"] {
        let message = secret(wrong).expect_err("refused").to_string();
        assert!(message.contains("ca-crl.pem"), "{message}");
    }
}
