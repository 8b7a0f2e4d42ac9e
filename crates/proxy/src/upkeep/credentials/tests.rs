use maille_testkit::TestAuthority;

use super::*;

fn mutual(name: &str) -> OrderFiles {
    let credential = Some(CredentialUse { name: name.into(), shows_certificate: true });
    OrderFiles { roots: RootsFrom::Credential, credential, ..OrderFiles::default() }
}

fn used(files: &OrderFiles) -> &CredentialUse {
    files.credential.as_ref().expect("set")
}

fn message(name: &str) -> wire::Credential {
    let authority = TestAuthority::new();
    let key = maille_pki::generate_key().expect("a key");
    let public = key.public_key().expect("P-256");
    let (ttl, now) = (std::time::Duration::from_secs(3600), std::time::SystemTime::now());
    let issued = authority.authority().issue_client(&public, "web", None, ttl, now).expect("signed");
    wire::Credential {
        name: name.into(),
        certificate_chain: issued.chain_text().into_bytes().into(),
        private_key: key.to_pem().as_bytes().to_vec().into(),
        ca_certificates: authority.roots_pem().into_bytes().into(),
        ..Default::default()
    }
}

type Asked = Arc<Mutex<Vec<(String, bool)>>>;

/// Credentials of an agent, and what it asked for.
fn asking() -> (Credentials, Asked) {
    let (credentials, asked) = (Credentials::default(), Asked::default());
    let log = asked.clone();
    credentials.asks(Box::new(move |name, wanted| log.lock().push((name.to_owned(), wanted))));
    (credentials, asked)
}

#[test]
fn a_credential_is_asked_for_while_a_rule_names_it() {
    let (credentials, asked) = asking();
    let files = mutual("shop/api");
    let material = credentials.material(used(&files), &files);
    let same = credentials.material(used(&files), &files);
    assert!(Arc::ptr_eq(&material, &same));
    assert_eq!(*asked.lock(), [("shop/api".to_owned(), true)]);
    assert!(material.current().origin.is_none());
    credentials.update(&message("shop/api")).expect("good");
    assert!(material.current().origin.as_ref().is_some_and(|origin| origin.certificate().is_some()));
    credentials.sweep();
    assert!(credentials.holds("shop/api"));
    drop((material, same));
    credentials.sweep();
    assert!(!credentials.holds("shop/api"));
    assert_eq!(asked.lock().last(), Some(&("shop/api".to_owned(), false)));
}

#[test]
fn one_that_comes_before_its_rule_is_there_when_it_is_named() {
    let (credentials, asked) = asking();
    credentials.update(&message("shop/api")).expect("good");
    assert_eq!(asked.lock().len(), 1, "it is to be kept current");
    let files = mutual("shop/api");
    assert!(credentials.material(used(&files), &files).current().origin.is_some());
}

#[test]
fn a_change_makes_connections_old_and_a_bad_one_changes_nothing() {
    let (credentials, _) = asking();
    let files = mutual("shop/api");
    let material = credentials.material(used(&files), &files);
    credentials.update(&message("shop/api")).expect("good");
    let first = material.generation();
    let bad = wire::Credential { private_key: b"x".to_vec().into(), ..message("shop/api") };
    credentials.update(&bad).expect("taken");
    let held = material.current();
    assert!(held.origin.is_some() && held.problem.as_ref().is_some_and(|why| why.contains("shop/api")));
    assert!(!held.problem.as_ref().is_some_and(|why| why.contains("BEGIN")), "nothing of its content");
    assert_eq!(material.generation(), first);
    credentials.update(&message("shop/api")).expect("good");
    assert!(material.generation() > first && material.current().problem.is_none());
}

#[test]
fn what_is_gone_or_forbidden_is_not_used_any_more() {
    let (credentials, _) = asking();
    let files = mutual("shop/api");
    let material = credentials.material(used(&files), &files);
    let problem = wire::Credential {
        name: "shop/api".into(),
        problem: "Secret shop/api has no key tls.key".into(),
        ..Default::default()
    };
    let takes: [&dyn Fn(); 2] =
        [&|| credentials.remove("shop/api"), &|| credentials.update(&problem).expect("taken")];
    for take in takes {
        credentials.update(&message("shop/api")).expect("good");
        let generation = material.generation();
        take();
        assert!(material.current().origin.is_none() && material.generation() > generation);
        assert!(material.current().problem.as_ref().is_some_and(|why| why.contains("shop/api")));
    }
}

#[test]
fn what_a_credential_lacks_is_named() {
    let simple = OrderFiles {
        credential: Some(CredentialUse { name: "shop/api".into(), shows_certificate: false }),
        ..mutual("shop/api")
    };
    let no_roots = wire::Credential { ca_certificates: Vec::new().into(), ..message("shop/api") };
    let no_key = wire::Credential { private_key: Vec::new().into(), ..message("shop/api") };
    for (files, message, lacks) in [
        (mutual("shop/api"), &no_roots, Some("cacert")),
        (simple.clone(), &no_roots, Some("cacert")),
        (mutual("shop/api"), &no_key, Some("tls.key")),
        (simple, &no_key, None),
    ] {
        let (credentials, _) = asking();
        credentials.update(message).expect("taken");
        let problem = credentials.material(used(&files), &files).current().problem.clone();
        match lacks {
            Some(lacks) => assert!(problem.is_some_and(|why| why.contains(lacks)), "{lacks}"),
            None => assert_eq!(problem, None),
        }
    }
    let nowhere = Credentials::default();
    let files = mutual("shop/api");
    let problem = nowhere.material(used(&files), &files).current().problem.clone();
    assert!(problem.is_some_and(|why| why.contains("control plane")));
}
