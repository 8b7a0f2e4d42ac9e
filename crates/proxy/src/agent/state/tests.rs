use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use maille_core::TrustDomain;
use maille_pki::{Authority, CertificateRequest, create_csr, generate_key};

use super::*;

/// A directory in memory; every Linux has /dev/shm as tmpfs.
fn volume() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").expect("a directory in /dev/shm")
}

fn identity(account: &str) -> Identity {
    Identity::parse_principal(&format!("cluster.local/ns/shop/sa/{account}")).expect("valid")
}

fn credential(account: &str, ttl: Duration) -> Credential {
    let now = SystemTime::now();
    let domain = TrustDomain::parse("cluster.local").expect("valid");
    let authority = Authority::self_signed(&domain, now, Duration::from_secs(86_400)).expect("authority");
    let key = generate_key().expect("key");
    let csr = create_csr(&key, &identity(account)).expect("csr");
    let csr = CertificateRequest::parse_pem(&csr).expect("own csr");
    let issued = authority.issue(&csr, &identity(account), ttl, now).expect("issued");
    let svid = Svid::from_pem(&issued.chain_pem, key).expect("svid");
    let roots = certificates_from_pem("roots", &authority.roots_pem()).expect("roots");
    Credential { svid, obtained: now, roots }
}

#[test]
fn a_certificate_comes_back_with_its_key_and_roots_and_only_its_owner_can_read_it() {
    let volume = volume();
    let store = StateStore::open(volume.path()).expect("tmpfs");
    assert!(store.load_credential(&identity("cart"), SystemTime::now()).expect("readable").is_none());
    let saved = credential("cart", Duration::from_secs(60));
    store.save_credential(&saved).expect("saved");
    let loaded =
        store.load_credential(&identity("cart"), SystemTime::now()).expect("valid").expect("there is one");
    assert_eq!(loaded.svid.serial(), saved.svid.serial());
    assert_eq!(loaded.roots, saved.roots);
    for entry in std::fs::read_dir(volume.path().join("proxy")).expect("directory") {
        let entry = entry.expect("entry");
        assert_eq!(entry.metadata().expect("metadata").permissions().mode() & 0o777, 0o600, "{entry:?}");
    }
}

#[test]
fn a_certificate_that_expired_or_is_of_somebody_else_is_not_used() {
    let volume = volume();
    let store = StateStore::open(volume.path()).expect("tmpfs");
    store.save_credential(&credential("cart", Duration::from_secs(60))).expect("saved");
    let reason = |outcome: Result<Option<Credential>, StateError>| {
        outcome.err().map(|e| e.to_string()).unwrap_or_else(|| "used".to_owned())
    };
    let of_other = reason(store.load_credential(&identity("orders"), SystemTime::now()));
    assert!(of_other.contains("sa/cart") && of_other.contains("sa/orders"), "{of_other}");
    let later = SystemTime::now() + Duration::from_secs(120);
    let expired = reason(store.load_credential(&identity("cart"), later));
    assert!(expired.contains("expired"), "{expired}");
}

#[test]
fn a_disk_is_refused() {
    // The workspace itself is never on tmpfs where these tests matter; where it is, there is nothing to show.
    let disk = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
    match StateStore::open(disk.path()) {
        Err(StateError::OnDisk { .. }) => assert!(!disk.path().join("proxy").exists()),
        Err(other) => panic!("{other}"),
        Ok(_) => eprintln!("SKIPPED (the source tree is memory-backed): a_disk_is_refused"),
    }
}

#[test]
fn files_that_others_could_have_planted_are_refused() {
    let volume = volume();
    let store = StateStore::open(volume.path()).expect("tmpfs");
    store.save_facts("shop/cart-1", &[]).expect("saved");
    let path = volume.path().join("proxy/facts.pb");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("chmod");
    assert!(matches!(store.load_facts("shop/cart-1"), Err(StateError::Unsafe { .. })));
    std::fs::remove_file(&path).expect("removed");
    std::os::unix::fs::symlink("/etc/hostname", &path).expect("symlink");
    assert!(matches!(store.load_facts("shop/cart-1"), Err(StateError::Io { .. })));

    let dir = volume.path().join("proxy");
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o777)).expect("chmod");
    assert!(matches!(StateStore::open(volume.path()), Err(StateError::Unsafe { .. })));
}

#[test]
fn facts_come_back_to_their_own_pod_only() {
    let volume = volume();
    let store = StateStore::open(volume.path()).expect("tmpfs");
    let facts = vec![StoredResource {
        type_url: "t".into(),
        name: "n".into(),
        version: "v".into(),
        body: vec![1, 2, 3],
    }];
    store.save_facts("shop/cart-1", &facts).expect("saved");
    assert_eq!(store.load_facts("shop/cart-1").expect("own"), facts);
    assert!(matches!(store.load_facts("shop/cart-2"), Err(StateError::Content { .. })));
    std::fs::write(volume.path().join("proxy/facts.pb"), b"\xff\xff").expect("torn");
    assert!(matches!(store.load_facts("shop/cart-1"), Err(StateError::Content { .. })));
}
