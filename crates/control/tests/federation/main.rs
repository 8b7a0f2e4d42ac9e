//! Meshes that federate, over real sockets (SPIFFE Federation; reference mtls 5.6, 6.4).

mod lab;
mod policy;

use std::process::Command;
use std::time::SystemTime;

use lab::{Mesh, again, authority, der, eventually};
use maille_pki::{BundleDocument, JwtKeys, Reading};

#[tokio::test]
async fn two_meshes_believe_each_other() {
    let (root_a, root_b) = (authority("a.example"), authority("b.example"));
    let mut a = Mesh::new("a.example", again(&root_a)).await;
    let mut b = Mesh::new("b.example", again(&root_b)).await;
    b.control.set_jwt_keys(JwtKeys::generate(SystemTime::now()).expect("keys"));
    a.believe(&b.entry(&root_b, "b.example"));
    b.believe(&a.entry(&root_a, "a.example"));
    a.follow();
    b.follow();
    eventually("a believes b", || a.told("b.example") == [der(&root_b)]).await;
    eventually("b believes a", || b.told("a.example") == [der(&root_a)]).await;
    eventually("keys of tokens come with it", || {
        let keys = b.jwks("b.example");
        let told: Option<serde_json::Value> = serde_json::from_slice(&a.jwks("b.example")).ok();
        told.is_some() && told == serde_json::from_slice(&keys).ok()
    })
    .await;
    assert_eq!(a.told("a.example"), [der(&root_a)], "nobody else speaks for the own trust domain");
}

#[tokio::test]
async fn an_endpoint_that_proves_another_identity_changes_nothing() {
    let (root_a, root_b) = (authority("a.example"), authority("b.example"));
    let b = Mesh::new("b.example", again(&root_b)).await;
    let mut c = Mesh::new("c.example", authority("c.example")).await;
    let mut bundles = c.control.hub.subscribe();
    bundles.watch(maille_control::world::Key::Trust);
    // By the right root, but of another trust domain than the one it would speak for.
    c.believe(&b.entry(&root_b, "a.example"));
    c.follow();
    eventually("the bootstrap counts", || c.told("a.example") == [der(&root_b)]).await;
    // And by no root that it could be.
    c.believe(&b.entry(&root_a, "b.example"));
    eventually("the other bootstrap counts", || c.told("b.example") == [der(&root_a)]).await;
    // The endpoint is asked again and again meanwhile.
    let visits = async { tokio::time::sleep(std::time::Duration::from_millis(400)).await };
    visits.await;
    assert_eq!((c.told("b.example"), c.stored()), (vec![der(&root_a)], 0));
    assert!(c.told("a.example").is_empty());
}

#[tokio::test]
async fn a_rotation_over_there_is_followed_and_trust_outlives_errors_and_restarts() {
    let (old, new) = (authority("b.example"), authority("b.example"));
    let b = Mesh::new("b.example", again(&old)).await;
    let mut a = Mesh::new("a.example", authority("a.example")).await;
    a.believe(&b.entry(&old, "b.example"));
    a.follow();
    eventually("the first root", || a.told("b.example") == [der(&old)] && a.stored() == 1).await;

    let both = |signer: &maille_pki::Authority, other: &maille_pki::Authority| {
        again(signer).with_trust([other.certificate().clone()]).expect("trust")
    };
    let has = |a: &Mesh, roots: &[Vec<u8>]| {
        let told = a.told("b.example");
        told.len() == roots.len() && roots.iter().all(|root| told.contains(root))
    };
    // Distributing, signing, withdrawing: at the end the bootstrap verifies nothing any more.
    b.control.set_authority(both(&old, &new));
    eventually("both roots", || has(&a, &[der(&old), der(&new)])).await;
    b.control.set_authority(both(&new, &old));
    b.control.set_authority(again(&new));
    eventually("the new root alone", || has(&a, &[der(&new)])).await;

    // Gone: what was believed stays, also in a new control plane.
    b.stop();
    let mut next = a.restarted().await;
    drop(a);
    next.follow();
    eventually("the next control plane believes the same", || has(&next, &[der(&new)])).await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(has(&next, &[der(&new)]), "errors end no trust");

    // Only the configuration does.
    next.believe("[]");
    eventually("trust ends", || next.told("b.example").is_empty()).await;
}

#[tokio::test]
async fn an_entry_that_is_removed_and_added_again_has_to_tell_what_is_good_now() {
    let (old, new) = (authority("b.example"), authority("b.example"));
    let b = Mesh::new("b.example", again(&old)).await;
    let mut a = Mesh::new("a.example", authority("a.example")).await;
    let entry = b.entry(&old, "b.example");
    a.believe(&entry);
    a.follow();
    eventually("the first root", || a.told("b.example") == [der(&old)] && a.stored() == 1).await;
    b.control.set_authority(again(&old).with_trust([new.certificate().clone()]).expect("trust"));
    eventually("both roots", || a.told("b.example").len() == 2).await;
    b.control.set_authority(again(&new));
    eventually("the new root alone", || a.told("b.example") == [der(&new)]).await;
    let ends = |a: &mut Mesh| a.believe("[]");
    let begins_again = async |a: &mut Mesh| {
        eventually("trust ends", || a.told("b.example").is_empty()).await;
        a.believe(&entry);
        eventually("trust is back", || !a.told("b.example").is_empty()).await;
        assert_eq!(a.told("b.example"), [der(&new)], "the withdrawn root stays withdrawn");
    };
    ends(&mut a);
    begins_again(&mut a).await;
    // Also if it was another control plane that believed it last.
    ends(&mut a);
    let mut next = a.restarted().await;
    next.follow();
    begins_again(&mut next).await;
    // It may have been removed because of the root that is remembered: that alone brings nothing back.
    ends(&mut next);
    eventually("trust ends", || next.told("b.example").is_empty()).await;
    b.stop();
    next.believe(&entry);
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(next.told("b.example").is_empty(), "neither what was told last nor what was begun with");
}

#[tokio::test]
async fn a_bundle_older_than_the_last_one_is_refused() {
    let (old, new) = (authority("b.example"), authority("b.example"));
    let b = Mesh::new("b.example", again(&old)).await;
    let mut a = Mesh::new("a.example", authority("a.example")).await;
    a.believe(&b.entry(&old, "b.example"));
    a.follow();
    eventually("the first root", || a.told("b.example") == [der(&old)] && a.stored() == 1).await;
    let mut next = a.restarted().await;
    drop(a);
    next.store_as_newest();
    next.follow();
    b.control.set_authority(again(&old).with_trust([new.certificate().clone()]).expect("trust"));
    let before = b.control.bundle_fetches();
    eventually("some fetches", || b.control.bundle_fetches() > before + 3).await;
    assert_eq!(next.told("b.example"), [der(&old)]);
    // An endpoint that is configured anew is asked for the first time.
    next.believe(&b.entry(&old, "b.example").replace("/\"", "/bundle\""));
    eventually("both roots", || next.told("b.example").len() == 2).await;
}

#[tokio::test]
async fn roots_for_the_own_trust_domain_are_added_to_the_own() {
    let (own, other) = (authority("a.example"), authority("a.example"));
    let mut a = Mesh::new("a.example", again(&own)).await;
    let pem = other.cert_pem().replace('\n', "\\n");
    a.believe(&format!("- {{pem: \"{pem}\"}}\n- {{pem: \"{pem}\", trustDomains: [a.example, d.example]}}"));
    a.follow();
    eventually("both", || a.told("a.example") == [der(&own), der(&other)]).await;
    assert_eq!(a.told("d.example"), [der(&other)]);
    // A rotation of the own authority leaves them alone.
    let next = authority("a.example");
    a.control.set_authority(again(&next));
    assert_eq!(a.told("a.example"), [der(&next), der(&other)]);
}

/// curl as somebody else's consumer, which verifies by the mesh's root alone.
#[tokio::test]
async fn the_document_is_the_standards_and_its_sequence_grows_with_each_change() {
    let (old, new) = (authority("b.example"), authority("b.example"));
    let b = Mesh::new("b.example", again(&old)).await;
    b.control.set_jwt_keys(JwtKeys::generate(SystemTime::now()).expect("keys"));
    let files = tempfile::tempdir().expect("a directory");
    let roots = files.path().join("roots.pem");
    std::fs::write(&roots, old.cert_pem() + &new.cert_pem()).expect("written");
    let fetch = |path: &'static str, more: &'static [&'static str]| {
        let (url, roots) = (format!("https://{}{path}", b.address), roots.clone());
        async move {
            let run = move || {
                // The certificate bears a SPIFFE ID and no host name, which curl cannot be told to expect; openssl's
                // verification of the chain is what counts here.
                let mut curl = Command::new("curl");
                curl.args(["--silent", "--show-error", "--insecure", "--max-time", "10"]).args(more);
                curl.arg("--cacert").arg(roots).arg(url).output().expect("curl runs")
            };
            let output = tokio::task::spawn_blocking(run).await.expect("no panic");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            output.stdout
        }
    };
    let first = fetch("/", &[]).await;
    assert_eq!(first, fetch("/bundle", &["--http1.1"]).await);
    let read = BundleDocument::decode(&first, Reading::Strict).expect("strict readers take it");
    assert_eq!(read.roots, [old.certificate().clone()]);
    assert_eq!((read.jwt_keys.len(), read.refresh_hint.map(|hint| hint.as_secs())), (1, Some(60)));
    let sequence = read.sequence.expect("there");

    b.control.set_authority(again(&old).with_trust([new.certificate().clone()]).expect("trust"));
    let second = BundleDocument::decode(&fetch("/", &[]).await, Reading::Strict).expect("readable");
    assert!(second.roots.len() == 2 && second.sequence > Some(sequence), "{second:?}");
    let status = fetch("/other", &["-o", "/dev/null", "-w", "%{http_code}"]).await;
    assert_eq!(status, b"404");
    let status = fetch("/", &["-X", "POST", "-o", "/dev/null", "-w", "%{http_code}"]).await;
    assert_eq!(status, b"405");

    let address = b.address.to_string();
    let shown = tokio::task::spawn_blocking(move || {
        let args = ["s_client", "-verify_return_error", "-brief", "-connect", &address, "-CAfile"];
        Command::new("openssl")
            .args(args)
            .arg(roots)
            .stdin(std::process::Stdio::null())
            .output()
            .expect("openssl runs")
    });
    let shown = shown.await.expect("no panic");
    let said = String::from_utf8_lossy(&shown.stderr);
    assert!(shown.status.success() && said.contains("Verification: OK"), "{said}");
}
