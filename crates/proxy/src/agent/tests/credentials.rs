//! Secrets that a rule names: asked for, in force, shown to nobody.

use maille_testkit::TestAuthority;

use super::*;
use crate::snapshot::Reading;

/// Of a client that is called `name`; the last line of the key's Base64, too, by which it would be recognised.
fn credential(name: &str) -> (wire::Credential, String) {
    let authority = TestAuthority::new();
    let key = maille_pki::generate_key().expect("a key");
    let public = key.public_key().expect("P-256");
    let (ttl, now) = (Duration::from_secs(3600), std::time::SystemTime::now());
    let issued = authority.authority().issue_client(&public, name, None, ttl, now).expect("signed");
    let key = key.to_pem().to_string();
    let secret = key.lines().nth(1).expect("PEM").to_owned();
    let message = wire::Credential {
        name: "shop/api".into(),
        certificate_chain: issued.chain_text().into_bytes().into(),
        private_key: key.into_bytes().into(),
        ca_certificates: authority.roots_pem().into_bytes().into(),
        ..Default::default()
    };
    (message, secret)
}

fn mutual() -> wire::Destination {
    let tls = wire::ClientTls {
        mode: wire::client_tls::Mode::Mutual.into(),
        rule: "shop/api".into(),
        credential: "shop/api".into(),
        ..Default::default()
    };
    let port = wire::ServicePort { number: 443, tls: Some(tls), ..Default::default() };
    let service = wire::Service { hostname: "api.example".into(), ports: vec![port], ..Default::default() };
    wire::Destination { kind: Some(wire::destination::Kind::Service(service)) }
}

fn reading(shared: &Shared) -> Option<Arc<Reading>> {
    let cell = shared.destinations.lookup("api.example")?;
    let Destination::Service(service) = &**cell.load() else { return None };
    Some(service.ports.first()?.order.as_ref()?.material.current())
}

fn has_origin(shared: &Shared) -> bool {
    reading(shared).is_some_and(|reading| reading.origin.is_some())
}

#[tokio::test]
async fn a_secret_that_a_rule_names_is_in_force_shown_to_nobody_and_outlives_a_restart() {
    let mut lab = Lab::new().await;
    let (first, secret) = credential("first");
    lab.script.set(type_urls::CREDENTIAL, "shop/api", &first);
    lab.script.set(type_urls::DESTINATION, "api.example", &mutual());
    {
        let (agent, _) = lab.agent();
        let shared = shared(&agent).await;
        within(shared.destinations.resolve("api.example")).await.expect("known");
        eventually("the secret is in force", || has_origin(&shared)).await;
        let (_, dump) = get(agent.servers.listening.admin, "/config_dump").await;
        assert!(dump.contains("api.example") && !dump.contains(&secret), "{dump}");
        let (_, metrics) = get(agent.servers.listening.metrics, "/metrics").await;
        assert!(!metrics.contains(&secret));
        let facts = lab.file("proxy/facts.pb");
        let is_kept = || {
            std::fs::read(&facts)
                .is_ok_and(|bytes| bytes.windows(secret.len()).any(|window| window == secret.as_bytes()))
        };
        eventually("it is kept in the Pod's memory", is_kept).await;
    }
    lab.control = None;
    let (agent, _) = lab.agent();
    let shared = shared(&agent).await;
    eventually("it is in force again", || has_origin(&shared)).await;

    // Another content takes its place, and what is gone is not used any more.
    eventually("its port is free", || std::net::TcpListener::bind(lab.address).is_ok()).await;
    lab.start_control().await;
    let before = reading(&shared).and_then(|reading| reading.origin.clone()).expect("in force");
    lab.script.set(type_urls::CREDENTIAL, "shop/api", &credential("second").0);
    eventually("the new one is in force", || {
        let now = reading(&shared).and_then(|reading| reading.origin.clone());
        now.is_some_and(|now| !Arc::ptr_eq(&now, &before))
    })
    .await;
    lab.script.remove(type_urls::CREDENTIAL, "shop/api");
    eventually("nothing is left", || !has_origin(&shared)).await;
    let why = reading(&shared).and_then(|reading| reading.problem.clone()).unwrap_or_default();
    assert!(why.contains("shop/api"), "{why}");
    assert!(lab.script.nacks.lock().is_empty(), "{:?}", lab.script.nacks.lock());
}
